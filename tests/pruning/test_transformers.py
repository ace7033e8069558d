"""Groups of attention, experts and hidden units in networks of transformers."""

from __future__ import annotations

import copy
import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.pruning.transformers_families import FAMILIES, padded_on_the_left
from trueoracle.networks.graph import answer, converted
from trueoracle.pruning.groups import Group
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups

pytest.importorskip("transformers")


def tensors(network: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(answer(network, example))
    return [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]


def difference(network: nn.Module, groups: list[Group], example: Any, kept: Any) -> float:
    """Of the pruned network from the masked one, relative to the largest number."""
    found = tensors(prune(network, groups, kept), example)
    with masked(network, groups, kept) as zeroed:
        expected = tensors(zeroed, example)
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)
    )


QUICK = ("llama", "bloom", "falcon", "t5", "llava clip")


@pytest.mark.parametrize(
    "name",
    [pytest.param(one, marks=[] if one in QUICK else pytest.mark.slow) for one in FAMILIES],
)
def test_groups_of_a_family_are_found_and_cut(name: str) -> None:
    family = FAMILIES[name]
    network, example = family.build(), family.example()
    threads, began = threading.active_count(), time.process_time()
    found = find_groups(network, example)
    assert time.process_time() - began < 5  # a tenth of it on a quiet machine
    assert threading.active_count() == threads
    groups = list(found.groups.values())
    assert Counter(group.kind for group in groups) == family.units, found.refused
    is_double = "mo" not in name and "mixtral" not in name  # experts compute in single precision
    if is_double:
        network, example = network.double(), converted(example, torch.float64)
    for training in (False, True):
        network.train(training)
        with torch.no_grad():
            for module in network.modules():  # which drops others in a smaller network
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        for group in groups:
            kept = {group.name: range(1, group.filters, 2)}
            assert difference(network, [group], example, kept) < (1e-12 if is_double else 1e-5)
        halves = {group.name: range(group.filters // 2) for group in groups}
        assert difference(network, groups, example, halves) < (1e-12 if is_double else 1e-5)


TEXTS = [name for name in FAMILIES if "input_ids" in FAMILIES[name].example()]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(one, marks=[] if one in ("llama", "gemma2") else pytest.mark.slow)
        for one in TEXTS
        if one != "t5"  # whose decoder begins where its texts do
    ],
)
def test_the_side_of_padding_hides_no_group(name: str) -> None:
    family = FAMILIES[name]
    found = find_groups(family.build(), padded_on_the_left(family.example()))
    assert Counter(group.kind for group in found.groups.values()) == family.units, found.refused


@pytest.mark.parametrize("name", ["llava clip", "llava siglip"])
def test_what_is_computed_and_not_read_is_cut_along(name: str) -> None:
    family = FAMILIES[name]
    network = family.build().double()
    example = converted(family.example(), torch.float64)
    found = find_groups(network, example)
    tower = "model.vision_tower"
    group = found.groups[f"{tower}.embeddings.patch_embedding"]
    readers = [part.module for part in group.consumers]
    assert "model.multi_modal_projector.linear_1" in readers
    unread = f"{tower}.encoder.layers.1."
    assert not [one for one in readers if one.startswith(unread)]
    assert f"{tower}.post_layernorm" in group.members
    assert not [one for one in found.groups if one.startswith(unread)]
    reason = found.refused[f"{unread}mlp.fc1"]
    assert reason == "what the network gives does not depend on it"
    pruned: Any = prune(network, [group], {group.name: range(1, 32, 2)})
    assert pruned.get_submodule(f"{unread}mlp.fc1").in_features == 16
    assert pruned.get_submodule(f"{tower}.post_layernorm").normalized_shape == (16,)


@pytest.mark.parametrize(
    ("name", "shared"), [("llama", 2), ("llama 4/1", 1), ("llama 4/4", 4), ("qwen2", 2)]
)
def test_every_way_to_cut_heads_equals_masking_on_a_padded_batch(name: str, shared: int) -> None:
    family = FAMILIES[name]
    network = family.build().double()
    groups = [g for g in find_groups(network, family.example()).groups.values() if "attn" in g.name]
    first = [group for group in groups if ".0." in group.name]
    for group in first:
        for index in range(group.filters):
            kept = {group.name: [i for i in range(group.filters) if i != index]}
            assert difference(network, [group], family.example(), kept) < 1e-12
            pruned: Any = prune(network, [group], kept)
            attention = pruned.model.layers[0].self_attn
            queries, keys = (
                attention.get_submodule(one).out_features // attention.head_dim
                for one in ("q_proj", "k_proj")
            )
            assert queries == attention.num_key_value_groups * keys


def test_a_stale_number_of_query_heads_fails_on_a_padded_batch() -> None:
    family = FAMILIES["llama"]
    network = family.build().double()
    found = find_groups(network, family.example()).groups
    group = found["model.layers.0.self_attn.q_proj:heads"]
    pruned: Any = prune(network, [group], {group.name: [1]})
    assert pruned.model.layers[0].self_attn.num_key_value_groups == 1
    stale = copy.deepcopy(pruned)
    stale.model.layers[0].self_attn.num_key_value_groups = 2
    with pytest.raises(RuntimeError, match="size of tensor"):
        tensors(stale, family.example())


def test_both_kinds_of_heads_can_be_cut_at_once() -> None:
    family = FAMILIES["qwen2-vl"]
    network = family.build().double()
    example = converted(family.example(), torch.float64)
    groups = [g for g in find_groups(network, example).groups.values() if ".0.self_attn" in g.name]
    assert [group.kind for group in groups] == ["key/value groups", "query heads"]
    kept = {group.name: [1] for group in groups}
    assert difference(network, groups, example, kept) < 1e-12
    attention: Any = prune(network, groups, kept).get_submodule(
        "model.language_model.layers.0.self_attn"
    )
    assert attention.num_heads == attention.num_key_value_heads == 1  # of four and two
    assert attention.num_key_value_groups == 1


def test_a_head_keeps_its_own_bias_where_a_model_makes_one_for_each() -> None:
    family = FAMILIES["bloom"]
    network = family.build().double()
    group = find_groups(network, family.example()).groups[
        "transformer.h.0.self_attention.query_key_value"
    ]
    pruned: Any = prune(network, [group], {group.name: [0, 3]})
    group = find_groups(pruned, family.example()).groups[group.name]
    again: Any = prune(pruned, [group], {group.name: [1]})
    assert pruned.transformer.h[0].self_attention.kept_heads.tolist() == [0, 3]
    assert again.transformer.h[0].self_attention.kept_heads.tolist() == [3]


def test_experts_lose_hidden_units_and_none_goes_whole() -> None:
    family = FAMILIES["mixtral"]
    found = find_groups(family.build(), family.example())
    group = found.groups["model.layers.0.mlp.experts.gate_up_proj"]
    assert group.filters == 48  # of every expert the same
    assert [part.module for part in group.consumers] == ["model.layers.0.mlp.experts.down_proj"]
    assert found.refused["model.layers.0.mlp.gate"] == "its output meets '_softmax'"
