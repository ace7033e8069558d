"""Numbers of heads or channels that modules keep and that have to change with a cut.

A module may view its queries as ``[N, L, self.num_heads, self.head_dim]``: after it has lost a head
it runs only with a smaller ``num_heads``. A cut of attention always lowers the numbers of heads
that have one of the usual names, since one example may run with an outdated number and the next may
not. Which further numbers have to change is found by trying the numbers that the group's modules
hold, known names first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice
from typing import Any

from torch import Tensor, nn

from trueoracle.pruning.groups import Group, Kind, Place

__all__ = ["Counts", "choices", "counted", "counts_of", "remembered", "with_usual"]

Counts = frozenset[tuple[type, str]]
"""Numbers, each by its module's class and its name: ``(GPT2Attention, "split_size")``."""

MOST_TRIED = 40
"""The most sets of numbers that are tried for one group."""

LEVELS = 2
"""Modules are searched for numbers up to this many levels above a group's layers."""

_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead")
_SHARED = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv")
_EACH = ("num_key_value_groups", "n_rep")
_KNOWN = (
    *_HEADS,
    *_EACH,
    *_SHARED,
    *("all_head_size", "split_size", "attn_dim", "inner_dim", "dim", "out_channels"),
    *("in_channels", "embed_dim", "hidden_size", "hidden_dim", "d_model"),
)
_UNTOUCHED: dict[Kind, tuple[str, ...]] = {
    "heads": _EACH,
    "key/value groups": _EACH,
    "query heads": _SHARED,
}
"""Names of numbers that stay as they are when a group of this kind is cut."""


def with_usual(network: nn.Module, group: Group) -> Group:
    """The group with the numbers of heads that its modules keep under their usual names."""
    spans = [
        (place.inner, place.outer)
        for place in group.places
        if place.role == "writes" and place.inner * place.outer > 1
    ]
    if group.kind not in _UNTOUCHED or not spans:
        return group
    group = replace(group, kind=_kind_by_numbers(network, group))
    most, least = max(spans), min(spans)
    heads = {
        "heads": group.filters,
        "key/value groups": group.filters * most[0] // least[0],
        "query heads": group.filters * most[1],
    }[group.kind]
    expected = dict.fromkeys(_HEADS, heads) | dict.fromkeys((*_SHARED, *_EACH), group.filters)
    chosen = [
        place
        for place in _numbers(network, group)
        for path, key in [_split(network, place.tensor)]
        if getattr(network.get_submodule(path), key, None) == expected.get(key, -1)
    ]
    return replace(group, places=(*group.places, *chosen))


def _kind_by_numbers(network: nn.Module, group: Group) -> Kind:
    """The kind of a group, corrected by the numbers that its modules keep.

    Heads are key/value groups if a module has as many keys and values but another number of heads.
    """
    if group.kind != "heads":
        return group.kind
    for path in _owners(group):
        module = network.get_submodule(path)
        shared = next((one for key in _SHARED if (one := getattr(module, key, None))), None)
        heads = next((one for key in _HEADS if (one := getattr(module, key, None))), None)
        if heads is not None and shared == group.filters != heads:
            return "key/value groups"
    return "heads"


def counted(network: nn.Module, group: Group) -> Iterator[Group]:
    """The group with further numbers that may have to change, the likeliest sets first."""
    kinds: dict[tuple[type, str], list[Place]] = {}  # a number is changed in every block at once
    for place in _numbers(network, group):
        path, key = _split(network, place.tensor)
        kinds.setdefault((type(network.get_submodule(path)), key), []).append(place)
    found = list(kinds.values())
    sizes = dict.fromkeys((1, 2, len(found)))
    sets = (chosen for size in sizes for chosen in combinations(found, size))
    for chosen in islice(sets, MOST_TRIED):
        yield replace(group, places=(*group.places, *(one for kind in chosen for one in kind)))


def choices(network: nn.Module, group: Group) -> Counts:
    """The numbers that may have to change with a group, by their modules' classes."""
    return _kinds(network, _numbers(network, group))


def counts_of(network: nn.Module, group: Group) -> Counts:
    """The numbers that a group changes, by their modules' classes."""
    return _kinds(network, [place for place in group.places if place.role == "counts"])


def _kinds(network: nn.Module, places: Sequence[Place]) -> Counts:
    split = (_split(network, place.tensor) for place in places)
    return frozenset((type(network.get_submodule(path)), key) for path, key in split)


def remembered(network: nn.Module, group: Group, known: Sequence[Counts]) -> Group:
    """The group with the numbers that an earlier group was found to need, where they fit."""
    has = counts_of(network, group)
    numbers = _numbers(network, group)
    for counts in reversed(known):
        chosen = [
            place
            for place in numbers
            for path, key in [_split(network, place.tensor)]
            if (type(network.get_submodule(path)), key) in counts
        ]
        if chosen and len(chosen) == len(counts - has):
            return replace(group, places=(*group.places, *chosen))
    return group


def _numbers(network: nn.Module, group: Group) -> list[Place]:
    """Numbers that are a multiple of the group's filters and not among its places yet.

    Numbers with known names come first.
    """
    has = {place.tensor for place in group.places}
    untouched = _UNTOUCHED.get(group.kind, ())
    modules = dict(network.named_modules())
    steps = {place.outer * place.inner for place in group.places if place.axis is not None}
    found: list[Place] = []
    for path in _owners(group):
        module = modules.get(path)
        if module is None or type(module).__module__.startswith("torch.nn"):
            continue
        for key, value in _whole_numbers(module):
            times, rest = divmod(value, group.filters)
            if rest == 0 and times and any(step % times == 0 for step in steps):
                name = f"{path}.{key}" if path else key
                if name in has or key.rpartition(".")[2] in untouched:
                    continue
                found.append(Place(name, None, inner=times, role="counts"))
    rank = {name: position for position, name in enumerate(_KNOWN)}
    return sorted(found, key=lambda place: rank.get(place.tensor.rpartition(".")[2], len(rank)))


def _owners(group: Group) -> list[str]:
    """The modules that hold the group's tensors and the modules above them, the lowest first."""
    found: dict[str, int] = {}
    for place in group.places:
        path = place.owner
        for level in range(LEVELS + 1):
            found[path] = min(level, found.get(path, level))
            if not path:
                break
            path = path.rpartition(".")[0]
    return sorted(found, key=lambda path: found[path])


def _whole_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The module's own whole numbers, and those of a configuration that it holds."""
    for key, value in vars(module).items():
        if type(value) is int:
            yield key, value
        elif key.startswith("config") and not isinstance(value, nn.Module | Tensor):
            fields: dict[str, Any] = getattr(value, "__dict__", {})
            yield from ((f"{key}.{n}", v) for n, v in fields.items() if type(v) is int)


def _split(network: nn.Module, name: str) -> tuple[str, str]:
    """A dotted name as the path of a module and the rest."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        try:
            network.get_submodule(path)
        except AttributeError:
            continue
        return path, name[len(path) + 1 :] if path else name
    return "", name
