"""Reads the predictions of a run."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from fitcompress.evaluation.accuracy import Predictions


def load_predictions(path: Path) -> dict[str, Predictions]:
    """The predictions that `save_predictions` wrote, by network name."""
    tensors = load_file(path)
    names = sorted({key.rsplit(".", 1)[0] for key in tensors})
    return {
        name: Predictions(*(tensors[f"{name}.{part}"] for part in ("logits", "labels", "ids")))
        for name in names
    }
