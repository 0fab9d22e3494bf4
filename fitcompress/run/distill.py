"""One run, step by step.

teacher source -> Teacher -> StudentPlan -> student Model -> HintPairs
    -> stage 1 -> stage 2 -> student folder -> Report
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fitcompress.evaluation.predict import predict_split
from fitcompress.events import Emit, Notice, ignore
from fitcompress.models.model import Model, save_model, with_state
from fitcompress.models.teacher import Teacher
from fitcompress.ranks import is_first_process
from fitcompress.recipe.recipe import Recipe, recipe_to_toml
from fitcompress.report.run_report import Report
from fitcompress.run.autotune import compiling
from fitcompress.run.baseline import train_baseline
from fitcompress.run.cache_policy import remove_cache
from fitcompress.run.estimate import estimate_cost, training_seconds
from fitcompress.run.event_log import record_events
from fitcompress.run.hints import inherit_statistics
from fitcompress.run.prepare import prepare_teacher
from fitcompress.run.results import check_teacher, measure_results
from fitcompress.run.session import on_its_threads
from fitcompress.run.stage1 import train_hints
from fitcompress.run.stage2 import train_student
from fitcompress.rundir import RunDir
from fitcompress.student.planner import Planned, plan_run

__all__ = ["distill"]


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
    emit = record_events(run, recipe, emit)
    if resume and run.is_finished():
        emit(Notice(topic="run", message=f"the run '{run.path}' is finished already"))
        return Report.load(run)
    prepared = prepare_teacher(recipe, run, teacher, emit, resume=resume)
    session, opened, stages = prepared.session, prepared.teacher, [*prepared.stages]
    recipe = session.recipe
    planned = plan_run(opened, recipe, emit=emit, before=_planned_before(run))
    run.write_json("plan.json", planned.summary)
    before = predict_split(
        planned.teacher.network, planned.teacher.interface, session.data.evaluation, session.device
    )
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
    remove_cache(run)
    return Report.load(run)


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
