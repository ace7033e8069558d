"""Axes as sums of products, against the indices themselves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trueoracle.pruning.axes.atoms import Atom, Axis, Fixed, fixed, resolved
from trueoracle.pruning.axes.meeting import cut, follow_on, product, reshaped, united
from trueoracle.pruning.axes.offers import layout
from trueoracle.pruning.groups import entries


def whole(size: int) -> tuple[Atom, Axis]:
    atom = Atom(size)
    return atom, Axis(((atom,),))


def holders(axis: Axis, atom: Atom) -> list[list[int]]:
    """For each index of an atom, where it lies along an axis."""
    found: list[list[int]] = [[] for _ in range(atom.size)]
    for one, offset, outer, inner in layout(resolved(axis).segments):
        if one is atom.root():
            for index in range(atom.size):
                at = entries(torch.tensor([index]), atom.size, offset, outer, inner)
                found[index] += at.tolist()
    return [sorted(one) for one in found]


def labelled(shape: tuple[int, ...], dim: int) -> Tensor:
    """A tensor whose entries say which index of one axis they belong to."""
    sizes = [1] * len(shape)
    sizes[dim] = shape[dim]
    return torch.arange(shape[dim]).view(sizes).expand(shape)


@given(st.lists(st.integers(1, 4), min_size=2, max_size=4), st.data())
def test_merged_axes_hold_an_index_where_it_is(shape: list[int], data: st.DataObject) -> None:
    dim = data.draw(st.integers(0, len(shape) - 1))
    shape[dim] += 1  # one index alone may be lost: there is nothing to choose
    atom, axis = whole(shape[dim])
    axes = [axis if i == dim else fixed(size) for i, size in enumerate(shape)]
    (merged,) = reshaped(axes, [math.prod(shape)])
    flat = labelled(tuple(shape), dim).reshape(-1)
    expected = [(flat == index).nonzero()[:, 0].tolist() for index in range(shape[dim])]
    assert holders(merged, atom) == expected
    # And back again, in the shape it was.
    again = reshaped([merged], shape)
    assert [one.size for one in again] == shape
    assert holders(again[dim], atom) == [[index] for index in range(shape[dim])]


def test_a_view_divides_an_index_set_into_a_product() -> None:
    atom, axis = whole(12)
    heads, width = reshaped([axis], [3, 4])
    assert [one.size for one in (heads, width)] == [3, 4]
    (outer,) = resolved(heads).segments[0]
    assert isinstance(outer, Atom)
    assert holders(axis, outer) == [[4 * head + j for j in range(4)] for head in range(3)]
    assert atom.product[0] is outer


def test_slices_divide_it_into_a_sum_and_a_concatenation_puts_it_together() -> None:
    _, axis = whole(10)
    pieces = cut(axis, [2, 5, 3], "split")
    assert pieces is not None
    turned = follow_on([pieces[2], pieces[0], pieces[1]])
    assert turned.size == 10
    (second,) = resolved(pieces[1]).segments[0]
    assert isinstance(second, Atom)
    assert holders(turned, second) == [[5 + i] for i in range(5)]
    assert holders(axis, second) == [[2 + i] for i in range(5)]


def test_what_meets_becomes_one() -> None:
    first, one = whole(6)
    second, other = whole(6)
    united(one, other, "meets")
    assert first.root() is second.root()
    # A product that meets an undivided set divides it likewise.
    third, undivided = whole(24)
    united(product([one, fixed(4)]), undivided, "meets")
    (outer, inner) = third.product
    assert outer.root() is first.root()
    assert inner.root().reason == "meets of something that keeps its size"


def test_a_uniform_factor_keeps_nothing() -> None:
    """Keys that are repeated for several queries, as in grouped-query attention."""
    groups, keys = whole(2)
    queries, heads = whole(8)
    united(product([keys, fixed(4, uniform=True)]), heads, "meets")
    assert queries.product[0].root() is groups.root()
    assert not queries.product[0].root().reason
    assert not queries.product[1].root().reason


def test_sums_that_end_elsewhere_are_cut_where_the_other_ends() -> None:
    a, left = whole(4)
    _, right = whole(2)
    c, both = whole(6)
    united(follow_on([left, right]), both, "meets")
    assert [part.size for part in c.sum] == [4, 2]
    assert c.sum[0].root() is a.root()


@pytest.mark.parametrize("sizes", [(2, 3), (4, 6)])
def test_factors_that_do_not_divide_are_kept(sizes: tuple[int, int]) -> None:
    outer, first = whole(sizes[0])
    _, second = whole(sizes[1])
    twisted = united(product([first, second]), product([second, first]), "meets")
    assert twisted.size == math.prod(sizes)
    assert outer.root().reason


def test_reasons_reach_every_part() -> None:
    atom, axis = whole(12)
    reshaped([axis], [3, 4])
    atom.lock("because")
    assert [part.reason for part in atom.product] == ["because", "because"]
    late, later = whole(6)
    late.lock("first")
    cut(later, [2, 4], "split")
    assert [part.reason for part in late.sum] == ["first", "first"]


def test_an_outer_factor_interleaves_a_sum_which_is_kept() -> None:
    inner, axis = whole(4)
    grid = product([fixed(3), axis])
    cut(axis, [1, 3], "split")
    assert resolved(grid).segments == ((Fixed(3), Fixed(4)),)
    assert "several places" in inner.sum[0].reason


def test_one_index_beside_a_set_that_it_meets_leaves_it_whole() -> None:
    atom, axis = whole(6)
    one, _ = whole(1)
    found = united(Axis(((one, atom),)), axis, "it meets")  # the same set on both sides
    assert holders(found, atom) == [[index] for index in range(6)]
    assert atom.is_whole
    assert not atom.reason
