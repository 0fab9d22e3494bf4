"""Run directories of a finished and an unfinished run, with made-up numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from fitcompress.evaluation import significance
from fitcompress.events import EpochFinished, Notice, StageFinished, StageStarted
from fitcompress.rundir import RunDir

RECIPE = """\
preset = "modern"
[teacher]
source = "resnet20"
[student]
depth_mult = 2.0
width_mult = 0.3
"""

PLAN: dict[str, Any] = {
    "teacher": {"params": 272474, "macs": 40813184, "flops": 81626368, "depth": 20},
    "student": {"params": 51234, "macs": 8012345, "flops": 16024690, "depth": 40},
    "stages": [
        {
            "name": f"layer{index}",
            "teacher": {
                "blocks": 3,
                "width": [width, size, size],
                "params": width * 700,
                "first": f"layer{index}.0",
                "last": f"layer{index}.2",
            },
            "student": {
                "blocks": 6,
                "width": [round(width * 0.3), size, size],
                "params": width * 130,
                "first": f"layer{index}.0",
                "last": f"layer{index}.5",
            },
        }
        for index, width, size in ((1, 16, 28), (2, 32, 14), (3, 64, 7))
    ],
    "pairs": [
        {
            "hint": "layer2.1",
            "guided": "layer2.3",
            "hint_shape": [32, 14, 14],
            "guided_shape": [10, 14, 14],
            "regressor": "conv 1x1, 10 to 32",
        }
    ],
    "frozen": [
        {
            "reason": "a position table that is resized",
            "sizes": [49, 64],
            "tensors": [f"layer{index}.0.table" for index in (1, 2, 3, 4, 5)],
        }
    ],
    "learns_hints": True,
    "notices": ["No --data was given: the built-in sample of Fashion-MNIST is used."],
    "depth_mult": 2.0,
    "width_mult": 0.3,
    "most_macs": None,
    "init": "random",
}

ENVIRONMENT = {
    "command": "fitcompress distill --teacher resnet20 --width-mult 0.3 --out runs/example",
    "python": "3.11.7",
    "platform": "Linux x86_64",
    "versions": {
        "fitcompress": "0.1.0",
        "torch": "2.15.0",
        "timm": "1.0.31",
        "onnxruntime": "1.31.1",
    },
    "device": "cpu",
    "cpu": "Example CPU",
    "threads": 2,
    "gpu": None,
}


def share(num_correct: int, n: int) -> dict[str, Any]:
    """An accuracy as JSON."""
    return significance.share(num_correct, n).to_dict()


def timing(median_ms: float, speedup: float, batch: int = 1) -> dict[str, Any]:
    """A latency as JSON: 50 calls, two of them slow."""
    samples = [median_ms * (0.95 + 0.1 * k / 47) for k in range(48)]
    return {
        "median_ms": median_ms,
        "p95_ms": 1.2 * median_ms,
        "n": 50,
        "samples_ms": [*samples, 1.2 * median_ms, 5 * median_ms],
        "images_per_s": 1000 * batch / median_ms,
        "warmup": 3,
        "threads": 2,
        "device": "cpu",
        "speedup": speedup,
        "speedup_range": [0.97 * speedup, 1.03 * speedup],
    }


def calibration(num_right: int) -> dict[str, Any]:
    """Two bins; the upper one is overconfident."""
    bins = [
        {"low": 7 / 15, "high": 8 / 15, "confidence": 0.5, "accuracy": share(100, 200)},
        {"low": 14 / 15, "high": 1.0, "confidence": 0.99, "accuracy": share(num_right - 100, 1800)},
    ]
    gap = 0.9 * abs(0.99 - bins[1]["accuracy"]["top1"])
    return {"ece": gap, "n": 2000, "bins": bins}


CLASSES = [
    {
        "name": name,
        "teacher": share(teacher, 200),
        "student": share(student, 200),
        "baseline": share(student - 3, 200),
    }
    for name, teacher, student in (("T-shirt/top", 170, 160), ("Trouser", 195, 196))
]
DISAGREEMENTS = [
    {"teacher": "Shirt", "student": "Coat", "n": 23, "teacher_right": 12, "student_right": 8},
    {"teacher": "Coat", "student": "Shirt", "n": 9, "teacher_right": 2, "student_right": 2},
]
DOUBTS = [
    {
        "id": index,
        "kl": 2 + index / 100,
        "label": label,
        "teacher": "Sandal",
        "student": "Bag",
        "teacher_confidence": 0.914,
        "student_confidence": 0.62,
        "thumbnail": f"thumbnails/{index}.png",
    }
    for index, label in ((17, "Sandal"), (4, "Bag"))
]


def results(**changes: Any) -> dict[str, Any]:
    """The results of the finished run; `changes` replace top-level entries."""
    value: dict[str, Any] = {
        "teacher": {
            **PLAN["teacher"],
            "size_bytes": 1100000,
            "peak_memory_bytes": {"1": 2_100_000, "32": 9_400_000},
            "accuracy": share(1830, 2000),
            "calibration": calibration(1830),
            "latency_ms": {
                "torch": {"1": timing(2.2, 1.0), "32": timing(14.0, 1.0, 32)},
                "onnxruntime": {"1": timing(0.9, 1.0), "32": timing(11.0, 1.0, 32)},
            },
            "weights_from": "pretrained",
            "adapted": True,
        },
        "student": {
            **PLAN["student"],
            "size_bytes": 230000,
            "peak_memory_bytes": {"1": 900_000, "32": 5_100_000},
            "accuracy": share(1788, 2000),
            "calibration": calibration(1788),
            "latency_ms": {
                "torch": {"1": timing(3.6, 0.61), "32": timing(8.0, 1.75, 32)},
                "onnxruntime": {"1": timing(0.7, 1.28), "32": timing(4.0, 2.75, 32)},
            },
        },
        "baseline": {
            **PLAN["student"],
            "size_bytes": 230000,
            "accuracy": share(1741, 2000),
            "calibration": calibration(1741),
            "latency_ms": {},
        },
        "agreement": {**share(1850, 2000), "kl": 0.0712},
        "tests": {
            "teacher_student": significance.paired_test(96, 54, 2000).to_dict(),
            "student_baseline": significance.paired_test(90, 137, 2000).to_dict(),
        },
        "classes": CLASSES,
        "disagreements": DISAGREEMENTS,
        "doubts": DOUBTS,
        "stages": [
            {"stage": "stage1", "waiting_share": 0.0312, "flops_per_image": 61_000_000},
            {"stage": "stage2", "waiting_share": 0.25, "flops_per_image": 129_700_754},
        ],
        "data": {
            "description": "10,000 training and 2,000 test images, 28 x 28, 10 classes.",
            "evaluation_split": "test",
            "evaluation_digest": "d1",
        },
        "headline_facts": {"teacher_weights": "pretrained", "adapted": True},
    }
    return {**value, **changes}


def unfinished_run(path: Path) -> RunDir:
    """A run that was stopped in stage 2."""
    run = RunDir.create(path)
    run.write_text("recipe.toml", RECIPE)
    run.write_json("environment.json", ENVIRONMENT)
    run.write_json("plan.json", PLAN)
    run.append_event(Notice(topic="training", message="1 unreadable image was left out."))
    _append_stage(run, "stage1", [1.9, 1.1, 0.8], None)
    _append_stage(run, "stage2", [2.1, 1.2], [0.61, 0.78], is_finished=False)
    return run


def finished_run(path: Path, **changes: Any) -> RunDir:
    """A run with all its parts; `changes` replace entries of its results."""
    run = RunDir.create(path)
    run.write_text("recipe.toml", RECIPE)
    run.write_json("environment.json", ENVIRONMENT)
    run.write_json("plan.json", PLAN)
    _append_stage(run, "teacher", [1.4, 0.7, 0.5, 0.4], [0.71, 0.84, 0.88, 0.905])
    _append_stage(run, "stage1", [1.9, 1.1, 0.8], None)
    _append_stage(run, "stage2", [2.1, 1.2, 0.9, 0.8, 0.74], [0.61, 0.78, 0.85, 0.88, 0.893])
    _append_stage(run, "baseline", [1.6, 0.9, 0.7, 0.6, 0.55], [0.55, 0.74, 0.82, 0.86, 0.87])
    run.write_json("exports.json", [EXPORT])
    run.write_json("results.json", results(**changes))
    run.thumbnails_path.mkdir(exist_ok=True)
    for doubt in DOUBTS:
        Image.new("RGB", (2, 2), (255, 0, 0)).save(run.path / doubt["thumbnail"])
    return run


def write_outputs(run: RunDir, right: Sequence[bool]) -> None:
    """Writes predictions of two classes, the images in reverse order; all labels are 1."""
    ids = np.arange(len(right))[::-1].copy()
    chosen = np.asarray(right)[ids].astype(int)
    tensors = {
        "student.logits": np.eye(2, dtype=np.float32)[chosen],
        "student.labels": np.ones(len(right), dtype=np.int64),
        "student.ids": ids,
    }
    save_file(tensors, run.predictions_path)


def _without_samples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: value[key] for key in value if key != "samples_ms"}


EXPORT = {
    "format": "onnx-int8",
    "path": "runs/example/exports/student.int8.onnx",
    "size_bytes": 221000,
    "checked_batches": [1, 8],
    "max_abs_diff": 2.1e-6,
    "max_rel_diff": 2.4e-7,
    "top1_agreement": 1.0,
    "seconds": 3.1,
    "remark": "1 of 20 layers in float",
    "accuracy": share(1786, 2000),
    "latency": {
        "1": _without_samples(timing(2.0, 1.5)),
        "32": {**_without_samples(timing(9.0, 0.98, 32)), "speedup_range": [0.9, 1.1]},
    },
}


def _append_stage(
    run: RunDir,
    stage: str,
    losses: list[float],
    top1: list[float] | None,
    *,
    is_finished: bool = True,
) -> None:
    run.append_event(StageStarted(stage=stage, num_epochs=len(losses), num_steps_per_epoch=141))
    for index, loss in enumerate(losses):
        held_out = {"loss": loss + 0.05} | ({"top1": top1[index]} if top1 else {})
        run.append_event(
            EpochFinished(
                stage=stage,
                epoch=index + 1,
                losses={"loss": loss, "lr": 0.001},
                held_out=held_out,
                seconds=12.5,
                images_per_s=720.0,
            )
        )
    if is_finished:
        run.append_event(
            StageFinished(
                stage=stage, seconds=12.5 * len(losses), num_images=9000 * len(losses), detail={}
            )
        )
