"""Axes of tensors as sums of products of index sets.

An *atom* is a set of indices that nothing has divided yet. At first, each axis of each parameter is
one atom. A view divides an atom into a product (``[heads · head_dim]``), a slice divides it into a
sum (``[query | key | value]``). Where two axes meet, their atoms become one. An axis is a sequence
of segments; a segment is a product of factors, the outermost first; a factor is an atom or a fixed
size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Atom", "Axis", "Factor", "Fixed", "Segment", "atoms_of", "fixed", "lock", "resolved"]


class Atom:
    """A set of indices; removing one index removes it wherever the atom occurs.

    ``reason`` says in words why no index can be removed; it is empty while nothing forbids that.
    ``number`` orders atoms by creation.
    """

    _made = 0

    def __init__(self, size: int, reason: str = "") -> None:
        self.size, self.reason = size, reason
        self.cut_by = ""  # the operation that cut it out of a larger atom, in words
        self._multiplied = False
        self.product: tuple[Atom, ...] = ()
        self.sum: tuple[Atom, ...] = ()
        self._joined: Atom | None = None
        Atom._made += 1
        self.number = Atom._made

    def root(self) -> Atom:
        """The atom that this one was merged into; itself, if none."""
        atom = self
        while atom._joined is not None:
            atom = atom._joined
        return atom

    @property
    def is_whole(self) -> bool:
        """Whether the atom is undivided."""
        return not self.product and not self.sum

    @property
    def is_multiplied(self) -> bool:
        """Whether tensors that are no weights are multiplied and summed over the atom."""
        atom = self.root()
        return atom._multiplied or any(part.is_multiplied for part in (*atom.product, *atom.sum))

    def multiply(self) -> None:
        """Note that tensors that are no weights are multiplied and summed over the atom."""
        self.root()._multiplied = True

    def lock(self, reason: str) -> None:
        """Forbid the removal of these indices; the first reason is kept."""
        atom = self.root()
        for part in (*atom.product, *atom.sum):
            part.lock(reason)
        atom.reason = atom.reason or reason

    def join(self, other: Atom) -> None:
        """Become one with another atom of the same size; both must be whole."""
        first, second = sorted((self.root(), other.root()), key=lambda atom: atom.number)
        if first is not second:
            second._joined = first
            first.reason = first.reason or second.reason
            first.cut_by = first.cut_by or second.cut_by
            first._multiplied = first._multiplied or second._multiplied

    def factor(self, outer: int) -> None:
        """Divide the atom into a product of ``outer`` and the rest."""
        self.product = (Atom(outer, self.reason), Atom(self.size // outer, self.reason))
        for part in self.product:
            part.cut_by, part._multiplied = self.cut_by, self._multiplied

    def cut(self, sizes: Sequence[int], why: str) -> None:
        """Divide the atom into a sum of consecutive parts; ``why`` says in words what cut it."""
        self.sum = tuple(Atom(size, self.reason) for size in sizes)
        for part in self.sum:
            part.cut_by, part._multiplied = self.cut_by or why, self._multiplied


@dataclass(frozen=True)
class Fixed:
    """A factor of constant size; ``uniform`` if the values are the same for every index."""

    size: int
    uniform: bool = False
    is_multiplied: bool = False


Factor = Atom | Fixed
Segment = tuple[Factor, ...]


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor; ``origin`` is the parameter and axis that it is a view of, if any."""

    segments: tuple[Segment, ...]
    origin: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        return sum(size_of(segment) for segment in self.segments)


def size_of(segment: Segment) -> int:
    """How many indices a product of factors has."""
    return math.prod(factor.size for factor in segment)


def fixed(size: int, uniform: bool = False) -> Axis:
    """An axis that belongs to no parameter."""
    return Axis(((Fixed(size, uniform),),))


def resolved(axis: Axis) -> Axis:
    """The axis with every divided atom written out."""
    segments = [one for segment in axis.segments for one in _resolved(segment)]
    return Axis(tuple(segments), axis.origin)


def _resolved(segment: Segment) -> list[Segment]:
    """The segments that one segment has become."""
    found: list[Segment] = [()]
    for factor in segment:
        if isinstance(factor, Atom):
            factor = factor.root()
        if isinstance(factor, Fixed) or factor.is_whole:
            found = [(*one, factor) for one in found]
        elif factor.product:
            (inner, *more) = _resolved(factor.product)
            if more and any(size_of(one) > 1 for one in found):
                inner, more = (_kept(factor),), []
            found = [(*one, *inner) for one in found] + [(*found[0], *one) for one in more]
        elif all(size_of(one) == 1 for one in found):
            # (a | b) · c is a · c | b · c; with a factor before it, the parts would be interleaved.
            found = [(*found[0], *one) for part in factor.sum for one in _resolved((part,))]
        else:
            found = [(*one, _kept(factor)) for one in found]
    return found


def _kept(atom: Atom) -> Fixed:
    atom.lock("only a part of its output is used, at several places")
    return Fixed(atom.size, is_multiplied=atom.is_multiplied)


def atoms_of(axis: Axis) -> Iterator[Atom]:
    """The atoms that an axis consists of at this point."""
    for segment in resolved(axis).segments:
        for factor in segment:
            if isinstance(factor, Atom):
                yield factor


def lock(axis: Axis, reason: str) -> None:
    """Forbid the removal of any index of an axis."""
    for segment in axis.segments:
        for factor in segment:
            if isinstance(factor, Atom):
                factor.lock(reason)
