"""Print an ablation as error rates, for the README.

    python tables.py runs/hinton runs/hinton-30

For each arm: mean over seeds, standard deviation, and the number of wrong test images.
"""

from __future__ import annotations

import statistics
import sys

from fitcompress.report.ablation_report import Ablation


def main() -> None:
    for path in sys.argv[1:]:
        print(f"{path}\n\n{table(Ablation.load(path))}\n")


def table(ablation: Ablation) -> str:
    lines = ["| arm | error % | sd | wrong images, by seed |", "|---|---|---|---|"]
    for arm in ablation.arms:
        errors = [100 * (1 - accuracy) for accuracy in ablation.accuracies(arm).values()]
        if not errors:
            continue
        deviation = f"{statistics.stdev(errors):.2f}" if len(errors) > 1 else "-"
        counts = [wrong(ablation, arm, seed) for seed in ablation.accuracies(arm)]
        mean = statistics.fmean(errors)
        lines.append(f"| {arm} | {mean:.2f} | {deviation} | {', '.join(map(str, counts))} |")
    return "\n".join([*lines, "", *ablation.verdicts])


def wrong(ablation: Ablation, arm: str, seed: int) -> int:
    """Number of wrong test images."""
    accuracy = ablation.cells[arm, seed].results.student.accuracy
    return round((1 - accuracy.top1) * accuracy.n)


if __name__ == "__main__":
    main()
