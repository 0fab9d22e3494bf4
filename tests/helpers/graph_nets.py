"""Small networks, one for each way in which axes can depend on each other."""

from __future__ import annotations

import math
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())


class Classifier(nn.Module):
    """Features, global pooling, a linear map to 10 classes."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


class Residual(nn.Module):
    """The basic block of ResNet (He et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(x + self.bn2(self.conv2(y)))


class PaddedShortcut(nn.Module):
    """Option A of He et al. 2015 for CIFAR: every second place, and channels of zeros around."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(conv(inputs, outputs, stride=2), conv(outputs, outputs)[:2])
        self.extra = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return torch.relu(self.main(x) + short)


class Dense(nn.Module):
    """A dense block: each layer reads everything before it."""

    def __init__(self, width: int, growth: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(conv(width + i * growth, growth) for i in range(count))

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return torch.cat(found, 1)


class Shuffle(nn.Module):
    """Half of the channels are convolved, then both halves are interleaved (ShuffleNet v2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(width // 2, width // 2, 1), conv(width // 2, width // 2, groups=width // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, 1)
        x = torch.cat([one, self.branch(two)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width // 4, 1)
        self.up = nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(scale)


class Attention(nn.Module):
    """Self-attention over the places of a feature map, fused or with an explicit scale."""

    def __init__(self, width: int, heads: int, is_fused: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.heads = heads
        self.is_fused = is_fused

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(self.norm(tokens)).reshape(n, h * w, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.is_fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q @ k.transpose(-2, -1)) * (1 / math.sqrt(c // self.heads))
            mixed = scores.softmax(-1) @ v
        tokens = tokens + self.proj(mixed.transpose(1, 2).reshape(n, h * w, c))
        return tokens.transpose(1, 2).reshape(n, c, h, w)


class Gate(nn.Module):
    """A gated linear unit of channels behind a group norm."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.layer = nn.Conv2d(width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.glu(self.layer(self.norm(x)), 1)


class UpDown(nn.Module):
    """A strided and a transposed convolution, with a shortcut around both."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = conv(width, 2 * width, stride=2)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.down(x))


class Branches(nn.Module):
    """Parallel branches of different depth, concatenated and mixed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = conv(width, width // 2, 1)
        self.two = nn.Sequential(conv(width, width // 4, 1), conv(width // 4, width // 4))
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(width, width // 4, 1))
        self.mix = conv(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(torch.cat([self.one(x), self.two(x), self.pool(x)], 1))


class Mixer(nn.Module):
    """Mixes 8 x 8 tokens, then channels (MLP-Mixer)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64))
        self.channels = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2)
        y = y + self.tokens(y)
        y = y.transpose(1, 2)
        y = y + self.channels(y)
        return y.transpose(1, 2).reshape(x.shape)


def draw_network(random: Random) -> nn.Module:
    """A chain of a few of the parts above."""
    width = random.choice([16, 24, 32])
    parts: list[nn.Module] = [conv(3, width, random.choice([1, 3]))]
    has_mixed = False
    for _ in range(random.randrange(1, 5)):
        kind = random.choice(range(11))
        wider = random.choice([16, 32, 48])
        if kind == 0:
            parts.append(conv(width, wider, random.choice([1, 3]), groups=random.choice([1, 8])))
            width = wider
        elif kind == 1:
            parts.append(Dense(width, 8, 2))
            width += 16
        elif kind == 2 and not has_mixed:
            parts.append(nn.Sequential(conv(width, 32, 1), Mixer(32)))
            width, has_mixed = 32, True
        elif kind == 3:
            parts.append(PaddedShortcut(width, 2 * width))
            width *= 2
            has_mixed = True
        elif kind == 4:
            parts.append(Attention(width, random.choice([1, 2, 4]), random.random() < 0.5))
        elif kind == 5:
            parts.append(Gate(width, random.choice([1, 4, 8])))
        else:
            parts.append([Residual, Shuffle, Excite, UpDown, Branches][kind - 6](width))
    return Classifier(nn.Sequential(*parts), width)
