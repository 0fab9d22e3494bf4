"""Data sets by timm's names: `hfds/...`, `hfids/...`, `torch/...`, `tfds/...`, `wds/...`.

Settings follow the name like the query of a URL:

    torch/cifar10
    torch/cifar10?root=/data/cifar
    hfds/cifar100?input_key=img&target_key=fine_label
    wds//data/shards
    wds/imagenet?root=/data/shards&train_split=train&eval_split=validation

Data sets that can only be read in order (`wds`, `tfds`, `hfids`) are read into memory once, so that
all other code can use indices; sets too large for that are refused.
"""

from __future__ import annotations

import contextlib
import io
import urllib.parse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fitcompress.data.images import READ_ERRORS, DecodingError, Images, read_rgb, to_rgb
from fitcompress.data.sampling import Indices
from fitcompress.errors import DataError

__all__ = ["StoredImages", "is_timm_source", "load_timm_splits"]

_SETTINGS = frozenset({"root", "train_split", "eval_split", "input_key", "target_key"})
_EVALUATION_SPLITS = ("test", "validation", "val")
_TORCH_EVALUATION_SPLITS = ("validation",)
"""torchvision's sets have one evaluation split, which timm calls by this name."""
_PACKAGES = {
    "hfds": "datasets",
    "hfids": "datasets",
    "tfds": "tensorflow-datasets",
    "torch": "torchvision",
    "wds": "webdataset",
}
"""Python package that reads the sets of each prefix."""
_MAX_STREAM_BYTES = 4 * 2**30
_NUM_SIZES = 64
"""Images sampled to estimate the native size."""


@dataclass(frozen=True)
class _Name:
    """A parsed data set string."""

    prefix: str
    name: str
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Images of a data set, opened by index."""

    open_image: Callable[[int], Image.Image]
    labels: Indices
    image_size: tuple[int, int]
    num_bytes: int

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int) -> Image.Image:
        """Raises DecodingError if the image cannot be decoded."""
        try:
            return self.open_image(index)
        except READ_ERRORS as error:
            raise DecodingError(f"decoding image {index} of a data set: {error}") from error


def is_timm_source(source: str) -> bool:
    """Whether a data source is a timm data set string."""
    return source.partition("/")[0].lower() in _PACKAGES and "/" in source


def load_timm_splits(source: str) -> tuple[Images, Images | None, str, tuple[str, ...]]:
    """(training images, evaluation images or None, their split's name, class names or ()).

    Raises:
        DataError: the data set, a split or the package that reads it is missing, or a stream is too
            large.
    """
    name = _parse(source)
    train, class_names = _load_split(source, name, name.settings.get("train_split", "train"))
    if "eval_split" in name.settings:
        split = name.settings["eval_split"]
        return train, _load_split(source, name, split)[0], split, class_names
    for split in _TORCH_EVALUATION_SPLITS if name.prefix == "torch" else _EVALUATION_SPLITS:
        with contextlib.suppress(_NoSplitError):
            evaluation = _load_split(source, name, split)[0]
            # Some sets do not publish the labels of their test split.
            if evaluation.labels.max() >= 0 or train.labels.max() < 0:
                return train, evaluation, split, class_names
    return train, None, "", class_names


class _NoSplitError(DataError):
    """The data set lacks the requested split."""


def _parse(source: str) -> _Name:
    prefix, _, rest = source.partition("/")
    name, _, query = rest.partition("?")
    settings = dict(urllib.parse.parse_qsl(query))
    unknown = sorted(settings.keys() - _SETTINGS)
    if unknown:
        raise DataError(
            f"reading data source '{source}': expected settings among "
            f"{', '.join(sorted(_SETTINGS))}, got '{unknown[0]}'",
            code="dataset-setting-unknown",
            advice="Remove or correct the setting after the '?'.",
            source=source,
            setting=unknown[0],
        )
    if prefix.lower() == "wds" and "root" not in settings:
        # WebDataset has no names: a set is a folder of shards.
        settings["root"] = name
    return _Name(prefix.lower(), name, settings)


def _load_split(source: str, name: _Name, split: str) -> tuple[Images, tuple[str, ...]]:
    dataset = _create(source, name, split)
    class_names = _class_names(dataset)
    if hasattr(dataset, "__getitem__") and not hasattr(dataset, "set_loader_cfg"):
        return _from_map(source, split, dataset), class_names
    return _from_stream(source, split, dataset), class_names


def _create(source: str, name: _Name, split: str) -> Any:
    """timm's data set; all its errors become a DataError."""
    from timm.data import create_dataset  # takes seconds, so only these sources import it

    keys: dict[str, Any] = {
        key: name.settings[key] for key in ("input_key", "target_key") if key in name.settings
    }
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # timm and torchvision print hints
            return create_dataset(
                f"{name.prefix}/{name.name}",
                root=_root(name),
                split=split,
                download=name.prefix in ("torch", "tfds"),
                input_img_mode="",  # no conversion: orientation and mode are handled here
                **keys,
            )
    except ImportError as error:
        raise _missing_package(source, name.prefix, error) from error
    except Exception as error:  # each reader raises its own, for network, files and names
        if isinstance(error, RuntimeError) and "install webdataset" in str(error):
            raise _missing_package(source, name.prefix, error) from error
        kind = _NoSplitError if _is_about_split(error, split) else DataError
        raise kind(
            f"opening data set '{source}', split '{split}': expected timm to find it, got "
            f"{type(error).__name__}: {_one_line(error)}",
            code="dataset-not-found",
            advice="Check the name and the network connection, and add the settings that the set "
            "requires, such as '?root=/folder', '?eval_split=NAME' or "
            "'?input_key=NAME&target_key=NAME'.",
            source=source,
            split=split,
        ) from error


def _missing_package(source: str, prefix: str, error: Exception) -> DataError:
    return DataError(
        f"opening data set '{source}': expected the Python package '{_PACKAGES[prefix]}', "
        f"got: {_one_line(error)}",
        code="dataset-package-missing",
        advice=f"Install it with `pip install {_PACKAGES[prefix]}`.",
        source=source,
        package=_PACKAGES[prefix],
    )


def _is_about_split(error: Exception, split: str) -> bool:
    """Whether an error is about the split, not about the network or the set."""
    return isinstance(error, ValueError | RuntimeError) and split in str(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _root(name: _Name) -> str | None:
    """Folder of the set; torchvision's sets are downloaded into the user's cache by default."""
    if "root" in name.settings or name.prefix != "torch":
        return name.settings.get("root")
    folder = Path.home() / ".cache" / "fitcompress" / "torchvision"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _class_names(dataset: Any) -> tuple[str, ...]:
    """Class names in the order of the labels; empty if the set has none."""
    classes = getattr(dataset, "classes", None)
    if classes:
        return tuple(str(name) for name in classes)
    index_of = getattr(getattr(dataset, "reader", None), "class_to_idx", None) or {}
    return tuple(str(name) for name in sorted(index_of, key=lambda name: int(index_of[name])))


def _from_map(source: str, split: str, dataset: Any) -> StoredImages:
    """Images of a data set with random access: torchvision's, or one of timm's readers."""
    open_image = _opener(dataset)
    labels = np.array([_as_label(target) for target in _targets(dataset)], dtype=np.int64)
    if not len(labels):
        raise _empty(source, split)
    sampled = np.unique(np.linspace(0, len(labels) - 1, _NUM_SIZES).round().astype(int))
    sizes = [open_image(int(index)).size for index in sampled]
    return StoredImages(open_image, labels, _median_size(sizes), _stored_bytes(dataset))


def _opener(dataset: Any) -> Callable[[int], Image.Image]:
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return _OpenItem(dataset)
    # timm's ImageDataset would replace an unreadable image by another one.
    return _OpenFromReader(reader)


@dataclass(frozen=True, eq=False)
class _OpenItem:
    dataset: Any

    def __call__(self, index: int) -> Image.Image:
        return to_rgb(self.dataset[index][0])


@dataclass(frozen=True, eq=False)
class _OpenFromReader:
    reader: Any

    def __call__(self, index: int) -> Image.Image:
        with self.reader[index][0] as file:
            return read_rgb(file)


@dataclass(frozen=True, eq=False)
class _OpenFromList:
    images: list[Image.Image]

    def __call__(self, index: int) -> Image.Image:
        return self.images[index]


def _targets(dataset: Any) -> Iterable[Any]:
    """All labels in order, without decoding images if the set allows it."""
    targets: Iterable[Any] | None = getattr(dataset, "targets", None)
    if targets is not None:
        return targets
    reader = getattr(dataset, "reader", None)
    if hasattr(reader, "iter_targets"):
        return reader.iter_targets()  # type: ignore[union-attr, no-any-return]
    items = reader if reader is not None else dataset
    return (items[index][1] for index in range(len(items)))


def _as_label(target: Any) -> int:
    """The class index, -1 if there is no label."""
    if target is None:
        return -1
    try:
        return int(target)
    except (TypeError, ValueError):
        raise DataError(
            f"reading labels: expected one class index per image, got {target!r}",
            code="label-not-class-index",
            advice="Choose the field of the class with '?target_key=NAME'.",
            got=repr(target),
        ) from None


def _from_stream(source: str, split: str, dataset: Any) -> StoredImages:
    """All images of a stream, in memory and in its order."""
    images: list[Image.Image] = []
    labels: list[int] = []
    num_bytes = 0
    for image, target in dataset:
        images.append(to_rgb(image))
        labels.append(_as_label(target))
        num_bytes += 3 * images[-1].width * images[-1].height
        if num_bytes > _MAX_STREAM_BYTES:
            raise DataError(
                f"reading stream '{source}', split '{split}': expected at most "
                f"{_MAX_STREAM_BYTES / 1e9:.1f} GB of pixels, got more",
                code="stream-too-large",
                advice="Write the images to a folder of class folders, and pass that folder.",
                source=source,
                split=split,
                max_bytes=_MAX_STREAM_BYTES,
            )
    if not images:
        raise _empty(source, split)
    sizes = [image.size for image in images]
    return StoredImages(
        _OpenFromList(images), np.array(labels, dtype=np.int64), _median_size(sizes), num_bytes
    )


def _empty(source: str, split: str) -> DataError:
    return DataError(
        f"reading '{source}', split '{split}': expected images, got none",
        code="dataset-empty",
        advice="Choose another split with '?train_split=NAME' or '?eval_split=NAME'.",
        source=source,
        split=split,
    )


def _median_size(sizes: list[tuple[int, int]]) -> tuple[int, int]:
    """Median height and width of Pillow sizes (width, height)."""
    widths, heights = np.median(np.array(sizes), axis=0)
    return int(heights), int(widths)


def _stored_bytes(dataset: Any) -> int:
    """Size in memory or on disk; 0 if unknown."""
    in_memory = getattr(getattr(dataset, "data", None), "nbytes", None)
    hugging_face = getattr(getattr(dataset, "reader", None), "dataset", None)
    return int(in_memory or getattr(hugging_face, "dataset_size", None) or 0)
