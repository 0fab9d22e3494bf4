"""The public functions, each of them one command; those that train a student are in `run` and
`ablation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.data.class_order import match_classes
from fitcompress.distillation.pairs import map_layers
from fitcompress.errors import RunError
from fitcompress.evaluation.accuracy import accuracy
from fitcompress.evaluation.predict import predict_split
from fitcompress.events import Emit, StageFinished, StageStarted, ignore
from fitcompress.exporters.formats import FORMATS, export_model
from fitcompress.exporters.from_run import file_accuracy, make_exportable
from fitcompress.exporters.latency import file_latency
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.graph.lift import build_network
from fitcompress.interface import Interface
from fitcompress.models.model import is_model_folder, load_model, make_model
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
    """The planned student: `plan --json`. Needs neither data nor weights."""
    teacher = open_teacher(recipe.teacher, emit=emit, meta=True)
    return plan_run(teacher, recipe, emit=emit, meta=True).summary.to_dict()


def plan_frontier(recipe: Recipe, *, emit: Emit = ignore) -> list[dict[str, float]]:
    """The costs and latencies of students of several depths and widths: `plan --pareto --json`."""
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
    """The accuracy of a model on the evaluation split of the recipe's data: `eval --json`.

    model: a run, a model folder, an ONNX file, or any source of a teacher.
    """
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
    """Writes the student of a run in other formats: `exports.json`.

    Each file is checked on real images, and its accuracy measured on the evaluation split. ONNX
    files other than the plain one are timed against it.

    Args:
        run: a run directory; by default the one below `runs/` with the latest activity.
        formats: of `FORMATS`.
        opset: the ONNX opset; by default the exporter chooses.
        force: replace existing files.

    Raises:
        RunError: the run has no trained student.
        ExportError: a file exists, or does not compute what the student computes.
    """
    directory = RunDir.open(run) if run else RunDir.newest()
    if not is_model_folder(directory.student_path):
        raise RunError(
            f"exporting the run '{directory.path}': its student is not trained yet",
            code="run-unfinished",
            advice=f"Finish it with `fitcompress distill --resume --out {directory.path}`.",
            path=str(directory.path),
        )
    recipe = load_recipe(directory.recipe_path)
    model = load_model(directory.student_path)
    data = load_data(recipe.data, seed=recipe.run.seed, emit=ignore)
    data = match_classes(data, model.interface.class_names)
    exportable = make_exportable(model, data, directory.student_path, opset=opset)
    records = _known_exports(directory)
    for form in formats:
        emit(StageStarted(stage=f"export {form}"))
        path = directory.exports_path / f"student{FORMATS[form].suffix}"
        record = export_model(form, exportable, path, force=force)
        record = replace(record, accuracy=file_accuracy(form, path, model.interface, data))
        if recipe.run.timing == "all" and path.suffix == ".onnx" and form != "onnx":
            record = replace(record, latency=file_latency(path, model))
        records[form] = record
        directory.write_json("exports.json", [known.to_dict() for known in records.values()])
        emit(StageFinished(stage=f"export {form}", seconds=record.seconds, num_images=0, detail={}))
    return [records[form].to_dict() for form in formats]


def _known_exports(directory: RunDir) -> dict[str, ExportRecord]:
    written = directory.read_json("exports.json") or ()
    return {record.format: record for record in map(ExportRecord.from_dict, written)}


def load_report(run: Path | None = None) -> Report | Ablation:
    """The report of a run or an ablation, finished or not.

    run: its directory; by default the one below `runs/` with the latest activity.
    """
    found = run or _newest()
    if (found / ABLATION).is_file():
        return Ablation.load(found)
    return Report.load(RunDir.open(found))


def _newest() -> Path:
    """The run or ablation below `runs/` with the latest activity."""
    root = Path("runs")
    times = {path.parent: path.stat().st_mtime for path in root.glob(f"*/{ABLATION}")}
    runs = (RunDir(path.parent) for path in root.glob("*/recipe.toml"))
    times |= {run.path: run.last_activity() for run in runs}
    return max(times, key=times.__getitem__) if times else RunDir.newest(root).path


def load_comparison(runs: Sequence[Path]) -> Comparison:
    """A comparison of runs, with tests of each student's accuracy against the first one's."""
    return Comparison.load(runs)


def demo(out: Path, *, emit: Emit = ignore) -> Report:
    """Runs the full pipeline on the built-in images: trains a small teacher, its student and a
    baseline, and exports the student.
    """
    recipe = with_settings(recipe_from_preset("modern"), {**_DEMO, "run.out": str(out)})
    distill(recipe, emit=emit)
    export(out, ["onnx"], emit=emit)
    return Report.load(RunDir.open(out))
