"""The losses of many candidates, computed from contributions that they share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from trueoracle.criteria.native import NativeTail
from trueoracle.criteria.shared.choices import (
    CannotShareError,
    check_plain,
    choices_of,
    moved_filters,
    widened,
)
from trueoracle.criteria.shared.graph import (
    bytes_of,
    consumers_of,
    only_input,
    power_of_two,
    summable_groups,
)
from trueoracle.criteria.shared.linear import (
    contributions_of,
    covers,
    cross_entropy,
    max_pool,
    plain_pool,
    summed,
    whole_conv,
)
from trueoracle.networks.operations import ancestors_of, called, closure_of, constant, last_uses
from trueoracle.networks.tracing import trace
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.surgery import prune

__all__ = ["BLOCK_BYTES", "BLOCK_CANDIDATES", "NATIVE_BYTES", "Shared", "SharedLosses"]

log = logging.getLogger(__name__)


BLOCK_BYTES = {"cpu": 4 * 2**20, "cuda": 256 * 2**20}
"""About the most bytes of a temporary tensor for a chunk of images or a block of candidates.

On a CPU, a few tensors of this size fit the cache; smaller blocks would cost more calls.
"""

BLOCK_CANDIDATES = 32
"""Most candidates in a block, and so the most that padding the last block can waste."""

NATIVE_BYTES = 128 * 2**20
"""Most bytes of weights of the candidates that the native kernels score together."""


@dataclass(frozen=True)
class Shared:
    """What all candidates share of one chunk of N images.

    ``contributions`` maps consumers to ``[N, C, F, H, W]`` (``[N, C, F]`` for a linear consumer):
    the C filters' parts of the consumer's output, each with its share of the bias. In memory, F
    comes last. ``values`` are other activations that later operations read.
    """

    contributions: dict[fx.Node, Tensor]
    values: dict[fx.Node, Any]
    labels: Tensor


class SharedLosses:
    """Computes the losses of P candidates, sharing what does not depend on the candidate.

    ``tail`` is the list of modules after the contributions, where these form a plain chain after
    the single consumer of a single group; else it is None.
    """

    def __init__(self, dense: nn.Module, candidates: Candidates, example: Tensor) -> None:
        """Plan the computation; ``example`` is a batch ``[N, …]`` that the network takes.

        ``dense`` stays unchanged. Raises :class:`CannotShareError`, and whatever tracing and
        running the network raise.
        """
        self._dense, self._candidates = dense, candidates
        check_plain(dense, candidates)
        network = prune(dense, (), {}).eval()
        graph = trace(network)
        wanted = summable_groups(graph, candidates, example[:1])
        self._sums, self._masks = choices_of(dense, candidates, wanted)
        if candidates.surgery == "as-released" and wanted:
            network = widened(dense, candidates, wanted).eval()
            graph = trace(network)
        # This layout is the fastest on CPUs, above all for pooling and grouped convolutions.
        self._graph = graph.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._modules = dict(graph.named_modules())
        self._example = example
        self._split_graph()
        self._size_blocks()
        self.tail = self._chain()
        self._native: NativeTail | None = None

    @property
    def selection(self) -> Tensor:
        """Which contributions each candidate adds up, float32 ``[P, C]``; only with a ``tail``."""
        (one,) = self._sums
        return one.chosen.float()

    @property
    def is_native(self) -> bool:
        """Whether the native kernels compute the tail."""
        return self._native is not None

    # Planning

    def _split_graph(self) -> None:
        """Sort the operations into shared ones, and those to repeat for each candidate."""
        nodes = list(self._graph.graph.nodes)
        by_target = {str(node.target): node for node in nodes if node.op == "call_module"}
        self._summed = consumers_of(by_target, (one.group for one in self._sums))
        self._masked = consumers_of(by_target, (one.group for one in self._masks))
        # Under the released wiring, a masked group's channels change places where they are made.
        self._moved = {
            by_target[one.group.name]: one.source for one in self._masks if one.source is not None
        }
        self._sum_of = {r.module: one for one in self._sums for r in one.group.consumers}
        self._mask_of = {r.module: one for one in self._masks for r in one.group.consumers}
        images = next(node for node in nodes if node.op == "placeholder")
        self._images, self._of_images = images, closure_of({images})
        late = closure_of({*self._summed, *self._masked, *self._moved})
        self._shared_nodes = [n for n in nodes if n not in late and n.op != "output"]
        self._output = only_input(nodes[-1])
        values = self._run_shared(self._example[:2], keep=None)
        # Numbers read from a batch, such as its size, change when candidates are merged into it.
        self._counts = {
            node
            for node in self._of_images - late
            if node in values and not isinstance(values[node], Tensor)
        }
        needed = {
            node
            for node in ancestors_of(self._output, stop=set(self._shared_nodes) - self._counts)
            if node in late or node in self._counts
        }
        self._late_nodes = [node for node in nodes if node in needed]
        self._handed = {
            source
            for node in self._late_nodes
            if node not in self._summed
            for source in node.all_input_nodes
            if source not in late and source not in self._counts
        }
        for node in (self._handed | self._counts & needed) & self._of_images:
            if not isinstance(values[node], Tensor | int | torch.Size):
                raise CannotShareError(f"{node.name} is a {type(values[node]).__name__}")
        keep = {*self._handed, *(only_input(node) for node in self._summed)}
        self._shared_drops = last_uses(self._shared_nodes, keep)
        self._late_drops = last_uses(self._late_nodes, {self._output})

    def _size_blocks(self) -> None:
        """Choose how many images make a chunk, and how many candidates a block."""
        budget = BLOCK_BYTES["cuda" if self._example.is_cuda else "cpu"]
        images = self._example[:1]
        values = self._run_shared(images, keep=None)
        given = [bytes_of(value) for node, value in values.items() if node in self._of_images]
        parts = self._parts_of(values)
        shared = max(given) + sum(map(bytes_of, parts.values()))
        handed = {node: values[node] for node in self._handed}
        late = [bytes_of(value) for value in handed.values()]
        none = torch.zeros(1, dtype=torch.long)
        self._run_late(Shared(parts, handed, labels=none), none, late)
        self.chunk_images = power_of_two(budget // max(shared, 1))
        room = budget // (self.chunk_images * max(late))
        self.block_candidates = min(power_of_two(room), BLOCK_CANDIDATES)

    def _chain(self) -> list[nn.Module] | None:
        if len(self._summed) != 1 or self._masked or self._handed:
            return None
        modules = []
        for before, node in zip(self._late_nodes, self._late_nodes[1:], strict=False):
            if node.op != "call_module" or node.args != (before,) or node.kwargs:
                return None
            modules.append(self._modules[str(node.target)])
        return modules

    # Trying

    def agrees(self, images: Tensor) -> bool:
        """Whether the first and last candidate have the same outputs as their pruned networks.

        The logits ``[N, classes]`` of some images are compared, with the square root of the
        precision as tolerance: rounding stays far below it, a wrongly wired channel far above.
        """
        tried = sorted({0, len(self._candidates) - 1})
        with torch.inference_mode():
            shared = self.share(images, torch.zeros(len(images), dtype=torch.long))
            found = self._run_late(shared, torch.tensor(tried)).unflatten(0, (-1, len(tried)))
            for place, index in enumerate(tried):
                network = self._candidates.prune(self._dense, index).eval()
                expected = network(images)
                tolerance = torch.finfo(expected.dtype).eps ** 0.5 * expected.abs().amax()
                difference = (found[:, place] - expected).abs().amax()
                if found[:, place].shape != expected.shape or not bool(difference <= tolerance):
                    return False
        return True

    def use_native(self, images: Tensor) -> None:
        """Let the native kernels compute the tail, if they can and agree on some ``images``."""
        if self.tail is None or images.device.type != "cpu":
            return
        labels = torch.zeros(len(images), dtype=torch.long)
        shared = self.share(images, labels)
        (maps,) = shared.contributions.values()
        try:
            native = NativeTail(self.tail, maps.shape[1:], maps.dtype)
        except Exception as reason:  # a user's own modules: anything can come out
            log.info("candidates are scored without the native kernels: %s", reason)
            return
        tried = sorted({0, len(self._candidates) - 1})
        found = native.sum_losses(native.pack(self.selection[tried]), maps, labels)[: len(tried)]
        with torch.inference_mode():
            logits = self._run_late(shared, torch.tensor(tried))
        answers = cross_entropy(logits, labels.repeat_interleave(len(tried))).double()
        expected = answers.view(-1, len(tried)).sum(0)
        tolerance = torch.finfo(maps.dtype).eps ** 0.5
        if torch.allclose(found, expected, rtol=tolerance, equal_nan=True):
            self._native = native
        else:
            log.warning("the native kernels disagree with PyTorch, and are not used: report this")

    # Computing

    def losses(self, images: Tensor, labels: Tensor) -> np.ndarray:
        """Mean cross-entropy (nats) float64 ``[P]`` over images ``[N, …]`` of classes ``[N]``."""
        native = self._native
        if native is None:
            sums = self._over_chunks(self.sum_losses, images, labels)
            return (sums / len(images)).cpu().numpy()
        parts = []
        for some in self.selection.split(max(1, NATIVE_BYTES // native.candidate_bytes)):
            groups = native.pack(some)

            def natively(shared: Shared, groups: list[Tensor] = groups) -> Tensor:
                (maps,) = shared.contributions.values()
                return native.sum_losses(groups, maps, shared.labels)

            parts.append(self._over_chunks(natively, images, labels)[: len(some)])
        return (torch.cat(parts) / len(images)).numpy()

    def _over_chunks(
        self, function: Callable[[Shared], Tensor], images: Tensor, labels: Tensor
    ) -> Tensor:
        """The sum, over chunks of images, of a function of what candidates share."""

        def of_chunk(some: Tensor, their: Tensor) -> Tensor:
            with torch.inference_mode():
                return function(self.share(some, their))

        chunks = images.split(self.chunk_images), labels.split(self.chunk_images)
        with _each_on_one_thread(images.device) as apply:
            # The chunks' results are added in order, whichever chunk is finished first.
            return sum(apply(of_chunk, *chunks), start=torch.zeros((), dtype=torch.float64))

    def share(self, images: Tensor, labels: Tensor) -> Shared:
        """What all candidates share of a chunk of images."""
        values = self._run_shared(images, keep=self._shared_drops)
        handed = {node: values[node] for node in self._handed}
        return Shared(self._parts_of(values), handed, labels)

    def sum_losses(self, shared: Shared) -> Tensor:
        """The candidates' sums of cross-entropy float64 ``[P]`` over one chunk of images.

        They are computed from contributions, choices and labels, which is all that a faster way for
        a plain ``tail`` needs. All blocks have one size, the last one padded, so that a candidate's
        loss does not depend on how many others it is evaluated with.
        """
        count, size = len(self._candidates), self.block_candidates
        labels = shared.labels.repeat_interleave(size)
        sums = []
        for start in range(0, count, size):
            block = torch.arange(start, start + size).clamp(max=count - 1)
            logits = self._run_late(shared, block)
            sums.append(cross_entropy(logits, labels).double().view(-1, size).sum(0))
        return torch.cat(sums)[:count]

    def _run_shared(
        self, images: Tensor, keep: dict[fx.Node, list[fx.Node]] | None
    ) -> dict[fx.Node, Any]:
        """The values of the shared operations; ``keep`` says which to drop after which."""
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        values: dict[fx.Node, Any] = {}
        with torch.inference_mode():
            for node in self._shared_nodes:
                is_given = node is self._images
                values[node] = images if is_given else self._call(node, values.__getitem__)
                for done in keep[node] if keep is not None else ():
                    del values[done]
        return values

    def _parts_of(self, values: dict[fx.Node, Any]) -> dict[fx.Node, Tensor]:
        parts = {}
        with torch.inference_mode():
            for node, reader in self._summed.items():
                count = self._sum_of[reader.module].count
                module, given = self._modules[reader.module], values[only_input(node)]
                parts[node] = contributions_of(module, given, reader.spread, count)
        return parts

    def _run_late(self, shared: Shared, block: Tensor, sizes: list[int] | None = None) -> Tensor:
        """The outputs ``[N·P, …]`` of a block ``[P]`` of candidates, which vary fastest.

        The bytes of every value are appended to ``sizes``, where it is given.
        """
        count = len(block)
        values: dict[fx.Node, Any] = {}

        def fetch(node: fx.Node) -> Any:
            if node not in values:
                value = shared.values[node]
                is_of_images = node in self._of_images and isinstance(value, Tensor)
                values[node] = value.repeat_interleave(count, 0) if is_of_images else value
            return values[node]

        with torch.inference_mode():
            for node in self._late_nodes:
                if node in self._summed:
                    chosen = self._sum_of[self._summed[node].module].chosen[block]
                    value = summed(shared.contributions[node], chosen)
                elif node in self._masked:
                    value = self._call_masked(node, fetch, block)
                else:
                    value = self._call(node, fetch)
                if node in self._moved:
                    value = moved_filters(value, self._moved[node][block])
                values[node] = value
                if sizes is not None:
                    sizes.append(bytes_of(value))
                for done in self._late_drops[node]:
                    values.pop(done, None)
        return values[self._output]  # type: ignore[no-any-return]

    def _call_masked(self, node: fx.Node, fetch: Callable[[fx.Node], Any], block: Tensor) -> Tensor:
        reader = self._masked[node]
        given = fetch(only_input(node))
        mask = self._mask_of[reader.module].read[block].repeat_interleave(reader.spread, 1)
        each = given.unflatten(0, (-1, len(block)))
        mask = mask.to(given).view(1, *mask.shape, *(1 for _ in each.shape[3:]))
        return self._modules[reader.module]((each * mask).flatten(0, 1))  # type: ignore[no-any-return]

    def _call(self, node: fx.Node, fetch: Callable[[fx.Node], Any]) -> Any:
        """One operation of the graph."""
        if node.op == "placeholder":
            return node.args[0]  # the default of an argument that is no image
        if node.op == "get_attr":
            return constant(self._graph, node)
        args, kwargs = fx.map_arg(node.args, fetch), fx.map_arg(node.kwargs, fetch)
        if node.op == "call_method" and node.target == "view":
            # With channels last, neighbouring axes need not be neighbours in memory.
            return cast(Any, args[0]).reshape(*args[1:], **kwargs)
        if node.op != "call_module":
            return called(node)(*args, **kwargs)
        module = self._modules[str(node.target)]
        hooked = module._forward_hooks or module._forward_pre_hooks
        if len(args) == 1 and not kwargs and not hooked:
            given = cast(Tensor, args[0])
            if side := plain_pool(module):
                return max_pool(given, side)
            if covers(module, given):
                return whole_conv(cast(nn.Conv2d, module), given)
        return module(*args, **kwargs)


@contextmanager
def _each_on_one_thread(device: torch.device) -> Iterator[Callable[..., Iterable[Tensor]]]:
    """A ``map`` over chunks; on a CPU, each thread of torch computes a chunk of its own.

    The operations on a chunk are too short to split among threads: if threads waited for each other
    after every operation, this would cost a fifth of the time, and many times that where other
    programs use the machine, too.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    try:
        # Each thread has its own setting; the default for later threads is restored below.
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)
