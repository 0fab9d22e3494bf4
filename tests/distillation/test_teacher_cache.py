"""Cached teacher outputs: complete, equal to the teacher's own, resumed after a kill."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.toy_training import make_distill, make_views

from fitcompress.distillation import teacher_cache as module
from fitcompress.distillation.teacher_cache import (
    CachedOutputs,
    cache_layout,
    cache_paths,
    verify_outputs,
    write_outputs,
)
from fitcompress.errors import RunError


def make_data(num_views=2, **arguments):
    data = make_views(**arguments)
    data.num_views = num_views
    return data


@pytest.fixture
def objective():
    return make_distill().eval()


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "_SHARD_BYTES", 4 * 3 * 7)  # 7 rows of 3 float32


def write(objective, data, folder, batch_size=5):
    layout = cache_layout(objective.forward_teacher, data, data.num_views)
    done = list(write_outputs(objective.forward_teacher, data, folder, layout, batch_size))
    return CachedOutputs(folder, layout), done


@pytest.mark.parametrize("mixup", [0.0, 0.3])
def test_cached_outputs_are_the_teacher_s_outputs_for_each_view(objective, tmp_path, mixup):
    data = make_data(mixup=mixup)
    cached, done = write(objective, data, tmp_path / "cache")
    assert done[-1] == 2 * 48 and cached.layout.num_bytes == 2 * 48 * 3 * 4
    ids = [47, 0, 13, 6, 7]
    for epoch in range(4):
        data.set_epoch(epoch)
        (expected,) = objective.forward_teacher(data.batch(ids))
        (found,) = cached(ids, epoch % 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(cached(ids, 0)[0], cached(ids, 1)[0])


def test_batches_have_the_outputs_of_their_own_views(objective, tmp_path):
    data = make_data()
    data.teacher_outputs, _ = write(objective, data, tmp_path)
    data.set_epoch(3)
    batch = data.batch([5, 2])
    assert torch.equal(batch.teacher_outputs[0], data.teacher_outputs([5, 2], 1)[0])
    moved = batch.to("cpu")
    assert torch.equal(moved.teacher_outputs[0], batch.teacher_outputs[0])


def test_losses_with_cached_outputs_equal_those_without(objective, tmp_path):
    data = make_data(mixup=0.3)
    data.set_epoch(1)
    ids = list(range(12))
    plain = objective.losses(data.batch(ids), 0.5)
    data.teacher_outputs, _ = write(objective, data, tmp_path)
    data.set_epoch(1)
    objective.teacher = torch.nn.Module()  # not run
    cached = objective.losses(data.batch(ids), 0.5)
    for name, value in plain.items():
        # float32: the teacher saw these samples in other batches
        torch.testing.assert_close(
            torch.as_tensor(cached[name]), torch.as_tensor(value), rtol=1e-5, atol=1e-6
        )


def test_shards_written_before_a_stop_are_not_computed_again(objective, tmp_path):
    data = make_data()
    layout = cache_layout(objective.forward_teacher, data, 2)
    computed: list[int] = []

    def forward_teacher(batch):
        computed.extend(batch.ids.tolist())
        return objective.forward_teacher(batch)

    stopped = write_outputs(forward_teacher, data, tmp_path, layout, 5)
    while next(stopped) < 20:
        pass
    stopped.close()
    num_files = len(list(tmp_path.glob("*.npy")))
    assert num_files == 2  # two shards of 7 rows; the third was under way
    computed.clear()
    list(write_outputs(forward_teacher, data, tmp_path, layout, 5))
    assert len(computed) == 2 * 48 - 14
    unbroken, _ = write(objective, make_data(), tmp_path / "unbroken")
    for view in range(2):
        found = CachedOutputs(tmp_path, layout)(range(48), view)[0]
        assert torch.equal(found, unbroken(range(48), view)[0])


def test_a_partly_written_file_never_has_the_final_name(objective, tmp_path, monkeypatch):
    def broken(file, values):
        file.write(b"half")
        raise OSError("pulled")

    monkeypatch.setattr(np, "save", broken)
    with pytest.raises(OSError, match="pulled"):
        write(objective, make_data(), tmp_path)
    assert not list(tmp_path.glob("view*"))


def test_a_cache_of_another_teacher_or_other_images_is_refused(objective, tmp_path):
    data = make_data()
    cached, _ = write(objective, data, tmp_path)
    verify_outputs(objective.forward_teacher, data, cached)
    with pytest.raises(RunError) as caught:
        verify_outputs(objective.forward_teacher, make_data(seed=5), cached)
    assert caught.value.code == "teacher-cache-mismatch"
    assert caught.value.facts == {"path": str(tmp_path)}
    layout = cache_layout(objective.forward_teacher, data, 2)
    other = replace(layout, num_samples=layout.num_samples - 1)
    with pytest.raises(RunError) as caught:
        next(write_outputs(objective.forward_teacher, data, tmp_path, other, 5))
    assert caught.value.code == "teacher-cache-mismatch"


def test_views_that_come_later_are_added(objective, tmp_path):
    write(objective, make_data(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("view*")}
    cached, _ = write(objective, make_data(num_views=3), tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert set(cache_paths(tmp_path, cached.layout)) == set(tmp_path.glob("view*")) > set(before)
    data = make_data(num_views=3)
    data.set_epoch(2)
    assert torch.allclose(cached([3], 2)[0], objective.forward_teacher(data.batch([3]))[0])


def test_a_cache_pickles_to_a_worker_as_a_path(objective, tmp_path):
    cached, _ = write(objective, make_data(), tmp_path)
    cached([1, 2], 0)
    text = pickle.dumps(cached)
    assert len(text) < 1000
    assert torch.equal(pickle.loads(text)([3], 1)[0], cached([3], 1)[0])
