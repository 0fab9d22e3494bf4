"""What Python users call that no command needs. Layer: pipeline."""

from __future__ import annotations

from pathlib import Path

from torch.fx import GraphModule

from fitcompress.model import load_model
from fitcompress.rundir import RunDir

__all__ = ["load"]


def load(path: Path | str) -> GraphModule:
    """The network in a model folder, or the student of a run, in eval mode on the CPU.

    Its `interface` (a `fitcompress.spec.Interface`) says which images it takes and what its outputs
    mean. No pickle is read, no code from the folder is run, and the teacher is not needed.

    Raises:
        TeacherError: the folder holds no model, or a damaged one.
    """
    run = RunDir(Path(path))
    model = load_model(run.student_path if run.is_run() else run.path)
    network = model.network
    network.interface = model.interface  # type: ignore[assignment]  # nn.Module takes any attribute
    return network
