"""The three splits of a data source, and sources that are refused."""

from __future__ import annotations

import numpy as np
import pytest

from fitcompress.data.bundle import load_data
from fitcompress.data.images import FileImages, Subset
from fitcompress.errors import DataError
from fitcompress.events import ignore
from fitcompress.recipe.schema import DataRecipe


def load(source, *, seed=0, emit=ignore, **settings):
    return load_data(DataRecipe(source=str(source), **settings), seed=seed, emit=emit)


def paths_of(images):
    """The files behind a collection, in its order."""
    if isinstance(images, FileImages):
        return [str(path) for path in images.paths]
    assert isinstance(images, Subset)
    below = paths_of(images.images)
    return [below[i] for i in images.indices]


@pytest.fixture
def split_folders(tmp_path, class_folders):
    """train (20 + 30), val (4 + 4) and test (5 + 5) of two classes."""
    class_folders(tmp_path / "train", cat=20, dog=30)
    class_folders(tmp_path / "val", cat=4, dog=4)
    class_folders(tmp_path / "test", cat=5, dog=5)
    return tmp_path


def test_builtin_set_is_the_default_and_splits_as_described():
    bundle = load_data(DataRecipe(), seed=0, emit=ignore)

    assert (len(bundle.train), len(bundle.held_out), len(bundle.evaluation)) == (9000, 1000, 2000)
    assert np.bincount(bundle.held_out.labels).tolist() == [100] * 10
    assert np.bincount(bundle.train.labels).tolist() == [900] * 10
    assert (bundle.num_classes, bundle.image_size, bundle.is_labeled) == (10, (28, 28), True)
    assert bundle.class_names is not None and bundle.class_names[0] == "T-shirt/top"
    assert (bundle.num_images, bundle.num_bytes) == (12_000, 12_000 * 28 * 28)
    assert bundle.description == (
        "Fashion-MNIST (balanced sample), built in: 9,000 training images, 1,000 more held out for "
        "early stopping, 2,000 evaluation images (test), 10 classes, 28x28 pixels"
    )


def test_test_folder_is_evaluated_on_and_a_tenth_of_train_is_held_out(split_folders):
    bundle = load(split_folders)

    assert bundle.evaluation_split == "test"
    assert all("/test/" in path for path in paths_of(bundle.evaluation))
    assert np.bincount(bundle.held_out.labels).tolist() == [2, 3]
    assert np.bincount(bundle.train.labels).tolist() == [18, 27]
    both = paths_of(bundle.train) + paths_of(bundle.held_out)
    assert len(set(both)) == 50 and all("/train/" in path for path in both)
    assert bundle.class_names == ("cat", "dog")
    assert "45 training images, 5 more held out for early stopping" in bundle.description
    assert "10 evaluation images (test), 2 classes, 8x10 pixels" in bundle.description


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_validation_folder_is_evaluated_on_without_a_test_folder(tmp_path, class_folders, name):
    class_folders(tmp_path / "train", a=5, b=5)
    class_folders(tmp_path / name, a=2, b=2)

    assert load(tmp_path).evaluation_split == name


def test_held_out_images_change_with_the_seed_and_with_nothing_else(split_folders):
    held_out = [paths_of(load(split_folders, seed=seed).held_out) for seed in (0, 0, 1)]

    assert held_out[0] == held_out[1] != held_out[2]


@pytest.mark.parametrize("source", ["classes", "train only"])
def test_without_an_evaluation_split_a_fixed_stratified_fifth_is_set_aside(
    tmp_path, class_folders, source
):
    class_folders(tmp_path / "train" if source == "train only" else tmp_path, a=20, b=40)
    events = []

    first, second = (load(tmp_path, seed=seed, emit=events.append) for seed in (0, 1))

    assert first.evaluation_split == "held out"
    assert np.bincount(first.evaluation.labels).tolist() == [4, 8]
    assert paths_of(first.evaluation) == paths_of(second.evaluation)
    parts = [paths_of(images) for images in (first.train, first.held_out, first.evaluation)]
    assert len(set().union(*parts)) == sum(map(len, parts)) == 60
    assert [event.code for event in events] == ["evaluation-set-aside"] * 2
    assert "12 of its 60 images" in events[0].message


def test_flat_folder_has_no_labels_anywhere(tmp_path, write_images):
    write_images(tmp_path, 20)

    bundle = load(tmp_path)

    for images in (bundle.train, bundle.held_out, bundle.evaluation):
        assert set(images.labels.tolist()) == {-1}
    assert not bundle.is_labeled
    assert (bundle.num_classes, bundle.class_names) == (0, None)
    assert "unlabeled" in bundle.description


def test_unlabeled_training_images_are_evaluated_on_labeled_ones(
    tmp_path, write_images, class_folders
):
    write_images(tmp_path / "train", 20)
    class_folders(tmp_path / "val", a=2, b=3)

    bundle = load(tmp_path)

    assert not bundle.is_labeled
    assert set(bundle.evaluation.labels.tolist()) == {0, 1}
    assert (bundle.num_classes, bundle.class_names) == (2, ("a", "b"))


def test_unlabeled_test_images_are_skipped(tmp_path, write_images, class_folders):
    class_folders(tmp_path / "train", a=5, b=5)
    class_folders(tmp_path / "val", a=2, b=2)
    write_images(tmp_path / "test", 9)
    events = []

    bundle = load(tmp_path, emit=events.append)

    assert bundle.evaluation_split == "val"
    assert events[0].code == "evaluation-unlabeled"


def test_different_classes_are_refused_by_name(tmp_path, class_folders):
    class_folders(tmp_path / "train", a=5, b=5)
    class_folders(tmp_path / "val", a=2, c=2)

    with pytest.raises(DataError) as caught:
        load(tmp_path)

    assert caught.value.code == "class-folders-differ"
    assert (caught.value.facts["missing"], caught.value.facts["unknown"]) == (["b"], ["c"])


def test_path_that_is_neither_folder_nor_data_set_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        load(tmp_path / "nowhere")

    assert caught.value.code == "data-folder-missing"


@pytest.mark.parametrize("num", [1, 2], ids=["one image", "two images"])
def test_too_few_images_to_split_are_refused(tmp_path, write_images, num):
    write_images(tmp_path, num)

    with pytest.raises(DataError) as caught:
        load(tmp_path)

    assert caught.value.code == "too-few-images"


def test_three_images_are_enough(tmp_path, write_images):
    write_images(tmp_path, 3)

    bundle = load(tmp_path)

    assert [len(bundle.train), len(bundle.held_out), len(bundle.evaluation)] == [1, 1, 1]


def test_limit_keeps_a_stratified_sample_of_the_training_images_alone(split_folders):
    bundle = load(split_folders, limit=20)

    labels = np.concatenate([bundle.train.labels, bundle.held_out.labels])
    assert np.bincount(labels).tolist() == [8, 12]
    assert (len(bundle.train), len(bundle.held_out), len(bundle.evaluation)) == (18, 2, 10)
    assert paths_of(bundle.train) == paths_of(load(split_folders, limit=20).train)
    assert paths_of(bundle.train) != paths_of(load(split_folders, limit=20, seed=1).train)


def test_limit_above_the_number_of_images_changes_nothing(split_folders):
    assert paths_of(load(split_folders, limit=999).train) == paths_of(load(split_folders).train)


def test_unreadable_images_in_any_split_are_counted(split_folders):
    for name in ("train/cat/003.png", "test/dog/001.png"):
        (split_folders / name).write_bytes(b"broken")
    events = []

    bundle = load(split_folders, emit=events.append)

    assert (len(bundle.train) + len(bundle.held_out), len(bundle.evaluation)) == (49, 9)
    assert sum(event.code == "image-unreadable" for event in events) == 2
    with pytest.raises(DataError) as caught:
        load(split_folders, max_unreadable=1)
    assert caught.value.code == "too-many-unreadable"


def test_number_of_bytes_is_that_of_the_files(split_folders):
    files = [p for s in ("train", "test") for p in (split_folders / s).rglob("*.png")]

    num_bytes = load(split_folders).num_bytes

    # Subsets know their share only: up to half a byte each is lost in rounding.
    assert num_bytes == pytest.approx(sum(p.stat().st_size for p in files), abs=2)
