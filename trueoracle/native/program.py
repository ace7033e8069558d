"""A population of one network shape on the kernels: weights in lanes, one call for all members."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trueoracle.native.library import Block, Kernel, Optimizer, Unit, kernels, missing
from trueoracle.native.lowering import CannotLowerError, Lowered

__all__ = ["Images", "Program"]

Task = Literal["train", "evaluate", "gradients", "outputs"]
_TASKS = ("train", "evaluate", "gradients", "outputs")


@dataclass(frozen=True, eq=False)
class Images:
    """The images that the networks of one lane group see.

    Where all lanes share them, ``pixels`` are ``[N, C, H, W]`` and ``labels`` int64 ``[N]``. Where
    each lane has its own, they are ``[N, C, H, W, lanes]`` and ``[N, lanes]``.
    """

    pixels: Tensor
    labels: Tensor

    @property
    def shared(self) -> bool:
        return self.labels.ndim == 1

    def __len__(self) -> int:
        return len(self.labels)


class Program:
    """Networks of one shape, ready for the kernels.

    ``dtype`` is float32, or float64 for tests. Raises :class:`CannotLowerError` where this
    processor has no kernels.
    """

    def __init__(
        self, lowered: Lowered, dtype: torch.dtype = torch.float32, kernel: Kernel | None = None
    ) -> None:
        available = kernels()
        if not available:
            raise CannotLowerError(str(missing()))
        self.lowered, self.dtype = lowered, dtype
        self.kernel = kernel or available[0]
        self.lanes = self.kernel.lanes(self._is_double)
        blocks = (Block * len(lowered.blocks))(*lowered.blocks)
        self._library = self.kernel.library
        self._network = self._library.trueoracle_network(
            len(blocks), lowered.weights, lowered.outputs, ctypes.byref(blocks)
        )
        if not self._network:
            raise MemoryError("no memory for a network's description")

    def __del__(self) -> None:
        if getattr(self, "_network", None):
            self._library.trueoracle_free(self._network)

    @property
    def _is_double(self) -> bool:
        return self.dtype == torch.float64

    def workspace(self, *, backward: bool) -> int:
        """The bytes that each thread takes while it runs."""
        return int(
            self._library.trueoracle_bytes(
                self.kernel.index, self._is_double, self._network, backward
            )
        )

    def pack(self, networks: Sequence[nn.Module]) -> Tensor:
        """The numbers of up to ``lanes`` networks side by side, ``[weights, lanes]``.

        Unused lanes hold copies of the first network, and do not affect the others.
        """
        columns = [_flat(network, self.lowered).to(self.dtype) for network in networks]
        columns += [columns[0]] * (self.lanes - len(columns))
        return torch.stack(columns, dim=1).contiguous()

    def unpack(self, weights: Tensor, networks: Sequence[nn.Module]) -> None:
        """Write numbers ``[weights, lanes]`` back into the networks, in place."""
        with torch.no_grad():
            for lane, network in enumerate(networks):
                at = 0
                for name in self.lowered.parameters:
                    parameter = network.get_parameter(name)
                    numbers = weights[at : at + parameter.numel(), lane]
                    parameter.copy_(numbers.view_as(parameter))
                    at += parameter.numel()

    def train(
        self,
        weights: Sequence[Tensor],
        state: Sequence[Tensor],
        images: Sequence[Images],
        *,
        batch_size: int,
        optimizer: Optimizer,
        steps_before: int,
    ) -> None:
        """Train every lane group in place, on its images in their order.

        ``weights`` are ``[weights, lanes]`` each; ``state`` is the optimiser's, ``[1 or 2, weights,
        lanes]`` each, and zero before the first step. Groups may share ``Images``.
        """
        self._run("train", weights, images, batch_size, optimizer, state, steps_before)

    def evaluate(
        self,
        weights: Sequence[Tensor],
        images: Sequence[Images],
        blocks: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Summed losses (nats, float64) and right answers (int64), ``[1 + B, lanes]`` per group.

        The first row is for all images, the others for each of B blocks; ``blocks``, int64 ``[N]``,
        is the block of each image, counted from 0.
        """
        return [
            (loss, right) for loss, right in self._run("evaluate", weights, images, blocks=blocks)
        ]

    def gradients(
        self, weights: Sequence[Tensor], images: Sequence[Images], label_smoothing: float = 0.0
    ) -> list[Tensor]:
        """The gradient of the mean loss over all images, ``[weights, lanes]`` per group."""
        options = Optimizer(label_smoothing=label_smoothing)
        return [out for (out,) in self._run("gradients", weights, images, optimizer=options)]

    def outputs(self, weights: Sequence[Tensor], images: Sequence[Images]) -> list[Tensor]:
        """The networks' outputs, ``[N, outputs, lanes]`` per group."""
        return [out for (out,) in self._run("outputs", weights, images)]

    def _run(
        self,
        task: Task,
        weights: Sequence[Tensor],
        images: Sequence[Images],
        batch_size: int = 1,
        optimizer: Optimizer | None = None,
        state: Sequence[Tensor] = (),
        steps_before: int = 0,
        blocks: Tensor | None = None,
    ) -> list[tuple[Tensor, ...]]:
        count = len(images[0])
        if blocks is not None:
            self._check_blocks(blocks, count)
        for seen in {id(seen): seen for seen in images}.values():
            self._check_images(seen, count)
        units = (Unit * len(weights))()
        results: list[tuple[Tensor, ...]] = []
        for position, (unit, own, seen) in enumerate(zip(units, weights, images, strict=True)):
            self._check_numbers(own, (self.lowered.weights, self.lanes))
            unit.weights, unit.pixels = own.data_ptr(), seen.pixels.data_ptr()
            unit.labels, unit.shared = seen.labels.data_ptr(), seen.shared
            unit.steps_before = steps_before
            if task == "train":
                self._check_numbers(state[position], (-1, self.lowered.weights, self.lanes))
                unit.state = state[position].data_ptr()
            results.append(self._results(task, unit, count, blocks))
        code = self._library.trueoracle_run(
            *(self.kernel.index, self._is_double, self._network, _TASKS.index(task)),
            *(ctypes.byref(units), len(weights), count, batch_size),
            min(torch.get_num_threads(), len(weights)),
            ctypes.byref(optimizer or Optimizer()),
        )
        if code:
            raise MemoryError("for the networks' activations: lower --memory")
        return results

    def _results(
        self, task: Task, unit: Unit, count: int, blocks: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Allocate a task's results, and put their addresses into the unit."""
        if task == "evaluate":
            rows = 1 if blocks is None else 2 + int(blocks.max())
            loss = torch.zeros(rows, self.lanes, dtype=torch.float64)
            right = torch.zeros(rows, self.lanes, dtype=torch.int64)
            unit.loss, unit.right = loss.data_ptr(), right.data_ptr()
            unit.blocks = None if blocks is None else blocks.data_ptr()
            return loss, right
        if task == "train":
            return ()
        size = (self.lowered.weights,) if task == "gradients" else (count, self.lowered.outputs)
        out = torch.empty(*size, self.lanes, dtype=self.dtype)
        unit.out = out.data_ptr()
        return (out,)

    # The kernels do not check what they are given.

    def _check_images(self, images: Images, count: int) -> None:
        first = self.lowered.blocks[0]
        copies = 1 if images.shared else self.lanes
        pixels, labels = images.pixels, images.labels
        if (
            pixels.dtype != self.dtype
            or labels.dtype != torch.int64
            or not (pixels.is_contiguous() and labels.is_contiguous())
            or pixels.numel() != count * first.C * first.H * first.W * copies
            or labels.numel() != count * copies
            or (not images.shared and pixels.data_ptr() % 64)
        ):
            raise ValueError("images of another shape, type or layout than the kernels take")
        if count and not 0 <= int(labels.min()) <= int(labels.max()) < self.lowered.outputs:
            raise ValueError(f"labels must be 0 to {self.lowered.outputs - 1}")

    def _check_blocks(self, blocks: Tensor, count: int) -> None:
        if (
            blocks.dtype != torch.int64
            or not blocks.is_contiguous()
            or blocks.shape != (count,)
            or int(blocks.min()) < 0
        ):
            raise ValueError("blocks of another shape, type or layout than the kernels take")

    def _check_numbers(self, numbers: Tensor, shape: tuple[int, ...]) -> None:
        if (
            numbers.dtype != self.dtype
            or not numbers.is_contiguous()
            or numbers.ndim != len(shape)
            or numbers.shape[-2:] != shape[-2:]
            or numbers.data_ptr() % 64
        ):
            raise ValueError("weights of another shape, type or layout than the kernels take")


def _flat(network: nn.Module, lowered: Lowered) -> Tensor:
    """All of a network's numbers ``[weights]``, in the kernels' order."""
    return torch.cat([network.get_parameter(n).detach().flatten() for n in lowered.parameters])
