"""The networks of the CIFAR-100 distillation benchmark, named as in its public checkpoints.

    --teacher benchmark_nets:resnet32x4 --teacher-weights resnet32x4_vanilla/ckpt_epoch_240.pth

Source: Tian et al., "Contrastive representation distillation" (ICLR 2020), supplement; wide
residual networks: Zagoruyko and Komodakis 2016.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Basic(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.downsample = None
        if stride != 1 or num_in != num_out:
            shortcut = nn.Conv2d(num_in, num_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(num_out))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        y_NCHW = self.bn2(self.conv2(y_NCHW))
        return F.relu(y_NCHW + (x_NCHW if self.downsample is None else self.downsample(x_NCHW)))


class ResNet(nn.Module):
    """A convolution and three stages of (depth - 2) / 6 blocks."""

    def __init__(self, depth: int, widths: tuple[int, int, int, int], num_classes: int) -> None:
        super().__init__()
        stem, *stages = widths
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        for number, (num_in, num_out) in enumerate(zip(widths, stages, strict=False), 1):
            first = Basic(num_in, num_out, 1 if number == 1 else 2)
            others = (Basic(num_out, num_out, 1) for _ in range((depth - 2) // 6 - 1))
            setattr(self, f"layer{number}", nn.Sequential(first, *others))
        self.fc = nn.Linear(widths[-1], num_classes)
        _start(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = F.relu(self.bn1(self.conv1(x_NCHW)))
        x_NCHW = self.layer3(self.layer2(self.layer1(x_NCHW)))
        return self.fc(x_NCHW.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(num_in)
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.convShortcut = (  # the checkpoints' name
            None if num_in == num_out else nn.Conv2d(num_in, num_out, 1, stride, bias=False)
        )

    def forward(self, x_NCHW: Tensor) -> Tensor:
        active_NCHW = F.relu(self.bn1(x_NCHW))
        y_NCHW = self.conv2(F.relu(self.bn2(self.conv1(active_NCHW))))
        if self.convShortcut is None:
            return x_NCHW + y_NCHW
        return self.convShortcut(active_NCHW) + y_NCHW


class WideStage(nn.Module):
    def __init__(self, num_blocks: int, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        others = (WideBlock(num_out, num_out, 1) for _ in range(num_blocks - 1))
        self.layer = nn.Sequential(WideBlock(num_in, num_out, stride), *others)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.layer(x_NCHW)


class WideResNet(nn.Module):
    def __init__(self, depth: int, factor: int, num_classes: int) -> None:
        super().__init__()
        widths, count = [16, 16 * factor, 32 * factor, 64 * factor], (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.block1 = WideStage(count, widths[0], widths[1], 1)
        self.block2 = WideStage(count, widths[1], widths[2], 2)
        self.block3 = WideStage(count, widths[2], widths[3], 2)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        _start(self)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.block3(self.block2(self.block1(self.conv1(x_NCHW))))
        return self.fc(F.relu(self.bn1(x_NCHW)).mean((2, 3)))


def _start(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")


def resnet32x4(num_classes: int = 100) -> nn.Module:
    return ResNet(32, (32, 64, 128, 256), num_classes)


def resnet8x4(num_classes: int = 100) -> nn.Module:
    return ResNet(8, (32, 64, 128, 256), num_classes)


def resnet110(num_classes: int = 100) -> nn.Module:
    return ResNet(110, (16, 16, 32, 64), num_classes)


def resnet20(num_classes: int = 100) -> nn.Module:
    return ResNet(20, (16, 16, 32, 64), num_classes)


def wrn_40_2(num_classes: int = 100) -> nn.Module:
    return WideResNet(40, 2, num_classes)


def wrn_16_2(num_classes: int = 100) -> nn.Module:
    return WideResNet(16, 2, num_classes)


def wrn_28_10(num_classes: int = 10) -> nn.Module:
    """A teacher for CIFAR-10; not part of the benchmark."""
    return WideResNet(28, 10, num_classes)
