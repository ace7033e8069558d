from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn

from tests.criteria.test_influence import stream
from tests.criteria.tiny import chain, every_way, images
from trueoracle.analysis.outcomes import noise_in_words
from trueoracle.criteria.noise import example_losses, loss_noise
from trueoracle.criteria.shared import evaluate_each
from trueoracle.data.splits import Split
from trueoracle.tasks.regression import Regression


def test_the_error_of_a_difference_is_paired() -> None:
    network, data = chain(), images(24)
    candidates = every_way(network, {"3": 0.34})  # three ways
    losses = evaluate_each(network, candidates, data.train, data.task)
    each = []
    for index in range(3):
        logits = candidates.prune(network, index).eval()(data.train.inputs)
        each.append(
            nn.functional.cross_entropy(logits, data.train.targets, reduction="none").detach()
        )
    errors = [
        float((one - other).std() / math.sqrt(24)) for one, other in itertools.combinations(each, 2)
    ]
    found = loss_noise(network, candidates, losses, data)
    assert found is not None
    assert found["standard_error"] == pytest.approx(sorted(errors)[1], rel=1e-5)
    assert found["range"] == pytest.approx(np.ptp(losses))
    assert (found["candidates"], found["examples"]) == (3, 24)
    reach = NormalDist().inv_cdf((1 + 0.95 ** (1 / 3)) / 2)
    assert found["noise"] == pytest.approx(2 * reach * found["standard_error"] / math.sqrt(2))
    unpaired = math.sqrt(2) * float(each[0].std()) / math.sqrt(24)
    assert found["standard_error"] < unpaired


def test_candidates_that_do_not_differ_stay_below_the_noise() -> None:
    """In about 95 of 100 draws of the examples; by simulation of what is assumed."""
    reach = NormalDist().inv_cdf((1 + 0.95 ** (1 / 20)) / 2)
    draws = np.random.default_rng(0).normal(size=(2000, 20))
    assert 0.93 < (np.ptp(draws, axis=1) <= 2 * reach).mean() <= 1


def test_each_example_counts_by_its_tokens() -> None:
    network, data, listed = stream()
    losses, weights = example_losses(network, data.train, data.task)
    assert weights.tolist() == [2, 4, 2, 4, 2, 4]
    whole = evaluate_each(network, listed.take([0]), data.train, data.task)
    own, _ = example_losses(listed.prune(network, 0), data.train, data.task)
    assert (own @ weights) / weights.sum() == pytest.approx(whole[0], rel=1e-6)
    assert losses.shape == (6,)


def test_a_task_that_cannot_be_mapped_gives_the_same() -> None:
    class Single(Regression):
        is_mappable = False

    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    split = Split.of(torch.randn(7, 3), torch.randn(7, 2))
    one, _ = example_losses(network, split, Regression())
    other, _ = example_losses(network, split, Single())
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_too_few_finite_losses_say_nothing() -> None:
    network, data = chain(), images()
    candidates = every_way(network, {"3": 0.34})
    losses = np.array([1.0, math.nan, math.inf])
    assert loss_noise(network, candidates, losses, data) is None


def test_a_range_above_the_noise_is_not_warned_of() -> None:
    noise = {"standard_error": 0.01, "range": 0.1, "noise": 0.04, "candidates": 9.0, "examples": 50}
    assert noise_in_words(noise, "nats") == ""
    said = noise_in_words(noise | {"range": 0.009}, "nats")
    assert said.startswith(
        "the pruned losses of 9 candidates range over 0.009 nats, which is within"
    )
    assert "(standard error of a difference: 0.01)" in said
