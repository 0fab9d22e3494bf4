"""Tiny data and networks for the tests of training; also a program for the tests that kill it.

python toy_training.py CHECKPOINT RESULT

trains or resumes, and writes the losses of all epochs and a digest of the weights.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fitcompress.data.images import ArrayImages
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import make_dataset
from fitcompress.distillation.objectives import DistillObjective
from fitcompress.events import ignore
from fitcompress.interface import InputSpec
from fitcompress.recipe.schema import OptimRecipe, Stage2Recipe
from fitcompress.training.engine import train
from fitcompress.training.train_config import Runtime, TrainConfig

SPEC = InputSpec(shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
NUM_CLASSES = 3
RUNTIME = {field.name for field in fields(Runtime)}


def make_views(
    num=48, *, seed=0, augment="crop", mixup=0.0, labeled=True, pixels=None, labels=None
):
    """Random 8x8 images; the bright third is the class."""
    generator = np.random.default_rng(seed)
    if pixels is None:
        labels = generator.integers(0, NUM_CLASSES, num)
        pixels = generator.integers(0, 100, (num, 8, 8), dtype=np.uint8)
        for image, label in zip(pixels, labels, strict=True):
            image[label * 2 : label * 2 + 3] += 120
    labels = np.asarray(labels) if labeled else np.full(len(pixels), -1)
    images = ArrayImages(pixels, labels)
    return make_dataset(images, SPEC, augment=augment, seed=0, mixup=mixup)


class Net(nn.Module):
    """Convolution, batch norm, dropout (so that random numbers matter), two halves."""

    def __init__(self, width, num_classes=NUM_CLASSES):
        super().__init__()
        self.lower = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.middle = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.upper = nn.Sequential(nn.Dropout(0.2), nn.Flatten(), nn.Linear(width * 9, num_classes))

    def forward(self, x_NCHW):
        return self.upper(self.middle(self.lower(x_NCHW)))


class Lower(nn.Module):
    """A network cut after its middle: returns a tuple, shares its leaves."""

    def __init__(self, net):
        super().__init__()
        self.lower, self.middle = net.lower, net.middle

    def forward(self, x_NCHW):
        return (self.middle(self.lower(x_NCHW)),)


def make_net(width, seed):
    torch.manual_seed(seed)
    return Net(width)


def make_distill(recipe=None, **arguments):
    return DistillObjective(
        make_net(8, seed=1),
        make_net(4, seed=2),
        recipe or Stage2Recipe(tau=3.0, lambda_kd=4.0, lambda_kd_end=1.0, label_weight=1.0),
        teacher_preprocess=Preprocess(SPEC),
        student_preprocess=Preprocess(SPEC),
        **arguments,
    )


def run_distill(checkpoint_path, *, objective=None, data=None, emit=ignore, resume=False, **more):
    """Trains three epochs of stage 2; `more` are fields of TrainConfig and Runtime."""
    objective = objective or make_distill()
    data = data or (make_views(mixup=0.2), make_views(12, seed=1, augment="none"))
    runtime = {name: more.pop(name) for name in RUNTIME & more.keys()}
    config = {"stage": "stage2", "optim": OptimRecipe(lr=0.01), "epochs": 3, "batch_size": 8}
    result = train(
        objective,
        data,
        TrainConfig(**config | {"seed": 0, "checkpoint_path": Path(checkpoint_path)} | more),
        Runtime(**{"device": "cpu", "precision": "fp32"} | runtime),
        emit=emit,
        resume=resume,
    )
    return result, objective


def digest(network):
    """A hash of the weights."""
    total = hashlib.sha256()
    for name, value in network.state_dict().items():
        total.update(name.encode() + value.contiguous().numpy().tobytes())
    return total.hexdigest()


def summary(result, network):
    """The parts of a result that must not depend on how often training was stopped."""
    keys = ("epoch", "losses", "held_out")
    history = [{key: record[key] for key in keys} for record in result.history]
    return {"history": history, "num_images": result.num_images, "weights": digest(network)}


def train_slowly(checkpoint_path, result_path):
    """Trains from the checkpoint, if there is one, and writes the summary to `result_path`."""
    torch.set_num_threads(1)
    slow = make_distill()
    losses = slow.losses

    def slow_losses(batch, progress):
        time.sleep(0.002)  # about as long as a real step, so that a kill can land anywhere
        return losses(batch, progress)

    slow.losses = slow_losses
    print("ready", flush=True)
    outcome, trained = run_distill(checkpoint_path, objective=slow, epochs=8, resume=True)
    text = json.dumps(summary(outcome, trained.trained))
    Path(result_path).write_text(text, encoding="utf-8")
