"""Small networks other than classifiers of square images, one for each kind of teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.segmentation.fcn import FCN, FCNHead


class Mlp(nn.Module):
    """Rows of numbers; optionally with a final softmax."""

    def __init__(self, ends_in_softmax: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()),
            *(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 6)),
        )
        self.ends_in_softmax = ends_in_softmax

    def forward(self, features: Tensor) -> Tensor:
        scores = self.layers(features)
        return scores.softmax(-1) if self.ends_in_softmax else scores


class Audio(nn.Module):
    """A wave in, classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv1d(1, 16, 9, 4)
        self.blocks = nn.ModuleList([_conv1d(16, 16, 3, 1), _conv1d(16, 16, 3, 1)])
        self.head = nn.Linear(16, 5)

    def forward(self, wave: Tensor) -> Tensor:
        wave = self.stem(wave)
        for block in self.blocks:
            wave = wave + block(wave)
        return self.head(wave.mean(2))


def _conv1d(source: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(source, width, kernel, stride, kernel // 2), nn.BatchNorm1d(width), nn.ReLU()
    )


class Recurrent(nn.Module):
    """A sequence of measurements through an LSTM of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, steps: Tensor) -> Tensor:
        states, _ = self.lstm(self.project(steps))
        return self.head(states[:, -1])


class Text(nn.Module):
    """Tokens as indices, positions, two encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.positions = nn.Parameter(torch.randn(1, 12, 32))
        self.layers = nn.ModuleList([_Encoder(), _Encoder()])
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.embed(tokens) + self.positions
        for layer in self.layers:
            states = layer(states)
        return self.head(self.norm(states).mean(1))


class _Encoder(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        seen = self.norm1(states)
        q, k, v = (
            self.split(self.query(seen)),
            self.split(self.key(seen)),
            self.split(self.value(seen)),
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        states = states + self.out(mixed.transpose(1, 2).flatten(2))
        return states + self.down(nn.functional.gelu(self.up(self.norm2(states))))

    def split(self, states: Tensor) -> Tensor:
        return states.unflatten(2, [self.heads, -1]).transpose(1, 2)


class FixedView(nn.Module):
    """Flattens by a view with a fixed input size and, optionally, a fixed batch size."""

    def __init__(self, batch_size: int = -1) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8 * 6 * 10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.head(x.view(self.batch_size, 8 * 6 * 10))


class TwoInputs(nn.Module):
    """An image and some numbers about it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.table = nn.Linear(7, 16)
        self.mix = nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, picture: Tensor, table: Tensor) -> Tensor:
        seen = torch.relu(self.conv2(torch.relu(self.conv1(picture)))).mean((2, 3))
        both = torch.cat([seen, torch.relu(self.table(table))], 1)
        return self.head(torch.relu(self.mix(both)))


class DictOutput(nn.Module):
    """Two named outputs, not in alphabetical order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.kind, self.age = nn.Linear(16, 5), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3))
        return {"kind": self.kind(x), "age": self.age(x).squeeze(1)}


class Regression(nn.Module):
    """One number per sample, of shape (N,) or (N, 1)."""

    def __init__(self, is_flat: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(9, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)
        )
        self.is_flat = is_flat

    def forward(self, row: Tensor) -> Tensor:
        value = self.layers(row)
        return value.squeeze(1) if self.is_flat else value


class Embedding(nn.Module):
    """Images to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv2(torch.relu(self.norm(self.conv1(x))))).mean((2, 3))
        return nn.functional.normalize(self.head(x))


class OnDevice(nn.Module):
    """Names the device of its tensors in its code, like archives from a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(torch.device("cpu"))
        scale = torch.full([x.size(0), 1, 1, 1], 2.0, device=torch.device("cpu"))
        ramp = torch.arange(4, device=torch.device("cpu"))
        x = torch.relu(self.conv2(torch.relu(self.conv1(x * scale))))
        return self.head(x.mean((2, 3))) + ramp


class Branching(nn.Module):
    """Branches on the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if bool(x.sum() > 0):
            return self.layer(x)
        return x


class Pyramid(nn.Module):
    """A detector's backbone: torchvision's feature pyramid, a dictionary of maps."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(_conv2d(3, 8), _conv2d(8, 16), _conv2d(16, 16))
        self.backbone = BackboneWithFPN(body, {"1": "0", "2": "1"}, [16, 16], 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.backbone(x)


def segmenter() -> nn.Module:
    """torchvision's FCN with an auxiliary head: a dictionary of dense maps."""
    body = nn.Sequential(_conv2d(3, 8), _conv2d(8, 16), _conv2d(16, 16))
    body = IntermediateLayerGetter(body, {"1": "aux", "2": "out"})
    return FCN(body, FCNHead(16, 5), FCNHead(16, 5))


def _conv2d(source: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(source, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


class Clip(nn.Module):
    """Frames of a video, by convolutions over time and space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, 12, 3, (1, 2, 2), 1), nn.BatchNorm3d(12), nn.ReLU())
        self.conv = nn.Sequential(nn.Conv3d(12, 12, 3, padding=1), nn.BatchNorm3d(12))
        self.head = nn.Linear(12, 6)

    def forward(self, frames: Tensor) -> Tensor:
        frames = self.stem(frames)
        frames = torch.relu(frames + self.conv(frames))
        return self.head(frames.mean((2, 3, 4)))
