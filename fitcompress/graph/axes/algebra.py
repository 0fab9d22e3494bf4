"""The algebra of axes: how the dimensions of all tensors of a network are related.

Pure Python over ints, without torch. Each dimension of each tensor is an *axis*, a small tree in a
normal form:

    axis    a row-major product of factors, as a tuple; () is an axis of size 1
    factor  an `Atom` (a size with an identity) or a `Sum` (axes laid end to end)

Concatenation makes sums, splitting takes them apart, reshaping regroups products, and two axes that
must be equal are *unified*: aligned from the left, refining atoms where the boundaries differ
(192 against 3 x 64: the atom becomes a product; 128 against 64 + 64: a sum). An atom is *frozen*,
with a reason, when its size must not change. If two structures cannot be reconciled, both are
frozen entirely: the student is then wider than it could be, but never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

__all__ = ["Atom", "Axis", "AxisAlgebra", "Factor", "Sum"]


@dataclass(frozen=True, eq=False, slots=True)
class Atom:
    """A size with an identity: atoms are compared by identity, not by size."""

    size: int

    def __repr__(self) -> str:
        return f"<{self.size}>"


@dataclass(frozen=True, slots=True)
class Sum:
    """Axes laid end to end: indices run through the first term, then the second, and so on."""

    terms: tuple[Axis, ...]


Factor = Atom | Sum
Axis = tuple[Factor, ...]


class AxisAlgebra:
    """The atoms of one network: which are refined into other axes, and which are frozen and why.

    >>> algebra = AxisAlgebra()
    >>> channels = algebra.new(192)
    >>> heads, width = algebra.regroup([channels], [3, 64])
    >>> algebra.size(heads), algebra.size(width), len(algebra.normal(channels))
    (3, 64, 2)
    """

    def __init__(self) -> None:
        self._meaning: dict[Atom, Axis] = {}
        self._normals: dict[Axis, Axis] = {}
        """A cache of `normal`, cleared when an atom is refined."""
        self._frozen: dict[Atom, str] = {}

    # Making and reading axes

    def new(self, size: int, *, frozen: str = "") -> Axis:
        """An axis of one new atom, or of no factors if the size is 1. A non-empty `frozen` freezes
        it for that reason."""
        if size == 1:
            return ()
        atom = Atom(size)
        if frozen:
            self._frozen[atom] = frozen
        return (atom,)

    def size(self, axis: Axis) -> int:
        """The number of indices of the axis."""
        return prod(_factor_size(factor) for factor in axis)

    def resize(self, axis: Axis, sizes: Mapping[Atom, int]) -> int:
        """The size of the axis if the atoms in `sizes` get new sizes and the others keep theirs."""
        return _resized(self.normal(axis), sizes)

    def normal(self, axis: Axis) -> Axis:
        """The axis in terms of atoms that are not refined further, with products and sums flattened
        and units dropped."""
        known = self._normals.get(axis)
        if known is None:
            factors: list[Factor] = []
            for factor in axis:
                if isinstance(factor, Sum):
                    factors.extend(self._normal_sum(factor))
                elif factor in self._meaning:
                    self._meaning[factor] = self.normal(self._meaning[factor])
                    factors.extend(self._meaning[factor])
                elif factor.size != 1:
                    factors.append(factor)
            known = self._normals[axis] = tuple(factors)
        return known

    def _normal_sum(self, factor: Sum) -> Axis:
        terms: list[Axis] = []
        for term in map(self.normal, factor.terms):
            if self.size(term) == 0:
                continue
            nested = term[0] if len(term) == 1 else None
            terms.extend(nested.terms if isinstance(nested, Sum) else (term,))
        return terms[0] if len(terms) == 1 else (Sum(tuple(terms)),)

    def atoms(self, axis: Axis) -> Iterator[Atom]:
        """The atoms of the axis in normal form, from left to right, with repetitions."""
        return _atoms_in(self.normal(axis))

    def products(self, axis: Axis) -> Iterator[Axis]:
        """The maximal products in the axis: the axis itself, and the terms of the sums in it."""
        axis = self.normal(axis)
        yield axis
        for factor in axis:
            if isinstance(factor, Sum):
                for term in factor.terms:
                    yield from self.products(term)

    def freeze(self, axis: Axis, reason: str) -> None:
        """Fix the sizes of all atoms of the axis. An atom that is frozen keeps its reason."""
        for atom in self.atoms(axis):
            self._frozen.setdefault(atom, reason)

    def frozen_reason(self, atom: Atom) -> str:
        """Why the atom is frozen; empty if it is free."""
        return self._frozen.get(atom, "")

    # Unification

    def unify(self, one: Axis, other: Axis) -> bool:
        """Make two axes of equal size the same axis. False if their structures cannot be
        reconciled; both are then frozen."""
        one, other = self.normal(one), self.normal(other)
        assert self.size(one) == self.size(other), (one, other)
        if one == other:
            return True
        if self._align(list(one), list(other)):
            return True
        self.freeze(one + other, "two layouts of the same axis cannot be reconciled")
        return False

    def unify_all(self, axes: Iterable[Axis]) -> None:
        """Unify all axes with the first."""
        first, *others = axes
        for other in others:
            self.unify(first, other)

    def _align(self, left: list[Factor], right: list[Factor]) -> bool:
        while left and right:
            left[:1], right[:1] = self.normal((left[0],)), self.normal((right[0],))
            sizes = _factor_size(left[0]), _factor_size(right[0])
            if sizes[0] == sizes[1]:
                if not self._unify_factors(left.pop(0), right.pop(0)):
                    return False
                continue
            longer, outer = (left, sizes[1]) if sizes[0] > sizes[1] else (right, sizes[0])
            parts = self._split_factor(longer[0], outer)
            if parts is None:
                return False
            longer[:1] = parts
        return not left and not right

    def _unify_factors(self, one: Factor, other: Factor) -> bool:
        if one == other:
            return True
        if isinstance(one, Atom):
            return self._define(one, (other,))
        if isinstance(other, Atom):
            return self._define(other, (one,))
        return self._align_terms(list(one.terms), list(other.terms))

    def _align_terms(self, left: list[Axis], right: list[Axis]) -> bool:
        while left and right:
            sizes = self.size(left[0]), self.size(right[0])
            if sizes[0] == sizes[1]:
                if not self.unify(left.pop(0), right.pop(0)):
                    return False
                continue
            longer, first = (left, sizes[1]) if sizes[0] > sizes[1] else (right, sizes[0])
            parts = self._split_product(longer[0], [first, self.size(longer[0]) - first])
            if parts is None:
                return False
            longer[:1] = parts
        return True

    def _define(self, atom: Atom, meaning: Axis) -> bool:
        """Refine `atom` into `meaning`, which is frozen if the atom was."""
        meaning = self.normal(meaning)
        assert self.size(meaning) == atom.size and atom not in self._meaning
        self._meaning[atom] = meaning
        self._normals.clear()
        if atom in self._frozen:
            self.freeze(meaning, self._frozen[atom])
        return True

    # Products: reshaping

    def regroup(self, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
        """The axes of a tensor with `axes` after a row-major reshape to `sizes`.

        A run of axes whose boundaries cannot be matched is frozen, and its results are new and
        frozen.
        """
        assert prod(map(self.size, axes)) == prod(sizes), (axes, sizes)
        if 0 in sizes:
            return [self.new(size, frozen="empty") for size in sizes]
        groups: list[Axis] = []
        for run, run_sizes in self._independent_runs(list(axes), list(sizes)):
            groups.extend(self._regroup_run(run, run_sizes))
        return groups

    def _independent_runs(
        self, axes: list[Axis], sizes: list[int]
    ) -> Iterator[tuple[list[Axis], list[int]]]:
        """Cut a reshape where boundaries on both sides coincide, so that a run that fails does not
        freeze the others."""
        while axes or sizes:
            taken, wanted = axes[:1], sizes[:1]
            while prod(map(self.size, taken)) != prod(wanted):
                if prod(map(self.size, taken)) < prod(wanted):
                    taken = axes[: len(taken) + 1]
                else:
                    wanted = sizes[: len(wanted) + 1]
            yield taken, wanted
            del axes[: len(taken)], sizes[: len(wanted)]

    def _regroup_run(self, axes: list[Axis], sizes: list[int]) -> list[Axis]:
        factors = [factor for axis in axes for factor in self.normal(axis)]
        groups: list[Axis] = []
        for size in sizes:
            group = self._take(factors, size)
            if group is None:
                whole = tuple(factor for axis in axes for factor in axis)
                known = [self.frozen_reason(atom) for atom in self.atoms(whole)]
                is_fixed = bool(known) and all(known)
                reason = known[0] if is_fixed else f"a reshape to {sizes} that follows no boundary"
                self.freeze(whole, reason)
                return [self.new(size, frozen=reason) for size in sizes]
            groups.append(group)
        return groups

    def _take(self, factors: list[Factor], size: int) -> Axis | None:
        """Take factors with the product `size` from the left of `factors`, splitting one if needed;
        None if impossible."""
        taken: list[Factor] = []
        while size > 1:
            factors[:1] = self.normal((factors[0],))
            first = _factor_size(factors[0])
            if size % first == 0:
                taken.append(factors.pop(0))
                size //= first
                continue
            parts = self._split_factor(factors[0], size) if first % size == 0 else None
            if parts is None:
                return None
            factors[:1] = parts
        return tuple(taken)

    def _split_factor(self, factor: Factor, outer: int) -> list[Factor] | None:
        """The factor as a product whose left part has the size `outer`; None if impossible."""
        size = _factor_size(factor)
        if size % outer:
            return None
        if isinstance(factor, Atom):
            meaning = (*self.new(outer), *self.new(size // outer))
            self._define(factor, meaning)
            return list(self.normal(meaning))
        if size == len(factor.terms):
            return [_units(outer), _units(size // outer)]
        return self._split_repeats(factor, outer) or self._split_common_inner(factor, size // outer)

    def _split_repeats(self, factor: Sum, outer: int) -> list[Factor] | None:
        """n terms of one size as n x term, if `outer` is a multiple of n."""
        terms = factor.terms
        if outer % len(terms) or len({self.size(term) for term in terms}) > 1:
            return None
        self.unify_all(terms)
        return [_units(len(terms)), *self.normal(terms[0])]

    def _split_common_inner(self, factor: Sum, inner: int) -> list[Factor] | None:
        """a x i + b x i as (a + b) x i."""
        if any(self.size(term) % inner for term in factor.terms):
            return None
        pairs = [self.regroup([term], [self.size(term) // inner, inner]) for term in factor.terms]
        self.unify_all(pair[1] for pair in pairs)
        return [*self.join(pair[0] for pair in pairs), *self.normal(pairs[0][1])]

    # Sums: concatenation and splitting

    def join(self, axes: Iterable[Axis]) -> Axis:
        """The axis of a concatenation."""
        return self.normal((Sum(tuple(axes)),))

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """The axes of consecutive pieces of the given sizes, which add up to the axis.

        If the boundaries cannot be matched, the axis is frozen and the pieces are new and frozen.
        """
        assert self.size(axis) == sum(sizes), (axis, sizes)
        wanted = [size for size in sizes if size]
        parts = self._split_product(axis, wanted)
        if parts is None:
            reason = f"a split into {wanted} that follows no boundary"
            self.freeze(axis, reason)
            parts = [self.new(size, frozen=reason) for size in wanted]
        pieces = iter(parts)
        return [next(pieces) if size else (Atom(0),) for size in sizes]

    def _split_product(self, axis: Axis, sizes: Sequence[int]) -> list[Axis] | None:
        axis = self.normal(axis)
        if len(sizes) == 1:
            return [axis]
        outermost, inner = axis[0], axis[1:]
        unit = self.size(inner)
        if any(size % unit for size in sizes):
            return None
        parts = self._split_outermost(outermost, [size // unit for size in sizes])
        return None if parts is None else [self.normal(part + inner) for part in parts]

    def _split_outermost(self, factor: Factor, sizes: Sequence[int]) -> list[Axis] | None:
        if isinstance(factor, Atom):
            parts = [self.new(size) for size in sizes]
            self._define(factor, self.join(parts))
            return parts
        terms, parts = list(factor.terms), []
        for size in sizes:
            part = self._take_terms(terms, size)
            if part is None:
                return None
            parts.append(part)
        return parts

    def _take_terms(self, terms: list[Axis], size: int) -> Axis | None:
        """Take terms with the total `size` from the left of `terms`, splitting one if needed; None
        if impossible."""
        taken: list[Axis] = []
        while size:
            first = self.size(terms[0])
            if first > size:
                parts = self._split_product(terms[0], [size, first - size])
                if parts is None:
                    return None
                terms[:1] = parts
                first = size
            taken.append(terms.pop(0))
            size -= first
        return self.join(taken)


def _factor_size(factor: Factor) -> int:
    if isinstance(factor, Atom):
        return factor.size
    return sum(prod(_factor_size(inner) for inner in term) for term in factor.terms)


def _resized(axis: Axis, sizes: Mapping[Atom, int]) -> int:
    """The size of an axis in normal form with new sizes of atoms."""
    size = 1
    for factor in axis:
        if isinstance(factor, Sum):
            size *= sum(_resized(term, sizes) for term in factor.terms)
        else:
            size *= sizes.get(factor, factor.size)
    return size


def _atoms_in(axis: Axis) -> Iterator[Atom]:
    for factor in axis:
        if isinstance(factor, Sum):
            for term in factor.terms:
                yield from _atoms_in(term)
        else:
            yield factor


def _units(count: int) -> Factor:
    """The index over `count` equal terms: a sum of units, whose size is constant."""
    return Sum(((),) * count)
