"""Plan students within budgets for teachers of eight families; one CSV row per budget.

    python budgets.py --out budgets.csv
    python budgets.py --summary budgets.csv

For parameters, FLOPs and size, the share of the budget that the student uses is computed. For
latency it is measured after planning, with student and teacher in turns in onnxruntime. The seconds
are from the opened teacher to the student's sizes.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import timm

from fitcompress.evaluation.benchmark import paired_latency
from fitcompress.events import ignore
from fitcompress.exporters.latency import onnx_copy
from fitcompress.graph.lift import build_network
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.student.init import random_program
from fitcompress.student.sizing import plan_from_recipe
from fitcompress.student.width_search import tally_of

MODELS = (
    "resnet50",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "mixer_s16_224",
)
TARGETS = (
    ("params", "10%"),
    ("params", "1M"),
    ("flops", "10%"),
    ("size", "20%"),
    ("latency", "50%"),
)
FIELDS = ("model", "target", "asked", "depth_mult", "teacher", "student", "share", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("budgets.csv"))
    parser.add_argument("--summary", type=Path, help="print the table of a file and stop")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    given = parser.parse_args()
    if given.summary:
        print(table(list(csv.DictReader(given.summary.open()))))
        return
    rows = list(csv.DictReader(given.out.open())) if given.out.is_file() else []
    known = {(row["model"], row["target"], row["asked"]) for row in rows}
    gc.set_threshold(100_000)  # as the fitcompress command does
    with given.out.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not rows:
            writer.writeheader()
        for model in given.models:
            for kind, asked in TARGETS:
                if (model, kind, asked) not in known:
                    writer.writerows(measure(model, kind, asked))
                    file.flush()


def measure(model: str, kind: str, asked: str) -> Iterator[dict[str, object]]:
    assert timm.is_model(model), model
    settings = {"teacher.source": model, "teacher.pretrained": False}
    settings |= {f"student.target_{kind}": asked, "student.init": "random"}
    recipe = resolve_recipe(settings=settings)
    teacher = open_teacher(recipe.teacher, allow_random=True)
    started = time.perf_counter()
    try:
        plan = plan_from_recipe(teacher.program, teacher.interface, recipe.student, emit=ignore)
    except Exception as error:  # becomes the row's text
        yield {"model": model, "target": kind, "asked": asked, "share": str(error)[:200]}
        return
    seconds = time.perf_counter() - started
    programs = {"teacher": teacher.program, "student": random_program(plan)}
    if kind == "latency":
        with ExitStack() as stack:
            runners = {
                name: stack.enter_context(onnx_copy(build_network(own).eval(), teacher.interface))
                for name, own in programs.items()
            }
            times = paired_latency(runners, (1,), num_runs=200, budget_s=15.0)
        costs = [times[name]["1"].median_ms for name in programs]
        limit = costs[1] * times["student"]["1"].speedup * float(asked.rstrip("%")) / 100
    else:
        tallies = [tally_of(own) for own in programs.values()]
        named = [{**own._asdict(), "flops": 2 * own.macs} for own in tallies]
        costs = [own[kind] for own in named]
        is_share = asked.endswith("%")
        limit = costs[0] * float(asked.rstrip("%")) / 100 if is_share else float(asked[:-1]) * 1e6
    yield {
        "model": model,
        "target": kind,
        "asked": asked,
        "depth_mult": plan.depth_mult,
        "teacher": f"{costs[0]:.6g}",
        "student": f"{costs[1]:.6g}",
        "share": f"{costs[1] / limit:.4f}",
        "seconds": f"{seconds:.2f}",
    }


def table(rows: list[dict[str, str]]) -> str:
    """One row per model, one column per budget: the share that the student uses."""
    columns = list(dict.fromkeys((row["target"], row["asked"]) for row in rows))
    lines = ["| model | " + " | ".join(f"{kind} {asked}" for kind, asked in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {(r["target"], r["asked"]): r for r in rows if r["model"] == model}
        rows_in_order = (own[column] for column in columns)
        cells = [f"{row['share']}, {float(row['seconds']):.3g} s" for row in rows_in_order]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
