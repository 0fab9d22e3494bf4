"""The report as a value: merged from a run directory, finished or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.report_runs import EXPORT, PLAN, finished_run, unfinished_run

from fitcompress.errors import RunError
from fitcompress.events import EpochFinished, Notice
from fitcompress.report.run_report import Report
from fitcompress.rundir import RunDir

MODEL_KEYS = {"params", "macs", "flops", "depth", "size_bytes", "accuracy", "latency_ms"}


def test_the_json_keeps_its_contract(tmp_path: Path) -> None:
    value = json.loads(Report.load(finished_run(tmp_path / "run")).render("json"))
    for name in ("teacher", "student", "baseline"):
        assert set(value[name]) >= MODEL_KEYS
        assert set(value[name]["accuracy"]) == {"top1", "low", "high", "n"}
    assert value["student"]["latency_ms"] == 3.6
    assert value["student"]["latency"]["onnxruntime"]["32"]["median_ms"] == 4.0
    assert [stage["stage"] for stage in value["stages"]] == [
        "teacher",
        "stage1",
        "stage2",
        "baseline",
    ]
    assert value["exports"] == [EXPORT]
    assert value["agreement"]["top1"] == 0.925
    assert value["pairs"] == PLAN["pairs"]
    assert value["missing"] == []
    assert value["classes"][0]["name"] == "T-shirt/top"
    assert value["disagreements"][0]["n"] == 23
    assert value["doubts"][0]["thumbnail"] == "thumbnails/17.png"
    assert value["student"]["calibration"]["bins"]


def test_an_unfinished_run_reports_what_it_has_and_what_is_missing(tmp_path: Path) -> None:
    value = Report.load(unfinished_run(tmp_path / "run")).to_dict()
    assert value["missing"] == ["stage 2 (distillation)", "the measured results"]
    assert value["student"]["params"] == PLAN["student"]["params"]
    assert value["student"]["accuracy"] is None
    assert value["student"]["latency_ms"] is None
    assert "baseline" not in value
    finished = {stage["stage"]: stage["is_finished"] for stage in value["stages"]}
    assert finished == {"stage1": True, "stage2": False}
    assert len(value["curves"]["stage2"]) == 2


def test_a_run_without_stage_1_does_not_miss_it(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.write_text("recipe.toml", "[stage1]\nepochs = 0\n")
    missing = Report.load(run).missing
    assert len(missing) == 3
    assert not any("stage 1" in part for part in missing)


def test_a_run_with_nothing_but_its_recipe_renders_in_every_form(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path)
    run.write_text("recipe.toml", "")
    report = Report.load(run)
    for form in ("text", "json", "md", "html"):
        assert "unfinished" in report.render(form)


def test_a_resumed_epoch_counts_once(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    again = EpochFinished(
        stage="stage2", epoch=2, losses={"loss": 1.0}, held_out={}, seconds=9.0, images_per_s=1.0
    )
    run.append_event(again)
    report = Report.load(run)
    assert [row.losses["loss"] for row in report.curves["stage2"]] == [2.1, 1.0]
    assert report.stages[1].seconds == 12.5 + 9.0


def test_stage_records_of_the_results_add_to_those_of_the_events(tmp_path: Path) -> None:
    run = finished_run(
        tmp_path / "run", stages=[{"stage": "stage2", "seconds": 90.0, "num_images": 45000}]
    )
    stage2 = Report.load(run).stages[2]
    assert (stage2.seconds, stage2.images_per_s, stage2.epochs) == (90.0, 500.0, 5)


def test_notices_of_plan_and_events_appear_once(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    run.append_event(Notice(topic="plan", message=PLAN["notices"][0], code="built-in-images"))
    report = Report.load(run)
    assert report.notices == (*PLAN["notices"], "1 unreadable image was left out.")
    assert report.to_dict()["notice_codes"] == ["built-in-images", ""]


def test_a_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        Report.load(tmp_path)
    assert caught.value.code == "run-missing"


def test_an_unknown_form_is_an_error(tmp_path: Path) -> None:
    report = Report.load(unfinished_run(tmp_path / "run"))
    with pytest.raises(RunError) as caught:
        report.render("htm")
    assert caught.value.code == "report-form-unknown"
    assert caught.value.facts["form"] == "htm"
    assert "'html'" in caught.value.advice


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("plan.json", '{"student": {}}', "record-incomplete"),
        ("exports.json", '[{"format": "onnx"}]', "record-incomplete"),
        ("recipe.toml", "not toml", "recipe-not-toml"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: str, code: str) -> None:
    run = finished_run(tmp_path / "run")
    run.write_text(name, content)
    with pytest.raises(RunError) as caught:
        Report.load(run)
    assert caught.value.code == code
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("resnet20", "resnet20"),
        ("/models/of/mine/r20.pt", "r20.pt"),
        ("teachers/r20/", "r20"),
        ("hf-hub:timm/resnet18.a1_in1k", "resnet18.a1_in1k"),
        ("package.module:make_net", "package.module:make_net"),
    ],
)
def test_a_teacher_from_a_file_is_called_by_its_last_part(
    tmp_path: Path, source: str, name: str
) -> None:
    run = finished_run(tmp_path / "run")
    text = run.recipe_path.read_text()
    run.write_text("recipe.toml", text.replace('source = "resnet20"', f'source = "{source}"', 1))
    assert Report.load(run).teacher_name == name
