"""Turns followed axes into groups: what can be offered, and why the rest cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from trueoracle.networks.graph import OPAQUE, Graph, Norming
from trueoracle.pruning.axes.atoms import Atom, Axis, Factor, Segment, atoms_of, resolved, size_of
from trueoracle.pruning.axes.following import Follower
from trueoracle.pruning.axes.rules import rule_of
from trueoracle.pruning.groups import Group, GroupMap, Kind, Place, Role, is_of_layer

__all__ = ["Offers", "layout", "offers"]


@dataclass
class Offers:
    """Groups by their first layer, each with alternatives to cut instead, and refused layers.

    Where an axis is a product, attention's heads are the first alternative; without heads it is the
    index set with the most indices. ``notes`` say what the likely cause is if a group turns out to
    be impossible to cut.
    """

    alternatives: dict[str, list[Group]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def first(self) -> GroupMap:
        """The groups that are tried first."""
        groups = {name: ways[0] for name, ways in self.alternatives.items()}
        return GroupMap(groups, dict(self.refused))


def offers(network: nn.Module, graph: Graph) -> Offers:
    """The groups of ``network``, read from the operations of one run."""
    known = Follower(network, graph)
    known.follow(rule_of)
    return _Sorting(network, known).offers()


class _Sorting:
    """Sorts the atoms of one network into those whose indices can be removed and the others."""

    def __init__(self, network: nn.Module, known: Follower) -> None:
        self._network, self._known = network, known
        self._axes: dict[tuple[str, int], Axis] = {}
        for name, number in known.graph.named.items():
            for position, axis in enumerate(known.axes_of(number)):
                self._axes[name, position] = resolved(axis)
        self._written = {name for name, _ in known.writes}
        self._owners = {name.rpartition(".")[0]: at for (name, _), at in known.writes.items()}
        self._order = {name: position for position, name in enumerate(known.graph.named)}
        self._names = {id(value): key for key, value in network.named_parameters()}
        self._places: dict[Atom, list[Place]] = {}
        for (name, position), axis in self._axes.items():
            for atom, place in self._of_axis(name, position, axis):
                self._places.setdefault(atom, []).append(place)
        for module, axis in known.normed:
            self._count(module, axis)
        for key, axis in known.sizes:
            for atom, _, outer, inner in layout(resolved(axis).segments):
                self._add(atom, Place(key, None, 0, outer, inner, "counts"))
        self._parted = {
            atom: f"{words}, and a size written in code cannot be changed"
            for axis, words in known.parted
            for atom in atoms_of(axis)
        }
        for number in known.mixing:
            self._mix(known.graph.norms[number])

    def offers(self) -> Offers:
        """Put every layer into a group, or among the refused with a reason."""
        found = Offers()
        ranked = sorted(self._known.writes.items(), key=lambda item: item[1])
        for (name, position), _ in ranked:
            for atom in self._covering(self._axes[name, position]):
                self._offer(found, atom)
        taken = {
            place.tensor
            for ways in found.alternatives.values()
            for place in ways[0].places
            if place.role == "writes"
        }
        for (name, position), _ in ranked:
            if name not in taken:
                self._refuse(found, name, self._axes[name, position])
        for name, module in self._network.named_modules():
            if name and name not in found.refused and self._is_unseen(module, name):
                found.refused[name] = self._unseen(module, name)
        self._refuse_experts(found)
        return found

    def _refuse_experts(self, found: Offers) -> None:
        """Refuse whole experts, since the router has an output for each of them."""
        held: dict[str, list[Tensor]] = {}
        for tensor in dict.fromkeys(self._known.experts):
            owner = tensor.rpartition(".")[0] or tensor
            held.setdefault(owner, []).append(self._network.get_parameter(tensor))
        for owner, weights in held.items():
            count = len(weights[0])
            size = sum(weight.numel() for weight in weights) // count
            found.refused.setdefault(
                owner,
                f"a router chooses among its {count} experts, of {size:,} parameters each, so that "
                "none can go whole",
            )

    def _offer(self, found: Offers, atom: Atom) -> None:
        if self._unfit(atom):
            return
        places = self._places[atom]
        ranked = sorted(places, key=self._rank)
        name = next(
            _layer(place.tensor)
            for place in ranked
            if place.role == "writes" and place.tensor in self._written
        )
        kind = self._kind(atom)
        name += ":heads" if kind == "query heads" and self._is_second(atom) else ""
        if atom in self._parted:
            found.notes[name] = self._parted[atom]
        ways = found.alternatives.setdefault(name, [])
        if all(way.places != tuple(ranked) for way in ways):
            ways.append(Group(name, atom.size, tuple(ranked), kind))
            is_of_heads = kind not in ("filters", "units")
            ways.sort(key=lambda way: (way.filters == 1, 0 if is_of_heads else -way.filters))

    def _kind(self, atom: Atom) -> Kind:
        """What the indices of an atom are."""
        written = [
            place
            for place in self._places[atom]
            if (place.tensor, place.axis) in self._known.writes
        ]
        spans = {place.inner * place.outer for place in written} - {1}
        if not spans or not any(one.is_multiplied for one in self._beside(atom) - {atom}):
            owners = (self._network.get_submodule(place.owner) for place in written)
            return "filters" if any(isinstance(one, _ConvNd) for one in owners) else "units"
        if len(spans) > 1:
            return "key/value groups"
        read = [place for place in self._places[atom] if place.role == "reads"]
        weights = [place for place in written if place.inner * place.outer > 1]
        puts_out, reads = (sum(p.inner * p.outer for p in some) for some in (weights, read))
        return "query heads" if puts_out == reads else "heads"  # which have no keys or values

    def _is_second(self, atom: Atom) -> bool:
        """Whether an atom lies within another removable one in the outputs of the same layer."""
        for place in self._places[atom]:
            if (place.tensor, place.axis) not in self._known.writes:
                continue
            for segment in self._axes[place.tensor, place.axis or 0].segments:
                outer = segment[: segment.index(atom)] if atom in segment else ()
                if any(isinstance(o, Atom) and o.size > 1 and not self._unfit(o) for o in outer):
                    return True
        return False

    def _rank(self, place: Place) -> tuple[int, int]:
        """A place's first use in the run, then its position in the network, to sort by."""
        at = self._known.met.get(place.tensor, self._owners.get(place.owner, len(self._order)))
        return at, self._order.get(place.tensor, 0)

    def _covering(self, axis: Axis) -> list[Atom]:
        """The atoms whose indices a layer's outputs can lose, the outermost first.

        These are the atoms in every part of the outputs; in attention, also those in only some of
        the parts, such as in the queries and not in the keys.
        """
        of_attention = [
            segment for segment in axis.segments if any(one.is_multiplied for one in segment)
        ]
        found = dict.fromkeys(
            factor
            for segment in (axis.segments[0], *of_attention)
            for factor in segment
            if isinstance(factor, Atom)
        )
        return [
            atom
            for atom in found
            for parts in [[segment for segment in axis.segments if atom in segment]]
            if all(part.count(atom) == 1 for part in parts)
            and (len(parts) == len(axis.segments) or all(part in of_attention for part in parts))
        ]

    def _unfit(self, atom: Atom) -> str:
        """Why the indices of an atom cannot be removed; empty if nothing is known to forbid it."""
        if atom.reason:
            return atom.reason
        for place in self._places[atom]:
            written = (place.tensor, place.axis) in self._known.writes
            if written and atom not in self._covering(self._axes[place.tensor, place.axis or 0]):
                return atom.cut_by or "only a part of its output is used there"
        roles = {place.role for place in self._places[atom]}
        if not {"reads", "writes"} <= roles:
            return "no layer with weights reads its output"
        return ""

    def _beside(self, atom: Atom) -> set[Factor]:
        """The factors that layers' outputs contain beside an atom, the atom itself included."""
        return {
            factor
            for place in self._places[atom]
            if (place.tensor, place.axis) in self._known.writes
            for segment in self._axes[place.tensor, place.axis or 0].segments
            for factor in segment
        }

    def _refuse(self, found: Offers, name: str, axis: Axis) -> None:
        # The largest atom gives the reason; of two equally large ones, the inner one.
        atoms = sorted(_atoms(axis), key=lambda atom: atom.size)[::-1]
        reasons = [reason for atom in atoms if (reason := self._unfit(atom))]
        reasons += [atom.cut_by for atom in atoms if atom.cut_by]
        if len(axis.segments) > 1:
            reasons.sort(key=lambda reason: "of other channels" not in reason)
        reason = reasons[0] if reasons else "only parts of its output can be followed"
        if _layer(name) in found.refused:
            return
        names = dict.fromkeys(
            _layer(place.tensor)
            for atom in atoms[:1]
            for place in self._places[atom]
            if (place.tensor, place.axis) in self._known.writes
        )
        shown = GroupMap({}, found.refused)
        shown.refuse([*names] if _layer(name) in names else [_layer(name)], reason)

    def _is_unseen(self, module: nn.Module, name: str) -> bool:
        """Whether a module has weights of two axes or more that no operation was seen to use."""
        if name in self._known.computing:
            return any(value.ndim > 1 for value in module.parameters())
        weights = [value for value in module._parameters.values() if value is not None]
        names = [self._names.get(id(value), "") for value in weights if value.ndim > 1]
        is_tied = any(one.rpartition(".")[0] != name for one in names)
        is_known = any(one in self._written or one in self._known.met for one in names)
        return bool(names) and (is_tied or not is_known)

    def _unseen(self, module: nn.Module, name: str) -> str:
        if isinstance(module, OPAQUE):
            return f"a {type(module).__name__} is not known"
        if name in self._known.computing:
            return "it computes its weights from others"
        tensors = [self._names.get(id(value), "") for value in module._parameters.values()]
        first = next(one for one in tensors if one)
        if first.rpartition(".")[0] != name:
            return f"it shares its weights with {_layer(first)}"
        numbers = {self._known.graph.named.get(one) for one in tensors}
        steps = self._known.graph.steps
        if any(ref.number in numbers for step in steps for ref in step.tensors):
            return "what the network gives does not depend on it"
        return "its weights were not used on the example"

    # Places

    def _of_axis(self, name: str, position: int, axis: Axis) -> Iterator[tuple[Atom, Place]]:
        """Where atoms lie along one axis of a parameter or buffer."""
        roles: list[Role] = []
        if (name, position) in self._known.reads:
            roles.append("reads")
        if (name, position) in self._known.writes or self._is_bias(name):
            roles.append("writes")  # an embedding that is also an output layer has both roles
        carried = self._known.carried.get((name, position))
        apart = set() if carried is None else set(atoms_of(carried))
        for atom, offset, outer, inner in layout(axis.segments):
            for role in _CARRIES if atom in apart else roles or _CARRIES:
                yield atom, Place(name, position, offset, outer, inner, role)

    def _is_bias(self, name: str) -> bool:
        """Whether a tensor is the bias of a layer that outputs filters."""
        owner, _, last = name.rpartition(".")
        return owner in self._owners and name not in self._written and "bias" in last

    def _count(self, module: str, axis: Axis) -> None:
        """Add the number of channels of a norm that has no tensors to the places of its atoms."""
        owner = self._network.get_submodule(module)
        key = "normalized_shape" if isinstance(owner, nn.LayerNorm) else "num_features"
        has_tensors = any(isinstance(getattr(owner, n, None), Tensor) for n in _NORM_TENSORS)
        if has_tensors or not hasattr(owner, key):
            return
        value = getattr(owner, key)
        is_whole = axis.size == (value[-1] if isinstance(value, tuple) else value)
        for atom, _, outer, inner in layout(resolved(axis).segments):
            outer = outer if is_whole else 1  # an instance norm folds the instances into the axis
            place = Place(f"{module}.{key}", None, 0, outer, inner, "counts")
            self._add(atom, place)

    def _add(self, atom: Atom, place: Place) -> None:
        if place not in self._places.setdefault(atom, []):
            self._places[atom].append(place)

    def _mix(self, norm: Norming) -> None:
        axes = self._known.axes_of(norm.given)
        for position, axis in enumerate(axes, start=-len(axes)):
            for atom, offset, outer, inner in layout(resolved(axis).segments):
                self._add(atom, Place(norm.module, position, offset, outer, inner, "mixes"))


_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight")
_CARRIES: tuple[Role, ...] = ("carries",)
_NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _atoms(axis: Axis) -> list[Atom]:
    return [one for segment in axis.segments for one in segment if isinstance(one, Atom)]


def layout(segments: tuple[Segment, ...]) -> Iterator[tuple[Atom, int, int, int]]:
    """Each atom with its offset, its number of repetitions and the entries per index."""
    offset = 0
    for segment in segments:
        outer, inner = 1, size_of(segment)
        for factor in segment:
            inner //= max(factor.size, 1)
            if isinstance(factor, Atom):
                yield factor, offset, outer, inner
            outer *= factor.size
        offset += size_of(segment)


def _layer(tensor: str) -> str:
    """The name of a tensor's layer: the module that holds it, else the parameter itself."""
    owner, _, last = tensor.rpartition(".")
    is_layers = is_of_layer(last) and not last.startswith(("bias", "running"))
    return owner if owner and is_layers else tensor
