"""Whole runs in a second or two: bright stripes of three classes, a small network that knows them.

`helpers.toy_runs:make_net` is also the factory by which the command line finds the teacher.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fitcompress.interface import InputSpec
from fitcompress.models.open import teacher_from_module
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe, resolve_recipe

NAMES = ("left", "middle", "right")
"""The third of the image that is bright."""
SIDE = 12
SPEC = InputSpec(shape=(3, SIDE, SIDE), mean=(0.3,) * 3, std=(0.25,) * 3)


def pixels_of(label: int, generator: np.random.Generator) -> np.ndarray:
    """An image (H, W, 3), uint8, of noise with one bright third."""
    pixels = generator.integers(0, 110, (SIDE, SIDE, 3), dtype=np.uint8)
    third = SIDE // 3
    pixels[:, label * third : (label + 1) * third] += 120
    return pixels


def write_images(root: Path, *, num_train: int = 16, num_test: int = 10) -> Path:
    """Class folders `train/` and `test/` with the given numbers of images per class."""
    generator = np.random.default_rng(0)
    for split, count in (("train", num_train), ("test", num_test)):
        for label, name in enumerate(NAMES):
            write_class(root / split / name, label, count, generator)
    return root


def write_class(folder: Path, label: int, count: int, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(pixels_of(label, generator)).save(folder / f"{number:03}.png")


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = self.bn1(self.conv1(x_NCHW)).relu()
        return (x_NCHW + self.bn2(self.conv2(y_NCHW))).relu()


class TinyNet(nn.Module):
    """Two stages of two residual blocks."""

    def __init__(self, num_classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(width), Residual(width))
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.layer2 = nn.Sequential(Residual(2 * width), Residual(2 * width))
        self.pool = nn.AdaptiveAvgPool2d((1, 3))
        self.head = nn.Linear(6 * width, num_classes)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.layer2(self.down(self.layer1(self.stem(x_NCHW))))
        return self.head(self.pool(x_NCHW).flatten(1))


def make_net(num_classes: int = 3) -> nn.Module:
    return TinyNet(num_classes)


def make_small(num_classes: int = 3) -> nn.Module:
    """A custom student."""
    return TinyNet(num_classes, width=4)


def some_images(num: int = 5) -> Tensor:
    """Normalized images (N, C, H, W) of fixed noise."""
    return torch.randn(num, *SPEC.shape, generator=torch.Generator().manual_seed(3))


@functools.cache
def trained_net() -> TinyNet:
    """A network that knows the three classes; the same one in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TinyNet()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        generator = np.random.default_rng(1)
        labels = torch.arange(24) % 3
        for _ in range(25):
            images = np.stack([pixels_of(int(label), generator) for label in labels])
            x_NCHW = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.3) / 0.25
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x_NCHW), labels).backward()
            optimizer.step()
    return net.eval()


def toy_teacher(net: nn.Module | None = None) -> Teacher:
    return teacher_from_module(net or trained_net(), SPEC, class_names=NAMES, name="toy")


def toy_recipe(data: Path, out: Path, **more: object) -> Recipe:
    """Two epochs of each stage on the CPU; `more` settings by name with "__" for the dot."""
    settings = {
        "teacher.source": "helpers.toy_runs:make_net",
        "student.width_mult": 0.5,
        "data.source": str(data),
        "data.batch_size": 8,
        "data.augment": "none",
        "stage1.epochs": 1,
        "stage2.epochs": 2,
        "stage2.optim.lr": 0.01,
        "run.out": str(out),
        "run.device": "cpu",
        "run.timing": "none",  # it would take longer than the run
        "run.teacher_layout": "contiguous",  # measured otherwise, and may differ between runs
    }
    return resolve_recipe(
        preset=str(more.pop("preset", "modern")),
        settings=settings | {name.replace("__", "."): value for name, value in more.items()},
    )
