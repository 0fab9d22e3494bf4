"""Train students of timm models for one step in each stage, with real weights, export them, and
load them in another process; one CSV row per model.

    python steps.py --out steps.csv --sample-of timm.csv --processes 2
    python steps.py --out some.csv --models 'resnet*' --side 128

Rows are written when their model is done, so a stopped run continues where it was. Weights are
random, and no tensor is constant. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from archives import model_and_shape
from reopen import relative_difference
from rows import (
    add_rows,
    models_like,
    one_line,
    random_others,
    read_rows,
    smallest_of_each_family,
)
from timm.models import _registry as registry
from torch import Tensor, nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import Batch
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.distillation.hint_objectives import HintMatcher, HintObjective
from fitcompress.distillation.objectives import DistillObjective
from fitcompress.distillation.partial_networks import cut_at
from fitcompress.distillation.statistics import estimate_target_statistics
from fitcompress.events import ignore
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import export_model
from fitcompress.interface import InputSpec
from fitcompress.models.model import save_model
from fitcompress.models.open import teacher_from_module
from fitcompress.recipe.recipe import Recipe, resolve_recipe
from fitcompress.student.planner import Planned, make_regressors, plan_run

DEPTH_MULT, WIDTH_MULT = 2.0, 0.3
BATCH_SIZE = 2


@dataclass(kw_only=True)
class Row:
    """Result for one model; fields of steps that were not reached are empty."""

    model: str
    family: str
    params: int = 0
    difference: float | str = ""
    """Largest difference at batch sizes 2 and 3 between the outputs of the lifted network and the
    model, relative to the largest output."""
    hint_loss: float | str = ""
    """First loss of stage 1; the gradients of all its parameters are finite."""
    distill_loss: float | str = ""
    """First loss of stage 2, likewise."""
    onnx_difference: float | str = ""
    """Largest difference at batch sizes 1 and 8 between onnxruntime's outputs and the student's."""
    loaded: bool = False
    """Another process loads the student and computes the same bits."""
    seconds: float = 0.0
    notice: str = ""


def measure(name: str, side: int | None) -> list[Row]:
    """The row of one model; an error becomes its notice."""
    row = Row(model=name, family=registry._model_to_module.get(name, ""))
    start = time.perf_counter()
    try:
        _fill(row, side)
    except Exception as error:
        row.notice = one_line(error)
    row.seconds = round(time.perf_counter() - start, 1)
    return [row]


def _fill(row: Row, side: int | None) -> None:
    settings = {"student.depth_mult": DEPTH_MULT, "student.width_mult": WIDTH_MULT}
    recipe = resolve_recipe(settings=settings)
    with torch.no_grad():
        module, shape = model_and_shape(row.model, side)
        row.params = sum(value.numel() for value in module.parameters())
        even = InputSpec(shape=shape, mean=(0.5,) * shape[0], std=(0.5,) * shape[0])
        planned = plan_run(teacher_from_module(module, even), recipe, emit=ignore)
        row.difference = _difference(planned.teacher.network, module, shape)
    batch = _batch(shape)
    row.hint_loss = one_step(hint_objective(planned, recipe, batch), batch)
    row.distill_loss = one_step(distill_objective(planned, recipe), batch)

    student = planned.student.network.eval()
    samples = Preprocess(planned.student.interface.input)(batch.images)
    with TemporaryDirectory() as temporary, torch.no_grad():
        source = Exportable(student, planned.student.interface, samples)
        record = export_model("onnx", source, Path(temporary) / "student.onnx")
        row.onnx_difference = record.max_rel_diff
        row.loaded = _is_same_elsewhere(planned, samples, Path(temporary))


def _difference(network: nn.Module, module: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest relative difference between the lifted network and the model."""
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn((size, *shape), generator=generator) for size in (2, 3)]
    return max(relative_difference(network.eval()(x), module(x)) for x in batches)


def _batch(shape: tuple[int, ...]) -> Batch:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (BATCH_SIZE, *shape), generator=generator).to(torch.uint8)
    return Batch(images, torch.arange(BATCH_SIZE), torch.arange(BATCH_SIZE))


def hint_objective(planned: Planned, recipe: Recipe, batch: Batch) -> HintObjective:
    """The objective of stage 1, as in a run."""
    cuts = (
        freeze_teacher(planned.teacher, [pair.hint.node for pair in planned.pairs]).network,
        cut_at(planned.student, [pair.guided.node for pair in planned.pairs]),
    )
    regressors = [regressor for regressor, _ in make_regressors(planned.pairs, recipe.hints)]
    preprocess = Preprocess(planned.teacher.interface.input)
    statistics = estimate_target_statistics(cuts[0], preprocess, regressors, [batch], num_batches=1)
    return HintObjective(
        *cuts,
        HintMatcher(regressors, statistics),
        teacher_preprocess=preprocess,
        student_preprocess=Preprocess(planned.student.interface.input),
    )


def distill_objective(planned: Planned, recipe: Recipe) -> DistillObjective:
    """The objective of stage 2, as in a run."""
    return DistillObjective(
        freeze_teacher(planned.teacher).network,
        planned.student.network,
        recipe.stage2,
        teacher_preprocess=Preprocess(planned.teacher.interface.input),
        student_preprocess=Preprocess(planned.student.interface.input),
    )


def one_step(objective: HintObjective | DistillObjective, batch: Batch) -> float:
    """Make one step of gradient descent and return the loss; all values must be finite."""
    objective.train()
    loss = objective.losses(batch, 0.0)["loss"]
    loss.backward()
    parameters = dict(objective.trained.named_parameters())
    assert parameters, "nothing is trained"
    assert loss.isfinite(), f"the loss is {loss.item()}"
    bad = [name for name, p in parameters.items() if p.grad is None or not p.grad.isfinite().all()]
    assert not bad, f"no finite gradient in {len(bad)} parameters, such as {bad[0]}"
    nn.utils.clip_grad_norm_(parameters.values(), 1.0)  # as in a run
    torch.optim.SGD(parameters.values(), lr=1e-3).step()
    objective.trained.zero_grad()
    return round(loss.item(), 4)


def _is_same_elsewhere(planned: Planned, samples: Tensor, folder: Path) -> bool:
    model = planned.student
    save_model(folder / "student", model.program, model.network, model.interface, model.blocks)
    torch.save({"inputs": samples, "outputs": _outputs(model.network(samples))}, folder / "io.pt")
    ended = subprocess.run([sys.executable, "-c", _LOAD, str(folder)], capture_output=True)
    return ended.returncode == 0


_LOAD = """
import sys, torch, fitcompress
torch.set_num_threads(1)
seen = torch.load(sys.argv[1] + "/io.pt")
with torch.no_grad():
    found = fitcompress.load(sys.argv[1] + "/student")(seen["inputs"])
found = found if isinstance(found, tuple) else (found,)
assert "timm" not in sys.modules
assert all(torch.equal(a, b) for a, b in zip(found, seen["outputs"], strict=True))
"""


def _outputs(result: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _sample(rows: list[dict[str, str]]) -> list[str]:
    return [*smallest_of_each_family(rows), *random_others(rows, 100)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--models", nargs="+", help="name patterns")
    which.add_argument(
        "--sample-of",
        type=Path,
        help="CSV file written by sweep.py; takes the smallest model of each of timm's files and a"
        " random 100 of the others up to 30 M parameters",
    )
    parser.add_argument("--side", type=int, help="image size, for models that take any")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    done = {row["model"] for row in read_rows(given.out)}
    chosen = models_like(given.models) if given.models else _sample(read_rows(given.sample_of))
    names = [name for name in chosen if name not in done]
    tasks = [partial(measure, name, given.side) for name in names]
    add_rows(given.out, Row, tasks, processes=given.processes)


if __name__ == "__main__":
    main()
