"""Planned runs: the summary, initial weights and custom students."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from helpers.small_nets import trained_a_little
from helpers.toy_runs import SPEC, TinyNet, make_small
from torch import nn

from fitcompress.api import plan
from fitcompress.errors import FitcompressError, PlanError
from fitcompress.events import Notice, ignore
from fitcompress.models.model import make_model, with_state
from fitcompress.models.open import teacher_from_module
from fitcompress.recipe.recipe import Recipe, resolve_recipe
from fitcompress.student.planner import Planned, plan_run

X = torch.randn(3, *SPEC.shape, generator=torch.Generator().manual_seed(0))


def recipe_of(**more: object) -> Recipe:
    settings = {"teacher.source": "toy", "student.width_mult": 0.5}
    named = {name.replace("__", "."): value for name, value in more.items()}
    return resolve_recipe(settings={**settings, **named})


def planned(net: nn.Module | None = None, emit=ignore, **more: object) -> Planned:
    torch.manual_seed(0)
    teacher = teacher_from_module(trained_a_little(net or TinyNet()), SPEC)
    return plan_run(teacher, recipe_of(**more), emit=emit)


# --- the plan for scripts ----------------------------------------------------------------------


def test_the_plan_keeps_its_contract():
    settings = {"teacher.source": "test_resnet", "teacher.pretrained": False}
    summary = plan(resolve_recipe(settings=settings))

    assert json.loads(json.dumps(summary)) == summary
    for name in ("teacher", "student"):
        side = summary[name]
        assert side.keys() >= {"params", "macs", "flops", "depth"}
        assert side["flops"] == 2 * side["macs"]
    assert [pair.keys() for pair in summary["pairs"]] == [
        {"hint", "guided", "hint_shape", "guided_shape", "regressor"}
    ]
    assert all(place.keys() == {"reason", "sizes", "tensors"} for place in summary["frozen"])
    assert summary["notices"] == []
    assert summary["init"] == "inherit"
    assert summary["student"]["depth"] >= 1.8 * summary["teacher"]["depth"]


def test_a_plan_without_weights_is_the_plan_of_the_run():
    settings = {"teacher.source": "helpers.toy_runs:make_net", "teacher.input_size": SPEC.shape}
    bare = plan(resolve_recipe(settings={**settings, "student.width_mult": 0.5}))

    assert bare == planned().summary.to_dict()


def test_stages_stand_side_by_side():
    rows = planned().summary.stages

    assert [row.name for row in rows] == [f"stage {n}" for n in range(1, len(rows) + 1)]
    pairs = [(row.teacher, row.student) for row in rows if row.teacher]
    assert any(student.blocks > teacher.blocks for teacher, student in pairs)
    assert all(student.width[1:] == teacher.width[1:] for teacher, student in pairs)
    assert all(student.params > 0 for _, student in pairs)


def test_a_network_without_norms_gets_them_with_a_notice():
    class Plain(nn.Sequential):
        def __init__(self) -> None:
            convs = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 16), (16, 16), (16, 16))]
            steps = [step for conv in convs for step in (conv, nn.ReLU())]
            super().__init__(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

    events = []
    plan = planned(Plain(), emit=events.append)

    (notice,) = plan.summary.notices
    assert "batch norm" in notice
    sent = [(event.code, event.message) for event in events if isinstance(event, Notice)]
    assert sent == [("norms-added", notice)]
    assert any(isinstance(module, nn.BatchNorm2d) for module in plan.student.network.modules())


def test_an_output_as_wide_as_the_inside_gets_a_map_with_a_notice():
    class Embedder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
            self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))

        def forward(self, x):
            x = self.norm(self.stem(x)).relu()
            return (x + self.body(x)).relu().mean((2, 3))

    plan = planned(Embedder())

    (notice,) = plan.summary.notices
    assert "the width of its inner layers" in notice
    assert plan.student.network.state_dict()["output_projection.weight"].shape == (16, 8)


# --- first weights -----------------------------------------------------------------------------


def test_the_seed_decides_the_first_weights():
    first, again, other = planned(), planned(), planned(run__seed=1)
    sides = [run.student.network.state_dict() for run in (first, again, other)]

    assert all(map(torch.equal, sides[0].values(), sides[1].values()))
    assert not all(map(torch.equal, sides[0].values(), sides[2].values()))


def test_inheriting_all_gives_the_teacher_and_needs_no_new_statistics():
    net = TinyNet()
    run = planned(net, student__init="inherit", student__width_mult=1.0, student__depth_mult=1.0)

    with torch.no_grad():
        assert torch.equal(run.student.network(X), net(X))
    assert not run.inherits_statistics


@pytest.mark.parametrize(
    ("more", "inherits"),
    [
        ({"student__init": "inherit"}, True),
        ({"student__init": "inherit", "student__width_mult": 1.0}, True),
        ({"student__init": "random"}, False),
    ],
)
def test_statistics_are_estimated_anew_where_a_student_inherits_other_shapes(more, inherits):
    assert planned(**more).inherits_statistics is inherits


# --- custom students ---------------------------------------------------------------------------


def test_a_custom_student_is_not_changed():
    summary = planned(student__source="helpers.toy_runs:make_small").summary

    assert summary.student.params == sum(p.numel() for p in make_small().parameters())
    assert summary.frozen == ()
    assert summary.init == "own"
    assert summary.pairs[0].guided_shape != summary.pairs[0].hint_shape


def test_a_student_without_normalization_takes_the_teachers():
    said: list[Notice] = []
    own = planned(
        student__source="helpers.toy_runs:make_small", emit=said.append
    ).student.interface.images
    timms = planned(student__source="test_resnet").student.interface.images

    assert (own.mean, own.std) == (SPEC.mean, SPEC.std)
    assert "normalization-assumed" not in [notice.code for notice in said]
    assert timms.mean == timm.get_pretrained_cfg("test_resnet").mean != SPEC.mean


def test_a_timm_student_gets_the_teachers_classes_and_an_unknown_name_near_misses():
    run = planned(student__source="test_resnet")

    with torch.no_grad():
        assert run.student.network(X).shape == (3, 3)
    with pytest.raises(FitcompressError) as caught:
        planned(student__source="test_resnte")
    assert "'test_resnet'" in caught.value.advice


def test_a_student_with_other_outputs_is_refused(in_empty_folder, monkeypatch):
    (in_empty_folder / "two_heads.py").write_text(
        "import torch\n"
        "class Two(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv = torch.nn.Conv2d(3, 4, 3)\n"
        "        self.head = torch.nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        "        y = self.conv(x).mean((2, 3))\n"
        "        return self.head(y), y\n"
    )

    with pytest.raises(PlanError) as caught:
        planned(student__source="two_heads:Two")
    assert caught.value.code == "student-outputs-mismatch"
    assert (caught.value.facts["expected"], caught.value.facts["got"]) == ([[3]], [[3], [4]])


# --- models ------------------------------------------------------------------------------------


def test_a_trained_network_goes_back_into_its_program():
    teacher = teacher_from_module(trained_a_little(TinyNet()), SPEC)
    model = make_model(teacher.program, teacher.interface)
    before = {name: value.clone() for name, value in model.program.tensors.items()}
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(1)

    program = with_state(model, model.network)

    with torch.no_grad():
        again = make_model(program, teacher.interface).network
        assert torch.equal(again(X), model.network(X))
    assert all(torch.equal(value, before[name]) for name, value in model.program.tensors.items())
