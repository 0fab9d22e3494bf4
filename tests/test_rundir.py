"""Run directories: writes are atomic, files of the user are never removed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from fitcompress import rundir
from fitcompress.atomic import atomic_path, write_json, write_text
from fitcompress.errors import RunError
from fitcompress.events import EpochFinished, Notice, Progress
from fitcompress.rundir import RunDir

NOTICE = Notice(topic="data", message="hello")


def make_run(path: Path) -> RunDir:
    run = RunDir.create(path)
    run.write_text("recipe.toml", "preset = 'modern'\n")
    return run


def test_create_makes_an_empty_run_directory(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "runs" / "a")
    assert run.exports_path.is_dir()
    assert run.checkpoint_path("stage1").parent.is_dir()
    assert not run.is_run()


def test_a_taken_directory_is_refused_and_untouched(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    with pytest.raises(RunError) as caught:
        RunDir.create(tmp_path)
    assert (caught.value.code, caught.value.facts) == ("run-exists", {"path": str(tmp_path)})
    assert "--resume" in caught.value.advice
    assert run.recipe_path.read_text() == "preset = 'modern'\n"


def test_resume_keeps_the_run_and_removes_partial_files(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (tmp_path / "checkpoints" / ".stage1.pt.123.tmp").write_text("half")
    RunDir.create(tmp_path, resume=True)
    assert run.is_run()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_force_removes_the_old_run_and_nothing_else(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.append_event(NOTICE)
    run.student_path.mkdir()
    (run.student_path / "config.json").write_text("{}")
    (tmp_path / "my-notes.txt").write_text("mine")
    RunDir.create(tmp_path, force=True)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [
        "checkpoints",
        "exports",
        "my-notes.txt",
    ]


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_with_other_files_is_refused_even_with_force(
    tmp_path: Path, force: bool
) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(RunError) as caught:
        RunDir.create(tmp_path, force=force)
    assert caught.value.code == "folder-not-empty"
    assert (tmp_path / "holiday.jpg").exists()


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(RunError) as caught:
        RunDir.create(path, force=True)
    assert caught.value.code == "path-is-file"


def test_a_run_killed_before_its_recipe_can_be_made_again(tmp_path: Path) -> None:
    RunDir.create(tmp_path)
    (tmp_path / ".recipe.toml.77.tmp").write_text("half")
    assert not list(RunDir.create(tmp_path).path.glob(".*.tmp"))


def test_newest_is_the_run_with_the_last_activity(tmp_path: Path) -> None:
    old, new = make_run(tmp_path / "z"), make_run(tmp_path / "a")
    (tmp_path / "not-a-run").mkdir()
    os.utime(old.recipe_path, (100, 100))
    os.utime(new.recipe_path, (200, 200))
    assert RunDir.newest(tmp_path) == new
    old.append_event(NOTICE)
    assert RunDir.newest(tmp_path) == old


def test_newest_without_runs_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        RunDir.newest(tmp_path / "runs")
    assert caught.value.code == "no-runs"
    assert "fitcompress distill" in caught.value.advice


@pytest.mark.parametrize("name", [".", "absent"])
def test_open_refuses_a_directory_without_a_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(RunError) as caught:
        RunDir.open(tmp_path / name)
    assert caught.value.code == "run-missing"
    assert caught.value.facts == {"path": str(tmp_path / name)}


def test_events_come_back_in_order_and_progress_is_not_stored(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    epoch = EpochFinished(
        stage="stage1", epoch=1, losses={"loss": 1.5}, held_out={}, seconds=2.0, images_per_s=50.0
    )
    run.append_event(NOTICE)
    run.append_event(
        Progress(
            stage="stage1",
            epoch=1,
            step=1,
            num_images=8,
            images_per_s=1.0,
            seconds_left=1.0,
            losses={},
        )
    )
    run.append_event(epoch)
    notice, stored = run.read_events()
    assert notice["message"] == "hello"
    assert stored["event"] == "EpochFinished"
    assert stored["losses"] == {"loss": 1.5}
    assert stored["time"] > 0


def test_a_torn_last_line_is_skipped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.append_event(NOTICE)
    with run.events_path.open("a") as file:
        file.write('{"event": "Noti')
    assert len(run.read_events()) == 1
    run.append_event(NOTICE)
    assert [event["event"] for event in run.read_events()] == ["Notice", "Notice"]


def test_json_replaces_infinity_and_nan_by_null(tmp_path: Path) -> None:
    write_json(
        tmp_path / "x.json", {"a": (1, 2), "b": float("inf"), "c": Path("p"), 3: float("nan")}
    )
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": [1, 2], "b": None, "c": "p", "3": None}


def test_read_json_is_none_without_a_file_and_an_error_for_a_damaged_one(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path)
    assert run.read_json("plan.json") is None
    (run.path / "plan.json").write_text("{")
    with pytest.raises(RunError) as caught:
        run.read_json("plan.json")
    assert caught.value.code == "file-damaged"


def test_a_failed_write_leaves_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError(
            "[enforce fail at inline_container.cc] . PytorchStreamWriter: file write failed"
        ),
    ],
    ids=["disk", "quota", "torch"],
)
def test_a_full_disk_is_a_run_error_that_names_the_file(tmp_path: Path, error: Exception) -> None:
    def fail() -> None:
        with atomic_path(tmp_path / "x.pt"):
            raise error

    with pytest.raises(RunError) as caught:
        fail()
    assert caught.value.code == "disk-full"
    assert caught.value.facts == {"path": str(tmp_path / "x.pt")}
    assert "--resume" in caught.value.advice


def test_a_full_disk_while_events_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(rundir.os, "fsync", full)
    with pytest.raises(RunError) as caught:
        run.append_event(NOTICE)
    assert caught.value.code == "disk-full"


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="something else"), atomic_path(tmp_path / "x"):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    "place", [".", "checkpoints", "exports", "thumbnails", "student", "cache/a"]
)
def test_temporary_files_of_a_killed_run_are_removed_on_resume(tmp_path, place):
    run = RunDir.create(tmp_path / "run")
    run.write_text("recipe.toml", "")
    folder = run.path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".8.png.123.tmp").touch()
    (folder / ".student.onnx.abc.tmp").mkdir()
    (folder / "8.png").touch()

    RunDir.create(run.path, resume=True)

    assert not list(run.path.rglob(".*.tmp"))
    assert (folder / "8.png").exists()
