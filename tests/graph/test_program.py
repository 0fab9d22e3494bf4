"""The flat form: running, shapes, pruning, JSON."""

from __future__ import annotations

import json
import operator

import pytest
import torch
from helpers.small_nets import Residual, Tokens, trained_a_little

from fitcompress.errors import CaptureError
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.program import (
    InputInfo,
    Program,
    clone,
    output_nodes,
    program_from_json,
    program_to_json,
    prune,
    run_program,
)
from fitcompress.graph.shapes import propagate_shapes

aten = torch.ops.aten


@pytest.fixture
def program() -> Program:
    return capture_module(trained_a_little(Residual()), (torch.randn(2, 3, 8, 8),))


def one_call(target, args, tensors=None) -> Program:
    """A program of one input (N, 4) and one call; "x" in the arguments is the input."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(target, tuple(x if a == "x" else a for a in args))
    graph.output((node,))
    return Program(graph, tensors or {}, frozenset(), (InputInfo("x", (4,)),))


def test_shapes_follow_the_batch_size(program):
    shapes = propagate_shapes(program, 7)
    assert shapes[output_nodes(program.graph)[0].name] == (7, 5)
    assert shapes["stem_weight"] == (8, 3, 3, 3)


def test_shapes_of_calls_with_several_results_and_of_size_arithmetic():
    shapes = propagate_shapes(capture_module(Tokens().eval(), (torch.randn(2, 3, 8, 8),)), 3)
    assert shapes["unbind"] == ((3, 2, 5, 6),) * 3
    assert shapes["sym_size"] == 3


def test_shapes_need_no_weights(program):
    on_meta = {name: value.to("meta") for name, value in program.tensors.items()}
    bare = Program(program.graph, on_meta, program.trainable, program.inputs)
    assert propagate_shapes(bare, 3) == propagate_shapes(program, 3)


def test_a_factory_makes_meta_tensors_when_shapes_are_propagated():
    program = one_call(aten.arange.default, (3,))
    assert propagate_shapes(program)["arange_default"] == (3,)


def test_a_call_that_does_not_fit_its_shapes_is_found():
    with pytest.raises(RuntimeError, match="shape"):
        propagate_shapes(one_call(aten.reshape.default, ("x", [3, 5])))


def test_pruning_drops_what_no_output_needs(program):
    copy = clone(program)
    stem = next(node for node in copy.graph.nodes if node.name == "conv2d")
    copy.graph.output_node().args = ((stem,),)
    copy = prune(copy)
    assert set(copy.tensors) == {"stem.weight"} == copy.trainable
    assert [node.op for node in copy.graph.nodes] == [
        "placeholder",
        "get_attr",
        "call_function",
        "output",
    ]


def test_editing_a_clone_leaves_the_original(program):
    before = str(program.graph)
    copy = clone(program)
    copy.graph.output_node().args = ((next(iter(copy.graph.nodes)),),)
    copy.tensors.clear()
    assert str(program.graph) == before and program.tensors


def test_json_gives_back_the_same_program(program):
    data = json.loads(json.dumps(program_to_json(program), allow_nan=False))
    again = program_from_json(data, program.tensors)
    assert program_to_json(again) == data
    assert again.inputs == program.inputs and again.trainable == program.trainable
    x = torch.randn(3, 3, 8, 8)
    assert torch.equal(run_program(again, x)[0], run_program(program, x)[0])


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 1, 1.0, True, None])
def test_json_keeps_numbers_exactly(value):
    program = one_call(aten.full_like.default, ("x", value))
    data = json.loads(json.dumps(program_to_json(program), allow_nan=False))
    again = program_from_json(data, {}).graph
    found = next(node for node in again.nodes if node.op == "call_function").args[1]
    assert type(found) is type(value) and (found == value or found != found)


@pytest.mark.parametrize(
    "value", [torch.float16, torch.strided, torch.channels_last], ids=["dtype", "layout", "format"]
)
def test_json_keeps_torch_values(value):
    program = one_call(aten.to.dtype, ("x", value))
    again = program_from_json(program_to_json(program), {}).graph
    assert next(n for n in again.nodes if n.op == "call_function").args[1] is value


def test_json_drops_devices():
    program = one_call(aten.to.device, ("x", torch.device("cuda"), torch.float32))
    again = program_from_json(program_to_json(program), {}).graph
    assert next(n for n in again.nodes if n.op == "call_function").args[1] is None


@pytest.mark.parametrize(
    "target",
    ["os.system", "aten.__class__.default", "aten.relu", "eval", "prims.add.default", "aten.x.y"],
)
def test_a_stored_graph_can_call_nothing_but_aten(target):
    data = program_to_json(one_call(aten.relu.default, ("x",)))
    data["nodes"][1]["target"] = target
    with pytest.raises(CaptureError) as caught:
        program_from_json(data, {})
    assert caught.value.code == "graph-damaged"


@pytest.mark.parametrize(
    "harm",
    [
        lambda d: d.pop("nodes"),
        lambda d: d["nodes"].pop(),
        lambda d: d["nodes"].pop(0),
        lambda d: d["nodes"][1].update(op="call_module"),
        lambda d: d["nodes"][1].update(args=[{"dtype": "Tensor"}]),
        lambda d: d["nodes"][1].update(args=[{"node": "x", "dtype": "float32"}]),
        lambda d: d["inputs"][0].update(dtype="load"),
    ],
)
def test_a_damaged_graph_is_refused(harm):
    data = program_to_json(one_call(aten.relu.default, ("x",)))
    harm(data)
    with pytest.raises(CaptureError) as caught:
        program_from_json(data, {})
    assert caught.value.code == "graph-damaged"


def test_a_missing_tensor_is_named(program):
    data = program_to_json(program)
    with pytest.raises(CaptureError) as caught:
        program_from_json(data, {})
    assert caught.value.code == "graph-tensor-missing"
    assert caught.value.facts == {"tensor": "stem.weight"}


def test_a_call_outside_aten_cannot_be_stored():
    with pytest.raises(CaptureError) as caught:
        program_to_json(one_call(print, ("x",)))
    assert caught.value.code == "graph-call-unstorable"


def test_size_arithmetic_is_stored():
    program = one_call(operator.floordiv, (7, 2))
    again = program_from_json(program_to_json(program), {})
    assert propagate_shapes(again)["floordiv"] == 3
