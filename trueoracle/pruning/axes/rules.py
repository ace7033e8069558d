"""What becomes of axes in ATen's operations, by their names.

An operation without a rule locks all axes of its inputs, and its name is the reason.
"""

from __future__ import annotations

from trueoracle.networks.graph import Ref, Step
from trueoracle.pruning.axes import recurrent, views
from trueoracle.pruning.axes.atoms import Atom, Axis, fixed, lock
from trueoracle.pruning.axes.following import Follower, Rule
from trueoracle.pruning.axes.meeting import divided, parts, product, united

__all__ = ["rule_of"]

Results = list[list[Axis]] | None


def rule_of(step: Step) -> Rule | None:
    """The rule for an operation, or None."""
    if step.is_opaque:
        return recurrent.RULES.get(step.name)
    name = step.name
    if name in _RULES:
        return _RULES[name]
    if name.endswith("_") and name.rstrip("_") in _RULES:
        return _RULES[name.rstrip("_")]
    if not step.tensors:
        return _created
    return _pointwise if step.is_pointwise else None


def _pointwise(known: Follower, step: Step) -> Results:
    return [known.meet(step.tensors, known.shape(step), known.meets(step))]


def _same(known: Follower, step: Step) -> Results:
    return [known.axes(step.tensors[0])]


def _filled(known: Follower, step: Step) -> Results:
    """One value everywhere, or no value yet, so the axes take the size of whatever they meet."""
    return [[Axis(((Atom(size),),)) for size in known.shape(step)]]


def _created(known: Follower, step: Step) -> Results:
    """Numbers that the network's forward creates, such as positions or noise."""
    return [[fixed(size) for size in known.shape(step)]]


def _like(known: Follower, step: Step) -> Results:
    return [[Axis(axis.segments) for axis in known.axes(step.tensors[0])]]


def _copied(known: Follower, step: Step) -> Results:
    """One tensor is written into another, or into a part of it."""
    into, given = step.arguments["self"], step.arguments["src"]
    known.meet([into, given], known.shape(step), known.meets(step))
    return [known.axes(into)]


# Layers


def _convolution(known: Follower, step: Step) -> Results:
    given, weight = step.arguments["input"], step.arguments["weight"]
    axes, own = known.axes(given), known.axes(weight)
    if step.arguments["groups"] > 1:
        result = _grouped(known, step)
    else:
        reads, puts_out = (0, 1) if step.arguments["transposed"] else (1, 0)
        known.sum_over(step, (given, 1), (weight, reads))
        result = own[puts_out]
    bias = step.arguments["bias"]
    if bias is not None:
        united(result, known.axes(bias)[0], known.meets(step))
    spatial = [fixed(size) for size in known.shape(step)[2:]]
    return [[axes[0], Axis(result.segments), *spatial]]


def _grouped(known: Follower, step: Step) -> Axis:
    """The output channels of a grouped convolution: convolution group · position in the group.

    A convolution group is removed whole, with its inputs and its outputs, like a channel of a norm.
    A position is removed from all convolution groups at once, so that they stay equal. A position
    among the inputs belongs to the output of the layer before, a position among the outputs to the
    output of this layer.
    """
    given, weight, bias = (step.arguments[name] for name in ("input", "weight", "bias"))
    count, is_transposed = step.arguments["groups"], step.arguments["transposed"]
    channels, own, meets = known.axes(given)[1], known.axes(weight), known.meets(step)
    groups = divided(channels, count, meets)[0]
    known.sizes.append((f"{step.module}.groups", groups))
    for ref in (weight, bias):
        if ref is not None and (origin := known.axes(ref)[0].origin) is not None:
            known.carried[origin] = groups
    if is_transposed:
        result = product([groups, own[1]])
        united(channels, own[0], meets)
    else:
        result = own[0]
        united(groups, divided(result, count, meets)[0], meets)
    if channels.size > count:
        known.sum_over(
            step,
            (given, 1),
            (weight, 0 if is_transposed else 1),
            within=1 if is_transposed else count,
        )
    elif result.size > count:
        known.puts_out(own[1] if is_transposed else own[0])
    return result


def _product(first: str, second: str, bias: str = "") -> Rule:
    """A product of matrices or of batches of them."""

    def rule(known: Follower, step: Step) -> Results:
        a, b = step.arguments[first], step.arguments[second]
        mine, theirs = known.axes(a), known.axes(b)
        known.sum_over(step, (a, len(mine) - 1), (b, max(len(theirs) - 2, 0)))
        stack = [united(x, y, known.meets(step)) for x, y in zip(mine[:-2], theirs[:-2])]  # noqa: B905
        result = [*stack, *mine[max(len(mine) - 2, 0) : -1], *theirs[-1:][: len(theirs) - 1]]
        result = [Axis(axis.segments) for axis in result]
        if bias:
            return [_biased(known, step, result, step.arguments[bias])]
        return [result]

    return rule


def _biased(known: Follower, step: Step, result: list[Axis], bias: Ref) -> list[Axis]:
    """A bias, which may be broadcast, is added to a result."""
    own = known.axes(bias)
    for position, axis in enumerate(own, start=len(result) - len(own)):
        if axis.size == result[position].size:
            united(result[position], axis, known.meets(step))
    return result


def _scattered(known: Follower, step: Step) -> Results:
    """Rows of one tensor replace rows of another, as image tokens take places among words."""
    axes, source = known.axes(step.arguments["self"]), known.axes(step.arguments["source"])
    if not axes or not source or axes[-1].size != source[-1].size:
        return None
    for axis in (*axes[:-1], *source[:-1]):
        lock(axis, known.meets(step))
    width = united(axes[-1], source[-1], known.meets(step))
    return [[*axes[:-1], Axis(width.segments)]]


def _of_experts(known: Follower, step: Step) -> Results:
    """Rows sorted by expert, each multiplied by the matrix of its expert."""
    a, b = step.arguments["self"], step.arguments["mat2"]
    rows, own = known.axes(a), known.axes(b)
    if (len(rows), len(own)) != (2, 3):
        return None
    lock(own[0], "a router chooses among its experts")
    if own[0].origin is not None:
        known.experts.append(own[0].origin[0])
    known.sum_over(step, (a, 1), (b, 1))
    return [[rows[0], Axis(own[2].segments)]]


def _embedding(known: Follower, step: Step) -> Results:
    weight, indices = step.arguments["weight"], step.arguments["indices"]
    rows, width = known.axes(weight)
    lock(rows, "its entries are looked up by their numbers")
    known.puts_out(width)
    return [[*known.axes(indices), Axis(width.segments)]]


def _batch_norm(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["input"])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if (value := step.arguments.get(name)) is not None:
            united(axes[1], known.axes(value)[0], known.meets(step))
    known.normed.append((step.module, axes[1]))
    return [axes]


def _layer_norm(known: Follower, step: Step) -> Results:
    axes = known.axes(step.arguments["input"])
    normed = axes[-len(step.arguments["normalized_shape"]) :]
    if len(normed) > 1 or not known.is_normed():
        for axis in normed:
            lock(axis, f"{known.meets(step)}, which norms over its channels")
    for name in ("weight", "bias"):
        if (value := step.arguments[name]) is not None:
            for mine, theirs in zip(axes[::-1], known.axes(value)[::-1], strict=False):
                united(mine, theirs, known.meets(step))
    known.normed.append((step.module, axes[-1]))
    return [axes]


# Operations along axes


def _over(known: Follower, step: Step) -> Results:
    """A reduction over some axes."""
    axes = known.axes(step.tensors[0])
    dims = next((step.arguments[n] for n in ("dim", "axis") if n in step.arguments), None)
    listed = [dims] if isinstance(dims, int) else dims
    gone = {dim % len(axes) for dim in listed} if listed else set(range(len(axes)))
    if len(gone) > 1 or not step.arguments.get("keepdim", False) or not known.is_normed():
        for dim in gone:
            lock(axes[dim], known.meets(step))
    kept = [Axis(axis.segments) for axis in axes]
    if step.arguments.get("keepdim", False):
        result = [fixed(1) if dim in gone else axis for dim, axis in enumerate(kept)]
    else:
        result = [axis for dim, axis in enumerate(kept) if dim not in gone]
    return [result] * len(step.results)


def _along(known: Follower, step: Step) -> Results:
    """An operation that mixes the indices along some axes, and not along the others."""
    axes = known.axes(step.tensors[0])
    dims = next((step.arguments[n] for n in ("dim", "dims", "axis") if n in step.arguments), None)
    listed = [dims] if isinstance(dims, int) else dims
    mixed = {dim % len(axes) for dim in listed} if listed else set(range(len(axes)))
    for dim in mixed:
        lock(axes[dim], known.meets(step))
    shape = known.shape(step)
    result = [
        fixed(shape[dim]) if dim in mixed else Axis(axis.segments) for dim, axis in enumerate(axes)
    ]
    return [result] * len(step.results)


def _windows(trailing: int) -> Rule:
    """Pooling, resizing or padding over the last axes."""

    def rule(known: Follower, step: Step) -> Results:
        axes = known.axes(step.tensors[0])
        shape = known.shape(step)
        for axis in axes[-trailing:]:
            lock(axis, known.meets(step))
        result = [*axes[:-trailing], *map(fixed, shape[-trailing:])]
        return [[Axis(axis.segments) for axis in result]] * len(step.results)

    return rule


def _gated(known: Follower, step: Step) -> Results:
    """The first half of an axis, gated by the second."""
    axes = known.axes(step.arguments["self"])
    dim = step.arguments["dim"] % len(axes)
    halves = parts(axes[dim], 2, known.meets(step))
    if halves is None:
        return None
    axes[dim] = halves[0]
    return [axes]


_FILLS = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "empty", "new_empty")
_ALIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
_POINTWISE = (
    *("hardswish", "_prelu_kernel", "masked_fill", "log_sigmoid_forward", "native_dropout"),
    *("bernoulli", "fill", "zero", "rrelu_with_noise", "lerp", "tril", "triu", "normal", "uniform"),
    *("_conj", "fmod", "remainder", "where", "logical_and", "nan_to_num", "threshold", "relu6"),
)
_REDUCTIONS = (
    *("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "prod", "logsumexp"),
    *("argmax", "argmin", "any", "all", "max", "min", "median", "norm", "linalg_vector_norm"),
)
_ALONG = (
    *("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "cumprod", "flip", "roll", "sort"),
    "topk",
)
_WINDOWS = {
    **dict.fromkeys(("_adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d"), 2),
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool2d", "mkldnn_max_pool2d"), 2),
    **dict.fromkeys(("_adaptive_avg_pool3d", "adaptive_max_pool3d", "avg_pool3d"), 3),
    **dict.fromkeys(("max_pool3d_with_indices", "max_pool3d", "mkldnn_max_pool3d"), 3),
    **dict.fromkeys(("upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d"), 1),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), 2),
    **dict.fromkeys(("_upsample_nearest_exact2d", "_upsample_bilinear2d_aa"), 2),
    **dict.fromkeys(("_upsample_bicubic2d_aa", "grid_sampler_2d"), 2),
    **dict.fromkeys(("upsample_nearest3d", "upsample_trilinear3d"), 3),
    **{
        f"{kind}_pad{n}d": n
        for kind in ("reflection", "replication", "circular")
        for n in (1, 2, 3)
    },
    **{f"fractional_max_pool{n}d": n for n in (2, 3)},
    "avg_pool1d": 1,
    "adaptive_avg_pool1d": 1,
    "adaptive_max_pool1d": 1,
    "max_pool1d": 1,
}
_RULES: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, _pointwise),
    **dict.fromkeys(("clone", "detach", "alias", "lift_fresh", "_to_copy", "contiguous"), _same),
    **dict.fromkeys(_FILLS, _filled),
    **dict.fromkeys(_ALIKE, _like),
    **dict.fromkeys(_REDUCTIONS, _over),
    **dict.fromkeys(_ALONG, _along),
    **{name: _windows(trailing) for name, trailing in _WINDOWS.items()},
    **views.RULES,
    "_pack_padded_sequence": recurrent.RULES["_pack_padded_sequence"],
    "copy": _copied,
    "convolution": _convolution,
    "mm": _product("self", "mat2"),
    "mv": _product("self", "vec"),
    "dot": _product("self", "tensor"),
    "bmm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2", "self"),
    "addmv": _product("mat", "vec", "self"),
    "baddbmm": _product("batch1", "batch2", "self"),
    **dict.fromkeys(("_grouped_mm", "transformers.grouped_mm_fallback"), _of_experts),
    "masked_scatter": _scattered,
    "embedding": _embedding,
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_batch_norm_with_update": _batch_norm,
    "_batch_norm_no_update": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "miopen_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "glu": _gated,
}
