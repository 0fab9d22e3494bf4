"""Programs for the tests of `graph`: captured modules and timm models without weights."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.program import Program, clone, run_program


def captured(module: nn.Module, *shapes: tuple[int, ...]) -> Program:
    """The program of a module for inputs of these shapes, each without its batch."""
    return capture_module(module.eval(), tuple(torch.randn(2, *shape) for shape in shapes))


@functools.cache
def timm_program(name: str, size: int | None = None) -> Program:
    """A timm model on the meta device, at its own input size or a smaller one."""
    import timm

    with torch.device("meta"):
        model = timm.create_model(
            name, pretrained=False, **({"img_size": size} if size and "vit" in name else {})
        ).eval()
    channels, height, width = model.default_cfg["input_size"]
    shape = (channels, size or height, size or width)
    return capture_module(model, (torch.zeros(2, *shape, device="meta"),))


def filled(program: Program, seed: int = 0) -> Program:
    """A copy of a program on the meta device with random tensors."""
    generator = torch.Generator().manual_seed(seed)

    def fill(name: str, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return torch.zeros(value.shape, dtype=value.dtype)
        noise = torch.rand(value.shape, generator=generator) * 0.5 + 0.25
        return noise if name.endswith("running_var") else noise - 0.5

    tensors = {
        name: fill(name, value) if value.is_meta else value
        for name, value in program.tensors.items()
    }
    return replace(program, tensors=tensors)


def outputs(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    return run_program(program, *inputs)


def kept_places(algebra: AxisAlgebra, axis: Axis, kept: Mapping[Atom, list[int]]) -> list[int]:
    """The kept indices of an axis, from the kept indices of its factors."""
    places = [0]
    for factor in algebra.normal(axis):
        if isinstance(factor, Atom):
            own = kept.get(factor, list(range(factor.size)))
        else:
            offsets = itertools.accumulate((algebra.size(t) for t in factor.terms), initial=0)
            own = [
                offset + place
                for offset, term in zip(offsets, factor.terms, strict=False)
                for place in kept_places(algebra, term, kept)
            ]
        places = [place * algebra.size((factor,)) + inner for place in places for inner in own]
    return places


def unnamed(program: Program) -> Program:
    """The program as captured from a frozen archive: tensors are numbered, nodes have no owner."""
    copy = clone(program)
    names = {name: f"constant_{number}" for number, name in enumerate(program.tensors)}
    for node in copy.graph.nodes:
        node.meta = {"owner": ""}
        if node.op == "get_attr":
            node.target = names[str(node.target)]
    tensors = {names[name]: value for name, value in program.tensors.items()}
    return replace(copy, tensors=tensors, trainable=frozenset(names[n] for n in program.trainable))
