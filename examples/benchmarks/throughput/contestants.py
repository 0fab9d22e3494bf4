"""The contestants: each makes a training step on a batch in memory.

All get the same teacher (random weights cost the same), the same student, which fitcompress built,
and the same batch. `STEPS` maps names to functions that take a `Pair` and return a step.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitcompress.data.images import ArrayImages
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import Batch, make_dataset
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.distillation.hint_objectives import HintMatcher, HintObjective
from fitcompress.distillation.objectives import DistillObjective
from fitcompress.distillation.partial_networks import cut_at
from fitcompress.events import ignore
from fitcompress.graph.program import output_nodes
from fitcompress.interface import InputSpec
from fitcompress.models.open import teacher_from_module
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe, resolve_recipe
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.run.estimate import stage_cost
from fitcompress.student.planner import Planned, make_regressors, plan_run
from fitcompress.training.device import resolve_precision, start_accelerator, to_channels_last
from fitcompress.training.distributed import ProcessGroup
from fitcompress.training.memory import keep_freed_memory
from fitcompress.training.protocols import Objective

Step = Callable[[], object]

_CIFAR_DEPTHS = (20, 32, 44, 56, 110)
SIDES = {"resnet50": 224, "deit_small_patch16_224": 224}
SIDES |= {f"resnet{depth}": 32 for depth in _CIFAR_DEPTHS}
"""Image size by teacher: models of timm, and the ResNets of He et al. for CIFAR-10."""
TAU, RATE = 4.0, 1e-3


@dataclass(frozen=True)
class Pair:
    """A teacher, its student and a batch, on a device."""

    name: str
    batch_size: int
    device: str
    compiles: bool
    teacher_layout: str = "channels-last"

    @property
    def module(self) -> nn.Module:
        """The teacher as an eager module."""
        torch.manual_seed(0)
        if SIDES[self.name] == 32:
            sys.path.insert(0, str(Path(__file__).parents[2] / "cifar10"))
            from resnet_cifar import ResNet

            return ResNet((int(self.name.removeprefix("resnet")) - 2) // 6).eval()
        import timm

        return timm.create_model(self.name).eval()

    @cached_property
    def recipe(self) -> Recipe:
        return resolve_recipe(settings={"student.depth_mult": 2.0, "student.width_mult": 0.3})

    @cached_property
    def spec(self) -> InputSpec:
        side = SIDES[self.name]
        return InputSpec(shape=(3, side, side), mean=(0.5,) * 3, std=(0.25,) * 3)

    @cached_property
    def teacher(self) -> Teacher:
        return teacher_from_module(self.module, self.spec)

    @cached_property
    def planned(self) -> Planned:
        return plan_run(self.teacher, self.recipe, emit=ignore)

    @property
    def student(self) -> nn.Module:
        return self.planned.student.network.to(self.device).train()

    @cached_property
    def batch(self) -> Batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (self.batch_size, *self.spec.shape), generator=generator)
        ids = torch.arange(self.batch_size)
        return Batch(images.to(torch.uint8), ids % 10, ids).to(self.device)

    @cached_property
    def inputs(self) -> tuple[Tensor, Tensor]:
        """The batch in the form of other tools: normalized images and labels."""
        return Preprocess(self.spec).to(self.device)(self.batch.images), self.batch.labels

    @property
    def precision(self) -> str:
        return resolve_precision("auto", self.device)

    def autocast(self) -> torch.autocast:
        is_on = self.device == "cuda"
        return torch.autocast(self.device, torch.bfloat16, enabled=is_on)

    @property
    def hints(self) -> list[str]:
        return [pair.hint.node for pair in self.planned.pairs]

    @property
    def guided(self) -> list[str]:
        return [pair.guided.node for pair in self.planned.pairs]

    def flops(self) -> dict[str, int]:
        """FLOPs per image in a step of each contestant; two per multiply-add."""
        teacher, student = self.planned.teacher, self.planned.student
        cut = stage_cost(teacher, student, self.hints, self.guided)
        whole = stage_cost(teacher, student)
        uncut = whole.teacher_flops + whole.student_flops + 2 * cut.student_flops
        of_stage = {"stage 1": uncut, "stage 2": whole.step_flops}
        special = {
            "fitcompress stage 1": cut.step_flops,
            "fitcompress stage 2, cached": 3 * whole.student_flops,
            "student alone": 3 * whole.student_flops,
        }
        return {
            name: special.get(name) or next(of_stage[key] for key in of_stage if key in name)
            for name in STEPS
        }


# --- fitcompress -----------------------------------------------------------------------------


def _engine_step(pair: Pair, objective: Objective, batch: Batch) -> Step:
    """A step of the training loop itself, on a batch that is there already."""
    from fitcompress.training.engine import _Loop
    from fitcompress.training.signals import StopRequest
    from fitcompress.training.train_config import BatchPlan, Runtime, TrainConfig

    if pair.device == "cpu":
        keep_freed_memory()
    group = ProcessGroup(start_accelerator(pair.device, pair.precision))
    config = TrainConfig(
        stage="stage",
        optim=OptimRecipe(),
        epochs=1,
        batch_size=len(batch),
        seed=0,
        checkpoint_path=Path("none"),
    )
    plan = BatchPlan(
        batch_size=len(batch), accumulate=1, num_processes=1, steps_per_epoch=1_000_000, epochs=1
    )
    if pair.device == "cuda":
        to_channels_last(objective.trained)
    pixels = batch.images.permute(0, 2, 3, 1).cpu().numpy()
    views = make_dataset(
        ArrayImages(pixels, batch.labels.cpu().numpy()), pair.spec, augment="none", seed=0
    )
    data, stop = (views, None), StopRequest()
    loop = _Loop(objective, data, config, plan, Runtime(), group, stop, ignore)
    if pair.compiles:
        loop.compile()
    objective.train()
    return lambda: loop._step([batch])


def stage_1(pair: Pair) -> Step:
    planned = pair.planned
    frozen = freeze_teacher(planned.teacher, pair.hints, **_form(pair)).network
    return _hint_step(pair, frozen, cut_at(planned.student, pair.guided), pair.compiles)


def stage_1_uncut(pair: Pair) -> Step:
    """Stage 1 on whole networks, to see what cutting them saves."""
    teacher, student = pair.planned.teacher, pair.planned.student
    (teacher_output,), (student_output,) = (
        output_nodes(net.program.graph) for net in (teacher, student)
    )
    frozen = freeze_teacher(teacher, [*pair.hints, teacher_output.name], **_form(pair)).network
    whole = cut_at(student, [*pair.guided, student_output.name])
    for network in (frozen, whole):
        if pair.compiles:  # separately, or the compiler would remove the unused rest
            network.compile(dynamic=False)
    return _hint_step(pair, _First(frozen), _First(whole), compiles=False)


class _First(nn.Module):
    """The first output of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(x)[:1])


def _hint_step(pair: Pair, frozen: nn.Module, guided: nn.Module, compiles: bool) -> Step:
    regressors = [
        regressor for regressor, _ in make_regressors(pair.planned.pairs, pair.recipe.hints)
    ]
    objective = HintObjective(
        frozen,
        guided,
        HintMatcher(regressors),
        teacher_preprocess=Preprocess(pair.spec),
        student_preprocess=Preprocess(pair.spec),
    )
    return _engine_step(replace(pair, compiles=compiles), objective, pair.batch)


def stage_2(pair: Pair) -> Step:
    return _engine_step(pair, _distill(pair), pair.batch)


def stage_2_cached(pair: Pair) -> Step:
    """Stage 2 with cached teacher outputs."""
    objective = _distill(pair)
    objective.to(torch.device(pair.device))
    outputs = objective.forward_teacher(pair.batch)
    return _engine_step(pair, objective, replace(pair.batch, teacher_outputs=outputs))


def _distill(pair: Pair) -> DistillObjective:
    return DistillObjective(
        freeze_teacher(pair.planned.teacher, **_form(pair)).network,
        pair.planned.student.network,
        pair.recipe.stage2,
        teacher_preprocess=Preprocess(pair.spec),
        student_preprocess=Preprocess(pair.spec),
    )


def _form(pair: Pair) -> dict[str, str]:
    return {"precision": pair.precision, "layout": pair.teacher_layout}


# --- the others --------------------------------------------------------------------------------


class _Hinted(nn.Module):
    """The whole student, with the regressor's output for the guided layer as its result."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.student = pair.student
        (made,) = make_regressors(pair.planned.pairs, pair.recipe.hints)
        self.regressor = made[0].to(pair.device)
        self._seen: list[Tensor] = []
        guided = self.student.get_submodule(pair.planned.pairs[0].guided.name)
        guided.register_forward_hook(lambda _, __, value: self._seen.append(value))

    def forward(self, x: Tensor) -> Tensor:
        self.student(x)
        predicted: Tensor = self.regressor(self._seen.pop())
        return predicted


def plain_stage_1(pair: Pair) -> Step:
    """Stage 1 as in CIFAR benchmark repositories: both networks whole, features from hooks, mean
    squared error through a regressor."""
    teacher, hinted = pair.module.to(pair.device), _Hinted(pair)
    seen: list[Tensor] = []
    hint = teacher.get_submodule(pair.planned.pairs[0].hint.name)
    hint.register_forward_hook(lambda _, __, value: seen.append(value))
    optimizer = _sgd(hinted.parameters())
    x, _ = pair.inputs

    def step() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            teacher(x)
        functional.mse_loss(hinted(x), seen.pop()).backward()
        optimizer.step()

    return step


def plain_stage_2(pair: Pair) -> Step:
    """Stage 2 with eager networks in float32, KL divergence and cross-entropy."""
    teacher, student = pair.module.to(pair.device), pair.student
    optimizer = _sgd(student.parameters())
    x, labels = pair.inputs

    def step() -> None:
        optimizer.zero_grad()
        with torch.no_grad():
            teacher_logits = teacher(x)
        _kd(student(x), teacher_logits, labels).backward()
        optimizer.step()

    return step


def timm_stage_2(pair: Pair) -> Step:
    """timm's distillation task, compiled, channels-last, in bfloat16 on GPUs."""
    from timm.task import LogitDistillationTask

    teacher, student = pair.module.to(pair.device), pair.student
    config = {"mean": pair.spec.mean, "std": pair.spec.std}
    num_classes = teacher(pair.inputs[0][:1]).shape[1]
    for network in (teacher, student):
        network.pretrained_cfg, network.num_classes, network.in_chans = config, num_classes, 3
        if pair.device == "cuda" or (network is teacher and pair.teacher_layout != "contiguous"):
            network.to(memory_format=torch.channels_last)
    task = LogitDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.1,
        temperature=TAU,
        device=torch.device(pair.device),
        verbose=False,
    )
    if pair.compiles:
        task.compile(backend="inductor")
    task.train()
    optimizer = _sgd(student.parameters())
    x, labels = pair.inputs

    def step() -> None:
        optimizer.zero_grad()
        with pair.autocast():
            loss = task(x, labels)["loss"]
        loss.backward()
        optimizer.step()

    return step


def torchdistill_stage_1(pair: Pair) -> Step:
    """torchdistill's distillation box with the teacher's hint from its hook."""
    hinted = _Hinted(pair)
    (hint,) = (p.hint.name for p in pair.planned.pairs)
    loss = {
        "criterion": {"key": "MSELoss", "kwargs": {}},
        "criterion_wrapper": {
            "key": "SimpleLossWrapper",
            "kwargs": {
                "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
                "target": {"is_from_teacher": True, "module_path": hint, "io": "output"},
            },
        },
        "weight": 1.0,
    }
    return _torchdistill(pair, hinted, [hint], loss)


def torchdistill_stage_2(pair: Pair) -> Step:
    """torchdistill's distillation box with its KD loss."""
    kd = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TAU,
        "alpha": 0.1,
        "reduction": "batchmean",
    }
    loss = {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}
    return _torchdistill(pair, pair.student, [], loss)


def _torchdistill(
    pair: Pair, student: nn.Module, hints: Sequence[str], loss: dict[str, object]
) -> Step:
    """A step of a torchdistill stage, which has no mixed precision."""
    from torchdistill.core.distillation import get_distillation_box

    side = {"forward_proc": "forward_batch_only"}
    config = {
        "num_epochs": 1,
        "teacher": {
            **side,
            "requires_grad": False,
            "forward_hook": {"input": [], "output": list(hints)},
        },
        "student": {**side, "requires_grad": True, "forward_hook": {"input": [], "output": []}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"loss": loss}}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RATE, "momentum": 0.9}},
    }
    teacher, device = pair.module.to(pair.device), torch.device(pair.device)
    box = get_distillation_box(teacher, student, {}, config, device, None, False, 1.0)
    x, labels = pair.inputs

    def step() -> None:
        box.post_forward_process(box.forward_process(x, labels, {}))

    return step


# --- the limits --------------------------------------------------------------------------------


def student_alone(pair: Pair) -> Step:
    """Forward, backward and step of the student without a teacher, as fast as possible."""
    keep_freed_memory()
    student = pair.student
    if pair.device == "cuda":
        to_channels_last(student)
    if pair.compiles:
        student.compile(dynamic=False)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, fused=True)
    x, labels = pair.inputs

    def step() -> None:
        optimizer.zero_grad()
        with pair.autocast():
            loss = functional.cross_entropy(student(x), labels)
        loss.backward()
        optimizer.step()

    return step


def by_hand(pair: Pair) -> Step:
    """A compiled teacher forward and a compiled student step, written by hand."""
    keep_freed_memory()
    teacher, student = pair.module.to(pair.device), pair.student
    for network in (teacher, student):
        if pair.device == "cuda" or (network is teacher and pair.teacher_layout != "contiguous"):
            to_channels_last(network)
        if pair.compiles:
            network.compile(dynamic=False)
    optimizer = torch.optim.AdamW(student.parameters(), RATE, fused=True)
    x, labels = pair.inputs

    def step() -> None:
        optimizer.zero_grad()
        with pair.autocast():
            with torch.no_grad():
                teacher_logits = teacher(x)
            loss = _kd(student(x), teacher_logits, labels)
        loss.backward()
        optimizer.step()

    return step


def _kd(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    soft = functional.kl_div(
        (student / TAU).log_softmax(1), (teacher / TAU).softmax(1), reduction="batchmean"
    )
    return 0.9 * TAU**2 * soft + 0.1 * functional.cross_entropy(student, labels)


def _sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, RATE, momentum=0.9)  # type: ignore[arg-type]


STEPS: dict[str, Callable[[Pair], Step]] = {
    "fitcompress stage 1": stage_1,
    "fitcompress stage 1, uncut": stage_1_uncut,
    "fitcompress stage 2": stage_2,
    "fitcompress stage 2, cached": stage_2_cached,
    "plain loop, stage 1": plain_stage_1,
    "plain loop, stage 2": plain_stage_2,
    "timm, stage 2": timm_stage_2,
    "torchdistill, stage 1": torchdistill_stage_1,
    "torchdistill, stage 2": torchdistill_stage_2,
    "student alone": student_alone,
    "by hand, stage 2": by_hand,
}
