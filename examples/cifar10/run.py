"""Does a teacher help? A CIFAR-10 student with and without one, over several seeds.

    python run.py --teacher resnet56.pt --data cifar10/ --out runs/cifar10 --seeds 3

For each seed, one run distills a student (depth x2, width x0.4) from the teacher, and trains the
same student from random weights without it, for the same number of steps. Finished runs are kept
and unfinished ones resumed, so the script can be stopped at any time. Prints and writes the table
(`table.md`) and one line of JSON per seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fitcompress
from fitcompress.rundir import RunDir

ARMS = ("teacher", "student", "baseline")


@dataclass(frozen=True)
class Row:
    """One seed's top-1 accuracies on the evaluation images."""

    seed: int
    teacher: float
    student: float
    baseline: float
    agreement: float
    p_value: float

    @property
    def difference(self) -> float:
        """Student minus baseline."""
        return self.student - self.baseline


def main() -> None:
    arguments = parse_arguments()
    rows = [run_seed(arguments, seed) for seed in range(arguments.seeds)]
    table = render_table(rows)
    (arguments.out / "table.md").write_text(table, encoding="utf-8")
    lines = [json.dumps(row.__dict__) for row in rows]
    (arguments.out / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="archive, .pt2 or package.module:factory")
    parser.add_argument("--teacher-weights", help="weights for a factory")
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="training images; all by default")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--hint-epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--depth-mult", type=float, default=2.0)
    parser.add_argument("--width-mult", type=float, default=0.4)
    parser.add_argument("--preset", default="modern")
    return parser.parse_args()


def run_seed(arguments: argparse.Namespace, seed: int) -> Row:
    """Start, resume or read one run."""
    out = arguments.out / f"seed{seed}"
    recipe = fitcompress.resolve_recipe(
        preset=arguments.preset,
        settings={
            "teacher.source": arguments.teacher,
            "teacher.weights": arguments.teacher_weights,
            "teacher.input_size": (3, 32, 32),
            "teacher.mean": (0.485, 0.456, 0.406),
            "teacher.std": (0.229, 0.224, 0.225),
            "data.source": arguments.data,
            "data.limit": arguments.limit,
            "data.batch_size": arguments.batch_size,
            "student.depth_mult": arguments.depth_mult,
            "student.width_mult": arguments.width_mult,
            "stage1.epochs": arguments.hint_epochs,
            "stage2.epochs": arguments.epochs,
            "run.baseline": True,
            "run.seed": seed,
            "run.out": str(out),
        },
    )
    report = fitcompress.distill(recipe, resume=RunDir(out).is_run()).to_dict()
    accuracies = {arm: report[arm]["accuracy"]["top1"] for arm in ARMS}
    p_value = report["tests"]["student_baseline"]["p_value"]
    return Row(seed, **accuracies, agreement=report["agreement"]["top1"], p_value=p_value)


def render_table(rows: Sequence[Row]) -> str:
    """Markdown: one row per seed, then mean and standard deviation of the differences."""
    lines = [
        "| seed | teacher | student | same student, no teacher | difference | McNemar p |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        shares = (100 * row.teacher, 100 * row.student, 100 * row.baseline, 100 * row.difference)
        cells = " | ".join(f"{share:.2f}" for share in shares[:3])
        lines.append(f"| {row.seed} | {cells} | {shares[3]:+.2f} | {row.p_value:.2g} |")
    differences = [100 * row.difference for row in rows]
    mean = statistics.mean(differences)
    spread = f", sd {statistics.stdev(differences):.2f}" if len(rows) > 1 else ""
    lines += ["", f"difference: mean {mean:+.2f}{spread} points, n = {len(rows)} seeds"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
