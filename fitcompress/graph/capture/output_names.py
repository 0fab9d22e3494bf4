"""The names of a network's outputs."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.utils._pytree import SequenceKey, tree_flatten_with_path, tree_unflatten

__all__ = ["exported_output_names", "output_names"]


def output_names(result: Any) -> tuple[str, ...]:
    """The names of the tensors in a nested result, in order; empty if none has a name.

    >>> from torch import zeros
    >>> output_names({"out": zeros(1), "maps": [zeros(1), zeros(1)]})
    ('out', 'maps.0', 'maps.1')
    >>> output_names((zeros(1), zeros(1)))
    ()
    """
    leaves, _ = tree_flatten_with_path(result)
    paths = [path for path, value in leaves if isinstance(value, Tensor)]
    has_names = any(not isinstance(key, SequenceKey) for path in paths for key in path)
    return tuple(".".join(map(_step, path)) for path in paths) if has_names else ()


def exported_output_names(exported: ExportedProgram) -> tuple[str, ...]:
    """`output_names` of the result of an exported program."""
    values = [
        None if isinstance(spec.arg, ConstantArgument) else Tensor()
        for spec in exported.graph_signature.output_specs
        if spec.kind.name == "USER_OUTPUT"
    ]
    return output_names(tree_unflatten(values, exported.call_spec.out_spec))


def _step(key: Any) -> str:
    """One step of a path: a dictionary key, a field name or a list index."""
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise AssertionError(key)
