"""The order of the steps, and nothing else. Layer: above everything but the console.

    teacher spec -> Teacher -> Network (graph) -> StudentPlan -> student Network -> HintPairs
        -> stage 1 -> stage 2 -> artifacts -> Report

Each function here is one command. Progress leaves as events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitcompress.student.latency_search import frontier
from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.data.class_order import match_classes
from fitcompress.errors import RunError
from fitcompress.events import Emit, Event, Notice, Progress, StageFinished, StageStarted, ignore
from fitcompress.run.evaluate import check_teacher, measure_results, predict_split
from fitcompress.exporters.from_run import accuracy_of, source_of
from fitcompress.exporters.formats import FORMATS, export_model
from fitcompress.graph.lift import build_network
from fitcompress.run.hints import inherit_statistics
from fitcompress.distillation.pairs import map_layers
from fitcompress.evaluation.accuracy import accuracy
from fitcompress.models.model import Model, is_model_folder, load_model, save_model
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.student.planner import Planned, make_model, plan_run, with_state
from fitcompress.run.prepare import load_images, prepare_teacher
from fitcompress.ranks import is_first_process
from fitcompress.recipe.recipe import Recipe, load_recipe, recipe_from_preset, recipe_to_toml
from fitcompress.report.run_report import Report
from fitcompress.report.ablation_facts import ABLATION, Ablation
from fitcompress.report.comparison import Comparison
from fitcompress.rundir import RunDir
from fitcompress.run.session import Session, on_its_threads, resolve_training
from fitcompress.recipe.fields import flat_settings, with_settings
from fitcompress.run.stage import adapt_teacher, estimate_cost, train_baseline, train_hints, train_student, training_seconds
from fitcompress.models.open import open_teacher
from fitcompress.models.teacher import Teacher
from fitcompress.run.cache_policy import drop_answers
from fitcompress.exporters.latency import beside_float
from fitcompress.run.trackers import tracked
from fitcompress.training.device import resolve_device
from fitcompress.run.autotune import as_chosen, compiling, tuned

__all__ = [
    "demo",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load_comparison",
    "load_report",
    "plan",
    "plan_frontier",
    "train_teacher",
]

_DEMO = {
    "teacher.source": "test_resnet",
    "teacher.pretrained": False,
    "teacher.epochs": 8,
    "stage1.epochs": 1,
    "stage2.epochs": 10,
    "run.baseline": True,
}


@on_its_threads
def distill(
    recipe: Recipe,
    *,
    teacher: Teacher | None = None,
    resume: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> Report:
    """Builds, trains, checks and reports the student of the recipe, in the directory `run.out`.

    teacher: one that is open already (`teacher_from_module`), instead of `recipe.teacher.source`.

    Raises:
        FitcompressError: see `errors`; what the run directory holds by then can be resumed.
        Interrupted: stopped by a signal; `resume=True` goes on.
    """
    run = RunDir.create(Path(recipe.run.out or "runs/run"), force=force, resume=resume)
    emit = _recording(run, recipe, emit)
    if resume and run.is_finished():
        emit(Notice(topic="run", message=f"the run '{run.path}' is finished already"))
        return Report.load(run)
    prepared = prepare_teacher(recipe, run, teacher, emit, resume=resume)
    session, opened, stages = prepared.session, prepared.teacher, [*prepared.stages]
    recipe = session.recipe
    planned = plan_run(opened, recipe, emit=emit, before=_planned_before(run))
    run.write_json("plan.json", planned.summary)
    before = predict_split(planned.teacher, session.data.evaluation, session.device)
    if opened.num_classes:
        check_teacher(before, opened.name, session.data.evaluation_split)
    seconds = training_seconds(session, planned)
    if seconds is not None:
        emit(estimate_cost(session, planned, seconds))
    session = compiling(session, planned.student, seconds)
    run.write_text("recipe.toml", recipe_to_toml(session.recipe))
    if planned.inherits:
        inherit_statistics(session, planned.student)
    models = {"teacher": planned.teacher, "student": planned.student}
    if recipe.stage1.epochs:
        stages.append(train_hints(session, planned, opened.fingerprint))
    stages.append(train_student(session, planned, opened.fingerprint))
    _save(run.student_path, planned.student, recipe, planned)
    if recipe.run.baseline and session.data.labelled and opened.num_classes:
        models["baseline"], result = train_baseline(session, planned, opened.fingerprint)
        stages.append(result)
        _save(run.baseline_path, models["baseline"], recipe, planned)
    if not is_first_process():
        return Report.load(run)
    results = measure_results(session, models, before, stages, prepared.facts)
    run.write_json("results.json", results)
    drop_answers(run)
    return Report.load(run)


def _recording(run: RunDir, recipe: Recipe, emit: Emit) -> Emit:
    """Passes events on, keeps all but progress in the run directory, and logs them where the recipe
    says; of several processes the first one speaks.
    """
    if not is_first_process():
        return ignore
    emit = tracked(recipe.run.log, run.path, flat_settings(recipe), emit)

    def record(event: Event) -> None:
        if not isinstance(event, Progress):
            run.append_event(event)
        emit(event)

    return record


def _planned_before(run: RunDir) -> tuple[float, float] | None:
    """Depth-mult and most multiply-adds of the run's student before it was interrupted."""
    if not (run.path / "plan.json").is_file():
        return None
    plan = run.read_json("plan.json")
    return (plan["depth_mult"], plan["most_macs"]) if plan["most_macs"] else None


def _save(folder: Path, model: Model, recipe: Recipe, planned: Planned) -> None:
    from fitcompress import __version__

    if not is_first_process():
        return
    mults = {name: planned.summary[name] for name in ("depth_mult", "width_mult")}
    origin = {
        "teacher": recipe.teacher.source,
        **{name: f"{mult:.4g}" for name, mult in mults.items() if mult is not None},
        "fitcompress": __version__,
    }
    interface = replace(model.interface, origin=origin)
    save_model(folder, with_state(model, model.network), {}, interface, model.blocks)


def plan(recipe: Recipe, *, emit: Emit = ignore) -> dict[str, Any]:
    """What the student would be: `plan --json`. Needs neither data nor weights."""
    teacher = open_teacher(recipe.teacher, emit=emit, meta=True)
    return plan_run(teacher, recipe, emit=emit, meta=True).summary


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


@on_its_threads
def train_teacher(model: str, recipe: Recipe, *, resume: bool = False, emit: Emit = ignore) -> Path:
    """The model folder `recipe.run.out`: a timm model fine-tuned on the recipe's data.

    Below it, `training/` keeps the recipe, the events and the last checkpoint, from which `resume`
    goes on.
    """
    folder = Path(recipe.run.out or "teachers/teacher")
    run = RunDir.create(folder / "training", force=not resume, resume=resume)
    emit = _recording(run, recipe, emit)
    data = load_images(recipe, emit)
    source = replace(recipe.teacher, source=model)
    recipe = resolve_training(replace(recipe, teacher=source), data)
    if run.is_run():
        recipe = as_chosen(recipe, load_recipe(run.recipe_path))
    run.write_text("recipe.toml", recipe_to_toml(recipe))
    teacher = open_teacher(
        source,
        image_size=data.image_size,
        num_classes=data.num_classes,
        emit=emit,
        allow_random=True,
        seed=recipe.run.seed,
    )
    session = tuned(Session(recipe, data, emit, run, resume), teacher)
    run.write_text("recipe.toml", recipe_to_toml(session.recipe))
    adapt_teacher(session, teacher, folder)
    return folder


@on_its_threads
def evaluate(model: str, recipe: Recipe, *, emit: Emit = ignore) -> dict[str, Any]:
    """The accuracy of any model (a folder, a teacher, an ONNX file) on the evaluation split."""
    data = load_images(recipe, emit)
    opened = _open_any(model, recipe, data, emit)
    data = match_classes(data, opened.interface.class_names)
    predictions = predict_split(opened, data.evaluation, resolve_device(recipe.run.device))
    has_scores = opened.interface.kind_of(predictions.logits_NK.shape) != "values"
    return {
        "accuracy": accuracy(predictions) if has_scores else None,
        "n": len(predictions.ids_N),
        "model": model,
        "data": data.description,
        "evaluation_split": data.evaluation_split,
    }


def _open_any(model: str, recipe: Recipe, data: DataBundle, emit: Emit) -> Model:
    if model.endswith(".onnx"):
        network = open_onnx(Path(model))
        return Model(None, network, network.interface)  # type: ignore[arg-type]
    source = replace(recipe.teacher, source=model)
    teacher = open_teacher(source, image_size=data.image_size, emit=emit)
    return Model(teacher.program, build_network(teacher.program), teacher.interface)


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
        measured: dict[str, Any] = {"accuracy": accuracy_of(form, path, model.interface, data)}
        if recipe.run.timing == "all" and path.suffix == ".onnx" and form != "onnx":
            measured["latency"] = beside_float(path, model)
        records[form] = {**record.to_dict(), **measured}
        directory.write_json("exports.json", list(records.values()))
        emit(StageFinished(stage=f"export {form}", seconds=record.seconds, num_images=0, detail={}))
    return [records[form] for form in formats]


def _known_exports(directory: RunDir) -> dict[str, dict[str, Any]]:
    if not directory.exports_json_path.is_file():
        return {}
    return {record["format"]: record for record in directory.read_json("exports.json")}


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
