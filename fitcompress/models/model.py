"""Networks with their interface, and the folders that store them.

A model folder holds `model.safetensors` and `config.json`. Loading it unpickles nothing and runs no
code from it: the graph is a list of ATen calls in JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fitcompress.atomic import atomic_path, disk_errors, write_text
from fitcompress.errors import CaptureError, TeacherError
from fitcompress.formatting import first_line
from fitcompress.graph.analysis.blocks import Block, find_blocks, node_blocks
from fitcompress.graph.lift import BlockNodes, build_network
from fitcompress.graph.program import Program, output_nodes, program_from_json, program_to_json
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import Interface, OutputKind, interface_from_json

__all__ = [
    "CONFIG_NAME",
    "WEIGHTS_NAME",
    "Model",
    "is_model_folder",
    "load_model",
    "make_model",
    "output_kinds",
    "save_model",
    "with_state",
]

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_FORMAT = "fitcompress-model"
_VERSION = 1


@dataclass(frozen=True)
class Model:
    """A program, its network and how to use it."""

    program: Program
    network: GraphModule
    interface: Interface
    blocks: tuple[BlockNodes, ...] = ()


def save_model(
    folder: Path,
    program: Program,
    weights: nn.Module | Mapping[str, Tensor],
    interface: Interface,
    blocks: Iterable[BlockNodes] = (),
) -> None:
    """Writes a model folder. Each file is written atomically, the weights first.

    weights: the trained network of `program`, or its tensors by name; the tensors that it lacks are
        taken from the program.

    Raises:
        RunError: the disk is full or writing is not permitted.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {
        name: state.get(name, value).detach().to("cpu", copy=True).contiguous()
        for name, value in program.tensors.items()
    }
    config = {
        "format": _FORMAT,
        "version": _VERSION,
        "interface": asdict(interface),
        "blocks": [[name, list(members)] for name, members in blocks],
        "program": program_to_json(program),
    }
    with disk_errors("creating", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS_NAME) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, {"format": "pt"}))
    write_text(folder / CONFIG_NAME, json.dumps(config, indent=1, allow_nan=False))


def load_model(folder: Path) -> Model:
    """Loads a model folder; the network is in eval mode on the CPU.

    Raises:
        TeacherError: the folder is not a model folder or is damaged.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    try:
        program = program_from_json(config["program"], tensors)
        interface = interface_from_json(config["interface"])
        blocks = tuple((str(name), tuple(map(str, members))) for name, members in config["blocks"])
        network = build_network(program, blocks)
    except (KeyError, TypeError, ValueError, RuntimeError, CaptureError) as error:
        raise _damaged(folder / CONFIG_NAME, error) from error
    return Model(program, network, interface, blocks)


def is_model_folder(folder: Path) -> bool:
    """Whether `save_model` wrote the folder, according to its config."""
    try:
        return bool(_read_config(folder)["format"] == _FORMAT)
    except TeacherError:
        return False


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise TeacherError(
            f"opening model folder '{folder}': it has no '{CONFIG_NAME}'",
            code="model-file-missing",
            advice="Pass a folder that fitcompress wrote, such as runs/NAME/student.",
            folder=str(folder),
            file=CONFIG_NAME,
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise TeacherError(
            f"opening model folder '{folder}': its {CONFIG_NAME} was not written by fitcompress",
            code="model-folder-foreign",
            advice=f"For a folder that timm wrote, pass 'local-dir:{folder}'.",
            folder=str(folder),
        )
    if config.get("version") != _VERSION:
        raise TeacherError(
            f"opening model folder '{folder}': expected format version {_VERSION},"
            f" got {config.get('version')}",
            code="model-version-unsupported",
            advice="Use the fitcompress release that wrote it.",
            folder=str(folder),
            expected=_VERSION,
            got=config.get("version"),
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise TeacherError(
            f"opening model folder '{folder}': it has no '{WEIGHTS_NAME}'",
            code="model-file-missing",
            folder=str(folder),
            file=WEIGHTS_NAME,
        )
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> TeacherError:
    cause = first_line(error)
    return TeacherError(
        f"opening model folder '{path.parent}': '{path.name}' is damaged ({cause})",
        code="model-file-damaged",
        advice="Restore the file from a copy, or rerun the command that wrote it.",
        folder=str(path.parent),
        file=path.name,
    )


def output_kinds(model: Model) -> tuple[OutputKind, ...]:
    """The meaning of each output."""
    shapes = propagate_shapes(model.program, 2)
    outputs = output_nodes(model.program.graph)
    return tuple(model.interface.kind_of(shapes[node.name]) for node in outputs)


def make_model(
    program: Program, interface: Interface, spine: Sequence[Block] | None = None
) -> Model:
    """A model whose network has a submodule for each block, so that blocks can be hooked.

    spine: the blocks of the program, if known.
    """
    blocks = node_blocks(find_blocks(program) if spine is None else spine)
    return Model(program, build_network(program, blocks), interface, blocks)


def with_state(model: Model, state: nn.Module) -> Program:
    """The model's program with the tensors of a trained copy of its network, on the CPU."""
    trained = state.state_dict()
    tensors = {
        name: trained[name].detach().cpu() if name in trained else value
        for name, value in model.program.tensors.items()
    }
    return replace(model.program, tensors=tensors)
