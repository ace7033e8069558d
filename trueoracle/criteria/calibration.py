"""Statistics of layers' inputs over a calibration set, as criteria need them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.data.splits import AnySplit
from trueoracle.errors import NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.pruning.stacks import stream_of_layer
from trueoracle.pruning.unstructured import has_outputs_last
from trueoracle.tasks.base import Batch, Task
from trueoracle.training.evaluate import evaluation_batch

__all__ = ["as_matrices", "from_matrices", "input_statistics", "real_positions", "watch"]

Seen = Callable[[str, Tensor, Tensor | None, Batch], None]
"""Called for each call of a module with its name, its input, its (first) output, and the batch."""


def watch(dense: nn.Module, names: Iterable[str], split: AnySplit, task: Task, see: Seen) -> None:
    """Run the dense network over a split in evaluation mode, with ``see`` for each module call.

    ``names`` are the modules to watch. A module's input is the first tensor that it is given.
    """
    network = copied(dense).eval()
    batch: Batch = {}

    def hook(name: str) -> Callable[..., None]:
        def seen(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            see(name, stream_of_layer(args, kwargs), first, batch)

        return seen

    for name in names:
        network.get_submodule(name).register_forward_hook(hook(name), with_kwargs=True)
    with torch.no_grad():
        for fields in split.batches(evaluation_batch(split)):
            batch = fields
            task.forward(network, batch)


def real_positions(given: Tensor, batch: Batch) -> Tensor | None:
    """Which positions ``[N, T]`` of tokens ``[N, T, …]`` are not padding; None: all of them."""
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != given.shape[:2] or given.ndim < 3:
        return None
    return mask.bool()


def input_statistics(
    dense: nn.Module,
    names: Iterable[str],
    split: AnySplit,
    task: Task,
    statistic: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """A statistic of the rows that each layer's weight multiplies, summed over a split, by layer.

    The layers are linear ones, transformers' ``Conv1D``, and convolutions over one or two axes,
    whose rows are the patches under the kernel. ``statistic`` takes rows ``[G, n, inputs]`` in
    double precision, where G is the number of a convolution's groups (else 1), and returns numbers
    ``[G, …]``. Padding of tokens is left out. Raises :class:`NotApplicableError` for another kind
    of layer, and for a layer whose inputs are not finite.
    """
    layers: Mapping[str, nn.Module] = {name: dense.get_submodule(name) for name in names}
    found: dict[str, Tensor] = {}

    def see(name: str, given: Tensor, _: Tensor | None, batch: Batch) -> None:
        real = real_positions(given, batch)
        rows = _rows(layers[name], name, given if real is None else given[real]).double()
        if not rows.isfinite().all():
            raise NotApplicableError(f"what {name} reads is not finite on the calibration examples")
        value = statistic(rows)
        found[name] = found[name] + value if name in found else value

    for name, layer in layers.items():
        _check(layer, name)
    watch(dense, layers, split, task, see)
    if unused := [name for name in layers if name not in found]:
        raise NotApplicableError(f"{unused[0]} reads nothing on the calibration examples")
    return found


def _check(layer: nn.Module, name: str) -> None:
    known = isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) or has_outputs_last(layer)
    if not known:
        raise NotApplicableError(
            f"{name} is a {type(layer).__name__}: linear layers and convolutions over one or two "
            "axes multiply what they read by a matrix"
        )


def _rows(layer: nn.Module, name: str, given: Tensor) -> Tensor:
    """The rows ``[G, n, inputs]`` that the layer's weight multiplies."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return given.reshape(1, -1, given.shape[-1])
    size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    around = layer._reversed_padding_repeated_twice
    given = functional.pad(given, around, mode=mode)
    if isinstance(layer, nn.Conv1d):
        given = given[:, :, None]
        size, stride, dilation = (1, *size), (1, *stride), (1, *dilation)
    patches: Tensor = functional.unfold(given, size, dilation=dilation, stride=stride)
    rows: Tensor = patches.transpose(1, 2).flatten(0, 1).unflatten(1, (layer.groups, -1))
    return rows.transpose(0, 1)


def as_matrices(layer: nn.Module, weight: Tensor) -> Tensor:
    """A layer's weight as ``[G, outputs, inputs]``, to go with rows of :func:`input_statistics`."""
    if has_outputs_last(layer):
        return weight.T[None]
    groups = layer.groups if isinstance(layer, nn.Conv1d | nn.Conv2d) else 1
    matrices: Tensor = weight.flatten(1).unflatten(0, (groups, -1))
    return matrices


def from_matrices(layer: nn.Module, values: Tensor, shape: torch.Size) -> Tensor:
    """Numbers ``[G, outputs, inputs]`` in the shape of the layer's weight."""
    return values[0].T if has_outputs_last(layer) else values.reshape(shape)
