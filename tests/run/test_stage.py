"""What a checkpoint depends on."""

from __future__ import annotations

from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.run.stage import _recipe_hash

SETTINGS = {"teacher.source": "resnet18", "data.source": "images", "data.limit": 100}
SUBJECT = "a1b2 ['layer3']"


def hash_of(**more: object) -> str:
    settings = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    return _recipe_hash(resolve_recipe(preset="modern", settings=settings), SUBJECT)


def test_the_hash_of_a_recipe_stays_the_same():
    # as 0.1.0 computed it: runs that it began are resumed
    expected = "e483c2b31ed1a736b78748a9fd5a24b6bd5623cba226873ebe9f7228a213abed"
    assert hash_of(run__seed=3) == expected


def test_only_settings_that_may_change_the_weights_are_hashed():
    assert hash_of() == hash_of(run__threads=1, run__out="elsewhere", run__cache_teacher="off")
    assert hash_of() != hash_of(data__augment="none")
