"""What came out of a run, measured on its evaluation split. Layer: pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from fitcompress.data import Images, Preprocess, make_dataset, make_loader
from fitcompress.errors import TeacherError
from fitcompress.graph.costs import measure_costs
from fitcompress.measure import (
    Predictions,
    accuracy,
    agreement,
    is_near_chance,
    mcnemar,
    predict,
    save_predictions,
    size_bytes,
)
from fitcompress.model import Model
from fitcompress.session import Session
from fitcompress.speed import paired_latency, torch_runner
from fitcompress.stages import output_kinds
from fitcompress.training import StageResult

__all__ = ["check_teacher", "measure_results", "predict_split"]

_BATCH_SIZE = 128


def predict_split(model: Model, images: Images, device: str) -> Predictions:
    """What the model says about every image of a split, each as it is."""
    spec = model.interface.images
    network: nn.Module = model.network
    if not getattr(network, "takes_pixels", False):
        network = nn.Sequential(Preprocess(spec), network).to(device)
    views = make_dataset(images, spec, augment="none", seed=0)
    return predict(network, make_loader(views, _BATCH_SIZE), device)


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

    models: "teacher", "student" and perhaps "baseline". Also writes the predictions.
    """
    predictions = {"teacher": teacher_predictions}
    for name, model in models.items():
        if name != "teacher":
            predictions[name] = predict_split(model, session.data.evaluation, session.device)
    save_predictions(session.run.predictions_path, predictions)
    speeds = _latencies(models, session.device)
    has_scores = output_kinds(models["teacher"])[0] != "values"
    results: dict[str, Any] = {
        name: {
            **measure_costs(model.program).to_dict(),
            "size_bytes": size_bytes(model.network),
            "accuracy": accuracy(predictions[name]) if has_scores else None,
            "latency_ms": {"torch": speeds[name]},
        }
        for name, model in models.items()
    }
    results["teacher"] |= {"weights_from": facts["teacher_weights"], "adapted": facts["adapted"]}
    return {
        **results,
        **(_comparisons(predictions) if has_scores else {"agreement": None, "tests": {}}),
        "stages": [asdict(stage) for stage in stages],
        "data": {
            "description": session.data.description,
            "evaluation_split": session.data.evaluation_split,
            "num_train": len(session.data.train),
            "num_held_out": len(session.data.held_out),
            "num_evaluation": len(session.data.evaluation),
        },
        "headline_facts": dict(facts),
    }


def _comparisons(predictions: Mapping[str, Predictions]) -> dict[str, Any]:
    teacher, student = predictions["teacher"], predictions["student"]
    tests = {"teacher_student": mcnemar(teacher, student)}
    if "baseline" in predictions:
        tests["student_baseline"] = mcnemar(predictions["baseline"], student)
    return {"agreement": agreement(teacher, student), "tests": tests}


def _latencies(models: Mapping[str, Model], device: str) -> dict[str, dict[str, dict[str, float]]]:
    """PyTorch's time of one call by model and batch size, the models in turns; a baseline is the
    student's twin.
    """
    runners = {
        name: torch_runner(model.network, model.interface.images.shape, device)
        for name, model in models.items()
        if name != "baseline"
    }
    speeds = paired_latency(runners)
    return {name: speeds["student" if name == "baseline" else name] for name in models}
