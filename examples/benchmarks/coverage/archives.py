"""Save timm models as TorchScript and `.pt2`, open the files in a process without timm, and plan a
student for each; one CSV row per model and kind of archive.

    python archives.py --out archives.csv --models $(cat smallest.txt) --processes 2

Rows are written when their model is done, so a stopped run continues where it was. Weights are
random and no tensor is constant, so a lost norm or residual branch changes the outputs. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from rows import add_rows, models_like, one_line, read_rows
from torch import Tensor, nn
from torch.export import Dim

KINDS = ("traced", "scripted", "frozen", "pt2-static", "pt2-dynamic")


@dataclass(kw_only=True)
class Row:
    """Result for one archive; fields of steps that were not reached are empty."""

    model: str
    kind: str
    saved: bool = False
    """If False, timm or torch cannot make such an archive of the model; see the notice."""
    opened: bool = False
    """Opened as a program, without timm."""
    difference: float | str = ""
    """Largest difference at batch sizes 2 and 3 between the outputs of the lifted network and the
    archive, relative to the largest output."""
    planned: bool = False
    """A student at depth-mult 2 and width-mult 0.3 runs at these batch sizes, and its regressor
    fits."""
    hint: str = ""
    guided: str = ""
    regressor: str = ""
    pair_named: float | str = ""
    """Share of the names of hint and guided layer that timm's model has."""
    blocks_named: float | str = ""
    """Share of the names of all blocks that timm's model has."""
    seconds: float = 0.0
    """Time to open and plan, without imports."""
    notice: str = ""


@torch.no_grad()
def measure(
    name: str, kinds: Iterable[str], side: int | None, seconds: float, options: dict[str, int]
) -> list[Row]:
    """The rows of one model."""
    rows = {kind: Row(model=name, kind=kind) for kind in kinds}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            _save_all(folder, rows, side, options)
        except Exception as error:
            for row in rows.values():
                row.notice = one_line(error)
            return list(rows.values())
        cause = _reopen(folder, seconds * len(rows))
        lines = folder / "rows.jsonl"
        for line in lines.read_text().splitlines() if lines.is_file() else ():
            facts = json.loads(line)
            for key, value in facts.items():
                setattr(rows[facts["kind"]], key, value)
    for row in rows.values():
        if row.saved and not row.opened and not row.notice:
            row.notice = cause
    return list(rows.values())


def _reopen(folder: Path, seconds: float) -> str:
    """Run `reopen.py`; returns why it did not finish."""
    command = [sys.executable, "-c", _WITHOUT_TIMM, str(folder)]
    try:
        ended = subprocess.run(command, timeout=seconds, cwd=Path(__file__).parent)
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:g} s for all kinds"
    return f"the process ended with {ended.returncode}"


_WITHOUT_TIMM = "import sys; sys.modules['timm'] = None; import reopen; reopen.main()"


# --- saving ---------------------------------------------------------------------------------


def _save_all(
    folder: Path, rows: dict[str, Row], side: int | None, options: dict[str, int]
) -> None:
    """Save an archive for each row, where possible, and the task of `reopen.py`."""
    module, shape = model_and_shape(rows[next(iter(rows))].model, side, **options)
    names = [name for name, _ in module.named_modules()]
    (folder / "task.json").write_text(json.dumps({"shape": shape, "modules": names}))
    for kind, row in rows.items():
        try:
            if kind == "scripted":
                scriptable, _ = model_and_shape(row.model, side, scriptable=True, **options)
                torch.jit.script(scriptable).save(folder / "scripted.pt")
            else:
                save(module, shape, kind, folder)
            row.saved = True
        except Exception as error:
            row.notice = one_line(error)


def model_and_shape(
    name: str, side: int | None, **options: bool | int
) -> tuple[nn.Module, tuple[int, ...]]:
    """The model in eval mode with random tensors, and the shape of its images: `side` if the model
    takes any size, otherwise its own.
    """
    config = timm.get_pretrained_cfg(name)
    torch.manual_seed(0)
    module = timm.create_model(name, **options).eval()
    for key, value in module.state_dict().items():
        _vary(key, value)
    built = options.get("img_size")
    own = (config.input_size[0], built, built) if built else tuple(config.input_size)
    smaller = (own[0], side or own[1], side or own[2])
    return module, smaller if smaller == own or _takes(module, smaller) else own


def _takes(module: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        module(torch.zeros(1, *shape))
    except Exception:  # models raise what they like
        return False
    return True


def _vary(name: str, value: Tensor) -> None:
    """Randomize a constant tensor, such as a new norm's, a zeroed bias or a scale."""
    if not value.is_floating_point() or value.numel() <= 1:
        return
    if bool((value == value.flatten()[0]).all()):
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        else:
            value.add_(torch.randn_like(value), alpha=0.1)


def save(module: nn.Module, shape: tuple[int, ...], kind: str, folder: Path) -> None:
    """Write one archive as its author would; a static one has a batch of one image."""
    path = folder / f"{kind}.{'pt2' if kind.startswith('pt2') else 'pt'}"
    match kind:
        case "traced":
            _traced(module, shape).save(path)
        case "frozen":
            torch.jit.freeze(_traced(module, shape)).save(path)
        case "pt2-static":
            torch.export.save(torch.export.export(module, (torch.randn(1, *shape),)), path)
        case "pt2-dynamic":
            dynamic = ({0: Dim.DYNAMIC},)
            x = torch.randn(2, *shape)
            torch.export.save(torch.export.export(module, (x,), dynamic_shapes=dynamic), path)


def _traced(module: nn.Module, shape: tuple[int, ...]) -> torch.jit.ScriptModule:
    return torch.jit.trace(module, torch.randn(1, *shape), check_trace=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["*"], help="name patterns")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--side", type=int, help="image size, for models that take any")
    parser.add_argument("--img-size", type=int, help="image size to build models for")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=180, help="time limit per archive")
    given = parser.parse_args()
    done = {(row["model"], row["kind"]) for row in read_rows(given.out)}
    options = {"img_size": given.img_size} if given.img_size else {}
    tasks = []
    for name in models_like(given.models):
        kinds = [kind for kind in given.kinds if (name, kind) not in done]
        if kinds:
            tasks.append(partial(measure, name, kinds, given.side, given.seconds, options))
    add_rows(given.out, Row, tasks, processes=given.processes)


if __name__ == "__main__":
    main()
