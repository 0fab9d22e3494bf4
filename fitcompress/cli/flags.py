"""Flags: names on the command line for settings of the recipe, each declared once.

A flag takes its type and its default from the recipe; a command names the groups that it takes.
Every other setting is reached by `--config` and `--set`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "ADAPTING",
    "DATA",
    "FINE_TUNING",
    "HINTS",
    "MACHINE",
    "STUDENT",
    "TEACHER",
    "TRAINING",
    "Flag",
    "Group",
]


@dataclass(frozen=True)
class Flag:
    """A name on the command line for one or more settings of the recipe."""

    name: str
    settings: str
    """Dotted names in the recipe that it sets, with blanks between."""
    help: str
    constant: bool | None = None
    """For a flag without a value: what it sets."""
    parse: Callable[[str], str] = str
    """Turns what people write into what the recipe reads."""

    @property
    def argument(self) -> str:
        """The name as a Python argument.

        >>> Flag("--depth-mult", "student.depth_mult", "").argument
        'depth_mult'
        """
        return self.name.removeprefix("--").replace("-", "_")


@dataclass(frozen=True)
class Group:
    """Flags that stand together in the help."""

    panel: str
    flags: tuple[Flag, ...]

    def without(self, *names: str) -> Group:
        """For a command that decides these itself."""
        return Group(self.panel, tuple(flag for flag in self.flags if flag.name not in names))


def _input_size(text: str) -> str:
    """An image size as channels, height, width: "224" is square RGB, "64,48" is RGB.

    >>> _input_size("224")
    '3,224,224'
    """
    sizes = text.replace("x", ",").split(",")
    return ",".join({1: ["3", *sizes, *sizes], 2: ["3", *sizes]}.get(len(sizes), sizes))


TEACHER = Group(
    "Teacher",
    (
        Flag(
            "--teacher-weights",
            "teacher.weights",
            "Weights for a timm name or a factory: .safetensors or a state dict (.pth, .pt, .bin).",
        ),
        Flag(
            "--no-pretrained",
            "teacher.pretrained",
            "Random weights instead of the pretrained ones.",
            constant=False,
        ),
        Flag(
            "--num-classes",
            "teacher.num_classes",
            "Classes of the teacher, where its configuration does not say.",
        ),
        Flag(
            "--input-size",
            "teacher.input_size",
            "Images the teacher takes: 224, or 64,48 (height,width), or 1,28,28.",
            parse=_input_size,
        ),
        Flag(
            "--input",
            "teacher.inputs",
            "What it takes where that is no image: 1x16000, or 128:int64; once for each input.",
        ),
        Flag("--mean", "teacher.mean", "Mean per channel of its normalisation: 0.485,0.456,0.406."),
        Flag("--std", "teacher.std", "Standard deviation per channel: 0.229,0.224,0.225."),
        Flag(
            "--class-map",
            "teacher.class_map",
            "File with one class name a line, in the order of the teacher's outputs.",
        ),
    ),
)

ADAPTING = Group(
    "Teacher",
    (
        Flag(
            "--teacher-epochs",
            "teacher.epochs",
            "Epochs of adapting a copy of the teacher, where its classes are not the data's.",
        ),
        Flag(
            "--no-adapt",
            "teacher.adapt",
            "Stop instead, where the teacher's classes are not the data's.",
            constant=False,
        ),
    ),
)

STUDENT = Group(
    "Student",
    (
        Flag(
            "--depth-mult",
            "student.depth_mult",
            "Layers on the longest path, times this; 2, unless a target needs fewer.",
        ),
        Flag(
            "--width-mult",
            "student.width_mult",
            "Channels, heads and groups, times this; 0.3, unless a target says it.",
        ),
        *(
            Flag(f"--target-{kind}", f"student.target_{kind}", text)
            for kind, text in (
                ("params", "Instead of a width: at most so many parameters (10%, 2M)."),
                ("flops", "The same of floating-point operations for one sample (10%, 300M)."),
                ("macs", "The same of multiply-adds, half as many."),
                ("size", "The same of bytes, as float32 weights (10%, 2MB)."),
                ("latency", "The same of time for one sample on this machine (50%, 5ms)."),
            )
        ),
        Flag(
            "--init",
            "student.init",
            "Weights the student starts from: random, or inherited from the teacher.",
        ),
        Flag(
            "--student",
            "student.source",
            "A student of your own instead: a timm name (random weights) or a file (its own).",
        ),
    ),
)

HINTS = Group(
    "Hints",
    (
        Flag("--hint", "hints.hint", "Teacher layer to match; repeat it for more pairs."),
        Flag("--guided", "hints.guided", "Student layer that is guided by the hint."),
        Flag("--hints", "hints.num_pairs", "How many pairs to choose."),
    ),
)

_SHARD = Flag(
    "--shard",
    "run.shard",
    "Of several processes each keeps only a part of the networks (FSDP2), for large ones.",
    constant=True,
)
_DATA = Flag(
    "--data",
    "data.source",
    "Folder of images, a timm data set (hfds/, wds/, torch/, tfds/), or builtin.",
)
_LIMIT = Flag("--limit", "data.limit", "At most so many training images (a stratified sample).")
_BATCH_SIZE = Flag("--batch-size", "data.batch_size", "Images that a process takes at once.")
_WORKERS = Flag("--workers", "data.num_workers", "Processes that decode images; 0 decodes inline.")
_AUTO_BATCH = Flag(
    "--auto-batch",
    "run.auto_batch",
    "Where memory runs out, halve the batch and average the gradients of twice as many.",
    constant=True,
)


DATA = Group("Data", (_DATA, _LIMIT, _BATCH_SIZE, _WORKERS))

TRAINING = Group(
    "Training",
    (
        Flag("--epochs", "stage2.epochs", "Epochs of stage 2, the distillation."),
        Flag(
            "--hint-epochs",
            "stage1.epochs",
            "Epochs of stage 1, the hint training; without it none where the student inherits its"
            " weights, unless a hint is named, and else some.",
        ),
        Flag(
            "--lr",
            "stage1.optim.lr stage2.optim.lr",
            "Learning rate of both stages; else 0.002, and 0.0003 for hints where weights are"
            " inherited.",
        ),
        Flag(
            "--baseline",
            "run.baseline",
            "Also train the same student without a teacher, for the same steps.",
            constant=True,
        ),
        Flag(
            "--views",
            "data.views",
            "Augmented views of each image, in turns; without it each epoch has new ones.",
        ),
        Flag(
            "--cache-teacher",
            "run.cache_teacher",
            "Where the teacher's answers to views that come again are kept: auto, off, a folder.",
        ),
        _AUTO_BATCH,
        _SHARD,
        Flag(
            "--log",
            "run.log",
            "Tracker to log losses and scores to as they come.",
        ),
    ),
)

FINE_TUNING = Group(
    "Training",
    (
        Flag("--epochs", "teacher.epochs", "Epochs of training."),
        Flag("--lr", "teacher.lr", "Learning rate."),
        _AUTO_BATCH,
        _SHARD,
    ),
)

MACHINE = Group(
    "Machine",
    (
        Flag("--seed", "run.seed", "All randomness follows from it."),
        Flag("--device", "run.device", "auto, cpu, cuda, cuda:1 or mps."),
        Flag("--threads", "run.threads", "Of the processor; without it, the cores at hand."),
        Flag(
            "--precision",
            "run.precision",
            "auto is bf16 on CUDA and on processors with AMX, else fp32.",
        ),
        Flag(
            "--teacher-precision",
            "run.teacher_precision",
            "Of the teacher as it teaches; auto is the fastest that says the same, measured.",
        ),
        Flag(
            "--teacher-layout",
            "run.teacher_layout",
            "How its maps lie in memory meanwhile; auto is the faster one, measured.",
        ),
        Flag(
            "--layout",
            "run.layout",
            "The same of what is trained; auto is channels-last, except on MPS.",
        ),
        Flag(
            "--compile",
            "run.compile",
            "Compile the networks (torch.compile); auto does when training takes over ten minutes"
            " and the student's steps are measured to be faster for it.",
        ),
    ),
)
