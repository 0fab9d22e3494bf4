"""Image folders: their splits, classes and readable files.

A *tree* is a folder of class folders (labeled) or a flat folder of images (unlabeled). A *data
folder* is one tree, or holds one tree per split (`train/` and `val/`, `validation/`, `test/`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fitcompress.data.images import FileImages, find_fault
from fitcompress.errors import DataError
from fitcompress.events import Emit, Notice

__all__ = ["IMAGE_SUFFIXES", "Tree", "find_splits", "list_tree", "open_trees"]

# fmt: off
IMAGE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
     ".tif", ".tiff", ".webp"]
)
# fmt: on
_SUFFIX_LIST = " ".join(sorted(IMAGE_SUFFIXES))
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
_NUM_CHECKING_THREADS = 8
"""More than the cores, because checking a file mostly waits for the disk."""


@dataclass(frozen=True)
class Tree:
    """The image files of one folder, not yet opened."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    """Empty for a flat folder; its labels are all -1."""
    num_unused: int = 0
    """Images next to the class folders, which are not used."""


def find_splits(root: Path) -> dict[str, Path]:
    """The split folders in a data folder by "train", "val", "test"; empty if it is one tree.

    Raises:
        DataError: the folder does not exist, or has `val/` or `test/` without `train/`.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "no such folder"
        raise DataError(
            f"opening data '{root}': expected a folder of images, got {got}",
            code="data-folder-missing",
            advice="Pass a folder with class folders, with train/ and val/, or with images.",
            path=str(root),
        )
    folders = {folder.name.lower(): folder for folder in _subfolders(root)}
    found = {
        split: next(folders[name] for name in names if name in folders)
        for split, names in _SPLIT_NAMES.items()
        if not folders.keys().isdisjoint(names)
    }
    if found and "train" not in found:
        raise DataError(
            f"opening data '{root}': expected 'train' next to {_quoted(found)}, got none",
            code="train-folder-missing",
            advice=f"Add a 'train' folder, or pass '{next(iter(found.values()))}' alone.",
            path=str(root),
            splits=list(found),
        )
    return found


def list_tree(root: Path) -> Tree:
    """The images in a folder and its subfolders, labeled by its class folders, if any.

    Classes are sorted by name, as in torchvision's ImageFolder; if all names are numbers, by
    number.

    Raises:
        DataError: there are no images, a class folder is empty, or there is only one class.
    """
    loose = [path for path in sorted(root.iterdir()) if _is_image(path)]
    images_of = {folder.name: list(_walk(folder)) for folder in _subfolders(root)}
    if not loose and not any(images_of.values()):
        raise DataError(
            f"opening data '{root}': expected images ({_SUFFIX_LIST}), got none",
            code="images-missing",
            advice="Pass a folder of images, or of class folders of images.",
            path=str(root),
        )
    if not any(images_of.values()):
        return Tree(root, tuple(loose), (-1,) * len(loose), ())
    _check_classes(root, images_of)
    names = _in_class_order(images_of)
    paths = tuple(path for name in names for path in images_of[name])
    labels = tuple(label for label, name in enumerate(names) for _ in images_of[name])
    return Tree(root, paths, labels, names, num_unused=len(loose))


def open_trees(trees: Sequence[Tree], *, max_unreadable: int, emit: Emit) -> list[FileImages]:
    """The readable images of each tree.

    Files are checked by their header and end, mostly without decoding them (see `find_fault`).

    Raises:
        DataError: more than `max_unreadable` files of all trees are unreadable, or all files of a
            class are.
    """
    opened = []
    num_left = max_unreadable
    for tree in trees:
        images, num_unreadable = _open_tree(tree, num_left, max_unreadable, emit)
        num_left -= num_unreadable
        opened.append(images)
    return opened


def _open_tree(
    tree: Tree, num_left: int, max_unreadable: int, emit: Emit
) -> tuple[FileImages, int]:
    """(readable images of a tree, number of unreadable ones)."""
    if tree.num_unused:
        message = (
            f"{tree.num_unused} images outside the class folders of '{tree.root}' are not used"
        )
        emit(Notice(topic="data", code="images-outside-classes", message=message))
    with ThreadPoolExecutor(_NUM_CHECKING_THREADS) as pool:
        checked = list(pool.map(find_fault, tree.paths))
    faults = {path: fault for path, (fault, _) in zip(tree.paths, checked, strict=True) if fault}
    _report_unreadable(tree, faults, num_left, max_unreadable, emit)
    readable = [i for i, path in enumerate(tree.paths) if path not in faults]
    labels = np.array([tree.labels[i] for i in readable], dtype=np.int64)
    _check_all_classes_left(tree, set(labels.tolist()))
    heights, widths = zip(*(checked[i][1] for i in readable), strict=True)
    images = FileImages(
        paths=tuple(tree.paths[i] for i in readable),
        labels=labels,
        image_size=(int(np.median(heights)), int(np.median(widths))),
        num_bytes=sum(tree.paths[i].stat().st_size for i in readable),
    )
    return images, len(faults)


def _report_unreadable(
    tree: Tree, faults: dict[Path, str], num_left: int, max_unreadable: int, emit: Emit
) -> None:
    for path, fault in list(faults.items())[: max(num_left, 0)]:
        message = f"unreadable image skipped: '{path}' ({fault})"
        emit(Notice(topic="data", code="image-unreadable", message=message))
    if len(faults) > num_left:
        first = next(iter(faults))
        num_unreadable = max_unreadable - num_left + len(faults)
        raise DataError(
            f"reading images in '{tree.root}': expected at most {max_unreadable} unreadable files, "
            f"got {num_unreadable}, such as '{first}' ({faults[first]})",
            code="too-many-unreadable",
            advice="Repair or remove them, or raise the limit with --set data.max_unreadable=N.",
            path=str(first),
            expected=max_unreadable,
            got=num_unreadable,
        )
    if faults:
        message = f"{len(faults)} of {len(tree.paths)} images in '{tree.root}' are unreadable"
        emit(Notice(topic="data", code="images-unreadable", message=f"{message} and were skipped"))


def _check_all_classes_left(tree: Tree, labels: set[int]) -> None:
    """Raises a DataError if all images of a class, or of the tree, are unreadable."""
    lost = [name for label, name in enumerate(tree.class_names) if label not in labels]
    if lost or not labels:
        folder = tree.root / lost[0] if lost else tree.root
        raise DataError(
            f"reading '{folder}': expected readable images, got none",
            code="folder-unreadable",
            advice="Repair the images, or remove the folder.",
            path=str(folder),
        )


def _check_classes(root: Path, images_of: dict[str, list[Path]]) -> None:
    empty = [name for name, paths in images_of.items() if not paths]
    if empty:
        raise DataError(
            f"opening data '{root}': expected images in each class folder, "
            f"got none in {_quoted(empty)}",
            code="class-folder-empty",
            advice="Fill the folders, or remove them.",
            path=str(root),
            folders=empty,
        )
    if len(images_of) == 1:
        (name,) = images_of
        raise DataError(
            f"opening data '{root}': expected at least two class folders, got one, '{name}'",
            code="single-class",
            advice=f"For unlabeled images, pass their folder: '{root / name}'.",
            path=str(root),
            folder=name,
        )


def _in_class_order(names: dict[str, list[Path]]) -> tuple[str, ...]:
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _subfolders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted, without hidden ones and `__MACOSX` of macOS archives."""
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Images in a folder and its subfolders, in a fixed order."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if _is_image(path):
                yield path


def _is_image(path: Path) -> bool:
    """Whether the name is an image's; macOS leaves a `._x.jpg` next to each `x.jpg`."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def _quoted(names: Sequence[str] | dict[str, Path]) -> str:
    return ", ".join(f"'{name}'" for name in names)
