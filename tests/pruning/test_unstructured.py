from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trueoracle.criteria.base import criterion, find_criterion
from trueoracle.data.splits import Splits
from trueoracle.engines import native, wide
from trueoracle.engines.choose import plan, train_population
from trueoracle.errors import InputError
from trueoracle.pruning.cost import cost
from trueoracle.pruning.unstructured import (
    WeightCandidates,
    check_masks,
    list_weight_candidates,
    unmasked,
)
from trueoracle.pruning.ways import number_pruned
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate
from trueoracle.training.recipe import Retraining


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(147, 4), nn.Linear(4, 10)
    )


def zeros(candidates: WeightCandidates, index: int) -> dict[str, int]:
    return {name: int((~kept).sum()) for name, kept in candidates.kept(index).items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.05, 0.95), st.sampled_from(["layer", "global"]))
def test_exactly_so_many_weights_are_pruned(seed: int, sparsity: float, scope: Any) -> None:
    listed = list_weight_candidates(small(), {"*": sparsity}, count=2, seed=seed, scope=scope)
    for index in range(2):
        found = zeros(listed, index)
        if scope == "layer":
            sizes = {"0": 75, "3": 588, "4": 40}
            assert found == {name: number_pruned(sparsity, n) for name, n in sizes.items()}
        else:
            assert sum(found.values()) == number_pruned(sparsity, 75 + 588 + 40)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 2))
def test_masks_come_again_and_differ_between_candidates_and_seeds(seed: int) -> None:
    def listed(seed: int, count: int) -> WeightCandidates:
        return list_weight_candidates(small(), {"3": 0.5}, count=count, seed=seed)

    three, two, other = listed(seed, 3), listed(seed, 2), listed(seed + 1, 3)
    assert three.ids[:2] == two.ids
    assert torch.equal(three.kept(1)["3"], two.kept(1)["3"])
    assert torch.equal(three.take([2]).kept(0)["3"], three.kept(2)["3"])
    assert len({*three.ids, *other.ids}) == 6
    assert not torch.equal(three.kept(0)["3"], three.kept(1)["3"])
    assert not torch.equal(three.kept(0)["3"], other.kept(0)["3"])


def test_a_mask_is_pinned() -> None:
    """The number in a record has to give the same mask with every version of numpy."""
    one = WeightCandidates({"a": (2, 4)}, {"a": 3}, "layer", (7,))
    assert one.kept(0)["a"].long().tolist() == [[1, 1, 1, 0], [0, 1, 0, 1]]
    assert one.pruned(0) == {"mask": "0000000000000007", "sparsity": {"a": 0.375}}


def test_every_weight_is_equally_likely_to_go() -> None:
    # 2,000 draws of 2 from 8: each is expected 500 times, with a deviation of about 19.
    one = WeightCandidates({"a": (8,)}, {"a": 2}, "layer", tuple(range(2000)))
    counts = sum((~one.kept(i)["a"]).long() for i in range(2000))
    assert isinstance(counts, torch.Tensor)
    assert int((counts - 500).abs().max()) < 100


@pytest.mark.parametrize(
    ("sparsities", "message"),
    [
        ({"7": 0.5}, "unknown layer in pruning.layers '7'"),
        ({"*": 0.5, "3": 0.5}, "'3' is named by more than one pattern"),
        ({"0": 0.001}, "pruning.layers: 0: a pruning ratio of 0.001 would remove nothing of 75 "),
    ],
)
def test_layers_that_cannot_be_pruned_so_are_refused(
    sparsities: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        list_weight_candidates(small(), sparsities, count=2)
    assert message in str(caught.value)


def test_weights_that_are_not_a_layers_own_are_refused() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(InputError, match="'0' cannot be pruned: it shares weights"):
        list_weight_candidates(tied, {"0": 0.5}, count=2)
    computed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(InputError, match="'0' cannot be pruned: it computes its weights"):
        list_weight_candidates(computed, {"0": 0.5}, count=2)
    with pytest.raises(InputError, match="= 7, but there are about 6 masks"):
        list_weight_candidates(nn.Sequential(nn.Linear(2, 2)), {"0": 0.5}, count=7)


RECIPES = [
    {"momentum": 0.9, "weight_decay": 0.1, "gradient_clip": 0.5},
    {"optimizer": "adam", "weight_decay": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.1},
]


@pytest.mark.parametrize("fields", RECIPES)
def test_zeros_stay_zero_in_a_population_that_equals_its_members(
    few_digits: Splits, fields: dict[str, Any]
) -> None:
    recipe = Retraining(epochs=2, batch_size=64, learning_rate=0.02, **fields)
    network = small()
    listed = list_weight_candidates(network, {"*": 0.5}, count=3)
    alone, together = ([listed.prune(network, i) for i in range(3)] for _ in range(2))
    few = Splits(few_digits.train, None, few_digits.test, Classification(10))
    one = train_population(alone, [(0, "")] * 3, few, recipe, engine="loop")
    many = train_population(together, [(0, "")] * 3, few, recipe, engine="wide")
    for index in range(3):
        assert one[index][-1].train_loss == pytest.approx(many[index][-1].train_loss, rel=1e-4)
        for trained in (alone[index], together[index]):
            plain = unmasked(trained)
            assert plain.state_dict().keys() == network.state_dict().keys()
            for name, kept in listed.kept(index).items():
                weight = plain.get_parameter(f"{name}.weight")
                assert (weight[~kept] == 0).all()
                assert (weight[kept] != network.get_parameter(f"{name}.weight")[kept]).all()
            assert evaluate(plain, few.test, few.task) == evaluate(trained, few.test, few.task)


def test_engines_that_can_are_chosen_and_the_kernels_say_why_not(few_digits: Splits) -> None:
    network, recipe = small(), Retraining(epochs=1, batch_size=64)
    pruned = list_weight_candidates(network, {"0": 0.5}, count=1).prune(network, 0)
    assert native.refusal(pruned, few_digits, recipe) == "0 is a ParametrizedConv2d"
    assert wide.refusal(pruned, few_digits, recipe) is None
    chosen = plan(pruned, few_digits, recipe, members=4)
    assert chosen.engine in ("wide", "loop")
    assert "native cannot: 0 is a ParametrizedConv2d" in chosen.reason


def test_the_dense_network_stays_and_copies_are_apart() -> None:
    network = small()
    listed = list_weight_candidates(network, {"0": 0.5}, count=1)
    pruned = listed.prune(network, 0)
    assert (network.get_parameter("0.weight") != 0).all()
    again = copy.deepcopy(pruned)
    with torch.no_grad():
        again.get_parameter("0.parametrizations.weight.original").add_(1)
    images = torch.rand(2, 1, 32, 32)
    assert not torch.equal(again(images), pruned(images))
    assert torch.equal(unmasked(again).get_parameter("0.weight") == 0, ~listed.kept(0)["0"])
    check_masks(network, listed, images)


class Peeking(nn.Module):
    """Reads a weight where no mask is, and so does not compute what zeros would."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = getattr(self.out, "parametrizations", None)
        masked = 0.0 if held is None else 1.0
        return self.out(x) + masked  # type: ignore[no-any-return]


def test_masks_that_are_not_zeros_are_noticed() -> None:
    network = Peeking()
    listed = list_weight_candidates(network, {"out": 0.5}, count=1)
    with pytest.raises(InputError, match=r"masked weights of out are not the same as zeros"):
        check_masks(network, listed, torch.rand(3, 4))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_costs_count_what_is_left(scope: Any) -> None:
    network = small()
    listed = list_weight_candidates(network, {"*": 0.3}, count=4, scope=scope)
    whole = cost(network, (1, 32, 32))
    found = listed.costs(network, (1, 32, 32))
    for index, one in enumerate(found):
        left = {name: int(kept.sum()) for name, kept in listed.kept(index).items()}
        assert one.macs == left["0"] * 49 + left["3"] + left["4"]
        assert one.parameters == whole.parameters - sum(zeros(listed, index).values())
    assert (len({one.macs for one in found}) == 1) == (scope == "layer")


def test_criteria_of_single_weights(few_digits: Splits) -> None:
    network = small()
    listed = list_weight_candidates(network, {"*": 0.4}, count=3, scope="global")
    expected: dict[str, list[float]] = {"l1": [], "l2": [], "oracle": []}
    for index in range(3):
        pruned = unmasked(listed.prune(network, index))
        parts = [
            network.get_parameter(f"{name}.weight").detach()[~kept]
            for name, kept in listed.kept(index).items()
        ]
        gone = torch.cat(parts).double()
        expected["l1"].append(float(gone.abs().sum()))
        expected["l2"].append(float((gone**2).sum()))
        expected["oracle"].append(evaluate(pruned, few_digits.train, Classification(10))["loss"])
    for name, scores in expected.items():
        found = find_criterion(name)(network, listed, few_digits)
        np.testing.assert_allclose(found, scores, rtol=1e-6)
    assert len(set(find_criterion("random")(network, listed, few_digits))) == 3


def test_a_criterion_of_filters_says_what_it_lacks(few_digits: Splits) -> None:
    @criterion("of-filters")
    def of_filters(dense: nn.Module, candidates: Any, data: Splits) -> Any:
        return candidates.sum_pruned({group.name: [1.0] for group in candidates.groups})

    listed = list_weight_candidates(small(), {"4": 0.4}, count=2)
    with pytest.raises(
        InputError, match="the importance of 4 is one number for each of its weights"
    ):
        of_filters(small(), listed, few_digits)


def test_a_listing_gives_the_same_masks(tmp_path: Path) -> None:
    from trueoracle.pruning.listing import write_listing

    path = tmp_path / "candidates.json"
    listed = list_weight_candidates(small(), {"*": 0.5}, count=3, seed=5)
    write_listing(listed.listing(), path)
    again = list_weight_candidates(small(), {"*": 0.5}, count=path)
    assert again.ids == listed.ids
    with pytest.raises(InputError, match="lists candidates of pruned"):
        list_weight_candidates(small(), {"*": 0.4}, count=path)
    with pytest.raises(InputError, match="lists candidates of scope 'layer'"):
        list_weight_candidates(small(), {"*": 0.5}, count=path, scope="global")
    text = path.read_text().replace(f'"{listed.pruned(1)["mask"]}"', '"12"')
    path.write_text(text)
    with pytest.raises(InputError, match="is damaged: it is not what was written"):
        list_weight_candidates(small(), {"*": 0.5}, count=path)
    path.write_text("\n".join(line for line in text.splitlines() if "sha256" not in line))
    with pytest.raises(InputError, match="candidate 2 is a mask's 16 hex digits, got '12'"):
        list_weight_candidates(small(), {"*": 0.5}, count=path)


def test_ids_tell_layers_counts_and_scopes_apart() -> None:
    listed = [
        list_weight_candidates(small(), {"3": 0.5}, count=1),
        list_weight_candidates(small(), {"3": 0.4}, count=1),
        list_weight_candidates(small(), {"4": 0.5}, count=1),
        list_weight_candidates(small(), {"3": 0.5}, count=1, scope="global"),
    ]
    assert len({one.ids for one in listed}) == 4
    assert all(len(one.ids[0]) == 16 and math.isfinite(int(one.ids[0], 16)) for one in listed)
