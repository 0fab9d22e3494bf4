"""Image folders: what is in them, which classes, and which files can be read. Layer: images,
events, errors.

A *tree* is a folder of class folders (labelled) or a flat folder of images (unlabelled). A *data
folder* is one tree, or holds one tree for each split (`train/` and `val/`, `validation/`, `test/`).
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
"""Checking a file waits for the disk more than it computes."""


@dataclass(frozen=True)
class Tree:
    """The image files of one folder, not yet opened."""

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    """Empty for a flat folder; its labels are all -1."""
    num_strays: int = 0
    """Images beside the class folders; they are not used."""


def find_splits(root: Path) -> dict[str, Path]:
    """The split folders in a data folder by "train", "val", "test"; empty if it is one tree.

    Raises:
        DataError: there is no such folder, or `val/` or `test/` without `train/`.
    """
    if not root.is_dir():
        got = "a file" if root.exists() else "nothing there"
        raise DataError(
            f"opening data '{root}': expected a folder of images, got {got}",
            advice="pass a folder of class folders, of train/ and val/, or of images",
        )
    folders = {folder.name.lower(): folder for folder in _subfolders(root)}
    found = {
        split: next(folders[name] for name in names if name in folders)
        for split, names in _SPLIT_NAMES.items()
        if not folders.keys().isdisjoint(names)
    }
    if found and "train" not in found:
        raise DataError(
            f"opening data '{root}': expected 'train' beside {_quoted(found)}, got none",
            advice=f"add a 'train' folder, or pass one tree such as '{next(iter(found.values()))}'",
        )
    return found


def list_tree(root: Path) -> Tree:
    """The images below a folder, by class where there are class folders.

    Classes are in the order of torchvision's ImageFolder (sorted names), but numbered folders in
    the order of their numbers.

    Raises:
        DataError: there are no images, a class folder is empty, or there is one class only.
    """
    loose = [path for path in sorted(root.iterdir()) if _is_image(path)]
    images_of = {folder.name: list(_walk(folder)) for folder in _subfolders(root)}
    if not loose and not any(images_of.values()):
        raise DataError(
            f"opening data '{root}': expected images ({_SUFFIX_LIST}), got none",
            advice="pass a folder that holds images or class folders of images",
        )
    if not any(images_of.values()):
        return Tree(root, tuple(loose), (-1,) * len(loose), ())
    _check_classes(root, images_of)
    names = _in_class_order(images_of)
    paths = tuple(path for name in names for path in images_of[name])
    labels = tuple(label for label, name in enumerate(names) for _ in images_of[name])
    return Tree(root, paths, labels, names, num_strays=len(loose))


def open_trees(trees: Sequence[Tree], *, max_unreadable: int, emit: Emit) -> list[FileImages]:
    """The readable images of each tree.

    Each file's header and end are looked at; nothing is decoded without need (see `find_fault`).

    Raises:
        DataError: more than `max_unreadable` files of all trees cannot be read, or a class has none
            left.
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
    """The readable images of a tree and the number of unreadable ones."""
    if tree.num_strays:
        message = f"{tree.num_strays} images beside the class folders of '{tree.root}' are not used"
        emit(Notice(topic="data", message=message))
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
        emit(Notice(topic="data", message=f"unreadable image skipped: '{path}' ({fault})"))
    if len(faults) > num_left:
        first = next(iter(faults))
        raise DataError(
            f"reading images below '{tree.root}': expected at most {max_unreadable} unreadable "
            f"(data.max_unreadable), got {max_unreadable - num_left + len(faults)}, "
            f"among them '{first}': {faults[first]}",
            advice="repair or remove them, or raise the limit with --set data.max_unreadable=N",
        )
    if faults:
        message = f"{len(faults)} of {len(tree.paths)} images below '{tree.root}' are unreadable"
        emit(Notice(topic="data", message=f"{message} and were skipped"))


def _check_all_classes_left(tree: Tree, labels: set[int]) -> None:
    """Refuses a tree of which a class, or everything, was unreadable."""
    lost = [name for label, name in enumerate(tree.class_names) if label not in labels]
    if lost or not labels:
        where = f"class folder '{tree.root / lost[0]}'" if lost else f"'{tree.root}'"
        raise DataError(
            f"reading {where}: expected readable images, got none",
            advice="repair the images or remove the folder",
        )


def _check_classes(root: Path, images_of: dict[str, list[Path]]) -> None:
    empty = [name for name, paths in images_of.items() if not paths]
    if empty:
        raise DataError(
            f"opening data '{root}': expected images in each class folder, "
            f"got none in {_quoted(empty)}",
            advice="fill the folders or remove them",
        )
    if len(images_of) == 1:
        (name,) = images_of
        raise DataError(
            f"opening data '{root}': expected at least two class folders, got one, '{name}'",
            advice=f"for unlabelled images pass the folder that holds them: '{root / name}'",
        )


def _in_class_order(names: dict[str, list[Path]]) -> tuple[str, ...]:
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _subfolders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted; neither hidden ones nor what macOS archives leave."""
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX"
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Images anywhere below a folder, in a fixed order."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            if _is_image(path):
                yield path


def _is_image(path: Path) -> bool:
    """By name alone, but for the `._x.jpg` that macOS leaves beside each `x.jpg`."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("._")


def _quoted(names: Sequence[str] | dict[str, Path]) -> str:
    return ", ".join(f"'{name}'" for name in names)
