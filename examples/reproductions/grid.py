"""The experiments that take a GPU: what each runs, what is there, what is missing.

    python grid.py                      # the table, with the missing cells and their GPU-hours
    python grid.py run first            # the cells to run first; stop it at any time, run it again
    python grid.py run depth table5     # whole studies
    python grid.py run first --try-out  # minutes on a CPU: one seed, one epoch, 512 images

An experiment is one `fitcompress ablate`: a teacher, a student, some arms and seeds. The commands
are printed, and can be run by themselves.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nets

from fitcompress.errors import RunError
from fitcompress.report.ablation import Ablation

CIFAR_10, CIFAR_100 = "torch/cifar10?root=cifar10", "torch/cifar100?root=cifar100"
SUSTAINED = 10e12
"""Floating-point operations a second that small networks at 32 pixels are taken to reach."""
TRY_OUT = "--limit 512 --seeds 1 --epochs 1 --device cpu --threads 1"


@dataclass(frozen=True)
class Experiment:
    """One call of `fitcompress ablate`."""

    study: str
    name: str
    arms: tuple[str, ...]
    seeds: int
    words: str
    """What the command says of teacher, student and recipe."""
    flops: float
    """Of one image in a training step of distillation: the teacher's once, the student's thrice."""
    images: float
    """Seen by an arm with a seed."""
    is_first: bool = False

    @property
    def out(self) -> Path:
        return Path("runs") / self.study / self.name

    def command(self, more: str = "") -> str:
        arms = f"--arms {','.join(self.arms)} --seeds {self.seeds}"
        go_on = "--resume " if (self.out / "ablation.json").is_file() else ""
        return f"fitcompress ablate {self.words} {arms} {go_on}--out {self.out} {more}".strip()

    @property
    def gpu_hours(self) -> float:
        """Of one arm with one seed."""
        return self.images * self.flops / SUSTAINED / 3600


FITNETS_IMAGES = 50_000 * 600
"""100 epochs of hints and 500 of distillation, if nothing ends them earlier."""
MACS = {"fitnet1": 30e6, "fitnet2": 108e6, "fitnet3": 324e6, "fitnet4": 382e6}
TEACHER_MACS = 725e6
"""Multiply-adds of one image. Source: FitNets, Table 5, recounted."""


def fitnets(study: str, name: str, start: str, arms: tuple[str, ...], **more: bool) -> Experiment:
    """A FitNet against the maxout teacher."""
    plain = name if name.startswith("fitnet") else f"fitnet_{name.replace('-', '_')}"
    macs = MACS.get(name, 107e6 if name.startswith("107m") else 30e6)
    words = (
        f"--config fitnets_cifar.toml --teacher nets:fitnets_cifar_teacher"
        f" --teacher-weights teachers/maxout/model.safetensors"
        f" --student nets:{plain}_{start} --hint layers.1 --guided layers.{nets.GUIDED[name] - 1}"
        f" --data '{CIFAR_10}'"
    )
    flops = 2 * TEACHER_MACS + 6 * macs
    is_first = more.get("is_first", False)
    return Experiment(
        study, f"{name}-{start}", arms, 5, words, flops, FITNETS_IMAGES, is_first=is_first
    )


BENCHMARK = (
    ("resnet32x4", "resnet8x4", 1.08e9, 0.18e9),
    ("wrn_40_2", "wrn_16_2", 0.33e9, 0.10e9),
    ("resnet110", "resnet20", 0.25e9, 0.04e9),
)
"""Teacher, student and their multiply-adds."""


def experiments() -> Iterator[Experiment]:
    """All of them, in the order in which they are worth running."""
    three = ("bp", "kd", "ht")
    for name in ("fitnet1", "fitnet4"):
        yield fitnets("table5", name, "paper", three, is_first=True)
    for teacher, student, *macs in BENCHMARK:
        words = (
            f"--config cifar100.toml --teacher benchmark_nets:{teacher}"
            f" --teacher-weights teachers/{teacher}.pth --student benchmark_nets:{student}"
            f" --arm 'modern: stage2.standardise_logits=true, stage2.tau=2, stage2.lambda_kd=9'"
            f" --data '{CIFAR_100}'"
        )
        yield Experiment(
            "cifar100",
            f"{teacher}-{student}",
            (*three, "kd-long"),
            3,
            words,
            2 * macs[0] + 6 * macs[1],
            50_000 * 240,
            is_first=teacher == "resnet32x4",
        )
    for name in ("fitnet2", "fitnet3"):
        yield fitnets("table5", name, "paper", three)
    for name in (known for known in nets.WIDTHS if "m-" in known):
        for start in nets.STARTS:
            yield fitnets("depth", name, start, three)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=("table", "run"), default="table")
    parser.add_argument("studies", nargs="*", help="first, table5, depth, cifar100")
    parser.add_argument("--try-out", action="store_true", help="minutes on a CPU")
    given = parser.parse_args()
    chosen = [
        one
        for one in experiments()
        if one.study in given.studies or (one.is_first and "first" in given.studies)
    ]
    if given.action == "run":
        for experiment in chosen:
            run(experiment, TRY_OUT if given.try_out else "")
    print(table())


def run(experiment: Experiment, more: str) -> None:
    """Says the command and runs it; one that fails ends all."""
    command = experiment.command(more)
    print(f"$ {command}", flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    ended = subprocess.run(words, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def table() -> str:
    """A row for each experiment: every arm's mean and deviation, or what it would take."""
    lines = ["| study | experiment | arms | missing | GPU-hours |", "|---|---|---|---|---|"]
    for one in experiments():
        found = measured(one)
        count = sum(len(values) for values in found.values())
        missing = len(one.arms) * one.seeds - count
        said = "; ".join(f"{arm} {words(list(found[arm].values()))}" for arm in found if found[arm])
        hours = f"{missing * one.gpu_hours:.0f}" if missing else ""
        lines.append(f"| {one.study} | {one.name} | {said or 'not run'} | {missing} | {hours} |")
    return "\n".join(lines)


def measured(experiment: Experiment) -> dict[str, dict[int, float]]:
    """Accuracies by arm and seed."""
    try:
        ablation = Ablation.load(experiment.out)
    except RunError:
        return {}
    return {arm: ablation.accuracies(arm) for arm in ablation.arms}


def words(accuracies: list[float]) -> str:
    mean = sum(accuracies) / len(accuracies)
    return f"{100 * mean:.2f} % (n = {len(accuracies)})"


if __name__ == "__main__":
    main()
