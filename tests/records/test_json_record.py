"""Records are written as the JSON that they were read from."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from helpers.report_runs import EXPORT, PLAN, results

from fitcompress.errors import RunError
from fitcompress.records.ablation_record import AblationRecord
from fitcompress.records.export_record import ExportRecord
from fitcompress.records.json_record import Record
from fitcompress.records.measurements import Share
from fitcompress.records.plan_summary import PlanSummary
from fitcompress.records.run_results import RunResults

ABLATION = {
    "teacher": "resnet20",
    "arms": [
        {
            "name": "kd",
            "meaning": "stage 2 alone",
            "settings": {"stage1.epochs": 0},
            "is_long": False,
            "sets": ["stage2.tau=8"],
            "against": "bp",
            "changes": {"stage1.epochs": 0},
        }
    ],
    "cells": [["kd", 0], ["kd", 1]],
    "questions": [{"arm": "kd", "against": "bp", "subject": "distillation"}],
    "is_extended": False,
    "shared": {"teacher": "a", "images": "b", "settings": {"run.compile": "off"}, "seconds": 1.5},
    "failed": [["kd", 1, "the loss is not finite"]],
}
RESULTS = results(
    stages=[
        {
            "stage": "stage1",
            "epochs": 1,
            "num_images": 100,
            "seconds": 2.0,
            "images_per_s": 50.0,
            "waiting_share": 0.0,
            "losses": {"loss": 1.0},
            "held_out": {},
            "history": [
                {
                    "epoch": 1,
                    "losses": {"loss": 1.0},
                    "held_out": {},
                    "seconds": 2.0,
                    "images_per_s": 50.0,
                }
            ],
            "flops_per_image": 0,
        }
    ]
)


@pytest.mark.parametrize(
    ("record", "written"),
    [
        (PlanSummary, PLAN),
        (ExportRecord, EXPORT),
        (AblationRecord, ABLATION),
        (RunResults, RESULTS),
    ],
)
def test_a_record_is_written_as_it_was_read(record: type[Record], written: dict) -> None:
    assert record.from_dict(written).to_dict() == written


@dataclass(frozen=True, kw_only=True)
class Example(Record):
    required: int
    nullable: Share | None
    omitted: float | None = None
    pair: tuple[str, int] = ("a", 1)
    by_name: dict[str, tuple[Share, ...]] = field(default_factory=dict)


SHARE = {"top1": 0.5, "low": 0.1, "high": 0.9, "n": 2}


def test_none_is_null_unless_it_is_the_default() -> None:
    written = Example(required=1, nullable=None).to_dict()
    assert list(written.items()) == [
        ("required", 1),
        ("nullable", None),
        ("pair", ["a", 1]),
        ("by_name", {}),
    ]


def test_nested_values_have_their_types() -> None:
    example = Example.from_dict(
        {"required": 1, "nullable": SHARE, "pair": ["b", 2], "by_name": {"x": [SHARE]}}
    )
    share = Share(top1=0.5, low=0.1, high=0.9, n=2)
    assert example == Example(required=1, nullable=share, pair=("b", 2), by_name={"x": (share,)})


def test_unknown_keys_are_ignored_and_missing_ones_have_defaults() -> None:
    assert Example.from_dict({"required": 1, "new": 2}) == Example(required=1, nullable=None)


def test_a_missing_required_key_is_an_error() -> None:
    with pytest.raises(RunError) as caught:
        Example.from_dict({"nullable": None})
    assert caught.value.code == "record-incomplete"
    assert caught.value.facts == {"record": "Example", "key": "required"}
