"""Flags: command-line names for settings of the recipe and for export formats, each declared once.

A flag takes its type, choices and default from the recipe; commands name the groups they accept.
All other settings are reached with `--config` and `--set`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "ADAPTING",
    "DATA",
    "FINE_TUNING",
    "FORMATS",
    "HINTS",
    "MACHINE",
    "STUDENT",
    "TEACHER",
    "TRAINING",
    "Flag",
    "Group",
    "with_default",
]


@dataclass(frozen=True)
class Flag:
    """A command-line flag for one or more settings of the recipe, or for an export format."""

    name: str
    target: str
    """Dotted names of its settings, separated by blanks; for `FORMATS`, the name of the format."""
    help: str
    default: str = ""
    """Description of the default, if the recipe leaves it open."""
    constant: bool | None = None
    """Value that a flag without an argument sets."""
    parse: Callable[[str], str] = str
    """Converts an argument to what the recipe reads."""

    @property
    def argument(self) -> str:
        """The name as a Python argument.

        >>> Flag("--depth-mult", "student.depth_mult", "").argument
        'depth_mult'
        """
        return self.name.removeprefix("--").replace("-", "_")

    @property
    def first_setting(self) -> str:
        """The setting that decides type and default."""
        return self.target.split()[0]


@dataclass(frozen=True)
class Group:
    """Flags of one panel of the help."""

    panel: str
    flags: tuple[Flag, ...]

    def without(self, *names: str) -> Group:
        """The group without flags that a command sets itself."""
        return Group(self.panel, tuple(flag for flag in self.flags if flag.name not in names))


def with_default(text: str, default: object) -> str:
    """A help text with its default value, in Typer's style and markup.

    >>> with_default("Batch size.", 64)
    'Batch size. [dim]\\\\[default: 64][/dim]'
    """
    return f"{text} [dim]\\[default: {default}][/dim]"


def _input_size(text: str) -> str:
    """An image size as channels, height, width: "224" is square RGB, "64,48" is RGB.

    >>> _input_size("224")
    '3,224,224'
    """
    sizes = text.replace("x", ",").split(",")
    return ",".join({1: ["3", *sizes, *sizes], 2: ["3", *sizes]}.get(len(sizes), sizes))


_OF_MODEL, _BY_DATA, _CHOSEN = "from the model", "depends on the number of images", "automatic"

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
            "Start a timm model from random weights, not pretrained ones.",
            constant=False,
        ),
        Flag(
            "--num-classes",
            "teacher.num_classes",
            "Number of classes of the teacher.",
            _OF_MODEL,
        ),
        Flag(
            "--input-size",
            "teacher.input_size",
            "Image size of the teacher: 224, or 64,48 (height,width), or 1,28,28"
            " (channels,height,width).",
            _OF_MODEL,
            parse=_input_size,
        ),
        Flag(
            "--input",
            "teacher.inputs",
            "Shape (and dtype) of an input that is not an image, without the batch: 1x16000, or"
            " 128:int64. Repeat for several inputs.",
        ),
        Flag(
            "--mean",
            "teacher.mean",
            "Mean of each channel in the teacher's normalization, such as 0.485,0.456,0.406.",
            _OF_MODEL,
        ),
        Flag(
            "--std",
            "teacher.std",
            "Standard deviation of each channel in the teacher's normalization, such as"
            " 0.229,0.224,0.225.",
            _OF_MODEL,
        ),
        Flag(
            "--class-map",
            "teacher.class_map",
            "File of class names, one per line, in the order of the teacher's outputs.",
            _OF_MODEL,
        ),
    ),
)

ADAPTING = Group(
    "Teacher",
    (
        Flag(
            "--teacher-epochs",
            "teacher.epochs",
            "Epochs to fine-tune a copy of the teacher, if its classes differ from the data's.",
            _BY_DATA,
        ),
        Flag(
            "--no-adapt",
            "teacher.adapt",
            "Fail if the teacher's classes differ from the data's, instead of fine-tuning a copy.",
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
            "Depth multiplier: number of layers on the longest path, relative to the teacher.",
            "2, or less if a --target-* flag requires it",
        ),
        Flag(
            "--width-mult",
            "student.width_mult",
            "Width multiplier for channels, heads and groups.",
            "0.3, or the largest that the --target-* flags allow",
        ),
        Flag(
            "--target-params",
            "student.target_params",
            "Maximum number of parameters: an amount such as 2M, or a share of the teacher's such"
            " as 10%.",
        ),
        Flag(
            "--target-flops",
            "student.target_flops",
            "Maximum FLOPs per sample: an amount such as 300M, or a share such as 10%.",
        ),
        Flag(
            "--target-macs",
            "student.target_macs",
            "Maximum multiply-adds per sample (FLOPs / 2): an amount such as 150M, or a share such"
            " as 10%.",
        ),
        Flag(
            "--target-size",
            "student.target_size",
            "Maximum size of the weights in float32: an amount such as 2MB, or a share such as"
            " 10%.",
        ),
        Flag(
            "--target-latency",
            "student.target_latency",
            "Maximum latency of one sample on this machine: a time such as 5ms, or a share such as"
            " 50%.",
        ),
        Flag(
            "--init",
            "student.init",
            "Initial weights of the student: random, or inherited from the teacher.",
        ),
        Flag(
            "--student",
            "student.source",
            "Use a student of your own instead of a planned one: a timm name (random weights) or a"
            " file (with its weights).",
        ),
    ),
)

HINTS = Group(
    "Hints",
    (
        Flag(
            "--hint",
            "hints.hint",
            "Teacher layer whose output the student learns to match. Repeat for more pairs.",
            _CHOSEN,
        ),
        Flag(
            "--guided",
            "hints.guided",
            "Student layer that learns to match the hint. Repeat for more pairs.",
            _CHOSEN,
        ),
        Flag("--hints", "hints.num_pairs", "Number of layer pairs to choose, if none are named."),
    ),
)

_SHARD = Flag(
    "--shard",
    "run.shard",
    "Shard the networks across processes (FSDP2), for networks too large for one device.",
    constant=True,
)
_AUTO_BATCH = Flag(
    "--auto-batch",
    "run.auto_batch",
    "If memory runs out, halve the batch size and accumulate gradients over twice as many batches.",
    constant=True,
)

DATA = Group(
    "Data",
    (
        Flag(
            "--data",
            "data.source",
            "Image folder, timm data set (hfds/..., wds/..., torch/..., tfds/...) or builtin.",
        ),
        Flag(
            "--limit",
            "data.limit",
            "Maximum number of training images (a stratified sample).",
            "all",
        ),
        Flag("--batch-size", "data.batch_size", "Batch size per process."),
        Flag(
            "--workers",
            "data.num_workers",
            "Number of worker processes that decode images; 0 decodes in the main process.",
        ),
    ),
)

TRAINING = Group(
    "Training",
    (
        Flag("--epochs", "stage2.epochs", "Epochs of stage 2, knowledge distillation.", _BY_DATA),
        Flag(
            "--hint-epochs",
            "stage1.epochs",
            "Epochs of stage 1, hint training.",
            "0 if the student inherits its weights and no --hint is given, otherwise a fraction of"
            " stage 2's",
        ),
        Flag(
            "--lr",
            "stage1.optim.lr stage2.optim.lr",
            "Learning rate of both stages.",
            "0.002; for stage 1, 0.0003 if the student inherits its weights",
        ),
        Flag(
            "--baseline",
            "run.baseline",
            "Also train the same student without a teacher, for the same number of steps.",
            constant=True,
        ),
        Flag(
            "--views",
            "data.views",
            "Number of augmented views per image, used in turn, so that teacher outputs can be"
            " cached.",
            "new views in every epoch",
        ),
        Flag(
            "--cache-teacher",
            "run.cache_teacher",
            "Where to cache the teacher's outputs for repeated views: auto (in the run directory),"
            " off, or a folder.",
        ),
        _AUTO_BATCH,
        _SHARD,
        Flag("--log", "run.log", "Log losses and scores to an experiment tracker."),
    ),
)

FINE_TUNING = Group(
    "Training",
    (
        Flag("--epochs", "teacher.epochs", "Epochs to fine-tune.", _BY_DATA),
        Flag(
            "--lr",
            "teacher.lr",
            "Learning rate.",
            "0.0003 for pretrained weights, 0.001 for random ones",
        ),
        _AUTO_BATCH,
        _SHARD,
    ),
)

MACHINE = Group(
    "Machine",
    (
        Flag("--seed", "run.seed", "Random seed."),
        Flag("--device", "run.device", "Device: auto, cpu, cuda, cuda:1 or mps."),
        Flag("--threads", "run.threads", "CPU threads per process.", "available cores"),
        Flag(
            "--precision",
            "run.precision",
            "Training precision; auto is bf16 on CUDA and on CPUs with AMX, otherwise fp32.",
        ),
        Flag(
            "--teacher-precision",
            "run.teacher_precision",
            "Precision of the frozen teacher; auto takes the fastest whose outputs stay within 1 %"
            " of those in fp32.",
        ),
        Flag(
            "--teacher-layout",
            "run.teacher_layout",
            "Memory format of the frozen teacher; auto measures both and takes the faster.",
        ),
        Flag(
            "--layout",
            "run.layout",
            "Memory format of the student; auto is channels-last, except on MPS.",
        ),
        Flag(
            "--compile",
            "run.compile",
            "Compile the networks with torch.compile; auto compiles if training takes more than ten"
            " minutes and compiled steps are faster.",
        ),
    ),
)

FORMATS = Group(
    "Formats",
    (
        Flag("--onnx", "onnx", "Write ONNX in float32 (the default).", constant=True),
        Flag("--fp16", "onnx-fp16", "Write ONNX in float16.", constant=True),
        Flag(
            "--int8",
            "onnx-int8",
            "Write ONNX in int8, calibrated on training images.",
            constant=True,
        ),
        Flag(
            "--with-preprocessing",
            "onnx-pixels",
            "Write ONNX in float32 that maps uint8 images to probabilities.",
            constant=True,
        ),
        Flag(
            "--safetensors",
            "safetensors",
            "Write a model folder: weights and configuration.",
            constant=True,
        ),
        Flag("--torchscript", "torchscript", "Write a TorchScript archive.", constant=True),
        Flag("--pt2", "pt2", "Write a torch.export program (.pt2).", constant=True),
        Flag("--python", "python", "Write a readable model.py with its weights.", constant=True),
    ),
)
"""Formats of `export`; their names are the keys of `exporters.formats.FORMATS`."""
