"""Run the experiments that need a GPU, and list finished and missing ones.

    python grid.py                      # the table, with missing cells and their GPU-hours
    python grid.py run first            # one seed of the most interesting experiments
    python grid.py run depth table5     # whole studies
    python grid.py run first --try-out  # minutes on a CPU: one seed, one epoch, 512 images

It can be stopped at any time and run again; a failed run does not stop the others. Images are
torchvision's downloads in `cifar10/` and `cifar100/`, or image folders: `--cifar10 DIR`. GPU-hours
are estimates at 10 TFLOP/s, without training the teachers.

An experiment is one `fitcompress ablate`: a teacher, a student, arms and seeds. The commands are
printed and can be run separately.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nets

from fitcompress.errors import RunError
from fitcompress.report.ablation_report import Ablation

SUSTAINED = 10e12
"""Assumed floating-point operations per second of small networks at 32 pixels."""
TRY_OUT = "--limit 512 --epochs 1 --hint-epochs 1 --device cpu"


@dataclass(frozen=True)
class Experiment:
    """One call of `fitcompress ablate`."""

    study: str
    name: str
    data: str
    """"cifar10" or "cifar100"."""
    arms: tuple[str, ...]
    seeds: int
    words: str
    """The part of the command that names teacher, student and recipe."""
    macs: tuple[float, float]
    """Multiply-adds of teacher and student for one image."""
    epochs: tuple[int, int]
    """Maximum epochs of stages 1 and 2."""
    published: str = ""
    """Top-1 in percent."""
    is_first: bool = False
    own: tuple[str, ...] = ()
    """Custom arms, as passed to `--arm`."""

    @property
    def all_arms(self) -> tuple[str, ...]:
        return (*self.arms, *(arm.partition(":")[0] for arm in self.own))

    def out(self, root: str) -> Path:
        return Path(root) / self.study / self.name

    def command(self, root: str, data: str, *, seeds: int, more: str = "") -> str:
        out = self.out(root)
        words = [self.words, f"--data {shlex.quote(data)}", f"--arms {','.join(self.arms)}"]
        words += [f"--arm {shlex.quote(arm)}" for arm in self.own]
        words += [f"--seeds {seeds}", more, f"--out {out}"]
        words += ["--resume"] * out.is_dir()
        return " ".join(["fitcompress ablate", *filter(None, words)])

    def gpu_hours(self, arm: str) -> float:
        """Estimate for one seed. A step runs the teacher once and costs three forward passes of the
        student; hints cost half of both; `bp` runs no teacher.
        """
        teacher, student = self.macs
        hints, second = self.epochs
        whole = teacher * (arm != "bp") + 3 * student
        if arm == "kd-long":
            second += hints
        in_hints = 0 if arm in WITHOUT_HINTS else hints * whole / 2
        return 2 * NUM_IMAGES * (in_hints + second * whole) / SUSTAINED / 3600


NUM_IMAGES = 50_000
WITHOUT_HINTS = ("bp", "kd", "kd-long", "lskd")
TABLE5 = {"fitnet1": 89.01, "fitnet2": 91.06, "fitnet3": 91.10, "fitnet4": 91.61}
"""Accuracy of FitNets' students; the teacher has 90.18."""
PUBLISHED = {name: f"ht {accuracy:.2f}" for name, accuracy in TABLE5.items()} | {
    "30m-11": "ht 3.40 above 5 layers",
    "107m-7": "without hints 89.45, ht 90.1",
    "107m-11": "ht 4.11 above 5 layers",
}
"""FitNets, Table 5 and section 4.1."""
MACS = {"fitnet1": 30e6, "fitnet2": 108e6, "fitnet3": 324e6, "fitnet4": 382e6}
TEACHER_MACS = 725e6
"""Multiply-adds of one image. Source: FitNets, Table 5, recounted."""


def fitnets(study: str, name: str, start: str, *, is_first: bool = False) -> Experiment:
    """A FitNet against the maxout teacher."""
    plain = name if name.startswith("fitnet") else f"fitnet_{name.replace('-', '_')}"
    macs = MACS.get(name, 107e6 if name.startswith("107m") else 30e6)
    words = (
        "--config fitnets_cifar.toml --teacher teachers/maxout"
        f" --student nets:{plain}_{start} --hint layers.1 --guided layers.{nets.GUIDED[name] - 1}"
    )
    return Experiment(
        study=study,
        name=f"{name}-{start}",
        data="cifar10",
        arms=THREE,
        seeds=5,
        words=words,
        macs=(TEACHER_MACS, macs),
        epochs=(100, 500),
        published=PUBLISHED.get(name, "") if start == "paper" else "",
        is_first=is_first,
    )


THREE = ("bp", "kd", "ht")
BENCHMARK = (
    ("resnet32x4", "resnet8x4", (1.08e9, 0.18e9), "--hint layer2.4 --guided layer2.0"),
    ("wrn_40_2", "wrn_16_2", (0.33e9, 0.10e9), "--hint block2.layer.5 --guided block2.layer.1"),
    ("resnet110", "resnet20", (0.25e9, 0.04e9), "--hint layer2.17 --guided layer2.2"),
)
"""Teacher, student, their multiply-adds, and the ends of their second stages, which are paired."""
ROWS = {
    "resnet32x4": (72.50, 73.33, 73.50, 76.62),
    "wrn_40_2": (73.26, 74.92, 73.58, 76.11),
    "resnet110": (69.06, 70.67, 68.99, 71.48),
}
"""Published accuracy by teacher: bp, kd, the row named FitNet (hints within one stage, no soft
targets), kd with standardized logits.
"""
LSKD = "lskd: stage1.epochs=0, stage2.standardise_logits=true, stage2.tau=2, stage2.lambda_kd=9"
MODERN = "modern: " + ", ".join(
    f"{stage}.optim.{setting}"
    for stage in ("stage1", "stage2")
    for setting in (
        *("optimizer=adamw", "lr=0.002", "weight_decay=0.05"),
        *("schedule=cosine", "warmup_epochs=0.5", "grad_clip=1"),
    )
)
"""The preset's optimizer settings; hints and soft targets are those of ht."""


def experiments() -> Iterator[Experiment]:
    """All experiments, the most interesting first."""
    for name in ("fitnet1", "fitnet4"):
        yield fitnets("table5", name, "paper", is_first=True)
    for teacher, student, macs, pair in BENCHMARK:
        words = (
            f"--config cifar100.toml --teacher benchmark_nets:{teacher}"
            f" --teacher-weights teachers/{teacher}.pth --student benchmark_nets:{student} {pair}"
        )
        bp, kd, fitnet, lskd = ROWS[teacher]
        yield Experiment(
            study="cifar100",
            name=f"{teacher}-{student}",
            data="cifar100",
            arms=(*THREE, "kd-long"),
            seeds=3,
            words=words,
            macs=macs,
            epochs=(40, 240),
            published=f"bp {bp:.2f}, kd {kd:.2f}, FitNet {fitnet:.2f}, lskd {lskd:.2f}",
            is_first=teacher == "resnet32x4",
            own=(LSKD, MODERN),
        )
    for name in ("fitnet2", "fitnet3"):
        yield fitnets("table5", name, "paper")
    yield from map(today, MACS)
    for name in (known for known in nets.WIDTHS if "m-" in known):
        for start in nets.STARTS:
            yield fitnets("depth", name, start)


def today(name: str) -> Experiment:
    """A FitNet's shape with batch norms and today's training, from a teacher that should be above
    95.5 %.
    """
    words = (
        f"--config today.toml --teacher teachers/wrn_28_10 --student nets:{name}_bn"
        f" --hint block3 --guided layers.{nets.GUIDED[name] - 1}"
    )
    return Experiment(
        study="today",
        name=name,
        data="cifar10",
        arms=THREE,
        seeds=5,
        words=words,
        macs=(5.2e9, MACS[name]),
        epochs=(30, 200),
        published=f"in 2015 {TABLE5[name]:.2f}",
    )


STUDIES = ("first", "table5", "cifar100", "today", "depth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=("table", "run"), default="table")
    parser.add_argument("studies", nargs="*", help=", ".join(STUDIES))
    parser.add_argument("--try-out", action="store_true", help="minutes on a CPU")
    for name in ("cifar10", "cifar100"):
        parser.add_argument(f"--{name}", default=f"torch/{name}?root={name}")
    given = parser.parse_args()
    unknown = set(given.studies) - set(STUDIES)
    if unknown or (given.action == "run" and not given.studies):
        parser.error(f"{', '.join(sorted(unknown)) or 'run'}: say which of {', '.join(STUDIES)}")
    chosen = [
        one
        for one in experiments()
        if one.study in given.studies or (one.is_first and "first" in given.studies)
    ]
    root, more = ("tried", TRY_OUT) if given.try_out else ("runs", "")
    code = 0
    for one in chosen if given.action == "run" else ():
        seeds = one.seeds if one.study in given.studies and not given.try_out else 1
        code = run(one.command(root, vars(given)[one.data], seeds=seeds, more=more)) or code
    print(table(root))
    sys.exit(code)


INTERRUPTED = 130


def run(command: str) -> int:
    """Print and run the command and return its exit code; an interruption ends the script."""
    print(f"$ {command}", flush=True)
    code = subprocess.run([sys.executable, "-m", *shlex.split(command)], check=False).returncode
    if code == INTERRUPTED:
        sys.exit(code)
    return code


def table(root: str = "runs") -> str:
    """One row per experiment: each arm's accuracy or the GPU-hours it takes, and the published
    numbers.
    """
    arms = list(dict.fromkeys(arm for one in experiments() for arm in one.all_arms))
    lines = [f"| study | experiment | {' | '.join(arms)} | published |"]
    lines.append("|---" * (3 + len(arms)) + "|")
    for one in experiments():
        try:
            found = Ablation.load(one.out(root))
        except RunError:
            found = None
        cells = [cell(one, arm, found) if arm in one.all_arms else "" for arm in arms]
        lines.append(f"| {one.study} | {one.name} | {' | '.join(cells)} | {one.published} |")
    return "\n".join(lines)


def cell(one: Experiment, arm: str, found: Ablation | None) -> str:
    """Mean accuracy of finished seeds, number of failed ones, and GPU-hours of the others."""
    known = found.accuracies(arm).values() if found and arm in found.arms else ()
    failed = sum(name == arm for name, _ in found.failed) if found else 0
    missing = one.seeds - len(known) - failed
    told = [f"{statistics.fmean(known):.2%} (n = {len(known)})"] if known else []
    told += [f"{failed} failed"] * (failed > 0)
    told += [f"{missing} not run, {missing * one.gpu_hours(arm):.1f} h"] * (missing > 0)
    return "; ".join(told)


if __name__ == "__main__":
    main()
