"""Translates a network for the kernels: to a chain of convolution, activation and pooling."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional

from trueoracle.errors import first_line
from trueoracle.native.library import Block
from trueoracle.networks.operations import in_both_modes
from trueoracle.networks.tracing import why_not_traced

__all__ = ["CannotLowerError", "Lowered", "lower", "lower_chain"]

MOST_BLOCKS = 128
_ACTIVATIONS = (
    *("identity", "relu", "leaky_relu", "clamp", "elu", "sigmoid", "tanh", "silu", "gelu"),
)
_POOLS = ("none", "max", "average")
# The slope of these activations follows from their output, and the largest input gives the largest
# output: they may be computed after max-pooling, on fewer numbers.
_MONOTONE = ("identity", "relu", "leaky_relu", "clamp", "elu", "sigmoid", "tanh")
_LONGEST_WINDOW = 2**15 - 1  # the kernels note the place in a window in 16 bits


class CannotLowerError(Exception):
    """Why the kernels cannot run a network, in a few words."""


@dataclass
class Lowered:
    """A network as the kernels see it.

    ``parameters`` names the tensors in the order in which their numbers stand in the kernels'
    vector, which has ``weights`` numbers; ``outputs`` is the number of the network's outputs.
    """

    blocks: list[Block]
    parameters: list[str] = field(default_factory=list)
    weights: int = 0
    outputs: int = 0


def lower(network: nn.Module, shape: Sequence[int]) -> Lowered:
    """Lower ``network`` for images ``[C, H, W]`` (or ``[features]``).

    Raises :class:`CannotLowerError` for anything but a chain of convolution, linear, pointwise
    activation, pooling and flatten layers whose parameters are all trained.
    """
    chain = _chain(network)
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    if frozen:
        raise CannotLowerError(f"{frozen[0]} does not train")
    lowered = lower_chain(chain, shape)
    odd = [
        name or "the network"
        for name, module in network.named_modules()
        if any(vars(module).get(hooks) for hooks in _HOOKS) or "forward" in vars(module)
    ]
    if odd:
        raise CannotLowerError(f"{odd[0]} has hooks, or a forward of its own")
    owned = {name for name, _ in network.named_parameters()}
    if owned != set(lowered.parameters) or len(owned) != len(lowered.parameters):
        raise CannotLowerError("it has parameters that are not read exactly once")
    return lowered


def lower_chain(chain: Sequence[tuple[str, nn.Module]], shape: Sequence[int]) -> Lowered:
    """Lower named modules that are applied one after the other."""
    try:
        return _lower_chain(chain, shape)
    except (TypeError, ValueError, IndexError) as error:  # odd arguments that PyTorch takes
        raise CannotLowerError(f"a layer has unusual arguments: {first_line(error)}") from error


def _lower_chain(chain: Sequence[tuple[str, nn.Module]], shape: Sequence[int]) -> Lowered:
    sizes = [*shape, 1, 1] if len(shape) == 1 else list(shape)
    if len(sizes) != 3:
        raise CannotLowerError(f"its images are {list(shape)}, not [C, H, W]")
    is_flat = len(shape) == 1
    lowered = Lowered([])
    for name, module in chain:
        if isinstance(module, nn.Dropout | nn.Dropout2d) and module.p == 0:
            continue
        if isinstance(module, nn.Identity):
            continue
        if isinstance(module, nn.Flatten):
            if module.start_dim != 1 or module.end_dim not in (-1, 3):
                raise CannotLowerError(f"{name} flattens other axes than all but the first")
            sizes, is_flat = [math.prod(sizes), 1, 1], True
        elif isinstance(module, nn.Unflatten):
            if module.dim != 1 or len(module.unflattened_size) != 3 or not is_flat:
                raise CannotLowerError(f"{name} unflattens to other than [C, H, W]")
            sizes, is_flat = [int(size) for size in module.unflattened_size], False
        elif type(module) in (nn.Conv2d, nn.Linear):
            if isinstance(module, nn.Linear) and not is_flat:
                raise CannotLowerError(f"{name} is linear over images that are not flattened")
            pads = isinstance(module, nn.Conv2d) and module.padding not in (0, (0, 0))
            if pads and lowered.blocks and _output(lowered.blocks[-1]) != sizes:
                lowered.blocks.append(_begin(sizes))  # borders need the image in its new shape
            block = _begin(sizes)
            _weighted(name, cast(nn.Conv2d | nn.Linear, module), block, lowered)
            lowered.blocks.append(block)
            sizes = _output(block)
        elif activation := _activation(module):
            _activate(activation, sizes, lowered)
        else:
            sizes = _pool(name, module, sizes, lowered)
    if not lowered.blocks or len(lowered.blocks) > MOST_BLOCKS:
        raise CannotLowerError(f"it has {len(lowered.blocks)} layers, not 1 to {MOST_BLOCKS}")
    if not is_flat:
        raise CannotLowerError("its answer is not flat")
    for block in lowered.blocks:
        _decide(block)
    lowered.outputs = math.prod(sizes)
    return lowered


def _begin(sizes: Sequence[int]) -> Block:
    """A block that passes images ``[C, H, W]`` on unchanged."""
    channels, height, width = sizes
    return Block(
        **dict.fromkeys(("stride_h", "stride_w", "dilation_h", "dilation_w", "KH", "KW"), 1),
        **dict.fromkeys(("pool_h", "pool_w", "pool_stride_h", "pool_stride_w"), 1),
        **{"C": channels, "H": height, "W": width, "F": channels},
        **{"OH": height, "OW": width, "PH": height, "PW": width},
    )


def _weighted(name: str, module: nn.Conv2d | nn.Linear, block: Block, lowered: Lowered) -> None:
    block.has_conv = 1
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            raise CannotLowerError(f"{name} is a grouped convolution")
        if module.padding_mode != "zeros" or isinstance(module.padding, str):
            raise CannotLowerError(f"{name} pads by {module.padding_mode} {module.padding}")
        block.KH, block.KW = module.kernel_size
        block.stride_h, block.stride_w = module.stride
        block.pad_h, block.pad_w = module.padding
        block.dilation_h, block.dilation_w = module.dilation
        for axis, size in (("H", block.H), ("W", block.W)):
            lower_axis = axis.lower()
            reach = getattr(block, f"dilation_{lower_axis}") * (getattr(block, f"K{axis}") - 1) + 1
            padded = size + 2 * getattr(block, f"pad_{lower_axis}")
            steps = (padded - reach) // getattr(block, f"stride_{lower_axis}") + 1
            if steps < 1:
                raise CannotLowerError(f"{name} is larger than its image")
            setattr(block, f"O{axis}", steps)
        block.F = module.out_channels
    else:
        block.F = module.out_features
    if math.prod(module.weight.shape) != block.F * block.C * block.KH * block.KW:
        raise CannotLowerError(f"{name} does not fit {block.C} channels")
    block.PH, block.PW = block.OH, block.OW
    _whole_image_as_channels(block)
    block.weight_at = lowered.weights
    lowered.weights += module.weight.numel()
    lowered.parameters.append(f"{name}.weight")
    if module.bias is not None:
        block.has_bias, block.bias_at = 1, lowered.weights
        lowered.weights += module.bias.numel()
        lowered.parameters.append(f"{name}.bias")


def _whole_image_as_channels(block: Block) -> None:
    """Turn a kernel as large as its image into a linear layer: one long loop, not three short."""
    if (block.KH, block.KW) == (block.H, block.W) and not block.pad_h and not block.pad_w:
        block.C, block.H, block.W = block.C * block.H * block.W, 1, 1
        block.KH = block.KW = block.dilation_h = block.dilation_w = 1
        block.stride_h = block.stride_w = 1


def _output(block: Block) -> list[int]:
    return [block.F, block.PH, block.PW]


def _activate(activation: tuple[str, float, float], sizes: Sequence[int], lowered: Lowered) -> None:
    """Add an activation to the last block, or to a new one where it has one or has pooled."""
    if not lowered.blocks or lowered.blocks[-1].activation or lowered.blocks[-1].pool:
        lowered.blocks.append(_begin(sizes))
    kind, alpha, beta = activation
    last = lowered.blocks[-1]
    last.activation, last.alpha, last.beta = _ACTIVATIONS.index(kind), alpha, beta


def _pool(name: str, module: nn.Module, sizes: Sequence[int], lowered: Lowered) -> list[int]:
    """Add pooling to the last block, or to a new one; returns the new ``[C, H, W]``."""
    kind, size, stride, padding, counts = _pooling(name, module, sizes)
    if size[0] * size[1] > _LONGEST_WINDOW:
        raise CannotLowerError(f"{name} pools {size[0]}x{size[1]} values")
    # In images that were reshaped after the last block, pixels have other neighbours than before.
    joins = lowered.blocks and _output(lowered.blocks[-1]) == sizes and not lowered.blocks[-1].pool
    if not joins:
        lowered.blocks.append(_begin(sizes))
    block = lowered.blocks[-1]
    block.pool = _POOLS.index(kind)
    block.pool_h, block.pool_w = size
    block.pool_stride_h, block.pool_stride_w = stride
    block.pool_pad_h, block.pool_pad_w = padding
    block.counts_padding = counts
    block.PH = (block.OH + 2 * padding[0] - size[0]) // stride[0] + 1
    block.PW = (block.OW + 2 * padding[1] - size[1]) // stride[1] + 1
    if block.PH < 1 or block.PW < 1:
        raise CannotLowerError(f"{name} is larger than its image")
    return _output(block)


def _decide(block: Block) -> None:
    """Decide what the backward pass needs kept, and whether pooling may come first."""
    kind, pool = _ACTIVATIONS[block.activation], _POOLS[block.pool]
    monotone = kind in _MONOTONE
    block.pools_first = int(pool == "max" and monotone)
    needed = kind != "identity" if pool == "average" else not monotone
    block.keeps_before = int(needed)


def _activation(module: nn.Module) -> tuple[str, float, float] | None:
    match module:
        case nn.ReLU6() | nn.Hardtanh():
            return "clamp", float(module.min_val), float(module.max_val)
        case nn.ReLU():
            return "relu", 0.0, 0.0
        case nn.LeakyReLU() if module.negative_slope >= 0:
            return "leaky_relu", float(module.negative_slope), 0.0
        case nn.ELU() if module.alpha > 0:
            return "elu", float(module.alpha), 0.0
        case nn.Sigmoid():
            return "sigmoid", 0.0, 0.0
        case nn.Tanh():
            return "tanh", 0.0, 0.0
        case nn.SiLU():
            return "silu", 0.0, 0.0
        case nn.GELU() if module.approximate == "none":
            return "gelu", 0.0, 0.0
    return None


def _pooling(
    name: str, given: nn.Module, sizes: Sequence[int]
) -> tuple[str, tuple[int, int], tuple[int, int], tuple[int, int], int]:
    """Kind, window, stride, padding, and whether an average counts the padding."""
    _, height, width = sizes
    module: Any = given
    if type(module) in (nn.MaxPool2d, nn.AvgPool2d) and not module.ceil_mode:
        size, padding = _two(module.kernel_size), _two(module.padding)
        stride = _two(module.stride)
        if isinstance(module, nn.MaxPool2d):
            if _two(module.dilation) == (1, 1) and not module.return_indices:
                return "max", size, stride, padding, 0
        elif module.divisor_override is None:
            return "average", size, stride, padding, int(module.count_include_pad)
    if type(module) in (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d):
        wanted: Any = module.output_size
        rows, columns = (wanted, wanted) if isinstance(wanted, int) else wanted or (None, None)
        rows, columns = rows or height, columns or width  # None: the size stays
        if not (height % rows or width % columns or getattr(module, "return_indices", False)):
            window = (height // rows, width // columns)
            kind = "average" if isinstance(module, nn.AdaptiveAvgPool2d) else "max"
            return kind, window, window, (0, 0), 0
    raise CannotLowerError(f"{name} is a {type(module).__name__}")


def _two(value: Any) -> tuple[int, int]:
    sizes = [value] if isinstance(value, int) else list(value)
    first, second = sizes * 2 if len(sizes) == 1 else sizes
    return int(first), int(second)


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _flatten(start_dim: int = 0, end_dim: int = -1) -> nn.Module:
    return nn.Flatten(start_dim, end_dim)  # by default the module itself keeps the first axis


# Functions called in a forward pass, each with the module that does the same.
_CALLS: dict[Any, Callable[..., nn.Module]] = {
    **dict.fromkeys((torch.relu, functional.relu, functional.relu_), nn.ReLU),
    **dict.fromkeys((torch.tanh, functional.tanh), nn.Tanh),
    **dict.fromkeys((torch.sigmoid, functional.sigmoid), nn.Sigmoid),
    torch.flatten: _flatten,
    **dict.fromkeys((functional.max_pool2d, torch.max_pool2d), nn.MaxPool2d),
    functional.avg_pool2d: nn.AvgPool2d,
    functional.silu: nn.SiLU,
    functional.gelu: nn.GELU,
    functional.leaky_relu: nn.LeakyReLU,
    functional.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
}
_METHODS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "flatten": _flatten,
}


def _chain(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that a network applies one after the other, by name."""
    try:
        graphs = [traced.graph for traced in in_both_modes(network)]
    except Exception as error:  # the user's forward runs: anything can come out
        raise CannotLowerError(f"it cannot be traced{why_not_traced(error)}") from error
    steps = [
        [(n.op, n.target, str(n.args), str(n.kwargs)) for n in graph.nodes] for graph in graphs
    ]
    if steps[0] != steps[1]:
        raise CannotLowerError("it does other things in training than in evaluation mode")
    return list(_links(network, graphs[0]))


def _links(network: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, nn.Module]]:
    previous: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder":
            if previous is None:
                previous = node
            continue
        if node.op == "output":
            if node.args[0] is not previous:
                raise CannotLowerError("it is no chain of layers")
            return
        if node.all_input_nodes != [previous] or node.args[:1] != (previous,):
            raise CannotLowerError(f"it is no chain of layers at {node.name}")
        previous = node
        yield str(node.target if node.op == "call_module" else node.name), _module(network, node)


def _module(network: nn.Module, node: fx.Node) -> nn.Module:
    if node.op == "call_module":
        return network.get_submodule(str(node.target))
    makers: dict[Any, Callable[..., nn.Module]] = {**_CALLS, **_METHODS}
    options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if node.op not in ("call_function", "call_method") or node.target not in makers:
        raise CannotLowerError(f"it calls {node.name}")
    try:
        return makers[node.target](*node.args[1:], **options)
    except Exception as error:  # options that the module does not know
        raise CannotLowerError(f"it calls {node.name}: {first_line(error)}") from error
