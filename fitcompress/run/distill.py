"""One run, step by step.

teacher -> student plan and hint pairs -> stage 1 -> stage 2 -> student folder -> report
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fitcompress.evaluation.accuracy import Predictions
from fitcompress.evaluation.predict import predict_split
from fitcompress.events import Emit, Notice, ignore
from fitcompress.models.model import Model, save_model, with_state
from fitcompress.models.teacher import Teacher
from fitcompress.ranks import is_first_process
from fitcompress.recipe.recipe import Recipe
from fitcompress.records.plan_summary import PlanSummary
from fitcompress.records.run_results import HeadlineFacts
from fitcompress.report.run_report import Report
from fitcompress.run.baseline import train_baseline
from fitcompress.run.cache_policy import remove_cache
from fitcompress.run.estimate import estimate_training, training_seconds
from fitcompress.run.event_log import record_events
from fitcompress.run.hints import reestimate_statistics
from fitcompress.run.prepare import Prepared, prepare_run
from fitcompress.run.resolve import resolve_compile
from fitcompress.run.results import measure_results
from fitcompress.run.session import Session, host_device
from fitcompress.run.stage1 import train_hints
from fitcompress.run.stage2 import train_student
from fitcompress.run.teacher_check import check_teacher
from fitcompress.rundir import RunDir
from fitcompress.student.planner import Planned, plan_run
from fitcompress.training.device import used_threads
from fitcompress.training.stage_result import StageResult

__all__ = ["distill"]


def distill(
    recipe: Recipe,
    *,
    teacher: Teacher | None = None,
    resume: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> Report:
    """Plans, trains and evaluates the student of a recipe in the run directory `recipe.run.out`.

    teacher: an opened teacher (`teacher_from_module`), instead of `recipe.teacher.source`.
    resume: continue the run in that directory.
    force: replace the run in that directory.

    Raises:
        FitcompressError: see `errors`; a run that got as far as its recipe can be resumed.
        Interrupted: stopped by a signal; `resume=True` continues.
    """
    with used_threads(recipe.run.threads):
        run = RunDir.create(Path(recipe.run.out or "runs/run"), force=force, resume=resume)
        emit = record_events(run, recipe, emit)
        if resume and run.is_finished():
            message = f"the run '{run.path}' is already finished"
            emit(Notice(topic="run", code="run-finished", message=message))
            return Report.load(run)
        prepared = prepare_run(recipe, run, teacher, emit, resume=resume)
        data, opened = prepared.data, prepared.teacher
        planned = plan_run(opened, prepared.recipe, emit=emit, before=_stored_plan(run))
        run.write_json("plan.json", planned.summary.to_dict())
        before = _check_teacher(prepared, planned.teacher)
        session = _start_session(prepared, planned, run, emit, resume=resume)
        models, stages = _train(session, planned)
        if is_first_process():
            facts = HeadlineFacts(
                teacher_weights=opened.weights_from,
                adapted=prepared.adaptation is not None,
                evaluation_split=data.evaluation_split,
            )
            stages = [*([prepared.adaptation] if prepared.adaptation else []), *stages]
            results = measure_results(session, models, before, stages, facts)
            run.write_json("results.json", results.to_dict())
            remove_cache(run)
        return Report.load(run)


def _stored_plan(run: RunDir) -> tuple[float, float] | None:
    """Depth multiplier and MACs limit of a resumed run's student, found by a latency search."""
    if (stored := run.read_json("plan.json")) is None:
        return None
    plan = PlanSummary.from_dict(stored)
    return (plan.depth_mult, plan.most_macs) if plan.depth_mult and plan.most_macs else None


def _check_teacher(prepared: Prepared, teacher: Model) -> Predictions:
    """The teacher's predictions on the evaluation split, which must be better than chance."""
    data = prepared.data
    device = host_device(prepared.recipe)
    predictions = predict_split(teacher.network, teacher.interface, data.evaluation, device)
    if prepared.teacher.num_classes:
        check_teacher(predictions, prepared.teacher.name, data.evaluation_split)
    return predictions


def _start_session(
    prepared: Prepared, planned: Planned, run: RunDir, emit: Emit, *, resume: bool
) -> Session:
    """Announces the cost of training, and makes the last choice that depends on it: compiling."""
    recipe, data = prepared.recipe, prepared.data
    seconds = training_seconds(recipe, data, planned)
    if seconds is not None:
        emit(estimate_training(recipe, planned.student, seconds))
    recipe = resolve_compile(recipe, data, planned.student, seconds, emit)
    return Session.start(recipe, data, run, emit, resume=resume)


def _train(session: Session, planned: Planned) -> tuple[dict[str, Model], list[StageResult]]:
    """The trained and saved networks by name, with the teacher, and the stages they took."""
    recipe, run = session.recipe, session.run
    models, stages = {"teacher": planned.teacher, "student": planned.student}, []
    if planned.inherits_statistics:
        reestimate_statistics(session, planned.student)
    if recipe.stage1.epochs:
        stages.append(train_hints(session, planned))
    stages.append(train_student(session, planned))
    _save(run.student_path, planned.student, recipe, planned)
    if recipe.run.baseline and session.data.is_labeled and planned.num_classes:
        models["baseline"], result = train_baseline(session, planned)
        stages.append(result)
        _save(run.baseline_path, models["baseline"], recipe, planned)
    return models, stages


def _save(folder: Path, model: Model, recipe: Recipe, planned: Planned) -> None:
    from fitcompress import __version__

    if not is_first_process():
        return
    origin = {"teacher": recipe.teacher.source}
    if planned.plan:
        origin["depth_mult"] = f"{planned.plan.depth_mult:.4g}"
        origin["width_mult"] = f"{planned.plan.width_mult:.4g}"
    interface = replace(model.interface, origin=origin | {"fitcompress": __version__})
    save_model(folder, with_state(model, model.network), {}, interface, model.blocks)
