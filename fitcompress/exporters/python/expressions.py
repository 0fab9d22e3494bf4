"""Writes ATen calls as idiomatic Python.

Calls without a spelling of their own are written `torch.ops.aten.name.overload(...)`, which is
always correct.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.exporters.python.code import COLON, Code, Ref, code, joined, number
from fitcompress.graph.program import named_arguments, operation
from fitcompress.graph.shapes import Shape

__all__ = [
    "Expression",
    "argument",
    "given_arguments",
    "is_infix",
    "literal_text",
    "short_form",
    "spelled",
]

aten = torch.ops.aten


@dataclass(frozen=True)
class Expression:
    """Python that gives a value."""

    code: Code
    is_loose: bool = False
    """Whether it needs brackets before a method or an operator can follow."""


def spelled(node: Node, shapes: Mapping[str, Shape]) -> Expression:
    """The call as Python; its operands are open.

    shapes: of all values, by name.
    """
    call = _Call(node, shapes)
    for spell in (_infix, _special, _method, _function):
        expression = spell(call)
        if expression is not None:
            return expression
    return _plain(call)


def quoted(text: str) -> str:
    """A string literal; in single quotes only if that avoids escapes."""
    if text.count('"') > text.count("'"):
        return "'" + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"') + "'"
    return json.dumps(text, ensure_ascii=False)


@dataclass(frozen=True)
class _Call:
    node: Node
    shapes: Mapping[str, Shape]

    @property
    def name(self) -> str:
        return operation(self.node)

    @property
    def num_arguments(self) -> int:
        return len(self.node.args) + len(self.node.kwargs)

    @property
    def subject(self) -> Code:
        """What a method or an index applies to."""
        assert isinstance(self.node.args[0], Node), self.node
        return Code((Ref(self.node.args[0], is_tight=True, is_subject=True),))

    def role(self, option: str) -> str:
        return f"{self.name}.{option}"

    def indexed(self, *index: str | Code) -> Expression:
        """The subject, indexed at the dimension that the call names."""
        assert isinstance(self.node.args[0], Node), self.node
        rank = len(self.shapes[self.node.args[0].name])
        skipped = ":, " * (named_arguments(self.node)["dim"] % rank)
        return Expression(code(self.subject, f"[{skipped}", *index, "]"))


def _value(value: Any, is_tight: bool = False) -> Code:
    assert isinstance(value, Node), value
    return Code((Ref(value, is_tight),))


# --- operators ------------------------------------------------------------------------------

_SIGNS: dict[Any, str] = {
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar, operator.add), "+"),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar, operator.sub), "-"),
    **dict.fromkeys((aten.mul.Tensor, aten.mul.Scalar, operator.mul), "*"),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar, operator.truediv), "/"),
    aten.matmul.default: "@",
    operator.floordiv: "//",
    operator.mod: "%",
}


def is_infix(node: Node) -> bool:
    """Whether the call is written as an operator between two operands."""
    return node.target in _SIGNS and len(node.args) == 2 and not node.kwargs


def _infix(call: _Call) -> Expression | None:
    if not is_infix(call.node):
        return None
    left, right = call.node.args
    sign = _SIGNS[call.node.target]
    first = _operand(left, call, is_tight=sign != "+")
    return Expression(code(first, f" {sign} ", _operand(right, call)), is_loose=True)


def _operand(value: Any, call: _Call, is_tight: bool = True) -> Code:
    if isinstance(value, Node):
        return _value(value, is_tight)
    text = argument(value, call.role("factor"))
    is_negative = isinstance(value, (int, float)) and value < 0
    return code("(", text, ")") if is_negative and is_tight else text


# --- indexing, sizes, calls under other names -----------------------------------------------


def _special(call: _Call) -> Expression | None:
    rule = _SPECIAL.get(call.node.target)
    return rule(call) if rule else None


def _select(call: _Call) -> Expression:
    return call.indexed(argument(named_arguments(call.node)["index"], call.role("index")))


def _slice(call: _Call) -> Expression | None:
    a = named_arguments(call.node)
    start, end, step = a["start"] or 0, a["end"], a["step"]
    if not all(value is None or type(value) is int for value in (start, end, step)):
        return None
    first = number(start, call.role("start")) if start else ""
    last = "" if end is None or end >= 2**62 else number(end, call.role("end"))
    pace = "" if step == 1 else code(":", number(step, "step"))
    return call.indexed(first, COLON, last, pace)


def _index(call: _Call) -> Expression:
    picks = named_arguments(call.node)["indices"]
    inside = joined(", ", [":" if pick is None else _value(pick) for pick in picks])
    return Expression(code(call.subject, "[", inside, "]"))


def _getitem(call: _Call) -> Expression:
    return Expression(code(call.subject, f"[{call.node.args[1]}]"))


def _size(call: _Call) -> Expression:
    return Expression(code(call.subject, f".shape[{call.node.args[1]}]"))


def _embedding(call: _Call) -> Expression | None:
    if call.num_arguments != 2 or call.node.kwargs:
        return None
    weight, indices = map(_value, call.node.args)
    return Expression(code("functional.embedding(", indices, ", ", weight, ")"))


def _dropout(call: _Call) -> Expression:
    share = argument(call.node.args[1], call.role("p"))
    subject = argument(call.node.args[0], "")
    return Expression(code("functional.dropout(", subject, ", ", share, ", self.training)"))


def _reversed_sub(call: _Call) -> Expression | None:
    if len(call.node.args) != 2:
        return None
    left, right = (_operand(value, call) for value in reversed(call.node.args))
    return Expression(code(left, " - ", right), is_loose=True)


def _same(call: _Call) -> Expression | None:
    return Expression(_value(call.node.args[0])) if len(call.node.args) == 1 else None


def _resized(call: _Call) -> Expression | None:
    """`upsample_bilinear2d.vec` and its like."""
    a = named_arguments(call.node)
    sizes, factors = a["output_size"], a["scale_factors"]
    if (sizes is None) == (factors is None):
        return None
    key, given = ("size", sizes) if factors is None else ("scale_factor", factors)
    mode = call.name.removeprefix("upsample_").rstrip("123d")
    corners = f", align_corners={a['align_corners']}" if "align_corners" in a else ""
    text = argument(tuple(given), call.role(key))
    subject = _value(call.node.args[0])
    ending = f', mode="{mode}"{corners})'
    return Expression(code("functional.interpolate(", subject, f", {key}=", text, ending))


def _cast(call: _Call) -> Expression | None:
    if len(call.node.args) != 2 or call.node.kwargs:
        return None
    return Expression(code(call.subject, f".to({call.node.args[1]})"))


def _negative(call: _Call) -> Expression:
    return Expression(code("-", call.subject), is_loose=True)


_SPECIAL: dict[Any, Callable[[_Call], Expression | None]] = {
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    aten.index.Tensor: _index,
    operator.getitem: _getitem,
    aten.sym_size.int: _size,
    aten.embedding.default: _embedding,
    aten.dropout.default: _dropout,
    aten.rsub.Scalar: _reversed_sub,
    **dict.fromkeys((aten.neg.default, operator.neg), _negative),
    aten.to.dtype: _cast,
    **dict.fromkeys((aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec), _resized),
    aten.upsample_bicubic2d.vec: _resized,
    **dict.fromkeys((aten.alias.default, aten.detach.default), _same),
}

# --- methods and functions of the same name -------------------------------------------------

_SPREAD = {"view": "size", "reshape": "shape", "permute": "dims", "expand": "size"}
"""Methods that take their sizes one by one, and the argument that holds these."""
_METHOD_NAMES = {"split_with_sizes": "split"}
"""Methods of other names than their calls."""
_METHODS = {
    *_SPREAD, *_METHOD_NAMES, "amax", "amin", "chunk", "clamp_max", "clamp_min", "clone",
    "contiguous", "expand_as", "flatten", "masked_fill", "mean", "new_zeros", "repeat",
    "repeat_interleave", "reshape_as", "split", "squeeze", "sum", "t", "transpose", "type_as",
    "unbind", "unflatten", "unfold", "unsqueeze", "view_as",
}  # fmt: skip
_FUNCTIONAL = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "batch_norm", "celu", "conv1d", "conv2d", "conv3d", "elu", "gelu",
    "hardsigmoid", "hardswish", "hardtanh", "layer_norm", "leaky_relu", "linear", "log_softmax",
    "max_pool1d", "max_pool2d", "max_pool3d", "mish", "pad", "pixel_shuffle", "prelu", "relu",
    "relu6", "rms_norm", "scaled_dot_product_attention", "selu", "silu", "softmax", "softplus",
}  # fmt: skip
_TORCH = {
    "abs", "add", "addcmul", "bitwise_not", "bmm", "cat", "clamp", "cos", "cumsum", "div", "erf",
    "exp", "flip", "group_norm", "linalg_vector_norm", "log", "maximum", "minimum", "reciprocal",
    "roll", "rsqrt", "sigmoid", "sin", "sqrt", "stack", "sub", "tanh", "where",
}  # fmt: skip
_WITHOUT_MEANING = {"cudnn_enabled"}
"""Arguments of calls that no Python function has."""


def _method(call: _Call) -> Expression | None:
    name = call.name
    if name not in _METHODS or name in _FUNCTIONAL or not isinstance(call.node.args[0], Node):
        return None
    given = given_arguments(call.node)
    if name in _SPREAD and isinstance(given.get(_SPREAD[name]), (list, tuple)):
        sizes = given[_SPREAD[name]]
        if len(given) != 2 or not sizes:
            return None
        inside = joined(", ", [argument(size, call.role("size")) for size in sizes])
    else:
        inside = _arguments(call, given, is_method=True)
    method = _METHOD_NAMES.get(name, name)
    return Expression(code(call.subject, f".{method}(", inside, ")"))


def _function(call: _Call) -> Expression | None:
    if call.name not in _FUNCTIONAL and call.name not in _TORCH:
        return None
    home = "functional" if call.name in _FUNCTIONAL else "torch"
    own = call.name.replace("linalg_", "linalg.")
    inside = _arguments(call, given_arguments(call.node))
    return Expression(code(f"{home}.{own}(", inside, ")"))


def _plain(call: _Call) -> Expression:
    """The call by its full name."""
    target = call.node.target
    name = f"torch.ops.{target}" if isinstance(target, OpOverload) else _OTHERS[target]
    parts = [argument(value, call.role("value")) for value in call.node.args]
    for key, value in call.node.kwargs.items():
        parts.append(code(f"{key}=", argument(value, call.role(key))))
    return Expression(code(f"{name}(", joined(", ", parts), ")"))


_OTHERS: dict[Any, str] = {
    operator.pow: "pow",
    math.floor: "math.floor",
    math.ceil: "math.ceil",
    math.trunc: "math.trunc",
    torch.sym_max: "max",
    torch.sym_min: "min",
    torch.sym_int: "int",
    torch.sym_float: "float",
}


def given_arguments(node: Node) -> dict[str, Any]:
    """The arguments that are not at their defaults, by name in the order of the call."""
    assert isinstance(node.target, OpOverload)
    values = named_arguments(node)
    if values.get("stride") == values.get("kernel_size"):
        values["stride"] = []  # what a pooling does without one
    return {
        argument.name: values[argument.name]
        for argument in node.target._schema.arguments
        if argument.name not in _WITHOUT_MEANING
        and not (
            argument.has_default_value()
            and _is_equal(values[argument.name], argument.default_value)
        )
    }


def _is_equal(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)):
        return list(value) == list(default)
    return type(value) is type(default) and bool(value == default)


def _arguments(call: _Call, given: Mapping[str, Any], is_method: bool = False) -> Code:
    """Required arguments in order, the others by name; of a method without its subject."""
    assert isinstance(call.node.target, OpOverload)
    parts, is_named = [], False
    for declared in call.node.target._schema.arguments[is_method:]:
        name = declared.name
        is_plain = not declared.has_default_value() or name in _IN_ORDER
        is_named |= not is_plain or (name == "dim" and call.name not in _DIM_FIRST)
        if name not in given:
            is_named = True
            continue
        text = argument(short_form(name, given[name]), call.role(name))
        parts.append(code(f"{name}=", text) if is_named else text)
        is_named |= call.name in _BY_NAME
    return joined(", ", parts)


_IN_ORDER = ("start_dim", "end_dim")
"""Arguments that are plain without their names."""
_BY_NAME = ("batch_norm",)
"""Functions that take their arguments in another order than the call."""
_DIM_FIRST = ("squeeze", "unsqueeze", "unflatten")
"""Calls whose dimension is plain without its name."""
_ALIKE = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


def short_form(name: str, value: Any) -> Any:
    """One number for a list of equal numbers where both mean the same."""
    if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
        is_single = len(value) == 1 and name == "dim"
        if is_single or (name in _ALIKE and len(set(value)) == 1):
            return value[0]
    return tuple(value) if name != "tensors" and isinstance(value, list) else value


def argument(value: Any, role: str) -> Code:
    """A value, a number or a literal as an argument of a call."""
    match value:
        case Node():
            return _value(value)
        case list() if value and all(isinstance(item, Node) for item in value):
            return Code((Ref(tuple(value)),))
        case list():
            return code("[", joined(", ", [argument(item, role) for item in value]), "]")
        case tuple():
            ending = ",)" if len(value) == 1 else ")"
            return code("(", joined(", ", [argument(item, role) for item in value]), ending)
        case int() | float() if not isinstance(value, bool):
            return number(value, role)
    return code(literal_text(value))


def literal_text(value: Any) -> str:
    """A value without numbers as Python."""
    match value:
        case None | bool():
            return repr(value)
        case str():
            return quoted(value)
        case torch.device():
            return quoted(str(value))
    return str(value)  # torch's own: dtypes, layouts, memory formats
