"""Teachers, and the steps that all kinds of teachers share."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

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
    "NamedProgram",
    "Teacher",
    "capture_for_inputs",
    "count_classes",
    "dtype_of",
    "fingerprint_of",
    "make_teacher",
    "seeded",
    "tensor_specs",
]

NamedProgram = tuple[Program, tuple[str, ...]]
"""A program and the names of its outputs."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network to distill from."""

    name: str
    """Name given by the user."""
    program: Program
    """Without a final softmax or sigmoid, which `interface.activation` names."""
    interface: Interface
    kind: str
    """"timm", "factory", "module", "torchscript", "pt2" or "folder"."""
    weights_from: str
    """"pretrained", "random", "file" (separate weight file), "archive" (part of the model file) or
    "factory".
    """
    num_classes: int
    """Number of scores per sample in the first output; 0 if it is not a classification output."""
    fingerprint: str
    """Hash of the graph and all weights."""
    can_resize_classes: bool = False
    """Whether `open_teacher(..., num_classes=K)` can give it a new head."""


def make_teacher(program: Program, interface: Interface, **fields: Any) -> Teacher:
    """A teacher whose final activation is split off and whose batch size is checked.

    fields: the fields of `Teacher` that do not follow from the program and the interface.

    Raises:
        CaptureError: the program does not give one row per sample at every batch size.
    """
    _check_batches(program, f"opening teacher '{fields['name']}'")
    program, activation = split_activation(program)
    interface = replace(interface, activation=activation or interface.activation)
    return Teacher(
        program=program,
        interface=interface,
        num_classes=count_classes(program, interface),
        fingerprint=fingerprint_of(program),
        **fields,
    )


def capture_for_inputs(module: nn.Module, *inputs: TensorSpec, meta: bool = False) -> NamedProgram:
    """Captures a module for the given inputs.

    meta: moves all tensors to the meta device.

    Raises:
        CaptureError: the module cannot be captured, or does not give one row per sample at every
            batch size.
    """
    examples = [torch.empty((2, *s.shape), dtype=dtype_of(s), device="meta") for s in inputs]
    program, output_names = capture_named_module(module, examples)
    if meta:  # constants that the module computed still have values
        tensors = {name: value.to("meta") for name, value in program.tensors.items()}
        program = replace(program, tensors=tensors)
    _check_batches(program, f"capturing {type(module).__name__}")
    return program, output_names


def _check_batches(program: Program, action: str) -> None:
    """Checks on shapes that each output has one row per sample at two batch sizes."""
    for batch_size in (1, 3):
        try:
            shapes = propagate_shapes(program, batch_size)
        except RuntimeError as error:
            raise CaptureError(
                f"{action}: the model does not run at batch size {batch_size}: {first_line(error)}",
                code="batch-size-fixed",
                batch_size=batch_size,
            ) from error
        for node in output_nodes(program.graph):
            if tuple(shapes[node.name][:1]) != (batch_size,):
                raise CaptureError(
                    f"{action}: expected one row per sample in each output, got shape"
                    f" {shapes[node.name]} for '{node.name}' and a batch of {batch_size}",
                    code="output-without-batch",
                    advice="Change the model so that the first dimension of all inputs and outputs"
                    " is the batch.",
                    output=node.name,
                    shape=list(shapes[node.name]),
                    batch_size=batch_size,
                )


def dtype_of(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype), spec
    return dtype


def count_classes(program: Program, interface: Interface) -> int:
    """Number of scores per sample in the first output; 0 if it is not a classification output."""
    shape = propagate_shapes(program)[output_nodes(program.graph)[0].name]
    return 0 if interface.kind_of(shape) == "values" else int(shape[1])


def tensor_specs(program: Program) -> tuple[TensorSpec, ...]:
    """The inputs of a program."""
    return tuple(
        TensorSpec(shape=info.shape, dtype=str(info.dtype).removeprefix("torch."), name=info.name)
        for info in program.inputs
    )


def fingerprint_of(program: Program) -> str:
    """Hash of the graph and all weights; programs with equal fingerprints have equal outputs."""
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
    """Seeds torch's CPU generator inside the block, then restores its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
