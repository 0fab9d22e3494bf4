"""Time a training step against batch size, teacher and number of processes.

    python scaling.py --out scaling.csv
    python scaling.py --plot scaling.csv scaling.png     # needs matplotlib

Networks are not compiled. Processes have one thread each and train together with gloo.
"""

from __future__ import annotations

import argparse
import csv
import os
import socket
import statistics
import time
import warnings
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from contestants import SIDES, STEPS, Pair
from torch import distributed

FIELDS = ("varied", "value", "contestant", "processes", "threads", "batch_size", "images_per_s")
TIMED = ("fitcompress stage 1", "fitcompress stage 2", "fitcompress stage 2, cached")
BATCH_SIZES = (8, 32, 128)
TEACHERS = ("resnet20", "resnet56", "resnet110")
ROUNDS, STEPS_IN_ROUND = 5, 4


def work(name: str, pair: Pair, threads: int, rank: int, results: SimpleQueue) -> None:
    """One process of a job; the first sends the images per second of all processes."""
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(threads)
    step = STEPS[name](pair)
    step()
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(STEPS_IN_ROUND):
            step()
        seconds = time.perf_counter() - begun
        num = int(os.environ["WORLD_SIZE"])
        rates.append(num * pair.batch_size * STEPS_IN_ROUND / seconds)
    if rank == 0:
        results.put(rates)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rates(name: str, pair: Pair, threads: int, num: int) -> list[float]:
    """Images per second in each round, of `num` processes together."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    spawn = get_context("spawn")
    results = spawn.SimpleQueue()
    jobs = [
        spawn.Process(target=work, args=(name, pair, threads, rank, results)) for rank in range(num)
    ]
    for job in jobs:
        job.start()
    found = results.get()
    for job in jobs:
        job.join()
    return found


def measure(out: Path, device: str) -> None:
    """Write one row per round."""
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        whole = torch.get_num_threads()
        jobs = [("batch size", size, "resnet56", size, 1, whole) for size in BATCH_SIZES]
        jobs += [("teacher", name, name, 64, 1, whole) for name in TEACHERS]
        jobs += [("processes", num, "resnet56", 64 // num, num, 1) for num in (1, 2)]
        for varied, value, teacher, size, num, threads in jobs:
            for name in TIMED:
                pair = Pair(teacher, size, device, compiles=False)
                print(f"{varied} {value}: {name}", flush=True)
                for rate in rates(name, pair, threads, num):
                    values = (varied, value, name, num, threads, size, rate)
                    writer.writerow(dict(zip(FIELDS, values, strict=True)))
                file.flush()


def plot(path: Path, picture: Path) -> None:
    """Plot milliseconds per image: medians with the full range of the rounds."""
    import matplotlib.pyplot as plt

    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    varied = list(dict.fromkeys(row["varied"] for row in rows))
    figure, axes = plt.subplots(1, len(varied), figsize=(11, 3.4), layout="constrained")
    for plane, what in zip(axes, varied, strict=True):
        for name in TIMED:
            of: dict[str, list[float]] = {}
            for row in rows:
                if (row["varied"], row["contestant"]) == (what, name):
                    of.setdefault(row["value"], []).append(1000 / float(row["images_per_s"]))
            medians = [statistics.median(times) for times in of.values()]
            reach = [
                [m - min(times) for m, times in zip(medians, of.values(), strict=True)],
                [max(times) - m for m, times in zip(medians, of.values(), strict=True)],
            ]
            plane.errorbar(list(of), medians, reach, marker="o", capsize=3, label=name)
        plane.set_xlabel(what)
        plane.set_ylim(bottom=0)
    axes[0].set_ylabel("ms per image")
    axes[0].legend(frameon=False, fontsize="small")
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scaling.csv"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", nargs=2, type=Path, metavar=("CSV", "PNG"))
    given = parser.parse_args()
    assert set(TEACHERS) <= set(SIDES)
    if given.plot:
        plot(*given.plot)
    else:
        measure(given.out, given.device)


if __name__ == "__main__":
    main()
