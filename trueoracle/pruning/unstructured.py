"""Pruning single weights: random masks, each made again from one number, and held in retraining."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trueoracle.errors import InputError, first_line, shown
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import Example
from trueoracle.pruning.candidates import (
    ENUMERATION_LIMIT,
    Importance,
    Surgery,
    match_layers,
    number_pruned,
)
from trueoracle.pruning.cost import Cost, cost, macs_by_parameter
from trueoracle.pruning.groups import Group
from trueoracle.pruning.listing import Listing, read_listing
from trueoracle.pruning.parity import check_network, check_training

__all__ = [
    "Scope",
    "WeightCandidates",
    "check_masks",
    "held_weight",
    "list_weight_candidates",
    "unmasked",
]

Scope = Literal["layer", "global"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_DIGITS = frozenset("0123456789abcdef")


@dataclass(frozen=True, eq=False)
class WeightCandidates:
    """P random masks over the weights of some layers, which prune by setting to zero.

    ``shapes`` maps each layer to the shape of its weight. ``counts`` says how many weights are
    zeroed: of each layer (scope ``layer``), or of all together (``global``: one entry, ``""``).

    Candidate i is the number ``masks[i]`` below 2⁶⁴, which seeds numpy's PCG64. One raw 64-bit
    output belongs to each weight, in the order of layers and then of memory; the weights with the
    smallest ones are pruned. So every subset of the right size is equally likely, candidates are
    independent, and nothing but the number is kept.
    """

    shapes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, int]
    scope: Scope
    masks: tuple[int, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """None: no whole filters are pruned here."""
        return ()

    @property
    def weights(self) -> tuple[str, ...]:
        """The layers of whose weight single numbers are pruned."""
        return tuple(self.shapes)

    @property
    def surgery(self) -> Surgery:
        return "exact"

    @property
    def space(self) -> int | None:
        """None: a number of thousands of digits."""
        return None

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.masks)

    def take(self, indices: Sequence[int]) -> WeightCandidates:
        """Some of the candidates, as another ``WeightCandidates``."""
        return replace(self, masks=tuple(self.masks[i] for i in indices))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One stable id a candidate: 16 hex digits over layers, shapes, counts and mask."""
        layers = ";".join(f"{n}/{'x'.join(map(str, shape))}" for n, shape in self.shapes.items())
        counts = ";".join(f"{name}:{count}" for name, count in self.counts.items())
        common = f"weights/{self.scope}/{layers}/{counts}"
        return tuple(
            hashlib.sha256(f"{common}/{_digits(mask)}".encode()).hexdigest()[:16]
            for mask in self.masks
        )

    def pruned(self, index: int) -> dict[str, Any]:
        """The number of the mask in 16 hex digits, and the sparsity by layer (or of all)."""
        sparsity = {
            name or "*": round(count / self._sizes_by_count[name], 6)
            for name, count in self.counts.items()
        }
        return {"mask": _digits(self.masks[index]), "sparsity": sparsity}

    def kept(self, index: int) -> dict[str, Tensor]:
        """The mask of one candidate by layer, bool, shaped like its weight: 1 = kept."""
        parts = np.split(self._kept(index), np.cumsum(self._sizes)[:-1])
        return {
            name: torch.from_numpy(part).view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    @cached_property
    def _sizes(self) -> list[int]:
        """How many weights each layer has."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def _sizes_by_count(self) -> dict[str, int]:
        """Of how many weights each entry of ``counts`` says how many are pruned."""
        if self.scope == "global":
            return {"": sum(self._sizes)}
        return dict(zip(self.shapes, self._sizes, strict=True))

    def _kept(self, index: int) -> np.ndarray:
        """The mask ``[weights]`` over all layers."""
        # The raw stream, which numpy promises not to change; what is drawn from it may.
        keys = np.random.PCG64(self.masks[index]).random_raw(sum(self._sizes))
        kept = np.ones(len(keys), dtype=bool)
        start = 0
        for name, size in self._sizes_by_count.items():
            count = self.counts[name]
            smallest = np.argpartition(keys[start : start + size], count - 1)[:count]
            kept[start + smallest] = False
            start += size
        return kept

    def prune(self, dense: nn.Module, index: int) -> nn.Module:
        """A copy of ``dense`` whose pruned weights are zero, and stay so however it is trained.

        Each pruned layer's ``weight`` is computed from a parameter and the mask
        (``torch.nn.utils.parametrize``); :func:`unmasked` makes it plain again.
        """
        network = copied(dense)
        for name, kept in self.kept(index).items():
            layer = network.get_submodule(name)
            weight = layer.get_parameter("weight")
            mask = kept.to(weight)
            with torch.no_grad():  # else weight decay would work on numbers that nobody reads
                weight.mul_(mask)
            parametrize.register_parametrization(layer, "weight", _Masked(mask))
        return network

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: the ``importance`` of each weight, summed over those that are pruned.

        ``importance`` maps each layer to numbers shaped like its weight. Raises
        :class:`InputError` where there are none.
        """
        parts = []
        for name, shape in self.shapes.items():
            given = importance.get(name)
            plain = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
            if plain is None or np.shape(plain) != shape:
                found = "none" if plain is None else list(np.shape(plain))
                raise InputError(
                    f"pruning.kind = 'unstructured' needs the importance of each weight of {name} "
                    f"{list(shape)}, got {found}"
                )
            parts.append(np.asarray(plain, dtype=np.float64).ravel())
        flat = np.concatenate(parts)
        return np.array([flat[~self._kept(index)].sum() for index in range(len(self))])

    def costs(self, dense: nn.Module, given: Sequence[int] | Example) -> list[Cost]:
        """The cost of each pruned network, of which zeros are no part.

        A layer's MACs shrink with the share of its weights that are left. In scope ``layer`` that
        is the same for all candidates.
        """
        whole, by_parameter = cost(dense, given), macs_by_parameter(dense, given)
        macs = [by_parameter.get(f"{name}.weight", 0) for name in self.shapes]
        zeros = sum(self.counts.values())

        def one(index: int) -> Cost:
            left = [int(kept.sum()) for kept in self.kept(index).values()]
            saved = (
                m - m * kept // size for m, kept, size in zip(macs, left, self._sizes, strict=True)
            )
            return Cost(whole.parameters - zeros, whole.macs - sum(saved))

        if self.scope == "layer":
            return [one(0)] * len(self)
        return [one(index) for index in range(len(self))]

    def listing(self) -> Listing:
        """The layers and how many weights are pruned, and the mask of each candidate."""
        return Listing(
            _header(self.shapes, self.counts, self.scope), tuple(map(_digits, self.masks))
        )


class _Masked(nn.Module):
    """A weight times a mask: what is zero stays zero, and its gradient is, too.

    The mask is in the weight's own type, so that networks can be stacked and computed as one.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.get_buffer("mask").to(weight.dtype)


def held_weight(layer: nn.Module) -> tuple[nn.Parameter, Tensor] | None:
    """The parameter and the mask that a pruned layer's weight is computed from; None: it is plain.

    The mask is 1 where a weight is kept, and shaped like the weight.
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    held = layer.get_submodule("parametrizations.weight")
    first = held.get_submodule("0")
    if not isinstance(first, _Masked):
        return None
    return held.get_parameter("original"), first.get_buffer("mask")


def unmasked(network: nn.Module) -> nn.Module:
    """A copy of a pruned network with plain weights, some of them zero: to save, or to hand on."""
    plain = copied(network)
    for module in list(plain.modules()):
        if (held := held_weight(module)) is None:
            continue
        trains = held[0].requires_grad
        weight = nn.Parameter(cast(Tensor, module.weight).detach(), requires_grad=trains)
        # Not by remove_parametrizations, which changes a class that copies share with the original.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module._modules["parametrizations"]
        module.register_parameter("weight", weight)
    return plain


def list_weight_candidates(
    network: nn.Module,
    sparsities: Mapping[str, float],
    *,
    count: int | Path,
    seed: int = 0,
    scope: Scope = "layer",
) -> WeightCandidates:
    """Sample masks over the weights of convolutions and linear layers.

    ``sparsities`` maps layer names or patterns to the share of weights that are pruned: of each
    layer, or (scope ``global``, where all are equal) of all of them together; it is rounded to
    whole weights by :func:`number_pruned`. ``count`` is how many masks to draw with ``seed``, or
    the file of a listing. Raises :class:`InputError` for a pattern without such a layer, a sparsity
    that prunes nothing or everything, and a listing that does not fit.
    """
    available, refused = _weighted_layers(network)
    matched = match_layers(available, refused, sparsities)
    shapes = {name: shape for name, shape in available.items() if name in matched}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if scope == "global":
        sizes = {"": sum(sizes.values())}
        matched = {"": next(iter(matched.values()))}
    counts = {}
    for name, size in sizes.items():
        try:
            counts[name] = number_pruned(matched[name], size, "weights")
        except InputError as error:
            raise InputError(f"pruning.layers: {name or 'all layers'}: {error}") from error
    if isinstance(count, Path):
        masks = _masks_of(read_listing(count, _header(shapes, counts, scope)), count)
    else:
        if count > ENUMERATION_LIMIT:
            raise InputError(
                f"pruning.candidates = {count:,}, but at most {ENUMERATION_LIMIT:,} are sampled"
            )
        _check_room(sizes, counts, count)
        masks = tuple(_mask_number(seed, index) for index in range(count))
    return WeightCandidates(shapes, counts, scope, masks)


def _weighted_layers(network: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The layers with weights of their own and their shapes; and why others have none."""
    owners = Counter(
        id(p) for m in network.modules() for p in m._parameters.values() if p is not None
    )
    available, refused = {}, {}
    for name, module in network.named_modules():
        if not isinstance(module, _LAYERS):
            continue
        weight = module._parameters.get("weight")
        if weight is None or parametrize.is_parametrized(module):
            refused[name] = "it computes its weights from others"
        elif owners[id(weight)] > 1:
            refused[name] = "it shares weights with another layer"
        else:
            available[name] = tuple(weight.shape)
    return available, refused


def _check_room(sizes: Mapping[str, int], counts: Mapping[str, int], wanted: int) -> None:
    """Refuse samples in which a mask would come twice, but for a chance of one in 100."""
    digits = sum(
        math.lgamma(n + 1) - math.lgamma(counts[name] + 1) - math.lgamma(n - counts[name] + 1)
        for name, n in sizes.items()
    )
    pairs = wanted * (wanted - 1) / 2
    if pairs and digits < math.log(100 * pairs):
        raise InputError(
            f"pruning.candidates = {wanted:,}, but there are about {math.exp(digits):,.0f} masks: "
            "too few to sample without repeats"
        )


def _mask_number(seed: int, index: int) -> int:
    """The 64-bit number of one candidate of a sample: those of other seeds are unrelated."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}/mask".encode()).digest()[:8], "big")


def _digits(mask: int) -> str:
    # As text, since many readers of JSON keep 53 bits of a number.
    return f"{mask:016x}"


def _header(
    shapes: Mapping[str, tuple[int, ...]], counts: Mapping[str, int], scope: Scope
) -> dict[str, Any]:
    return {
        "kind": "unstructured",
        "scope": scope,
        "weights": {name: "x".join(map(str, shape)) for name, shape in shapes.items()},
        "pruned": {name or "*": count for name, count in counts.items()},
    }


def _masks_of(entries: Sequence[Any], path: Path) -> tuple[int, ...]:
    """The numbers that a listing's entries write, each of them checked."""
    places: dict[int, int] = {}
    for place, entry in enumerate(entries, start=1):
        where = f"{path}: candidate {place}"
        if not isinstance(entry, str) or len(entry) != 16 or not _DIGITS.issuperset(entry):
            raise InputError(f"{where} is a mask's 16 hex digits, got {shown(entry)}")
        mask = int(entry, 16)
        if mask in places:
            raise InputError(f"{where} is the same as candidate {places[mask]}")
        places[mask] = place
    return tuple(places)


def check_masks(dense: nn.Module, candidates: WeightCandidates, example: Tensor) -> None:
    """Check that a pruned network is the dense one with zeros, and that it trains.

    ``example`` is a batch ``[N, C, H, W]``, N at least 2. The first and the last candidate are
    tried, against weights multiplied by hand. Raises :class:`InputError`, also where the dense
    network itself does not answer or train.
    """
    check_network(dense, example)
    check_training(dense, example)
    network = copied(dense).eval()
    for index in sorted({0, len(candidates) - 1}):
        by_hand = copied(network)
        try:
            with torch.no_grad():
                for name, kept in candidates.kept(index).items():
                    weight = by_hand.get_parameter(f"{name}.weight")
                    weight.mul_(kept.to(weight))
                expected = by_hand(example)
                found = candidates.prune(network, index)(example)
            candidates.prune(dense, index).train()(example).sum().backward()
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"the network does not run once weights of {', '.join(candidates.weights)} are "
                f"pruned: {first_line(error)}"
            ) from error
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5):
            difference = float((found - expected).abs().max())
            raise InputError(
                f"masked weights of {', '.join(candidates.weights)} are not the same as zeros "
                f"(outputs differ by {difference:.2g}): the network reads them elsewhere"
            )
