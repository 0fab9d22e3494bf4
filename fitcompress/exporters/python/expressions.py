"""How a person writes an ATen call in Python. Layer: graph.

Calls without a spelling of their own are written `torch.ops.aten.name.overload(...)`, which is
always right. Numbers are written by whoever asks: they may become arguments of a class.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.graph.program import named_arguments, operation
from fitcompress.graph.shapes import Shape

__all__ = [
    "COLON",
    "Expression",
    "Writer",
    "argument_text",
    "given_arguments",
    "is_infix",
    "quoted",
    "short_form",
    "spelled",
]

aten = torch.ops.aten
COLON = "\2"
"""Stands for the colon of a slice, whose spaces depend on what its bounds become."""


@dataclass(frozen=True)
class Expression:
    """A piece of Python."""

    text: str
    is_loose: bool = False
    """Whether it needs brackets before a method or an operator can follow."""

    @property
    def tight(self) -> str:
        return f"({self.text})" if self.is_loose else self.text


class Writer(Protocol):
    """Knows what values are called where a call is written."""

    def value(self, node: Node) -> Expression:
        """A value."""

    def number(self, value: Any, role: str, keyword: str = "", default: Any = None) -> str:
        """A number or tuple of numbers. With a keyword: `, keyword=value`, nothing at the
        default."""

    def shape(self, node: Node) -> Shape:
        """The shape of a value."""


def spelled(node: Node, writer: Writer) -> Expression:
    """The call as Python."""
    for spell in (_infix, _special, _method, _function):
        expression = spell(node, writer)
        if expression is not None:
            return expression
    return _plain(node, writer)


def quoted(text: str) -> str:
    """A string literal; in double quotes, but where it has these and no single ones in it."""
    if text.count('"') > text.count("'"):
        return "'" + json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"') + "'"
    return json.dumps(text, ensure_ascii=False)


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
    """Whether the call is written with a sign between two values."""
    return node.target in _SIGNS and len(node.args) == 2 and not node.kwargs


def _infix(node: Node, writer: Writer) -> Expression | None:
    if not is_infix(node):
        return None
    sign = _SIGNS[node.target]
    left, right = (_operand(value, node, writer) for value in node.args)
    first = left.text if sign == "+" else left.tight
    return Expression(f"{first} {sign} {right.tight}", is_loose=True)


def _operand(value: Any, node: Node, writer: Writer) -> Expression:
    if isinstance(value, Node):
        return writer.value(value)
    is_negative = isinstance(value, (int, float)) and value < 0
    return Expression(argument_text(value, _role(node, "factor"), writer), is_loose=is_negative)


# --- indexing, sizes, calls under other names -----------------------------------------------


def _special(node: Node, writer: Writer) -> Expression | None:
    rule = _SPECIAL.get(node.target)
    return rule(node, writer) if rule else None


def _tensor(node: Node, writer: Writer) -> str:
    assert isinstance(node.args[0], Node), node
    return writer.value(node.args[0]).tight


def _indexed(node: Node, writer: Writer, dim: int, index: str) -> Expression:
    rank = len(writer.shape(node.args[0]))  # type: ignore[arg-type]
    return Expression(f"{_tensor(node, writer)}[{':, ' * (dim % rank)}{index}]")


def _select(node: Node, writer: Writer) -> Expression:
    a = named_arguments(node)
    return _indexed(node, writer, a["dim"], argument_text(a["index"], _role(node, "index"), writer))


def _slice(node: Node, writer: Writer) -> Expression | None:
    a = named_arguments(node)
    start, end, step = a["start"] or 0, a["end"], a["step"]
    if not all(value is None or type(value) is int for value in (start, end, step)):
        return None
    rank = len(writer.shape(node.args[0]))  # type: ignore[arg-type]
    first = writer.number(start, _role(node, "start")) if start else ""
    last = "" if end is None or end >= 2**62 else writer.number(end, _role(node, "end"))
    pace = "" if step == 1 else f":{writer.number(step, 'step')}"
    dims = ":, " * (a["dim"] % rank)
    return Expression(f"{_tensor(node, writer)}[{dims}{first}{COLON}{last}{pace}]")


def _index(node: Node, writer: Writer) -> Expression:
    picks = named_arguments(node)["indices"]
    inside = ", ".join(":" if p is None else writer.value(p).text for p in picks)
    return Expression(f"{_tensor(node, writer)}[{inside}]")


def _getitem(node: Node, writer: Writer) -> Expression:
    return Expression(f"{_tensor(node, writer)}[{node.args[1]}]")


def _size(node: Node, writer: Writer) -> Expression:
    return Expression(f"{_tensor(node, writer)}.shape[{node.args[1]}]")


def _embedding(node: Node, writer: Writer) -> Expression | None:
    if len(node.args) != 2 or node.kwargs:
        return None
    weight, indices = (writer.value(value).text for value in node.args)  # type: ignore[arg-type]
    return Expression(f"functional.embedding({indices}, {weight})")


def _dropout(node: Node, writer: Writer) -> Expression:
    share = argument_text(node.args[1], _role(node, "p"), writer)
    return Expression(f"functional.dropout({_text(node.args[0], writer)}, {share}, self.training)")


def _reversed_sub(node: Node, writer: Writer) -> Expression | None:
    if len(node.args) != 2:
        return None
    left, right = (_operand(value, node, writer) for value in (node.args[1], node.args[0]))
    return Expression(f"{left.tight} - {right.tight}", is_loose=True)


def _same(node: Node, writer: Writer) -> Expression | None:
    return writer.value(node.args[0]) if len(node.args) == 1 else None  # type: ignore[arg-type]


def _resized(node: Node, writer: Writer) -> Expression | None:
    """`upsample_bilinear2d.vec` and its like."""
    a = named_arguments(node)
    sizes, factors = a["output_size"], a["scale_factors"]
    key, given = ("size", sizes) if factors is None else ("scale_factor", factors)
    if (sizes is None) == (factors is None):
        return None
    mode = operation(node).removeprefix("upsample_").rstrip("123d")
    corners = f", align_corners={a['align_corners']}" if "align_corners" in a else ""
    text = argument_text(tuple(given), _role(node, key), writer)
    source = _text(node.args[0], writer)
    return Expression(f'functional.interpolate({source}, {key}={text}, mode="{mode}"{corners})')


def _cast(node: Node, writer: Writer) -> Expression | None:
    if len(node.args) != 2 or node.kwargs:
        return None
    return Expression(f"{_tensor(node, writer)}.to({node.args[1]})")


def _negative(node: Node, writer: Writer) -> Expression:
    return Expression(f"-{_tensor(node, writer)}", is_loose=True)


_SPECIAL: dict[Any, Callable[[Node, Writer], Expression | None]] = {
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
_METHODS = frozenset(
    (
        *_SPREAD,
        *("transpose", "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous", "unbind"),
        *("mean", "sum", "amax", "amin", "chunk", "split", "clone", "type_as", "expand_as"),
        *(*_METHOD_NAMES, "view_as", "reshape_as", "masked_fill", "t", "new_zeros"),
        *("clamp_min", "clamp_max", "repeat", "unfold", "repeat_interleave"),
    )
)
_FUNCTIONAL = frozenset(
    (
        *("relu", "relu6", "gelu", "silu", "mish", "elu", "celu", "selu", "leaky_relu", "hardtanh"),
        *("hardswish", "hardsigmoid", "softplus", "log_softmax", "prelu", "pad", "linear"),
        *("conv1d", "conv2d", "conv3d", "max_pool1d", "max_pool2d", "max_pool3d"),
        *("avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"),
        *("adaptive_avg_pool3d", "layer_norm", "rms_norm", "batch_norm"),
        *("scaled_dot_product_attention", "pixel_shuffle", "softmax"),
    )
)
_TORCH = frozenset(
    (
        *("cat", "stack", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "abs", "sin", "cos"),
        *("bmm", "maximum", "minimum", "clamp", "roll", "flip", "where", "erf", "reciprocal"),
        *("cumsum", "add", "sub", "div", "addcmul", "bitwise_not"),
        *("linalg_vector_norm", "group_norm"),
    )
)
_WITHOUT_MEANING = {"cudnn_enabled"}
"""Arguments of calls that no Python function has."""


def _method(node: Node, writer: Writer) -> Expression | None:
    name = operation(node)
    if name not in _METHODS or name in _FUNCTIONAL or not isinstance(node.args[0], Node):
        return None
    given = given_arguments(node)
    if name in _SPREAD and isinstance(given.get(_SPREAD[name]), (list, tuple)):
        sizes = given[_SPREAD[name]]
        if len(given) != 2 or not sizes:
            return None
        inside = ", ".join(argument_text(size, _role(node, "size"), writer) for size in sizes)
    else:
        inside = _arguments(node, given, writer, is_method=True)
    return Expression(f"{_tensor(node, writer)}.{_METHOD_NAMES.get(name, name)}({inside})")


def _function(node: Node, writer: Writer) -> Expression | None:
    name = operation(node)
    if name not in _FUNCTIONAL and name not in _TORCH:
        return None
    home = "functional" if name in _FUNCTIONAL else "torch"
    own = name.replace("linalg_", "linalg.")
    return Expression(f"{home}.{own}({_arguments(node, given_arguments(node), writer)})")


def _plain(node: Node, writer: Writer) -> Expression:
    """The call by its full name."""
    parts = [argument_text(value, _role(node, "value"), writer) for value in node.args]
    for key, value in node.kwargs.items():
        parts.append(f"{key}={argument_text(value, _role(node, key), writer)}")
    if isinstance(node.target, OpOverload):
        return Expression(f"torch.ops.{node.target}({', '.join(parts)})")
    return Expression(f"{_OTHERS[node.target]}({', '.join(parts)})")


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
    """The arguments by name that are not at their defaults, in the order of the call."""
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


def _arguments(
    node: Node, given: Mapping[str, Any], writer: Writer, is_method: bool = False
) -> str:
    """What is required in order, the rest by name; for a method without its object."""
    assert isinstance(node.target, OpOverload)
    parts, is_named = [], False
    for argument in node.target._schema.arguments[is_method:]:
        name = argument.name
        is_plain = not argument.has_default_value() or name in _IN_ORDER
        is_named |= not is_plain or (name == "dim" and operation(node) not in _DIM_FIRST)
        if name not in given:
            is_named = True
            continue
        text = argument_text(short_form(name, given[name]), _role(node, name), writer)
        parts.append(f"{name}={text}" if is_named else text)
        is_named |= operation(node) in _BY_NAME
    return ", ".join(parts)


_IN_ORDER = ("start_dim", "end_dim")
"""Arguments that are plain without their names."""
_BY_NAME = ("batch_norm",)
"""Functions that take their arguments in another order than the call."""
_DIM_FIRST = ("squeeze", "unsqueeze", "unflatten")
"""Calls whose dimension is plain without its name."""
_ALIKE = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


def short_form(name: str, value: Any) -> Any:
    """One number for a list of equal ones, where that says the same."""
    if isinstance(value, (list, tuple)) and value and all(type(item) is int for item in value):
        is_single = len(value) == 1 and name == "dim"
        if is_single or (name in _ALIKE and len(set(value)) == 1):
            return value[0]
    return tuple(value) if name != "tensors" and isinstance(value, list) else value


def _role(node: Node, name: str) -> str:
    return f"{operation(node)}.{name}"


def _text(value: Any, writer: Writer) -> str:
    return writer.value(value).text if isinstance(value, Node) else repr(value)


def argument_text(value: Any, role: str, writer: Writer) -> str:
    match value:
        case Node():
            return writer.value(value).text
        case None | bool():
            return repr(value)
        case str():
            return quoted(value)
        case int() | float():
            return writer.number(value, role)
        case torch.device():
            return quoted(str(value))
        case list():
            return f"[{', '.join(argument_text(item, role, writer) for item in value)}]"
        case tuple():
            items = [argument_text(item, role, writer) for item in value]
            return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    return str(value)  # torch's own: dtypes, layouts, memory formats
