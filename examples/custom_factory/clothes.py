"""A custom network and its training. fitcompress needs only `make_network`.

python clothes.py [FILE]      trains it on the built-in images and writes its weights
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from fitcompress.data.bundle import load_data
from fitcompress.data.loader import make_loader
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import make_dataset
from fitcompress.events import ignore
from fitcompress.interface import InputSpec
from fitcompress.recipe.schema import DataRecipe

SPEC = InputSpec(shape=(1, 28, 28), mean=(0.286,), std=(0.353,))


class Block(nn.Module):
    """Two convolutions with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


def make_network() -> nn.Module:
    """The factory for `--teacher clothes:make_network`; the weights are loaded later."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        Block(16),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        Block(32),
        Block(32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def main(path: Path) -> None:
    torch.manual_seed(0)
    data = load_data(DataRecipe(source="builtin", limit=1500), seed=0, emit=ignore)
    views = make_dataset(data.train, SPEC, augment="none", seed=0)
    network, preprocess = make_network(), Preprocess(SPEC)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for epoch in range(3):
        for batch in make_loader(views, 64, shuffle_seed=0, epoch=epoch):
            logits = network(preprocess(batch.images))
            loss = nn.functional.cross_entropy(logits, batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    torch.save(network.state_dict(), path)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "clothes.pth"))
