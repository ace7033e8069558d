from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.errors import InputError
from trueoracle.pruning.candidates import Candidates, list_candidates
from trueoracle.pruning.groups import Group, GroupMap, Place
from trueoracle.pruning.ways import combination, moved, number_pruned, sample, space_size, way


def groups(**filters: int) -> GroupMap:
    return GroupMap(
        {name: Group(name, count, (Place(f"{name}.weight"),)) for name, count in filters.items()},
        {"fc": "why"},
    )


@pytest.mark.parametrize(
    ("ratio", "filters", "pruned"),
    [(0.7, 10, 7), (0.29, 100, 29), (0.5, 5, 3), (0.25, 10, 3), (0.2, 10, 2), (0.43, 7, 3)],
)
def test_the_number_pruned_is_rounded_once_in_decimal(
    ratio: float, filters: int, pruned: int
) -> None:
    assert number_pruned(ratio, filters) == pruned


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.7, math.nan])
def test_a_ratio_outside_zero_to_one_is_refused(ratio: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        number_pruned(ratio, 10)


@pytest.mark.parametrize(("ratio", "what"), [(0.04, "nothing"), (0.96, "everything")])
def test_a_ratio_that_leaves_no_choice_is_refused(ratio: float, what: str) -> None:
    with pytest.raises(InputError, match=what):
        number_pruned(ratio, 10)


@given(st.integers(1, 9), st.data())
def test_combinations_are_numbered_in_lexicographic_order(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, n))
    numbered = [combination(i, n, k) for i in range(math.comb(n, k))]
    assert numbered == list(itertools.combinations(range(n), k))


def test_ways_of_two_groups_are_the_product_with_the_last_changing_fastest() -> None:
    filters, pruned = (4, 3), (2, 1)
    ways = [way(i, filters, pruned) for i in range(space_size(filters, pruned))]
    assert ways == list(
        itertools.product(itertools.combinations(range(4), 2), itertools.combinations(range(3), 1))
    )


@given(st.integers(1, 200), st.integers(0, 1000), st.data())
def test_a_sample_is_distinct_and_within_the_space(
    size: int, seed: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, size))
    drawn = sample(size, count, seed)
    assert len(set(drawn)) == len(drawn) == count
    assert all(0 <= number < size for number in drawn)
    assert drawn == sample(size, count, seed)


def test_a_sample_of_a_huge_space_is_drawn_without_building_it() -> None:
    listed = list_candidates(
        groups(a=200, b=200, c=200), {"a": 0.5, "b": 0.5, "c": 0.5}, count=50, seed=3
    )
    assert listed.space > 10**100
    assert len(set(listed.ids)) == 50
    assert all(len(pruned) == 100 for one in listed for pruned in one)
    again = list_candidates(
        groups(a=200, b=200, c=200), {"a": 0.5, "b": 0.5, "c": 0.5}, count=50, seed=3
    )
    assert again.ids == listed.ids
    other = list_candidates(
        groups(a=200, b=200, c=200), {"a": 0.5, "b": 0.5, "c": 0.5}, count=50, seed=4
    )
    assert not set(other.ids) & set(listed.ids)


def test_samples_cover_the_space_evenly() -> None:
    # 3,000 draws of 2 from 10 numbers: each number is expected 600 times, sd about 22.
    counts = [0] * 10
    for seed in range(3000):
        for number in sample(10, 2, seed):
            counts[number] += 1
    assert all(abs(count - 600) < 5 * 22 for count in counts)


@pytest.mark.parametrize(
    ("pruned", "count"), [(2, 45), (3, 120), (4, 210), (5, 252), (6, 210), (7, 120), (8, 45)]
)
def test_enumeration_is_exhaustive(pruned: int, count: int) -> None:
    listed = list_candidates(groups(conv1=10), {"conv1": pruned / 10})
    assert len(listed) == listed.space == len(set(listed.ids)) == count
    assert [one[0] for one in listed] == list(itertools.combinations(range(10), pruned))


def test_ids_are_pinned() -> None:
    # Recorded studies are keyed by these: they may never change.
    listed = list_candidates(groups(conv1=10), {"conv1": 0.2})
    assert listed.ids[:2] == ("db66f7d6f4c50d6c", "30b0f7da02463db3")


def test_samples_are_pinned() -> None:
    # The default seed's candidates, here and on every machine.
    assert sample(10**30, 2, seed=0) == [
        198441737587687207744109680147,
        139109141237965358711594976883,
    ]


def test_an_id_names_the_way_to_prune_and_not_the_list_it_is_in() -> None:
    everything = list_candidates(groups(conv1=6), {"conv1": 0.5})
    some = list_candidates(groups(conv1=6), {"conv1": 0.5}, count=7, seed=1)
    by_id = dict(zip(everything.ids, everything.ways, strict=True))
    assert [by_id[name] for name in some.ids] == list(some.ways)


def test_a_space_too_large_to_list_is_refused_with_its_size_and_the_field() -> None:
    with pytest.raises(InputError, match=r"137,846,528,820 ways.*pruning\.candidates"):
        list_candidates(groups(a=40), {"a": 0.5})
    with pytest.raises(InputError, match=r"about 1\.0e119 ways.*pruning\.candidates"):
        list_candidates(groups(a=400), {"a": 0.5})


def test_the_size_of_an_enormous_space_can_be_said() -> None:
    with pytest.raises(InputError, match=r"there are about \d\.\de6018 ways"):
        list_candidates(groups(a=20000), {"a": 0.5})


def test_a_sample_larger_than_the_space_is_refused() -> None:
    with pytest.raises(InputError, match="there are 6 ways"):
        list_candidates(groups(a=4), {"a": 0.5}, count=7)


def test_patterns_name_layers() -> None:
    available = groups(conv1=4, conv2=4, head=4)
    listed = list_candidates(available, {"conv*": 0.5})
    assert [group.name for group in listed.groups] == ["conv1", "conv2"]
    with pytest.raises(InputError, match="did you mean 'conv1'"):
        list_candidates(available, {"conv11": 0.5})
    with pytest.raises(InputError, match="'fc' cannot be pruned: why"):
        list_candidates(available, {"fc": 0.5})
    with pytest.raises(InputError, match="more than one pattern"):
        list_candidates(available, {"conv1": 0.5, "conv*": 0.25})


def test_kept_and_pruned_make_up_the_layer() -> None:
    listed: Candidates = list_candidates(groups(a=5, b=4), {"a": 0.4, "b": 0.25})
    for index in range(len(listed)):
        for group in listed.groups:
            parts = [*listed.pruned(index)[group.name], *listed.kept(index)[group.name]]
            assert sorted(parts) == list(range(group.filters))
    for position, name in enumerate("ab"):
        together = listed.kept_filters(position).tolist()
        assert together == [listed.kept(index)[name].tolist() for index in range(len(listed))]


def test_importances_are_summed_over_what_is_pruned() -> None:
    listed = list_candidates(groups(a=3, b=2), {"a": 0.34, "b": 0.5})
    scores = listed.sum_pruned({"a": [1.0, 10.0, 100.0], "b": [0.1, 0.2]})
    assert scores.tolist() == pytest.approx([1.1, 1.2, 10.1, 10.2, 100.1, 100.2])


def llama_like() -> GroupMap:
    """Groups as those of a transformer: what blocks write to the stream is one group."""

    def group(name: str, filters: int, *others: str) -> Group:
        places = tuple(Place(f"{layer}.weight") for layer in (name, *others))
        return Group(name, filters, places)

    found = [group("embed", 8, "layers.0.attn.o", "layers.0.mlp.down", "layers.1.mlp.down")]
    for block in range(2):
        found.append(group(f"layers.{block}.attn.q", 2, f"layers.{block}.attn.k"))
        found.append(group(f"layers.{block}.mlp.gate", 6, f"layers.{block}.mlp.up"))
    return GroupMap({one.name: one for one in found}, {})


@pytest.mark.parametrize(
    ("ratios", "names"),
    [
        ({"layers.*.mlp.*": 0.5}, ["layers.0.mlp.gate", "layers.1.mlp.gate"]),
        ({"layers.*.attn.*": 0.5}, ["layers.0.attn.q", "layers.1.attn.q"]),
        ({"layers.*.attn.k": 0.5}, ["layers.0.attn.q", "layers.1.attn.q"]),
        ({"layers.*.mlp.down": 0.5}, ["embed"]),
        ({"layers.0.mlp.down": 0.5}, ["embed"]),
        (
            {"*": 0.5},
            ["embed", *(f"layers.{i}.{n}" for i in range(2) for n in ("attn.q", "mlp.gate"))],
        ),
    ],
)
def test_a_pattern_over_blocks_does_not_mean_the_stream_that_they_write_to(
    ratios: dict[str, float], names: list[str]
) -> None:
    listed = list_candidates(llama_like(), ratios, count=2)
    assert [group.name for group in listed.groups] == names


def test_all_ways_to_prune_one_of_two_groups_in_every_layer() -> None:
    listed = list_candidates(llama_like(), {"layers.*.attn.*": 0.5})
    assert (len(listed), listed.space) == (4, 4)


@given(st.integers(0, 100), st.floats(0.01, 1))
def test_moved_scores_are_the_same_scores(seed: int, share: float) -> None:
    scores = np.random.default_rng(seed).normal(size=50)
    keys = np.random.PCG64(seed).random_raw(50)
    found = moved(scores, share, keys)
    assert sorted(found) == sorted(scores)
    taking_part = keys < np.uint64(min(share * 2.0**64, 2.0**64 - 2048))
    assert (found == scores)[~taking_part].all()


def test_the_share_is_how_many_take_part() -> None:
    scores = np.arange(100_000.0)
    changed = (moved(scores, 0.3, np.random.PCG64(0).random_raw(100_000)) != scores).mean()
    assert changed == pytest.approx(0.3, abs=0.01)


def test_ways_around_a_choice() -> None:
    listed = list_candidates(groups(a=8, b=6), {"a": 0.25, "b": 0.5}, count=2)
    importance = {"a": [7.0, 1, 6, 5, 0, 4, 3, 2], "b": [0.0, 9, 1, 8, 2, 7]}
    drawn = listed.around("mine", importance, 12, 0.3, seed=0)
    assert drawn.ways[0] == ((1, 4), (0, 2, 4))
    assert len(set(drawn.ways)) == 12
    assert all((len(a), len(b)) == (2, 3) for a, b in drawn.ways)
    assert drawn.ways == listed.around("mine", importance, 12, 0.3, seed=0).ways
    assert drawn.ways != listed.around("mine", importance, 12, 0.3, seed=1).ways
    scores = drawn.sum_pruned(importance)
    assert scores.argmin() == 0
    with pytest.raises(InputError, match="the importance of b is one number for each of its 6"):
        listed.around("mine", {"a": importance["a"], "b": [1.0]}, 3, 0.3, 0)
    with pytest.raises(InputError, match="raise the share, or lower the count"):
        listed.around("mine", importance, 10, 1e-6, 0)
