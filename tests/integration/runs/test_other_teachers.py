"""Teachers that are no classifiers of square photographs: plans, both stages, and all files."""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from helpers.other_nets import Embedding
from helpers.other_teachers import CASES, WAYS, opened
from helpers.toy_runs import SPEC, toy_recipe, write_images
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fitcompress
from fitcompress.data.views import Batch
from fitcompress.distillation.hint_objectives import HintMatcher, HintObjective
from fitcompress.distillation.objectives import DistillObjective
from fitcompress.distillation.partial_networks import cut_at
from fitcompress.distillation.statistics import estimate_target_statistics
from fitcompress.events import ignore
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import export_model
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.graph.program import Program, output_nodes, run_program
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import InputSpec
from fitcompress.models.model import CONFIG_NAME, load_model, output_kinds, save_model, with_state
from fitcompress.models.open import teacher_from_module
from fitcompress.recipe.recipe import Recipe
from fitcompress.recipe.schema import HintRecipe
from fitcompress.student.planner import Planned, make_regressors, plan_run


def output_shapes(program: Program, batch_size: int) -> list[tuple[int, ...]]:
    shapes = propagate_shapes(program, batch_size)
    return [shapes[node.name] for node in output_nodes(program.graph)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("teachers")


# --- every kind from every kind of file ---------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_the_teacher_computes_what_its_source_computes(name, way, folder):
    case = CASES[name]
    teacher, _, module = opened(name, way, folder)
    tolerance = 1e-5 if way == "frozen" else 1e-6  # norms folded into convolutions
    for batch_size in (1, 2, 5):
        inputs = case.examples(batch_size)
        found = list(run_program(teacher.program, *inputs))
        if teacher.interface.activation:
            found[0] = found[0].softmax(-1)
        with torch.no_grad():
            expected = tree_leaves(module(*inputs))
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert teacher.interface.activation == ("softmax" if name == "softmax" else "")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_the_student_is_thinner_deeper_and_runs_at_any_batch_size(name, way, folder):
    teacher, recipe, _ = opened(name, way, folder)
    planned = plan_run(teacher, recipe, emit=ignore)

    for batch_size in (1, 3):
        expected = output_shapes(teacher.program, batch_size)
        assert output_shapes(planned.student.program, batch_size) == expected
    costs = planned.plan.teacher_costs, planned.plan.costs
    assert costs[1].params < 0.5 * costs[0].params
    assert costs[1].depth >= 1.6 * costs[0].depth


@pytest.mark.parametrize("way", ["traced", "pt2"])
@pytest.mark.parametrize("name", CASES)
def test_the_interface_says_what_it_takes_and_what_comes_out(name, way, folder):
    case = CASES[name]
    teacher, _, _ = opened(name, way, folder)
    interface = teacher.interface
    if case.is_image:
        assert "x".join(map(str, interface.images.shape)) == case.inputs[0]
        assert interface.inputs == ()
    else:
        assert interface.input is None
        said = tuple(str(spec).removesuffix(":float32") for spec in interface.inputs)
        assert said == case.inputs
        assert tuple(spec.name for spec in interface.inputs) == case.argument_names
    assert interface.output_names == case.names
    shapes = output_shapes(teacher.program, 2)
    assert tuple(map(interface.kind_of, shapes)) == case.kinds
    assert teacher.num_classes == (shapes[0][1] if case.kinds[0] == "classes" else 0)


# --- training, files ----------------------------------------------------------------------------


class Given(nn.Module):
    """A preprocessing that hands out what it holds, one tensor or several."""

    def __init__(self, values: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.values = values

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.values[0] if len(self.values) == 1 else self.values


def objectives(planned: Planned, recipe: Recipe, given: Given, batch: Batch) -> list[nn.Module]:
    """Both stages, as a run makes them."""
    pairs = planned.pairs
    cuts = (
        cut_at(planned.teacher, [pair.hint.node for pair in pairs]),
        cut_at(planned.student, [pair.guided.node for pair in pairs]),
    )
    regressors = [regressor for regressor, _ in make_regressors(pairs, recipe.hints)]
    preprocess = {"teacher_preprocess": given, "student_preprocess": given}
    statistics = estimate_target_statistics(cuts[0], given, regressors, [batch], num_batches=1)
    hints = HintObjective(*cuts, HintMatcher(regressors, statistics), **preprocess)
    kinds = output_kinds(planned.teacher)
    networks = planned.teacher.network, planned.student.network
    return [
        hints,
        DistillObjective(*networks, recipe.stage2, **preprocess, output_kinds=kinds),
    ]


def take_a_step(objective: nn.Module, batch: Batch) -> dict[str, Tensor]:
    objective.train()
    optimizer = torch.optim.SGD(objective.trained.parameters(), lr=0.01)
    losses = objective.losses(batch, 0.0)
    losses["loss"].backward()
    gradients = [parameter.grad for parameter in objective.trained.parameters()]
    assert gradients and all(value is not None and value.isfinite().all() for value in gradients)
    optimizer.step()
    return losses


@functools.cache
def trained(name: str, folder: Path) -> tuple[Planned, tuple[Tensor, ...]]:
    """The student of a scripted teacher after a step of each stage, and some inputs."""
    case = CASES[name]
    teacher, recipe, _ = opened(name, "scripted", folder)
    planned = plan_run(teacher, recipe, emit=ignore)
    inputs = case.examples(4)
    labels = torch.arange(4) % max(1, teacher.num_classes)
    batch = Batch(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), labels, torch.arange(4))
    hints, distill = objectives(planned, recipe, Given(inputs), batch)
    assert take_a_step(hints, batch)["loss"].isfinite()
    losses = take_a_step(distill, batch)
    assert all(torch.as_tensor(value).isfinite() for value in losses.values())
    words = {"classes": {"kd", "ce"}, "values": {"mse"}}
    suffixes = [f"_{n}" if len(case.kinds) > 1 else "" for n in range(1, len(case.kinds) + 1)]
    expected = {w + s for kind, s in zip(case.kinds, suffixes, strict=True) for w in words[kind]}
    assert expected <= set(losses)
    assert distill.evaluate(batch)["loss"][1] == 4
    planned.student.network.eval()
    return planned, inputs


@pytest.mark.parametrize("name", CASES)
def test_both_stages_train_and_the_regressor_has_the_shape_of_the_hint(name, folder):
    planned, _ = trained(name, folder)
    (pair,) = planned.pairs
    ((regressor, _),) = make_regressors(planned.pairs, HintRecipe())
    target = regressor.target(torch.zeros(2, *pair.hint.shape))
    assert regressor(torch.zeros(2, *pair.guided.shape)).shape == target.shape


@pytest.mark.parametrize("name", CASES)
def test_onnx_takes_and_gives_what_the_student_does_under_the_same_names(name, folder, tmp_path):
    planned, inputs = trained(name, folder)
    path = tmp_path / "student.onnx"
    interface = planned.student.interface
    record = export_model("onnx", Exportable(planned.student.network, interface, inputs), path)

    assert record.checked_batches == (1, 8) and record.max_rel_diff < 1e-5
    assert open_onnx(path).interface == interface
    graph = onnx.load(path).graph
    case = CASES[name]
    assert tuple(value.name for value in graph.input) == case.argument_names
    alone = {"values": "values", "classes": "probabilities" if name == "softmax" else "logits"}
    expected = case.names or (alone[case.kinds[0]],)
    assert tuple(value.name for value in graph.output) == expected


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
@pytest.mark.parametrize("name", ["lstm", "text", "two inputs", "dict"])
def test_torch_files_of_the_student_give_the_same_bits(name, form, folder, tmp_path):
    planned, inputs = trained(name, folder)
    source = Exportable(planned.student.network, planned.student.interface, inputs)
    assert export_model(form, source, tmp_path / "student").max_abs_diff == 0.0


@pytest.mark.parametrize("name", ["segmentation", "embedding"])
def test_a_run_learns_outputs_that_are_no_classes_and_reports_no_accuracy(name, tmp_path):
    teacher = teacher_from_module(CASES[name].module(), SPEC, output_kind="values")
    run = tmp_path / "run"
    recipe = toy_recipe(write_images(tmp_path / "data"), run, run__baseline=True)
    fitcompress.distill(recipe, teacher=teacher)

    results = json.loads((run / "results.json").read_text())
    assert results["student"]["accuracy"] is None and results["agreement"] is None
    assert results["student"]["calibration"] is None and "doubts" not in results
    assert "divergence" not in fitcompress.load_report(run).render("html")
    assert "baseline" not in results  # labels say nothing of such outputs
    losses = [stage["losses"]["loss"] for stage in results["stages"]]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert fitcompress.evaluate(str(run / "student"), recipe)["accuracy"] is None
    assert fitcompress.load(run).interface.output_kind == "values"
    (exported,) = fitcompress.export(run)
    assert exported["max_rel_diff"] < 1e-5


_RELOAD = """
import sys, torch, fitcompress
from pathlib import Path
for folder in sorted(Path(sys.argv[1]).iterdir()):
    kept = torch.load(folder / "answers.pt")
    with torch.no_grad():
        found = fitcompress.load(folder)(*kept["inputs"])
    found = [found] if isinstance(found, torch.Tensor) else list(found)
    assert len(found) == len(kept["outputs"]) and all(map(torch.equal, found, kept["outputs"]))
    print(folder.name)
"""


def test_a_fresh_process_loads_every_student_and_gets_the_same_bits(folder, tmp_path):
    for name in CASES:
        planned, inputs = trained(name, folder)
        student = planned.student
        program = with_state(student, student.network)
        save_model(tmp_path / name, program, {}, student.interface, student.blocks)
        assert load_model(tmp_path / name).interface == student.interface
        with torch.no_grad():
            outputs = tree_leaves(student.network(*inputs))
        torch.save({"inputs": inputs, "outputs": outputs}, tmp_path / name / "answers.pt")
    command = [sys.executable, "-c", _RELOAD, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == sorted(CASES)


def test_a_folder_of_an_earlier_release_loads(tmp_path):
    spec = InputSpec(shape=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    teacher = teacher_from_module(Embedding().eval(), spec)
    save_model(tmp_path, teacher.program, {}, teacher.interface)
    config = json.loads((tmp_path / CONFIG_NAME).read_text())
    for name in ("inputs", "output_names", "output_kind"):
        del config["interface"][name]
    (tmp_path / CONFIG_NAME).write_text(json.dumps(config))
    assert load_model(tmp_path).interface == teacher.interface
