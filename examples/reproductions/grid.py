"""The experiments that take a GPU: what each runs, what is there, what is missing.

    python grid.py                      # the table, with the missing cells and their GPU-hours
    python grid.py run first            # one seed of those worth running first
    python grid.py run depth table5     # whole studies
    python grid.py run first --try-out  # minutes on a CPU: one seed, one epoch, 512 images

Stop it at any time and run it again. Images are what torchvision downloads to `cifar10/` and
`cifar100/`, or image folders: `--cifar10 DIR`.

An experiment is one `fitcompress ablate`: a teacher, a student, some arms and seeds. The commands
are printed, and can be run by themselves.
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
from fitcompress.report.ablation import Ablation

SUSTAINED = 10e12
"""Floating-point operations a second that small networks at 32 pixels are taken to reach."""
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
    """What the command says of teacher, student and recipe."""
    flops: float
    """Of one image in a training step of distillation: the teacher's once, the student's thrice."""
    images: float
    """Seen by an arm with a seed."""
    is_first: bool = False
    own: str = ""
    """An arm of its own, as `--arm` takes it."""

    @property
    def all_arms(self) -> tuple[str, ...]:
        return (*self.arms, *filter(None, [self.own.partition(":")[0]]))

    def out(self, root: str) -> Path:
        return Path(root) / self.study / self.name

    def command(self, root: str, data: str, *, seeds: int, more: str = "") -> str:
        out = self.out(root)
        words = [self.words, f"--data {shlex.quote(data)}", f"--arms {','.join(self.arms)}"]
        words += [f"--arm {shlex.quote(self.own)}"] * bool(self.own)
        words += [f"--seeds {seeds}", more, f"--out {out}"]
        words += ["--resume"] * out.is_dir()
        return " ".join(["fitcompress ablate", *filter(None, words)])

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
        "--config fitnets_cifar.toml --teacher teachers/maxout"
        f" --student nets:{plain}_{start} --hint layers.1 --guided layers.{nets.GUIDED[name] - 1}"
    )
    flops = 2 * TEACHER_MACS + 6 * macs
    is_first = more.get("is_first", False)
    return Experiment(
        *(study, f"{name}-{start}", "cifar10", arms, 5, words, flops, FITNETS_IMAGES),
        is_first=is_first,
    )


BENCHMARK = (
    ("resnet32x4", "resnet8x4", 1.08e9, 0.18e9),
    ("wrn_40_2", "wrn_16_2", 0.33e9, 0.10e9),
    ("resnet110", "resnet20", 0.25e9, 0.04e9),
)
"""Teacher, student and their multiply-adds."""
MODERN = "modern: stage2.standardise_logits=true, stage2.tau=2, stage2.lambda_kd=9"


def experiments() -> Iterator[Experiment]:
    """All of them, in the order in which they are worth running."""
    three = ("bp", "kd", "ht")
    for name in ("fitnet1", "fitnet4"):
        yield fitnets("table5", name, "paper", three, is_first=True)
    for teacher, student, *macs in BENCHMARK:
        words = (
            f"--config cifar100.toml --teacher benchmark_nets:{teacher}"
            f" --teacher-weights teachers/{teacher}.pth --student benchmark_nets:{student}"
        )
        yield Experiment(
            study="cifar100",
            name=f"{teacher}-{student}",
            data="cifar100",
            arms=(*three, "kd-long"),
            seeds=3,
            words=words,
            flops=2 * macs[0] + 6 * macs[1],
            images=50_000 * 240,
            is_first=teacher == "resnet32x4",
            own=MODERN,
        )
    for name in ("fitnet2", "fitnet3"):
        yield fitnets("table5", name, "paper", three)
    yield from map(today, MACS)
    for name in (known for known in nets.WIDTHS if "m-" in known):
        for start in nets.STARTS:
            yield fitnets("depth", name, start, three)


def today(name: str) -> Experiment:
    """A FitNet's shape with batch norms, as one would train it now; from a teacher that is above
    95.5 %.
    """
    words = (
        f"--config today.toml --teacher teachers/wrn_28_10 --student nets:{name}_bn"
        f" --hint block2 --guided layers.{nets.GUIDED[name] - 1}"
    )
    flops = 2 * 5.2e9 + 6 * MACS[name]
    return Experiment("today", name, "cifar10", ("bp", "kd", "ht"), 5, words, flops, 50_000 * 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", nargs="?", choices=("table", "run"), default="table")
    parser.add_argument("studies", nargs="*", help="first, table5, cifar100, today, depth")
    parser.add_argument("--try-out", action="store_true", help="minutes on a CPU")
    for name in ("cifar10", "cifar100"):
        parser.add_argument(f"--{name}", default=f"torch/{name}?root={name}")
    given = parser.parse_args()
    chosen = [
        one
        for one in experiments()
        if one.study in given.studies or (one.is_first and "first" in given.studies)
    ]
    root, more = ("tried", TRY_OUT) if given.try_out else ("runs", "")
    for one in chosen if given.action == "run" else ():
        seeds = one.seeds if one.study in given.studies and not given.try_out else 1
        run(one.command(root, vars(given)[one.data], seeds=seeds, more=more))
    print(table(root))


def run(command: str) -> None:
    """Says it and runs it; one that fails ends all."""
    print(f"$ {command}", flush=True)
    words = [sys.executable, "-m", *shlex.split(command)]
    ended = subprocess.run(words, check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


def table(root: str = "runs") -> str:
    """A row for each experiment: every arm's accuracy, or the GPU-hours that its cells take."""
    arms = list(dict.fromkeys(arm for one in experiments() for arm in one.all_arms))
    lines = [f"| study | experiment | {' | '.join(arms)} |", "|---" * (2 + len(arms)) + "|"]
    for one in experiments():
        try:
            found = Ablation.load(one.out(root))
        except RunError:
            found = None
        cells = [cell(one, arm, found) if arm in one.all_arms else "" for arm in arms]
        lines.append(f"| {one.study} | {one.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(one: Experiment, arm: str, found: Ablation | None) -> str:
    """Mean accuracy of the seeds that are there, and what the others take."""
    known = found.accuracies(arm).values() if found and arm in found.arms else ()
    missing = one.seeds - len(known)
    open_words = [f"{missing} not run, {missing * one.gpu_hours:.0f} h"] * (missing > 0)
    mean = [f"{statistics.fmean(known):.2%} (n = {len(known)})"] if known else []
    return "; ".join([*mean, *open_words])


if __name__ == "__main__":
    main()
