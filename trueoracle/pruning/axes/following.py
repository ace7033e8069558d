"""Follows the axes of all parameters through the operations of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from trueoracle.networks.graph import Graph, Ref, Step
from trueoracle.pruning.axes.atoms import Atom, Axis, atoms_of, fixed, lock
from trueoracle.pruning.axes.meeting import cut, divided, ends_at, parts, united

__all__ = ["Follower", "Rule"]


class Follower:
    """Collects what the operations of a run show about its tensors, which have numbers.

    - ``reads``: axes of parameters that an operation sums over (a layer's inputs).
    - ``writes``: axes of parameters along which an operation's results lie (a layer's outputs),
      with the number of the first such operation.
    - ``met``: for each parameter or buffer, the number of the first operation that takes it.
    - ``readings``: for each use of a layer's weights, the operation and the tensor that it reads.
    - ``mixing``: the norms that mix channels, by their numbers among the run's norms.
    - ``computing``: modules whose weights are computed from parameters.
    - ``carried``: for an axis of a parameter, the part of it along which a layer keeps the indices
      of its input apart, such as the convolution groups of a grouped convolution.
    - ``sizes``: numbers that modules keep, by their dotted names, with the axes that they count.
    - ``parted``: the equal parts that axes were cut into, and in words what cut them.
    - ``slices``: the slices that are taken of each tensor.
    - ``experts``: parameters with an entry for each expert, of which a router chooses some for each
      token.

    Operations that the network's output does not depend on are followed too, since they still have
    to run after a cut; but they count neither as reading or writing a parameter nor as meeting it.
    """

    def __init__(self, network: nn.Module, graph: Graph) -> None:
        self.graph = graph
        self._modules = dict(network.named_modules())
        self._axes: dict[int, list[Axis]] = {}
        self._from_parameters: set[int] = set(graph.named.values())
        self._from_inputs: set[int] = set(graph.inputs)
        self.reads: set[tuple[str, int]] = set()
        self.writes: dict[tuple[str, int], int] = {}
        self.computing: set[str] = set()
        self.readings: list[tuple[str, int, Ref]] = []
        self.mixing: dict[int, None] = {}
        self._norming = {at: i for i, one in enumerate(graph.norms) for at in one.steps}
        self.normed: list[tuple[str, Axis]] = []
        self.carried: dict[tuple[str, int], Axis] = {}
        self.sizes: list[tuple[str, Axis]] = []
        self.parted: list[tuple[Axis, str]] = []
        self.experts: list[str] = []
        self.met: dict[str, int] = {}
        self.now = 0
        self._unread: set[int] = set()
        self.slices: dict[int, list[Step]] = {}
        for step in graph.steps:
            if step.name == "slice":
                self.slices.setdefault(step.arguments["self"].number, []).append(step)
        self._names = {number: name for name, number in graph.named.items()}
        for name, number in graph.named.items():
            shape = graph.shapes[number]
            self._axes[number] = [
                Axis(((Atom(size),),), (name, axis)) for axis, size in enumerate(shape)
            ]

    def follow(self, rules: Callable[[Step], Rule | None]) -> None:
        """Apply the rule of each operation, in order."""
        self._unread = set(self.graph.unread())
        for now in sorted((*self.graph.live(), *self._unread)):
            self.now, step = now, self.graph.steps[now]
            results = self._by_rule(rules(step), step)
            if results is None:
                self.refuse(step, self.meets(step))
                results = []
            self._note(step, results)
        for number in self.graph.outputs:
            for axis in self._of(number):
                lock(axis, "its output is the network's output")

    def _by_rule(self, rule: Rule | None, step: Step) -> list[list[Axis]] | None:
        if rule is None:
            return None
        try:
            return rule(self, step)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return None  # arguments in a form that the rule does not expect

    def _note(self, step: Step, results: Sequence[list[Axis]]) -> None:
        given = [ref.number for ref in step.tensors]
        for number in given:
            is_met = self.now not in self._unread and not (step.is_opaque and not results)
            if number in self._names and is_met:
                self.met.setdefault(self._names[number], self.now)
        is_input = any(number in self._from_inputs for number in given)
        is_parameter = any(number in self._from_parameters for number in given)
        for position, ref in enumerate(step.results):
            if ref is None:
                continue
            shape = self.graph.shapes[ref.number]
            axes = results[position] if position < len(results) else []
            if tuple(axis.size for axis in axes) != shape:
                if axes:
                    self.refuse(step, self.meets(step))
                axes = [fixed(size) for size in shape]
            self._axes[ref.number] = axes
            if is_input:
                self._from_inputs.add(ref.number)
            if is_parameter:
                self._from_parameters.add(ref.number)

    # For rules: what is known

    def axes(self, ref: Ref | None) -> list[Axis]:
        """The axes of a tensor."""
        if ref is None:
            raise TypeError("expected a tensor")
        return self.axes_of(ref.number)

    def axes_of(self, number: int) -> list[Axis]:
        """The axes of a tensor, by its number."""
        return list(self._of(number))

    def _of(self, number: int) -> list[Axis]:
        if number not in self._axes:
            self._axes[number] = [fixed(size) for size in self.graph.shapes[number]]
        return self._axes[number]

    def shape(self, step: Step, position: int = 0) -> tuple[int, ...]:
        """The shape of one of an operation's results."""
        ref = step.results[position]
        if ref is None:
            raise TypeError("expected a tensor")
        return self.graph.shapes[ref.number]

    def is_computed(self, ref: Ref) -> bool:
        """Whether a tensor is computed from parameters alone, not from the batch."""
        return ref.number in self._from_parameters and ref.number not in self._from_inputs

    def module(self, step: Step) -> nn.Module | None:
        """The innermost module that was running when the operation was called."""
        return self._modules.get(step.module)

    def place(self, step: Step) -> str:
        """Where an operation happens, in words: the layer if it is torch's own, else the name."""
        module = self._modules.get(step.module)
        is_torchs = type(module).__module__.startswith("torch.") and not list(
            module.children() if module is not None else ()
        )
        if module is not None and step.module and (is_torchs or step.is_opaque):
            return f"{type(module).__name__} ({step.module})"
        return repr(step.name.rstrip("_"))

    def meets(self, step: Step) -> str:
        """What the operation's inputs meet, in words: the beginning of most reasons."""
        if step.tensors and all(self.is_computed(ref) for ref in step.tensors):
            return f"its weights are used in {self.place(step)}"
        return f"its output meets {self.place(step)}"

    def is_normed(self) -> bool:
        """Whether the operation is part of a norm, which may mix channels, as masking allows."""
        if self.now not in self._norming:
            return False
        if self.now not in self._unread:
            self.mixing[self._norming[self.now]] = None
        return True

    # For rules: what they note

    def refuse(self, step: Step, reason: str) -> None:
        """Lock all axes of an operation's inputs."""
        for ref in step.tensors:
            for axis in self._of(ref.number):
                lock(axis, reason)

    def meet(self, refs: Sequence[Ref], shape: Sequence[int], meets: str) -> list[Axis]:
        """The axes of the result where tensors meet entry by entry, with broadcasting."""
        found: list[Axis | None] = [None] * len(shape)
        for ref in refs:
            axes = self._of(ref.number)
            for position, axis in enumerate(axes, start=len(shape) - len(axes)):
                known = found[position]
                if axis.size != shape[position]:
                    lock(axis, f"{meets} of many channels")
                elif known is None:
                    found[position] = Axis(axis.segments)
                else:
                    found[position] = Axis(united(known, axis, meets).segments)
        return [axis or fixed(size, True) for axis, size in zip(found, shape, strict=True)]

    def in_parts(self, axis: Axis, sizes: Sequence[int], meets: str) -> list[Axis] | None:
        """An axis cut into consecutive parts; None if it cannot be cut so.

        Parts of different sizes can lose different indices, and so can the parts of a
        concatenation.
        """
        if len(set(sizes)) > 1 or ends_at(axis, sizes):
            return cut(axis, sizes, f"{meets} into unequal parts")
        return self.in_equal_parts(axis, sizes, meets)

    def in_equal_parts(self, axis: Axis, sizes: Sequence[int], meets: str) -> list[Axis] | None:
        """An axis in parts that lose the same indices and so stay equal; None if impossible.

        The network's code then holds only one size, or the number of parts.
        """
        pieces = parts(axis, len(sizes), f"{meets} into equal parts")
        if pieces is not None:
            self.parted.append((pieces[0], f"{meets} into parts of {sizes[0]}"))
        return pieces

    def sum_over(
        self, step: Step, first: tuple[Ref, int], second: tuple[Ref, int], within: int = 1
    ) -> None:
        """Note that two tensors are multiplied and summed over an axis of each.

        If one of them is a layer's weights, the indices summed over can be removed, since masking
        zeroes those weights. If neither is a parameter itself, nothing could be zeroed, and the
        axes are locked. The first axis may consist of ``within`` blocks, each of which is summed
        with the second axis.
        """
        sides = [(ref, self.axes(ref), axis) for ref, axis in (first, second)]
        weights = [side for side in sides if side[1][side[2]].origin is not None]
        mine, theirs = (axes[axis] for _, axes, axis in sides)
        if within > 1:
            mine = divided(mine, within, self.meets(step))[1]
        united(mine, theirs, self.meets(step))
        for side in weights:
            other = sides[1] if side is sides[0] else sides[0]
            self.weighs(side[1], side[2], (self.now, other[0]))
        if weights:
            return
        computed = next((ref for ref, _, _ in sides if self.is_computed(ref)), None)
        is_stacked = step.name in ("bmm", "baddbmm")  # of a learnt query: no layer's weights
        if computed is not None and not is_stacked:
            for one in (mine, theirs):
                lock(one, f"its reader {step.module} computes its weights from others")
            for axis in self._of(computed.number):
                lock(axis, "it computes its weights from others")
            self.computing.add(step.module)
            return
        for one in (mine, theirs):
            lock(one, f"{self.meets(step)} of other tensors")
            for atom in atoms_of(one):
                atom.multiply()

    def weighs(self, axes: Sequence[Axis], axis: int, given: tuple[int, Ref] | None) -> None:
        """Note that a parameter is a layer's weight: it reads along ``axis`` and writes the others.

        ``given`` is the number of a step and the tensor that is read, as it is before that step;
        None for a tensor that is no step's result.
        """
        read = axes[axis].origin
        if read is not None and self.now not in self._unread:
            self.reads.add(read)
            if given is not None:
                self.readings.append((read[0], *given))
        for other in axes[:axis] + axes[axis + 1 :]:  # type: ignore[operator]
            self.puts_out(other)

    def puts_out(self, axis: Axis) -> None:
        """Note that an axis is that of a layer's outputs."""
        if self.now in self._unread:
            return
        carried = self.carried.get(axis.origin) if axis.origin is not None else None
        if axis.origin is not None and (carried is None or carried.size < axis.size):
            self.writes.setdefault(axis.origin, self.now)


Rule = Callable[[Follower, Step], list[list[Axis]] | None]
"""Returns the axes of each result of an operation; None where it cannot be followed."""
