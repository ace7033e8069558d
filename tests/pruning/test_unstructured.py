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
from trueoracle.pruning.held import unmasked
from trueoracle.pruning.unstructured import WeightCandidates, check_masks, list_weight_candidates
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


def test_a_mask_of_a_pattern_is_pinned() -> None:
    one = WeightCandidates({"a": (2, 4)}, {"a": 4}, "layer", (7,), patterns={"a": (2, 4)})
    assert one.kept(0)["a"].long().tolist() == [[0, 1, 1, 0], [0, 1, 0, 1]]
    assert one.ids == ("74aff6dcb353427d",)


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
    with pytest.raises(
        InputError, match=r"^7 candidates are asked for, but there are about 6 masks"
    ):
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


PATTERNS = [(nn.Linear(8, 5), (5, 2, 4)), (nn.Conv2d(8, 3, 3), (3, 9, 2, 4))]


@pytest.mark.parametrize(("layer", "cells"), PATTERNS)
def test_of_every_four_consecutive_inputs_two_stay(layer: nn.Module, cells: Any) -> None:
    listed = list_weight_candidates(nn.Sequential(layer), {"0": "2:4"}, count=4)
    for index in range(4):
        kept = listed.kept(index)["0"]
        # Of a convolution: consecutive channels at one place of its kernel.
        rows = kept if kept.ndim == 2 else kept.flatten(2).transpose(1, 2)
        assert (rows.reshape(cells if kept.ndim > 2 else (5, 2, 4)).sum(-1) == 2).all()
    assert listed.pruned(0)["sparsity"] == {"0": 0.5}
    assert len(set(listed.ids)) == 4
    plain = list_weight_candidates(nn.Sequential(layer), {"0": 0.5}, count=4)
    assert not {*plain.ids} & {*listed.ids}


def test_a_turned_weight_has_its_inputs_in_its_first_axis() -> None:
    class Conv1D(nn.Module):  # as transformers'
        def __init__(self) -> None:
            super().__init__()
            self.nf, self.nx = 3, 8
            self.weight = nn.Parameter(torch.randn(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight

    network = nn.Sequential(Conv1D())
    listed = list_weight_candidates(network, {"0": "1:4"}, count=2)
    assert (listed.kept(0)["0"].T.reshape(3, 2, 4).sum(2) == 1).all()
    rows = list_weight_candidates(network, {"0": 0.25}, count=2, scope="row")
    assert rows.kept(1)["0"].sum(0).tolist() == [6, 6, 6]
    check_masks(network, listed, torch.rand(3, 8))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("2:5", "0 = '2:5': its 8 inputs are no multiple of 5"),
        ("4:4", "0 = '4:4': of every M weights N are kept, and N is at least 1 and less than M"),
    ],
)
def test_a_pattern_that_does_not_fit_is_one_clear_line(pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_weight_candidates(nn.Sequential(nn.Linear(8, 5)), {"0": pattern}, count=2)


def test_every_row_loses_the_same_share() -> None:
    listed = list_weight_candidates(small(), {"3": 0.5, "0": 0.2}, count=2, scope="row")
    kept = listed.kept(1)
    assert (kept["3"].sum(1) == 147 - 74).all()
    assert (kept["0"].flatten(1).sum(1) == 20).all()
    assert listed.counts == {"0": 15, "3": 4 * 74}


def around(scope: Any, sparsities: Any, share: float = 0.2) -> tuple[WeightCandidates, Any]:
    torch.manual_seed(1)
    network = small()
    listed = list_weight_candidates(network, sparsities, count=2, scope=scope)
    scores = {
        name: network.get_parameter(f"{name}.weight").detach().abs() for name in listed.weights
    }
    return listed.around("l1", scores, 6, share, seed=3), scores


@pytest.mark.parametrize("scope", ["layer", "row", "global"])
def test_the_first_is_the_criterions_own_choice_and_the_others_lie_around_it(scope: Any) -> None:
    drawn, scores = around(scope, {"*": 0.5})
    own = drawn.kept(0)
    if scope == "row":
        for name, kept in own.items():
            rows, stays = scores[name].flatten(1), kept.flatten(1)
            least = torch.where(stays, rows, torch.inf).min(1).values
            assert (torch.where(stays, 0, rows).max(1).values <= least).all()
    else:
        pools = [list(own)] if scope == "global" else [[name] for name in own]
        for pool in pools:
            left = torch.cat([scores[name][own[name]] for name in pool])
            gone = torch.cat([scores[name][~own[name]] for name in pool])
            assert gone.max() <= left.min()
    assert drawn.pruned(0)["mask"] == "0000000000000000"
    for index in range(1, 6):
        other = drawn.kept(index)
        assert zeros(drawn, index).keys() == own.keys()
        if scope != "global":
            assert zeros(drawn, index) == zeros(drawn, 0)
        changed = sum(int((other[name] != own[name]).sum()) for name in own)
        assert 0 < changed < 0.2 * sum(one.numel() for one in own.values())
    again, _ = around(scope, {"*": 0.5})
    assert again.ids == drawn.ids
    assert all(torch.equal(again.kept(2)[name], drawn.kept(2)[name]) for name in own)
    assert len({*drawn.ids, *around(scope, {"*": 0.5}, share=0.3)[0].ids}) == 12


def test_a_pattern_holds_around_a_choice_too() -> None:
    drawn, scores = around("layer", {"4": "1:2"})
    for index in range(6):
        assert (drawn.kept(index)["4"].reshape(-1, 2).sum(1) == 1).all()
    pairs = scores["4"].reshape(-1, 2)
    assert torch.equal(drawn.kept(0)["4"].reshape(-1, 2)[:, 0], pairs[:, 0] > pairs[:, 1])


def test_too_small_a_share_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="brings 1 different candidates around the criterion's"):
        around("layer", {"4": 0.5}, share=1e-9)


def test_a_listing_around_a_choice_is_not_taken_for_random_masks(tmp_path: Path) -> None:
    from trueoracle.pruning.listing import write_listing

    drawn, _ = around("layer", {"*": 0.5})
    write_listing(drawn.listing(), tmp_path / "candidates.json")
    with pytest.raises(
        InputError, match=r"around 'l1, 0.2 of its scores .*this study's are of nothing"
    ):
        list_weight_candidates(small(), {"*": 0.5}, count=tmp_path / "candidates.json")


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
