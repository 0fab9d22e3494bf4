"""Where and how precisely a stage runs: the one file that starts Accelerate. Layer: training."""

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
"""What each precision computes in where float32 is not needed; None: nothing."""


def resolve_device(name: str) -> str:
    """The device asked for, "cpu", "cuda" or "mps", or for "auto" the fastest there is.

    Raises:
        RecipeError: no such device here.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, is_there in available.items() if is_there)
    if not available.get(name, False):
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise RecipeError(
            f"choosing the device: {name!r} is not available here", advice=f"Use one of: {there}."
        )
    return name


def resolve_precision(name: str, device: str) -> str:
    """The precision asked for, "fp32", "bf16" or "fp16"; "auto" is bf16 where the GPU, or a matrix
    unit of the CPU, computes in it.

    Raises:
        RecipeError: unknown, or fp16 on the CPU, where it has no use.
    """
    if name == "auto":
        is_fast = has_bf16(device) if device == "cuda" else device == "cpu" and _has_amx()
        return "bf16" if is_fast else "fp32"
    if name not in _MIXED_PRECISIONS:
        raise RecipeError(
            f"choosing the precision: no {name!r}", advice="Use fp32, bf16, fp16 or auto."
        )
    if name == "fp16" and device == "cpu":
        raise RecipeError(
            "choosing the precision: fp16 needs a GPU", advice="Use fp32 or bf16 on the CPU."
        )
    return name


def resolve_layout(name: str, device: str) -> str:
    """The layout asked for; "auto" is channels-last, in which convolutions are fast on CUDA and on
    processors, and contiguous on MPS.
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
    """Inside, torch computes with so many threads of the processor; they come back at the end.

    None: OMP_NUM_THREADS where a person has set it; launchers of several processes set it to 1,
    which does not count. Else the cores that the machine grants (the process's affinity and the
    quota of its container, at which torch does not look), divided among the processes on it.
    """
    before, siblings = torch.get_num_threads(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if num is None and ("OMP_NUM_THREADS" not in os.environ or siblings > 1):
        num = max(1, loky.cpu_count(only_physical_cores=True) // siblings)
    torch.set_num_threads(num or before)
    try:
        yield num or before
    finally:
        torch.set_num_threads(before)


def start_accelerator(device: str, precision: str) -> Accelerator:
    """An Accelerator for one process on a resolved device with a resolved precision."""
    # Accelerate keeps device and precision for the life of the process and refuses others, but the
    # calls of one process may differ. It has no public way out (last looked at: accelerate 1.15).
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=device == "cpu", mixed_precision=_MIXED_PRECISIONS[precision])


def to_channels_last(module: nn.Module) -> None:
    """Stores the weights of 2-D convolutions channels-last: their maps come out so too."""
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


@contextmanager
def preserved_random_state(device: str) -> Iterator[None]:
    """Puts torch's random state back as it was, on the CPU and on the device."""
    if device == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        index = torch.cuda.current_device() if device == "cuda" else 0
        with torch.random.fork_rng(devices=[index], device_type=device):
            yield
