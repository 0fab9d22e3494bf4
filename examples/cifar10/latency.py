"""Time exported students in turns with their teacher, and compare with the report.

    python latency.py runs/cifar10/seed0

The run must have been exported with --onnx --int8. Prints the speedup of each student over the
teacher's ONNX file, with the 95 % interval of the median ratio, next to the report's speedup.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fitcompress.evaluation.benchmark import paired_latency
from fitcompress.exporters.latency import onnx_copy
from fitcompress.exporters.onnx_session import onnx_runner
from fitcompress.graph.lift import build_network
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import load_recipe
from fitcompress.report.run_report import Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    given = parser.parse_args()
    report = Report.load(given.run)
    teacher = open_teacher(load_recipe(given.run / "recipe.toml").teacher)
    network = build_network(teacher.program).eval()
    with onnx_copy(network, teacher.interface) as whole:
        runners = {"teacher": whole}
        for name in ("student", "student.int8"):
            runners[name] = onnx_runner(given.run / f"exports/{name}.onnx")
        times = paired_latency(runners, num_runs=200, budget_s=20.0)
    beside_float = {record.format: record.latency or {} for record in report.exports}
    print("| file | batch | median ms | p95 ms | times faster | 95 % interval | report |")
    print("|---|---|---|---|---|---|---|")
    for name, batches in times.items():
        for batch, timing in batches.items():
            reported = report.model("student").timings["onnxruntime"][batch].speedup
            if name == "student.int8":
                reported *= beside_float["onnx-int8"][batch].speedup
            low, high = timing.speedup_range
            print(
                f"| {name} | {batch} | {timing.median_ms:.2f} | {timing.p95_ms:.2f}"
                f" | {timing.speedup:.2f} | {low:.2f} to {high:.2f}"
                f" | {'' if name == 'teacher' else f'{reported:.2f}'} |"
            )


if __name__ == "__main__":
    main()
