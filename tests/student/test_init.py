"""Initial weights of a student: the teacher's, a part of them, or random."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.captured import captured, outputs
from helpers.graph_nets import (
    Attention,
    Branches,
    Classifier,
    Dense,
    PaddedShortcut,
    Residual,
    Shuffle,
    conv,
)
from torch import Tensor, nn

from fitcompress.graph.program import Program
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import StudentPlan, plan_student

MAP = (3, 8, 8)

NETWORKS = {
    "residual": lambda: Classifier(nn.Sequential(conv(3, 16), Residual(16), Residual(16)), 16),
    "attention": lambda: Classifier(nn.Sequential(conv(3, 16), Attention(16, 4)), 16),
    "dense": lambda: Classifier(nn.Sequential(conv(3, 16), Dense(16, 8, 2), conv(32, 16)), 16),
    "shuffle": lambda: Classifier(nn.Sequential(conv(3, 16), Shuffle(16), Branches(16)), 16),
    "padded": lambda: Classifier(nn.Sequential(conv(3, 16), PaddedShortcut(16, 32)), 32),
}


def teacher_of(name: str) -> Program:
    """A captured network whose norms have statistics worth keeping."""
    network = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.running_var):
                value.uniform_(0.5, 1.5)
            for value in (module.bias.data, module.running_mean):
                value.uniform_(-0.5, 0.5)
    return captured(network, MAP)


def student(plan: StudentPlan, init: str, seed: int = 0) -> Program:
    return replace(plan.program, tensors=initial_tensors(plan, init=init, seed=seed))


@pytest.mark.parametrize("name", NETWORKS)
def test_inheriting_everything_is_the_teacher_exactly(name):
    teacher = teacher_of(name)
    plan = plan_student(teacher, depth_mult=1, width_mult=1)
    x = torch.randn(3, *MAP)
    assert torch.equal(outputs(student(plan, "inherit"), x)[0], outputs(teacher, x)[0])


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_inheriting_at_twice_the_depth_is_the_teacher_exactly(name):
    teacher = teacher_of(name)
    plan = plan_student(teacher, depth_mult=2, width_mult=1)
    assert plan.costs.depth > plan.teacher_costs.depth
    x = torch.randn(3, *MAP)
    assert torch.equal(outputs(student(plan, "inherit"), x)[0], outputs(teacher, x)[0])


def strongest(values: Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(values)), key=lambda i: -float(values[i]))[:count])


def test_inheriting_keeps_the_channels_with_the_largest_squared_weights():
    """conv-norm-relu-conv-norm-linear, pruned by hand."""
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.BatchNorm2d(24)
    )
    teacher = captured(Classifier(network, 24), MAP)
    t = teacher.tensors
    for name in ("features.1.weight", "features.4.weight", "features.1.running_mean"):
        t[name].data.uniform_(-3, 3)
    plan = plan_student(teacher, depth_mult=1, width_mult=0.5)
    found = initial_tensors(plan, init="inherit", seed=0)

    def energy(*parts: tuple[str, int]) -> Tensor:
        total = 0.0
        for name, dim in parts:
            rows = t[name].detach().transpose(0, dim).reshape(t[name].shape[dim], -1)
            total = total + torch.tensor([sum(float(v) ** 2 for v in row) for row in rows])
        return total

    norms = [(f"features.1.{part}", 0) for part in ("weight", "bias")]
    first = energy(
        ("features.0.weight", 0), ("features.0.bias", 0), *norms, ("features.3.weight", 1)
    )
    norms = [(f"features.4.{part}", 0) for part in ("weight", "bias")]
    second = energy(("features.3.weight", 0), ("features.3.bias", 0), *norms, ("head.weight", 1))
    one, two = strongest(first, 8), strongest(second, 12)
    assert torch.equal(found["features.0.weight"], t["features.0.weight"][one])
    assert torch.equal(found["features.1.running_mean"], t["features.1.running_mean"][one])
    assert torch.equal(found["features.3.weight"], t["features.3.weight"][two][:, one])
    assert torch.equal(found["features.4.weight"], t["features.4.weight"][two])
    assert torch.equal(found["head.weight"], t["head.weight"][:, two])
    assert torch.equal(found["head.bias"], t["head.bias"])


def test_inheriting_keeps_whole_heads():
    teacher = teacher_of("attention")
    plan = plan_student(teacher, depth_mult=1, width_mult=0.5)
    weight = teacher.tensors["features.1.proj.weight"].detach()
    found = initial_tensors(plan, init="inherit", seed=0)["features.1.proj.weight"]
    columns = [
        [i for i in range(16) if torch.equal(weight[rows, i], found[:, j])]
        for rows in [kept_rows(weight, found)]
        for j in range(8)
    ]
    heads = {column[0] // 4 for column in columns}
    assert len(heads) == 2 and [c[0] % 4 for c in columns] == [0, 1, 2, 3] * 2


def kept_rows(whole: Tensor, part: Tensor) -> list[int]:
    """The rows of `whole` that contain all numbers of a row of `part`."""
    return [
        next(i for i, row in enumerate(whole) if set(found.tolist()) <= set(row.tolist()))
        for found in part
    ]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("init", ["random", "inherit"])
def test_a_student_runs_and_has_finite_outputs(name, init):
    plan = plan_student(teacher_of(name), depth_mult=2, width_mult=0.5)
    program = student(plan, init)
    assert {n: v.shape for n, v in program.tensors.items()} == {
        n: v.shape for n, v in plan.program.tensors.items()
    }
    (logits,) = outputs(program, torch.randn(3, *MAP))
    assert logits.shape == (3, 10) and logits.isfinite().all()


@pytest.mark.parametrize("init", ["random", "inherit"])
def test_the_end_of_a_new_branch_starts_at_zero(init):
    plan = plan_student(teacher_of("residual"), depth_mult=2, width_mult=0.5)
    found = initial_tensors(plan, init=init, seed=0)
    assert plan.deepened.zeroed
    assert all(not found[name].any() for name in plan.deepened.zeroed)


@pytest.mark.parametrize("init", ["random", "inherit"])
def test_new_blocks_that_are_no_ends_are_random(init):
    plan = plan_student(teacher_of("residual"), depth_mult=2, width_mult=1)
    found = initial_tensors(plan, init=init, seed=0)
    copies = [n for n in plan.deepened.origins if n.endswith("conv1.weight")]
    assert copies
    for name in copies:
        assert found[name].std() > 0
        assert not torch.equal(found[name], plan.teacher.tensors[plan.deepened.origins[name]])


def test_random_weights_have_the_variances_of_their_kind():
    """He et al. 2015 for convolutions, LeCun et al. 1998 for linear maps, both by the fan in."""
    network = Classifier(nn.Sequential(conv(3, 128), conv(128, 256)), 256)
    network.head = nn.Linear(256, 512)
    plan = plan_student(captured(network, MAP), depth_mult=1, width_mult=1)
    found = initial_tensors(plan, init="random", seed=0)
    assert found["features.1.0.weight"].var().item() == pytest.approx(2 / (128 * 9), rel=0.02)
    assert found["head.weight"].var().item() == pytest.approx(1 / 256, rel=0.02)
    assert found["features.1.0.weight"].mean().item() == pytest.approx(0, abs=1e-3)
    assert not found["head.bias"].any()
    assert (found["features.0.1.weight"] == 1).all() and not found["features.0.1.bias"].any()
    assert (found["features.0.1.running_var"] == 1).all()
    assert not found["features.0.1.running_mean"].any()


def test_grouped_convolutions_count_the_inputs_of_one_group():
    network = Classifier(nn.Sequential(conv(3, 512), conv(512, 512, groups=512)), 512)
    plan = plan_student(captured(network, MAP), depth_mult=1, width_mult=1)
    found = initial_tensors(plan, init="random", seed=0)
    assert found["features.1.0.weight"].var().item() == pytest.approx(2 / 9, rel=0.1)


def test_loose_parameters_are_drawn_like_the_teachers():
    class Loose(nn.Module):
        def __init__(self):
            super().__init__()
            self.position = nn.Parameter(torch.randn(64, 16) * 0.3 + 2)
            self.embed, self.head = nn.Linear(3, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head((self.embed(x) + self.position).mean(1))

    teacher = captured(Loose(), (64, 3))
    plan = plan_student(teacher, depth_mult=1, width_mult=1)
    found = initial_tensors(plan, init="random", seed=0)["position"]
    assert found.mean().item() == pytest.approx(2, abs=0.05)
    assert found.std().item() == pytest.approx(0.3, abs=0.03)
    assert not torch.equal(found, teacher.tensors["position"])


def test_tables_keep_their_values_where_their_channels_stay():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("wave", torch.sin(torch.arange(12.0)))
            self.one, self.two = nn.Linear(3, 12), nn.Linear(12, 4)

        def forward(self, x):
            return self.two(self.one(x) * self.wave)

    teacher = captured(Table(), (3,))
    plan = plan_student(teacher, depth_mult=1, width_mult=0.5)
    found = initial_tensors(plan, init="random", seed=0)
    assert torch.equal(found["wave"], teacher.tensors["wave"][::2])
    inherited = initial_tensors(plan, init="inherit", seed=0)
    rows = [
        teacher.tensors["one.weight"].tolist().index(row.tolist())
        for row in inherited["one.weight"]
    ]
    assert torch.equal(inherited["wave"], teacher.tensors["wave"][rows])


@pytest.mark.parametrize("init", ["random", "inherit"])
def test_a_seed_fixes_every_bit_and_another_changes_them(init):
    plan = plan_student(teacher_of("residual"), depth_mult=2, width_mult=0.5)
    one, same, other = (initial_tensors(plan, init=init, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("init", ["random", "inherit"])
def test_the_teacher_is_untouched_and_shares_nothing_with_the_student(init):
    teacher = teacher_of("residual")
    before = {name: value.detach().clone() for name, value in teacher.tensors.items()}
    plan = plan_student(teacher, depth_mult=2, width_mult=1)
    for value in initial_tensors(plan, init=init, seed=0).values():
        value.fill_(7)
    assert all(torch.equal(before[name], teacher.tensors[name]) for name in before)


def test_the_students_tensors_need_no_gradient_and_torchs_generator_stays():
    plan = plan_student(teacher_of("residual"), depth_mult=2, width_mult=0.5)
    state = torch.random.get_rng_state()
    found = initial_tensors(plan, init="random", seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(value.requires_grad for value in found.values())
