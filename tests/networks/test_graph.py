from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueoracle.networks.graph import Recorder, Ref, answer, converted, record


class Two(nn.Module):
    """Two inputs, a dictionary out, a branch on a value, a write into a part."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(2, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Any]:
        both = self.first(left) + self.second(right)
        if self.unused(both).mean() > 1e9:
            both = -both
        both = both * 1
        both[:, 0] = 2
        return {"both": both, "label": "none"}


LEFT, RIGHT = torch.rand(5, 3), torch.rand(5, 2)


@pytest.mark.parametrize("example", [(LEFT, RIGHT), {"left": LEFT, "right": RIGHT}])
def test_a_run_is_listed_with_modules_and_names(example: Any) -> None:
    network = Two()
    graph = record(network, example)
    named = {number: name for name, number in graph.named.items()}
    steps = [step for step in graph.steps if step.name == "addmm"]
    assert [step.module for step in steps] == ["first", "second", "unused"]
    (bias,) = (ref for ref in steps[0].tensors if ref.number in named)
    assert named[bias.number] == "first.bias"
    assert len(graph.inputs) == 2
    assert [graph.shapes[number] for number in graph.outputs] == [(5, 4)]
    assert not any(module._forward_hooks for module in network.modules())


def test_only_what_the_answer_depends_on_is_live() -> None:
    graph = record(Two(), (LEFT, RIGHT))
    live = [graph.steps[at] for at in graph.live()]
    assert "unused" not in {step.module for step in live}
    # The write into a view of the answer is part of it.
    assert [step.effect for step in live if step.name in ("select", "fill_")] == ["view", "write"]


def test_arguments_have_the_names_of_the_schema() -> None:
    graph = record(nn.Conv1d(3, 4, 3, groups=1), torch.rand(2, 3, 8))
    (step,) = (one for one in graph.steps if one.name == "convolution")
    assert isinstance(step.arguments["weight"], Ref)
    assert step.arguments["groups"] == 1
    assert step.arguments["transposed"] is False


def test_a_recurrent_layer_is_one_operation() -> None:
    graph = record(nn.LSTM(3, 4, batch_first=True), torch.rand(2, 5, 3))
    assert [step.name for step in graph.steps if step.is_opaque] == ["LSTM"]
    assert len(graph.steps) == 1


def test_values_can_be_watched() -> None:
    network, seen = nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), {}
    recorder = Recorder(network, LEFT, lambda at, value: seen.update({at: value}))
    result = recorder.run()
    assert torch.equal(seen[len(recorder.graph.steps) - 1], result)
    assert torch.equal(result, answer(network, LEFT))


def test_only_floating_point_is_converted() -> None:
    made = converted({"ids": torch.tensor([1]), "mask": torch.tensor([0.5])}, torch.float64)
    assert made["ids"].dtype == torch.int64
    assert made["mask"].dtype == torch.float64


def test_recording_imports_no_compiler() -> None:
    """``_should_skip_dynamo`` is torch's own name: without it, starting takes a second more."""
    code = (
        "import sys, torch; from trueoracle.networks.graph import record; "
        "record(torch.nn.Linear(2, 2), torch.rand(2, 2)); print('torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
