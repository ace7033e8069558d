"""Trying the surgery, before anything rests on it.

Removing filters has to give the network in which the same filters are zeroed, in evaluation and in
training mode. Following a network's operations does not show all that it does with its channels
(one may be written by its index, or a number says how many there are), so every group is tried,
with every filter of it pruned at least once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied, without_numbers
from trueoracle.networks.graph import (
    Example,
    answer,
    converted,
    no_fast_path,
    without_padding,
)
from trueoracle.networks.watching import Watch
from trueoracle.pruning.axes.counting import (
    Counts,
    choices,
    counted,
    counts_of,
    remembered,
    with_usual,
)
from trueoracle.pruning.axes.offers import Offers
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.groups import Group, GroupMap
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import Kept, prune

__all__ = ["check_network", "check_parity", "check_training", "failures", "settled"]

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of the largest output, by the coarsest numbers that the network computes with.

Rounding stays a hundred times below, and a channel wired wrongly lies far above: half of the
filters are pruned.
"""

_SAFETY = 1000.0
"""So many times what the weights' last digits make of the outputs counts as rounding."""

_LARGEST_ALLOWED = 1e-4
"""Of the largest output, however much a network enlarges rounding in training mode."""


def check_network(network: nn.Module, example: Example) -> None:
    """Check that a network answers, with finite numbers and always the same, before it is pruned.

    ``example`` is a batch for it. Raises :class:`InputError` that says what is wrong: pruning is
    not to be blamed for it.
    """
    name = type(network).__name__
    twin = copied(network).eval()
    try:
        with torch.no_grad():
            given = answer(twin, example)
            first = _answers(given, example)
            second = _answers(answer(twin, example), example)
    except Exception as error:  # the user's forward runs: anything can come out
        raise InputError(
            f"{name} does not run on {_described(example)}: {first_line(error)}"
        ) from error
    if not first:
        what = f"a {type(given).__name__}"
        if isinstance(given, Tensor):
            what = f"{str(given.dtype).removeprefix('torch.')} numbers"
        raise InputError(f"{name} gives {what}, expected tensors in floating point")
    if not all(one.isfinite().all() for one in first):
        raise InputError(f"{name} gives outputs that are not finite: {_why_not_finite(network)}")
    if not _equal(first, second):
        raise InputError(
            f"{name} gives different answers to the same images in evaluation mode "
            "(a dropout without training=self.training?)"
        )


def _described(example: Example) -> str:
    """What an example is, by its shapes without the leading axis."""
    if isinstance(example, Tensor):
        kind = "images" if example.ndim == 4 else "a batch of items"
        return f"{kind} of shape {list(example.shape[1:])}"
    named = example.items() if isinstance(example, Mapping) else enumerate(example)
    shapes = [f"{n} {list(v.shape[1:])}" for n, v in named if isinstance(v, Tensor)]
    return f"a batch of items of shapes {', '.join(shapes)}"


def check_training(network: nn.Module, example: Example) -> None:
    """Check that a network trains on a batch of at least two.

    Raises :class:`InputError` where its forward or backward fails in training mode.
    """
    try:
        _train(copied(network), example)
    except Exception as error:  # the user's forward runs: anything can come out
        what = _described(example).replace("images", "a batch of images")
        raise InputError(
            f"{type(network).__name__} does not train on {what}: {first_line(error)}"
        ) from error


def settled(network: nn.Module, found: Offers, example: Example) -> GroupMap:
    """The offered groups that can be cut; the others are refused, each with its reason.

    Where a module keeps a number that has to change with the cut (its heads, say), the group
    remembers it. Where an axis is a product, its next index set is tried once the first has failed.
    """
    result = GroupMap({}, dict(found.refused))
    ways = {
        name: [*dict.fromkeys(way for one in groups for way in (with_usual(network, one), one))]
        for name, groups in found.alternatives.items()
    }
    shapes: _Shapes | None = None
    sorters: list[_Sorter] = []
    reasons: dict[str, str] = {}
    while ways:
        heads = {name: groups.pop(0) for name, groups in ways.items()}
        passed = {name: group for name, group in heads.items() if group.filters > 1}
        result.groups.update({n: group for n, group in heads.items() if n not in passed})
        failed: dict[str, str] = {}
        if passed:
            if shapes is None:
                shapes, trial = _Shapes(network, example), _Trial(network, example)
                sorters = [_Sorter(network, shapes.reason), _Sorter(network, trial.reason)]
            # Most that fails does not even run, which is seen without numbers, in no time.
            passed, without = sorters[0].sort([*passed.values()])
            failed = {n: why for n in without if (why := shapes.with_numbers(heads[n]))}
            passed |= {name: heads[name] for name in without if name not in failed}
        if passed:
            passed, without = sorters[1].sort([*passed.values()], found.notes)
            failed |= without
        result.groups.update(passed)
        for name, reason in failed.items():
            note = f" ({found.notes[name]})" if name in found.notes else ""
            reasons.setdefault(name, reason + note)
        ways = {name: ways[name] for name in failed if ways[name]}
    for name, reason in reasons.items():
        if ":" in name and name not in result.groups:
            result.refuse([name], reason)
        elif name not in result.groups:
            layers = [part.module for part in found.alternatives[name][0].layers]
            taken = {part.module for group in result.groups.values() for part in group.layers}
            result.refuse([layer for layer in layers if layer not in taken], reason)
    order = {name: position for position, name in enumerate(found.alternatives)}
    groups = dict(sorted(result.groups.items(), key=lambda item: order[item[0]]))
    return GroupMap(groups, result.refused)


def failures(network: nn.Module, groups: Sequence[Group], example: Example) -> dict[str, str]:
    """Why groups of ``network`` cannot be pruned after all, by their names; tried on ``example``.

    Half of each group's filters are pruned, and then the other half. All groups are tried together,
    and where that fails, each half of them, down to single ones. A group of one filter has nothing
    to try.
    """
    triable = [group for group in groups if group.filters > 1]
    return _Trial(network, example).failures(triable) if triable else {}


def check_parity(dense: nn.Module, candidates: Candidates, example: Example) -> None:
    """Check that exact surgery equals masking, and that the pruned networks train.

    ``example`` is a batch of at least two. Every filter of the pruned groups is tried, then the
    first, middle and last candidate. Raises :class:`InputError` naming the layers: a network that
    computes with its channels in a way that following it does not show is noticed here, and not
    after hours.
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


def _train(network: nn.Module, example: Example) -> None:
    """One step forward and back, in training mode."""
    answers = [
        one for one in _answers(answer(network.train(), example), example) if one.requires_grad
    ]
    torch.stack([one.sum() for one in answers]).sum().backward()


def _answers(outputs: Any, example: Example) -> list[Tensor]:
    """The tensors in what a network gives: one, or several in whatever form; no whole numbers."""
    found = [
        one
        for one in pytree.tree_leaves(outputs)
        if isinstance(one, Tensor) and (one.is_floating_point() or one.is_complex())
    ]
    return without_padding(found, example)


def _why_not_finite(network: nn.Module) -> str:
    named = [*network.named_parameters(), *network.named_buffers()]
    for name, value in named:
        if value.is_floating_point() and not value.isfinite().all():
            return f"{name} holds NaN or infinity"
    for name, value in named:
        if name.endswith("running_var") and (value < 0).any():
            return f"{name} holds a negative variance"
    return "its numbers are finite, so they grow beyond all bounds on the way"


class _Shapes:
    """Whether a network runs without some of its filters, whatever numbers it gives."""

    def __init__(self, dense: nn.Module, example: Example) -> None:
        self._whole = dense, example
        given = pytree.tree_map(
            lambda one: one.to("meta") if isinstance(one, Tensor) else one, example
        )
        self._fastest = without_numbers(dense), given
        try:
            self._shapes = self._run(*self._fastest)
        except Exception:  # the user's forward runs, and may need numbers
            self._fastest = self._whole
            self._shapes = self._run(copied(dense), example)

    def _run(self, network: nn.Module, example: Example) -> list[torch.Size]:
        with torch.no_grad():
            return [one.shape for one in _answers(answer(network.eval(), example), example)]

    def reason(self, groups: Sequence[Group]) -> str:
        """Why groups cannot be cut together; empty: the network runs without half of each."""
        return self._reason(groups, *self._fastest)

    def with_numbers(self, group: Group) -> str:
        """The same of one group, as the network says it when it computes."""
        return self._reason([group], *self._whole)

    def _reason(self, groups: Sequence[Group], network: nn.Module, example: Example) -> str:
        kept = {group.name: range(group.filters // 2) for group in groups}
        try:
            shapes = self._run(prune(network, groups, kept, is_shared=True), example)
        except Exception as error:  # the user's forward runs: anything can come out
            return _STOPS + first_line(error)
        return "" if shapes == self._shapes else _OTHER_SHAPE


_STOPS = "without some of its filters the network does not run: "
_OTHER_SHAPE = "without some of its filters the network gives outputs of another shape"


class _Sorter:
    """Sorts groups into those that can be cut and those that cannot, by why they cannot.

    ``reason`` says of several groups why they cannot be cut together; empty: they can.
    """

    def __init__(self, network: nn.Module, reason: Callable[[Sequence[Group]], str]) -> None:
        self._network, self._reason = network, reason
        self._counts: list[Counts] = []  # that a group of this network was found to need
        self._in_vain: set[Counts] = set()  # of which no choice helped a group
        self._ways: dict[Group, Group] = {}  # with the numbers that they were found to need

    def sort(
        self, groups: Sequence[Group], doubted: Collection[str] = ()
    ) -> tuple[dict[str, Group], dict[str, str]]:
        """The groups that can be cut, with the numbers that have to change, and why others cannot.

        Both by name. Cutting what follows can hide a wrong cut, so the ``doubted`` groups, which
        fail more often, are tried once more with the rest of the network whole.
        """
        doubtful = [group for group in groups if group.name in doubted]
        plain = [group for group in groups if group.name not in doubted]
        sets = [groups, doubtful] if doubtful and plain else [groups]
        if not any(map(self._reason, sets)):  # most often
            return {group.name: group for group in groups}, {}
        passed: dict[str, Group] = {}
        failed: dict[str, str] = {}
        for some in [*self._sorted_out(plain), *self._sorted_out(doubtful)]:
            fine, without = self._settle(some)
            passed |= fine
            failed |= without
        return passed, failed

    def _sorted_out(self, groups: Sequence[Group]) -> list[Sequence[Group]]:
        """The groups to try together: those that should pass, and each kind that likely fails.

        Networks repeat their blocks, so the first group of a kind stands for the others, and what
        it needs (fewer heads) is known for them.
        """
        kinds: dict[object, list[Group]] = {}
        for group in groups:
            kinds.setdefault(self._kind(group), []).append(group)
        if 2 * len(kinds) > len(groups):
            return [groups] if groups else []
        hopeful: list[Group] = []
        apart: list[Sequence[Group]] = []
        for alike in kinds.values():
            if self._reason(alike[:1]):
                self._with_counts(alike[0])
                apart.append(alike)
            else:
                hopeful += alike
        return [some for some in (hopeful, *apart) if some]

    def _kind(self, group: Group) -> object:
        """What groups of repeated blocks have in common: what their places are of which modules."""
        modules = dict(self._network.named_modules())
        return group.kind, frozenset(
            (type(modules.get(place.owner)), place.tensor.rpartition(".")[2], place.role)
            for place in group.places
        )

    def _settle(self, groups: Sequence[Group]) -> tuple[dict[str, Group], dict[str, str]]:
        """As :meth:`sort`: all together, and where that fails, each half of them."""
        reason = self._reason(groups)
        if reason and self._counts:
            known = [remembered(self._network, group, self._counts) for group in groups]
            if known != list(groups) and not self._reason(known):
                groups, reason = known, ""
        if not reason:
            return {group.name: group for group in groups}, {}
        if len(groups) == 1:
            way = self._with_counts(groups[0])
            return ({}, {groups[0].name: reason}) if way is None else ({way.name: way}, {})
        half = len(groups) // 2
        first, second = self._settle(groups[:half]), self._settle(groups[half:])
        return first[0] | second[0], first[1] | second[1]

    def _with_counts(self, group: Group) -> Group | None:
        """The group with the numbers that have to change, once some are found that do."""
        offered = choices(self._network, group)
        if offered in self._in_vain or group in self._ways:
            return self._ways.get(group)
        for way in counted(self._network, group):
            if not self._reason([way]):
                self._counts.append(counts_of(self._network, way))
                self._ways[group] = way
                return way
        self._in_vain.add(offered)
        return None


class _Trial:
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
                return _answers(answer(network.train(training), self._example), self._example)
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
            self._is_same = _equal(found, in_evaluation)
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
            self._is_same_pruned = _equal(before, found)
            return self._compared(found, in_training, self._allowed)
        except Exception as error:  # the user's forward runs: anything can come out
            return _STOPS + first_line(error)

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
            return _OTHER_SHAPE
        for mine, theirs in zip(found, expected, strict=True):
            difference = _difference(mine, theirs)
            if not (difference <= self._tolerance or difference <= allowed()):
                return (
                    "removing its filters is not the same as zeroing them (outputs differ by "
                    f"{difference:.2g} of the largest): the network uses these channels elsewhere"
                )
        return ""


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


def _equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
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
