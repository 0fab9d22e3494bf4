"""Saves timm models as TorchScript and `.pt2`, opens the files where there is no timm, and plans a
student for each; one CSV row for each model and kind of archive.

    python archives.py --out archives.csv --models $(cat smallest.txt) --processes 2

Rows are written when their model is done, so a run that was stopped goes on where it was. Weights
are random, and no tensor is left constant, so that a norm or a residual branch that gets lost shows
in the outputs. Nothing is downloaded.
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
    """What one archive gave; empty where it did not come so far."""

    model: str
    kind: str
    saved: bool = False
    """Where not, timm or torch cannot make such an archive of the model, and the notice says why.
    """
    opened: bool = False
    """As a program, with no timm to be had."""
    difference: float | str = ""
    """The largest at batches of 2 and 3 between the lifted network's outputs and the archive's own,
    as a share of the largest output."""
    planned: bool = False
    """A student at depth-mult 2 and width-mult 0.3 runs at these batches, and its regressor fits.
    """
    hint: str = ""
    guided: str = ""
    regressor: str = ""
    pair_named: float | str = ""
    """Share of the two names that are names in timm's model."""
    blocks_named: float | str = ""
    """The same of the names of all blocks."""
    seconds: float = 0.0
    """To open it and to plan, without imports."""
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
    """Runs `reopen.py`; why it did not come to its end."""
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
    """An archive for each row that can be had, and what `reopen.py` has to know."""
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
    """The model in eval mode, all its tensors random, and the shape of its images: of `side` where
    the model takes any size, else its own.
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
    except Exception:  # of many kinds
        return False
    return True


def _vary(name: str, value: Tensor) -> None:
    """Makes a constant tensor (a fresh norm's, a zeroed bias or scale) random."""
    if not value.is_floating_point() or value.numel() <= 1:
        return
    if bool((value == value.flatten()[0]).all()):
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        else:
            value.add_(torch.randn_like(value), alpha=0.1)


def save(module: nn.Module, shape: tuple[int, ...], kind: str, folder: Path) -> None:
    """Writes one archive, made as its author would: a static one of a single image."""
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
    parser.add_argument("--side", type=int, help="of the images, where a model takes any")
    parser.add_argument("--img-size", type=int, help="that models are built for, as timm calls it")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=180, help="at most, for each archive")
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
