"""Every axis rule alone: one call on free tensors is thinned along each free atom and run."""

from __future__ import annotations

import operator

import pytest
import torch
from helpers.captured import kept_places
from helpers.rule_cases import CASES, Case
from torch import Tensor
from torch.fx import Graph, Node

from fitcompress.graph.axes.algebra import Atom
from fitcompress.graph.axes.rules import RULES
from fitcompress.graph.axes.trace import AxisTrace, free_weight_atoms, trace_axes
from fitcompress.graph.program import InputInfo, Program, run_program
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.student.width import thin_program


def overload_named(key: str):
    name, overload = key.split()[0].split(".")
    return getattr(getattr(torch.ops.aten, name), overload)


def build(case: Case, target) -> tuple[Program, Node]:
    """A program of one call on its own tensors, whose outputs are sums, which freeze nothing."""
    graph = Graph()
    graph.placeholder("x")
    tensors: dict[str, Tensor] = {}
    nodes = []
    shapes = [*case.tensors, case.plus] if case.plus else case.tensors
    for letter, value in zip("abcdefgh", shapes, strict=False):
        tensors[letter] = value if isinstance(value, Tensor) else torch.rand(value) + 0.1
        nodes.append(graph.create_node("get_attr", letter))
    extra = nodes.pop() if case.plus else None
    args = case.arguments(*nodes)
    kwargs = args[-1] if args and isinstance(args[-1], dict) else {}
    node = call = graph.call_function(target, args[: len(args) - bool(kwargs)], kwargs)
    if extra is not None:
        node = graph.call_function(torch.ops.aten.add.Tensor, (call, extra))
    graph.output(tuple(sums(graph, node, tensors)))
    given = zip(tensors, shapes, strict=True)
    trained = frozenset(name for name, value in given if not isinstance(value, Tensor))
    return Program(graph, tensors, trained, (InputInfo("x", (2,)),)), call


def sums(graph: Graph, node: Node, tensors: dict[str, Tensor]):
    program = Program(graph, tensors, frozenset(), (InputInfo("x", (2,)),))
    graph.output((node,))
    shape = propagate_shapes(program)[node.name]
    graph.erase_node(graph.output_node())
    parts = [node]
    if shape and isinstance(shape[0], tuple):
        parts = [graph.call_function(operator.getitem, (node, i)) for i in range(len(shape))]
    return [graph.call_function(torch.ops.aten.sum.default, (part,)) for part in parts]


def result_of(program: Program, name: str):
    """The value of the call, or the values of its results."""
    graph = program.graph
    (old,) = [node for node in graph.nodes if node.op == "output"]
    kept = old.args
    (node,) = [node for node in graph.nodes if node.name == name]
    old.args = ((node,),)
    (value,) = run_program(program, torch.zeros(2, 2))
    old.args = kept
    return list(value) if isinstance(value, (tuple, list)) else [value]


def keep(trace: AxisTrace, axes, value: Tensor, kept: dict[Atom, list[int]]) -> Tensor:
    for dim, axis in enumerate(axes):
        value = value.index_select(
            dim, torch.tensor(kept_places(trace.algebra, axis, kept), dtype=torch.long)
        )
    return value


def axes_of_results(trace: AxisTrace, name: str):
    value = trace.values[name]
    return value if value and isinstance(value[0], list) else [value]


def thinnings(trace: AxisTrace):
    """Each free atom reduced by one, then all together; the last indices are kept."""
    atoms = sorted(free_weight_atoms(trace), key=lambda atom: atom.size)
    for chosen in [[atom] for atom in atoms] + [atoms]:
        yield {atom: list(range(1, atom.size)) for atom in chosen}


def test_every_rule_has_a_case():
    assert set(RULES) - {key.split(".")[0] for key in CASES} == set()


def test_every_rule_is_for_an_operation_that_exists():
    assert [name for name in RULES if not hasattr(torch.ops.aten, name)] == []


@pytest.mark.parametrize("key", CASES)
def test_the_call_accepts_every_size_that_its_rule_leaves_free(key):
    case = CASES[key]
    program, call = build(case, overload_named(key))
    trace = trace_axes(program)
    assert {atom.size for atom in free_weight_atoms(trace)} == case.free
    full = result_of(program, call.name)
    for kept in thinnings(trace):
        sizes = {atom: len(places) for atom, places in kept.items()}
        thin = thin_program(program, trace, sizes)
        thin.tensors.update(
            {
                name: keep(trace, trace.weights[name], program.tensors[name], kept)
                for name in thin.tensors
            }
        )
        run_program(thin, torch.zeros(2, 2))
        for axes, found, before in zip(
            axes_of_results(trace, call.name), result_of(thin, call.name), full, strict=True
        ):
            assert found.shape == tuple(trace.algebra.resize(axis, sizes) for axis in axes)
            if case.is_exact:
                torch.testing.assert_close(found, keep(trace, axes, before, kept))


@pytest.mark.parametrize("key", [key for key in CASES if "rand" not in key and "empty" not in key])
def test_a_call_that_is_not_thinned_is_unchanged(key):
    program, call = build(CASES[key], overload_named(key))
    thin = thin_program(program, trace_axes(program), {})
    thin.tensors.update({name: program.tensors[name] for name in thin.tensors})
    for one, other in zip(result_of(program, call.name), result_of(thin, call.name), strict=True):
        assert torch.equal(one, other)


def test_an_operation_without_a_rule_freezes_its_arguments_and_is_named():
    case = Case([(3, 4, 4), (5, 4)], lambda a, b: (a,), {5})
    program, _ = build(case, torch.ops.aten.linalg_inv.default)
    trace = trace_axes(program)
    reasons = {
        trace.algebra.frozen_reason(atom)
        for axis in trace.weights["a"]
        for atom in trace.algebra.atoms(axis)
    }
    assert reasons == {"no rule for the operation 'linalg_inv'"}


def test_an_operation_without_a_rule_that_gives_several_results():
    program, _ = build(Case([(4, 4)], lambda a: (a,), set()), torch.ops.aten.linalg_qr.default)
    assert free_weight_atoms(trace_axes(program)) == set()


@pytest.mark.parametrize(
    ("key", "argument", "literal"),
    [
        ("conv2d.default grouped", 6, 1),
        ("group_norm.default", 1, 1),
        ("layer_norm.default", 1, [3]),
        ("reshape.default", 1, [2, 1, 4]),
        ("reshape.default inferred", 1, [2, 1, 4]),
        ("split_with_sizes.default", 1, [1, 6]),
        ("split.Tensor", 1, 3),
        ("slice.Tensor", 2, 1),
        ("slice.Tensor from the end", 2, 4),
        ("slice.Tensor to the end", 3, 4),
        ("narrow.default", 3, 3),
        ("constant_pad_nd.default scaled", 1, [2, 1]),
        ("expand.default scaled", 1, [2, 3]),
        ("repeat.default scaled", 1, [2, 1]),
        ("channel_shuffle.default", 1, 1),
        ("zeros.default", 0, [2, 3]),
    ],
)
def test_literals_follow_their_axes(key, argument, literal):
    program, call = build(CASES[key], overload_named(key))
    trace = trace_axes(program)
    sizes = {atom: atom.size - 1 for atom in free_weight_atoms(trace)}
    thin = thin_program(program, trace, sizes)
    (node,) = [node for node in thin.graph.nodes if node.name == call.name]
    assert node.args[argument] == literal


@pytest.mark.parametrize("reason", ["positions, not channels", "the size of a kernel"])
def test_a_convolution_fixes_its_places_and_kernel(reason):
    key = "conv2d.default depthwise, fewer places"
    program, _ = build(CASES[key], torch.ops.aten.conv2d.default)
    trace = trace_axes(program)
    name = "a" if "positions" in reason else "b"
    found = {
        trace.algebra.frozen_reason(a)
        for x in trace.weights[name][2:]
        for a in trace.algebra.atoms(x)
    }
    assert found == {reason}


def test_axes_concatenated_with_places_are_places():
    """Learned tokens in front of those of a feature map: their number counts places."""
    graph = Graph()
    x = graph.placeholder("x")
    tokens = graph.create_node("get_attr", "tokens")
    weight = graph.create_node("get_attr", "weight")
    aten = torch.ops.aten
    mapped = graph.call_function(aten.conv1d.default, (x, weight))
    moved = graph.call_function(aten.transpose.int, (mapped, 1, 2))
    batch = graph.call_function(aten.sym_size.int, (x, 0))
    shared = graph.call_function(aten.expand.default, (tokens, [batch, -1, -1]))
    joined = graph.call_function(aten.cat.default, ([shared, moved], 1))
    graph.output((graph.call_function(aten.sum.dim_IntList, (joined, [1, 2])),))
    tensors = {"tokens": torch.zeros(1, 4, 6), "weight": torch.zeros(6, 3, 1)}
    program = Program(graph, tensors, frozenset(tensors), (InputInfo("x", (3, 8)),))
    assert {atom.size for atom in free_weight_atoms(trace_axes(program))} == {6}
