from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm

from trueoracle.errors import InputError
from trueoracle.networks.copying import copied

IMAGES = torch.rand(2, 3)


def with_masks() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    prune.l1_unstructured(network[0], "weight", amount=0.3)
    return network


def with_spectral_norm() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2))


def with_kept_activation() -> nn.Module:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    kept: dict[str, Tensor] = {}
    network.kept = kept  # type: ignore[assignment]

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept["hidden"] = output

    network[0].register_forward_hook(keep)
    return network


@pytest.mark.parametrize("make", [with_masks, with_spectral_norm, with_kept_activation])
def test_tensors_with_a_history_are_copied_by_value(make: Any) -> None:
    network = make()
    network(IMAGES).sum().backward()
    twin = copied(network)
    assert torch.equal(twin.eval()(IMAGES), network.eval()(IMAGES))
    for mine, theirs in zip(network.parameters(), twin.parameters(), strict=True):
        assert mine is not theirs
        assert mine.requires_grad == theirs.requires_grad
    before = network(IMAGES)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(network(IMAGES), before)


def test_tied_weights_stay_tied() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    network[1].weight = network[0].weight
    twin = copied(network)
    assert twin[1].weight is twin[0].weight


def test_what_cannot_be_copied_is_said() -> None:
    network = nn.Linear(3, 2)
    network.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"the network \(Linear\) cannot be copied: cannot pickle"):
        copied(network)
