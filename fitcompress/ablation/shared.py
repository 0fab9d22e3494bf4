"""The teacher, images and measured settings that the runs of an ablation share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcompress.ablation.arms import COMMON
from fitcompress.errors import DataError, RunError, TeacherError
from fitcompress.evaluation.predict import images_digest
from fitcompress.events import Emit, Notice
from fitcompress.models.model import output_kinds
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.fields import flat_settings, with_settings
from fitcompress.recipe.recipe import Recipe, continued_recipe, load_recipe, recipe_to_toml
from fitcompress.records.ablation_record import SharedFacts
from fitcompress.run.estimate import training_seconds
from fitcompress.run.prepare import Prepared, prepare_run
from fitcompress.run.resolve import resolve_compile
from fitcompress.rundir import RunDir
from fitcompress.student.planner import plan_run

__all__ = ["CACHE_FOLDER", "TEACHER_FOLDER", "Shared", "prepare_shared"]

CACHE_FOLDER, TEACHER_FOLDER = "answers", "teacher"
"""Folders of an ablation: the cached teacher outputs, and the run that prepares the teacher."""


@dataclass(frozen=True)
class Shared:
    """What all runs of an ablation have in common."""

    root: Path
    recipe: Recipe
    """The recipe that the arms change."""
    teacher: Teacher
    facts: SharedFacts

    @property
    def cache_path(self) -> Path:
        """Teacher outputs that all arms of a seed share."""
        return self.root / CACHE_FOLDER


def prepare_shared(
    recipe: Recipe, root: Path, stored: SharedFacts | None, teacher: Teacher | None, emit: Emit
) -> Shared:
    """Prepares images and teacher, and decides once what each run would decide for itself.

    stored: the facts of a resumed ablation, which are kept.

    Raises:
        RunError: the teacher or the images have changed since the ablation was started.
        TeacherError: the arms cannot be compared by accuracy, or an output is not a classification.
        DataError: not all images have a label.
    """
    run = RunDir.create(root / TEACHER_FOLDER, resume=True)
    prepared = prepare_run(_common_recipe(recipe, run, emit), run, teacher, emit, resume=True)
    # every arm runs the teacher in the form measured here, also when the ablation is resumed
    run.write_text("recipe.toml", recipe_to_toml(prepared.recipe))
    _require_accuracy(prepared)
    digest = images_digest(prepared.data.evaluation)
    if stored:
        _require_same(stored, prepared.teacher.fingerprint, digest)
    facts = stored or _decide(prepared, digest, emit)
    return Shared(root, _base_recipe(prepared, facts, root), prepared.teacher, facts)


def _common_recipe(recipe: Recipe, run: RunDir, emit: Emit) -> Recipe:
    """The recipe with the settings of all arms; when resumed, the stored one.

    Raises:
        RecipeError: the recipe contradicts the stored one.
    """
    requested, default = flat_settings(recipe), flat_settings(Recipe())
    for name, common in COMMON.items():
        if requested[name] not in (common, default[name]):
            message = f"all arms use {name} = {common!r} instead of {requested[name]!r}"
            emit(Notice(topic="run", code="setting-overridden", message=message))
    common_recipe = with_settings(recipe, {**COMMON, "run.out": str(run.path)})
    if not run.is_run():
        return common_recipe
    return continued_recipe(load_recipe(run.recipe_path), common_recipe, run.path.parent)


def _require_accuracy(prepared: Prepared) -> None:
    teacher = prepared.teacher
    if not teacher.num_classes or teacher.interface.output_kind == "labels":
        raise TeacherError(
            f"running an ablation of '{teacher.name}': arms are compared by accuracy, and the"
            " teacher's outputs are not class scores",
            code="teacher-without-classes",
            advice="Use `fitcompress distill`, which also supports other outputs.",
            teacher=teacher.name,
        )
    if not prepared.data.is_labeled:
        raise DataError(
            "running an ablation: arms are compared by accuracy, and not all images have a label",
            code="labels-missing",
            advice="Use labeled images.",
        )


def _require_same(stored: SharedFacts, fingerprint: str, digest: str) -> None:
    for name, before, now in (
        ("teacher", stored.teacher, fingerprint),
        ("images", stored.images, digest),
    ):
        if before != now:
            raise RunError(
                f"resuming an ablation: the {name} changed after it was started",
                code="ablation-changed",
                advice="Choose another --out: the runs would not be comparable.",
                changed=name,
            )


def _decide(prepared: Prepared, digest: str, emit: Emit) -> SharedFacts:
    """Plans the student, and measures how long its training takes and whether to compile."""
    base = prepared.recipe
    planned = plan_run(prepared.teacher, base, emit=emit)
    if "values" in output_kinds(planned.teacher):
        raise TeacherError(
            f"running an ablation of '{prepared.teacher.name}': expected only class scores as"
            " outputs, got an output that every arm would learn from the teacher",
            code="output-without-classes",
            teacher=prepared.teacher.name,
        )
    seconds = training_seconds(base, prepared.data, planned) or 0.0
    compiled = resolve_compile(base, prepared.data, planned.student, seconds, emit)
    settings: dict[str, Any] = {"run.compile": compiled.run.compile}
    if base.data.views is None:  # a new view in each epoch, the same in all arms of a seed
        settings["data.views"] = (base.stage1.epochs or 0) + (base.stage2.epochs or 0) or None
    if base.student.target_latency and planned.plan:  # another search may find another student
        settings |= {
            "student.target_latency": None,
            "student.target_flops": None,
            "student.target_macs": f"{planned.plan.limits.macs:.0f}",
            "student.depth_mult": planned.plan.depth_mult,
        }
    return SharedFacts(
        teacher=prepared.teacher.fingerprint, images=digest, settings=settings, seconds=seconds
    )


def _base_recipe(prepared: Prepared, facts: SharedFacts, root: Path) -> Recipe:
    settings = dict(facts.settings)
    if prepared.recipe.run.cache_teacher == "auto":
        settings["run.cache_teacher"] = str(root / CACHE_FOLDER)
    if prepared.adaptation:
        adapted = RunDir(root / TEACHER_FOLDER).teacher_path
        settings |= {"teacher.source": str(adapted), "teacher.weights": None}
    return with_settings(prepared.recipe, settings)
