"""From a recipe to the images of a run: what is trained on, chosen on and judged on. Layer: recipe,
events, all sources.

Evaluation images never influence training. What training chooses by (the best epoch) is a tenth
held out of the *training* images. Where a source has no evaluation split, a fifth is set aside for
it once and for all, by a fixed seed: a teacher trained on the same source before, or a run with
another seed, is then judged on the same images, and no teacher has seen them.
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
"""Not the run's: see the top of this file."""


@dataclass(frozen=True, kw_only=True)
class DataBundle:
    """The images of a run."""

    train: Images
    held_out: Images
    """A seeded stratified tenth of the training images, not trained on: training chooses by it."""
    evaluation: Images
    """What is reported; nothing is chosen by it."""
    class_names: tuple[str, ...] | None
    num_classes: int
    """0 where nothing is labelled."""
    evaluation_split: str
    """Where `evaluation` comes from: "test", "val", ... or "held out"."""
    description: str
    """One line for the report."""

    @property
    def labelled(self) -> bool:
        """Whether the training images have labels."""
        return bool(self.train.labels.max(initial=-1) >= 0)

    @property
    def evaluation_labelled(self) -> bool:
        """Whether accuracy can be measured."""
        return bool(self.evaluation.labels.max(initial=-1) >= 0)

    @property
    def image_size(self) -> tuple[int, int]:
        """Median native height and width of the training images, in pixels."""
        return self.train.image_size

    @property
    def num_images(self) -> int:
        """All images of the run."""
        return len(self.train) + len(self.held_out) + len(self.evaluation)

    @property
    def num_bytes(self) -> int:
        """What they take where they are kept, as far as the source tells."""
        return self.train.num_bytes + self.held_out.num_bytes + self.evaluation.num_bytes


@dataclass(frozen=True)
class _Splits:
    """What a source gives before anything is held out."""

    name: str
    train: Images
    evaluation: Images | None
    evaluation_split: str
    class_names: tuple[str, ...]


def load_data(recipe: DataRecipe, *, seed: int, emit: Emit) -> DataBundle:
    """The images that a recipe names. Nothing is decoded yet, but for streams.

    Args:
        recipe: `source` is "builtin", a folder or a timm data set string; `limit` and
            `max_unreadable` are applied.
        seed: decides what `limit` keeps and what is held out.
        emit: receives notices: skipped images, unused folders, splits that were made.

    Raises:
        DataError: see `folders`, `timm_sets`; or too few images for three splits.
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
    """The split to evaluate on: "test", else "val", else "". Unlabelled images cannot judge a
    labelled set: such a split is passed over."""
    for split in ("test", "val"):
        if split not in trees:
            continue
        if trees["train"].class_names and not trees[split].class_names:
            message = f"'{trees[split].root}' has no class folders and is not used for evaluation"
            emit(Notice(topic="data", message=message))
            continue
        return split
    return ""


def _check_same_classes(train: Tree, evaluation: Tree) -> None:
    """Unlabelled training images go with any evaluation."""
    if not train.class_names or train.class_names == evaluation.class_names:
        return
    missing = sorted(set(train.class_names) - set(evaluation.class_names))
    extra = sorted(set(evaluation.class_names) - set(train.class_names))
    parts = [
        f"{what} {', '.join(repr(name) for name in names[:5])}{' ...' if len(names) > 5 else ''}"
        for what, names in (("without", missing), ("with the unknown", extra))
        if names
    ]
    raise DataError(
        f"comparing '{train.root}' and '{evaluation.root}': expected the same class folders, "
        f"got the latter {' and '.join(parts)}",
        advice="give both the same class folders",
    )


def _set_evaluation_aside(splits: _Splits, emit: Emit) -> _Splits:
    """The same splits with an evaluation split in any case."""
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
    emit(Notice(topic="data", message=message))
    return _Splits(
        name=splits.name,
        train=Subset(splits.train, kept),
        evaluation=Subset(splits.train, aside),
        evaluation_split="held out",
        class_names=splits.class_names,
    )


def _hold_out_tenth(splits: _Splits, limit: int | None, seed: int) -> tuple[Images, Images]:
    """(training images, those held out of them), after the limit."""
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
        f"splitting {name}: expected a class with at least two images to hold some out, "
        f"got {num} images",
        advice="add images, or raise the limit (data.limit)",
    )


def _describe(splits: _Splits, train: Images, held_out: Images, num_classes: int) -> str:
    assert splits.evaluation is not None
    height, width = train.image_size
    classes = f"{num_classes} classes" if train.labels.max() >= 0 else "unlabelled"
    return (
        f"{splits.name}: {len(train):,} training images, {len(held_out):,} more held out of "
        "training (what training chooses is chosen on these), "
        f"{len(splits.evaluation):,} evaluation images ({splits.evaluation_split}), {classes}, "
        f"{width}x{height} pixels"
    )
