"""Measures the networks of a finished run: `results.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from fitcompress.atomic import atomic_path, disk_errors
from fitcompress.evaluation.accuracy import (
    Predictions,
    accuracy,
    agreement,
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
from fitcompress.records.measurements import PairedTest
from fitcompress.records.run_results import (
    DataFacts,
    HeadlineFacts,
    ModelResult,
    RunResults,
    StageRecord,
)
from fitcompress.run.session import Session
from fitcompress.training.stage_result import StageResult

__all__ = ["measure_results"]

_THUMBNAIL_SIDE = 64


def measure_results(
    session: Session,
    models: Mapping[str, Model],
    teacher_predictions: Predictions,
    stages: Sequence[StageResult],
    facts: HeadlineFacts,
) -> RunResults:
    """The size, accuracy and latency of each model, their comparison and the cost of the stages.

    Also writes the predictions and thumbnails of the images with the largest divergence.

    models: "teacher", "student" and perhaps "baseline".
    """
    predictions = {"teacher": teacher_predictions}
    for name, model in models.items():
        if name != "teacher":
            predictions[name] = predict_split(
                model.network, model.interface, session.data.evaluation, session.device
            )
    save_predictions(session.run.predictions_path, predictions)
    kind = output_kinds(models["teacher"])[0]
    results = _model_results(session, models)
    if kind != "values":
        results = {
            name: replace(
                result,
                accuracy=accuracy(predictions[name]),
                calibration=calibration(predictions[name], kind),
            )
            for name, result in results.items()
        }
    compared = RunResults(
        teacher=replace(
            results["teacher"], weights_from=facts.teacher_weights, adapted=facts.adapted
        ),
        student=results["student"],
        baseline=results.get("baseline"),
        agreement=None,
        stages=tuple(StageRecord.from_dict(asdict(stage)) for stage in stages),
        data=_data_facts(session),
        headline_facts=facts,
    )
    if kind == "values":
        return compared
    return _with_comparisons(compared, session, models["teacher"], predictions, kind)


def _data_facts(session: Session) -> DataFacts:
    data = session.data
    return DataFacts(
        description=data.description,
        evaluation_split=data.evaluation_split,
        num_train=len(data.train),
        num_held_out=len(data.held_out),
        num_evaluation=len(data.evaluation),
        evaluation_digest=images_digest(data.evaluation),
    )


def _with_comparisons(
    results: RunResults,
    session: Session,
    model: Model,
    predictions: Mapping[str, Predictions],
    kind: OutputKind,
) -> RunResults:
    """The results with the networks compared on all images, by class and image by image; writes
    thumbnails.
    """
    teacher, student = predictions["teacher"], predictions["student"]
    names = _class_names(session, model, teacher)
    tests: dict[str, PairedTest | None] = {"teacher_student": mcnemar(teacher, student)}
    if "baseline" in predictions:
        tests["student_baseline"] = mcnemar(predictions["baseline"], student)
    return replace(
        results,
        agreement=agreement(teacher, student),
        tests=tests,
        classes=class_accuracies(predictions, names),
        disagreements=disagreements(teacher, student, names),
        doubts=tuple(
            replace(doubt, thumbnail=_write_thumbnail(session, doubt.id))
            for doubt in doubts(teacher, student, names, kind)
        ),
    )


def _class_names(session: Session, model: Model, predictions: Predictions) -> Sequence[str]:
    """Class names: those of the network, those of the data, or numbers."""
    count = max(predictions.logits_NK.shape[1], int(predictions.labels_N.max()) + 1)
    for names in (model.interface.class_names, session.data.class_names):
        if names and len(names) == count:
            return names
    return [str(number) for number in range(count)]


def _write_thumbnail(session: Session, index: int) -> str:
    """Writes a small picture of an evaluation image, without its metadata (place, camera); returns
    its path relative to the run directory.
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


def _model_results(session: Session, models: Mapping[str, Model]) -> dict[str, ModelResult]:
    """Size, memory and latency of each network. The baseline has those of the student."""
    timed = {name: model for name, model in models.items() if name != "baseline"}
    results = {name: _sizes(model) for name, model in timed.items()}
    timing, device = session.recipe.run.timing, session.device
    if timing != "none":
        times = latencies(timed, device, session.emit, in_onnx=timing == "all")
        for name, model in timed.items():
            memory = peak_memory(model, device)
            results[name] = replace(results[name], peak_memory_bytes=memory, latency_ms=times[name])
    return {name: results["student" if name == "baseline" else name] for name in models}


def _sizes(model: Model) -> ModelResult:
    costs = measure_costs(model.program)
    return ModelResult(
        params=costs.params,
        macs=costs.macs,
        depth=costs.depth,
        flops=costs.flops,
        size_bytes=size_bytes(model.network),
        accuracy=None,
        calibration=None,
    )
