"""What becomes of axes that are combined entry by entry, concatenated, cut or reshaped."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

from trueoracle.pruning.axes.atoms import (
    Atom,
    Axis,
    Factor,
    Fixed,
    Segment,
    fixed,
    lock,
    resolved,
    size_of,
)

__all__ = ["cut", "divided", "ends_at", "follow_on", "parts", "product", "reshaped", "united"]


def united(first: Axis, second: Axis, meets: str) -> Axis:
    """One axis from two of the same size whose entries meet one by one.

    ``meets`` says in words what happens (``its output meets 'add'``).
    """
    origin = first.origin or second.origin
    aligned = _aligned(first, second, f"{meets} of other channels")
    if aligned is None:
        return _apart(first, second, f"{meets} of other channels")
    found = []
    for a, b in zip(*aligned, strict=True):
        segment = _united(a, b, meets)
        if segment is None:
            for one in (a, b):
                lock(Axis((one,)), f"{meets} of other channels")
            segment = (Fixed(size_of(a)),)
        found.append(segment)
    return Axis(tuple(found), origin)


def _apart(first: Axis, second: Axis, reason: str) -> Axis:
    lock(first, reason)
    lock(second, reason)
    return fixed(first.size)


def _ends(segments: Sequence[Segment]) -> list[int]:
    found, end = [], 0
    for segment in segments:
        end += size_of(segment)
        found.append(end)
    return found


def _aligned(
    first: Axis, second: Axis, why: str
) -> tuple[tuple[Segment, ...], tuple[Segment, ...]] | None:
    """The segments of two axes, cut at the ends of each other's; None if that is impossible."""
    for _ in range(8):  # a cut may divide what the other axis consists of
        mine, theirs = resolved(first).segments, resolved(second).segments
        ends = sorted({*_ends(mine), *_ends(theirs)})
        mine, theirs = _at(mine, ends), _at(theirs, ends)
        if _ends(mine) == ends == _ends(theirs):
            return mine, theirs
        can_be = [_cut_at(one, ends, why) for one in (mine, theirs)]
        if not all(can_be):
            return None
    return None


def _at(segments: Sequence[Segment], ends: Sequence[int]) -> tuple[Segment, ...]:
    """The segments, with those of fixed size cut at all ``ends``."""
    found: list[Segment] = []
    end = 0
    for segment in segments:
        size = size_of(segment)
        inner = [point - end for point in ends if end < point < end + size]
        end += size
        if not inner or len(segment) > 1 or isinstance(segment[0], Atom):
            found.append(segment)
            continue
        stops = [0, *inner, size]
        is_uniform = segment[0].uniform
        found += [(Fixed(b - a, is_uniform),) for a, b in pairwise(stops)]
    return tuple(found)


def _cut_at(segments: Sequence[Segment], ends: Sequence[int], why: str) -> bool:
    """Divide the atoms of an axis so that segments end at ``ends``; False if that is impossible."""
    end = 0
    for segment in segments:
        size = size_of(segment)
        points = [point - end for point in ends if end < point < end + size]
        end += size
        if not points:
            continue
        first = next((i for i, factor in enumerate(segment) if factor.size > 1), 0)
        outer, inner = segment[first], size_of(segment[first + 1 :])
        if not isinstance(outer, Atom) or any(point % inner for point in points):
            return False
        stops = [0, *(point // inner for point in points), outer.size]
        outer.root().cut([b - a for a, b in pairwise(stops)], why)
    return True


def _united(first: Segment, second: Segment, meets: str) -> Segment | None:
    """One product from two of the same size; None if their factors do not match."""
    a, b = list(first), list(second)
    found: list[Factor] = []
    while a or b:
        if not a or not b:
            found += [one for one in (*a, *b) if isinstance(one, Atom)]
            break
        if not (_opened(a) and _opened(b)):
            return None
        x, y = a[0], b[0]
        if x.size == y.size:
            found.append(_joined(a.pop(0), b.pop(0), meets))
        elif x.size == 1 and _holds(a[1:], y):  # dividing y by 1 would divide both without end
            found.append(a.pop(0))
        elif y.size == 1 and _holds(b[1:], x):
            found.append(b.pop(0))
        elif not _divided(a, b):
            return None
    return tuple(found) or (Fixed(1),)


def _holds(factors: Sequence[Factor], wanted: Factor) -> bool:
    """Whether an atom is among ``factors`` or the products that they were divided into."""
    atoms = [one.root() for one in factors if isinstance(one, Atom)]
    return any(atom is wanted or _holds(atom.product, wanted) for atom in atoms)


def _opened(factors: list[Factor]) -> bool:
    """Replace the first factor by its own factors; False if it is a sum, which has none."""
    while isinstance(factors[0], Atom):
        factors[0] = first = factors[0].root()
        if first.is_whole:
            return True
        if not first.product:
            return False
        factors[:1] = first.product
    return True


def _divided(a: list[Factor], b: list[Factor]) -> bool:
    """Divide the larger of the two first factors by the smaller; False if a rest remains."""
    small, large = (a, b) if a[0].size < b[0].size else (b, a)
    first, second = small[0], large[0]
    if isinstance(first, Fixed) and first.size == 1:
        small.pop(0)
        return True
    if second.size % first.size:
        return False
    if isinstance(second, Fixed):
        sizes = first.size, second.size // first.size
        large[:1] = [Fixed(size, second.uniform) for size in sizes]
    else:
        second.factor(first.size)
    return True


def _joined(first: Factor, second: Factor, meets: str) -> Factor:
    if isinstance(first, Atom) and isinstance(second, Atom):
        first.join(second)
        return first.root()
    if isinstance(first, Atom) or isinstance(second, Atom):
        atom, other = (first, second) if isinstance(first, Atom) else (second, first)
        if isinstance(other, Fixed) and not other.uniform and isinstance(atom, Atom):
            atom.lock(f"{meets} of something that keeps its size")
        return atom
    return Fixed(first.size, first.uniform and second.uniform)


def follow_on(axes: Sequence[Axis]) -> Axis:
    """The axis of a concatenation."""
    return Axis(tuple(segment for axis in axes for segment in resolved(axis).segments))


def ends_at(axis: Axis, sizes: Sequence[int]) -> bool:
    """Whether a segment of the axis ends wherever a part of the given ``sizes`` would end."""
    return {*accumulate(sizes)} <= {*_ends(resolved(axis).segments)}


def cut(axis: Axis, sizes: Sequence[int], why: str) -> list[Axis] | None:
    """An axis cut into consecutive pieces of some sizes; None if that is impossible."""
    aligned = _aligned(axis, Axis(tuple((Fixed(size),) for size in sizes if size)), why)
    if aligned is None:
        return None
    rest = list(aligned[0])
    pieces = []
    for size in sizes:
        piece: list[Segment] = []
        while sum(map(size_of, piece)) < size:
            piece.append(rest.pop(0))
        pieces.append(Axis(tuple(piece) or ((Fixed(0),),), axis.origin))
    return pieces


def parts(axis: Axis, count: int, why: str) -> list[Axis] | None:
    """An axis cut into ``count`` equal pieces that lose the same indices; None if impossible.

    Code that cuts an axis into a number of pieces, or pieces of one size, still gets equal ones.
    """
    inner = axis.size // count
    if (found := _split_off(axis, inner)) is not None:
        outers, inners = found
        lock(Axis(tuple(outers)), why)
        pieces = [Axis((one,), axis.origin) for one in inners]
    elif (cut_ones := cut(axis, [inner] * count, why)) is not None:
        pieces = cut_ones
    else:
        return None
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = united(whole, piece, why)
    return [Axis(whole.segments, axis.origin) for _ in range(count)]


def product(axes: Sequence[Axis]) -> Axis:
    """Several axes merged into one, the outermost first."""
    kept = [axis for axis in axes if axis.segments != ((Fixed(1),),)]
    if len(kept) == 1:
        return kept[0]
    whole = Axis(((),))
    for axis in kept:
        inner = resolved(axis).segments
        if len(inner) > 1 and whole.size > 1:
            lock(axis, "its output is reshaped behind a concatenation")
            inner = ((Fixed(axis.size),),)
        whole = Axis(tuple((*a, *b) for a in whole.segments for b in inner))
    return Axis(tuple(one or (Fixed(1),) for one in whole.segments))


def reshaped(axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    """The axes of a tensor that is viewed in another shape."""
    found: list[Axis] = []
    old, new = list(axes), list(sizes)
    while old or new:
        block: list[Axis] = [old.pop(0)] if old else []
        into: list[int] = [new.pop(0)] if new else []
        while (mine := _total(block)) != (theirs := _size(into)):
            if mine < theirs:
                block.append(old.pop(0))
            else:
                into.append(new.pop(0))
        if len(block) == 1 == len(into):
            found += block
        else:
            found += _divided_into(product(block), into)
    return found


def _total(axes: Sequence[Axis]) -> int:
    return _size([axis.size for axis in axes])


def _size(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _divided_into(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """One axis viewed as several, the outermost first."""
    found: list[Axis] = []
    for position, size in enumerate(sizes):
        inner = _size(sizes[position + 1 :])
        if size == 1 or not sizes[position + 1 :]:
            found.append(fixed(1) if sizes[position + 1 :] else axis)
            continue
        outer, axis = divided(axis, axis.size // inner, "its output is reshaped")
        found.append(outer)
    return found


def divided(axis: Axis, count: int, meets: str) -> tuple[Axis, Axis]:
    """An axis as a product: ``count`` outer indices, and the inner indices of each.

    An axis that cannot be divided so is locked; ``meets`` says in words what happens to the axis.
    """
    inner = axis.size // count
    found = _split_off(axis, inner)
    if found is None:
        lock(axis, f"{meets} across its channels")
        return fixed(count), fixed(inner)
    outers, inners = found
    rest = Axis((inners[0],), axis.origin)
    for one in inners[1:]:
        rest = united(rest, Axis((one,), axis.origin), f"{meets}, and meets there a part")
    return Axis(tuple(outers), axis.origin), rest


def _split_off(axis: Axis, inner: int) -> tuple[list[Segment], list[Segment]] | None:
    """Each segment of an axis as an outer part and an inner one of a given size."""
    outers, inners = [], []
    for segment in resolved(axis).segments:
        parted = None if size_of(segment) % inner else _parted(segment, size_of(segment) // inner)
        if parted is None:
            return None
        outers.append(parted[0])
        inners.append(parted[1])
    return outers, inners


def _parted(segment: Segment, outer: int) -> tuple[Segment, Segment] | None:
    """A product as an outer part of a given size and the rest; an atom is divided if needed."""
    taken: list[Factor] = []
    rest = list(segment)
    while rest and (size := size_of(tuple(taken))) <= outer:
        factor = rest[0].root() if isinstance(rest[0], Atom) else rest[0]
        if isinstance(factor, Atom) and factor.product:
            rest[:1] = factor.product
            continue
        need = outer // size
        if need % factor.size == 0 and (factor.size > 1 or need > 1 or isinstance(factor, Atom)):
            taken.append(factor)
            rest.pop(0)
        elif need == 1:
            break
        elif factor.size % need:
            return None
        elif isinstance(factor, Fixed):
            sizes = need, factor.size // need
            rest[:1] = [Fixed(size, factor.uniform) for size in sizes]
        else:
            factor.factor(need)
    if size_of(tuple(taken)) != outer:
        return None
    return tuple(taken) or (Fixed(1),), tuple(rest) or (Fixed(1),)
