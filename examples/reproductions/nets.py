"""The networks of both papers as factories: `--teacher nets:hinton_teacher`.

Sources: Hinton et al. (arXiv 1503.02531) section 3; FitNets (arXiv 1412.6550v4) sections 3.1 to
3.4, its appendix and, for what the text leaves open, the authors' configuration files.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# --- Hinton, MNIST -----------------------------------------------------------------------------


class BoundedLinear(nn.Linear):
    """A linear layer that bounds the norm of each unit's incoming weights; larger weights are
    scaled down to the bound.
    """

    def __init__(self, num_in: int, num_out: int, longest: float) -> None:
        super().__init__(num_in, num_out)
        self.longest = longest

    def forward(self, x: Tensor) -> Tensor:
        norms = self.weight.square().sum(1, keepdim=True).sqrt()
        scale = self.longest / norms.clamp(min=self.longest)
        return F.linear(x, self.weight * scale, self.bias)


def hinton_teacher() -> nn.Module:
    """A 784-1200-1200-10 network with dropout and bounded weights."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        BoundedLinear(784, 1200, 2.0),
        nn.ReLU(),
        nn.Dropout(0.5),
        BoundedLinear(1200, 1200, 2.0),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(1200, 10),
    )


def hinton_student(units: int = 800) -> nn.Module:
    """Two hidden layers of rectified units, without regularization."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, units),
        nn.ReLU(),
        nn.Linear(units, units),
        nn.ReLU(),
        nn.Linear(units, 10),
    )


def hinton_student_300() -> nn.Module:
    return hinton_student(300)


def hinton_student_30() -> nn.Module:
    return hinton_student(30)


# --- FitNets -----------------------------------------------------------------------------------


class Maxout(nn.Module):
    """The maximum over `pieces` linear maps per unit, of a convolution or a linear layer.

    Source: Goodfellow et al. 2013.
    """

    def __init__(self, maps: nn.Module, pieces: int) -> None:
        super().__init__()
        self.maps, self.pieces = maps, pieces

    def forward(self, x: Tensor) -> Tensor:
        return reduce(torch.maximum, self.maps(x).chunk(self.pieces, 1))


def maxout_conv(num_in: int, num_out: int, side: int, padding: int, pieces: int = 2) -> Maxout:
    return Maxout(nn.Conv2d(num_in, num_out * pieces, side, padding=padding), pieces)


class Convolutions(nn.Module):
    """Maxout convolutions, some followed by a pool, then a classifier on the flattened maps.

    Args:
        convs: (channels, kernel size, padding, pool size and stride or None) of each.
        num_in: channels of the images.
        image_side: height and width of the images.
        hidden: units of a maxout layer before the classifier; 0 for none.
        spread: initialize weights uniformly in [-spread, spread] (the paper's 0.005) and biases
            with 0; None for He's initialization.
        normed: add a batch norm after each convolution.
    """

    def __init__(
        self,
        convs: Sequence[tuple[int, int, int, tuple[int, int] | None]],
        *,
        num_in: int,
        image_side: int,
        hidden: int = 0,
        hidden_pieces: int = 5,
        spread: float | None = 0.005,
        normed: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        layers, channels = [], num_in
        for width, side, padding, pool in convs:
            steps: list[nn.Module] = [maxout_conv(channels, width, side, padding)]
            steps += [nn.BatchNorm2d(width)] * normed
            steps += [nn.MaxPool2d(*pool, ceil_mode=True)] if pool else []
            layers.append(nn.Sequential(*steps))
            channels = width
        self.layers = nn.Sequential(*layers)
        with torch.no_grad():
            left = self.layers.eval()(torch.zeros(1, num_in, image_side, image_side)).numel()
        self.layers.train()
        self.hidden = (
            Maxout(nn.Linear(left, hidden * hidden_pieces), hidden_pieces) if hidden else None
        )
        self.head = nn.Linear(hidden or left, num_classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                if spread is None:
                    nn.init.kaiming_normal_(part.weight)
                else:
                    nn.init.uniform_(part.weight, -spread, spread)
                nn.init.zeros_(part.bias)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        features = self.layers(x_NCHW).flatten(1)
        return self.head(features if self.hidden is None else self.hidden(features))


OVERLAPPING, PLAIN = (4, 2), (2, 2)
"""Max-pools: size and stride."""


def fitnets_mnist_teacher() -> nn.Module:
    """Maxout 48-48-24, 361 k parameters; with He's initialization it trains without the authors'
    schedule.
    """
    convs = [(48, 8, 0, OVERLAPPING), (48, 8, 3, OVERLAPPING), (24, 5, 3, PLAIN)]
    return Convolutions(convs, num_in=1, image_side=28, spread=None)


def fitnets_mnist_student(spread: float | None = 0.005, normed: bool = False) -> nn.Module:
    """Six maxout convolutions, about 30 k parameters; the fourth is guided."""
    convs = [
        (16, 5, 0, None),
        (16, 3, 0, OVERLAPPING),
        (16, 5, 3, None),
        (16, 3, 0, OVERLAPPING),
        (12, 3, 3, None),
        (12, 3, 0, PLAIN),
    ]
    return Convolutions(convs, num_in=1, image_side=28, spread=spread, normed=normed)


def fitnets_mnist_student_he() -> nn.Module:
    return fitnets_mnist_student(spread=None)


def on_cifar(
    convs: Sequence[tuple[int, int, int, tuple[int, int] | None]],
    spread: float | None,
    normed: bool,
    num_classes: int,
) -> nn.Module:
    """Convolutions for images of 32 pixels, followed by 500 maxout units."""
    return Convolutions(
        convs,
        num_in=3,
        image_side=32,
        hidden=500,
        hidden_pieces=2,
        spread=spread,
        normed=normed,
        num_classes=num_classes,
    )


def fitnets_cifar_teacher(num_classes: int = 10) -> nn.Module:
    """Maxout 96-192-192 and 500 units, about 9 M parameters."""
    convs = [(96, 8, 4, OVERLAPPING), (192, 8, 3, OVERLAPPING), (192, 5, 3, PLAIN)]
    return on_cifar(convs, None, False, num_classes)


WIDTHS = {
    "fitnet1": ((16, 16, 16), (32, 32, 32), (48, 48, 64)),
    "fitnet2": ((16, 32, 32), (48, 64, 80), (96, 96, 128)),
    "fitnet3": ((32, 48, 64, 64), (80, 80, 80, 80), (128, 128, 128)),
    "fitnet4": ((32, 32, 32, 48, 48), (80,) * 6, (128,) * 6),
    "30m-5": ((64,), (64,), (64,)),
    "30m-7": ((16, 32), (32, 64), (64,)),
    "30m-9": ((16, 32), (32, 32, 32), (48, 64)),
    "30m-11": ((16, 16, 16), (32, 32, 32), (48, 48, 64)),
    "107m-5": ((128,), (128,), (128,)),
    "107m-7": ((32, 64), (80, 80), (128,)),
    "107m-9": ((32, 32), (64, 80, 80), (96, 128)),
    "107m-11": ((16, 32, 32), (48, 64, 80), (96, 96, 128)),
}
"""Channels of the three stages. Source: FitNets, Table 5 and the appendix."""
GUIDED = {"fitnet1": 6, "fitnet2": 6, "fitnet3": 8, "fitnet4": 11}
_PLACES = {5: 2, 7: 4, 9: 5, 11: 7}
GUIDED |= {f"{size}-{layers}": _PLACES[layers] for size in ("30m", "107m") for layers in _PLACES}
"""The guided convolution, from 1; the hint is the teacher's second."""


def fitnet(name: str, spread: float | None, normed: bool, num_classes: int = 10) -> nn.Module:
    """A student of Table 5 or of the depth study."""
    convs: list[tuple[int, int, int, tuple[int, int] | None]] = []
    for stage, widths in enumerate(WIDTHS[name]):
        convs += [(width, 3, 1, None) for width in widths]
        convs[-1] = (widths[-1], 3, 1, (8, 8) if stage == 2 else PLAIN)
    return on_cifar(convs, spread, normed, num_classes)


STARTS = {"paper": (0.005, False), "he": (None, False), "bn": (None, True)}
"""Initializations of a FitNet: the paper's, He's, He's with batch norms."""


for _name in WIDTHS:
    for _start, (_spread, _normed) in STARTS.items():
        _plain = _name if _name.startswith("fitnet") else f"fitnet_{_name.replace('-', '_')}"
        globals()[f"{_plain}_{_start}"] = partial(fitnet, _name, _spread, _normed)
# nets:fitnet1_paper, nets:fitnet_30m_5_bn...
