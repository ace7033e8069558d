"""Compares surgery with masking: filters removed against the same filters zeroed."""

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
"""Allowed differences relative to the largest output, by the coarsest dtype in the network.

Rounding stays a hundred times below these, and a wrongly wired channel differs by far more, since
half of the filters are pruned.
"""

_SAFETY = 1000.0
"""Differences up to this many times the effect of the weights' last digits count as rounding."""

_LARGEST_ALLOWED = 1e-4
"""Relative to the largest output, however much the network enlarges rounding in training mode."""


STOPS = "without some of its filters the network does not run: "
OTHER_SHAPE = "without some of its filters the network gives outputs of another shape"


class Trial:
    """Compares surgery with masking on one network, in double precision where the network allows.

    Noise is added to the weights, so that no layer is zero and hides what it reads, unless the
    outputs would then no longer be finite.
    """

    def __init__(self, dense: nn.Module, example: Example) -> None:
        self._in_training: float | None = None  # the largest difference that counts as rounding
        self._trains = True  # until a run shows that it does not
        self._is_same: bool | None = None  # whether both modes give exactly the same outputs
        self._is_same_pruned = False  # and whether they do in the network that was pruned last
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
        """A network's outputs in one mode; its buffers, which training changes, are restored."""
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
        """The outputs in evaluation mode with all but the kept filters zeroed.

        The network is prepared in another way where it does not run in double precision, gives no
        finite numbers in it (an attention mask of double precision's lowest number is minus
        infinity in a softmax of single precision), or gives none with noise on its weights.
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

        Once both modes have given the same outputs to the last digit, training mode is not run
        again.
        """
        if self._is_same or not self._trains:
            return in_evaluation if self._trains else None
        try:
            with masked(self._network, groups, kept) as zeroed:
                found = self._run(zeroed, training=True)
        except Exception:  # whether the network trains at all is checked elsewhere
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
        """Why groups cannot be cut together; empty where they can."""
        first, second = _cover(groups)
        # If both modes gave the same outputs with the first half, to the last digit, in the dense
        # and in the pruned network, the second half needs to be tried in one mode only.
        return self.failure(groups, first) or self.failure(
            groups, second, both=not (self._is_same and self._is_same_pruned)
        )

    def failure(self, groups: Sequence[Group], kept: Kept, *, both: bool = True) -> str:
        """What goes wrong once only the ``kept`` filters are left; empty where nothing does.

        Tried in evaluation mode and, with ``both``, in training mode where the network runs in it.
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

        Batch norms over a few numbers can enlarge rounding a million times. So this measures how
        much the outputs change when the weights change in their last digits.
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
        """What is wrong with the outputs found; ``allowed`` is called only where it matters."""
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
    """The tensors in a network's outputs, whatever their structure; none of whole numbers."""
    found = [
        one
        for one in pytree.tree_leaves(outputs)
        if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex())
    ]
    return without_padding(found, example)


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest absolute difference, relative to the largest expected absolute value."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def _cover(groups: Sequence[Group]) -> Iterator[Kept]:
    """Two choices of kept filters: a random half of each group, and the other half."""
    generator = random.Random(0)
    orders = {g.name: generator.sample(range(g.filters), g.filters) for g in groups}
    halves = {name: len(order) // 2 for name, order in orders.items()}
    yield {name: sorted(order[: halves[name]]) for name, order in orders.items()}
    yield {name: sorted(order[halves[name] :]) for name, order in orders.items()}


def equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists of tensors are the same to the last digit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def _shake(network: nn.Module) -> None:
    """Add noise of standard deviation 0.02 to all weights."""
    generator = torch.Generator().manual_seed(0)
    running = [(n, b) for n, b in network.named_buffers() if n.endswith(("_mean", "_var"))]
    with torch.no_grad():
        for name, value in (*network.named_parameters(), *running):
            if value.is_floating_point():
                # Uniform noise, since it is drawn far faster than normal noise.
                noise = torch.rand(value.shape, generator=generator).sub_(0.5).mul_(0.02 * 12**0.5)
                value.add_(noise.to(value).abs_() if name.endswith("running_var") else noise)


class _Coarsest(Watch):
    """Notes the tolerance of the coarsest dtype among the results of all operations."""

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
    """Replaces random numbers by their means and stops dropout, whatever the network's width."""

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
