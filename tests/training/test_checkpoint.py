"""Checkpoints: atomic, readable without code, refused when damaged."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from fitcompress.errors import TrainingError
from fitcompress.rundir import RunDir
from fitcompress.training.checkpoint import FORMAT_VERSION, read_checkpoint, write_checkpoint

CONTENT = {"trained": {"w": torch.arange(1000.0)}, "position": {"epoch": 2}, "names": ["a", None]}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(tmp_path / "stage1.pt", CONTENT)
    return tmp_path / "stage1.pt"


def test_what_is_written_is_read(path):
    content = read_checkpoint(path)
    assert torch.equal(content.pop("trained")["w"], CONTENT["trained"]["w"])
    assert content == {"position": {"epoch": 2}, "names": ["a", None], "version": FORMAT_VERSION}


def test_the_folder_is_made_and_nothing_else_is_left_in_it(tmp_path):
    write_checkpoint(tmp_path / "a" / "b.pt", CONTENT)
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["b.pt"]


def test_it_is_forced_to_disk_before_it_takes_its_name(path, monkeypatch):
    before, seen = path.read_bytes(), []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (seen.append(path.read_bytes()), fsync(number)))
    write_checkpoint(path, {"trained": {}})
    assert seen[0] == before and seen[1] == path.read_bytes()  # the file, then its folder


def test_resuming_a_run_removes_what_a_crash_left_half_written(tmp_path, monkeypatch):
    run = RunDir.create(tmp_path / "run")
    run.write_text("recipe.toml", "")
    monkeypatch.setattr(Path, "unlink", lambda *_args, **_options: None)  # as if killed by then
    monkeypatch.setattr(Path, "replace", _killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(run.checkpoint_path("stage1"), CONTENT)
    monkeypatch.undo()
    folder = run.checkpoint_path("stage1").parent
    assert len(list(folder.iterdir())) == 1
    RunDir.create(tmp_path / "run", resume=True)
    assert list(folder.iterdir()) == []


def _killed(*_args):
    raise KeyboardInterrupt


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES], ids=["no space", "no permission"])
def test_a_failed_write_names_the_file_and_leaves_the_old_one(path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrainingError) as caught:
        write_checkpoint(path, {"trained": {}})
    assert caught.value.code == "checkpoint-not-written"
    assert caught.value.facts["path"] == str(path)
    assert os.strerror(number) in caught.value.message
    assert "--resume" in caught.value.advice
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")  # noqa: PTH110
def test_a_disk_that_is_really_full_is_an_error_too(path):
    before = path.read_bytes()
    path.with_name(f".stage1.pt.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(TrainingError) as caught:
        write_checkpoint(path, CONTENT)
    assert "No space left on device" in caught.value.message
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused_with_advice(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(TrainingError) as caught:
        read_checkpoint(path)
    assert caught.value.code == "checkpoint-unreadable"
    assert caught.value.facts["path"] == str(path)
    assert "--resume" in caught.value.advice


def test_a_flipped_bit_in_the_weights_is_found(path):
    data = bytearray(path.read_bytes())
    place = data.find(torch.arange(500.0, 510.0).numpy().tobytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(TrainingError) as caught:
        read_checkpoint(path)
    assert "checksum" in caught.value.facts["reason"]


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    torch.save({"trained": Harmful()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Harmful()))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(TrainingError) as caught:
            read_checkpoint(tmp_path / name)
        assert caught.value.code == "checkpoint-unreadable"
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (torch.zeros(3), "it is not a checkpoint"),
        ({"w": 1}, "it is not a checkpoint"),
        ({"trained": {}, "version": 0}, "expected format 3, got 0"),
    ],
    ids=["tensor", "other", "old"],
)
def test_another_kind_of_file_is_refused(tmp_path, content, reason):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(TrainingError) as caught:
        read_checkpoint(tmp_path / "a.pt")
    assert caught.value.facts["reason"] == reason
