"""Versions and hardware of a run, without names of people or machines."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

__all__ = ["collect_environment", "command_line", "package_version"]

_PACKAGES = ("fitcompress", "torch", "timm", "accelerate", "onnx", "onnxruntime", "numpy")


def collect_environment(device: str) -> dict[str, Any]:
    """Versions, processor, threads and GPU, ready for `environment.json`.

    device: resolved device of the run, such as "cpu" or "cuda".
    """
    import torch  # not at module level: `--help` must not wait for it

    is_cuda = device.startswith("cuda")
    return {
        "command": command_line(sys.argv),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: package_version(name) for name in _PACKAGES},
        "device": device,
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if is_cuda else None,
        "cuda": torch.version.cuda if is_cuda else None,
    }


def command_line(argv: list[str]) -> str | None:
    """The shell command behind `argv`, or None if it was not a fitcompress command.

    >>> command_line(["/usr/bin/fitcompress", "distill", "--out", "my runs/a"])
    "fitcompress distill --out 'my runs/a'"
    """
    program = Path(argv[0])
    is_ours = program.stem == "fitcompress" or program.parts[-2:] == ("fitcompress", "__main__.py")
    return shlex.join(["fitcompress", *argv[1:]]) if is_ours else None


def package_version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    # `platform.processor` is empty on Linux.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
