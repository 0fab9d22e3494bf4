"""Device, precision, memory format and threads. The only file that starts Accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import loky
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from fitcompress.errors import RecipeError
from fitcompress.recipe.schema import Layout, Precision

__all__ = [
    "AUTOCAST",
    "has_bf16",
    "preserved_random_state",
    "resolve_device",
    "resolve_layout",
    "resolve_precision",
    "start_accelerator",
    "to_channels_last",
    "used_threads",
]

_MIXED_PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The autocast type of each precision; None for no autocast."""


def resolve_device(name: str) -> str:
    """The requested device, "cpu", "cuda" or "mps"; for "auto" the fastest available one.

    Raises:
        RecipeError: the device is not available.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, is_available in available.items() if is_available)
    if not available.get(name, False):
        usable = [device for device, is_available in available.items() if is_available]
        raise RecipeError(
            f"choosing the device: {name!r} is not available on this machine",
            code="device-unavailable",
            advice=f"Use one of: {', '.join(usable)}.",
            device=name,
            available=usable,
        )
    return name


def resolve_precision(name: Precision, device: str) -> Precision:
    """The requested precision, "fp32", "bf16" or "fp16"; "auto" is bf16 if the GPU, or a matrix
    unit of the CPU, supports it, otherwise fp32.

    Raises:
        RecipeError: the precision is unknown, or fp16 on the CPU, where it is not supported.
    """
    if name == "auto":
        is_fast = has_bf16(device) if device == "cuda" else device == "cpu" and _has_amx()
        return "bf16" if is_fast else "fp32"
    if name not in _MIXED_PRECISIONS:
        raise RecipeError(
            f"choosing the precision: unknown precision {name!r}",
            code="precision-unknown",
            advice="Use fp32, bf16, fp16 or auto.",
            precision=name,
        )
    if name == "fp16" and device == "cpu":
        raise RecipeError(
            "choosing the precision: fp16 needs a GPU",
            code="fp16-on-cpu",
            advice="Use fp32 or bf16 on the CPU.",
        )
    return name


def resolve_layout(name: Layout, device: str) -> Layout:
    """The requested memory format; "auto" is contiguous on MPS and channels-last elsewhere, where
    it makes convolutions faster.
    """
    if name != "auto":
        return name
    return "contiguous" if device == "mps" else "channels-last"


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and (_has_amx() or bool(torch.cpu._is_avx512_bf16_supported()))


def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())


@contextmanager
def used_threads(num: int | None) -> Iterator[int]:
    """Sets the number of CPU threads of torch inside the block, and yields it.

    None means OMP_NUM_THREADS if the user has set it (launchers of several processes set it to 1,
    which is ignored); otherwise the available cores (affinity and container quota, which torch
    ignores), divided among the processes of the machine.
    """
    before, siblings = torch.get_num_threads(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num is None and ("OMP_NUM_THREADS" not in os.environ or siblings > 1):
        num = max(1, loky.cpu_count(only_physical_cores=True) // siblings)
    torch.set_num_threads(num or before)
    try:
        yield num or before
    finally:
        torch.set_num_threads(before)


def start_accelerator(device: str, precision: Precision) -> Accelerator:
    """An Accelerator for one process on a resolved device with a resolved precision."""
    # Accelerate fixes device and precision for the life of the process, but the stages of one
    # process may differ. It has no public way to reset them (last checked: accelerate 1.15).
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu", mixed_precision=_MIXED_PRECISIONS[precision])


def to_channels_last(module: nn.Module) -> None:
    """Stores the weights of 2-D convolutions channels-last, and with them their outputs."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def preserved_random_state(device: str) -> Iterator[None]:
    """Restores torch's random state after the block, on the CPU and on the device."""
    if device == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        index = torch.cuda.current_device() if device == "cuda" else 0
        with torch.random.fork_rng(devices=[index], device_type=device):
            yield
