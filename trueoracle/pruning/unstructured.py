"""Prunes single weights by masks that follow from one number each and are held in retraining.

Masks are random, or drawn around what a criterion would prune. The scope says which weights compete
with each other: those of a layer, of an output row, of all layers, or a few neighbours (N:M).
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trueoracle.errors import InputError, first_line, shown
from trueoracle.networks.copying import copied
from trueoracle.networks.graph import Example, answer, compared
from trueoracle.pruning.candidates import Surgery, Units
from trueoracle.pruning.cost import Cost, cost, macs_by_parameter
from trueoracle.pruning.groups import Group
from trueoracle.pruning.held import Masked
from trueoracle.pruning.listing import Listing, read_listing
from trueoracle.pruning.parity import check_network, check_training
from trueoracle.pruning.ways import (
    ENUMERATION_LIMIT,
    TRIES,
    Importance,
    as_numbers,
    match_layers,
    moved,
    number_pruned,
    seed_of,
    too_few,
)

__all__ = [
    "Around",
    "Scope",
    "WeightCandidates",
    "check_masks",
    "has_outputs_last",
    "list_weight_candidates",
]

Scope = Literal["layer", "row", "global"]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_DIGITS = frozenset("0123456789abcdef")

OWN = 0
"""The number that stands for the criterion's own choice, which is no random mask."""


def has_outputs_last(module: nn.Module) -> bool:
    """Whether a layer's weight is ``[in, out]``, as in the ``Conv1D`` of transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


@dataclass(frozen=True, eq=False)
class Around:
    """What masks are drawn around: a criterion's name and its score of every weight, by layer.

    For each mask but the criterion's own, a ``share`` of the scores change places.
    """

    criterion: str
    share: float
    scores: Mapping[str, np.ndarray] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """16 hex digits of a hash of the scores."""
        found = hashlib.sha256()
        for name, scores in self.scores.items():
            found.update(name.encode() + scores.astype("<f8").tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class WeightCandidates:
    """P masks over the weights of some layers, which prune weights by setting them to zero.

    - ``shapes`` maps each layer to the shape of its weight; for the layers in ``turned`` that is
      ``[in, out]``.
    - ``counts`` says how many weights are zeroed: of each layer (scopes ``layer`` and ``row``), or
      of all layers together (``global``: one entry, ``""``).
    - ``patterns`` has N and M for each layer in which N of every M consecutive input weights of a
      row are kept; in a convolution, these M weights read neighbouring input channels at one place
      of the kernel.

    Candidate i is the number ``masks[i]`` below 2⁶⁴, which seeds numpy's PCG64. Each weight gets
    one raw 64-bit output, in the order of layers and then of memory; of the weights that compete
    with each other, those with the smallest outputs are pruned. So every subset of the right size
    is equally likely, candidates are independent, and only the number is stored. With
    ``drawn_around``, the raw outputs decide instead which of a criterion's scores change places
    (:func:`trueoracle.pruning.ways.moved`; within a layer, or in scope ``global`` among all), and
    the weights with the smallest scores are pruned; number 0 is the criterion's own choice.
    """

    shapes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, int]
    scope: Scope
    masks: tuple[int, ...]
    turned: frozenset[str] = frozenset()
    patterns: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    drawn_around: Around | None = None

    @property
    def units(self) -> Units:
        return "weights"

    @property
    def groups(self) -> tuple[Group, ...]:
        return ()

    @property
    def weights(self) -> tuple[str, ...]:
        """The layers whose weight loses single numbers."""
        return tuple(self.shapes)

    @property
    def layers(self) -> Mapping[str, tuple[str, ...]]:
        return {}

    @property
    def surgery(self) -> Surgery:
        return "exact"

    @property
    def space(self) -> int | None:
        """None, since the number of masks would have thousands of digits."""
        return None

    @property
    def is_uniform(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self.masks)

    def __iter__(self) -> Iterator[int]:
        return iter(self.masks)

    def take(self, indices: Sequence[int]) -> WeightCandidates:
        """Some of the candidates, as another ``WeightCandidates``."""
        return replace(self, masks=tuple(self.masks[i] for i in indices))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """One stable id per candidate: 16 hex digits of a hash of layers, counts and mask."""
        layers = ";".join(f"{n}/{'x'.join(map(str, shape))}" for n, shape in self.shapes.items())
        counts = ";".join(f"{name}:{count}" for name, count in self.counts.items())
        common = f"weights/{self.scope}/{layers}/{counts}"
        if self.patterns:
            common += "/" + ";".join(f"{n}:{m}" for n, m in self.patterns.values())
        if self.drawn_around is not None:
            common += f"/around {self.drawn_around.share}/{self.drawn_around.digest}"
        return tuple(
            hashlib.sha256(f"{common}/{_digits(mask)}".encode()).hexdigest()[:16]
            for mask in self.masks
        )

    def pruned(self, index: int) -> dict[str, Any]:
        """The number of the mask in 16 hex digits, and the sparsity by layer (or of all layers)."""
        sparsity = {
            name or "*": round(count / self._sizes_by_count[name], 6)
            for name, count in self.counts.items()
        }
        return {"mask": _digits(self.masks[index]), "sparsity": sparsity}

    def kept(self, index: int) -> dict[str, Tensor]:
        """The mask of one candidate by layer, bool, shaped like its weight: 1 = kept."""
        keys = self._keys(self.masks[index])
        if self.scope == "global":
            whole = _kept(np.concatenate(list(keys.values())), None, self.counts[""])
            parts = np.split(whole, np.cumsum(self._sizes)[:-1])
        else:
            parts = [
                _kept(own, *self._competing(name, self.counts[name])) for name, own in keys.items()
            ]
        return {
            name: torch.from_numpy(part).view(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def _keys(self, mask: int) -> dict[str, np.ndarray]:
        """The numbers ``[weights]`` by layer that weights compete by: the smallest are pruned."""
        if self.drawn_around is None:
            return self._random(mask)
        scores = {name: self.drawn_around.scores[name].ravel() for name in self.shapes}
        if mask == OWN:
            return scores
        share, keys = self.drawn_around.share, self._random(mask)
        if self.scope == "global":
            flat = (np.concatenate(list(one.values())) for one in (scores, keys))
            every, key = flat
            parts = np.split(moved(every, share, key), np.cumsum(self._sizes)[:-1])
            return dict(zip(scores, parts, strict=True))
        return {name: moved(own, share, keys[name]) for name, own in scores.items()}

    def _random(self, mask: int) -> dict[str, np.ndarray]:
        # Numpy promises not to change the raw stream; the distributions drawn from it may change.
        stream = np.random.PCG64(mask)
        sizes = zip(self.shapes, self._sizes, strict=True)
        return {name: stream.random_raw(size) for name, size in sizes}

    def _competing(self, name: str, count: int) -> tuple[np.ndarray | None, int]:
        """The weights that compete, ``[cells, weights]``, and how many are pruned in each cell.

        None stands for one cell of all the layer's weights.
        """
        if self.scope == "layer" and name not in self.patterns:
            return None, count
        rows = _rows(self.shapes[name], name in self.turned)
        if name in self.patterns:
            kept, of = self.patterns[name]
            return rows.reshape(-1, of), of - kept
        return rows, count // len(rows)

    @cached_property
    def _sizes(self) -> list[int]:
        """How many weights each layer has."""
        return [math.prod(shape) for shape in self.shapes.values()]

    @cached_property
    def _sizes_by_count(self) -> dict[str, int]:
        """For each entry of ``counts``, the number of weights that its pruned ones are among."""
        if self.scope == "global":
            return {"": sum(self._sizes)}
        return dict(zip(self.shapes, self._sizes, strict=True))

    def prune(self, dense: nn.Module, index: int) -> nn.Module:
        """A copy of ``dense`` whose pruned weights are zero, and stay zero when it is trained.

        Each pruned layer's ``weight`` is computed from a parameter and the mask
        (``torch.nn.utils.parametrize``); :func:`unmasked` makes it plain again.
        """
        network = copied(dense)
        for name, kept in self.kept(index).items():
            layer = network.get_submodule(name)
            weight = layer.get_parameter("weight")
            mask = kept.to(weight)
            with torch.no_grad():  # else weight decay would act on numbers that are never read
                weight.mul_(mask)
            parametrize.register_parametrization(layer, "weight", Masked(mask))
        return network

    def sum_pruned(self, importance: Importance) -> np.ndarray:
        """Scores ``[P]``: the ``importance`` of each weight, summed over the pruned weights.

        ``importance`` maps each layer to numbers shaped like its weight. Raises
        :class:`InputError` where a layer has none, or numbers of another shape.
        """
        flat = np.concatenate([one.ravel() for one in self._importance(importance).values()])
        return np.array([flat[~self._flat(index)].sum() for index in range(len(self))])

    def _flat(self, index: int) -> np.ndarray:
        return np.concatenate([kept.numpy().ravel() for kept in self.kept(index).values()])

    def _bits(self, index: int) -> bytes:
        """A hash that is equal for equal masks."""
        return hashlib.sha256(np.packbits(self._flat(index)).tobytes()).digest()

    def _importance(self, importance: Importance) -> dict[str, np.ndarray]:
        found = {}
        for name, shape in self.shapes.items():
            given = as_numbers(importance.get(name))
            if given is None or given.shape != shape:
                what = "none" if given is None else list(given.shape)
                raise InputError(
                    f"the importance of {name} is one number for each of its weights "
                    f"{list(shape)}, got {what}"
                )
            found[name] = given
        return found

    def around(
        self, criterion: str, importance: Importance, count: int, share: float, seed: int
    ) -> WeightCandidates:
        drawn = Around(criterion, share, self._importance(importance))
        made = replace(self, masks=(OWN,), drawn_around=drawn)
        found = {made._bits(0): OWN}
        for draw in range(count * TRIES):
            if len(found) == count:
                break
            number = seed_of(seed, draw, "around")
            found.setdefault(replace(made, masks=(number,))._bits(0), number)
        if len(found) < count:
            raise too_few(len(found), count, share)
        return replace(made, masks=tuple(found.values()))

    def costs(self, dense: nn.Module, given: Sequence[int] | Example) -> list[Cost]:
        """The cost of each pruned network, in which zeros do not count.

        A layer's MACs are multiplied by the share of its weights that are left. This share is the
        same for all candidates, except in scope ``global``.
        """
        whole, by_parameter = cost(dense, given), macs_by_parameter(dense, given)
        macs = [by_parameter.get(f"{name}.weight", 0) for name in self.shapes]
        zeros = sum(self.counts.values())

        def one(left: Sequence[int]) -> Cost:
            saved = (
                m - m * kept // size for m, kept, size in zip(macs, left, self._sizes, strict=True)
            )
            return Cost(whole.parameters - zeros, whole.macs - sum(saved))

        if self.scope == "global":
            counted = ([int(k.sum()) for k in self.kept(i).values()] for i in range(len(self)))
            return [one(left) for left in counted]
        left = [size - n for size, n in zip(self._sizes, self.counts.values(), strict=True)]
        return [one(left)] * len(self)

    def listing(self) -> Listing:
        """The layers and how many weights are pruned, and the mask of each candidate."""
        return Listing(_header(self), tuple(map(_digits, self.masks)))


def _rows(shape: tuple[int, ...], is_turned: bool) -> np.ndarray:
    """Where each output's weights lie in memory, ``[out, n]``, with input channels adjacent."""
    places = np.arange(math.prod(shape)).reshape(shape)
    inputs_last = places.T if is_turned else np.moveaxis(places, 1, -1)
    return inputs_last.reshape(len(inputs_last), -1)


def _kept(keys: np.ndarray, cells: np.ndarray | None, count: int) -> np.ndarray:
    """Which weights ``[n]`` are kept: in every cell all but the ``count`` with the smallest keys.

    Where keys are equal, the first weight in the cell is pruned.
    """
    kept = np.ones(len(keys), dtype=bool)
    if cells is None:
        cells = np.arange(len(keys))[None]
    if keys.dtype == np.uint64:  # random keys hardly ever tie, and a partition is much faster
        smallest = np.argpartition(keys[cells], count - 1, axis=1)[:, :count]
    else:
        smallest = np.argsort(keys[cells], axis=1, kind="stable")[:, :count]
    kept[np.take_along_axis(cells, smallest, axis=1)] = False
    return kept


def list_weight_candidates(
    network: nn.Module,
    sparsities: Mapping[str, float | str],
    *,
    count: int | Path,
    seed: int = 0,
    scope: Scope = "layer",
) -> WeightCandidates:
    """Sample masks over the weights of convolutions, linear layers and transformers' ``Conv1D``.

    - ``sparsities`` maps layer names or patterns to the share of weights that are pruned: of each
      layer, of each output row of it (scope ``row``), or of all layers together (scope ``global``,
      where all shares are equal). The share is rounded to whole weights by
      :func:`trueoracle.pruning.ways.number_pruned`. Instead of a share, ``"N:M"`` keeps N of every
      M consecutive input weights of a row.
    - ``count`` is how many masks to draw with ``seed``, or the file of a listing.

    Raises :class:`InputError` for a pattern without such a layer, a sparsity that prunes nothing or
    everything, inputs that are no multiple of M, and a listing that does not fit.
    """
    available, refused = _weighted_layers(network)
    matched = match_layers(available, refused, sparsities)
    shapes = {name: shape for name, shape in available.items() if name in matched}
    turned = frozenset(n for n in shapes if has_outputs_last(network.get_submodule(n)))
    patterns = {
        name: _pattern(name, matched[name], shapes[name][0 if name in turned else 1])
        for name in shapes
        if isinstance(matched[name], str)
    }
    if scope == "global":
        total = sum(math.prod(shape) for shape in shapes.values())
        counts = {"": _number(next(iter(matched.values())), total, "all layers")}
    else:
        counts = {
            name: _count(name, shape, matched[name], scope, name in turned)
            for name, shape in shapes.items()
        }
    made = WeightCandidates(shapes, counts, scope, (), turned, patterns)
    if isinstance(count, Path):
        # A listing of masks around a criterion's choice is refused: here its numbers would stand
        # for other masks.
        expected = {**_header(made), "around": None}
        return replace(made, masks=_masks_of(read_listing(count, expected), count))
    if count > ENUMERATION_LIMIT:
        raise InputError(
            f"pruning.candidates = {count:,}, but at most {ENUMERATION_LIMIT:,} are sampled"
        )
    _check_room(made, count)
    return replace(made, masks=tuple(seed_of(seed, index, "mask") for index in range(count)))


def _pattern(name: str, given: str, inputs: int) -> tuple[int, int]:
    """N and M of a pattern; raises :class:`InputError` where M does not divide the inputs."""
    kept, of = map(int, given.split(":"))
    if not 0 < kept < of:
        raise InputError(
            f"pruning.layers: {name} = {given!r}: of every M weights N are kept, and N is at least "
            "1 and less than M"
        )
    if inputs % of:
        raise InputError(
            f"pruning.layers: {name} = {given!r}: its {inputs} inputs are no multiple of {of}"
        )
    return kept, of


def _count(
    name: str, shape: tuple[int, ...], given: float | str, scope: Scope, is_turned: bool
) -> int:
    """How many weights a layer loses."""
    size = math.prod(shape)
    if isinstance(given, str):
        kept, of = map(int, given.split(":"))
        return size // of * (of - kept)
    rows = shape[1 if is_turned else 0] if scope == "row" else 1
    return rows * _number(given, size // rows, name)


def _number(sparsity: float | str, size: int, where: str) -> int:
    try:
        return number_pruned(cast(float, sparsity), size, "weights")
    except InputError as error:
        raise InputError(f"pruning.layers: {where}: {error}") from error


def _weighted_layers(network: nn.Module) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """The layers with weights of their own, with their shapes, and why other layers have none."""
    owners = Counter(
        id(p) for m in network.modules() for p in m._parameters.values() if p is not None
    )
    available, refused = {}, {}
    for name, module in network.named_modules():
        if not isinstance(module, _LAYERS) and not has_outputs_last(module):
            continue
        weight = module._parameters.get("weight")
        if weight is None or parametrize.is_parametrized(module):
            refused[name] = "it computes its weights from others"
        elif owners[id(weight)] > 1:
            refused[name] = "it shares weights with another layer"
        else:
            available[name] = tuple(weight.shape)
    return available, refused


def _check_room(made: WeightCandidates, wanted: int) -> None:
    """Refuse a sample in which some mask would come twice with a chance of over one in 100."""
    digits = 0.0
    for name, count in made.counts.items():
        size, cells = made._sizes_by_count[name], 1
        if name in made.patterns:
            cells = size // made.patterns[name][1]
        elif made.scope == "row":
            cells = made.shapes[name][1 if name in made.turned else 0]
        n, k = size // cells, count // cells
        digits += cells * (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1))
    pairs = wanted * (wanted - 1) / 2
    if pairs and digits < math.log(100 * pairs):
        raise InputError(
            f"{wanted:,} candidates are asked for, but there are about {math.exp(digits):,.0f} "
            "masks: too few to sample without repeats"
        )


def _digits(mask: int) -> str:
    # As text, since many JSON readers keep only 53 bits of a number.
    return f"{mask:016x}"


def _header(made: WeightCandidates) -> dict[str, Any]:
    header = {
        "kind": "n:m" if made.patterns else "unstructured",
        "scope": made.scope,
        "weights": {name: "x".join(map(str, shape)) for name, shape in made.shapes.items()},
        "pruned": {name or "*": count for name, count in made.counts.items()},
    }
    if made.patterns:
        header["patterns"] = {name: f"{n}:{m}" for name, (n, m) in made.patterns.items()}
    if (drawn := made.drawn_around) is not None:
        header["around"] = f"{drawn.criterion}, {drawn.share:g} of its scores {drawn.digest}"
    return header


def _masks_of(entries: Sequence[Any], path: Path) -> tuple[int, ...]:
    """The numbers of masks in a listing's entries, each of them checked."""
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


def check_masks(dense: nn.Module, candidates: WeightCandidates, example: Example) -> None:
    """Check that a pruned network equals the dense one with zeros, and that it trains.

    ``example`` is a batch of at least two items. The first and the last candidate are compared with
    a network whose weights are multiplied by the mask directly. Raises :class:`InputError`, also
    where the dense network itself does not run or train.
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
                expected = compared(answer(by_hand, example), example)
                pruned = candidates.prune(network, index)
                found = compared(answer(pruned, example), example)
            check_training(pruned, example)
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"the network does not run once weights of {', '.join(candidates.weights)} are "
                f"pruned: {first_line(error)}"
            ) from error
        for one, other in zip(found, expected, strict=True):
            if not torch.allclose(one, other, rtol=1e-4, atol=1e-5, equal_nan=True):
                difference = float((one - other).abs().max())
                raise InputError(
                    f"masked weights of {', '.join(candidates.weights)} are not the same as zeros "
                    f"(outputs differ by {difference:.2g}): the network reads them elsewhere"
                )
