"""Networks of equal shapes, computed as one: every value has an axis of members, ``[P, N, ...]``.

A network is traced, and its operations are then run on the values of all members together. A value
that does not depend on any weight, such as images that all members share, stays ``[N, ...]`` and is
computed once. Layers with weights have rules; all else goes through ``torch.func.vmap``.

On a CPU, convolutions are computed for one member after the other: grouped convolutions and batched
products of patches are slower there, and a choice by measured time would let two runs of one study
differ in their rounding. On CUDA each layer's paths are timed once and the fastest is taken;
figures for CUDA are still to be measured.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional
from torch.utils import _pytree as pytree

from trueoracle.networks.copying import copied
from trueoracle.networks.operations import Step, filled_in, in_both_modes, program
from trueoracle.tasks.base import unwrap

__all__ = ["Convolution", "Each", "Input", "Stacked", "tensors", "wait_for"]

ConvPath = Literal["members", "grouped", "columns"]
Convolution = ConvPath | Literal["measured"]
"""How convolutions are computed: by one path, or by whichever measures fastest."""
State = Mapping[str, Tensor]
"""A module's parameters and buffers, ``[P, ...]`` each."""


@dataclass(frozen=True)
class Each:
    """A value that differs between members: ``[P, ...]``, where the network sees ``[...]``."""

    tensor: Tensor


Input = Tensor | Each
"""A layer's input: the same for all members, or each member's own."""


class Stacked:
    """The stacked weights of P networks, and their forward pass as one.

    ``state`` holds every parameter and buffer, ``[P, ...]``, under its names in a network; a
    parameter that a network uses under two names is one tensor. With ``common_draws``, random
    operations draw the same for all members. ``inputs`` are the names of the network's inputs,
    where they are given by name.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        device: torch.device,
        convolution: Convolution | None,
        *,
        common_draws: bool,
        inputs: Sequence[str] = (),
    ) -> None:
        self.count = len(networks)
        self.state = _stack(networks, device)
        default: Convolution = "members" if device.type == "cpu" else "measured"
        self.convolution = convolution or default
        self._device = device
        self._randomness = "same" if common_draws else "different"
        # Attributes that are neither parameters nor buffers are taken from the first network.
        self._network = copied(networks[0]).to(device).eval()
        self._modules = dict(self._network.named_modules())
        # Traced twice: networks may do other things in training than in evaluation mode.
        self._programs = dict(
            zip((True, False), map(program, in_both_modes(self._network, inputs)), strict=True)
        )
        steps = [step for program in self._programs.values() for step in program]
        constants = {step.name for step in steps if step.kind == "get_attr"} - set(self.state)
        _check_common(networks, sorted(constants))

    def train(self, mode: bool) -> None:
        self._network.train(mode)

    def parameters(self) -> list[Tensor]:
        """The trainable parameters, each once."""
        return list(dict.fromkeys(value for value in self.state.values() if value.requires_grad))

    def __call__(self, given: Input | Mapping[str, Input]) -> Tensor:
        """Outputs ``[P, N, ...]`` for inputs ``[N, ...]``, or for each member's own inputs.

        Several inputs are given by the names of the network's arguments.
        """
        values: dict[int, Any] = {}
        for step in self._programs[self._network.training]:
            if isinstance(given, Mapping) and step.kind == "placeholder" and step.name in given:
                values[step.slot] = given[step.name]
            elif step.slot == 0 and not isinstance(given, Mapping):
                values[step.slot] = given
            else:
                values[step.slot] = self._run(step, values)
            for dead in step.dead:
                del values[dead]
        (answer,) = values.values()
        # A value that does not depend on the weights does not count as output.
        tensors = pytree.tree_map(lambda v: v.tensor if isinstance(v, Each) else None, answer)
        found: Tensor = unwrap(tensors)
        return found

    def _run(self, step: Step, values: Mapping[int, Any]) -> Any:
        args, kwargs = filled_in(step.args, values), filled_in(step.kwargs, values)
        if step.kind in ("output", "placeholder"):  # placeholders that are not given have defaults
            return args[0]
        if step.kind == "get_attr":
            return Each(self.state[step.name]) if step.name in self.state else step.constant
        if step.kind == "call_module":
            return self._call_module(step.name, args, kwargs)
        function = cast(Callable[..., Any], step.function)
        if function in _POOLINGS and _are_images(args[0]):
            return _folded(functools.partial(function, **kwargs), *args)
        return self._mapped(function, args, kwargs)

    def _call_module(self, name: str, args: Any, kwargs: Any) -> Any:
        module = self._modules[name]
        state = {n: self.state[f"{name}.{n}"] for n in tensors(module)}
        if not (kwargs or module._forward_hooks or module._forward_pre_hooks):
            if isinstance(module, _POOLING_MODULES) and _are_images(args[0]):
                return _folded(module, *args)
            rule = _RULES.get(type(module))
            result = rule(self, module, args[0], state) if rule else None
            if result is not None:
                return Each(result)
        if not state:
            return self._mapped(module, args, kwargs)
        each = {n: Each(value) for n, value in state.items()}
        return self._mapped(functools.partial(functional_call, module), (each, args, kwargs), {})

    def _mapped(self, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """``function`` mapped over the members where any argument differs between them."""
        leaves, structure = pytree.tree_flatten((args, kwargs))
        differ = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Each)]
        if not differ:
            return function(*args, **kwargs)
        found: list[tuple[list[bool], list[Any], pytree.TreeSpec]] = []

        def alone(*tensors: Tensor) -> tuple[Tensor, ...]:
            own = list(leaves)
            for i, tensor in zip(differ, tensors, strict=True):
                own[i] = tensor
            own_args, own_kwargs = pytree.tree_unflatten(own, structure)
            parts, its_structure = pytree.tree_flatten(function(*own_args, **own_kwargs))
            is_tensor = [isinstance(part, Tensor) for part in parts]
            # What is not a tensor, such as a size, is equal for all members.
            others = [None if is_it else part for part, is_it in zip(parts, is_tensor, strict=True)]
            found.append((is_tensor, others, its_structure))
            return tuple(part for part in parts if isinstance(part, Tensor))

        together = vmap(alone, randomness=self._randomness)(*(leaves[i].tensor for i in differ))
        tensors = iter(together)
        is_tensor, others, structure = found[0]
        values = [
            Each(next(tensors)) if is_it else other
            for is_it, other in zip(is_tensor, others, strict=True)
        ]
        return pytree.tree_unflatten(values, structure)


# Rules for layers with weights: (stacked, module, input, state) -> [P, N, ...], or None where
# the module has settings that the rule does not cover.


def _linear(stacked: Stacked, layer: nn.Linear, x: Input, state: State) -> Tensor | None:
    weight, bias = state["weight"], state.get("bias")
    if not isinstance(x, Each):
        y = functional.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return _split(y, -1, weight.shape[:2]).movedim(-2, 0)
    if x.tensor.ndim < 3:
        return None
    rows, columns = x.tensor.flatten(1, -2), weight.transpose(1, 2)
    y = torch.bmm(rows, columns) if bias is None else torch.baddbmm(bias[:, None], rows, columns)
    return _split(y, 1, x.tensor.shape[1:-1])


def _layer_norm(stacked: Stacked, norm: nn.LayerNorm, x: Input, state: State) -> Tensor | None:
    if not state:
        return None
    given = x.tensor if isinstance(x, Each) else x[None]
    y = functional.layer_norm(given, norm.normalized_shape, eps=norm.eps)
    between = [1] * (given.ndim - 1 - len(norm.normalized_shape))
    shape = (stacked.count, *between, *norm.normalized_shape)
    y = y * state["weight"].view(shape)
    return y + state["bias"].view(shape) if "bias" in state else y


def _batch_norm(
    stacked: Stacked, norm: nn.BatchNorm1d | nn.BatchNorm2d, x: Input, state: State
) -> Tensor | None:
    """One norm over all members' channels, since statistics are computed per channel."""
    if not state:
        return None
    given = _expanded(x, stacked.count)
    if stacked.convolution == "members" and given.ndim > 3:  # spares a copy of the images
        return _one_by_one(norm, Each(given), state)
    count, channels = given.shape[0], given.shape[2]
    running = [state[n] for n in ("running_mean", "running_var") if n in state]
    weight, bias = (state[n].flatten() if n in state else None for n in ("weight", "bias"))
    of_batch = norm.training or not running
    # With momentum 1 these become the batch's own statistics.
    fresh = [torch.zeros_like(value).flatten() for value in running]
    mean, var = (fresh if of_batch else [r.flatten() for r in running]) or (None, None)
    joined = given.transpose(0, 1).flatten(1, 2)
    y = functional.batch_norm(joined, mean, var, weight, bias, of_batch, 1.0, norm.eps)
    if norm.training and norm.track_running_stats and running:
        seen = state["num_batches_tracked"].add_(1)
        rate = 1 / seen if norm.momentum is None else torch.full_like(1 / seen, norm.momentum)
        for old, new in zip(running, fresh, strict=True):
            old.lerp_(new.view_as(old), rate[:, None].to(old.dtype))
    return _split(y, 1, (count, channels)).transpose(0, 1)


def _convolution(stacked: Stacked, layer: nn.Conv2d, x: Input, state: State) -> Tensor | None:
    if stacked.convolution == "members":
        return _one_by_one(layer, x, state)
    if layer.padding_mode != "zeros" or not _are_images(x):
        return None
    if layer.groups > 1:
        x = Each(_expanded(x, stacked.count))
    if isinstance(x, Each):
        return _convolved(stacked.convolution, layer, x, state)
    # The filters of all members, as if they were one member's.
    joined = {name: value.flatten(0, 1)[None] for name, value in state.items()}
    y = _convolved(stacked.convolution, layer, Each(x[None]), joined)[0]
    return _split(y, 1, (stacked.count, layer.out_channels)).transpose(0, 1)


def _convolved(how: Convolution, layer: nn.Conv2d, x: Each, state: State) -> Tensor:
    path = _fastest(layer, x, state) if how == "measured" else how
    return _CONV_PATHS[path](layer, x, state)


_RULES: dict[type[nn.Module], Callable[..., Tensor | None]] = {
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.Conv2d: _convolution,
}


def _one_by_one(module: nn.Module, x: Input, state: State) -> Tensor:
    """The module itself, one member after the other."""
    own = [dict(zip(state, values, strict=True)) for values in zip(*state.values(), strict=True)]
    inputs = x.tensor if isinstance(x, Each) else [x] * len(own)
    return torch.stack(
        [functional_call(module, s, (one,)) for one, s in zip(inputs, own, strict=True)]
    )


def _grouped(layer: nn.Conv2d, x: Each, state: State) -> Tensor:
    """One group per member, times the groups of the layer itself."""
    weight, bias = state["weight"], state.get("bias")
    count = len(weight)
    y = functional.conv2d(
        x.tensor.transpose(0, 1).flatten(1, 2),
        weight.flatten(0, 1),
        None if bias is None else bias.flatten(),
        layer.stride,
        cast(tuple[int, int], layer.padding),
        layer.dilation,
        count * layer.groups,
    )
    return _split(y, 1, (count, -1)).transpose(0, 1)


def _columns(layer: nn.Conv2d, x: Each, state: State) -> Tensor:
    """Patches as rows ``[P, N·H·W, C·k·k]``, times the filters of each member."""
    if not _has_columns(layer):
        return _grouped(layer, x, state)
    weight, bias = state["weight"].flatten(2).transpose(1, 2), state.get("bias")
    (down, right), (rows, columns) = cast(tuple[int, int], layer.padding), layer.kernel_size
    padded = functional.pad(x.tensor, (right, right, down, down))
    patches = padded.unfold(3, rows, layer.stride[0]).unfold(4, columns, layer.stride[1])
    count, images, _, height, width = patches.shape[:5]
    flat = patches.permute(0, 1, 3, 4, 2, 5, 6).reshape(count, images * height * width, -1)
    y = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias[:, None], flat, weight)
    return y.view(count, images, height, width, -1).permute(0, 1, 4, 2, 3)


def _has_columns(layer: nn.Conv2d) -> bool:
    numbers = isinstance(layer.padding, tuple)
    return numbers and layer.groups == 1 and set(layer.dilation) == {1}


_CONV_PATHS: dict[ConvPath, Callable[[nn.Conv2d, Each, State], Tensor]] = {
    "members": lambda layer, x, state: _one_by_one(layer, x, state),
    "grouped": _grouped,
    "columns": _columns,
}
_MEASURED: dict[tuple[object, ...], ConvPath] = {}


def _fastest(layer: nn.Conv2d, x: Each, state: State) -> ConvPath:
    """The path that is fastest for this input, forward and backward; timed once per shape."""
    given, device = x.tensor, x.tensor.device
    autocast = torch.is_autocast_enabled(device.type)
    key = (
        *(str(device), given.dtype, given.shape, given.stride(), given.requires_grad, autocast),
        *(repr(layer), state["weight"].shape, torch.is_grad_enabled()),
    )
    if key not in _MEASURED:
        if torch.compiler.is_compiling():
            return "grouped"
        _MEASURED[key] = min(_CONV_PATHS, key=lambda path: _seconds(path, layer, x, state))
    return _MEASURED[key]


def _seconds(path: ConvPath, layer: nn.Conv2d, x: Each, state: State) -> float:
    """The shortest of three runs on stand-ins of the same shapes."""
    if path == "columns" and not _has_columns(layer):
        return float("inf")
    given = torch.empty_like(x.tensor).fill_(0.5).requires_grad_(x.tensor.requires_grad)
    weights = {n: v.detach().clone().requires_grad_(v.requires_grad) for n, v in state.items()}
    seconds = []
    try:
        for _ in range(3):
            wait_for(given.device)
            start = time.perf_counter()
            y = _CONV_PATHS[path](layer, Each(given), weights)
            if y.requires_grad:
                y.sum().backward()
            wait_for(given.device)
            seconds.append(time.perf_counter() - start)
    except torch.OutOfMemoryError:
        return float("inf")
    return min(seconds)


def wait_for(device: torch.device) -> None:
    """Return once the device has finished all its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Pooling treats each image by itself: the members' images can form one larger batch, without a
# copy.
_POOLING_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_POOLINGS = {
    *(functional.max_pool2d, functional.avg_pool2d, torch.max_pool2d),
    *(functional.adaptive_avg_pool2d, functional.adaptive_max_pool2d),
}


def _are_images(x: object) -> bool:
    """Whether a value is ``[N, C, H, W]`` for each member."""
    return x.tensor.ndim == 5 if isinstance(x, Each) else isinstance(x, Tensor) and x.ndim == 4


def _folded(function: Callable[..., Any], x: Input, *more: Any) -> Any:
    """``function`` over the images of all members as one batch."""
    if not isinstance(x, Each):
        return function(x, *more)
    swap = x.tensor.stride(0) < x.tensor.stride(1)  # the order in memory
    given = x.tensor.transpose(0, 1) if swap else x.tensor

    def unfolded(y: Tensor) -> Each:
        whole = _split(y, 0, given.shape[:2])
        return Each(whole.transpose(0, 1) if swap else whole)

    return pytree.tree_map(unfolded, function(given.flatten(0, 1), *more))


def _split(y: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    result: Tensor = y.unflatten(axis, sizes)
    return result


def _expanded(x: Input, count: int) -> Tensor:
    return x.tensor if isinstance(x, Each) else x.expand(count, *x.shape)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under all their names."""
    named: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))


def _stack(networks: Sequence[nn.Module], device: torch.device) -> dict[str, Tensor]:
    """Every parameter and buffer of all networks, ``[P, ...]``; a shared one stays one tensor."""
    tables = [tensors(network) for network in networks]
    shapes = [{name: value.shape for name, value in table.items()} for table in tables]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("the networks of a population must have weights of equal names and shapes")
    stacked: dict[int, Tensor] = {}
    for name, value in tables[0].items():
        if id(value) not in stacked:
            whole = torch.stack([table[name].detach() for table in tables]).to(device)
            trained = isinstance(value, nn.Parameter)
            stacked[id(value)] = nn.Parameter(whole, value.requires_grad) if trained else whole
    return {name: stacked[id(value)] for name, value in tables[0].items()}


def _check_common(networks: Sequence[nn.Module], names: Sequence[str]) -> None:
    """Raise ``ValueError`` where the networks differ in a tensor that is no parameter or buffer."""
    for name in names:
        owner, _, own_name = name.rpartition(".")
        values = [getattr(n.get_submodule(owner), own_name, None) for n in networks]
        for value in values[1:]:
            first = values[0]
            if isinstance(value, Tensor) and not torch.equal(value, cast(Tensor, first)):
                raise ValueError(f"{name} differs between networks, and is no parameter or buffer")
