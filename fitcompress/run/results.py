"""What a run measured on its evaluation split: `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fitcompress.atomic import atomic_path, disk_errors
from fitcompress.errors import TeacherError
from fitcompress.evaluation.accuracy import (
    Predictions,
    accuracy,
    agreement,
    is_near_chance,
    mcnemar,
    save_predictions,
    size_bytes,
)
from fitcompress.evaluation.errors_by_class import (
    calibration,
    class_accuracies,
    disagreements,
    doubts,
)
from fitcompress.evaluation.predict import images_digest, predict_split
from fitcompress.exporters.latency import latencies, peak_memory
from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.interface import OutputKind
from fitcompress.models.model import Model, output_kinds
from fitcompress.run.session import Session
from fitcompress.training.stage_result import StageResult

__all__ = ["check_teacher", "measure_results"]

_THUMBNAIL_SIDE = 64


def check_teacher(predictions: Predictions, name: str, split: str) -> None:
    """Stop before a night is spent on a classifier that knows nothing about these images.

    Raises:
        TeacherError: its accuracy is near chance.
    """
    measured, num_classes = accuracy(predictions), predictions.logits_NK.shape[1]
    if measured is None or num_classes < 2 or not is_near_chance(measured, num_classes):
        return
    raise TeacherError(
        f"checking teacher '{name}' on the {split} images: it is right on"
        f" {measured['top1']:.1%} of {measured['n']}, near chance for {num_classes} classes",
        advice="check the normalisation (--mean, --std, --input-size), the order of the classes"
        " (--class-map), or train it longer (--teacher-epochs)",
    )


def measure_results(
    session: Session,
    models: Mapping[str, Model],
    teacher_predictions: Predictions,
    stages: Sequence[StageResult],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """`results.json`: every model's size, accuracy and speed, how they compare, what stages cost.

    models: "teacher", "student" and perhaps "baseline". Also writes the predictions, and
    pictures of the images most in doubt.
    """
    predictions = {"teacher": teacher_predictions}
    for name, model in models.items():
        if name != "teacher":
            predictions[name] = predict_split(
                model.network, model.interface, session.data.evaluation, session.device
            )
    save_predictions(session.run.predictions_path, predictions)
    kind = output_kinds(models["teacher"])[0]
    costs = _costs(session, models)
    results: dict[str, Any] = {
        name: {
            **costs[name],
            "accuracy": accuracy(predictions[name]) if kind != "values" else None,
            "calibration": calibration(predictions[name], kind) if kind != "values" else None,
        }
        for name in models
    }
    results["teacher"] |= {"weights_from": facts["teacher_weights"], "adapted": facts["adapted"]}
    return {
        **results,
        **_comparisons(session, models["teacher"], predictions, kind),
        "stages": [asdict(stage) for stage in stages],
        "data": {
            "description": session.data.description,
            "evaluation_split": session.data.evaluation_split,
            "num_train": len(session.data.train),
            "num_held_out": len(session.data.held_out),
            "num_evaluation": len(session.data.evaluation),
            "evaluation_digest": images_digest(session.data.evaluation),
        },
        "headline_facts": dict(facts),
    }


def _comparisons(
    session: Session, model: Model, predictions: Mapping[str, Predictions], kind: OutputKind
) -> dict[str, Any]:
    """Where the networks differ, in all and image by image; writes the pictures of some. Nothing
    of the kind where the outputs are no scores.
    """
    if kind == "values":
        return {"agreement": None, "tests": {}}
    teacher, student = predictions["teacher"], predictions["student"]
    names = _class_names(session, model, teacher)
    tests = {"teacher_student": mcnemar(teacher, student)}
    if "baseline" in predictions:
        tests["student_baseline"] = mcnemar(predictions["baseline"], student)
    return {
        "agreement": agreement(teacher, student),
        "tests": tests,
        "classes": class_accuracies(predictions, names),
        "disagreements": disagreements(teacher, student, names),
        "doubts": [
            {**doubt, "thumbnail": _write_thumbnail(session, doubt["id"])}
            for doubt in doubts(teacher, student, names, kind)
        ],
    }


def _class_names(session: Session, model: Model, predictions: Predictions) -> Sequence[str]:
    """A name for each output and label: the network's, the data's, or its number."""
    count = max(predictions.logits_NK.shape[1], int(predictions.labels_N.max()) + 1)
    for names in (model.interface.class_names, session.data.class_names):
        if names and len(names) == count:
            return names
    return [str(number) for number in range(count)]


def _write_thumbnail(session: Session, index: int) -> str:
    """A small picture of an evaluation image, without what its file says of place and camera; its
    path below the run directory.
    """
    path = session.run.thumbnails_path / f"{index}.png"
    picture = session.data.evaluation.load(index).copy()
    picture.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE))
    picture.info.clear()
    with disk_errors("writing", path):
        path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")
    return path.relative_to(session.run.path).as_posix()


def _costs(session: Session, models: Mapping[str, Model]) -> dict[str, dict[str, Any]]:
    """What each network takes: size, memory, time. A baseline is the student's twin."""
    timed = {name: model for name, model in models.items() if name != "baseline"}
    costs: dict[str, dict[str, Any]] = {
        name: {
            **measure_costs(model.program).to_dict(),
            "size_bytes": size_bytes(model.network),
        }
        for name, model in timed.items()
    }
    timing, device = session.recipe.run.timing, session.device
    if timing != "none":
        times = latencies(timed, device, session.emit, in_onnx=timing == "all")
        for name, model in timed.items():
            memory = peak_memory(model, device)
            costs[name] |= {"peak_memory_bytes": memory, "latency_ms": times[name]}
    return {name: costs["student" if name == "baseline" else name] for name in models}
