"""Populations on the CPU's native kernels: one candidate in each lane of a vector register."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from trueoracle.data.splits import Splits
from trueoracle.engines.base import Engine, Measured, Memory, what_only_the_loop_does
from trueoracle.native.library import Kernel, Optimizer
from trueoracle.native.lowering import CannotLowerError, lower
from trueoracle.native.program import Images, Program
from trueoracle.networks.copying import copied
from trueoracle.tasks.base import INPUT, TARGET
from trueoracle.tasks.classification import Classification
from trueoracle.training.checkpoint import Keepable
from trueoracle.training.continuing import STEP, Begun, MemberState
from trueoracle.training.loop import Stream, batches
from trueoracle.training.recipe import Recipe, Retraining

__all__ = ["NativeEngine", "NativePopulation", "lanes", "measure_memory", "refusal"]

SEGMENT_BYTES = 64 * 2**20
"""Most bytes of augmented images made ahead of the kernels: usually enough for a whole epoch."""

_KINDS = ("sgd", "adam", "adamw")
_MOMENTS = ("exp_avg", "exp_avg_sq")
_REMEMBERED = {"sgd": ("momentum_buffer",), "adam": _MOMENTS, "adamw": _MOMENTS}
"""The values that each optimiser keeps per weight, by torch's names, in the kernels' order."""
_STATES = {kind: len(names) for kind, names in _REMEMBERED.items()}


def refusal(network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
    """Why the kernels cannot train this network on these images; None where they can."""
    if type(data.task) is not Classification:
        kind = type(data.task).__name__.lower()
        return f"the native kernels train plain classification only, and this is {kind}"
    if [*data.train.shapes] != [INPUT, TARGET] or data.train.shapes[TARGET]:
        return "the native kernels take one class an image"
    if why := what_only_the_loop_does(recipe):
        return why
    if recipe.precision != "float32":
        return f"the native kernels know no bfloat16 (precision = {recipe.precision!r})"
    if recipe.mixup or recipe.cutmix:
        return "the native kernels take one class an image (no mixup, no cutmix)"
    if data.train.is_streamed:
        return "the native kernels need the images in memory, and these are streamed"
    if data.train.device.type != "cpu":
        return f"the native kernels run on the CPU, not on {data.train.device.type}"
    try:
        _program(network, data)
        return None if _agrees(network, data) else "it computes other things than its layers say"
    except CannotLowerError as reason:
        return str(reason)


def _agrees(network: nn.Module, data: Splits) -> bool:
    """Whether the kernels give PyTorch's outputs and gradients for two images.

    Tracing may miss something that the forward pass does. The comparison is in double precision, so
    that rounding is no difference.
    """
    tried = copied(network).double()
    images, labels = data.example(2)[INPUT].double().contiguous(), data.example(2)[TARGET]
    program = _program(tried, data)
    weights, seen = [program.pack([tried])], [Images(images, labels.contiguous())]
    with torch.no_grad():
        outputs = tried.eval()(images)
    loss = functional.cross_entropy(tried.train()(images), labels)
    gradients = torch.autograd.grad(loss, [*tried.parameters()])
    by_name = dict(zip(dict(tried.named_parameters()), gradients, strict=True))
    expected = torch.cat([by_name[name].flatten() for name in program.lowered.parameters])
    return torch.allclose(program.outputs(weights, seen)[0][:, :, 0], outputs) and torch.allclose(
        program.gradients(weights, seen)[0][:, 0], expected
    )


def lanes(network: nn.Module, data: Splits) -> int:
    """How many networks one vector register holds."""
    return _program(network, data).lanes


def measure_memory(network: nn.Module, data: Splits, recipe: Recipe) -> Memory:
    """The bytes that a population always takes, and those that each member adds.

    The kernels report how much they take; only the images made ahead are estimated.
    """
    program = _program(network, data)
    image = math.prod(data.image_shape)
    images = min(SEGMENT_BYTES, len(data.train) * image * program.dtype.itemsize)
    fixed = torch.get_num_threads() * program.workspace(backward=True) + 2 * images
    # Weights in lanes, the optimiser's state, and the network itself, which has no gradients.
    numbers = program.lowered.weights * (2 + _STATES[recipe.optimizer])
    if isinstance(recipe, Retraining) and not recipe.common_random_numbers:
        # Each member has a batch of its own: once as made, once copied beside the other lanes'.
        numbers += 2 * recipe.batch_size * image
    return Memory(fixed, numbers * program.dtype.itemsize)


class NativePopulation:
    """P networks of one shape, trained as one; each ends as :func:`loop.train` would leave it.

    ``streams`` has one entry per network; networks with equal entries see the same batches.
    ``states``, one per network, are those of an earlier population, which this one continues.
    Raises :class:`CannotLowerError` for a network that the kernels cannot express.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        kernel: Kernel | None = None,
        states: Sequence[MemberState] | None = None,
    ) -> None:
        self._networks, self._streams = networks, streams
        self._data, self._recipe = data, recipe
        self._program = _program(networks[0], data, kernel)
        self._groups = _groups(streams, self._program.lanes)
        self._weights = [self._program.pack([networks[i] for i in g]) for g in self._groups]
        size = (_STATES[recipe.optimizer], *self._weights[0].shape)
        self._state = [torch.zeros(size, dtype=self._program.dtype) for _ in self._groups]
        self._steps = 0
        self._begun = Begun.read(states[0]) if states else None
        if states:
            self._restore(states)

    def train_epoch(self, epoch: int, between_steps: Callable[[], None] | None = None) -> None:
        """One pass over the training images, or the rest of a pass that was begun.

        The images are shuffled and augmented as in the loop.
        """
        begun, self._begun = self._begun, None
        recipe, done = self._recipe, 0 if begun is None else begun.step
        whole = recipe.steps_in_epoch(len(self._data.train))
        for segment in self._segments(epoch, done):
            steps = -(-len(segment[0]) // recipe.batch_size)
            self._program.train(
                self._weights,
                self._state,
                segment,
                batch_size=recipe.batch_size,
                optimizer=self._optimizer(epoch, done),
                steps_before=self._steps,
            )
            done, self._steps = done + steps, self._steps + steps
            if between_steps is not None and done < whole:
                self._begun = Begun.now(done, self._data.train.device)
                between_steps()
                self._begun = None

    def _optimizer(self, epoch: int, step: int) -> Optimizer:
        """The recipe's optimiser, with the learning rate of this step of this epoch."""
        recipe, steps = self._recipe, self._recipe.steps_in_epoch(len(self._data.train))
        return Optimizer(
            kind=_KINDS.index(recipe.optimizer),
            learning_rate=recipe.learning_rate_at(epoch, step, steps),
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            label_smoothing=recipe.label_smoothing,
            gradient_clip=recipe.gradient_clip or 0.0,
        )

    def measure(self, *, by_block: bool = False) -> Measured:
        """Mean losses (nats) and accuracies on each split, float64 ``[P]`` each."""
        measured = Measured({}, {})
        for name, split in self._data.named():
            images = Images(
                split.inputs.to(self._program.dtype).contiguous(),
                split.targets.contiguous(),
            )
            blocks = self._data.blocks.get(name) if by_block else None
            answers = self._program.evaluate(
                self._weights, [images] * len(self._groups), blocks=blocks
            )
            sums = torch.empty(2, len(self._networks), len(answers[0][0]), dtype=torch.float64)
            for members, answer in zip(self._groups, answers, strict=True):
                for own, found in zip(sums, answer, strict=True):
                    own[members] = found[:, : len(members)].T.double()
            named = dict(zip(("loss", "accuracy"), sums, strict=True))
            measured.values[name] = {n: own[:, 0] / len(split) for n, own in named.items()}
            if blocks is not None:
                measured.blocks[name] = {n: own[:, 1:] for n, own in named.items()}
        return measured

    def write_back(self) -> None:
        """Write the trained weights into the given networks."""
        for members, weights in zip(self._groups, self._weights, strict=True):
            self._program.unpack(weights, [self._networks[i] for i in members])

    def kept(self) -> list[Keepable]:
        """The weights and the optimiser's state of each network."""
        self.write_back()
        weights = (network.state_dict() for network in self._networks)
        return list(zip(weights, self.states(), strict=True))

    def states(self) -> list[MemberState]:
        """The optimiser's state of each network, from which a later population can continue."""
        found: list[MemberState] = [{}] * len(self._networks)
        for members, state in zip(self._groups, self._state, strict=True):
            for lane, member in enumerate(members):
                own = {
                    f"{kind}/{name}": state[row, at : at + size, lane].clone().view(shape)
                    for row, kind in enumerate(_REMEMBERED[self._recipe.optimizer])
                    for name, at, size, shape in self._places()
                }
                if self._recipe.optimizer != "sgd":
                    steps = torch.tensor(float(self._steps))
                    own |= {f"{STEP}/{name}": steps.clone() for name, *_ in self._places()}
                if self._begun is not None:
                    own |= self._begun.as_state()
                found[member] = own
        return found

    def _restore(self, states: Sequence[MemberState]) -> None:
        for members, state in zip(self._groups, self._state, strict=True):
            for lane, member in enumerate(members):
                for row, kind in enumerate(_REMEMBERED[self._recipe.optimizer]):
                    for name, at, size, _ in self._places():
                        # Without momentum, neither torch nor the kernels keep anything.
                        if (value := states[member].get(f"{kind}/{name}")) is not None:
                            state[row, at : at + size, lane] = value.flatten().to(state.dtype)
        steps = (value for key, value in states[0].items() if key.startswith(f"{STEP}/"))
        self._steps = int(next(steps, torch.tensor(0)))

    def _places(self) -> Iterator[tuple[str, int, int, torch.Size]]:
        """Where each parameter's numbers lie in a lane: name, offset, size, shape."""
        at = 0
        for name in self._program.lowered.parameters:
            parameter = self._networks[0].get_parameter(name)
            yield name, at, parameter.numel(), parameter.shape
            at += parameter.numel()

    def _segments(self, epoch: int, first: int) -> Iterator[list[Images]]:
        """The images of one epoch from a batch on, several batches at a time.

        A segment has one entry per group of lanes.
        """
        distinct = list(dict.fromkeys(self._streams))
        iterators = {
            stream: batches(self._data, self._recipe, stream[0], epoch, stream[1], first=first)
            for stream in distinct
        }
        shared = all(len({self._streams[i] for i in group}) == 1 for group in self._groups)
        copies = len(distinct) if shared else len(self._groups) * self._program.lanes
        image = math.prod(self._data.image_shape) * self._program.dtype.itemsize
        batch = copies * image * self._recipe.batch_size
        # The kernels train a segment at one learning rate.
        at_once = 1 if self._recipe.rate_changes_within_epoch else max(1, SEGMENT_BYTES // batch)
        while True:
            seen: dict[Stream, Images] = {}
            for stream, iterator in iterators.items():
                taken = list(itertools.islice(iterator, at_once))
                if not taken:
                    return
                pixels = torch.cat([batch[INPUT] for batch in taken]).to(self._program.dtype)
                seen[stream] = Images(
                    pixels.contiguous(), torch.cat([batch[TARGET] for batch in taken])
                )
            yield [self._seen_by([self._streams[i] for i in group], seen) for group in self._groups]

    def _seen_by(self, streams: list[Stream], seen: dict[Stream, Images]) -> Images:
        if len(set(streams)) == 1:
            return seen[streams[0]]
        streams = streams + [streams[0]] * (self._program.lanes - len(streams))
        pixels = torch.stack([seen[stream].pixels for stream in streams], dim=-1)
        labels = torch.stack([seen[stream].labels for stream in streams], dim=-1)
        return Images(pixels.contiguous(), labels.contiguous())


class NativeEngine(Engine):
    """The CPU's kernels: one network per lane of a vector register, one group per thread."""

    name: ClassVar[str] = "native"
    handicap: ClassVar[float] = 0.7
    uses_threads: ClassVar[bool] = True
    start = NativePopulation

    def refusal(self, network: nn.Module, data: Splits, recipe: Recipe) -> str | None:
        return refusal(network, data, recipe)

    def memory(self, network: nn.Module, data: Splits, recipe: Recipe) -> Memory:
        return measure_memory(network, data, recipe)

    def lanes(self, network: nn.Module, data: Splits) -> int:
        return lanes(network, data)

    def trial_members(self, lanes: int, room: int) -> int:
        return lanes * max(1, min(torch.get_num_threads(), room // lanes))


def _program(network: nn.Module, data: Splits, kernel: Kernel | None = None) -> Program:
    kinds = {parameter.dtype for parameter in network.parameters()}
    if kinds not in ({torch.float32}, {torch.float64}):
        raise CannotLowerError(f"its weights are {', '.join(sorted(map(str, kinds)))}")
    return Program(lower(network, data.image_shape), kinds.pop(), kernel)


def _groups(streams: Sequence[Stream], lanes: int) -> list[list[int]]:
    """Which members share a register.

    Members that see the same images share one, since the images then need no lanes of their own,
    unless that would leave most lanes empty.
    """
    by_stream: dict[Stream, list[int]] = {}
    for member, stream in enumerate(streams):
        by_stream.setdefault(stream, []).append(member)
    alike = [
        members[i : i + lanes]
        for members in by_stream.values()
        for i in range(0, len(members), lanes)
    ]
    dense = [list(range(i, min(i + lanes, len(streams)))) for i in range(0, len(streams), lanes)]
    return alike if len(alike) <= 2 * len(dense) else dense
