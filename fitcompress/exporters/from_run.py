"""Exports of a run's student: samples and calibration images from the run's data, and the accuracy
of the files.
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
from fitcompress.exporters.converters import quiet
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import FORMATS
from fitcompress.interface import Interface
from fitcompress.models.model import Model
from fitcompress.records.measurements import Share

__all__ = ["file_accuracy", "make_exportable"]

_NUM_SAMPLES = 8
"""Real images that exports are checked on."""
_NUM_CALIBRATION, _CALIBRATION_BATCH = 256, 32
"""Training images on which int8 measures the ranges of activations."""


def make_exportable(
    model: Model, data: DataBundle, folder: Path | None = None, *, opset: int | None = None
) -> Exportable:
    """A model with images of the run's data. Choices of an export are scored on images held out of
    the training images, never on the evaluation split.
    """
    preprocess = Preprocess(model.interface.images)
    pixels = _spread_images(data.evaluation, model, _NUM_SAMPLES)

    def calibration() -> Iterator[Tensor]:
        views = _views(data.train, model)
        loader = make_loader(views, _CALIBRATION_BATCH, shuffle_seed=0)
        for number, batch in enumerate(loader):
            if number * _CALIBRATION_BATCH >= _NUM_CALIBRATION:
                return
            yield preprocess(batch.images)

    def score(network: nn.Module) -> float:
        found = predict_split(network, model.interface, data.held_out, "cpu")
        if measured := accuracy(found):
            return measured.top1
        own = predict_split(model.network, model.interface, data.held_out, "cpu")
        return agreement(own, found).top1

    exportable = Exportable(
        _with_activation(model, model.interface.activation),
        model.interface,
        preprocess(pixels),
        folder,
        opset=opset,
        calibration=calibration,
        score=score,
    )

    def with_preprocessing() -> Exportable:
        activation = model.interface.activation or _probabilities(model.interface)
        network = nn.Sequential(preprocess, _with_activation(model, activation)).eval()
        interface = replace(model.interface, activation=activation)
        return replace(exportable, network=network, interface=interface, samples=pixels)

    return replace(exportable, with_preprocessing=with_preprocessing)


_ACTIVATIONS = {
    "softmax": nn.Softmax(-1),
    "log_softmax": nn.LogSoftmax(-1),
    "sigmoid": nn.Sigmoid(),
}


def _with_activation(model: Model, activation: str) -> nn.Module:
    ending = _ACTIVATIONS.get(activation)
    return nn.Sequential(model.network, ending).eval() if ending else model.network


def _probabilities(interface: Interface) -> str:
    """The activation that turns the outputs into probabilities."""
    return {"classes": "softmax", "labels": "sigmoid"}.get(interface.output_kind or "classes", "")


def file_accuracy(
    format_name: str, path: Path, interface: Interface, data: DataBundle
) -> Share | None:
    """The accuracy of an exported file on the evaluation split; None without labels or scores."""
    with quiet():  # torch warns that TorchScript is deprecated
        network: Any = FORMATS[format_name].open(path, interface)
        predictions = predict_split(network, interface, data.evaluation, "cpu")
    if interface.kind_of(predictions.logits_NK.shape) == "values":
        return None
    return accuracy(predictions)


def _views(images: Images, model: Model) -> Views:
    return make_dataset(images, model.interface.images, augment="none", seed=0)


def _spread_images(images: Images, model: Model, count: int) -> Tensor:
    """uint8 images at equal distances in a split."""
    views = _views(images, model)
    return views.batch([len(views) * number // count for number in range(count)]).images
