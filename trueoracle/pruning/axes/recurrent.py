"""What becomes of axes in torch's recurrent layers: ``nn.LSTM``, ``nn.GRU``, ``nn.RNN``.

A unit is a hidden unit: its rows in the weights of all gates, and the weights that read it. One
``hidden_size`` holds for the whole stack of a layer and for both directions, so units with the same
number are removed from all of them together.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from trueoracle.networks.graph import Ref, Step
from trueoracle.pruning.axes.atoms import Axis, fixed, lock
from trueoracle.pruning.axes.following import Follower, Rule
from trueoracle.pruning.axes.meeting import divided, follow_on, united

__all__ = ["RULES"]

Results = list[list[Axis]] | None


def _recurrent(known: Follower, step: Step) -> Results:
    """The output ``[…, directions · hidden]`` and the last states ``[…, hidden]``."""
    module = known.module(step)
    if not isinstance(module, nn.RNNBase):
        return None
    given, *states = (ref for ref in step.arguments["given"] if isinstance(ref, Ref))
    _lock_but_last(known, step, (given, *states))
    stack = _Stack(known, step, module)
    output = stack.read(given)
    for state, axis in zip(states, (stack.states, stack.cells), strict=False):
        united(axis, known.axes(state)[-1], known.meets(step))
    lasts = (output, stack.states, stack.cells)[: len(step.results)]
    return [
        [*map(fixed, known.shape(step, position)[:-1]), Axis(axis.segments)]
        for position, axis in enumerate(lasts)
    ]


def _lock_but_last(known: Follower, step: Step, refs: Iterable[Ref]) -> None:
    for ref in refs:
        for axis in known.axes(ref)[:-1]:
            lock(axis, known.meets(step))


class _Stack:
    """The weights of one recurrent layer, in which units with the same number are united.

    ``cells`` are the hidden units; ``states`` are the values passed on: the hidden units
    themselves, or their projection.
    """

    def __init__(self, known: Follower, step: Step, module: nn.RNNBase) -> None:
        self._known, self._step, self._module = known, step, module
        names = (name for name, _ in module.named_parameters())
        self._own: dict[str, Ref] = dict(zip(names, step.arguments["own"], strict=True))
        ends = ("", "_reverse") if module.bidirectional else ("",)
        self._layers = [[f"l{i}{end}" for end in ends] for i in range(module.num_layers)]
        all_names = [name for layer in self._layers for name in layer]
        self.cells = self._united(rows for name in all_names for rows in self._rows(name))
        self.states = self.cells
        if module.proj_size:
            lock(self.cells, "PyTorch takes as many hidden units as projections for no projections")
            self.states = self._united(self._axes(f"weight_hr_{name}")[0] for name in all_names)

    def read(self, given: Ref) -> Axis:
        """Note that each layer reads the output of the one below; return the last output's axis."""
        known = self._known
        axis, output = known.axes(given)[-1], self._step.results[0]
        for layer in self._layers:
            below = (known.now, given) if layer is self._layers[0] else None
            before = None
            if layer is self._layers[-1] and output is not None:
                before = (known.now + 1, output)
            for name in layer:
                self._weigh(f"weight_ih_{name}", axis, below)
                self._weigh(f"weight_hh_{name}", self.states, before)
                if self._module.proj_size:
                    self._weigh(f"weight_hr_{name}", self.cells, None)
            axis = follow_on([self.states] * len(layer))
        return axis

    def _weigh(self, name: str, axis: Axis, given: tuple[int, Ref] | None) -> None:
        """Note that weights read an axis of the tensor ``given`` along their own second axis."""
        weights = self._axes(name)
        united(axis, weights[1], self._known.meets(self._step))
        self._known.weighs(weights, 1, given)

    def _axes(self, name: str) -> list[Axis]:
        return self._known.axes(self._own[name])

    def _rows(self, name: str) -> list[Axis]:
        """The hidden units in each tensor that has rows for every gate."""
        found = []
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if (key := f"{kind}_{name}") in self._own:
                axis, meets = self._axes(key)[0], self._known.meets(self._step)
                gates, rows = divided(axis, axis.size // self._module.hidden_size, meets)
                lock(gates, meets)
                found.append(rows)
        return found

    def _united(self, axes: Iterable[Axis]) -> Axis:
        first, *others = axes
        for other in others:
            first = united(first, other, self._known.meets(self._step))
        return Axis(first.segments)


def _packed(known: Follower, step: Step) -> Results:
    """Sequences ``[L, N, …]`` packed without their padding: ``[steps, …]``."""
    axes = known.axes(step.arguments["input"])
    for axis in axes[:2]:
        lock(axis, known.meets(step))
    return [[fixed(known.shape(step)[0]), *axes[2:]], [fixed(known.shape(step, 1)[0])]]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    "_pack_padded_sequence": _packed,
}
