"""One table of axis rules: for each operation what its axes have to do with each other, and which
literals follow.

An operation without a rule is not an error: it freezes what it touches, and the plan says so.
Layer: graph.
"""

from __future__ import annotations

import torch

from fitcompress.graph.axes.rules.call import (
    KERNEL,
    PLACE,
    Axes,
    Binding,
    Call,
    ConstantBinding,
    Rule,
    Value,
)
from fitcompress.graph.axes.rules.contractions import CONTRACTIONS
from fitcompress.graph.axes.rules.elementwise import ELEMENTWISE, pointwise
from fitcompress.graph.axes.rules.layout import LAYOUT

__all__ = [
    "KERNEL",
    "PLACE",
    "RULES",
    "Axes",
    "Binding",
    "Call",
    "ConstantBinding",
    "Value",
    "apply_rule",
]

RULES: dict[str, Rule] = {**ELEMENTWISE, **CONTRACTIONS, **LAYOUT}


def apply_rule(call: Call) -> Value:
    """The axes of the call's results; where no rule applies, fresh frozen ones, and its arguments
    are frozen."""
    rule = RULES.get(call.name)
    if rule is None and torch.Tag.pointwise in call.node.target.tags:  # type: ignore[union-attr]
        rule = pointwise
    value = rule(call) if rule else None
    return _unknown(call) if value is None else value


def _unknown(call: Call) -> Value:
    reason = f"no rule for the operation '{call.name}'"
    for axes in call.all_axes():
        call.freeze(axes, reason)
    if call.shape and isinstance(call.shape[0], tuple):
        return [call.fresh(shape, reason) for shape in call.shape]
    return call.fresh(call.shape, reason)
