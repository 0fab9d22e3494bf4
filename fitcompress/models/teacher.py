"""What an opened teacher is, and the steps that all kinds of teachers share. Layer: teacher."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from fitcompress.errors import CaptureError
from fitcompress.formatting import first_line
from fitcompress.graph.capture.eager import capture_named_module
from fitcompress.graph.cut import split_activation
from fitcompress.graph.program import Program, output_nodes, program_to_json
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import Interface, TensorSpec

__all__ = [
    "Named",
    "T",
    "Teacher",
    "captured",
    "count_classes",
    "dtype_of",
    "fingerprint_of",
    "made_teacher",
    "seeded",
    "tensor_specs",
]

T = TypeVar("T")


Named = tuple[Program, tuple[str, ...]]
"""A program and the names of its outputs."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network to learn from."""

    name: str
    """What the user called it."""
    program: Program
    """Without a softmax or sigmoid at its end (`interface.activation` names it)."""
    interface: Interface
    kind: str
    """"timm", "factory", "module", "torchscript", "pt2" or "folder"."""
    weights_from: str
    """"pretrained", "random", "file" (a file of weights), "archive" (they came with it) or
    "factory".
    """
    num_classes: int
    """Scores in a row of the first output; 0 where that is no row of scores."""
    fingerprint: str
    """Hash of the graph and all weights: two teachers with the same one say the same."""
    can_resize_classes: bool = False
    """Whether a copy with another number of classes can be made (`open_teacher(...,
    num_classes=K)`).
    """


def made_teacher(program: Program, interface: Interface, **facts: Any) -> Teacher:
    _check_batches(program, f"opening teacher '{facts['name']}'")
    program, activation = split_activation(program)
    interface = replace(interface, activation=activation or interface.activation)
    return Teacher(
        program=program,
        interface=interface,
        num_classes=count_classes(program, interface),
        fingerprint=fingerprint_of(program),
        **facts,
    )


def captured(module: nn.Module, *inputs: TensorSpec, meta: bool = False) -> Named:
    """The program of a module for some inputs, checked on shapes at two batch sizes, and the names
    of its outputs.
    """
    examples = [torch.empty((2, *s.shape), dtype=dtype_of(s), device="meta") for s in inputs]
    program, output_names = capture_named_module(module, examples)
    if meta:  # constants that the module computed have values; now all or nothing has
        tensors = {name: value.to("meta") for name, value in program.tensors.items()}
        program = replace(program, tensors=tensors)
    _check_batches(program, f"capturing {type(module).__name__}")
    return program, output_names


def _check_batches(program: Program, doing: str) -> None:
    """Runs the program on shapes at two batch sizes: each output has one row a sample."""
    for batch_size in (1, 3):
        try:
            shapes = propagate_shapes(program, batch_size)
        except RuntimeError as error:
            raise CaptureError(
                f"{doing}: it does not run on a batch of {batch_size}: {first_line(error)}"
            ) from error
        for node in output_nodes(program.graph):
            if tuple(shapes[node.name][:1]) != (batch_size,):
                raise CaptureError(
                    f"{doing}: expected one row a sample in each output, '{node.name}' has the"
                    f" shape {shapes[node.name]} for a batch of {batch_size}",
                    advice="Let it take and return tensors whose first dimension is the batch.",
                )


def dtype_of(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype), spec
    return dtype


def count_classes(program: Program, interface: Interface) -> int:
    """The scores in a row of the first output; 0 where that is no row of scores."""
    shape = propagate_shapes(program)[output_nodes(program.graph)[0].name]
    return 0 if interface.kind_of(shape) == "values" else int(shape[1])


def tensor_specs(program: Program) -> tuple[TensorSpec, ...]:
    """The inputs of a program by name."""
    return tuple(
        TensorSpec(shape=info.shape, dtype=str(info.dtype).removeprefix("torch."), name=info.name)
        for info in program.inputs
    )


def fingerprint_of(program: Program) -> str:
    """Hash of the graph and all weights: two programs with the same one compute the same."""
    digest = hashlib.sha256(json.dumps(program_to_json(program), sort_keys=True).encode())
    for name in sorted(program.tensors):
        value = program.tensors[name]
        digest.update(name.encode())
        if not value.is_meta:
            flat = value.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
