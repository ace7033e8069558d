"""Numbers that modules keep and that have to change with a cut: of heads, of channels.

A module may view its queries as ``[N, L, self.num_heads, self.head_dim]``: what has lost a head
then runs only with a smaller ``num_heads``. Which numbers these are is found by trying those that
the group's owners hold, known names first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from torch import Tensor, nn

from trueoracle.pruning.groups import Group, Place

__all__ = ["Counts", "choices", "counted", "counts_of", "remembered"]

Counts = frozenset[tuple[type, str]]
"""Numbers by their modules' classes, such as ``(GPT2Attention, "split_size")``."""

MOST_TRIED = 40
"""Sets of numbers that are tried for one group."""

LEVELS = 2
"""How far above a group's layers modules are asked."""

_KNOWN = (
    *("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "num_key_value_groups"),
    *("num_key_value_heads", "num_kv_heads", "all_head_size", "split_size", "attn_dim"),
    *("inner_dim", "dim", "out_channels", "in_channels", "embed_dim", "hidden_size"),
)


def counted(network: nn.Module, group: Group) -> Iterator[Group]:
    """The group with sets of numbers that may have to change with it, the likeliest first."""
    found = _numbers(network, group)
    tried = 0
    for size in (1, 2, len(found)):
        for chosen in combinations(found, size):
            if tried == MOST_TRIED:
                return
            tried += 1
            yield replace(group, places=(*group.places, *chosen))


def choices(network: nn.Module, group: Group) -> Counts:
    """Which numbers may have to change with a group, whatever the modules are called."""
    return _kinds(network, _numbers(network, group))


def counts_of(network: nn.Module, group: Group) -> Counts:
    """Which numbers a group changes, whatever the modules are called."""
    return _kinds(network, [place for place in group.places if place.role == "counts"])


def _kinds(network: nn.Module, places: Sequence[Place]) -> Counts:
    split = (_split(network, place.tensor) for place in places)
    return frozenset((type(network.get_submodule(path)), key) for path, key in split)


def remembered(network: nn.Module, group: Group, known: Sequence[Counts]) -> Group:
    """The group with those numbers that another one was found to need."""
    numbers = _numbers(network, group)
    for counts in reversed(known):
        chosen = [
            place
            for place in numbers
            for path, key in [_split(network, place.tensor)]
            if (type(network.get_submodule(path)), key) in counts
        ]
        if len(chosen) == len(counts):
            return replace(group, places=(*group.places, *chosen))
    return group


def _numbers(network: nn.Module, group: Group) -> list[Place]:
    """Whole numbers of the group's owners that are a multiple of its filters, known names first."""
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
                found.append(Place(name, None, inner=times, role="counts"))
    rank = {name: position for position, name in enumerate(_KNOWN)}
    return sorted(found, key=lambda place: rank.get(place.tensor.rpartition(".")[2], len(rank)))


def _owners(group: Group) -> list[str]:
    """The modules that have the group's tensors, and those above them, the lowest first."""
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
    """The module's own numbers, and those of a configuration that it holds."""
    for key, value in vars(module).items():
        if type(value) is int:
            yield key, value
        elif key.startswith("config") and not isinstance(value, nn.Module | Tensor):
            fields: dict[str, Any] = getattr(value, "__dict__", {})
            yield from ((f"{key}.{n}", v) for n, v in fields.items() if type(v) is int)


def _split(network: nn.Module, name: str) -> tuple[str, str]:
    """A dotted name as a module's path and the rest."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        try:
            network.get_submodule(path)
        except AttributeError:
            continue
        return path, name[len(path) + 1 :] if path else name
    return "", name
