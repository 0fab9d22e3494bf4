"""Batches: their order, exact resume, and that workers change nothing."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from fitcompress.data.bundle import load_data
from fitcompress.data.loader import make_loader
from fitcompress.data.views import make_dataset
from fitcompress.errors import DataError
from fitcompress.events import ignore
from fitcompress.recipe.schema import DataRecipe


@pytest.fixture(params=["crop", "strong"])
def views(request, array_images, spec_of):
    images = array_images(num=23, size=(20, 18))
    return make_dataset(images, spec_of(3, 16, 16), augment=request.param, seed=4, mixup=0.3)


@pytest.fixture
def plain(array_images, spec_of):
    return make_dataset(array_images(num=23), spec_of(3, 16, 16), augment="none", seed=0)


def view_of_id(batches):
    """Every field of every sample, by its id."""
    return {
        int(batch.ids[i]): (
            batch.images[i].numpy().tobytes(),
            int(batch.labels[i]),
            int(batch.mix_labels[i]),
            float(batch.mix_lam[i]),
        )
        for batch in batches
        for i in range(len(batch))
    }


def ids_of(batches):
    return [batch.ids.tolist() for batch in batches]


def flat_ids_of(batches):
    return [sample_id for batch in batches for sample_id in batch.ids.tolist()]


@pytest.mark.parametrize(("batch_size", "num_workers"), [(4, 0), (23, 0), (5, 2)])
def test_same_seed_id_and_epoch_give_the_same_bytes(views, batch_size, num_workers):
    views.set_epoch(2)
    expected = view_of_id([views.batch([i]) for i in range(23)])

    loader = make_loader(views, batch_size, shuffle_seed=1, epoch=2, num_workers=num_workers)

    assert view_of_id(loader) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("start_batch", [0, 2, 5, 6, 9])
def test_resumed_epoch_is_the_rest_of_the_unbroken_one(views, start_batch, num_workers):
    settings = {"shuffle_seed": 7, "epoch": 3}
    views.set_epoch(3)
    unbroken = list(make_loader(views, 4, **settings))

    resumed = list(
        make_loader(views, 4, start_batch=start_batch, num_workers=num_workers, **settings)
    )

    assert ids_of(resumed) == ids_of(unbroken[start_batch:])
    assert view_of_id(resumed) == view_of_id(unbroken[start_batch:])


def test_skipped_batches_are_not_decoded(plain, monkeypatch):
    loaded = []
    load = type(plain.images).load
    monkeypatch.setattr(
        type(plain.images), "load", lambda self, i: loaded.append(i) or load(self, i)
    )

    list(make_loader(plain, 5, start_batch=3))

    assert loaded == list(range(15, 23))


def test_order_is_a_function_of_seed_and_epoch(plain):
    def order(seed, epoch, batch_size=23):
        (batch,) = make_loader(plain, batch_size, shuffle_seed=seed, epoch=epoch)
        return batch.ids.tolist()

    assert sorted(order(0, 0)) == list(range(23))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_order_does_not_depend_on_the_batch_size(plain):
    flat = [
        flat_ids_of(make_loader(plain, batch_size, shuffle_seed=0, epoch=1))
        for batch_size in (1, 4, 23)
    ]

    assert flat[0] == flat[1] == flat[2]


def test_without_a_seed_the_order_is_that_of_the_data_set(plain):
    assert flat_ids_of(make_loader(plain, 6)) == list(range(23))


@pytest.mark.parametrize(("drop_last", "sizes"), [(0, [6, 6, 6, 5]), (1, [6, 6, 6]), (2, [6, 6])])
def test_last_batch_may_be_dropped(plain, drop_last, sizes):
    loader = make_loader(plain, 6, drop_last=drop_last)

    assert [len(batch) for batch in loader] == sizes
    assert len(loader) == len(sizes)


def test_global_random_state_is_left_alone(views):
    state = torch.get_rng_state()

    list(make_loader(views, 8, shuffle_seed=0, num_workers=2))
    list(make_loader(views, 8, shuffle_seed=0))

    assert torch.equal(torch.get_rng_state(), state)


def test_views_work_in_a_plain_torch_loader_too(plain):
    images, labels, ids = next(iter(DataLoader(plain, batch_size=4)))

    assert (images.shape, images.dtype) == ((4, 3, 16, 16), torch.uint8)
    assert (labels.tolist(), ids.tolist()) == ([0, 1, 2, 0], [0, 1, 2, 3])


def test_accelerate_takes_the_loader(plain):
    from accelerate import Accelerator

    loader = Accelerator(cpu=True).prepare(make_loader(plain, 6, shuffle_seed=0, epoch=1))

    assert ids_of(loader) == ids_of(make_loader(plain, 6, shuffle_seed=0, epoch=1))


def test_workers_fill_the_cache_for_the_next_epoch(plain, monkeypatch):
    list(make_loader(plain, 4, num_workers=2))

    def fail(self, index):
        raise AssertionError("decoded again")

    monkeypatch.setattr(type(plain.images), "load", fail)
    assert len(list(make_loader(plain, 4))) == 6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_file_that_breaks_during_training_is_named(tmp_path, write_images, spec_of, num_workers):
    write_images(tmp_path, 6)
    bundle = load_data(DataRecipe(source=str(tmp_path)), seed=0, emit=ignore)
    views = make_dataset(bundle.train, spec_of(3, 8, 8), augment="none", seed=0)
    for path in tmp_path.iterdir():
        path.write_bytes(b"broken")

    with pytest.raises(DataError) as caught:
        list(make_loader(views, 2, num_workers=num_workers))

    message = caught.value.message
    assert message.startswith(f"decoding image '{tmp_path}") and "\n" not in message
    assert "resume" in caught.value.advice


def test_built_in_set_goes_all_the_way(spec_of):
    bundle = load_data(DataRecipe(), seed=0, emit=ignore)
    views = make_dataset(bundle.held_out, spec_of(1, 28, 28), augment="auto", seed=0)

    batches = list(make_loader(views, 256, shuffle_seed=0))

    assert sum(map(len, batches)) == 1000
    assert batches[0].images.shape == (256, 1, 28, 28)
    counts = torch.bincount(torch.cat([batch.labels for batch in batches]))
    assert counts.tolist() == [100] * 10


@pytest.mark.parametrize("start_batch", [0, 2])
def test_processes_share_the_batches_that_one_would_take(plain, start_batch):
    settings = {"shuffle_seed": 1, "drop_last": 2}
    alone = ids_of(list(make_loader(plain, 4, start_batch=start_batch, **settings)))
    first, second = (
        ids_of(list(make_loader(plain, 4, start_batch=start_batch, share=(index, 2), **settings)))
        for index in range(2)
    )
    assert len(first) == len(second) > 0
    assert [ids for pair in zip(first, second, strict=True) for ids in pair] == alone
