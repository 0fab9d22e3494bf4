"""The images of a run: training, held-out and evaluation images from the recipe's data source.

Evaluation images never influence training. Early stopping uses a tenth held out of the *training*
images. If a source has no evaluation split, a fifth of it is set aside by a fixed seed, so that a
teacher trained on the same source, or a run with another seed, is evaluated on the same images, and
no teacher has seen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitcompress.data.builtin import BUILTIN, builtin_class_names, builtin_name, load_builtin
from fitcompress.data.folders import Tree, find_splits, list_tree, open_trees
from fitcompress.data.images import Images, Subset
from fitcompress.data.rng import Stream
from fitcompress.data.sampling import hold_out, stratified_sample
from fitcompress.data.timm_sets import is_timm_source, load_timm_splits
from fitcompress.errors import DataError
from fitcompress.events import Emit, Notice
from fitcompress.recipe.schema import DataRecipe

__all__ = ["DataBundle", "load_data"]

_HELD_OUT = 0.1
_EVALUATION = 0.2
_EVALUATION_SEED = 0
"""Independent of the run's seed: see the top of this file."""


@dataclass(frozen=True, kw_only=True)
class DataBundle:
    """The images of a run."""

    train: Images
    held_out: Images
    """A seeded, stratified tenth of the training images, used for early stopping only."""
    evaluation: Images
    """The images that results are reported on; nothing is chosen by them."""
    class_names: tuple[str, ...] | None
    num_classes: int
    """0 for unlabeled images."""
    evaluation_split: str
    """Name of the evaluation split: "test", "val", ... or "held out"."""
    description: str
    """One line for the report."""

    @property
    def is_labeled(self) -> bool:
        """Whether the training images have labels."""
        return bool(self.train.labels.max(initial=-1) >= 0)

    @property
    def image_size(self) -> tuple[int, int]:
        """Median native height and width of the training images, in pixels."""
        return self.train.image_size

    @property
    def num_images(self) -> int:
        """Number of images in all three splits."""
        return len(self.train) + len(self.held_out) + len(self.evaluation)

    @property
    def num_bytes(self) -> int:
        """Size of all images on disk or in memory, as far as the source knows it."""
        return self.train.num_bytes + self.held_out.num_bytes + self.evaluation.num_bytes


@dataclass(frozen=True)
class _Splits:
    """The splits of a source, before any images are held out."""

    name: str
    train: Images
    evaluation: Images | None
    evaluation_split: str
    class_names: tuple[str, ...]


def load_data(recipe: DataRecipe, *, seed: int, emit: Emit) -> DataBundle:
    """Opens the data source of a recipe. Images are decoded later, except those of streams.

    Args:
        recipe: `source` is "builtin", a folder or a timm data set string; `limit` and
            `max_unreadable` apply.
        seed: decides which images `limit` keeps and which are held out.
        emit: receives notices on skipped images, unused folders and images set aside.

    Raises:
        DataError: see `folders` and `timm_sets`; or there are too few images for three splits.
    """
    splits = _set_evaluation_aside(_open_source(recipe, emit), emit)
    assert splits.evaluation is not None
    train, held_out = _hold_out_tenth(splits, recipe.limit, seed)
    labels = np.concatenate([train.labels, held_out.labels, splits.evaluation.labels])
    num_classes = len(splits.class_names) or int(labels.max(initial=-1)) + 1
    return DataBundle(
        train=train,
        held_out=held_out,
        evaluation=splits.evaluation,
        class_names=splits.class_names or None,
        num_classes=num_classes,
        evaluation_split=splits.evaluation_split,
        description=_describe(splits, train, held_out, num_classes),
    )


def _open_source(recipe: DataRecipe, emit: Emit) -> _Splits:
    if recipe.source == BUILTIN:
        return _open_builtin()
    root = Path(recipe.source).expanduser()
    if root.exists() or not is_timm_source(recipe.source):
        return _open_folder(root, recipe.max_unreadable, emit)
    train, evaluation, split, class_names = load_timm_splits(recipe.source)
    return _Splits(recipe.source, train, evaluation, split, class_names)


def _open_builtin() -> _Splits:
    return _Splits(
        name=f"{builtin_name()}, built in",
        train=load_builtin("train"),
        evaluation=load_builtin("test"),
        evaluation_split="test",
        class_names=builtin_class_names(),
    )


def _open_folder(root: Path, max_unreadable: int, emit: Emit) -> _Splits:
    folders = find_splits(root) or {"train": root}
    trees = {split: list_tree(folder) for split, folder in folders.items()}
    split = _choose_evaluation(trees, emit)
    chosen = [trees["train"]] + ([trees[split]] if split else [])
    if split:
        _check_same_classes(trees["train"], trees[split])
    images = open_trees(chosen, max_unreadable=max_unreadable, emit=emit)
    return _Splits(
        name=f"'{root}'",
        train=images[0],
        evaluation=images[1] if split else None,
        evaluation_split=folders[split].name if split else "",
        class_names=max((tree.class_names for tree in chosen), key=len),
    )


def _choose_evaluation(trees: dict[str, Tree], emit: Emit) -> str:
    """The evaluation split: "test", otherwise "val", otherwise "". Unlabeled splits are skipped if
    the training images have labels."""
    for split in ("test", "val"):
        if split not in trees:
            continue
        if trees["train"].class_names and not trees[split].class_names:
            message = f"'{trees[split].root}' has no class folders and is not used for evaluation"
            emit(Notice(topic="data", code="evaluation-unlabeled", message=message))
            continue
        return split
    return ""


def _check_same_classes(train: Tree, evaluation: Tree) -> None:
    """Checks that both splits have the same class folders, if the training images have any."""
    if not train.class_names or train.class_names == evaluation.class_names:
        return
    missing = sorted(set(train.class_names) - set(evaluation.class_names))
    extra = sorted(set(evaluation.class_names) - set(train.class_names))
    parts = [
        f"{what} {', '.join(repr(name) for name in names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("no", missing), ("also", extra))
        if names
    ]
    raise DataError(
        f"comparing '{train.root}' and '{evaluation.root}': expected the same class folders, "
        f"got {' and '.join(parts)} in the second",
        code="class-folders-differ",
        advice="Give both the same class folders.",
        paths=[str(train.root), str(evaluation.root)],
        missing=missing,
        unknown=extra,
    )


def _set_evaluation_aside(splits: _Splits, emit: Emit) -> _Splits:
    """The splits with an evaluation split, set aside if the source has none."""
    if splits.evaluation is not None:
        return splits
    kept, aside = hold_out(
        splits.train.labels, _EVALUATION, seed=_EVALUATION_SEED, stream=Stream.EVALUATION_SPLIT
    )
    if not len(aside):
        raise _too_few(splits.name, len(splits.train))
    message = (
        f"{splits.name} has no evaluation split: {len(aside):,} of its {len(splits.train):,} "
        "images are set aside for evaluation (stratified, the same for every seed)"
    )
    emit(Notice(topic="data", code="evaluation-set-aside", message=message))
    return _Splits(
        name=splits.name,
        train=Subset(splits.train, kept),
        evaluation=Subset(splits.train, aside),
        evaluation_split="held out",
        class_names=splits.class_names,
    )


def _hold_out_tenth(splits: _Splits, limit: int | None, seed: int) -> tuple[Images, Images]:
    """(training images, held-out images), after applying the limit."""
    images = splits.train
    if limit is not None and limit < len(images):
        chosen = stratified_sample(images.labels, limit, seed=seed, stream=Stream.LIMIT)
        images = Subset(images, chosen)
    kept, held = hold_out(images.labels, _HELD_OUT, seed=seed, stream=Stream.HELD_OUT_SPLIT)
    if not len(held):
        raise _too_few(splits.name, len(images))
    return Subset(images, kept), Subset(images, held)


def _too_few(name: str, num: int) -> DataError:
    return DataError(
        f"splitting {name}: expected at least two images of some class, to hold one out; "
        f"got {num} images",
        code="too-few-images",
        advice="Add images, or raise the limit (--limit).",
        num_images=num,
    )


def _describe(splits: _Splits, train: Images, held_out: Images, num_classes: int) -> str:
    assert splits.evaluation is not None
    height, width = train.image_size
    classes = f"{num_classes} classes" if train.labels.max() >= 0 else "unlabeled"
    return (
        f"{splits.name}: {len(train):,} training images, {len(held_out):,} more held out for "
        "early stopping, "
        f"{len(splits.evaluation):,} evaluation images ({splits.evaluation_split}), {classes}, "
        f"{width}x{height} pixels"
    )
