"""What all stages of a run share: recipe, data, device, run directory. Layer: pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from itertools import islice
from typing import ParamSpec, TypeVar

from fitcompress.data.bundle import DataBundle
from fitcompress.data.loader import make_loader
from fitcompress.data.views import Batch, Views, make_dataset
from fitcompress.events import Emit
from fitcompress.interface import InputSpec
from fitcompress.recipe.recipe import Recipe
from fitcompress.rundir import RunDir
from fitcompress.training.device import resolve_device, used_threads

__all__ = ["Session", "on_its_threads", "plain_batches", "resolve_training"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_STATISTICS_BATCHES = 32
_SAMPLES_ON_CPU, _SAMPLES_ON_GPU = 45_000, 1_500_000
"""Images seen in stage 2 when no number of epochs is given: a quarter of an hour of a small network
on two cores, an hour or so on a GPU."""
_EPOCH_BOUNDS = (3, 100)
_GENTLE_LR = 3e-4
"""Of stage 1, for a student that begins with the teacher's weights."""
_STAGE1_SHARE = 0.15
"""Epochs of stage 1 for each of stage 2, where the student begins with hints."""


@dataclass(frozen=True)
class Session:
    """What all stages of a run share."""

    recipe: Recipe
    data: DataBundle
    emit: Emit
    run: RunDir
    resume: bool = False

    @property
    def device(self) -> str:
        """Where networks lie whole: where they train, and on the host when shards of them train."""
        run = self.recipe.run
        return "cpu" if run.shard else resolve_device(run.device)

    def views(self, spec: InputSpec) -> tuple[Views, Views]:
        """Augmented training views and plain held-out views of a network's size."""
        recipe = self.recipe.data
        seed = self.recipe.run.seed
        return (
            make_dataset(
                self.data.train,
                spec,
                augment=recipe.augment,
                seed=seed,
                mixup=recipe.mixup,
                num_views=recipe.views,
                padding=recipe.padding,
            ),
            make_dataset(self.data.held_out, spec, augment="none", seed=seed),
        )


def resolve_training(recipe: Recipe, data: DataBundle) -> Recipe:
    """The recipe with every number of epochs decided, enough to see so many images, 3 to 100; and
    the learning rate of stage 1.
    """
    samples = _SAMPLES_ON_CPU if resolve_device(recipe.run.device) == "cpu" else _SAMPLES_ON_GPU
    low, high = _EPOCH_BOUNDS
    usual = min(high, max(low, round(samples / max(1, len(data.train)))))
    stage2 = usual if recipe.stage2.epochs is None else recipe.stage2.epochs
    share = max(1, round(_STAGE1_SHARE * stage2)) if stage2 and recipe.asks_for_hints else 0
    hints = recipe.stage1.optim
    if hints.lr is None:
        gentle = recipe.student.begins_as_teacher
        hints = replace(hints, lr=_GENTLE_LR if gentle else recipe.stage2.optim.lr)
    return replace(
        recipe,
        teacher=replace(
            recipe.teacher, epochs=usual if recipe.teacher.epochs is None else recipe.teacher.epochs
        ),
        stage1=replace(
            recipe.stage1,
            epochs=share if recipe.stage1.epochs is None else recipe.stage1.epochs,
            optim=hints,
        ),
        stage2=replace(recipe.stage2, epochs=stage2),
    )


def on_its_threads(command: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A command that computes with the threads that the recipe among its arguments names."""

    @wraps(command)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        values = (*arguments, *options.values())
        recipe = next(value for value in values if isinstance(value, Recipe))
        with used_threads(recipe.run.threads):
            return command(*arguments, **options)

    return run


def plain_batches(session: Session, spec: InputSpec) -> list[Batch]:
    """Some batches of training images as they are, in a seeded order."""
    seed = session.recipe.run.seed
    views = make_dataset(session.data.train, spec, augment="none", seed=seed)
    size = min(session.recipe.data.batch_size, len(views))
    loader = make_loader(views, size, shuffle_seed=seed, drop_last=1)
    return list(islice(loader, _STATISTICS_BATCHES))
