"""Initial weights of a student: random, or inherited from the teacher.

Inheriting keeps, for each atom, the indices with the largest sum of squared weights over all
tensors that share it; a tensor of the student is the teacher's tensor at these indices. Without
thinning the student computes exactly the teacher's function.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod, sqrt

import torch
from torch import Tensor
from torch.fx import Node

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra, Factor, Sum
from fitcompress.graph.program import Program, operation
from fitcompress.student.plan import StudentPlan

__all__ = ["initial_tensors", "random_program"]

_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")


def initial_tensors(plan: StudentPlan, *, init: str, seed: int) -> dict[str, Tensor]:
    """All tensors of the planned student by name, on the CPU.

    init: "inherit" or "random" (He for convolutions, LeCun for linear layers, the teacher's mean
        and standard deviation for other parameters). New tensors are random in both cases, or zero
        if they end a residual branch.
    """
    generator = torch.Generator().manual_seed(seed)
    roles = _roles(plan.program)
    kept = _kept_indices(plan) if init == "inherit" else _even_indices(plan)
    tensors = {}
    for name, shape_of in plan.program.tensors.items():
        source = plan.teacher.tensors.get(plan.deepened.origins.get(name, name))
        inherited = name in plan.teacher.tensors and (
            init == "inherit" or _is_table(plan, name, roles)
        )
        if name in plan.deepened.identities and init == "inherit":
            whole = plan.deepened.program.tensors[name].shape
            tensors[name] = _select(plan, name, torch.eye(*whole), kept)
        elif name in plan.deepened.zeroed:
            tensors[name] = torch.zeros(shape_of.shape, dtype=shape_of.dtype)
        elif inherited and source is not None:
            tensors[name] = _select(plan, name, source.detach().cpu(), kept)
        else:
            tensors[name] = _random(roles.get(name, ""), shape_of, source, generator)
    return tensors


def random_program(plan: StudentPlan, seed: int = 0) -> Program:
    """The program of the planned student with random weights."""
    return replace(plan.program, tensors=initial_tensors(plan, init="random", seed=seed))


def _is_table(plan: StudentPlan, name: str, roles: dict[str, str]) -> bool:
    """Whether the tensor is neither trained nor a statistic; it keeps its values with any init."""
    return name not in plan.program.trainable and not roles.get(name, "").startswith("running")


def _roles(program: Program) -> dict[str, str]:
    """The role of each tensor in the call that reads it, such as "conv.weight" or "running_var"."""
    roles: dict[str, str] = {}
    for node in program.graph.nodes:
        kind = _kind(node)
        if kind:
            roles.update({str(source.target): role for source, role in _weight_roles(node, kind)})
    return roles


def _kind(node: Node) -> str:
    name = operation(node)
    if name in _NORMS:
        return "norm"
    if "conv" in name:
        return "transposed" if "transpose" in name else "conv"
    return {"linear": "linear", "addmm": "linear", "embedding": "embedding"}.get(name, "")


def _weight_roles(node: Node, kind: str) -> Iterator[tuple[Node, str]]:
    schema = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    for argument, value in {**dict(zip(schema, node.args, strict=False)), **node.kwargs}.items():
        if not isinstance(value, Node) or value.op != "get_attr":
            continue
        if argument == "weight":
            yield value, f"{kind}.weight"
        elif argument in ("bias", "running_mean", "running_var"):
            yield value, argument


def _random(role: str, like: Tensor, source: Tensor | None, generator: torch.Generator) -> Tensor:
    """A new tensor of the shape of `like`, initialized by its role."""
    shape = like.shape
    if role in ("bias", "running_mean"):
        return torch.zeros(shape, dtype=like.dtype)
    if role in ("norm.weight", "running_var"):
        return torch.ones(shape, dtype=like.dtype)
    noise = torch.randn(shape, generator=generator).to(like.dtype)
    if role == "conv.weight":
        return noise * sqrt(2 / max(1, prod(shape[1:])))
    if role in ("linear.weight", "transposed.weight"):
        return noise / sqrt(max(1, prod(shape[1:])))
    if source is None or not source.is_floating_point() or source.numel() == 0:
        return noise * 0.02
    values = source.detach().float().cpu()
    return values.mean() + noise * (values.std() if values.numel() > 1 else 0.0)


# --- inheritance ---------------------------------------------------------------------------------


def _kept_indices(plan: StudentPlan) -> dict[Atom, Tensor]:
    """For each thinned atom the indices with the largest sum of squared weights, in order."""
    algebra = plan.trace.algebra
    energy = {atom: torch.zeros(atom.size, dtype=torch.float64) for atom in plan.sizes}
    for name, value in plan.teacher.tensors.items():
        if name not in plan.program.trainable or name not in plan.trace.weights:
            continue
        squared = value.detach().cpu().double() ** 2
        for dim, axis in enumerate(plan.trace.weights[name]):
            _attribute(algebra, algebra.normal(axis), _sum_others(squared, dim), energy)
    return {
        atom: scores.topk(plan.sizes[atom]).indices.sort().values for atom, scores in energy.items()
    }


def _even_indices(plan: StudentPlan) -> dict[Atom, Tensor]:
    """For each thinned atom evenly spaced indices, which tables keep if weights are random."""
    return {atom: torch.arange(size) * atom.size // size for atom, size in plan.sizes.items()}


def _attribute(algebra: AxisAlgebra, axis: Axis, along: Tensor, energy: dict[Atom, Tensor]) -> None:
    """Adds the energy along an axis to the atoms of the axis."""
    sizes = [algebra.size((factor,)) for factor in axis]
    grid = along.reshape(sizes) if axis else along
    for place, factor in enumerate(axis):
        share = _sum_others(grid, place)
        if isinstance(factor, Sum):
            pieces = torch.split(share, [algebra.size(term) for term in factor.terms])
            for term, piece in zip(factor.terms, pieces, strict=True):
                _attribute(algebra, algebra.normal(term), piece, energy)
        elif factor in energy:
            energy[factor] += share


def _sum_others(value: Tensor, dim: int) -> Tensor:
    """Sums over all dimensions except `dim`."""
    return value.movedim(dim, 0).reshape(value.shape[dim], -1).sum(1)


def _select(plan: StudentPlan, name: str, value: Tensor, kept: dict[Atom, Tensor]) -> Tensor:
    """The tensor at the kept indices of its axes."""
    for dim, axis in enumerate(plan.trace.weights[name]):
        indices = _axis_indices(plan.trace.algebra, plan.trace.algebra.normal(axis), kept)
        value = value.index_select(dim, indices)
    return value.clone()


def _axis_indices(algebra: AxisAlgebra, axis: Axis, kept: dict[Atom, Tensor]) -> Tensor:
    indices = torch.zeros(1, dtype=torch.long)
    for factor in axis:
        own = _factor_indices(algebra, factor, kept)
        indices = (indices[:, None] * algebra.size((factor,)) + own[None, :]).flatten()
    return indices


def _factor_indices(algebra: AxisAlgebra, factor: Factor, kept: dict[Atom, Tensor]) -> Tensor:
    if isinstance(factor, Atom):
        return kept[factor] if factor in kept else torch.arange(factor.size)
    offset, parts = 0, []
    for term in factor.terms:
        parts.append(_axis_indices(algebra, algebra.normal(term), kept) + offset)
        offset += algebra.size(term)
    return torch.cat(parts)
