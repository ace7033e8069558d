from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tasks.cases import measured
from trueoracle.data.splits import Split
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch
from trueoracle.tasks.regression import Regression

TRUE = torch.randn(12, 3, generator=torch.Generator().manual_seed(1)) * 2 + 5
SAID = TRUE + torch.randn(12, 3, generator=torch.Generator().manual_seed(2))


def batch(target: Tensor) -> Batch:
    return {"input": torch.zeros(len(target), 2), "target": target}


def by_hand(said: Tensor, true: Tensor) -> dict[str, float]:
    pairs = list(zip(said.flatten().tolist(), true.flatten().tolist(), strict=True))
    mean = sum(t for _, t in pairs) / len(pairs)
    apart = sum((s - t) ** 2 for s, t in pairs)
    spread = sum((t - mean) ** 2 for _, t in pairs)
    return {"loss": apart / len(pairs), "r2": 1 - apart / spread}


@pytest.mark.parametrize(
    ("said", "true"),
    [(SAID, TRUE), (SAID[:, 0], TRUE[:, 0]), (SAID[:, :1], TRUE[:, 0]), (SAID[..., None], TRUE)],
    ids=["table", "numbers", "column", "one axis more"],
)
def test_error_and_r2_are_those_by_hand(said: Tensor, true: Tensor) -> None:
    expected = by_hand(said, true)
    assert 0.2 < expected["r2"] < 1
    assert measured(Regression(), said, batch(true)) == pytest.approx(expected, rel=1e-4)
    assert float(Regression().loss(said, batch(true))) == pytest.approx(expected["loss"], rel=1e-5)
    assert Regression().check(said, batch(true)) == []


def test_a_column_is_never_compared_with_a_row() -> None:
    """Broadcasting [N, 1] against [N] would give N × N differences."""
    perfect = measured(Regression(), TRUE[:, :1], batch(TRUE[:, 0]))
    assert perfect == {"loss": 0.0, "r2": 1.0}


def test_the_mean_has_r2_zero() -> None:
    mean = torch.full_like(TRUE, float(TRUE.mean()))
    assert measured(Regression(), mean, batch(TRUE))["r2"] == pytest.approx(0, abs=1e-5)
    assert Regression().chance() == 0


def test_r2_of_numbers_far_from_zero_is_exact() -> None:
    """Sums of squares are in float64: in float32 a spread of 1 around 1,000 would be lost."""
    far, said = TRUE + 4096, SAID + 4096  # float32 holds these to 2**-11
    assert measured(Regression(), said, batch(far)) == pytest.approx(by_hand(said, far), rel=1e-6)


def test_it_needs_an_output_for_each_number() -> None:
    assert Regression().outputs(Split.of(torch.zeros(12, 2), TRUE)) == 3
    assert Regression().outputs(Split.of(torch.zeros(12, 2), TRUE[:, 0])) == 1
    assert Regression().outputs(Split.of(torch.zeros(12, 2), TRUE[:, None])) == 3


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (SAID[:, :2], "gives [12, 2] for targets [12, 3]: expected one number for each"),
        (SAID.T, "gives [3, 12] for targets [12, 3]"),
        (SAID[:1], "gives [1, 3] for targets [12, 3]"),
        (SAID.long(), "int64 numbers, expected floating point"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: Tensor, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Regression().check(outputs, batch(TRUE))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_targets_that_are_not_finite_are_refused(value: float) -> None:
    broken = TRUE.clone()
    broken[3, 1] = value
    with pytest.raises(InputError, match="the test targets hold values that are not finite"):
        Regression().check_targets(Split.of(torch.zeros(12, 2), broken), "test")


def test_numbers_are_compared_at_the_precision_that_they_are_given_in() -> None:
    """In bfloat16 1,003 is 1,004: a network in autocast would learn other numbers."""
    said, true = torch.tensor([[1000.0]], dtype=torch.bfloat16), torch.tensor([[1003.0]])
    assert float(Regression().loss(said, batch(true))) == 9
    assert measured(Regression(), said, batch(true))["loss"] == 9
