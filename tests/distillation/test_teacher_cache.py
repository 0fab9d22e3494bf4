"""The teacher's answers in files: what was asked, found again, after a kill too."""

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
    paths_of,
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
def test_kept_answers_are_what_the_teacher_says_of_each_view(objective, tmp_path, mixup):
    data = make_data(mixup=mixup)
    kept, done = write(objective, data, tmp_path / "cache")
    assert done[-1] == 2 * 48 and kept.layout.num_bytes == 2 * 48 * 3 * 4
    ids = [47, 0, 13, 6, 7]
    for epoch in range(4):
        data.set_epoch(epoch)
        (expected,) = objective.forward_teacher(data.batch(ids))
        (found,) = kept(ids, epoch % 2)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept(ids, 0)[0], kept(ids, 1)[0])


def test_batches_bring_the_answers_of_their_own_views(objective, tmp_path):
    data = make_data()
    data.teacher_outputs, _ = write(objective, data, tmp_path)
    data.set_epoch(3)
    batch = data.batch([5, 2])
    assert torch.equal(batch.teacher_outputs[0], data.teacher_outputs([5, 2], 1)[0])
    moved = batch.to("cpu")
    assert torch.equal(moved.answers[0], batch.teacher_outputs[0])


def test_losses_with_kept_answers_are_those_without(objective, tmp_path):
    data = make_data(mixup=0.3)
    data.set_epoch(1)
    ids = list(range(12))
    plain = objective.losses(data.batch(ids), 0.5)
    data.teacher_outputs, _ = write(objective, data, tmp_path)
    data.set_epoch(1)
    objective.teacher = torch.nn.Module()  # nobody asks it
    kept = objective.losses(data.batch(ids), 0.5)
    for name, value in plain.items():
        # float32: the teacher saw these samples in other batches
        torch.testing.assert_close(
            torch.as_tensor(kept[name]), torch.as_tensor(value), rtol=1e-5, atol=1e-6
        )


def test_what_was_written_before_a_stop_is_not_asked_for_again(objective, tmp_path):
    data = make_data()
    layout = cache_layout(objective.forward_teacher, data, 2)
    asked: list[int] = []

    def forward_teacher(batch):
        asked.extend(batch.ids.tolist())
        return objective.forward_teacher(batch)

    stopped = write_outputs(forward_teacher, data, tmp_path, layout, 5)
    while next(stopped) < 20:
        pass
    stopped.close()
    num_files = len(list(tmp_path.glob("*.npy")))
    assert num_files == 2  # two shards of 7 rows; the third was under way
    asked.clear()
    list(write_outputs(forward_teacher, data, tmp_path, layout, 5))
    assert len(asked) == 2 * 48 - 14
    whole, _ = write(objective, make_data(), tmp_path / "unbroken")
    for view in range(2):
        found = CachedOutputs(tmp_path, layout)(range(48), view)[0]
        assert torch.equal(found, whole(range(48), view)[0])


def test_no_half_file_has_a_final_name(objective, tmp_path, monkeypatch):
    def broken(file, values):
        file.write(b"half")
        raise OSError("pulled")

    monkeypatch.setattr(np, "save", broken)
    with pytest.raises(OSError, match="pulled"):
        write(objective, make_data(), tmp_path)
    assert not list(tmp_path.glob("view*"))


def test_answers_of_another_teacher_or_to_other_images_are_refused(objective, tmp_path):
    data = make_data()
    kept, _ = write(objective, data, tmp_path)
    verify_outputs(objective.forward_teacher, data, kept)
    with pytest.raises(RunError, match="not this teacher's to these images"):
        verify_outputs(objective.forward_teacher, make_data(seed=5), kept)
    layout = cache_layout(objective.forward_teacher, data, 2)
    other = replace(layout, num_samples=layout.num_samples - 1)
    with pytest.raises(RunError, match="not this teacher's"):
        next(write_outputs(objective.forward_teacher, data, tmp_path, other, 5))


def test_views_that_come_later_are_added(objective, tmp_path):
    write(objective, make_data(), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("view*")}
    kept, _ = write(objective, make_data(num_views=3), tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert set(paths_of(tmp_path, kept.layout)) == set(tmp_path.glob("view*")) > set(before)
    data = make_data(num_views=3)
    data.set_epoch(2)
    assert torch.allclose(kept([3], 2)[0], objective.forward_teacher(data.batch([3]))[0])


def test_answers_pickle_to_a_worker_as_a_path(objective, tmp_path):
    kept, _ = write(objective, make_data(), tmp_path)
    kept([1, 2], 0)
    text = pickle.dumps(kept)
    assert len(text) < 1000
    assert torch.equal(pickle.loads(text)([3], 1)[0], kept([3], 1)[0])
