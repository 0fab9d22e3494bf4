"""Loads a saved network for use: the student of a run, or any model folder.

Imports as little as possible: neither timm nor what opens teachers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fitcompress.graph.cut import cut_program
from fitcompress.graph.lift import share_leaves
from fitcompress.graph.program import output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import Interface
from fitcompress.models.model import Model, load_model
from fitcompress.rundir import RunDir

__all__ = ["load"]


def load(path: Path | str) -> GraphModule:
    """Loads the student of a run, or the network in a model folder, in eval mode on the CPU.

    Its attribute `interface` (an `Interface`) describes the expected images and the outputs. Like
    timm's models, it has `num_classes`, `pretrained_cfg` (for `timm.data.resolve_data_config`) and,
    if one of its blocks returns maps or tokens, `forward_features`, which returns those of the last
    such block. Loading reads no pickles, runs no code from the folder and does not need the
    teacher.

    Raises:
        TeacherError: the folder holds no model, or a damaged one.
    """
    run = RunDir(Path(path))
    model = load_model(run.student_path if run.is_run() else run.path)
    network: Any = model.network  # an nn.Module takes any attribute
    network.interface = model.interface
    network.num_classes = _num_classes(model)
    if model.interface.input is not None:
        network.pretrained_cfg = _pretrained_cfg(model.interface, network.num_classes)
    if features := _features(model):
        network.forward_features = features
    return model.network


def _num_classes(model: Model) -> int:
    """Scores per row of the first output; 0 if its rows are not scores."""
    shape = propagate_shapes(model.program)[output_nodes(model.program.graph)[0].name]
    return 0 if model.interface.kind_of(shape) == "values" else int(shape[1])


def _pretrained_cfg(interface: Interface, num_classes: int) -> dict[str, Any]:
    spec = interface.images
    return {
        "architecture": interface.origin.get("teacher", "student"),
        "input_size": spec.shape,
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "num_classes": num_classes,
        "label_names": interface.class_names or None,
    }


def _features(model: Model) -> Callable[[Tensor], Tensor] | None:
    """The network up to the end of its last block that returns maps or tokens, if there is one."""
    shapes = propagate_shapes(model.program, 2)
    ends = [members[-1] for _, members in model.blocks if members]
    ends = [name for name in ends if isinstance(shapes.get(name), tuple) and len(shapes[name]) >= 3]
    if not ends:
        return None
    order = {node.name: place for place, node in enumerate(model.program.graph.nodes)}
    end = max(ends, key=order.__getitem__)
    cut = cut_program(model.program, [end], with_output=False)
    part = share_leaves(model.network, cut)

    def forward_features(*inputs: Tensor) -> Tensor:
        value = part(*inputs)
        features: Tensor = value if isinstance(value, Tensor) else value[0]
        return features

    return forward_features
