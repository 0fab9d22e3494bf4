"""Prune models of timm with Torch-Pruning 1.6.1, for comparison with `sweep.py`; a row per model.

    pip install torch-pruning==1.6.1
    python sweep_torch_pruning.py --out torch_pruning.csv --smallest-of timm.csv
    python sweep_torch_pruning.py --out some.csv --models resnet18 vit_tiny_patch16_224

The usage follows its own example for timm (`examples/timm_models` in its repository): uniform
pruning by group magnitude, sizes rounded to 8, the classifier ignored, the number of heads passed
for packed attention. Limits of that example itself are lifted: the classifier is found with timm's
`get_classifier`, and heads are passed for every packed attention, not only the plain transformer's.

Each model has its own process, which is stopped after a minute of processor time spent on pruning,
whatever else the machine does. A row is written when its model is done, so a stopped sweep
continues where it was.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["TIMM_FUSED_ATTN"] = "0"  # as the example does, before timm is imported

import timm
import torch
import torch_pruning
from rich.progress import MofNCompleteColumn, Progress
from rows import one_line, read_rows, smallest_of_each_family
from timm.models import _registry as registry
from torch import nn

PRUNING_RATIO = 0.7
"""Share that is removed: the students of `sweep.py` keep 0.3 of the width."""
LIMIT_S = 60

_CONTEXT = get_context("forkserver")


@dataclass(kw_only=True)
class Row:
    """Result for one model; fields of steps that were not reached are empty."""

    model: str
    family: str
    runs: bool = False
    """The pruned model runs on a batch of two, with outputs of the same shape."""
    params: int = 0
    pruned_params: int = 0
    params_ratio: float = 0.0
    seconds: float = 0.0
    """Processor time from the model in memory to the pruned model."""
    notice: str = ""


def measure(name: str) -> Row:
    """The row of one model; an error or a timeout becomes its notice."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_report, args=(name, sender))
    process.start()
    sender.close()
    row = [Row(model=name, family=registry._model_to_module[name]), *_received(receiver)][-1]
    process.join()
    if process.exitcode == -signal.SIGXCPU:
        row.seconds, row.notice = LIMIT_S, f"stopped after {LIMIT_S} s"
    elif process.exitcode:
        row.notice = f"its process died ({process.exitcode})"
    return row


def _received(receiver: Connection) -> Iterator[Row]:
    """Rows that the process sends until it ends, each further than the one before."""
    try:
        while True:
            yield receiver.recv()
    except EOFError:
        return


def _report(name: str, sender: Connection) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    row = Row(model=name, family=registry._model_to_module[name])
    try:
        _fill(row, sender)
    except Exception as error:
        row.notice = one_line(error)
    sender.send(row)


def _fill(row: Row, sender: Connection) -> None:
    model = timm.create_model(row.model, no_jit=True).eval()
    size = model.default_cfg["input_size"]
    row.params = _count(model)
    sender.send(row)
    start = time.process_time()
    limit = int(start) + LIMIT_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
    prune(model, torch.randn(1, *size))
    resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    row.seconds = round(time.process_time() - start, 2)
    row.pruned_params = _count(model)
    row.params_ratio = round(row.pruned_params / row.params, 4)
    with torch.no_grad():
        outputs = model(torch.randn(2, *size))
    assert outputs.shape == (2, model.num_classes), f"outputs of shape {tuple(outputs.shape)}"
    row.runs = True


def prune(model: nn.Module, example: torch.Tensor) -> None:
    """Prune the model in place, as Torch-Pruning's example for timm does."""
    packed = _packed_attentions(model)
    num_heads = {attention.qkv: attention.num_heads for attention in packed}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        iterative_steps=1,
        pruning_ratio=PRUNING_RATIO,
        num_heads=num_heads,
        ignored_layers=_classifiers(model),
        round_to=8,
    )
    for group in pruner.step(interactive=True):
        group.prune()
    for attention in packed:
        _tell_sizes(attention, num_heads[attention.qkv])


def _packed_attentions(model: nn.Module) -> list[nn.Module]:
    """Attention modules with `num_heads` whose query, key and value are one layer."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "num_heads", None), int)
        and isinstance(getattr(module, "qkv", None), nn.Linear | nn.Conv2d)
    ]


def _classifiers(model: nn.Module) -> list[nn.Module]:
    found = model.get_classifier()
    return list(found) if isinstance(found, tuple | list) else [found]


def _tell_sizes(attention: nn.Module, num_heads: int) -> None:
    """Update the sizes that an attention module stores, which the pruner does not know."""
    layer = attention.qkv
    width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    attention.num_heads = num_heads
    attention.head_dim = width // (3 * num_heads)
    attention.attn_dim = attention.head_dim * num_heads


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def sweep(names: list[str], out: Path, *, processes: int) -> None:
    """Write the rows that are missing in `out`."""
    done = {row["model"] for row in read_rows(out)}
    todo = [name for name in names if name not in done]
    columns = [field.name for field in fields(Row)]
    _CONTEXT.set_forkserver_preload(["timm", "torch_pruning"])
    with (
        out.open("a", newline="") as file,
        ThreadPoolExecutor(processes) as pool,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress,
    ):
        writer = csv.DictWriter(file, columns)
        if not done:
            writer.writeheader()
        for future in progress.track(
            as_completed([pool.submit(measure, name) for name in todo]), total=len(todo)
        ):
            writer.writerow(asdict(future.result()))
            file.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--models", nargs="+", help="names of models")
    which.add_argument("--smallest-of", type=Path, help="CSV file written by sweep.py")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    names = given.models or smallest_of_each_family(read_rows(given.smallest_of))
    sweep(names, given.out, processes=given.processes)


if __name__ == "__main__":
    main()
