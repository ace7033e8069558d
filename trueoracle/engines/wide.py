"""Train networks of equal shapes as one, on their stacked weights.

Each member trains as the loop would train it alone. Whether a network allows that is tried before
(:func:`refusal`); how the members are computed together is in ``stacked.py``.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from trueoracle.data.splits import AnySplit, Split, Splits
from trueoracle.engines.continuing import MemberState, restore, state_of
from trueoracle.engines.stacked import Convolution, Each, Input, Stacked, tensors, wait_for
from trueoracle.errors import first_line
from trueoracle.networks.copying import copied
from trueoracle.training.evaluate import evaluation_batch
from trueoracle.training.loop import Stream, batches, make_optimizer, stream_seed
from trueoracle.training.recipe import Recipe, Retraining

__all__ = ["WidePopulation", "measure_memory", "refusal"]


class WidePopulation:
    """P networks of one architecture in training, each as ``loop.train`` would train it alone.

    ``streams[i]`` is (seed, stream) of member i; members with equal ones see the same batches.
    Where all are equal, all draw the same dropout (on a CPU that of the loop, unless a tensor lies
    otherwise in memory); where streams differ, dropout is independent between members, and depends
    on who is in the population. ``data`` is on the device to train on. ``networks`` may lie
    elsewhere; only :meth:`write_back` changes them.

    ``compiled`` puts the step through ``torch.compile``. ``convolution`` fixes how
    convolutions are computed: "members" one by one (the default on a CPU), "grouped" as one grouped
    convolution, "columns" as products of patches, or whichever is "measured" as the fastest (the
    default on CUDA, where fixing it makes the rounding of two runs agree). ``states``, one a
    member, are those of an earlier population: it goes on from there.

    Raises ``ValueError`` where the networks differ in more than values, and what tracing raises.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        streams: Sequence[Stream],
        data: Splits,
        recipe: Recipe,
        *,
        compiled: bool = False,
        convolution: Convolution | None = None,
        states: Sequence[MemberState] | None = None,
    ) -> None:
        if not networks or len(networks) != len(streams):
            raise ValueError(f"{len(networks)} networks need as many streams, got {len(streams)}")
        self._networks, self._data, self._recipe = list(networks), data, recipe
        self._streams = list(dict.fromkeys(streams))
        self._stream_of = [self._streams.index(stream) for stream in streams]
        self._device = data.train.device
        common = len(self._streams) == 1
        self._stacked = Stacked(self._networks, self._device, convolution, common_draws=common)
        self._optimizer = make_optimizer(self._stacked.parameters(), recipe)
        if states:
            restore(self._optimizer, self._stacked.state, states, stacked=True)
        if compiled:  # what was compiled for earlier populations counts against a limit
            torch.compiler.reset()
        self._compiled = torch.compile(self._loss, dynamic=False) if compiled else None
        self._shapes_seen: set[torch.Size] = set()

    def train_epoch(self, epoch: int) -> None:
        """One pass over the training split; ``epoch`` is counted from 0."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._recipe.learning_rate_at(epoch)
        self._stacked.train(True)
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            seed, stream = self._streams[0]
            torch.manual_seed(stream_seed(seed, epoch, "network", stream))
            with _attention_that_maps(self._device):
                for images, labels in self._batches(epoch):
                    self._step(images, labels)

    def measure(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean losses and accuracies, float64 ``[P]`` each, of every split, as ``evaluate``."""
        self._stacked.train(False)
        with torch.inference_mode(), _attention_that_maps(self._device):
            return {name: self._evaluate(split) for name, split in self._data.named()}

    def write_back(self) -> None:
        """Copy the trained weights and buffers into the networks given, in place."""
        with torch.no_grad():
            for i, network in enumerate(self._networks):
                for name, value in tensors(network).items():
                    value.copy_(self._stacked.state[name][i])

    def states(self) -> list[MemberState]:
        """What the optimiser remembers of each member, to go on from."""
        named = self._stacked.state
        return [state_of(self._optimizer, named, i) for i in range(len(self._networks))]

    def _batches(self, epoch: int) -> Iterator[tuple[Input, Tensor]]:
        """Images and labels ``[N]`` for all; where streams differ, of each: labels ``[P, N]``.

        With mixup or cutmix, labels have one more dimension: the probability of each class.
        """
        sources = [batches(self._data, self._recipe, s, epoch, name) for s, name in self._streams]
        for parts in zip(*sources, strict=True):
            if len(parts) == 1:
                yield parts[0]
            else:
                images, labels = zip(*(parts[i] for i in self._stream_of), strict=True)
                yield Each(torch.stack(images)), torch.stack(labels)

    def _step(self, images: Input, labels: Tensor) -> None:
        """One step of the optimiser; nothing in it waits for the device."""
        self._optimizer.zero_grad()
        loss_of: Callable[[Input, Tensor], Tensor] = self._loss
        # The first step of a size runs as it is: it may choose paths, with a stopwatch.
        if self._compiled is not None and labels.shape in self._shapes_seen:
            loss_of = self._compiled
        self._shapes_seen.add(labels.shape)
        loss_of(images, labels).backward()
        if self._recipe.gradient_clip is not None:
            _clip_gradients(self._stacked.parameters(), self._recipe.gradient_clip)
        self._optimizer.step()

    def _loss(self, images: Input, labels: Tensor) -> Tensor:
        """The sum of the members' losses, of which each gives its member's gradient only."""
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._recipe.autocast):
            logits = self._stacked(images)
            return _losses(logits, labels, self._recipe.label_smoothing).mean(1).sum()

    def _evaluate(self, split: AnySplit) -> tuple[Tensor, Tensor]:
        count = len(self._networks)
        losses = torch.zeros(count, dtype=torch.float64, device=self._device)
        right = torch.zeros(count, dtype=torch.int64, device=self._device)
        # As in evaluate(): a norm without running statistics depends on it.
        for images, labels in split.batches(evaluation_batch(split.image_shape)):
            logits = self._stacked(images)
            losses += _losses(logits, labels).sum(1, dtype=torch.float64)
            right += (logits.argmax(2) == labels).sum(1)
        return losses / len(split), right.double() / len(split)


def refusal(network: nn.Module, recipe: Recipe, example: Tensor) -> str | None:
    """Why networks like this one cannot be trained as one, in a few words; None where they can.

    It is tried, not guessed: two members of different weights compute gradients and predictions
    for ``example`` ``[N, C, H, W]``, together and alone, on the CPU. The network and the global
    random numbers are left as they were.
    """
    if isinstance(recipe, Retraining) and not recipe.common_random_numbers and _drops(network):
        return "dropout draws from one stream for all members, and each is to have its own"
    members = [_without_dropout(copied(network).cpu()) for _ in range(2)]
    with torch.random.fork_rng(devices=[]), _attention_that_maps(torch.device("cpu")):
        try:
            with torch.no_grad():
                for parameter in members[1].parameters():
                    parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
            difference = _difference(members, recipe, example.cpu())
        except Exception as error:  # the user's forward runs: anything can come out
            return first_line(error)
    if difference is None:
        return None
    return f"members trained together differ from the same trained alone in {difference}"


def _drops(network: nn.Module) -> bool:
    return any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p for m in network.modules())


def measure_memory(network: nn.Module, data: Splits, recipe: Recipe) -> tuple[int, int]:
    """Bytes that a population takes beyond data and networks: (fixed, more for each member).

    Measured at the peak of two steps (the second finds the optimiser's state) and one evaluation
    with 2 and with 4 members. On CUDA it is what torch's allocator held; on a CPU the storages of
    all tensors alive, where what a kernel takes and gives back within itself is not seen.
    """
    index = torch.arange(len(data.train), device=data.train.device)
    sizes = recipe.batch_size, evaluation_batch(data.train.image_shape)
    batch, many = (data.train.take(index[:n]) for n in sizes)
    few = Splits(batch, None, many, data.classes, data.fill)
    common = not isinstance(recipe, Retraining) or recipe.common_random_numbers

    def train(members: int) -> None:
        streams = [(0, "" if common else str(i)) for i in range(members)]
        population = WidePopulation([network] * members, streams, few, recipe)
        population.train_epoch(0)
        population.train_epoch(0)
        population.measure()

    two, four = (_peak_bytes(functools.partial(train, n), index.device) for n in (2, 4))
    each = max(0, four - two) // 2
    return max(0, two - 2 * each), each


def _losses(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy ``[P, N]`` of logits ``[P, N, K]``, for labels ``[N]`` or ``[P, N]``.

    Or for class probabilities, floating-point ``[N, K]`` or ``[P, N, K]``.
    """
    members, images = logits.shape[:2]
    of_all = labels.shape[-2:] if labels.is_floating_point() else labels.shape[-1:]
    flat = functional.cross_entropy(
        logits.flatten(0, 1),
        labels.expand(members, *of_all).flatten(0, 1),
        reduction="none",
        label_smoothing=label_smoothing,
    )
    return flat.view(members, images)


def _clip_gradients(parameters: Sequence[Tensor], largest: float) -> None:
    """Each member's gradient to a norm of at most ``largest``, as ``clip_grad_norm_``."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
    scale = (largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


@contextmanager
def _attention_that_maps(device: torch.device) -> Iterator[None]:
    """Attention without the fused kernels that cannot be mapped over members."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _without_dropout(network: nn.Module) -> nn.Module:
    """Dropout layers that drop nothing: what is drawn depends on the order in memory, too."""
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return network


def _difference(members: Sequence[nn.Module], recipe: Recipe, images: Tensor) -> str | None:
    """The first tensor in which members together differ from members alone, None if none."""
    with torch.no_grad():
        logits = members[0].eval()(images)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        return "their output, which is no tensor [N, classes]"
    split = Split(images, torch.arange(len(images)) % logits.shape[1])
    data = Splits(split, None, split, classes=logits.shape[1])
    population = WidePopulation(members, [(0, "")] * len(members), data, recipe)
    stacked = population._stacked
    stacked.train(True)
    torch.default_generator.manual_seed(0)
    population._loss(images.clone(), split.labels).backward()
    together = {name: v.grad if v.requires_grad else v for name, v in stacked.state.items()}
    stacked.train(False)
    with torch.no_grad():
        predicted = stacked(images.clone())
    for i, member in enumerate(members):
        member.train()
        torch.default_generator.manual_seed(0)
        functional.cross_entropy(
            member(images.clone()), split.labels, label_smoothing=recipe.label_smoothing
        ).backward()
        alone = {n: v.grad if v.requires_grad else v for n, v in tensors(member).items()}
        gradients = (p.grad for p in member.parameters() if p.grad is not None)
        scale = max((float(gradient.norm()) for gradient in gradients), default=0.0)
        for name, expected in alone.items():
            found = together[name]
            if (found is None) != (expected is None):
                return name
            if found is not None and expected is not None and not _close(found[i], expected, scale):
                return name
        with torch.no_grad():
            if not _close(predicted[i], member.eval()(images.clone()), 1.0):
                return "their predictions"
    return None


def _close(found: Tensor, expected: Tensor, scale: float) -> bool:
    """Equal but for rounding; where values cancel out, that is relative to ``scale``."""
    difference = float((found - expected).float().norm())
    return difference <= 1e-2 * float(expected.float().norm()) + 1e-4 * scale


def _peak_bytes(run: Callable[[], None], device: torch.device) -> int:
    """The most bytes that ``run`` held at a time."""
    if device.type == "cuda":
        run()  # what libraries keep for good is not the run's, nor is the choice of paths
        wait_for(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        wait_for(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    live = _LiveBytes()
    with live:
        run()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operations make: bytes alive now, and at the peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in pytree.tree_leaves((args, kwargs)):
            self._meet(value, new=False)
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            self._meet(value, new=True)
        return result

    def _meet(self, value: object, *, new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if new else 0

        def forget(_: object) -> None:
            self._known.pop(key, None)
            self.live -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live += size
        self.peak = max(self.peak, self.live)
