"""Model folders: a network stored as `model.safetensors` and `config.json`. Layer: teacher (graph,
spec, errors).

Reading one unpickles nothing and runs no code from the folder: the graph is a list of ATen calls in
JSON. It knows nothing of where the network came from beyond what the interface says.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fitcompress.errors import CaptureError, TeacherError
from fitcompress.formatting import first_line
from fitcompress.graph.analysis.blocks import Block, find_blocks, node_blocks
from fitcompress.graph.lift import BlockNodes, build_network
from fitcompress.graph.program import Program, output_nodes, program_from_json, program_to_json
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import InputSpec, Interface, OutputKind, TensorSpec

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
    """A network with all that one must know to use it."""

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
    """Writes a model folder; each file gets its final name only when it is whole, the weights
    first.

    weights: the trained network of `program`, or its tensors by name; what it lacks is taken from
        the program.
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
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / WEIGHTS_NAME, safetensors.torch.save(tensors, {"format": "pt"}))
    _write(folder / CONFIG_NAME, json.dumps(config, indent=1, allow_nan=False).encode())


def load_model(folder: Path) -> Model:
    """The model that `save_model` wrote; its network is in eval mode on the CPU.

    Raises:
        TeacherError: the folder is no model folder, or is damaged.
    """
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    try:
        program = program_from_json(config["program"], tensors)
        interface = _interface(config["interface"])
        blocks = tuple((str(name), tuple(map(str, members))) for name, members in config["blocks"])
        network = build_network(program, blocks)
    except (KeyError, TypeError, ValueError, RuntimeError, CaptureError) as error:
        raise _damaged(folder / CONFIG_NAME, error) from error
    return Model(program, network, interface, blocks)


def is_model_folder(folder: Path) -> bool:
    """Whether `save_model` wrote the folder, by what its config says."""
    try:
        return bool(_read_config(folder)["format"] == _FORMAT)
    except TeacherError:
        return False


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise TeacherError(
            f"opening model folder '{folder}': expected '{CONFIG_NAME}' in it, found none",
            advice="Name a folder that fitcompress wrote, such as runs/NAME/student.",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise TeacherError(
            f"opening model folder '{folder}': its {CONFIG_NAME} was not written by fitcompress",
            advice=f"For a folder that timm wrote, pass 'local-dir:{folder}'.",
        )
    if config.get("version") != _VERSION:
        raise TeacherError(
            f"opening model folder '{folder}': expected format version {_VERSION},"
            f" got {config.get('version')}",
            advice="Use the fitcompress release that wrote it.",
        )
    return config


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise TeacherError(f"opening model folder '{folder}': '{WEIGHTS_NAME}' is missing")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise _damaged(path, error) from error


def _interface(data: Mapping[str, Any]) -> Interface:
    """Folders of earlier releases hold networks of images, and nothing of inputs or outputs."""
    return Interface(
        input=None if data["input"] is None else _images(data["input"]),
        inputs=tuple(_tensor(item) for item in data.get("inputs", ())),
        class_names=tuple(map(str, data["class_names"])),
        activation=str(data["activation"]),
        output_names=tuple(map(str, data.get("output_names", ()))),
        output_kind=data.get("output_kind"),
        origin={str(key): str(value) for key, value in data["origin"].items()},
    )


def _images(data: Mapping[str, Any]) -> InputSpec:
    channels, height, width = map(int, data["shape"])
    return InputSpec(
        shape=(channels, height, width),
        mean=tuple(map(float, data["mean"])),
        std=tuple(map(float, data["std"])),
        interpolation=str(data["interpolation"]),
        crop_pct=float(data["crop_pct"]),
    )


def _tensor(data: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(map(int, data["shape"]))
    return TensorSpec(shape=shape, dtype=str(data["dtype"]), name=str(data["name"]))


def _damaged(path: Path, error: Exception) -> TeacherError:
    cause = first_line(error)
    return TeacherError(
        f"opening model folder '{path.parent}': '{path.name}' is damaged ({cause})",
        advice="Write it again, or restore it from a copy.",
    )


def output_kinds(model: Model) -> tuple[OutputKind, ...]:
    """What each output means."""
    shapes = propagate_shapes(model.program, 2)
    outputs = output_nodes(model.program.graph)
    return tuple(model.interface.kind_of(shapes[node.name]) for node in outputs)


def make_model(
    program: Program, interface: Interface, spine: Sequence[Block] | None = None
) -> Model:
    """The program as a network whose blocks can be hooked, with its interface.

    spine: the blocks of the program, where they are known already.
    """
    blocks = node_blocks(find_blocks(program) if spine is None else spine)
    return Model(program, build_network(program, blocks), interface, blocks)


def with_state(model: Model, state: nn.Module) -> Program:
    """The model's program with the tensors that a trained network of it holds, on the CPU."""
    trained = state.state_dict()
    tensors = {
        name: trained[name].detach().cpu() if name in trained else value
        for name, value in model.program.tensors.items()
    }
    return replace(model.program, tensors=tensors)
