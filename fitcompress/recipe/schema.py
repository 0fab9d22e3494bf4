"""The sections of a recipe as frozen dataclasses: the meaning, default and bounds of each setting.

A setting with a fixed set of values is annotated with a `Literal`; checks, flags and mypy all read
that annotation. Imports errors, interface, fields and targets; no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from fitcompress.errors import RecipeError
from fitcompress.interface import OutputKind, read_tensor_spec
from fitcompress.recipe.fields import check, check_at_least, check_choices, check_positive
from fitcompress.recipe.targets import TARGETS, Target, parse_target

__all__ = [
    "PADDING",
    "Augmentation",
    "Compile",
    "DataRecipe",
    "HintRecipe",
    "HintTarget",
    "Init",
    "Layout",
    "OptimRecipe",
    "Precision",
    "RunRecipe",
    "Schedule",
    "Stage1Recipe",
    "Stage2Recipe",
    "StudentRecipe",
    "TeacherRecipe",
    "Timing",
    "Tracker",
]

Init = Literal["random", "inherit"]
Augmentation = Literal["none", "flip", "shift", "crop", "strong", "auto"]
HintTarget = Literal["teacher", "random-teacher", "random-vectors", "shuffled", "labels"]
Schedule = Literal["cosine", "steps", "constant"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Layout = Literal["auto", "contiguous", "channels-last"]
Compile = Literal["auto", "on", "off"]
Timing = Literal["all", "torch", "none"]
Tracker = Literal["none", "tensorboard", "wandb", "trackio"]

PADDING = 1 / 8
"""Of the side: 4 pixels for 32 (He et al., "Deep residual learning", section 4.2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecipe:
    """The teacher: where it is loaded from, its inputs and outputs, and how it is fine-tuned."""

    source: str = ""
    """timm model name, file, model folder, or `package.module:factory`."""
    weights: str | None = None
    """Weights for a timm name or a factory: a safetensors file or a state dict."""
    pretrained: bool = True
    """Whether a timm model is loaded with its pretrained weights."""
    num_classes: int | None = None
    """Number of classes, if the teacher's own configuration lacks it."""
    input_size: tuple[int, int, int] | None = None
    """Channels, height, width."""
    inputs: tuple[str, ...] = ()
    """Inputs of a teacher that takes no images, without the batch axis: "1x16000", "128:int64"."""
    output_kind: Literal["auto", OutputKind] = "auto"
    """Meaning of the outputs: "classes", "labels" (yes/no each), "values" (an embedding, say), or
    "auto": a row of scores is classes, any other output is values."""
    mean: tuple[float, ...] | None = None
    """Mean per channel that the teacher's normalization subtracts, for pixels in 0..1."""
    std: tuple[float, ...] | None = None
    """Standard deviation per channel that the teacher's normalization divides by."""
    class_map: str | None = None
    """File of class names, one per line, in the order of the teacher's outputs."""
    adapt: bool = True
    """Fine-tune a copy of the teacher if its classes differ from the data's."""
    epochs: int | None = None
    """Epochs of fine-tuning; None: decided from the number of images."""
    lr: float | None = None
    """Learning rate of fine-tuning; None: decided from the weights."""

    def __post_init__(self) -> None:
        check_choices("teacher", self)
        check_at_least(1, "teacher.num_classes", self.num_classes)
        check_at_least(0, "teacher.epochs", self.epochs)
        check_positive("teacher.lr", self.lr)
        for size in self.input_size or ():
            check_at_least(1, "teacher.input_size", size)
        for text in self.inputs:
            read_tensor_spec(text)
        if self.inputs and (self.input_size or self.mean or self.std):
            raise RecipeError(
                "teacher.inputs cannot be combined with teacher.input_size, teacher.mean or"
                " teacher.std, which describe images",
                code="tensor-and-image-inputs",
                advice="Remove teacher.inputs, or the settings that describe images.",
            )
        for deviation in self.std or ():
            check_positive("teacher.std", deviation)
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise RecipeError(
                "teacher.mean and teacher.std must both have one value per channel, "
                f"got {len(self.mean)} and {len(self.std)}",
                code="mean-std-mismatch",
                mean=list(self.mean),
                std=list(self.std),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentRecipe:
    """The student: its depth and width, or the targets that decide them, and its first weights."""

    depth_mult: float | None = None
    """Depth multiplier: layers on the longest path, relative to the teacher. None: 2, or less if a
    target requires it."""
    width_mult: float | None = None
    """Width multiplier for channels, heads and groups. None: 0.3, or the largest that the targets
    allow."""
    target_params: str | None = None
    """Maximum parameters: "10%" of the teacher's, or "2M"."""
    target_flops: str | None = None
    """Maximum FLOPs per sample: "10%" of the teacher's, or "300M"."""
    target_macs: str | None = None
    """Maximum multiply-adds per sample (FLOPs / 2): "10%" of the teacher's, or "150M"."""
    target_size: str | None = None
    """Maximum size of the weights in float32: "10%" of the teacher's, or "2MB"."""
    target_latency: str | None = None
    """Maximum latency of one sample on this machine: "50%" of the teacher's, or "5ms"."""
    init: Init = "inherit"
    """Initial weights: "random" (as in FitNets), or "inherit" (from the teacher, the strongest
    channels of each axis), which is much better if training is short."""
    source: str | None = None
    """Custom student: a timm name or a file. It replaces the multipliers and targets."""

    def __post_init__(self) -> None:
        check_choices("student", self)
        depth, width = self.depths[0], self.width
        check(1 <= depth < math.inf, "student.depth_mult", "at least 1", depth)
        check(0 < width <= 1, "student.width_mult", "above 0 and at most 1", width)
        if self.targets and self.width_mult is not None:
            raise RecipeError(
                "student.width_mult cannot be combined with student.target_* settings",
                code="width-and-target",
                advice="Drop --width-mult, or all --target-* flags.",
                targets=list(self.targets),
            )

    @property
    def inherits_weights(self) -> bool:
        """Whether the student's initial weights come from the teacher."""
        return self.init == "inherit" and self.source is None

    @property
    def width(self) -> float:
        """Width multiplier of a student without targets."""
        return 0.3 if self.width_mult is None else self.width_mult

    @property
    def depths(self) -> tuple[float, ...]:
        """Depth multipliers that targets may choose from, the preferred one first."""
        return (2.0, 1.5, 1.0) if self.depth_mult is None else (self.depth_mult,)

    @property
    def targets(self) -> dict[str, Target]:
        """The targets that are set, by kind."""
        given = {kind: getattr(self, f"target_{kind}") for kind in TARGETS}
        return {kind: parse_target(kind, text) for kind, text in given.items() if text}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """The images: source, batches and augmentation."""

    source: str = "builtin"
    """Image folder, timm data set string ("hfds/...", "torch/..."), or "builtin"."""
    batch_size: int = 64
    """Batch size per process."""
    accumulate: int = 1
    """Batches per step and process. The effective batch size, which the learning rate refers to, is
    `batch_size` x `accumulate` x processes."""
    num_workers: int = 0
    """Worker processes that decode images; 0 decodes in the main process."""
    augment: Augmentation = "auto"
    """"none", "flip", "shift" (a crop of the padded image), "crop" (shift, flip), "strong" (random
    resized crop, flip, color jitter), or "auto": "crop" for small images, otherwise "strong"."""
    padding: float = PADDING
    """Maximum shift of "shift" and "crop", as a fraction of the image's sides."""
    mixup: float = 0.0
    """Mixup's alpha, the parameter of its Beta distribution; 0 turns it off."""
    views: int | None = None
    """Augmented views per image, in turns, to cache teacher outputs; None: new ones every epoch."""
    limit: int | None = None
    """Maximum number of training images (a seeded, stratified sample)."""
    max_unreadable: int = 10
    """Unreadable images that are skipped before the run fails."""

    def __post_init__(self) -> None:
        check_choices("data", self)
        check_at_least(1, "data.batch_size", self.batch_size)
        check_at_least(1, "data.accumulate", self.accumulate)
        check_at_least(0, "data.num_workers", self.num_workers)
        check(0 <= self.padding < 0.5, "data.padding", "at least 0 and below 0.5", self.padding)
        check_at_least(0, "data.mixup", self.mixup)
        check_at_least(1, "data.views", self.views)
        check_at_least(1, "data.limit", self.limit)
        check_at_least(0, "data.max_unreadable", self.max_unreadable)


@dataclass(frozen=True, kw_only=True, slots=True)
class HintRecipe:
    """The hints: pairs of teacher and student layers, and what the student matches."""

    hint: tuple[str, ...] = ()
    """Teacher layers to match; empty: chosen automatically."""
    guided: tuple[str, ...] = ()
    """Student layers that match the hints; empty: chosen automatically."""
    num_pairs: int = 1
    """Number of pairs to choose, if no layers are named."""
    standardise: bool = True
    """Standardize hints per channel by fixed statistics; false: raw maps, as in the paper."""
    regressor_when_equal: bool = True
    """Use a 1x1 regressor even if the guided map already has the hint's shape."""
    target: HintTarget = "teacher"
    """What the guided layer learns: the "teacher"'s hint, or a control: "random-teacher" (random
    weights, scaled to the hint's moments), "random-vectors" (per image, with the hint's mean and
    covariance), "shuffled" (the hint of another image) or "labels"."""

    def __post_init__(self) -> None:
        check_choices("hints", self)
        check_at_least(1, "hints.num_pairs", self.num_pairs)
        if self.hint and self.guided and len(self.hint) != len(self.guided):
            raise RecipeError(
                "hints.hint and hints.guided must name the same number of layers, "
                f"got {len(self.hint)} and {len(self.guided)}",
                code="hint-pairs-mismatch",
                advice="Name one guided layer for each hint, or leave one of the two settings out.",
                hint=list(self.hint),
                guided=list(self.guided),
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimRecipe:
    """Optimizer and learning rate schedule."""

    optimizer: str = "adamw"
    """Name of a timm optimizer."""
    lr: float | None = 2e-3
    """Peak learning rate."""
    weight_decay: float = 0.05
    schedule: Schedule = "cosine"
    """"cosine", "steps" (divided by 10 after 5/8, 3/4 and 7/8 of the stage) or "constant"."""
    warmup_epochs: float = 0.5
    """Epochs of linear warmup."""
    grad_clip: float | None = 1.0
    """Maximum norm of the gradient; None: no clipping."""
    patience: int | None = None
    """Early stopping: epochs without a better held-out score (top-1, or the loss) after which the
    stage ends with the weights of its best epoch. None: no early stopping."""
    ema: float = 0.0
    """Decay of the exponential moving average of the weights (such as 0.999), which becomes the
    stage's result; 0: no averaging."""

    def __post_init__(self) -> None:
        check_choices("optim", self)
        check_positive("optim.lr", self.lr)
        check_at_least(0, "optim.weight_decay", self.weight_decay)
        check_at_least(0, "optim.warmup_epochs", self.warmup_epochs)
        check_positive("optim.grad_clip", self.grad_clip)
        check_at_least(1, "optim.patience", self.patience)
        check(0 <= self.ema < 1, "optim.ema", "at least 0 and below 1", self.ema)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage1Recipe:
    """Stage 1: hint training (FitNets Eq. 3)."""

    epochs: int | None = None
    """None: 0 if the student inherits its weights and no hint is named, otherwise a fraction of
    stage 2's."""
    optim: OptimRecipe = field(default_factory=lambda: OptimRecipe(lr=None))
    """An `lr` of None: 3e-4 if the student inherits its weights, otherwise stage 2's. Inherited
    layers fit each other; moving the lower half too far breaks the upper half."""

    def __post_init__(self) -> None:
        check_at_least(0, "stage1.epochs", self.epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage2Recipe:
    """Stage 2: knowledge distillation (FitNets Eq. 2, Hinton section 2)."""

    epochs: int | None = None
    """None: decided from the number of images."""
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    tau: float = 4.0
    """Temperature of the softmax."""
    student_tau: float | None = None
    """The student's temperature. None: tau, as in the paper; the public FitNets code uses 1."""
    tau_squared: bool = True
    """Multiply the distillation loss by tau^2 (Hinton section 2); FitNets Eq. 2 does not."""
    label_weight: float = 0.1
    """Weight of the cross-entropy with the labels."""
    lambda_kd: float = 0.9
    """Weight of the distillation loss at the first step."""
    lambda_kd_end: float | None = None
    """Weight of the distillation loss at the last step, linear in between; None: constant."""
    standardise_logits: bool = False
    """Standardize both logits per sample before the distillation loss (Sun et al., CVPR 2024)."""
    label_smoothing: float = 0.0
    """Label smoothing of the cross-entropy."""
    hint_weight: float = 0.0
    """Weight of the hint loss during all of stage 2; 0: hints are learned in stage 1 only."""

    def __post_init__(self) -> None:
        check_at_least(0, "stage2.epochs", self.epochs)
        check(self.optim.lr is not None, "stage2.optim.lr", "a number", None)
        check_at_least(0, "stage2.hint_weight", self.hint_weight)
        check_positive("stage2.tau", self.tau)
        check_positive("stage2.student_tau", self.student_tau)
        check_at_least(0, "stage2.label_weight", self.label_weight)
        check_at_least(0, "stage2.lambda_kd", self.lambda_kd)
        check_at_least(0, "stage2.lambda_kd_end", self.lambda_kd_end)
        check(
            0 <= self.label_smoothing < 1,
            "stage2.label_smoothing",
            "at least 0 and below 1",
            self.label_smoothing,
        )

    @property
    def has_teacher(self) -> bool:
        """Whether stage 2 uses the teacher at all."""
        return bool(self.lambda_kd or self.lambda_kd_end or self.hint_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecipe:
    """The run: directory, hardware, speed and what is measured."""

    out: str | None = None
    """Run directory."""
    seed: int = 0
    """Seed of all randomness."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:N" or "mps"."""
    precision: Precision = "auto"
    """Training precision: "fp32", "bf16", "fp16" or "auto" (bf16 on CUDA and on CPUs with AMX,
    otherwise fp32)."""
    teacher_precision: Precision = "auto"
    """Precision of the frozen teacher: "fp32", "bf16", "fp16" or "auto" (the fastest whose outputs
    are close enough, measured)."""
    teacher_layout: Layout = "auto"
    """Memory format of the frozen teacher: "contiguous", "channels-last" or "auto" (the faster)."""
    layout: Layout = "auto"
    """Memory format of the student: "contiguous", "channels-last" or "auto" (channels-last, except
    on MPS)."""
    compile: Compile = "auto"
    """Compile the networks with torch.compile: "on", "off" or "auto" (if training takes over ten
    minutes and compiling is measured to speed up the student's steps)."""
    auto_batch: bool = False
    """If memory runs out, halve the batch size and accumulate twice as many batches."""
    shard: bool = False
    """Shard the networks across processes while they train (FSDP2)."""
    threads: int | None = None
    """CPU threads per process. None: OMP_NUM_THREADS, or the available cores divided among the
    processes of this machine."""
    cache_teacher: str = "auto"
    """Teacher output cache: "auto" (in the run directory, until it ends), "off", or a folder."""
    cache_gb: float = 4.0
    """Maximum size of the cached teacher outputs per stage and split, in gigabytes."""
    log: Tracker = "none"
    """Experiment tracker that losses and scores are logged to."""
    baseline: bool = False
    """Also train the same student without a teacher, for the same number of steps."""
    timing: Timing = "all"
    """Latency and memory measured at the end: "all" (PyTorch, ONNX Runtime), "torch" or "none"."""

    def __post_init__(self) -> None:
        check_choices("run", self)
        check_at_least(0, "run.seed", self.seed)
        check_at_least(0, "run.cache_gb", self.cache_gb)
        check_at_least(1, "run.threads", self.threads)
        check(
            not self.shard or self.cache_teacher in ("auto", "off"),
            "run.cache_teacher",
            "auto or off with run.shard, which cannot cache teacher outputs",
            self.cache_teacher,
        )
        check(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device) is not None,
            "run.device",
            "auto, cpu, cuda, cuda:N or mps",
            self.device,
        )
