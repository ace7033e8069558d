from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.criteria.tiny import chain, every_way, images, masks, score
from trueoracle.criteria.base import find_criterion
from trueoracle.criteria.importance import importance_of
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.unstructured import list_weight_candidates
from trueoracle.tasks.language import NextToken
from trueoracle.tasks.regression import Regression

ROWS = torch.tensor([[1.0, 2.0, 0.0], [-3.0, 0.5, 0.0], [2.0, 1.0, 0.0], [0.5, -1.0, 0.0]])


class Turned(nn.Module):
    """As transformers' ``Conv1D``: its weight is [in, out]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


Turned.__name__ = "Conv1D"


def regression(inputs: Tensor) -> Splits:
    split = Split.of(inputs, torch.zeros(len(inputs), 2))
    return Splits(split, None, split, Regression())


def linear(network: nn.Sequential) -> Any:
    return network[0]


def importance(name: str, network: nn.Module, data: Splits) -> dict[str, np.ndarray]:
    listed = list_weight_candidates(network, {"0": 0.5}, count=1)
    return importance_of(find_criterion(name), network, listed, data)


def test_wanda_of_a_linear_layer_by_hand() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    norms = [(1 + 9 + 4 + 0.25) ** 0.5, (4 + 0.25 + 1 + 1) ** 0.5, 0.0]
    expected = linear(network).weight.detach().abs() * torch.tensor(norms)
    found = importance("wanda", network, regression(ROWS))
    np.testing.assert_allclose(found["0"], expected.numpy(), rtol=1e-6)


def test_a_turned_weight_scores_as_the_linear_layer_that_it_is() -> None:
    turned, plain = nn.Sequential(Turned(3, 2)), nn.Sequential(nn.Linear(3, 2, bias=False))
    linear(plain).weight.data = linear(turned).weight.detach().T.clone()
    for name in ("wanda", "sparsegpt"):
        one = importance(name, turned, regression(ROWS))["0"]
        other = importance(name, plain, regression(ROWS))["0"]
        np.testing.assert_allclose(one, other.T, rtol=1e-9)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=(1, 0), groups=2),
        nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect", dilation=1),
        nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2),
    ],
)
def test_wanda_of_a_convolution_is_that_of_the_matrix_it_multiplies_patches_by(
    convolution: Any,
) -> None:
    shape = (5, 4, 7) if isinstance(convolution, nn.Conv1d) else (5, 4, 7, 6)
    given = torch.randn(shape)
    network = nn.Sequential(convolution)
    split = Split.of(given, convolution(given).detach())
    found = importance("wanda", network, Splits(split, None, split, Regression()))["0"]
    weight = convolution.weight.detach().clone()
    # The squared norm of what one weight multiplies: the output's square if it alone were 1.
    squares = torch.zeros_like(weight)
    for place in itertools.product(*map(range, weight.shape)):
        with torch.no_grad():
            convolution.weight.zero_()
            convolution.weight[place] = 1
            convolution.bias.zero_()
            squares[place] = convolution(given)[:, place[0]].square().sum()
    np.testing.assert_allclose(found, (weight.abs() * squares.sqrt()).numpy(), rtol=1e-4)


def test_wanda_of_filters_sums_their_weights() -> None:
    network, data = chain(), images()
    candidates = every_way(network, {"3": 0.34})
    alone = list_weight_candidates(network, {"3": 0.5}, count=1)
    each = importance_of(find_criterion("wanda"), network, alone, data)["3"]
    found = score("wanda", network, candidates, data)
    expected = [sum(each[filter_].sum() for filter_ in way[0]) for way in candidates]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def damped(rows: Tensor) -> Tensor:
    hessian = rows.double().T @ rows.double()
    return hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))


def test_the_saliency_of_a_weight_is_the_error_that_its_best_correction_leaves() -> None:
    rows = torch.randn(20, 4)
    network = nn.Sequential(nn.Linear(4, 2))
    found = importance("sparsegpt", network, regression(rows))["0"]
    hessian = damped(rows)
    for row, column in itertools.product(range(2), range(4)):
        w = linear(network).weight.detach()[row].double()
        others = [i for i in range(4) if i != column]
        # min over u of (w - u)ᵀ H (w - u) where u[column] = 0
        left = hessian[others][:, others]
        gain = torch.linalg.solve(left, hessian[others, column] * w[column])
        change = torch.zeros(4, dtype=torch.float64)
        change[column], change[others] = w[column], -gain
        assert found[row, column] == pytest.approx(float(change @ hessian @ change), rel=1e-6)


def test_the_error_of_a_mask_is_that_of_the_weights_which_the_pass_leaves() -> None:
    """Algorithm 1 written out for one row at a time, and its error measured as ‖(w - ŵ)X‖²."""
    torch.manual_seed(3)
    rows, network = torch.randn(30, 6), nn.Sequential(nn.Linear(6, 2))
    listed = list_weight_candidates(network, {"0": 0.5}, count=3)
    found = find_criterion("sparsegpt-error")(network, listed, regression(rows))
    hessian = damped(rows)
    for index in range(3):
        kept, total = listed.kept(index)["0"], 0.0
        for row in range(2):
            w = linear(network).weight.detach()[row].double()
            u = w.clone()
            for column in range(6):
                if kept[row, column]:
                    continue
                # The best correction by the later columns alone, of what is still to be removed.
                later = list(range(column + 1, 6))
                if later:
                    part = hessian[later][:, later]
                    step = torch.linalg.solve(part, hessian[later, column] * u[column])
                    u[later] += step
                u[column] = 0
            assert (u[~kept[row]] == 0).all()
            total += float((w - u) @ hessian @ (w - u))
        assert found[index] == pytest.approx(total, rel=1e-6)


def test_dead_inputs_matter_nothing_and_few_samples_are_damped() -> None:
    network = nn.Sequential(nn.Linear(3, 2))
    found = importance("sparsegpt", network, regression(ROWS[:1]))["0"]  # one row of three inputs
    assert np.isfinite(found).all()
    assert (found[:, 2] == 0).all()
    assert (found[:, :2] > 0).all()
    nothing = importance("sparsegpt", network, regression(torch.zeros(4, 3)))["0"]
    assert (nothing == 0).all()
    listed = list_weight_candidates(network, {"0": 0.5}, count=1)
    errors = find_criterion("sparsegpt-error")(network, listed, regression(ROWS[:1]))
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "sparsegpt-error"])
def test_inputs_that_are_not_finite_are_one_clear_line(name: str) -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    linear(network).weight.data.fill_(3e38)
    listed = list_weight_candidates(network, {"1": 0.5}, count=1)
    with pytest.raises(NotApplicableError, match="what 1 reads is not finite"):
        find_criterion(name)(network, listed, regression(ROWS))


def test_what_multiplies_no_rows_is_refused() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 2), nn.Flatten(), nn.LazyLinear(2))
    given = torch.randn(3, 1, 3, 3, 3)
    network(given)
    listed = list_weight_candidates(network, {"0": 0.5}, count=1)
    with pytest.raises(NotApplicableError, match="0 is a Conv3d: linear layers and convolutions"):
        find_criterion("wanda")(network, listed, regression(given))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        logits: Tensor = self.head(self.embed(input_ids))
        return logits


def test_padding_is_no_part_of_the_norms() -> None:
    torch.manual_seed(0)
    network, tokens = Tokens(), torch.randint(0, 9, (4, 5))

    def found(**fields: Any) -> np.ndarray:
        split = Split(fields)
        data = Splits(split, None, split, NextToken())
        listed = list_weight_candidates(network, {"head": 0.5}, count=1)
        return importance_of(find_criterion("wanda"), network, listed, data)["head"]

    mask = torch.ones_like(tokens)
    mask[:, 3:] = 0
    short = found(input_ids=tokens[:, :3], attention_mask=mask[:, :3])
    np.testing.assert_allclose(found(input_ids=tokens, attention_mask=mask), short, rtol=1e-6)
    assert not np.allclose(found(input_ids=tokens), short)


def test_a_criterion_of_whole_candidates_has_no_importance() -> None:
    network = chain()
    for candidates in (every_way(network, {"0": 0.5}), masks(network, {"0": 0.5})):
        with pytest.raises(NotApplicableError, match="'oracle' scores candidates as a whole"):
            importance_of(find_criterion("oracle"), network, candidates, images())
        found = importance_of(find_criterion("l1"), network, candidates, images())
        assert found["0"].shape == ((4,) if candidates.groups else (4, 1, 3, 3))
