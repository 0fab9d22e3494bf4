"""Chooses the arguments of a class from the numbers in its code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitcompress.exporters.python.classes import Argument
from fitcompress.exporters.python.code import Number

__all__ = ["Choice", "choose_arguments", "literal"]

_NO_BASE = ("stride", "kernel_size", "padding", "dilation", "output_padding", "eps", "momentum")
"""Options whose multiples mean nothing: a width that is twice a stride is a coincidence."""
_MIN_RANGE = 3


@dataclass(frozen=True)
class Choice:
    """What is written in place of a number."""

    text: str
    """The number, or an expression with braces for the name of an argument."""
    argument: Argument | None = None

    def spelled(self, number: Number) -> str:
        """The text of the number."""
        text = self.text
        if self.argument is not None:
            text = text.format(("self." if number.in_body else "") + self.argument.name)
        elif number.keyword and number.values[0] == number.default:
            return ""
        return f", {number.keyword}={text}" if number.keyword else text


def choose_arguments(
    numbers: Sequence[Number], base: str = "width"
) -> tuple[list[Argument], list[Choice]]:
    """The arguments of a class with their names, and a choice for each number.

    A number that is the same multiple of another in every module is written as that multiple.

    base: name of a number of which the widths of layers are multiples.
    """
    order = sorted(
        {number.values: number for number in reversed(numbers) if not number.is_constant}.values(),
        key=lambda number: (not _is_size(number), _total(number)),
    )
    found: dict[tuple[Any, ...], Choice] = {}
    for number in order:
        found[number.values] = _multiple(number, found) or Choice("{}", Argument(number))
    choices = [
        Choice(literal(number.values[0])) if number.is_constant else found[number.values]
        for number in numbers
    ]
    for number, choice in zip(numbers, choices, strict=True):
        if choice.argument is not None:
            choice.argument.is_stored |= number.in_body
    used = dict.fromkeys(c.argument for c in choices if c.argument is not None)
    arguments = sorted(used, key=lambda argument: not _is_size(argument.number))
    bases = {
        choice.argument
        for number, choice in zip(numbers, choices, strict=True)
        if choice.text != "{}" and number.role.endswith("_features")
    }
    _name(arguments, numbers, {argument: base for argument in bases if argument})
    return arguments, choices


def _is_size(number: Number) -> bool:
    is_whole = all(type(value) is int and value > 0 for value in number.values)
    return is_whole and not number.is_count and number.role.rpartition(".")[2] not in _NO_BASE


def _total(number: Number) -> int:
    return sum(number.values) if _is_size(number) else 0


def _multiple(number: Number, found: dict[tuple[Any, ...], Choice]) -> Choice | None:
    """The number as a multiple of an argument, the largest possible one."""
    if not _is_size(number):
        return None
    for base in reversed(list(found)):
        choice = found[base]
        if choice.text != "{}" or choice.argument is None or not _is_size(choice.argument.number):
            continue
        ratios = {math.inf if a % b else a // b for a, b in zip(number.values, base, strict=True)}
        if len(ratios) == 1 and math.inf not in ratios:
            return Choice(f"{ratios.pop()} * {{}}", choice.argument)
    return None


def literal(value: Any) -> str:
    """A number, or a tuple of numbers, in its shortest usual form.

    >>> literal(1e-05), literal((8, 8)), literal((8, 16, 24))
    ('1e-5', '(8, 8)', 'range(8, 32, 8)')
    """
    if isinstance(value, tuple):
        step = value[1] - value[0] if len(value) >= _MIN_RANGE else 0
        if step and value == tuple(range(value[0], value[-1] + (step > 0) - (step < 0), step)):
            end = value[-1] + step
            return f"range({value[0]}, {end})" if step == 1 else f"range({value[0]}, {end}, {step})"
        inside = ", ".join(map(literal, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, float):
        if not math.isfinite(value):
            return f'float("{value}")'
        return repr(value).replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return repr(value)


# --- names ----------------------------------------------------------------------------------

_SHORT = {
    "num_features": "channels",
    "num_channels": "channels",
    "kernel_size": "kernel",
    "num_groups": "groups",
    "shape": "size",
    "normalized_shape": "features",
}
"""Names of arguments, by the option of a layer."""


def _name(
    arguments: Sequence[Argument], numbers: Sequence[Number], bases: Mapping[Argument, str]
) -> None:
    """Gives each argument a unique name: the short one if no other has it, otherwise one with the
    name of the layer.
    """
    wanted: dict[Argument, list[str]] = {}
    for argument in arguments:
        names = _candidates([v for v in numbers if v.values == argument.number.values])
        wanted[argument] = [bases[argument]] if names == ["size"] and argument in bases else names
    counts = Counter(names[0] for names in wanted.values())
    taken: set[str] = set()
    for argument in arguments:
        short, *longer = wanted[argument]
        candidates = [short] if counts[short] == 1 or not longer else longer
        numbered = (f"{candidates[-1]}{n}" for n in range(2, 1000))
        argument.name = next(n for n in (*candidates, *numbered) if n not in taken)
        taken.add(argument.name)


def _candidates(numbers: Sequence[Number]) -> list[str]:
    """Names for a number by its roles in the code, the best first."""
    if numbers[0].is_count:
        return ["depth"]
    roles = [number.role.rpartition(".") for number in numbers]
    options = {option for _, _, option in roles}
    for layer, _, option in roles:
        _, _, side = option.partition("_")
        if option in ("in_channels", "in_features"):
            return _with_layer(side if f"out_{side}" in options else option, layer, option)
        if option in ("out_channels", "out_features"):
            is_inside = f"in_{side}" in options
            return _with_layer(f"hidden_{side}" if is_inside else option, layer, side)
    named = [option for _, dot, option in roles if not dot]
    if named:
        return named[:1]
    layer, _, option = roles[0]
    short = _SHORT.get(option, option)
    is_bare = numbers[0].in_body or short == "size"
    return [short] if is_bare else _with_layer(short, layer, short)


def _with_layer(short: str, layer: str, option: str) -> list[str]:
    return [short, f"{layer}_{option}"] if layer.isidentifier() else [short]
