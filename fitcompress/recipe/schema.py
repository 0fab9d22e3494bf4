"""The sections of a recipe, as frozen dataclasses: what each setting means, its default, what it
may be. Layer: errors, settings, spec and targets; no torch.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from fitcompress.errors import RecipeError
from fitcompress.interface import read_tensor_spec
from fitcompress.recipe.fields import check, check_at_least, check_one_of, check_positive
from fitcompress.recipe.targets import TARGETS, Target, parse_target

__all__ = [
    "DataRecipe",
    "HintRecipe",
    "OptimRecipe",
    "RunRecipe",
    "Stage1Recipe",
    "Stage2Recipe",
    "StudentRecipe",
    "TeacherRecipe",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherRecipe:
    """Where the teacher comes from and how its inputs look."""

    source: str = ""
    """timm name, file, or `package.module:factory`."""
    weights: str | None = None
    """File of weights (safetensors or state dict) for a timm name or a factory."""
    pretrained: bool = True
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None
    """Channels, height, width."""
    inputs: tuple[str, ...] = ()
    """Of a teacher that takes no images, each input without the batch: "1x16000", "128:int64"."""
    output_kind: str = "auto"
    """What its outputs mean: "classes", "labels", "values" (an embedding, say), or "auto": a row of
    scores is classes, all else values."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_map: str | None = None
    """File with one class name a line, in the order of the teacher's outputs."""
    adapt: bool = True
    """Fine-tune a copy on the data when the teacher's classes are not the data's."""
    epochs: int | None = None
    """Epochs of that adaptation."""
    lr: float | None = None

    def __post_init__(self) -> None:
        check_at_least(1, "teacher.num_classes", self.num_classes)
        check_at_least(0, "teacher.epochs", self.epochs)
        check_positive("teacher.lr", self.lr)
        for size in self.input_size or ():
            check_at_least(1, "teacher.input_size", size)
        for text in self.inputs:
            read_tensor_spec(text)
        if self.inputs and (self.input_size or self.mean or self.std):
            raise RecipeError(
                "teacher.inputs is for a teacher that takes no images, which has no"
                " teacher.input_size, teacher.mean or teacher.std"
            )
        check_one_of(
            ("auto", "classes", "labels", "values"), "teacher.output_kind", self.output_kind
        )
        for deviation in self.std or ():
            check_positive("teacher.std", deviation)
        if self.mean and self.std and len(self.mean) != len(self.std):
            raise RecipeError(
                "teacher.mean and teacher.std must have a value per channel each, "
                f"got {len(self.mean)} and {len(self.std)}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentRecipe:
    """What the student is."""

    depth_mult: float | None = None
    """None: 2, or less where a target needs it."""
    width_mult: float | None = None
    """None: 0.3, or what the targets allow."""
    target_params: str | None = None
    """At most so many parameters: "10%" of the teacher's, or "2M"."""
    target_flops: str | None = None
    """At most so many floating-point operations for one sample."""
    target_macs: str | None = None
    """At most so many multiply-adds for one sample, half as many."""
    target_size: str | None = None
    """At most so many bytes of float32 weights."""
    target_latency: str | None = None
    """At most so long for one sample on this machine: "50%", "5ms"."""
    init: str = "inherit"
    """"random" (the FitNets way), or "inherit": the teacher's weights, the strongest of each axis,
    which is much the better start where training is short."""
    source: str | None = None
    """A student of the user's own: timm name or file; then the multipliers are not used."""

    def __post_init__(self) -> None:
        depth, width = self.depths[0], self.width
        check(1 <= depth < math.inf, "student.depth_mult", "at least 1", depth)
        check(0 < width <= 1, "student.width_mult", "above 0 and at most 1", width)
        if self.targets and self.width_mult is not None:
            raise RecipeError(
                "a student has a width or targets, not both",
                advice="leave out --width-mult, or every --target-...",
            )
        check_one_of(("random", "inherit"), "student.init", self.init)

    @property
    def begins_as_teacher(self) -> bool:
        """Whether its first weights are the teacher's."""
        return self.init == "inherit" and self.source is None

    @property
    def width(self) -> float:
        """Of all axes, where there is no target."""
        return 0.3 if self.width_mult is None else self.width_mult

    @property
    def depths(self) -> tuple[float, ...]:
        """The depth, or those that targets may choose from, the preferred one first."""
        return (2.0, 1.5, 1.0) if self.depth_mult is None else (self.depth_mult,)

    @property
    def targets(self) -> dict[str, Target]:
        """By kind, those that were given."""
        given = {kind: getattr(self, f"target_{kind}") for kind in TARGETS}
        return {kind: parse_target(kind, text) for kind, text in given.items() if text}


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """The images."""

    source: str = "builtin"
    batch_size: int = 64
    """Images that one process takes at once."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one step, in each process: a step sees `batch_size`
    x `accumulate` x processes images, and its learning rate is for so many."""
    num_workers: int = 0
    augment: str = "auto"
    """"none", "flip", "shift", "crop" (a shift, that is a padded random crop, and flip), "strong"
    (random resized crop and flip), or "auto" by image size."""
    padding: float = 0.125
    """How far "shift" and "crop" move an image, as a share of its sides."""
    mixup: float = 0.0
    """Alpha of the Beta distribution; 0 is off."""
    views: int | None = None
    """Augmented views of each image, which come in turns; None is a new one in each epoch. The
    teacher's answers to views that come again are kept."""
    limit: int | None = None
    """At most so many training images (a seeded, stratified sample)."""
    max_unreadable: int = 10

    def __post_init__(self) -> None:
        check_at_least(1, "data.batch_size", self.batch_size)
        check_at_least(1, "data.accumulate", self.accumulate)
        check_at_least(0, "data.num_workers", self.num_workers)
        check_one_of(
            ("none", "flip", "shift", "crop", "strong", "auto"), "data.augment", self.augment
        )
        check(0 <= self.padding < 0.5, "data.padding", "at least 0 and below 0.5", self.padding)
        check_at_least(0, "data.mixup", self.mixup)
        check_at_least(1, "data.views", self.views)
        check_at_least(1, "data.limit", self.limit)
        check_at_least(0, "data.max_unreadable", self.max_unreadable)


@dataclass(frozen=True, kw_only=True, slots=True)
class HintRecipe:
    """Which layers are paired."""

    hint: tuple[str, ...] = ()
    guided: tuple[str, ...] = ()
    num_pairs: int = 1
    standardise: bool = True
    """Standardise the hint per channel by frozen statistics (else the paper's raw maps)."""
    regressor_when_equal: bool = True
    """A 1x1 regressor even where the guided map already has the hint's shape."""
    target: str = "teacher"
    """What is learnt: "teacher", its hint; or a control: "random-teacher" (one of random weights,
    its moments matched), "random-vectors" (one drawn for each image, with the hint's mean and
    covariance), "shuffled" (the hint for another image) or "labels"."""

    def __post_init__(self) -> None:
        check_at_least(1, "hints.num_pairs", self.num_pairs)
        known = ("teacher", "random-teacher", "random-vectors", "shuffled", "labels")
        check_one_of(known, "hints.target", self.target)
        if self.hint and self.guided and len(self.hint) != len(self.guided):
            raise RecipeError(
                "hints.hint and hints.guided are pairs and must be as many, "
                f"got {len(self.hint)} and {len(self.guided)}",
                advice="name as many guided layers as hints, or leave one side to be chosen",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimRecipe:
    """Optimizer and schedule, by timm's names."""

    optimizer: str = "adamw"
    lr: float | None = 2e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    """"cosine", "steps" (a tenth after 5/8, 3/4 and 7/8 of the stage) or "constant"."""
    warmup_epochs: float = 0.5
    grad_clip: float | None = 1.0
    patience: int | None = None
    """Epochs without a better score on held-out images (top-1, or the loss) after which a stage
    ends, with the weights of its best epoch; None trains to the end, with the last weights."""
    ema: float = 0.0
    """Decay of the moving average of the weights, which is then what the stage ends with (0.999 or
    so); 0 takes the last weights."""

    def __post_init__(self) -> None:
        check_positive("optim.lr", self.lr)
        check_at_least(0, "optim.weight_decay", self.weight_decay)
        check_one_of(("cosine", "steps", "constant"), "optim.schedule", self.schedule)
        check_at_least(0, "optim.warmup_epochs", self.warmup_epochs)
        check_positive("optim.grad_clip", self.grad_clip)
        check_at_least(1, "optim.patience", self.patience)
        check(0 <= self.ema < 1, "optim.ema", "at least 0 and below 1", self.ema)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage1Recipe:
    """Hint training (FitNets Eq. 3)."""

    epochs: int | None = None
    """None: 0 where the student inherits its weights and no hint is named, else a share of those of
    stage 2."""
    optim: OptimRecipe = field(default_factory=lambda: OptimRecipe(lr=None))
    """A rate of None: that of stage 2 where the student does not begin with the teacher's weights,
    else 3e-4: inherited weights fit each other, and what hints move too far in the lower half no
    longer fits the upper."""

    def __post_init__(self) -> None:
        check_at_least(0, "stage1.epochs", self.epochs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage2Recipe:
    """Knowledge distillation (FitNets Eq. 2, Hinton section 2)."""

    epochs: int | None = None
    optim: OptimRecipe = field(default_factory=OptimRecipe)
    tau: float = 4.0
    student_tau: float | None = None
    """Temperature on the student's side; None means tau (the paper). 1 is what the public FitNets
    code really does."""
    tau_squared: bool = True
    """Multiply the soft term by tau^2 (Hinton section 2); FitNets Eq. 2 does not."""
    label_weight: float = 0.1
    lambda_kd: float = 0.9
    """Weight of the soft term at the first step."""
    lambda_kd_end: float | None = None
    """Weight at the last step, linear in between; None keeps it."""
    standardise_logits: bool = False
    """Z-score the logits of both sides per sample before the soft term (logit standardisation,
    CVPR 2024)."""
    label_smoothing: float = 0.0
    hint_weight: float = 0.0
    """Of the hint loss, if it is learnt here too, from the first step to the last."""

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
        """Whether anything of the teacher is learnt."""
        return bool(self.lambda_kd or self.lambda_kd_end or self.hint_weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecipe:
    """How and where."""

    out: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    """"fp32", "bf16", "fp16" or "auto" (bf16 on CUDA and on processors with AMX, else fp32)."""
    teacher_precision: str = "auto"
    """Of the teacher while it teaches: "fp32", "bf16", "fp16" or "auto" (the fastest that is
    measured to say the same)."""
    teacher_layout: str = "auto"
    """How the teacher's maps lie in memory as it teaches: "contiguous", "channels-last" or "auto":
    the faster one, as measured."""
    layout: str = "auto"
    """The same of what is trained; "auto" is channels-last, except on MPS."""
    compile: str = "auto"
    """Whether networks are compiled: "on", "off" or "auto" (when training takes over ten minutes
    and the student's steps are measured to be faster for it)."""
    auto_batch: bool = False
    """Where memory runs out, halve the batch and accumulate twice as many."""
    shard: bool = False
    """Of several processes each keeps only a part of the networks as they train (FSDP2)."""
    threads: int | None = None
    """Of the processor, for each process; None is the cores that the machine grants, divided among
    the processes on it, or OMP_NUM_THREADS."""
    cache_teacher: str = "auto"
    """Where the teacher's answers are kept: "auto" (with the run, until it is finished), "off", or
    a directory."""
    cache_gb: float = 4.0
    """At most so many gigabytes of them for each stage and split."""
    log: str = "none"
    """Where losses and scores are logged as they come: "tensorboard", "wandb", "trackio" or "none".
    """
    baseline: bool = False
    """Also train the same student without a teacher for the same budget."""
    timing: str = "all"
    """Which latencies and memory are measured at the end: "all" (in PyTorch and, of temporary
    exports, in onnxruntime), "torch" or "none"; takes some seconds."""

    def __post_init__(self) -> None:
        check_at_least(0, "run.seed", self.seed)
        check_at_least(0, "run.cache_gb", self.cache_gb)
        check_at_least(1, "run.threads", self.threads)
        for name in ("precision", "teacher_precision"):
            check_one_of(("auto", "fp32", "bf16", "fp16"), f"run.{name}", getattr(self, name))
        for name in ("layout", "teacher_layout"):
            known = ("auto", "contiguous", "channels-last")
            check_one_of(known, f"run.{name}", getattr(self, name))
        check_one_of(("auto", "on", "off"), "run.compile", self.compile)
        check_one_of(("all", "torch", "none"), "run.timing", self.timing)
        check_one_of(("none", "tensorboard", "wandb", "trackio"), "run.log", self.log)
        check(
            not self.shard or self.cache_teacher in ("auto", "off"),
            "run.cache_teacher",
            "auto or off with run.shard, since only a whole teacher's answers are kept",
            self.cache_teacher,
        )
        check(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", self.device) is not None,
            "run.device",
            "auto, cpu, cuda, cuda:N or mps",
            self.device,
        )
