"""Times fitcompress's two stages beside other ways to distill, in turns, one process for each.

    python throughput.py --pairs resnet56 --batch-size 64 --rounds 9 --out cpu.csv
    python throughput.py --device cuda --batch-size 256 --out cuda.csv
    python throughput.py --summary cpu.csv

A round asks each contestant in turn for some steps, while the others wait; rates are compared round
by round, so that what else the machine does hits all alike. `contestants.py` has what they do.
"""

from __future__ import annotations

import argparse
import csv
import resource
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from contestants import SIDES, STEPS, Pair

FIELDS = ("pair", "contestant", "round", "images_per_s", "first_step_s", "peak_mb", "batch_size")
COMPARED = (
    ("fitcompress stage 1", "fitcompress stage 2"),
    ("fitcompress stage 1", "plain loop, stage 1"),
    ("fitcompress stage 1", "torchdistill, stage 1"),
    ("fitcompress stage 2", "plain loop, stage 2"),
    ("fitcompress stage 2", "timm, stage 2"),
    ("fitcompress stage 2", "torchdistill, stage 2"),
    ("fitcompress stage 2", "by hand, stage 2"),
    ("fitcompress stage 2, cached", "student alone"),
)
"""The rate of the first over that of the second."""


def work(name: str, pair: Pair, threads: int, line: Connection) -> None:
    """A contestant's process: makes its step, says how long the first took, then does as asked."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    started = time.perf_counter()
    try:
        step = STEPS[name](pair)
        step()
        _wait(pair.device)
    except Exception as error:
        line.send(f"{type(error).__name__}: {error}")
        return
    line.send(time.perf_counter() - started)
    while num_steps := line.recv():
        begun = time.perf_counter()
        for _ in range(num_steps):
            step()
        _wait(pair.device)
        line.send((time.perf_counter() - begun, _peak_mb(pair.device)))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_mb(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


@contextmanager
def started(
    names: Sequence[str], pair: Pair, threads: int
) -> Iterator[dict[str, tuple[Connection, float]]]:
    """The contestants' processes, each started when the one before has made its first step."""
    spawn, running, lines = get_context("spawn"), [], {}
    try:
        for name in names:
            line, far = spawn.Pipe()
            process = spawn.Process(target=work, args=(name, pair, threads, far))
            process.start()
            running.append(process)
            first = line.recv()
            if isinstance(first, str):
                print(f"{pair.name}: {name} does not run: {first}")
                continue
            print(f"{pair.name}: {name} made its first step after {first:.1f} s", flush=True)
            lines[name] = (line, first)
        yield lines
        for line, _ in lines.values():
            line.send(0)
        for process in running:
            process.join(10)
    finally:
        for process in running:
            process.kill()


def measure(names: Sequence[str], pair: Pair, given: argparse.Namespace) -> None:
    """Writes a row for each contestant and round, and prints what FLOPs let one expect."""
    cut, whole = replace(pair).costs()  # of a copy: what it keeps cannot be sent
    print(f"{pair.name}: by FLOPs stage 1 may be {whole.step_flops / cut.step_flops:.2f}x as fast")
    is_new = not given.out.is_file()
    with given.out.open("a", newline="") as file, started(names, pair, given.threads) as lines:
        writer = csv.DictWriter(file, FIELDS)
        if is_new:
            writer.writeheader()
        for number in range(given.rounds):
            for name, (line, first) in lines.items():
                line.send(given.steps)
                seconds, peak = line.recv()
                rate = given.steps * given.batch_size / seconds
                values = (pair.name, name, number, rate, first, peak, given.batch_size)
                writer.writerow(dict(zip(FIELDS, values, strict=True)))
            file.flush()


def summary(path: Path) -> list[str]:
    """The tables, in Markdown."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines: list[str] = []
    for pair in dict.fromkeys(row["pair"] for row in rows):
        rates: dict[str, list[float]] = {}
        facts: dict[str, dict[str, str]] = {}
        for row in rows:
            if row["pair"] == pair:
                rates.setdefault(row["contestant"], []).append(float(row["images_per_s"]))
                facts[row["contestant"]] = row
        size = next(iter(facts.values()))["batch_size"]
        lines += [f"### {pair}, batch {size}", ""]
        lines += ["| | images/s, median | peak MB | first step after s |", "|---|---|---|---|"]
        for name, own in rates.items():
            peak, first = (float(facts[name][key]) for key in ("peak_mb", "first_step_s"))
            lines.append(f"| {name} | {statistics.median(own):.1f} | {peak:.0f} | {first:.1f} |")
        lines += ["", "| ratio of rates | median | lowest to highest | n |", "|---|---|---|---|"]
        for one, other in COMPARED:
            if one in rates and other in rates:
                ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                median = f"{statistics.median(ratios):.2f}"
                lines.append(f"| {one} / {other} | {median} | {spread} | {len(ratios)} |")
        lines.append("")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--summary", type=Path, help="print the tables of a file and stop")
    parser.add_argument("--out", type=Path, default=Path("throughput.csv"))
    parser.add_argument("--pairs", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--contestants", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=4, help="of each contestant in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="of any contestant")
    parser.add_argument(
        "--teacher-layout", choices=("contiguous", "channels-last"), default="channels-last"
    )
    given = parser.parse_args()
    if given.summary:
        print("\n".join(summary(given.summary)))
        return
    for name in given.pairs:
        compiles = not given.no_compile
        pair = Pair(name, given.batch_size, given.device, compiles, given.teacher_layout)
        measure(given.contestants, pair, given)
    print("\n".join(summary(given.out)))


if __name__ == "__main__":
    main()
