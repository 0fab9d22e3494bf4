"""Open torchvision's models as TorchScript archives, plan a student for each, and write one CSV row
per model and kind of archive.

    python torchvision_models.py --out torchvision.csv
    python torchvision_models.py --out all.csv --all --models 'regnet*' 'mvit*'

Without `--all` it takes the smallest of each family: classification, segmentation, video, and the
backbones of the detectors. The weights are random. A row is written when its model is done, so a
stopped sweep continues where it was.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from itertools import groupby
from pathlib import Path

import torch
from rows import add_rows, one_line, read_rows
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision import models
from torchvision.models.detection import backbone_utils

from fitcompress.events import ignore
from fitcompress.graph.program import Program, output_nodes, run_program
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.student.planner import plan_run

WAYS = ("traced", "scripted")
SIZES = {"classification": "3x224x224", "segmentation": "3x128x128", "detection": "3x128x128"}
CLIPS = {"s3d": "3x16x224x224", "mvit": "3x16x224x224", "": "3x8x112x112"}
"""Inputs of video models by prefix of the name: channels, frames, height, width."""


@dataclass(frozen=True)
class Model:
    """A model to try."""

    name: str
    task: str
    family: str
    make: Callable[[], nn.Module]
    num_params: int = 0
    """As stated by torchvision; 0 if it does not."""

    @property
    def size(self) -> str:
        """Input shape without the batch, in the syntax of `--input`."""
        if self.task == "video":
            return next(size for start, size in CLIPS.items() if self.name.startswith(start))
        return SIZES[self.task]


@dataclass(kw_only=True)
class Row:
    """Result for one archive; fields of steps that were not reached are empty."""

    model: str
    task: str
    family: str
    way: str
    size: str
    opened: bool = False
    difference: float = 0.0
    """Largest difference between the outputs of program and module, relative to the largest one."""
    outputs: str = ""
    verified: bool = False
    """The student runs at two batch sizes and has outputs of the same shapes."""
    params: int = 0
    params_ratio: float = 0.0
    depth: int = 0
    depth_ratio: float = 0.0
    hint: str = ""
    guided: str = ""
    seconds: float = 0.0
    """Time to open and plan."""
    notice: str = ""


def found_models() -> Iterator[Model]:
    """All models with one input tensor, and the backbones of the detectors."""
    tasks = {
        "classification": (models, {}),
        "segmentation": (models.segmentation, {"weights_backbone": None}),
        "video": (models.video, {}),
    }
    for task, (module, options) in tasks.items():
        for name in models.list_models(module=module):
            builder = models.get_model_builder(name)
            more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            family = builder.__module__.rpartition(".")[2]
            make = partial(builder, **{"weights": None, **options, **more})
            num_params = models.get_model_weights(name).DEFAULT.meta["num_params"]
            yield Model(name, task, family, make, num_params)
    for name in ("resnet18", "resnet50"):
        make = partial(backbone_utils.resnet_fpn_backbone, backbone_name=name, weights=None)
        yield Model(f"{name}_fpn", "detection", "resnet_fpn", make)
    options = {"backbone_name": "mobilenet_v3_large", "fpn": True, "weights": None}
    make = partial(backbone_utils.mobilenet_backbone, **options)
    yield Model("mobilenet_v3_large_fpn", "detection", "mobilenet_fpn", make)


def smallest(found: list[Model]) -> list[Model]:
    """The model with the fewest parameters of each family."""
    ordered = sorted(found, key=lambda model: (model.task, model.family))
    families = groupby(ordered, key=lambda model: (model.task, model.family))
    return [min(members, key=lambda model: model.num_params) for _, members in families]


def measure(model: Model, way: str) -> list[Row]:
    """The row of one archive; an error becomes its notice."""
    row = Row(model=model.name, task=model.task, family=model.family, way=way, size=model.size)
    try:
        with tempfile.TemporaryDirectory() as folder:
            _fill(row, model, Path(folder) / "teacher.pt")
    except Exception as error:
        row.notice = one_line(error)
    return [row]


def _fill(row: Row, model: Model, path: Path) -> None:
    torch.manual_seed(0)
    module = model.make().eval()
    example = torch.randn(2, *map(int, row.size.split("x")))
    _store(module, example, row.way, path)
    settings = {"teacher.source": str(path), "teacher.inputs": (row.size,)}
    recipe = resolve_recipe(settings=settings)

    start = time.perf_counter()
    teacher = open_teacher(recipe.teacher)
    row.opened = True
    planned = plan_run(teacher, recipe, emit=ignore, meta=True)
    row.seconds = round(time.perf_counter() - start, 1)

    with torch.no_grad():
        row.difference = _difference(run_program(teacher.program, example), module(example))
    row.outputs = " ".join(teacher.interface.output_names)
    for batch_size in (1, 3):
        assert _shapes(teacher.program, batch_size) == _shapes(planned.student.program, batch_size)
    row.verified = True
    assert planned.plan is not None
    teacher_costs, costs = planned.plan.teacher_costs, planned.plan.costs
    row.params, row.depth = teacher_costs.params, teacher_costs.depth
    row.params_ratio = round(costs.params / teacher_costs.params, 4)
    row.depth_ratio = round(costs.depth / teacher_costs.depth, 4)
    row.hint, row.guided = planned.pairs[0].hint.name, planned.pairs[0].guided.name
    row.notice = "; ".join(planned.summary.notices)


def _store(module: nn.Module, example: Tensor, way: str, path: Path) -> None:
    with torch.no_grad():
        if way == "traced":
            archive = torch.jit.trace(module, (example,), strict=False, check_trace=False)
        else:
            archive = torch.jit.script(module)
    torch.jit.save(archive, str(path))


def _difference(found: tuple[Tensor, ...], result: object) -> float:
    expected = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
    assert len(found) == len(expected)
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)


def _shapes(program: Program, batch_size: int) -> list[tuple[int, ...]]:
    shapes = propagate_shapes(program, batch_size)
    return [shapes[node.name] for node in output_nodes(program.graph)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["*"], help="name patterns")
    parser.add_argument(
        "--all", action="store_true", help="all models, not only the smallest of each family"
    )
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    found = [m for m in found_models() if any(fnmatch(m.name, p) for p in given.models)]
    done = {(row["model"], row["way"]) for row in read_rows(given.out)}
    chosen = found if given.all else smallest(found)
    todo = [(model, way) for model in chosen for way in WAYS if (model.name, way) not in done]
    tasks = [partial(measure, model, way) for model, way in todo]
    add_rows(given.out, Row, tasks, processes=given.processes)


if __name__ == "__main__":
    main()
