"""Hidden units of recurrent layers, and what feeds them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import rnn

from tests.pruning.axes.test_offers import check, noise
from tests.pruning.axes.test_rules import train_and_reload
from trueoracle.networks.graph import record
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups

GATES = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}
STEPS = noise(4, 3, 5)


class Sequences(nn.Module):
    """A linear layer, a recurrent one that reads it, and a linear layer that reads that."""

    def __init__(self, kind: Any, use: str = "output", **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.use, self.hidden = use, 4
        self.first = nn.Linear(5, 6)
        self.rnn = kind(6, 4, **arguments)
        directions = 2 if self.rnn.bidirectional else 1
        self.states = directions * self.rnn.num_layers
        self.begin = nn.Linear(5, 4)
        width = self.rnn.proj_size or 4
        self.out = nn.Linear(width * (self.states if use == "states" else directions), 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.use == "packed":
            lengths = torch.tensor([4, 2, 3])
            packed = rnn.pack_padded_sequence(h, lengths, enforce_sorted=False)
            return self.out(rnn.pad_packed_sequence(self.rnn(packed)[0])[0])  # type: ignore[no-any-return]
        start: Any = None
        if self.use in ("given", "zeros"):
            zeros = torch.zeros(self.states, h.shape[1], self.hidden, dtype=h.dtype)
            given = self.begin(x[0]).expand(self.states, -1, -1) if self.use == "given" else zeros
            start = (given, zeros) if isinstance(self.rnn, nn.LSTM) else given
        output, last = self.rnn(h, start)
        if self.use == "states":
            last = last[0] if isinstance(last, tuple) else last
            return self.out(last.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]
        return self.out(output)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", GATES)
def test_a_unit_is_its_rows_in_all_gates(kind: Any) -> None:
    network = Sequences(kind)
    groups = check(network, STEPS, {"first", "rnn"})
    assert groups["first"].filters == 6
    assert [part.module for part in groups["first"].consumers] == ["rnn"]
    assert groups["rnn"].filters == 4
    kept = {"first": [0, 5], "rnn": [1, 2, 3]}
    pruned = prune(network, list(groups.values()), kept)
    small: Any = pruned.rnn
    assert (small.input_size, small.hidden_size) == (2, 3)
    rows = [4 * gate + unit for gate in range(GATES[kind]) for unit in (1, 2, 3)]
    big: Any = network.rnn
    assert torch.equal(small.weight_ih_l0, big.weight_ih_l0[rows][:, [0, 5]])
    assert torch.equal(small.weight_hh_l0, big.weight_hh_l0[rows][:, [1, 2, 3]])
    assert torch.equal(small.bias_hh_l0, big.bias_hh_l0[rows])
    # A new layer of these sizes computes the same with these weights.
    again = kind(2, 3).double()
    again.load_state_dict(small.state_dict())
    given = noise(4, 3, 2).double()
    assert torch.equal(again(given)[0], small(given)[0])


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(list(GATES)),
    layers=st.integers(1, 3),
    bidirectional=st.booleans(),
    batch_first=st.booleans(),
    bias=st.booleans(),
    use=st.sampled_from(["output", "states", "given", "zeros", "packed"]),
)
def test_recurrent_layers_of_any_shape(
    kind: Any, layers: int, bidirectional: bool, batch_first: bool, bias: bool, use: str
) -> None:
    batch_first = batch_first and use == "output"
    network = Sequences(
        kind,
        use,
        num_layers=layers,
        bidirectional=bidirectional,
        batch_first=batch_first,
        bias=bias,
    )
    groups = check(network, STEPS, {"first", "begin" if use == "given" else "rnn"})
    assert sorted(group.filters for group in groups.values()) == [4, 6]


@pytest.mark.parametrize("use", ["output", "states", "given", "zeros", "packed"])
def test_states_that_are_given_and_read(use: str) -> None:
    network = Sequences(nn.LSTM, use, num_layers=2, bidirectional=True)
    name = "begin" if use == "given" else "rnn"
    groups = check(network, STEPS, {"first", name})
    pruned = prune(network, [groups[name]], {name: [0, 2]})
    assert isinstance(pruned, Sequences)
    assert pruned.hidden == (2 if use in ("given", "zeros") else 4)


def test_projections_go_and_what_they_project_stays() -> None:
    network = Sequences(nn.LSTM, "states", num_layers=2, proj_size=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
        found = find_groups(network, STEPS)
        groups = check(network, STEPS, {"first", "rnn.weight_hr_l0"})
    assert found.refused["rnn"].startswith("PyTorch takes as many hidden units as projections")
    small: Any = prune(network, [groups["rnn.weight_hr_l0"]], {"rnn.weight_hr_l0": [2]}).rnn
    assert (small.hidden_size, small.proj_size, small.input_size) == (4, 1, 6)
    assert small.weight_hr_l1.shape == (1, 4)


class Stepped(nn.Module):
    """A cell that is called step by step."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.first, self.cell, self.out = nn.Linear(5, 6), kind(6, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for one in torch.tanh(self.first(x)).unbind(1):
            state = self.cell(one, state)
        return self.out(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind: Any) -> None:
    network = Stepped(kind)
    groups = check(network, noise(3, 4, 5), {"first", "cell"})
    small: Any = prune(network, list(groups.values()), {"first": [1, 2], "cell": [0, 3, 2]}).cell
    assert (small.input_size, small.hidden_size) == (2, 3)


def test_a_state_that_is_the_networks_input_keeps_its_size() -> None:
    class Given(Sequences):
        def forward(self, x: Tensor, start: Tensor) -> Tensor:  # type: ignore[override]
            return self.out(self.rnn(self.first(x), start)[0])  # type: ignore[no-any-return]

    found = find_groups(Given(nn.GRU), (STEPS, noise(1, 3, 4)))
    assert set(found.groups) == {"first"}
    assert found.refused["rnn"] == ("its output meets GRU (rnn) of something that keeps its size")


def test_numbers_of_packed_sequences_are_followed() -> None:
    graph = record(Sequences(nn.GRU, "packed"), STEPS)
    (step,) = (step for step in graph.steps if step.is_opaque)
    data, states = step.results
    assert data is not None
    assert states is not None
    assert graph.shapes[data.number] == (9, 4)
    assert graph.shapes[states.number] == (1, 3, 4)


@pytest.mark.parametrize("kind", GATES)
def test_what_is_left_trains_and_loads(kind: Any, tmp_path: Path) -> None:
    network = Sequences(kind, "given", num_layers=2, bidirectional=True)
    groups = list(find_groups(network, STEPS).groups.values())
    assert len(groups) == 2
    train_and_reload(network, groups, STEPS, tmp_path)
