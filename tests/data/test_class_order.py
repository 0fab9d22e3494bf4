"""Labels in the order of a network's outputs."""

from __future__ import annotations

import numpy as np
import pytest

from fitcompress.data.bundle import load_data
from fitcompress.data.class_order import match_classes
from fitcompress.errors import DataError
from fitcompress.events import ignore
from fitcompress.recipe.schema import DataRecipe


@pytest.fixture
def bundle(tmp_path, class_folders):
    class_folders(tmp_path, cat=10, dog=20, fox=30)
    return load_data(DataRecipe(source=str(tmp_path)), seed=0, emit=ignore)


def test_labels_follow_the_networks_order_and_images_stay(bundle):
    matched = match_classes(bundle, ("fox", "yak", "cat", "dog"))

    assert np.bincount(bundle.evaluation.labels).tolist() == [2, 4, 6]
    assert np.bincount(matched.evaluation.labels).tolist() == [6, 0, 2, 4]
    for before, after in ((bundle.train, matched.train), (bundle.held_out, matched.held_out)):
        names = [bundle.class_names[label] for label in before.labels]
        assert [matched.class_names[label] for label in after.labels] == names
        assert after.load(3).tobytes() == before.load(3).tobytes()
        assert (after.num_bytes, after.image_size) == (before.num_bytes, before.image_size)
    assert (matched.num_classes, matched.description) == (4, bundle.description)


@pytest.mark.parametrize("names", [(), ("cat", "dog", "fox")], ids=["unknown", "equal"])
def test_nothing_changes_where_there_is_nothing_to_match(bundle, names):
    assert match_classes(bundle, names) is bundle


def test_unlabeled_images_stay_unlabeled(tmp_path, write_images, class_folders):
    write_images(tmp_path / "train", 10)
    class_folders(tmp_path / "val", a=2, b=2)
    bundle = load_data(DataRecipe(source=str(tmp_path)), seed=0, emit=ignore)

    matched = match_classes(bundle, ("b", "a"))

    assert set(matched.train.labels.tolist()) == {-1}
    assert matched.evaluation.labels.tolist() == [1, 1, 0, 0]


def test_class_unknown_to_the_network_is_named_with_near_misses(bundle):
    with pytest.raises(DataError) as caught:
        match_classes(bundle, ("cat", "dog", "foxy"))

    assert (caught.value.code, caught.value.facts["unknown"]) == ("class-unknown", ["fox"])
    assert "'foxy'" in caught.value.advice


def test_repeated_class_name_is_refused(bundle):
    with pytest.raises(DataError) as caught:
        match_classes(bundle, ("cat", "dog", "dog", "fox"))

    assert caught.value.code == "class-name-repeated"
    assert caught.value.facts["class_name"] == "dog"
