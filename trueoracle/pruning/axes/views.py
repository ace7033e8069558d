"""Rules for operations that only rearrange what a tensor holds."""

from __future__ import annotations

from collections.abc import Sequence

from trueoracle.networks.graph import Ref, Step
from trueoracle.pruning.axes.atoms import Axis, atoms_of, fixed, lock
from trueoracle.pruning.axes.following import Follower, Rule
from trueoracle.pruning.axes.meeting import divided, follow_on, product, reshaped, united

__all__ = ["RULES"]

Results = list[list[Axis]] | None


def _reshaped(known: Follower, step: Step) -> Results:
    return [reshaped(known.axes(step.arguments["self"]), known.shape(step))]


def _transposed(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["self"])
    if step.name.rstrip("_") == "permute":
        return [[axes[dim] for dim in step.arguments["dims"]]]
    if "dim0" in step.arguments:
        a, b = step.arguments["dim0"], step.arguments["dim1"]
    else:
        a, b = 0, len(axes) - 1  # ``t``: of a matrix, or of a vector, which stays as it is
    if axes:
        axes[a], axes[b] = axes[b], axes[a]
    return [axes]


def _expanded(known: Follower, step: Step) -> Results:
    axes, shape = known.axes(step.arguments["self"]), known.shape(step)
    axes = [fixed(1)] * (len(shape) - len(axes)) + axes
    result = []
    for axis, size in zip(axes, shape, strict=True):
        if axis.size == size:
            result.append(axis)
        else:
            lock(axis, f"{known.meets(step)} to many channels")
            result.append(fixed(size, True))
    return [result]


def _repeated(known: Follower, step: Step) -> Results:
    axes, shape = known.axes(step.arguments["self"]), known.shape(step)
    axes = [fixed(1)] * (len(shape) - len(axes)) + axes
    times = [size // max(axis.size, 1) for axis, size in zip(axes, shape, strict=True)]
    return [
        [
            axis if n == 1 else product([fixed(n, True), axis])
            for axis, n in zip(axes, times, strict=True)
        ]
    ]


def _unsqueezed(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["self"])
    dim = step.arguments["dim"] % (len(axes) + 1)
    return [[*axes[:dim], fixed(1), *axes[dim:]]]


def _squeezed(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["self"])
    dims = step.arguments.get("dim")
    listed = range(len(axes)) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {dim % len(axes) for dim in listed if axes[dim].size == 1} if axes else set()
    for dim in gone:
        lock(axes[dim], known.meets(step))
    return [[axis for dim, axis in enumerate(axes) if dim not in gone]]


def _sliced(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["self"])
    dim = step.arguments["dim"] % len(axes)
    size, taken = axes[dim].size, known.shape(step)[dim]
    if taken == size:
        return [axes]
    pieces = None
    if step.arguments["step"] == 1 and any(atoms_of(axes[dim])):
        low, _ = _bounds(step, size)
        if taken > 1 and _slices(known, step, dim, size) == _equal_parts(size, taken):
            pieces = known.in_parts(axes[dim], [taken] * (size // taken), known.meets(step))
            pieces = pieces and pieces[low // taken :]
        else:
            pieces = known.in_parts(axes[dim], [low, taken, size - low - taken], known.meets(step))
            pieces = pieces and pieces[1:]
    if pieces is None:
        lock(axes[dim], known.meets(step))
        axes[dim] = fixed(taken)
    else:
        axes[dim] = pieces[0]
    return [axes]


def _slices(known: Follower, step: Step, dim: int, size: int) -> set[tuple[int, int]]:
    """Where all slices of the same tensor along an axis begin and end."""
    tensor = step.arguments["self"]
    count = len(known.axes(tensor))
    others = known.slices.get(tensor.number, [])
    return {_bounds(one, size) for one in others if one.arguments["dim"] % count == dim}


def _equal_parts(size: int, taken: int) -> set[tuple[int, int]]:
    return {(low, low + taken) for low in range(0, size, taken)}


def _bounds(step: Step, size: int) -> tuple[int, int]:
    """Where a slice begins and ends along an axis of some size."""
    found = []
    for name, default in (("start", 0), ("end", size)):
        value = step.arguments[name]
        value = default if value is None else int(value)
        found.append(max(value + size, 0) if value < 0 else min(value, size))
    return found[0], found[1]


def _selected(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["self"])
    dim = step.arguments["dim"] % len(axes)
    lock(axes[dim], known.meets(step))
    return [axes[:dim] + axes[dim + 1 :]] * len(step.results)


def _split(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["self"])
    dim = step.arguments["dim"] % len(axes)
    sizes = [known.shape(step, i)[dim] for i in range(len(step.results))]
    has_one_size = "sizes" not in step.name and len(set(sizes)) == 1
    cut_up = known.in_equal_parts if has_one_size else known.in_parts
    pieces = cut_up(axes[dim], sizes, known.meets(step))
    if pieces is None:
        lock(axes[dim], f"{known.meets(step)} across what goes together")
        pieces = [fixed(size) for size in sizes]
    return [[*axes[:dim], piece, *axes[dim + 1 :]] for piece in pieces]


def _concatenated(known: Follower, step: Step) -> Results:
    refs, shape = step.tensors, known.shape(step)
    refs = [ref for ref in refs if len(known.axes(ref)) == len(shape)]  # empty ones have one axis
    dim = step.arguments["dim"] % len(shape)
    parts = [known.axes(ref)[dim] for ref in refs]
    others = [*shape[:dim], 1, *shape[dim + 1 :]]
    result = _met_but(known, step, [known.axes(ref) for ref in refs], dim, others)
    result[dim] = follow_on([part for part in parts if part.size])
    return [result]


def _stacked(known: Follower, step: Step) -> Results:
    shape = known.shape(step)
    dim = step.arguments["dim"] % len(shape)
    given = [known.axes(ref) for ref in step.tensors]
    raised = [[*axes[:dim], fixed(1), *axes[dim:]] for axes in given]
    result = _met_but(known, step, raised, dim, shape)
    result[dim] = fixed(shape[dim])
    return [result]


def _met_but(
    known: Follower, step: Step, given: Sequence[list[Axis]], dim: int, shape: Sequence[int]
) -> list[Axis]:
    """The axes of a result in which tensors meet along all axes but one."""
    result = [Axis(axis.segments) for axis in given[0]]
    for axes in given[1:]:
        for position, axis in enumerate(axes):
            if position != dim:
                met = united(result[position], axis, known.meets(step))
                result[position] = Axis(met.segments)
    return result


def _padded(known: Follower, step: Step) -> Results:
    """A border of one value, whose indices belong to no parameter."""
    axes, given = known.axes(step.arguments["self"]), step.arguments["pad"]
    for back in range(len(given) // 2):
        low, high = given[2 * back : 2 * back + 2]
        dim = len(axes) - 1 - back
        if low < 0 or high < 0:
            lock(axes[dim], known.meets(step))
            axes[dim] = fixed(axes[dim].size + low + high)
        elif low or high:
            border = [fixed(n, True) for n in (low, high)]
            axes[dim] = follow_on([one for one in (border[0], axes[dim], border[1]) if one.size])
    return [axes]


def _indexed(known: Follower, step: Step) -> Results:
    """Some entries along some axes, chosen by their numbers."""
    axes, shape = known.axes(step.arguments["self"]), known.shape(step)
    indices = [*step.arguments["indices"]]
    indices += [None] * (len(axes) - len(indices))
    by_number = [dim for dim, one in enumerate(indices) if one is not None]
    if len(by_number) == 1 and (taken := _run_of(known, indices[by_number[0]])):
        return _taken(known, step, by_number[0], taken)
    for dim in by_number:
        lock(axes[dim], known.meets(step))
    is_together = by_number == list(range(by_number[0], by_number[-1] + 1))
    kept = [dim for dim in range(len(axes)) if dim not in by_number]
    before = [axes[dim] for dim in kept if is_together and dim < by_number[0]]
    after = [axes[dim] for dim in kept if not is_together or dim > by_number[0]]
    count = len(shape) - len(kept)
    middle = [fixed(size) for size in shape[len(before) : len(before) + count]]
    return [[Axis(axis.segments) for axis in (*before, *middle, *after)]]


def _run_of(known: Follower, index: Ref) -> range | None:
    """The entries that a constant list chooses, if they are neighbours: ``x[:, [-1]]``."""
    entries = known.graph.constants.get(index.number, ())
    run = range(entries[0], entries[0] + len(entries)) if entries else None
    return run if run is not None and tuple(run) == entries else None


def _taken(known: Follower, step: Step, dim: int, run: range) -> Results:
    """A run of neighbouring entries, treated as a slice."""
    axes = known.axes(step.arguments["self"])
    size = axes[dim].size
    low = run.start % size
    sizes = [low, len(run), size - low - len(run)]
    pieces = known.in_parts(axes[dim], sizes, known.meets(step))
    if pieces is None:
        return None
    axes[dim] = pieces[1]
    return [axes]


def _looked_up(known: Follower, step: Step) -> Results:
    """Entries of one axis chosen by a list of numbers; the list's axis replaces that axis."""
    axes, index = known.axes(step.arguments["self"]), step.arguments["index"]
    dim = step.arguments["dim"] % max(len(axes), 1)
    lock(axes[dim], known.meets(step))
    axes[dim] = Axis(known.axes(index)[0].segments)
    return [axes]


def _shuffled(known: Follower, step: Step) -> Results:
    """Channels become pixels: the neighbouring channels that fill one pixel go together."""
    axes, shape = known.axes(step.arguments["self"]), known.shape(step)
    left, inner = divided(axes[-3], shape[-3], known.meets(step))
    lock(inner, known.meets(step))
    return [[*axes[:-3], left, fixed(shape[-2]), fixed(shape[-1])]]


def _channel_shuffled(known: Follower, step: Step) -> Results:
    """Channels in another order: group · position becomes position · group."""
    axes = known.axes(step.arguments[next(iter(step.arguments))])
    axes[1] = product(divided(axes[1], step.arguments["groups"], known.meets(step))[::-1])
    return [axes]


def _unshuffled(known: Follower, step: Step) -> Results:
    """Pixels become channels: each channel becomes several neighbouring ones."""
    axes, shape = known.axes(step.arguments["self"]), known.shape(step)
    factor = step.arguments["downscale_factor"]
    spread = product([axes[-3], fixed(factor * factor)])
    return [[*axes[:-3], spread, fixed(shape[-2]), fixed(shape[-1])]]


def _unfolded(known: Follower, step: Step) -> Results:
    """Windows of an image as rows: ``[N, C · window, positions]``."""
    axes, shape = known.axes(step.arguments["self"]), known.shape(step)
    window = shape[-2] // axes[-3].size
    return [[*axes[:-3], product([axes[-3], fixed(window)]), fixed(shape[-1])]]


def _restrided(known: Follower, step: Step) -> Results:
    """Other strides, which can be followed only where the shape stays the same."""
    axes = known.axes(step.arguments["self"])
    return [axes] if tuple(axis.size for axis in axes) == known.shape(step) else None


RULES: dict[str, Rule] = {
    "as_strided": _restrided,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), _reshaped),
    **dict.fromkeys(("transpose", "t", "permute"), _transposed),
    **dict.fromkeys(("slice",), _sliced),
    **dict.fromkeys(("select", "unbind"), _selected),
    **dict.fromkeys(
        ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split
    ),
    "expand": _expanded,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "repeat": _repeated,
    "cat": _concatenated,
    "stack": _stacked,
    "constant_pad_nd": _padded,
    "index": _indexed,
    "index_select": _looked_up,
    "pixel_shuffle": _shuffled,
    "pixel_unshuffle": _unshuffled,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), _channel_shuffled),
    "im2col": _unfolded,
}
