"""What every training stage of a run shares."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import NewType

from fitcompress.data.bundle import DataBundle
from fitcompress.data.loader import make_loader
from fitcompress.data.views import Batch, Views, make_dataset
from fitcompress.events import Emit
from fitcompress.interface import InputSpec
from fitcompress.recipe.recipe import Recipe, recipe_to_toml
from fitcompress.rundir import RunDir
from fitcompress.training.device import resolve_device

__all__ = ["ResolvedRecipe", "Session", "host_device", "plain_batches"]

_MAX_PLAIN_BATCHES = 32

ResolvedRecipe = NewType("ResolvedRecipe", Recipe)
"""A recipe whose epochs, learning rates and form of the teacher are decided: see `run.resolve`.
`run.compile` is still "auto" where it was not worth measuring, which means "off"."""


@dataclass(frozen=True)
class Session:
    """The recipe, data and run directory of a training, fixed from start to end."""

    recipe: ResolvedRecipe
    data: DataBundle
    emit: Emit
    run: RunDir
    resume: bool = False

    @classmethod
    def start(
        cls, recipe: ResolvedRecipe, data: DataBundle, run: RunDir, emit: Emit, *, resume: bool
    ) -> Session:
        """A session whose recipe is in the run directory before anything is trained by it, so that
        a resumed run computes the same bits.
        """
        run.write_text("recipe.toml", recipe_to_toml(recipe))
        return cls(recipe, data, emit, run, resume)

    @property
    def device(self) -> str:
        """See `host_device`."""
        return host_device(self.recipe)

    def views(self, spec: InputSpec) -> tuple[Views, Views]:
        """Augmented training views and plain held-out views at a network's input size."""
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


def host_device(recipe: Recipe) -> str:
    """The device that holds whole networks: the CPU if they are sharded for training, otherwise the
    training device.
    """
    return "cpu" if recipe.run.shard else resolve_device(recipe.run.device)


def plain_batches(recipe: Recipe, data: DataBundle, spec: InputSpec) -> list[Batch]:
    """Up to 32 batches of training images without augmentation, in a seeded order."""
    seed = recipe.run.seed
    views = make_dataset(data.train, spec, augment="none", seed=seed)
    size = min(recipe.data.batch_size, len(views))
    loader = make_loader(views, size, shuffle_seed=seed, drop_last=1)
    return list(islice(loader, _MAX_PLAIN_BATCHES))
