"""Surgery against masking for every family of networks that is shipped."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.networks.test_families import sentences, spoken
from tests.pruning.test_walk import shuffle_norms
from trueoracle.networks.registry import NETWORKS, build, is_shipped
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.walk import find_groups

SMALL: dict[str, list[dict[str, Any]]] = {
    "lenet5-mini": [{}, {"depth": 7, "activation": "identity"}],
    "lenet5": [{}],
    "mlp": [{"hidden": [12, 8], "batch_norm": True}],
    **{name: [{"width": 0.125}] for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
    "resnet20": [{"width": 8}, {"width": 8, "shortcut": "B"}],
    "resnet56": [{"width": 4}],
    "resnet110": [{"width": 4}],
    **{name: [{"width": 8}] for name in ("resnet18", "resnet34", "resnet50")},
    "vit-b-16": [{"layers": 2, "heads": 4, "width": 24, "mlp": 20}],
}
LANGUAGE: dict[str, list[dict[str, Any]]] = {
    "llama": [{"layers": 2}, {"layers": 1, "hidden": 24, "heads": 6, "kv_heads": 3, "tie": False}],
    "llava": [{"patch": 16}],
}


def test_every_shipped_network_is_here() -> None:
    assert {name for name in NETWORKS if is_shipped(name)} == set(SMALL) | set(LANGUAGE)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"), [(name, one) for name, given in SMALL.items() for one in given]
)
def test_surgery_equals_masking(name: str, arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build(name, arguments, input_shape=(1, 32, 32), classes=5).double()
    shuffle_norms(network)
    with torch.no_grad():
        for parameter in network.parameters():  # a vision transformer's head begins at zero
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    images = torch.randn(3, 1, 32, 32, dtype=torch.float64)
    candidates = list_candidates(find_groups(network, images), {"*": 0.5}, count=2)
    for training in (False, True):
        network.train(training)
        for index in range(len(candidates)):
            dense = copy.deepcopy(network)  # batch norms in training mode change
            with torch.no_grad():
                whole = copy.deepcopy(network)(images)
                found = candidates.prune(network, index)(images)
                with masked(dense, candidates.groups, candidates.kept(index)) as zeroed:
                    expected = zeroed(images)
            assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
            assert (whole - expected).abs().max() > 1e-3 * whole.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"), [(name, one) for name, given in LANGUAGE.items() for one in given]
)
def test_surgery_equals_masking_of_padded_text(name: str, arguments: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    network = spoken(name, arguments).double().eval()
    batch = {
        key: value.double() if value.is_floating_point() else value
        for key, value in sentences(name).items()
    }
    candidates = list_candidates(find_groups(network, batch), {"*": 0.5}, count=2)
    assert {"q_proj", "gate_proj"} <= {g.name.rpartition(".")[2] for g in candidates.groups}
    for index in range(len(candidates)):
        with torch.no_grad():
            whole = network(**batch).logits
            found = candidates.prune(network, index)(**batch).logits
            with masked(network, candidates.groups, candidates.kept(index)) as zeroed:
                expected = zeroed(**batch).logits
        assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
        assert (whole - expected).abs().max() > 1e-3 * whole.abs().max()
