"""Stand-alone folders: `model.py` and the weights that it loads."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import safetensors.torch
from torch import nn

from fitcompress.exporters.python.writer import write_source
from fitcompress.models.model import WEIGHTS_NAME, load_model

__all__ = ["open_python", "write_python"]

_SOURCE_NAME = "model.py"


def write_python(folder: Path, path: Path) -> None:
    """Writes the model in `folder` to the new folder `path`, as Python that imports only torch.

    Raises:
        TeacherError: the model folder is damaged.
    """
    model = load_model(folder)
    source = write_source(model.program, model.interface)
    tensors = {name: value.contiguous().clone() for name, value in source.tensors.items()}
    path.mkdir()
    safetensors.torch.save_file(tensors, path / WEIGHTS_NAME, {"format": "pt"})
    (path / _SOURCE_NAME).write_text(source.text, encoding="utf-8")


def open_python(path: Path) -> nn.Module:
    """Loads a folder that `write_python` wrote, running its code. No bytecode is written."""
    file = path / _SOURCE_NAME
    loader = SourceFileLoader("_fitcompress_student", str(file))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None, file
    module = module_from_spec(spec)
    exec(loader.source_to_code(file.read_bytes(), str(file)), module.__dict__)
    network: nn.Module = module.load()
    return network
