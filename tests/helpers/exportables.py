"""A tiny network with its interface and images, ready to be exported."""

from __future__ import annotations

import torch
from torch import nn

from fitcompress.exporters.exportable import Exportable
from fitcompress.interface import InputSpec, Interface

INTERFACE = Interface(
    input=InputSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1), crop_pct=0.9),
    class_names=("cat", "dog", "naïve"),
    origin={"teacher": "tiny"},
)


def tiny_exportable(network: nn.Module | None = None, num_samples: int = 8) -> Exportable:
    """A tiny network in training mode whose batch norm has seen images, and images for it."""
    if network is None:
        network = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, 3),
        )
        network(torch.randn(16, 3, 8, 8))
    return Exportable(network, INTERFACE, torch.randn(num_samples, 3, 8, 8))
