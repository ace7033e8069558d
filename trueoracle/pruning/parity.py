"""Trying the surgery, before anything rests on it.

Removing filters has to give the network in which the same filters are zeroed. Reading a network's
operations does not show all that it does with its channels (one may be written by its index, or
branch on a value), so every group is tried, with every filter of it pruned at least once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.groups import Group
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import Kept, prune

__all__ = ["check_network", "check_parity", "check_training", "failures"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the largest output, by the coarsest numbers that the network computes with.

Rounding stays a hundred times below, and a channel wired wrongly lies far above: half of the
filters are pruned.
"""


def check_network(network: nn.Module, example: Tensor) -> None:
    """Check that a network answers, with finite numbers and always the same, before it is pruned.

    ``example`` is a batch ``[N, C, H, W]``. Raises :class:`InputError` that says what is wrong:
    pruning is not to be blamed for it.
    """
    name = type(network).__name__
    twin = copied(network).eval()
    try:
        with torch.no_grad():
            answer = twin(example)
            first, second = _answers(answer), _answers(twin(example))
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"{name} does not run on images of shape {list(example.shape[1:])}: {first_line(error)}"
        ) from error
    if not first:
        given = f"a {type(answer).__name__}"
        if isinstance(answer, Tensor):
            given = f"{str(answer.dtype).removeprefix('torch.')} numbers"
        raise InputError(f"{name} gives {given}, expected tensors in floating point")
    if not all(one.isfinite().all() for one in first):
        raise InputError(f"{name} gives outputs that are not finite: {_why_not_finite(network)}")
    same = len(first) == len(second) and all(map(torch.equal, first, second))
    if not same:
        raise InputError(
            f"{name} gives different answers to the same images in evaluation mode "
            "(a dropout without training=self.training?)"
        )


def check_training(network: nn.Module, example: Tensor) -> None:
    """Check that a network trains on a batch ``[N, C, H, W]``, N at least 2.

    Raises :class:`InputError` where its forward or backward fails in training mode.
    """
    try:
        _train(copied(network), example)
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"{type(network).__name__} does not train on a batch of images of shape "
            f"{list(example.shape[1:])}: {first_line(error)}"
        ) from error


def failures(network: nn.Module, groups: Sequence[Group], example: Tensor) -> dict[str, str]:
    """Why groups of ``network`` cannot be pruned after all, by their names; tried on ``example``.

    Half of each group's filters are pruned, and then the other half. All groups are tried together,
    and where that fails, each half of them, down to single ones. A group of one filter has nothing
    to try.
    """
    triable = [group for group in groups if group.filters > 1]
    return _Trial(network, example).failures(triable) if triable else {}


def check_parity(dense: nn.Module, candidates: Candidates, example: Tensor) -> None:
    """Check that exact surgery equals masking, and that the pruned networks train.

    ``example`` is a batch ``[N, C, H, W]``, N at least 2. Every filter of the pruned groups is
    tried, then the first, middle and last candidate. Raises :class:`InputError` naming the layers:
    a network that computes with its channels in a way that tracing does not show is noticed here,
    and not after hours.
    """
    check_network(dense, example)
    check_training(dense, example)
    trial = _Trial(dense, example)
    for name, reason in trial.failures(candidates.groups).items():
        raise InputError(f"{name} cannot be pruned: {reason}")
    layers = ", ".join(group.name for group in candidates.groups)
    for index in sorted({0, len(candidates) // 2, len(candidates) - 1}):
        if reason := trial.failure(candidates.groups, candidates.kept(index)):
            raise InputError(f"{layers} cannot be pruned together: {reason}")
        try:
            _train(candidates.prune(dense, index), example)
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"the network does not train once {layers} are pruned: {first_line(error)}"
            ) from error


def _train(network: nn.Module, example: Tensor) -> None:
    """One step forward and back, in training mode."""
    answers = [one for one in _answers(network.train()(example)) if one.requires_grad]
    torch.stack([one.sum() for one in answers]).sum().backward()


def _answers(outputs: Any) -> list[Tensor]:
    """The tensors in what a network gives: one, or several in whatever form; no whole numbers."""
    return [
        one
        for one in pytree.tree_leaves(outputs)
        if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex())
    ]


def _why_not_finite(network: nn.Module) -> str:
    named = [*network.named_parameters(), *network.named_buffers()]
    for name, value in named:
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} holds NaN or infinity"
    for name, value in named:
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} holds a negative variance"
    return "its numbers are finite, so they grow beyond all bounds on the way"


class _Trial:
    """Surgery against masking on one network, in double precision where it runs in that."""

    def __init__(self, dense: nn.Module, example: Tensor) -> None:
        try:
            self._begin(copied(dense).eval().double(), example.double())
        except Exception:  # the user's forward runs, and may insist on single precision
            self._begin(copied(dense).eval(), example)

    def _begin(self, network: nn.Module, example: Tensor) -> None:
        with torch.no_grad():
            with _Coarsest() as coarsest:
                network(example)
            shaken = _shaken(network)
            is_fit = all(one.isfinite().all() for one in _answers(shaken(example)))
        self._network, self._example = shaken if is_fit else network, example
        self._tolerance = coarsest.tolerance

    def failures(self, groups: Sequence[Group]) -> dict[str, str]:
        """Why some of the groups cannot be cut, by their names."""
        reason = next(filter(None, (self.failure(groups, kept) for kept in _cover(groups))), "")
        if not reason:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        half = len(groups) // 2
        return self.failures(groups[:half]) | self.failures(groups[half:])

    def failure(self, groups: Sequence[Group], kept: Kept) -> str:
        """What goes wrong once only the ``kept`` filters are left; empty: nothing."""
        try:
            with torch.no_grad():
                found = _answers(prune(self._network, groups, kept)(self._example))
                with masked(self._network, groups, kept) as zeroed:
                    expected = _answers(zeroed(self._example))
        except Exception as error:  # the user's forward runs: anything can come out
            return f"without some of its filters the network does not run: {first_line(error)}"
        if [one.shape for one in found] != [one.shape for one in expected]:
            return "without some of its filters the network gives outputs of another shape"
        for mine, theirs in zip(found, expected, strict=True):
            difference = float((mine - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
            if not difference <= self._tolerance:
                return (
                    "removing its filters is not the same as zeroing them (outputs differ by "
                    f"{difference:.2g} of the largest): the network uses these channels elsewhere"
                )
        return ""


def _cover(groups: Sequence[Group]) -> Iterator[Kept]:
    """Two sets of kept filters: a half of each group, drawn at random, and the other half."""
    generator = random.Random(0)
    orders = {g.name: generator.sample(range(g.filters), g.filters) for g in groups}
    halves = {name: len(order) // 2 for name, order in orders.items()}
    yield {name: sorted(order[: halves[name]]) for name, order in orders.items()}
    yield {name: sorted(order[halves[name] :]) for name, order in orders.items()}


def _shaken(network: nn.Module) -> nn.Module:
    """A copy whose weights are a little off, so that no layer is zero and hides what it reads."""
    shaken, generator = copied(network), torch.Generator().manual_seed(0)
    running = [(n, b) for n, b in shaken.named_buffers() if n.endswith(("_mean", "_var"))]
    for name, value in (*shaken.named_parameters(), *running):
        if value.is_floating_point():
            noise = 0.02 * torch.randn(value.shape, generator=generator).to(value)
            value.add_(noise.abs() if name.endswith("running_var") else noise)
    return shaken


class _Coarsest(TorchDispatchMode):
    """Notes the coarsest numbers among the results of all operations."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tolerance = TOLERANCE[torch.float64]

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **kwargs or {})
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.tolerance = max(self.tolerance, TOLERANCE.get(value.dtype, 5e-2))
        return result
