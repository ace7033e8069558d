"""Surgery against masking: whether the network without some filters is the one with them zeroed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import Example, answer, converted, no_fast_path, without_padding
from trueoracle.networks.watching import Watch
from trueoracle.pruning.groups import Group
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import Kept, prune

__all__ = ["OTHER_SHAPE", "STOPS", "Trial", "answers_of", "equal"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the largest output, by the coarsest numbers that the network computes with.

Rounding stays a hundred times below, and a channel wired wrongly lies far above: half of the
filters are pruned.
"""

_SAFETY = 1000.0
"""So many times what the weights' last digits make of the outputs counts as rounding."""

_LARGEST_ALLOWED = 1e-4
"""Of the largest output, however much a network enlarges rounding in training mode."""


STOPS = "without some of its filters the network does not run: "
OTHER_SHAPE = "without some of its filters the network gives outputs of another shape"


class Trial:
    """Surgery against masking on one network, in double precision where it answers in that.

    Its weights are shaken, so that no layer is zero and hides what it reads, unless its answers are
    no longer finite then.
    """

    def __init__(self, dense: nn.Module, example: Example) -> None:
        self._in_training: float | None = None  # what counts as rounding there
        self._trains = True  # until it is seen not to
        self._is_same: bool | None = None  # whether training mode computes the same to the digit
        self._is_same_pruned = False  # and whether the network that was pruned last does
        self._dense, self._given = dense, example
        self._prepare(is_double=True, is_shaken=True)

    def _prepare(self, *, is_double: bool, is_shaken: bool) -> None:
        self._is_double, self._is_shaken = is_double, is_shaken
        self._network, self._example = copied(self._dense).eval(), self._given
        if is_double:
            self._network.double()
            self._example = converted(self._given, torch.float64)
        if is_shaken:
            _shake(self._network)
        self._coarsest = _Coarsest()

    def _run(self, network: nn.Module, *, training: bool) -> list[Tensor]:
        """What a network gives in a mode; its buffers, which training changes, are put back."""
        before = [(buffer, buffer.clone()) for buffer in network.buffers()] if training else []
        try:
            with torch.no_grad(), self._coarsest, _Calm():
                return answers_of(answer(network.train(training), self._example), self._example)
        finally:
            with torch.no_grad():
                for buffer, old in before:
                    buffer.copy_(old)
            network.eval()

    def _expected(self, groups: Sequence[Group], kept: Kept) -> list[Tensor]:
        """What the network gives with the other filters zeroed, in evaluation mode.

        It is prepared in another way where it does not run in double precision or gives no finite
        numbers in it (a mask of double precision's lowest number is minus infinity in a softmax of
        single precision), or grows beyond all bounds when it is shaken.
        """
        while True:
            try:
                with masked(self._network, groups, kept) as zeroed, no_fast_path():
                    found = self._run(zeroed, training=False)
            except Exception:  # the user's forward runs, and may insist on single precision
                if not self._is_double:
                    raise
                self._prepare(is_double=False, is_shaken=True)
                continue
            if all(one.isfinite().all() for one in found):
                return found
            if self._is_shaken:
                self._prepare(is_double=self._is_double, is_shaken=False)
            elif self._is_double:
                self._prepare(is_double=False, is_shaken=True)
            else:
                return found

    def _expected_in_training(
        self, groups: Sequence[Group], kept: Kept, in_evaluation: list[Tensor]
    ) -> list[Tensor] | None:
        """The same in training mode; None where the network gives no finite numbers in it.

        What shows once that it computes the same in both modes, to the last digit, is not run
        again.
        """
        if self._is_same or not self._trains:
            return in_evaluation if self._trains else None
        try:
            with masked(self._network, groups, kept) as zeroed:
                found = self._run(zeroed, training=True)
        except Exception:  # whether it trains at all is another check's question
            found = []
        self._trains = bool(found) and all(one.isfinite().all() for one in found)
        if self._trains and self._is_same is None:
            self._is_same = equal(found, in_evaluation)
        return found if self._trains else None

    def failures(self, groups: Sequence[Group]) -> dict[str, str]:
        """Why some of the groups cannot be cut, by their names."""
        reason = self.reason(groups)
        if not reason:
            return {}
        if len(groups) == 1:
            return {groups[0].name: reason}
        half = len(groups) // 2
        return self.failures(groups[:half]) | self.failures(groups[half:])

    def reason(self, groups: Sequence[Group]) -> str:
        """Why groups cannot be cut together; empty: they can."""
        first, second = _cover(groups)
        # Where both modes computed the same with the first half, to the last digit, in the dense
        # network and in the pruned one, they are one function: the second half is tried in one.
        return self.failure(groups, first) or self.failure(
            groups, second, both=not (self._is_same and self._is_same_pruned)
        )

    def failure(self, groups: Sequence[Group], kept: Kept, *, both: bool = True) -> str:
        """What goes wrong once only the ``kept`` filters are left; empty: nothing.

        In evaluation mode, and in training mode where the network has one (not ``both``: it is the
        same).
        """
        try:
            expected = self._expected(groups, kept)
            pruned = prune(self._network, groups, kept, is_shared=True)
            found = self._run(pruned, training=False)
            if reason := self._compared(found, expected, lambda: self._tolerance):
                return reason
            if not both:
                return ""
            if (in_training := self._expected_in_training(groups, kept, expected)) is None:
                return ""
            before, found = found, self._run(pruned, training=True)
            self._is_same_pruned = equal(before, found)
            return self._compared(found, in_training, self._allowed)
        except Exception as error:  # the user's forward runs: anything can come out
            return STOPS + first_line(error)

    @property
    def _tolerance(self) -> float:
        return self._coarsest.tolerance

    def _allowed(self) -> float:
        """The largest relative difference that counts as rounding in training mode.

        Batch norms over a few numbers can enlarge rounding a million times. So it is measured what
        weights that differ in their last digits make of the outputs.
        """
        if self._in_training is None:
            nudged, generator = copied(self._network), torch.Generator().manual_seed(0)
            for value in nudged.parameters():
                noise = torch.randn(value.shape, generator=generator).to(value)
                value.data.mul_(1 + 4 * torch.finfo(value.dtype).eps * noise)
            pairs = zip(
                self._run(nudged, training=True),
                self._run(self._network, training=True),
                strict=True,
            )
            enlarged = max(_difference(one, other) for one, other in pairs)
            measured = min(_SAFETY * enlarged, _LARGEST_ALLOWED)
            self._in_training = float(max(self._tolerance, measured))
        return self._in_training

    def _compared(
        self, found: Sequence[Tensor], expected: Sequence[Tensor], allowed: Callable[[], float]
    ) -> str:
        """What is wrong with the answers found; ``allowed`` is measured only where it matters."""
        if [one.shape for one in found] != [one.shape for one in expected]:
            return OTHER_SHAPE
        for mine, theirs in zip(found, expected, strict=True):
            difference = _difference(mine, theirs)
            if not (difference <= self._tolerance or difference <= allowed()):
                return (
                    "removing its filters is not the same as zeroing them (outputs differ by "
                    f"{difference:.2g} of the largest): the network uses these channels elsewhere"
                )
        return ""


def answers_of(outputs: Any, example: Example) -> list[Tensor]:
    """The tensors in what a network gives: one, or several in whatever form; no whole numbers."""
    found = [
        one
        for one in pytree.tree_leaves(outputs)
        if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex())
    ]
    return without_padding(found, example)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest of the expected numbers."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _cover(groups: Sequence[Group]) -> Iterator[Kept]:
    """Two sets of kept filters: a half of each group, drawn at random, and the other half."""
    generator = random.Random(0)
    orders = {g.name: generator.sample(range(g.filters), g.filters) for g in groups}
    halves = {name: len(order) // 2 for name, order in orders.items()}
    yield {name: sorted(order[: halves[name]]) for name, order in orders.items()}
    yield {name: sorted(order[halves[name] :]) for name, order in orders.items()}


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are the same to the last digit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def _shake(network: nn.Module) -> None:
    """Move all weights a little, by noise of standard deviation 0.02."""
    generator = torch.Generator().manual_seed(0)
    running = [(n, b) for n, b in network.named_buffers() if n.endswith(("_mean", "_var"))]
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *running):
            if value.is_floating_point():
                # Uniform, which is drawn far faster than normal numbers.
                noise = torch.rand(value.shape, generator=generator).sub_(0.5).mul_(0.02 * 12**0.5)
                value.add_(noise.to(value).abs_() if name.endswith("running_var") else noise)


class _Coarsest(Watch):
    """Notes the coarsest numbers among the results of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.tolerance = TOLERANCE[torch.float64]

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        result = func(*args, **kwargs)
        for value in pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.is_floating_point():
                self.tolerance = max(self.tolerance, TOLERANCE.get(value.dtype, 5e-2))
        return result


class _Calm(Watch):
    """Random numbers are their means: dropout drops nothing, in networks of any width alike."""

    def call(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        aten = torch.ops.aten
        if func is aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        if func is aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        result = func(*args, **kwargs)
        if func in (aten.rand.default, aten.rand_like.default, aten.uniform_.default):
            return result.fill_(0.5)
        if func in (aten.randn.default, aten.randn_like.default, aten.normal_.default):
            return result.zero_()
        return result
