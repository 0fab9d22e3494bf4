"""Splits, classes and images of folders, and folders that are refused."""

from __future__ import annotations

import pytest

from fitcompress.data.folders import find_splits, list_tree, open_trees
from fitcompress.errors import DataError
from fitcompress.events import Notice, ignore


def open_tree(root, max_unreadable=10, emit=ignore):
    return open_trees([list_tree(root)], max_unreadable=max_unreadable, emit=emit)[0]


def test_class_folders_are_sorted_and_label_their_images(tmp_path, class_folders):
    tree = list_tree(class_folders(tmp_path, dog=2, Ant=1, cat=3))

    assert tree.class_names == ("Ant", "cat", "dog")
    assert tree.labels == (0, 1, 1, 1, 2, 2)
    assert [path.parent.name for path in tree.paths] == ["Ant", "cat", "cat", "cat", "dog", "dog"]


def test_numbered_folders_are_in_the_order_of_their_numbers(tmp_path, class_folders):
    tree = list_tree(class_folders(tmp_path, **{"10": 1, "9": 1, "0": 1}))

    assert tree.class_names == ("0", "9", "10")


def test_flat_folder_is_unlabeled(tmp_path, write_images):
    write_images(tmp_path, 3)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()

    tree = list_tree(tmp_path)

    assert (tree.class_names, tree.labels) == ((), (-1, -1, -1))


def test_images_in_subfolders_of_a_class_count_and_other_files_do_not(tmp_path, class_folders):
    root = class_folders(tmp_path, a=1, b=1)
    class_folders(root / "a" / "deeper", x=2)
    class_folders(root, **{".hidden": 1, "__MACOSX": 1})
    (root / "b" / "._000.png").write_bytes(b"\0")
    (root / "b" / "Thumbs.db").write_bytes(b"\0")

    assert list_tree(root).labels == (0, 0, 0, 1)


def test_suffixes_are_read_in_any_case(tmp_path, write_images):
    write_images(tmp_path, 2, suffix=".JPG")

    assert len(list_tree(tmp_path).paths) == 2


def test_empty_class_folder_is_named(tmp_path, class_folders):
    class_folders(tmp_path, a=1, b=1)
    (tmp_path / "lonely").mkdir()

    with pytest.raises(DataError) as caught:
        list_tree(tmp_path)

    assert (caught.value.code, caught.value.facts["folders"]) == ("class-folder-empty", ["lonely"])


def test_single_class_folder_is_refused_with_the_way_out(tmp_path, class_folders):
    with pytest.raises(DataError) as caught:
        list_tree(class_folders(tmp_path, a=3))

    assert (caught.value.code, caught.value.facts["folder"]) == ("single-class", "a")
    assert str(tmp_path / "a") in caught.value.advice


def test_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")

    with pytest.raises(DataError) as caught:
        list_tree(tmp_path)

    assert caught.value.code == "images-missing"
    assert ".jpg" in caught.value.message


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "val"], {"train": "train", "val": "val"}),
        (["Train", "Validation"], {"train": "Train", "val": "Validation"}),
        (["train", "valid", "test"], {"train": "train", "val": "valid", "test": "test"}),
        (["cat", "dog"], {}),
    ],
    ids=lambda value: "+".join(value),
)
def test_splits_are_found_by_their_usual_names(tmp_path, names, splits):
    for name in names:
        (tmp_path / name).mkdir()

    assert find_splits(tmp_path) == {key: tmp_path / name for key, name in splits.items()}


def test_evaluation_without_training_is_refused(tmp_path):
    (tmp_path / "val").mkdir()

    with pytest.raises(DataError) as caught:
        find_splits(tmp_path)

    assert (caught.value.code, caught.value.facts["splits"]) == ("train-folder-missing", ["val"])


def test_path_that_does_not_exist_and_file_are_refused(tmp_path):
    (tmp_path / "file").write_text("")

    for name, got in (("nowhere", "no such folder"), ("file", "a file")):
        with pytest.raises(DataError) as caught:
            find_splits(tmp_path / name)
        assert caught.value.code == "data-folder-missing"
        assert caught.value.message.endswith(f"got {got}")


def test_images_know_their_size_and_bytes(tmp_path, write_images):
    paths = write_images(tmp_path, 3, size=(10, 8)) + write_images(
        tmp_path, 2, size=(40, 30), suffix=".jpg"
    )

    images = open_tree(tmp_path)

    assert images.image_size == (10, 8)
    assert images.num_bytes == sum(path.stat().st_size for path in paths)


def test_unreadable_images_are_named_counted_and_skipped(tmp_path, class_folders):
    root = class_folders(tmp_path, a=4, b=4)
    for name in ("a/001.png", "b/003.png"):
        (root / name).write_bytes(b"broken")
    events = []

    images = open_tree(root, emit=events.append)

    assert [path.name for path in images.paths] == [
        "000.png", "002.png", "003.png", "000.png", "001.png", "002.png",
    ]  # fmt: skip
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(isinstance(event, Notice) and event.topic == "data" for event in events)
    assert [event.code for event in events] == ["image-unreadable"] * 2 + ["images-unreadable"]
    for event, part in zip(events, ("a/001.png", "b/003.png", "2 of 8 images"), strict=True):
        assert part in event.message


def test_more_unreadable_images_than_allowed_are_an_error(tmp_path, class_folders):
    root = class_folders(tmp_path, a=4, b=4)
    for name in ("a/001.png", "b/003.png"):
        (root / name).write_bytes(b"broken")

    with pytest.raises(DataError) as caught:
        open_tree(root, max_unreadable=1)

    assert caught.value.code == "too-many-unreadable"
    assert caught.value.facts == {"path": str(root / "a/001.png"), "expected": 1, "got": 2}


def test_limit_of_unreadable_images_is_for_all_trees_together(tmp_path, class_folders):
    roots = [class_folders(tmp_path / split, a=3, b=3) for split in ("train", "val")]
    for root in roots:
        (root / "a" / "000.png").write_bytes(b"broken")
    trees = [list_tree(root) for root in roots]

    assert len(open_trees(trees, max_unreadable=2, emit=ignore)) == 2
    with pytest.raises(DataError) as caught:
        open_trees(trees, max_unreadable=1, emit=ignore)
    assert (caught.value.facts["expected"], caught.value.facts["got"]) == (1, 2)


def test_class_of_unreadable_images_alone_is_named(tmp_path, class_folders):
    root = class_folders(tmp_path, a=1, b=4)
    (root / "a" / "000.png").write_bytes(b"broken")

    with pytest.raises(DataError) as caught:
        open_tree(root)

    assert (caught.value.code, caught.value.facts["path"]) == ("folder-unreadable", str(root / "a"))


def test_images_outside_class_folders_are_noticed(tmp_path, class_folders, write_images):
    root = class_folders(tmp_path, a=1, b=1)
    write_images(root, 3)
    events = []

    images = open_tree(root, emit=events.append)

    assert len(images) == 2
    assert events[0].code == "images-outside-classes"
    assert events[0].message.startswith("3 images")
