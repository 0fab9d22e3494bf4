"""Every kind of teacher in `other_nets` as files, with its inputs and outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers.other_nets import (
    Audio,
    Clip,
    DictOutput,
    Embedding,
    FixedView,
    Mlp,
    Pyramid,
    Recurrent,
    Regression,
    Text,
    TwoInputs,
    segmenter,
)
from helpers.small_nets import quietly, trained_a_little
from torch import Tensor, nn
from torch.export import Dim

from fitcompress.models.open import open_teacher
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe, resolve_recipe


@dataclass(frozen=True)
class Case:
    """A kind of teacher."""

    make: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    """In the form of `--input`; of images in the form of `--input-size`."""
    kinds: tuple[str, ...] = ("classes",)
    names: tuple[str, ...] = ()
    is_image: bool = False
    argument_names: tuple[str, ...] = ("images",)

    def examples(self, batch_size: int) -> tuple[Tensor, ...]:
        specs = [text.partition(":") for text in self.inputs]
        return tuple(_random((batch_size, *map(int, s.split("x"))), d) for s, _, d in specs)

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return trained_a_little(self.make())


def _random(shape: tuple[int, ...], dtype: str) -> Tensor:
    return torch.randint(0, 50, shape) if dtype == "int64" else torch.randn(shape)


CASES = {
    "mlp": Case(Mlp, ("20",), argument_names=("features",)),
    "softmax": Case(lambda: Mlp(True), ("20",), argument_names=("features",)),
    "audio": Case(Audio, ("1x400",), argument_names=("wave",)),
    "lstm": Case(Recurrent, ("10x6",), argument_names=("steps",)),
    "text": Case(Text, ("12:int64",), argument_names=("tokens",)),
    "video": Case(Clip, ("3x4x16x16",), argument_names=("frames",)),
    "two inputs": Case(TwoInputs, ("3x16x16", "7"), argument_names=("picture", "table")),
    "dict": Case(DictOutput, ("3x16x16",), ("classes", "values"), ("kind", "age"), True),
    "regression": Case(Regression, ("9",), ("values",), argument_names=("row",)),
    "column": Case(lambda: Regression(False), ("9",), ("values",), argument_names=("row",)),
    "embedding": Case(Embedding, ("3x16x16",), ("values",), is_image=True),
    "segmentation": Case(segmenter, ("3x32x32",), ("values",) * 2, ("out", "aux"), True),
    "pyramid": Case(Pyramid, ("3x32x32",), ("values",) * 3, ("0", "1", "pool"), True),
    "fixed size": Case(FixedView, ("1x6x10",), is_image=True),
}
WAYS = ("traced", "scripted", "frozen", "pt2")


def stored(module: nn.Module, examples: tuple[Tensor, ...], way: str, path: Path) -> Path:
    """The module as a file."""
    with quietly(), torch.no_grad():
        if way == "pt2":
            shapes = ({0: Dim("batch")},) * len(examples)
            torch.export.save(torch.export.export(module, examples, dynamic_shapes=shapes), path)
            return path
        if way == "scripted":
            archive = torch.jit.script(module)
        else:
            archive = torch.jit.trace(module, examples, strict=False)  # for dictionaries
        torch.jit.save(torch.jit.freeze(archive) if way == "frozen" else archive, str(path))
    return path


def recipe_of(source: Path | str, settings: Mapping[str, object]) -> Recipe:
    """The usual student, twice as deep and 0.3 times as wide."""
    usual = {"student.depth_mult": 2.0, "student.width_mult": 0.3}
    return resolve_recipe(settings={"teacher.source": str(source), **usual, **settings})


@functools.cache
def opened(name: str, way: str, folder: Path) -> tuple[Teacher, Recipe, nn.Module]:
    """A teacher from a file, and the module that the file was made from. Do not modify."""
    case = CASES[name]
    module = case.module()
    path = folder / f"{name} {way}.{'pt2' if way == 'pt2' else 'pt'}"
    stored(module, case.examples(2), way, path)
    settings: dict[str, object] = {}
    if case.is_image:
        settings["teacher.input_size"] = tuple(map(int, case.inputs[0].split("x")))
    elif way != "pt2":  # a .pt2 file describes its inputs
        settings["teacher.inputs"] = case.inputs
    if name == "embedding":
        settings["teacher.output_kind"] = "values"
    recipe = recipe_of(path, settings)
    return open_teacher(recipe.teacher), recipe, module
