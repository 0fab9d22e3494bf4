"""The axis rules: for each operation, how the axes of its arguments and results are related and
which of its literals are sizes of axes.

An operation without a rule is not an error: every axis that it touches is frozen, and the plan
reports it.
"""

from __future__ import annotations

import torch

from fitcompress.graph.axes.builder import Value
from fitcompress.graph.axes.rules.call import KERNEL, PLACE, Call, Rule
from fitcompress.graph.axes.rules.contractions import CONTRACTIONS
from fitcompress.graph.axes.rules.elementwise import ELEMENTWISE, pointwise
from fitcompress.graph.axes.rules.layout import LAYOUT

__all__ = ["KERNEL", "PLACE", "RULES", "Call", "apply_rule"]

RULES: dict[str, Rule] = {**ELEMENTWISE, **CONTRACTIONS, **LAYOUT}


def apply_rule(call: Call) -> Value:
    """The axes of the call's results. Without a rule that applies, they are new and frozen, and so
    are those of the arguments."""
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
