"""The order of the steps, and nothing else. Layer: above everything but the console.

    teacher spec -> Teacher -> Network (graph) -> StudentPlan -> student Network -> HintPairs
        -> stage 1 -> stage 2 -> artifacts -> Report

Each function here is one command. Progress leaves as events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.data.class_order import match_classes
from fitcompress.distillation.pairs import map_layers
from fitcompress.errors import RunError
from fitcompress.evaluation.accuracy import accuracy
from fitcompress.evaluation.predict import predict_split
from fitcompress.events import Emit, StageFinished, StageStarted, ignore
from fitcompress.exporters.formats import FORMATS, export_model
from fitcompress.exporters.from_run import accuracy_of, source_of
from fitcompress.exporters.latency import beside_float
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.graph.cut import cut_program
from fitcompress.graph.lift import build_network, share_leaves
from fitcompress.graph.program import output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import Interface
from fitcompress.models.model import Model, is_model_folder, load_model, make_model
from fitcompress.models.open import open_teacher
from fitcompress.recipe.fields import with_settings
from fitcompress.recipe.recipe import Recipe, load_recipe, recipe_from_preset
from fitcompress.records.export_record import ExportRecord
from fitcompress.report.ablation_facts import ABLATION
from fitcompress.report.ablation_report import Ablation
from fitcompress.report.comparison import Comparison
from fitcompress.report.run_report import Report
from fitcompress.run.distill import distill
from fitcompress.run.prepare import load_images
from fitcompress.rundir import RunDir
from fitcompress.student.frontier import frontier
from fitcompress.student.planner import plan_run
from fitcompress.training.device import resolve_device, used_threads

__all__ = [
    "demo",
    "evaluate",
    "export",
    "inspect",
    "load",
    "load_comparison",
    "load_report",
    "plan",
    "plan_frontier",
]

_DEMO = {
    "teacher.source": "test_resnet",
    "teacher.pretrained": False,
    "teacher.epochs": 8,
    "stage1.epochs": 1,
    "stage2.epochs": 10,
    "run.baseline": True,
}


def plan(recipe: Recipe, *, emit: Emit = ignore) -> dict[str, Any]:
    """What the student would be: `plan --json`. Needs neither data nor weights."""
    teacher = open_teacher(recipe.teacher, emit=emit, meta=True)
    return plan_run(teacher, recipe, emit=emit, meta=True).summary.to_dict()


def plan_frontier(recipe: Recipe, *, emit: Emit = ignore) -> list[dict[str, float]]:
    """What students of several depths and widths cost: `plan --pareto --json`."""
    teacher = open_teacher(recipe.teacher, emit=emit, meta=True)
    return frontier(teacher.program, teacher.interface, emit=emit)


def inspect(recipe: Recipe, *, emit: Emit = ignore) -> list[dict[str, Any]]:
    """The teacher's layers in execution order: `inspect --json`."""
    teacher = open_teacher(recipe.teacher, emit=emit, meta=True)
    model = make_model(teacher.program, teacher.interface)
    return [
        {
            "name": layer.name,
            "kind": layer.kind,
            "shape": list(layer.shape),
            "depth_share": layer.depth_share,
            "candidate": layer.candidate,
        }
        for layer in map_layers(model.program, model.network).layers
    ]


def evaluate(model: str, recipe: Recipe, *, emit: Emit = ignore) -> dict[str, Any]:
    """The accuracy of any model (a folder, a teacher, an ONNX file) on the evaluation split."""
    with used_threads(recipe.run.threads):
        data = load_images(recipe, emit)
        network, interface = _open_any(model, recipe, data, emit)
        data = match_classes(data, interface.class_names)
        device = resolve_device(recipe.run.device)
        predictions = predict_split(network, interface, data.evaluation, device)
    has_scores = interface.kind_of(predictions.logits_NK.shape) != "values"
    measured = accuracy(predictions) if has_scores else None
    return {
        "accuracy": measured.to_dict() if measured else None,
        "n": len(predictions.ids_N),
        "model": model,
        "data": data.description,
        "evaluation_split": data.evaluation_split,
    }


def _open_any(
    model: str, recipe: Recipe, data: DataBundle, emit: Emit
) -> tuple[nn.Module, Interface]:
    if model.endswith(".onnx"):
        network = open_onnx(Path(model))
        return network, network.interface
    source = replace(recipe.teacher, source=model)
    teacher = open_teacher(source, image_size=data.image_size, emit=emit)
    return build_network(teacher.program), teacher.interface


def export(
    run: Path | None = None,
    formats: Sequence[str] = ("onnx",),
    *,
    opset: int | None = None,
    force: bool = False,
    emit: Emit = ignore,
) -> list[dict[str, Any]]:
    """Writes the student of a run in other formats, each checked on real images, its accuracy
    measured on the evaluation split, and of other ONNX files than the plain one how fast they are
    beside it: `exports.json`.

    opset: of ONNX; None is the exporter's own choice.

    Raises:
        RunError: the run has no student yet.
        ExportError: a file exists already, or does not compute what the student computes.
    """
    directory = RunDir.open(run) if run else RunDir.newest()
    if not is_model_folder(directory.student_path):
        raise RunError(
            f"exporting the run '{directory.path}': its student is not trained yet",
            advice=f"finish it with `fitcompress distill --resume --out {directory.path}`",
        )
    recipe = load_recipe(directory.recipe_path)
    model = load_model(directory.student_path)
    data = load_data(recipe.data, seed=recipe.run.seed, emit=ignore)
    data = match_classes(data, model.interface.class_names)
    source = source_of(model, data, directory.student_path, opset=opset)
    records = _known_exports(directory)
    for form in formats:
        emit(StageStarted(stage=f"export {form}"))
        path = directory.exports_path / f"student{FORMATS[form].suffix}"
        record = export_model(form, source, path, force=force)
        record = replace(record, accuracy=accuracy_of(form, path, model.interface, data))
        if recipe.run.timing == "all" and path.suffix == ".onnx" and form != "onnx":
            record = replace(record, latency=beside_float(path, model))
        records[form] = record
        directory.write_json("exports.json", [known.to_dict() for known in records.values()])
        emit(StageFinished(stage=f"export {form}", seconds=record.seconds, num_images=0, detail={}))
    return [records[form].to_dict() for form in formats]


def _known_exports(directory: RunDir) -> dict[str, ExportRecord]:
    written = directory.read_json("exports.json") or ()
    return {record.format: record for record in map(ExportRecord.from_dict, written)}


def load_report(run: Path | None = None) -> Report | Ablation:
    """The report of a run, finished or not; of the newest under `runs/` when none is named; of all
    runs of an ablation.
    """
    found = run or _newest()
    if (found / ABLATION).is_file():
        return Ablation.load(found)
    return Report.load(RunDir.open(found))


def _newest() -> Path:
    """Of the runs and ablations below `runs/` the one in which something happened last."""
    root = Path("runs")
    times = {path.parent: path.stat().st_mtime for path in root.glob(f"*/{ABLATION}")}
    runs = (RunDir(path.parent) for path in root.glob("*/recipe.toml"))
    times |= {run.path: run.last_activity() for run in runs}
    return max(times, key=times.__getitem__) if times else RunDir.newest(root).path


def load_comparison(runs: Sequence[Path]) -> Comparison:
    """Runs side by side, and whether their students' accuracies differ from the first one's."""
    return Comparison.load(runs)


def demo(out: Path, *, emit: Emit = ignore) -> Report:
    """The whole road on the built-in images: a small teacher, its student, the same student without
    it, an export.
    """
    recipe = with_settings(recipe_from_preset("modern"), {**_DEMO, "run.out": str(out)})
    distill(recipe, emit=emit)
    export(out, ["onnx"], emit=emit)
    return Report.load(RunDir.open(out))


def load(path: Path | str) -> GraphModule:
    """The network in a model folder, or the student of a run, in eval mode on the CPU.

    Its `interface` (a `Interface`) says which images it takes and what its outputs
    mean. As timm's models do it has `pretrained_cfg`, from which `timm.data.resolve_data_config`
    makes the transforms, `num_classes`, and, where a block of it gives maps or tokens,
    `forward_features`, which returns those of the last one. No pickle is read, no code from the
    folder is run, and the teacher is not needed.

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
    """Scores in a row of the first output; 0 where that is no row of scores."""
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
    """The network up to the end of its last block that gives maps or tokens."""
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
