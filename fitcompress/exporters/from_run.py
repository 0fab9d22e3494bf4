"""What an export takes from a run besides the student: images to check, to calibrate and to judge
with. Layer: pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fitcompress.data.bundle import DataBundle
from fitcompress.data.images import Images
from fitcompress.data.loader import make_loader
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import Views, make_dataset
from fitcompress.evaluation.accuracy import accuracy, agreement
from fitcompress.evaluation.predict import predict_split
from fitcompress.exporters.artifact import Exportable, quiet
from fitcompress.exporters.formats import FORMATS
from fitcompress.interface import Interface
from fitcompress.models.model import Model
from fitcompress.records.measurements import Share

__all__ = ["accuracy_of", "source_of"]

_SAMPLES = 8
"""Real images that exports are checked on."""
_CALIBRATION, _CALIBRATION_BATCH = 256, 32
"""Training images whose activations give int8 its ranges."""


def source_of(
    model: Model, data: DataBundle, folder: Path | None = None, *, opset: int | None = None
) -> Exportable:
    """The model with images of the run's data. What an export is chosen by is held out of the
    training images, not the evaluation split.
    """
    preprocess = Preprocess(model.interface.images)
    pixels = _some(data.evaluation, model, _SAMPLES)

    def calibration() -> Iterator[Tensor]:
        views = _views(data.train, model)
        loader = make_loader(views, _CALIBRATION_BATCH, shuffle_seed=0)
        for number, batch in enumerate(loader):
            if number * _CALIBRATION_BATCH >= _CALIBRATION:
                return
            yield preprocess(batch.images)

    def score(network: nn.Module) -> float:
        found = predict_split(network, model.interface, data.held_out, "cpu")
        if measured := accuracy(found):
            return measured.top1
        own = predict_split(model.network, model.interface, data.held_out, "cpu")
        return agreement(own, found).top1

    source = Exportable(
        _ending(model),
        model.interface,
        preprocess(pixels),
        folder,
        opset=opset,
        calibration=calibration,
        score=score,
    )

    def with_pixels() -> Exportable:
        network = nn.Sequential(preprocess, _ending(model, as_probabilities=True)).eval()
        interface = replace(model.interface, activation=_activation(model, as_probabilities=True))
        return replace(source, network=network, interface=interface, samples=pixels)

    return replace(source, with_pixels=with_pixels)


_ENDINGS = {"softmax": nn.Softmax(-1), "log_softmax": nn.LogSoftmax(-1), "sigmoid": nn.Sigmoid()}
_PROBABILITIES = {"classes": "softmax", "labels": "sigmoid"}


def _ending(model: Model, *, as_probabilities: bool = False) -> nn.Module:
    """The network as its user expects it: with the activation that the teacher ended in, or one
    that gives probabilities.
    """
    ending = _ENDINGS.get(_activation(model, as_probabilities=as_probabilities))
    return nn.Sequential(model.network, ending).eval() if ending else model.network


def _activation(model: Model, *, as_probabilities: bool) -> str:
    own = model.interface.activation
    if own or not as_probabilities:
        return own
    return _PROBABILITIES.get(model.interface.output_kind or "classes", "")


def accuracy_of(form: str, path: Path, interface: Interface, data: DataBundle) -> Share | None:
    """The accuracy of a written file on the evaluation split, run by what its format is for; None
    without labels or scores.
    """
    with quiet():  # torch says that TorchScript is of the past
        network: Any = FORMATS[form].open(path, interface)
        predictions = predict_split(network, interface, data.evaluation, "cpu")
    if interface.kind_of(predictions.logits_NK.shape) == "values":
        return None
    return accuracy(predictions)


def _views(images: Images, model: Model) -> Views:
    return make_dataset(images, model.interface.images, augment="none", seed=0)


def _some(images: Images, model: Model, count: int) -> Tensor:
    """Some images, spread over a split: uint8."""
    views = _views(images, model)
    return views.batch([len(views) * number // count for number in range(count)]).images
