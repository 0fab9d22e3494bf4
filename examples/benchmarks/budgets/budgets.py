"""Plans students within budgets, for teachers of eight families; one CSV row for each budget.

    python budgets.py --out budgets.csv
    python budgets.py --summary budgets.csv

Of parameters, FLOPs and size the share of the budget that the student takes is counted; of latency
it is measured again, student and teacher in turns in onnxruntime, after the plan was made.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import timm

from fitcompress.events import ignore
from fitcompress.graph.budget import tally_of
from fitcompress.planning import plan_run
from fitcompress.recipe import resolve_recipe
from fitcompress.speed import paired_latency
from fitcompress.teacher import open_teacher
from fitcompress.timing import onnx_copy

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
        planned = plan_run(teacher, recipe, emit=ignore)
    except Exception as error:  # of which the reader is told
        yield {"model": model, "target": kind, "asked": asked, "share": str(error)[:200]}
        return
    seconds = time.perf_counter() - started
    sides = [
        {**planned.summary[name], "size": tally_of(one.program).size}
        for name, one in (("teacher", planned.teacher), ("student", planned.student))
    ]
    if kind == "latency":
        with ExitStack() as stack:
            runners = {
                name: stack.enter_context(onnx_copy(one.network, one.interface))
                for name, one in (("teacher", planned.teacher), ("student", planned.student))
            }
            times = paired_latency(runners, (1,), num_runs=200, budget_s=15.0)
        costs = [times[name]["1"]["median_ms"] for name in ("teacher", "student")]
        limit = costs[1] * times["student"]["1"]["speedup"] * float(asked.rstrip("%")) / 100
    else:
        costs = [side[kind] for side in sides]
        is_share = asked.endswith("%")
        limit = costs[0] * float(asked.rstrip("%")) / 100 if is_share else float(asked[:-1]) * 1e6
    yield {
        "model": model,
        "target": kind,
        "asked": asked,
        "depth_mult": planned.summary["depth_mult"],
        "teacher": f"{costs[0]:.6g}",
        "student": f"{costs[1]:.6g}",
        "share": f"{costs[1] / limit:.4f}",
        "seconds": f"{seconds:.1f}",
    }


def table(rows: list[dict[str, str]]) -> str:
    """A row a model, a column a budget: the share of it that the student takes."""
    columns = list(dict.fromkeys((row["target"], row["asked"]) for row in rows))
    lines = ["| model | " + " | ".join(f"{kind} {asked}" for kind, asked in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {(r["target"], r["asked"]): r for r in rows if r["model"] == model}
        cells = [
            f"{row['share']}, {row['seconds']} s" if row["target"] == "latency" else row["share"]
            for row in (own[column] for column in columns)
        ]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
