"""Write the README's tables and plot from the CSV files in this folder.

    python summary.py            # needs matplotlib for the plot

The text between the marks in README.md is replaced; the rest is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
from rows import read_rows

HERE = Path(__file__).parent
LARGE = 3_000_000
"""Parameters above which the remaining share is a goal: below, heads and stems dominate."""

Rows = list[dict[str, str]]


def number(row: dict[str, str], column: str) -> float:
    return float(row[column] or 0)


def is_captured(row: dict[str, str]) -> bool:
    return row["captured"] == "True"


def is_verified(row: dict[str, str]) -> bool:
    return row["verified"] == "True"


def has_pair(row: dict[str, str]) -> bool:
    return bool(row["regressor"])


def is_large(row: dict[str, str]) -> bool:
    return number(row, "params") > LARGE


def is_thin(row: dict[str, str]) -> bool:
    return is_verified(row) and number(row, "params_ratio") <= 0.20


def is_near_floor(row: dict[str, str]) -> bool:
    ratio, floor = number(row, "params_ratio"), number(row, "floor_ratio")
    return is_verified(row) and ratio <= 1.15 * floor


def is_deep(row: dict[str, str]) -> bool:
    return is_verified(row) and number(row, "depth_ratio") >= 1.8


def share(rows: Rows, holds: Callable[[dict[str, str]], bool]) -> str:
    """ "1,300 of 1,307 (99.5 %)"."""
    count = sum(map(holds, rows))
    return f"{count:,} of {len(rows):,} ({100 * count / max(1, len(rows)):.1f} %)"


def totals(rows: Rows) -> list[str]:
    """Counts over all models."""
    large = [row for row in rows if is_large(row)]
    seconds = sorted(number(row, "seconds") for row in rows if is_verified(row))
    lines = {
        "captured, lifted, run on shapes": share(rows, is_captured),
        "student planned and run at two batch sizes": share(rows, is_verified),
        "hint pair with a regressor that fits": share(rows, has_pair),
        "at most 0.20 of the parameters (teachers above 3 M)": share(large, is_thin),
        "at most 1.15 times the floor": share(rows, is_near_floor),
        "at least 1.8 times as deep": share(rows, is_deep),
        "seconds to plan, median": f"{median(seconds):.1f}",
        "seconds to plan, 95th percentile": f"{seconds[int(0.95 * len(seconds))]:.1f}",
    }
    table = ["| over all models | |", "|---|---|"]
    return table + [f"| {name} | {value} |" for name, value in lines.items()]


def exceptions(rows: Rows) -> list[str]:
    """The models that miss a goal, with the tool's reasons."""
    checks: dict[str, Callable[[dict[str, str]], bool]] = {
        "student": is_verified,
        "0.20": lambda row: is_thin(row) or not is_large(row),
        "floor": is_near_floor,
        "depth": is_deep,
    }
    lines = [
        "| model | misses | params | floor | depth | what the tool says |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        missed = [name for name, holds in checks.items() if not holds(row)]
        if missed:
            reasons = "; ".join(filter(None, (row["frozen"], row["notice"]))).replace("|", "/")
            cells = (row["params_ratio"], row["floor_ratio"], row["depth_ratio"], reasons)
            lines.append(f"| {row['model']} | {', '.join(missed)} | {' | '.join(cells)} |")
    return lines


def families(rows: Rows, pruned: dict[str, dict[str, str]]) -> list[str]:
    """One line per model file of timm; the last column is Torch-Pruning on the smallest model."""
    lines = [
        "| file | models | students | <= 0.20 | <= 1.15 floor | depth >= 1.8 | median s"
        " | Torch-Pruning |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def file_of(row: dict[str, str]) -> str:
        return row["family"]

    for family, members in groupby(sorted(rows, key=file_of), key=file_of):
        own = list(members)
        large = [row for row in own if is_large(row)]
        cells = (
            *(sum(map(holds, own)) for holds in (is_verified,)),
            f"{sum(map(is_thin, large))}/{len(large)}",
            *(sum(map(holds, own)) for holds in (is_near_floor, is_deep)),
            f"{median(number(row, 'seconds') for row in own):.1f}",
            _pruning(pruned.get(family)),
        )
        lines.append(f"| {family} | {len(own)} | {' | '.join(map(str, cells))} |")
    return lines


def _pruning(row: dict[str, str] | None) -> str:
    if row is None:
        return ""
    return row["params_ratio"] if row["runs"] == "True" else "fails"


def yardstick(rows: Rows, pruned: Rows) -> list[str]:
    """Both tools on the models that both were run on."""
    ours = {row["model"]: row for row in rows}
    both = [(ours[row["model"]], row) for row in pruned if row["model"] in ours]
    large = [(own, other) for own, other in both if is_large(own)]

    def count(pairs: Iterable[tuple[bool, bool]]) -> str:
        own, other = zip(*pairs, strict=True)
        return f"{sum(own)} | {sum(other)}"

    runs = count((is_verified(own), other["runs"] == "True") for own, other in both)
    thin = count(
        (is_thin(own), other["runs"] == "True" and number(other, "params_ratio") <= 0.20)
        for own, other in large
    )
    return [
        "| | fitcompress | Torch-Pruning 1.6.1 |",
        "|---|---|---|",
        f"| run through, of {len(both)} | {runs} |",
        f"| at most 0.20 of the parameters, of {len(large)} above 3 M | {thin} |",
    ]


def steps(rows: Rows) -> list[str]:
    """Results with real weights."""
    columns = {
        "both lifted outputs equal to the model's": "difference",
        "a step of stage 1, all gradients finite": "hint_loss",
        "a step of stage 2, likewise": "distill_loss",
        "ONNX agrees at batches of 1 and 8": "onnx_difference",
    }
    lines = [f"| of {len(rows)} models | |", "|---|---|"]
    for what, column in columns.items():
        done = [row for row in rows if row[column]]
        most = f", largest difference {max(number(row, column) for row in done):.2g}"
        counts = share(rows, lambda row, column=column: bool(row[column]))
        lines.append(f"| {what} | {counts}{most if 'difference' in column else ''} |")
    lines.append(f"| loaded elsewhere | {share(rows, lambda row: row['loaded'] == 'True')} |")
    return [*lines, *(f"| {row['model']} | {row['notice']} |" for row in rows if row["notice"])]


def archives(rows: Rows) -> list[str]:
    """One line per kind of archive, and one per refused archive."""
    lines = [
        "| kind | could be made | opened | student | largest difference | both names known"
        " | block names known |",
        "|---|---|---|---|---|---|---|",
    ]

    def kind_of(row: dict[str, str]) -> str:
        return row["kind"]

    refused: list[str] = []
    for kind, members in groupby(sorted(rows, key=kind_of), key=kind_of):
        own = list(members)
        made = [row for row in own if row["saved"] == "True"]
        done = [row for row in made if row["planned"] == "True"]
        cells = (
            f"{len(made)}/{len(own)}",
            f"{sum(row['opened'] == 'True' for row in made)}/{len(made)}",
            f"{len(done)}/{len(made)}",
            f"{max(number(row, 'difference') for row in done):.2g}",
            f"{sum(number(row, 'pair_named') == 1 for row in done)}/{len(done)}",
            f"{sum(number(row, 'blocks_named') for row in done) / len(done):.0%}",
        )
        lines.append(f"| {kind} | {' | '.join(cells)} |")
        refused += [f"- {row['model']}, {kind}: {row['notice']}" for row in made if row not in done]
    return [*lines, "", *refused]


def torchvision(rows: Rows) -> list[str]:
    """One line per task of torchvision's models."""
    lines = ["| task | archives | opened | student | largest difference |", "|---|---|---|---|---|"]
    refused: list[str] = []

    def task_of(row: dict[str, str]) -> str:
        return row["task"]

    for task, members in groupby(sorted(rows, key=task_of), key=task_of):
        own = list(members)
        done = [row for row in own if is_verified(row)]
        opened = sum(row["opened"] == "True" for row in own)
        most = max(number(row, "difference") for row in done)
        lines.append(f"| {task} | {len(own)} | {opened} | {len(done)} | {most:.2g} |")
        missed = (row for row in own if row not in done)
        refused += [f"- {row['model']}, {row['way']}: {row['notice']}" for row in missed]
    return [*lines, "", *refused]


def plot(rows: Rows, path: Path) -> None:
    """Seconds against nodes."""
    done = [row for row in rows if is_verified(row)]
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    nodes, seconds = ([number(row, column) for row in done] for column in ("nodes", "seconds"))
    axes.plot(nodes, seconds, ".", markersize=3, color="#3b6ea5")
    slope = median(s / n for n, s in zip(nodes, seconds, strict=True))
    axes.axline((0, 0), slope=slope, color="#888888", linewidth=1)
    axes.annotate(f"{1000 * slope:.1f} ms a node (median)", (0.03, 0.93), xycoords="axes fraction")
    axes.set(xlabel="nodes of the teacher's graph", ylabel="seconds to plan, one core")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def fill(text: str, mark: str, lines: Iterable[str]) -> str:
    """The text with `lines` between the marks of this name."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
    content = "\n".join(["", *lines, "", ""])
    found, count = re.subn(pattern, lambda m: m[1] + content + m[2], text, flags=re.DOTALL)
    assert count == 1, f"README.md has no place for '{mark}'"
    return found


def main() -> None:
    rows, pruned = (read_rows(HERE / name) for name in ("timm.csv", "torch_pruning.csv"))
    rows.sort(key=lambda row: row["model"])
    by_family = {row["family"]: row for row in pruned}
    page = HERE / "README.md"
    text = page.read_text("utf-8")
    for mark, lines in {
        "totals": totals(rows),
        "yardstick": yardstick(rows, pruned),
        "exceptions": exceptions(rows),
        "families": families(rows, by_family),
        "steps": steps(read_rows(HERE / "steps.csv")),
        "archives": archives(read_rows(HERE / "archives.csv")),
        "torchvision": torchvision(read_rows(HERE / "torchvision.csv")),
    }.items():
        text = fill(text, mark, lines)
    page.write_text(text, "utf-8")
    plot(rows, HERE / "seconds.png")


if __name__ == "__main__":
    main()
