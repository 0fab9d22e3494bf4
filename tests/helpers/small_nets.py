"""Tiny networks for the tests of captures, and ways to store them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim


class Residual(nn.Module):
    """Convolutions, in-place norms, a residual sum, dropout; `block` is the residual block."""

    def __init__(self, width: int = 8, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.block = Block(width)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu(self.norm(self.stem(x)), inplace=True)
        x = self.block(x)
        return self.head(self.drop(x.mean((2, 3))))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv2(self.act(self.conv1(x))))
        y += x
        return self.act(y)


class Tokens(nn.Module):
    """Patches, a class token, positions, one attention layer: sizes that follow the batch."""

    def __init__(self, width: int = 12, num_classes: int = 5) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        batch, _, width = x.shape
        x = torch.cat([self.cls_token.expand(batch, -1, -1), x], 1) + self.pos_embed
        qkv = self.qkv(self.norm(x)).reshape(batch, 5, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.head(x[:, 0])


class FixedBatch(nn.Module):
    """Contains a batch size as a constant."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).view(self.batch_size, -1))


def trained_a_little(module: nn.Module) -> nn.Module:
    """The module in eval mode, with norms other than the identity."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.normal_(child.bias)
            nn.init.normal_(child.running_mean)
            nn.init.uniform_(child.running_var, 0.5, 1.5)
    return module.eval()


@contextmanager
def quietly() -> Iterator[None]:
    """Ignores warnings: torch warns about its old formats, which these tests read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def traced(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    with quietly(), torch.no_grad():
        return torch.jit.trace(module, example)


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    with quietly():
        return torch.jit.script(module)


def frozen(module: nn.Module, example: Tensor) -> torch.jit.ScriptModule:
    with quietly():
        return torch.jit.freeze(traced(module, example))


def reloaded(archive: torch.jit.ScriptModule, path: Path) -> torch.jit.ScriptModule:
    with quietly():
        torch.jit.save(archive, str(path))
        return torch.jit.load(str(path))


def export_to(path: Path, module: nn.Module, example: Tensor, *, dynamic: bool = True) -> Path:
    shapes = ({0: Dim.AUTO},) if dynamic else None
    with quietly(), torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
        torch.export.save(program, path)
    return path
