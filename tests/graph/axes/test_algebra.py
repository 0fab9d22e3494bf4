"""The algebra of axes: each operation alone, and unification as a relation."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra, Sum


def shape_of(algebra: AxisAlgebra, axis: Axis):
    """The normal form as nested tuples of sizes: products as tuples, sums as lists."""
    return tuple(
        factor.size
        if isinstance(factor, Atom)
        else [shape_of(algebra, term) for term in factor.terms]
        for factor in algebra.normal(axis)
    )


def sum_axis(algebra: AxisAlgebra, *sizes: int) -> Axis:
    return algebra.join(algebra.new(size) for size in sizes)


# Making and reading


def test_an_axis_of_size_one_has_no_factors():
    assert AxisAlgebra().new(1) == ()
    assert AxisAlgebra().size(()) == 1


def test_two_new_axes_of_one_size_are_different():
    algebra = AxisAlgebra()
    assert algebra.new(5) != algebra.new(5)


def test_size_multiplies_products_and_adds_sums():
    algebra = AxisAlgebra()
    inner = algebra.join([algebra.new(2) + algebra.new(3), algebra.new(4)])
    assert algebra.size(algebra.new(7) + inner) == 7 * (2 * 3 + 4)


def test_resize_counts_with_new_sizes_and_keeps_the_others():
    algebra = AxisAlgebra()
    heads, width, extra = (algebra.new(size) for size in (3, 64, 10))
    axis = algebra.join([heads + width, extra])
    assert algebra.resize(axis, {heads[0]: 2, extra[0]: 1}) == 2 * 64 + 1


def test_normal_flattens_sums_in_sums_and_drops_units_and_single_sums():
    algebra = AxisAlgebra()
    one, two, three = (algebra.new(size) for size in (2, 3, 4))
    assert algebra.join([algebra.join([one, two]), three]) == (Sum((one, two, three)),)
    assert algebra.join([one]) == one
    assert algebra.normal((*one, *two)) == one + two


def test_an_empty_term_leaves_a_sum_as_it_was():
    algebra = AxisAlgebra()
    kept = algebra.new(6)
    assert algebra.join([kept, algebra.new(0)]) == kept
    assert algebra.unify(kept, algebra.join([algebra.new(0), kept]))
    assert algebra.size(algebra.new(0)) == 0


def test_atoms_are_listed_from_the_left_with_repetitions():
    algebra = AxisAlgebra()
    one, two = algebra.new(2), algebra.new(3)
    axis = one + algebra.join([two, one])
    assert list(algebra.atoms(axis)) == [one[0], two[0], one[0]]


def test_products_lists_the_axis_and_the_terms_of_its_sums():
    algebra = AxisAlgebra()
    heads, width, extra = (algebra.new(size) for size in (3, 8, 5))
    axis = algebra.join([heads + width, extra])
    assert list(algebra.products(axis)) == [axis, heads + width, extra]


def test_the_first_reason_for_being_frozen_stays():
    algebra = AxisAlgebra()
    axis = algebra.new(4, frozen="an input")
    algebra.freeze(axis, "another")
    assert algebra.frozen_reason(axis[0]) == "an input"
    assert algebra.frozen_reason(algebra.new(4)[0]) == ""


# Unifying


def test_unified_atoms_are_one():
    algebra = AxisAlgebra()
    one, other = algebra.new(8), algebra.new(8)
    assert algebra.unify(one, other)
    assert algebra.normal(one) == algebra.normal(other)


def test_an_atom_against_a_product_becomes_it():
    algebra = AxisAlgebra()
    channels, heads, width = algebra.new(192), algebra.new(3), algebra.new(64)
    assert algebra.unify(channels, heads + width)
    assert algebra.normal(channels) == heads + width


def test_an_atom_against_a_sum_becomes_it():
    algebra = AxisAlgebra()
    channels, halves = algebra.new(128), sum_axis(algebra, 64, 64)
    assert algebra.unify(halves, channels)
    assert algebra.normal(channels) == algebra.normal(halves)


@pytest.mark.parametrize(
    ("left", "right", "common"),
    [
        ((2, 12), (6, 4), (2, 3, 4)),
        ((24,), (2, 3, 4), (2, 3, 4)),
        ((4, 6), (2, 2, 3, 2), (2, 2, 3, 2)),
    ],
)
def test_products_are_refined_where_boundaries_differ(left, right, common):
    algebra = AxisAlgebra()
    one = tuple(itertools.chain(*map(algebra.new, left)))
    other = tuple(itertools.chain(*map(algebra.new, right)))
    assert algebra.unify(one, other)
    assert shape_of(algebra, one) == shape_of(algebra, other) == common
    assert algebra.normal(one) == algebra.normal(other)


def test_sums_are_refined_where_boundaries_differ():
    algebra = AxisAlgebra()
    one, other = sum_axis(algebra, 3, 5), sum_axis(algebra, 6, 2)
    assert algebra.unify(one, other)
    assert shape_of(algebra, one) == ([(3,), (3,), (2,)],)
    assert algebra.normal(one) == algebra.normal(other)


def test_equal_terms_against_a_product_become_a_repetition():
    """q, k, v end to end against a reshape to (3, width): the three share an axis, and their number
    is fixed."""
    algebra = AxisAlgebra()
    packed, count, width = sum_axis(algebra, 64, 64, 64), algebra.new(3), algebra.new(64)
    assert algebra.unify(packed, count + width)
    assert set(algebra.atoms(packed)) == set(algebra.normal(width))
    assert algebra.resize(packed, {algebra.normal(width)[0]: 20}) == 60
    assert list(algebra.atoms(count)) == []


def test_a_common_inner_factor_is_taken_out_of_a_sum():
    """(2 heads + 6 heads) x 4 against 8 x 4."""
    algebra = AxisAlgebra()
    packed, outer, inner = sum_axis(algebra, 8, 24), algebra.new(8), algebra.new(4)
    assert algebra.unify(packed, outer + inner)
    assert shape_of(algebra, packed) == ([(2, 4), (6, 4)],)
    assert shape_of(algebra, outer) == ([(2,), (6,)],)
    assert algebra.resize(packed, {algebra.normal(inner)[0]: 1}) == 8


@pytest.mark.parametrize(("left", "right"), [((2, 3), (3, 2)), ((4, 6), (6, 4)), ((10, 3), (6, 5))])
def test_what_cannot_be_reconciled_is_frozen(left, right):
    algebra = AxisAlgebra()
    one = tuple(itertools.chain(*map(algebra.new, left)))
    other = tuple(itertools.chain(*map(algebra.new, right)))
    assert not algebra.unify(one, other)
    assert all(algebra.frozen_reason(atom) for atom in algebra.atoms(one + other))


def test_a_sum_that_fits_no_product_is_frozen():
    algebra = AxisAlgebra()
    one, other = sum_axis(algebra, 5, 7), algebra.new(4) + algebra.new(3)
    assert not algebra.unify(one, other)
    assert all(algebra.frozen_reason(atom) for atom in algebra.atoms(one + other))


def test_a_frozen_atom_freezes_what_it_is_refined_into():
    algebra = AxisAlgebra()
    place, heads, width = algebra.new(12, frozen="a place"), algebra.new(3), algebra.new(4)
    algebra.unify(place, heads + width)
    assert {algebra.frozen_reason(atom) for atom in algebra.atoms(heads + width)} == {"a place"}


@pytest.mark.parametrize("flip", [False, True])
def test_a_free_atom_unified_with_a_frozen_one_is_frozen_in_either_order(flip):
    algebra = AxisAlgebra()
    pair = [algebra.new(6, frozen="an output"), algebra.new(6)]
    assert algebra.unify(*(pair[::-1] if flip else pair))
    reasons = {algebra.frozen_reason(a) for axis in pair for a in algebra.atoms(axis)}
    assert reasons == {"an output"}


def test_unifying_axes_of_different_size_is_an_assertion():
    algebra = AxisAlgebra()
    with pytest.raises(AssertionError):
        algebra.unify(algebra.new(3), algebra.new(4))


# Reshaping and splitting


def test_regroup_takes_an_atom_apart_and_puts_it_together_again():
    algebra = AxisAlgebra()
    channels = algebra.new(192)
    parts = algebra.regroup([channels], [3, 64])
    assert algebra.regroup(parts, [192]) == [algebra.normal(channels)]


def test_regroup_gives_units_no_factors():
    algebra = AxisAlgebra()
    assert algebra.regroup([algebra.new(6), ()], [1, 6, 1])[::2] == [(), ()]


def test_a_reshape_across_boundaries_freezes_its_run_and_leaves_the_others():
    algebra = AxisAlgebra()
    kept, one, other = algebra.new(5), algebra.new(4), algebra.new(9)
    result = algebra.regroup([kept, one, other], [5, 6, 6])
    assert result[0] == kept and not algebra.frozen_reason(kept[0])
    assert [algebra.size(axis) for axis in result] == [5, 6, 6]
    assert all(algebra.frozen_reason(axis[0]) for axis in (one, other, *result[1:]))


def test_a_reshape_of_what_is_fixed_anyway_says_why_it_was():
    algebra = AxisAlgebra()
    places = [algebra.new(size, frozen="a place") for size in (4, 9)]
    result = algebra.regroup(places, [6, 6])
    assert {algebra.frozen_reason(axis[0]) for axis in result} == {"a place"}


def test_a_reshape_of_nothing_is_frozen():
    algebra = AxisAlgebra()
    assert [algebra.size(axis) for axis in algebra.regroup([algebra.new(0)], [0, 3])] == [0, 3]


def test_split_refines_an_atom_into_a_sum():
    algebra = AxisAlgebra()
    channels = algebra.new(10)
    one, other = algebra.split(channels, [4, 6])
    assert algebra.normal(channels) == (Sum((one, other)),)


def test_split_undoes_join():
    algebra = AxisAlgebra()
    parts = [algebra.new(3), algebra.new(4) + algebra.new(2), ()]
    assert algebra.split(algebra.join(parts), [3, 8, 1]) == parts


def test_a_product_is_split_along_its_outermost_factor():
    algebra = AxisAlgebra()
    heads, width = algebra.new(3), algebra.new(8)
    one, other = algebra.split(heads + width, [8, 16])
    assert one == width and algebra.size(other) == 16


def test_a_split_inside_an_inner_factor_freezes():
    algebra = AxisAlgebra()
    axis = algebra.new(3) + algebra.new(8)
    parts = algebra.split(axis, [12, 12])
    assert all(algebra.frozen_reason(atom) for atom in algebra.atoms(axis + parts[0] + parts[1]))


def test_empty_pieces_have_size_zero():
    algebra = AxisAlgebra()
    assert [algebra.size(part) for part in algebra.split(algebra.new(4), [0, 4, 0])] == [0, 4, 0]


# Unification as a relation


@given(st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_unify_is_idempotent(random: Random):
    algebra = AxisAlgebra()
    size = random.choice([12, 24, 36, 60])
    one, other = (random_axis(algebra, random, size) for _ in range(2))
    is_unified = algebra.unify(one, other)
    if not is_unified:
        assert all(algebra.frozen_reason(atom) for atom in algebra.atoms((*one, *other)))
        return
    before = shape_of(algebra, one), shape_of(algebra, other)
    frozen = [algebra.frozen_reason(atom) for atom in algebra.atoms(one + other)]
    assert algebra.unify(one, other)
    assert before == (shape_of(algebra, one), shape_of(algebra, other))
    assert frozen == [algebra.frozen_reason(atom) for atom in algebra.atoms(one + other)]
    # Free atoms are in both and change both alike: (6 + 6) and 2 x 6 have one atom in common.
    free = {a: None for a in algebra.atoms(one + other) if not algebra.frozen_reason(a)}
    sizes = {atom: random.randint(1, 9) for atom in free}
    assert algebra.resize(one, sizes) == algebra.resize(other, sizes)


@given(st.permutations(range(5)), st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_refinements_of_one_another_unify_to_the_same_axis_in_any_order(order, flip):
    """Boundaries that lie in one chain of divisors can be reconciled in any order."""
    algebra = AxisAlgebra()
    factors = [(120,), (2, 60), (2, 3, 20), (24, 5), (2, 3, 4, 5)]
    axes = [tuple(itertools.chain(*map(algebra.new, sizes))) for sizes in factors]
    for one, other in itertools.pairwise(order):
        pair = (axes[one], axes[other])
        assert algebra.unify(*(pair[::-1] if flip else pair))
    assert len({algebra.normal(axis) for axis in axes}) == 1
    assert shape_of(algebra, axes[0]) == (2, 3, 4, 5)


def random_axis(algebra: AxisAlgebra, random: Random, size: int, depth: int = 2) -> Axis:
    """A random tree of the given size."""
    if size == 1 or depth == 0 or random.random() < 0.3:
        return algebra.new(size)
    divisors = [d for d in range(2, size) if size % d == 0]
    if divisors and random.random() < 0.6:
        outer = random.choice(divisors)
        parts = [random_axis(algebra, random, s, depth - 1) for s in (outer, size // outer)]
        return parts[0] + parts[1]
    first = random.randrange(1, size)
    return algebra.join(random_axis(algebra, random, s, depth - 1) for s in (first, size - first))
