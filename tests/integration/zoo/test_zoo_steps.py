"""Every tiny model of timm as a teacher: plan, steps of both stages, and export."""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.tiny_zoo import MODELS, OWN_SIZE, SIDE
from steps import distill_objective, hint_objective

from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import Batch
from fitcompress.events import ignore
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import export_model
from fitcompress.graph.program import output_nodes
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import Recipe, resolve_recipe
from fitcompress.student.planner import Planned, plan_run

NUM_CLASSES = 10
TOLERANCES = {"test_nfnet": 5e-4}
"""Of the export; the default is 1e-4 of the largest output. Outputs of an untrained nfnet, without
norms, are about 0.05, and float32 sums in another order change them by 6e-6 (1.07e-4).
"""


def planned(name: str, depth: float = 2.0) -> tuple[Planned, Recipe]:
    """A student `depth` times as deep and 0.3 times as wide as a model with random weights."""
    side = timm.get_pretrained_cfg(name).input_size[-1] if name in OWN_SIZE else SIDE
    settings = {
        "teacher.source": name,
        "teacher.pretrained": False,
        "student.depth_mult": depth,
        "student.width_mult": 0.3,
    }
    recipe = resolve_recipe(settings=settings)
    teacher = open_teacher(recipe.teacher, image_size=(side, side), num_classes=NUM_CLASSES)
    return plan_run(teacher, recipe, emit=ignore), recipe


def some_batch(plan: Planned) -> Batch:
    shape = plan.teacher.interface.input.shape
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    return Batch(images, torch.arange(4) % NUM_CLASSES, torch.arange(4))


def take_steps(objective, batch: Batch) -> tuple[dict, dict]:
    """The gradients by parameter at the first step, and after two steps of the optimizer."""
    objective.train()
    optimizer = torch.optim.SGD(objective.trained.parameters(), lr=0.01)
    seen = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = objective.losses(batch, 0.0)["loss"]
        assert loss.isfinite()
        loss.backward()
        seen.append({name: p.grad for name, p in objective.trained.named_parameters()})
        optimizer.step()
    return seen[0], {name: grad.clone() for name, grad in seen[2].items()}


def check_gradients(first: dict, third: dict, blocks: list[str]) -> None:
    """Finite in every parameter at the first step; nonzero in every block by the third step.

    blocks: the names of the blocks that have trained parameters.
    """
    assert first
    for name, gradient in first.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.isfinite().all(), name
    for block in blocks:
        inside = [grad for name, grad in third.items() if f".{block}." in f".{name}"]
        assert inside, f"{block} has no parameters"
        assert any(grad.any() for grad in inside), f"no gradient reaches {block}"


def blocks_before(plan: Planned, *ends: str) -> list[str]:
    """The student's blocks that have a trained parameter on which a node of `ends` depends."""
    program = plan.student.program
    pending = [node for node in program.graph.nodes if node.name in ends]
    reached: dict[str, set[str]] = {}
    while pending:
        node = pending.pop()
        if node.name not in reached:
            reached[node.name] = {str(source.target) for source in node.all_input_nodes}
            pending.extend(node.all_input_nodes)
    return [
        block
        for block, members in plan.student.blocks
        if any(reached.get(name, set()) & program.trainable for name in members)
    ]


STEPPED = [
    pytest.param(name, marks=pytest.mark.slow) if number % 2 else name
    for number, name in enumerate(MODELS)
]
"""Every second model by default; all with -m slow."""


@pytest.mark.parametrize("name", STEPPED)
def test_both_stages_train(name):
    plan, recipe = planned(name)
    batch = some_batch(plan)
    student, outputs = plan.student.network, output_nodes(plan.student.program.graph)
    trained_on_hints = blocks_before(plan, *plan.guided_nodes)
    trained = blocks_before(plan, *(node.name for node in outputs))
    assert trained_on_hints == trained[: len(trained_on_hints)] != []

    hints = take_steps(hint_objective(plan, recipe, batch), batch)
    check_gradients(*hints, trained_on_hints)
    distilled = take_steps(distill_objective(plan, recipe), batch)
    check_gradients(*distilled, trained)

    assert len(distilled[0]) == len(dict(student.named_parameters()))


@pytest.mark.parametrize("name", STEPPED)
def test_the_export_of_a_trained_student_matches(name, tmp_path):
    """As deep as its teacher: that has every kind of layer, and exports in half the time."""
    plan, recipe = planned(name, depth=1.0)
    batch = some_batch(plan)
    take_steps(distill_objective(plan, recipe), batch)

    student = plan.student.network.eval()
    samples = Preprocess(plan.student.interface.input)(batch.images)
    source = Exportable(student, plan.student.interface, samples)
    record = export_model("onnx", source, tmp_path / "student.onnx")

    assert record.max_rel_diff < TOLERANCES.get(name, 1e-4)
    assert record.top1_agreement == 1.0


def test_a_gradient_that_is_missing_infinite_or_zero_is_found():
    one, nothing = torch.ones(2), torch.zeros(2)
    good = {"a.weight": one, "b.weight": one}

    check_gradients(good, good, ["a", "b"])
    for wrong in (
        ({**good, "b.weight": None}, good),
        ({**good, "b.weight": one / 0}, good),
        (good, {**good, "b.weight": nothing}),
        ({}, good),
    ):
        with pytest.raises(AssertionError):
            check_gradients(*wrong, ["a", "b"])
    with pytest.raises(AssertionError, match="c has no parameters"):
        check_gradients(good, good, ["a", "b", "c"])
