"""Time fitcompress's two stages and other distillation tools in turns, one process for each.

    python throughput.py --pairs resnet56 --batch-size 64 --out cpu.csv
    python throughput.py --device cuda --batch-size 256 --out cuda.csv
    python throughput.py --summary cpu.csv

In a round, each contestant in turn makes some steps while the others wait. Rates are compared round
by round, so other load on the machine affects all alike. All processes are restarted a few times,
because some of a process's speed is chance. `contestants.py` defines the steps.
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

FIELDS = ("pair", "contestant", "batch_size", "start", "round", "images_per_s", "first_step_s")
FIELDS += ("peak_mb", "step_flops", "device")
COMPARED = (
    ("fitcompress stage 1", "fitcompress stage 1, uncut"),
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
    """Process of a contestant: build the step, send the time of the first, then serve requests."""
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
    """Start the contestants' processes one after another, each after the previous first step."""
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


def measure(names: Sequence[str], pair: Pair, given: argparse.Namespace, start: int) -> None:
    """Start the contestants and write one row per contestant and round."""
    flops = replace(pair).flops()  # of a copy: its cached properties cannot be pickled
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
                where = (pair.name, name, given.batch_size, start, number)
                values = (*where, rate, first, peak, flops[name], given.device)
                writer.writerow(dict(zip(FIELDS, values, strict=True)))
            file.flush()


def summary(path: Path) -> list[str]:
    """The tables in Markdown: median rates, and ratios round by round."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    lines: list[str] = []
    for pair, size in dict.fromkeys((row["pair"], row["batch_size"]) for row in rows):
        of: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            if (row["pair"], row["batch_size"]) == (pair, size):
                of.setdefault(row["contestant"], []).append(row)
        lines += [f"### {pair}, batch {size}, {rows[0]['device']}", "", *_table_of_rates(of), ""]
        lines += [*_table_of_ratios(of), ""]
    return lines


def _table_of_rates(of: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    yield "| | images/s | MFLOPs an image | peak MB | first step after s |"
    yield "|---|---|---|---|---|"
    for name, rows in of.items():
        rate, peak, first = (
            statistics.median(float(row[key]) for row in rows)
            for key in ("images_per_s", "peak_mb", "first_step_s")
        )
        flops = float(rows[0]["step_flops"]) / 1e6
        yield f"| {name} | {rate:.1f} | {flops:.0f} | {peak:.0f} | {first:.1f} |"


def _table_of_ratios(of: dict[str, list[dict[str, str]]]) -> Iterator[str]:
    yield "| ratio of rates | median | quartiles | n | by FLOPs |"
    yield "|---|---|---|---|---|"
    for one, other in COMPARED:
        if one not in of or other not in of:
            continue
        pairs = list(zip(of[one], of[other], strict=True))
        ratios = [float(a["images_per_s"]) / float(b["images_per_s"]) for a, b in pairs]
        flops = float(of[other][0]["step_flops"]) / float(of[one][0]["step_flops"])
        low, _, high = statistics.quantiles(ratios, n=4)
        median, num = statistics.median(ratios), len(ratios)
        yield f"| {one} / {other} | {median:.2f} | {low:.2f} to {high:.2f} | {num} | {flops:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--summary", type=Path, help="print the tables of a file and stop")
    parser.add_argument("--out", type=Path, default=Path("throughput.csv"))
    usual = ["resnet56", "resnet50", "deit_small_patch16_224"]
    parser.add_argument("--pairs", nargs="+", choices=SIDES, default=usual)
    parser.add_argument("--contestants", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--starts", type=int, default=3, help="starts of each contestant's process")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after each start")
    parser.add_argument("--steps", type=int, default=4, help="steps of each contestant per round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="do not compile any contestant")
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
        for start in range(given.starts):
            measure(given.contestants, pair, given, start)
    print("\n".join(summary(given.out)))


if __name__ == "__main__":
    main()
