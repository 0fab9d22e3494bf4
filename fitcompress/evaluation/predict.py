"""The outputs of a model for every image of a split."""

from __future__ import annotations

import hashlib

from torch import nn

from fitcompress.data.images import Images
from fitcompress.data.loader import make_loader
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import make_dataset
from fitcompress.evaluation.accuracy import Predictions, predict
from fitcompress.interface import Interface

__all__ = ["images_digest", "predict_split"]

_BATCH_SIZE = 128
_DIGESTED = 64
"""Images, spread over a split, that its digest is computed from."""


def predict_split(
    network: nn.Module, interface: Interface, images: Images, device: str
) -> Predictions:
    """The network's outputs for every image of a split, without augmentation."""
    spec = interface.images
    if not getattr(network, "takes_pixels", False):
        network = nn.Sequential(Preprocess(spec), network).to(device)
    views = make_dataset(images, spec, augment="none", seed=0)
    return predict(network, make_loader(views, _BATCH_SIZE), device)


def images_digest(images: Images) -> str:
    """A hash that identifies a split: of the number of its images and the pixels of some."""
    digest = hashlib.sha256(str(len(images)).encode())
    for number in range(min(_DIGESTED, len(images))):
        picture = images.load(len(images) * number // min(_DIGESTED, len(images)))
        digest.update(repr(picture.size).encode() + picture.tobytes())
    return digest.hexdigest()
