from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.tasks.cases import measured
from trueoracle.data.splits import Split
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch
from trueoracle.tasks.classification import Multilabel

LOGITS = torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
TRUE = (torch.rand(15, 4, generator=torch.Generator().manual_seed(1)) > 0.7).float()


def batch(target: Tensor) -> Batch:
    return {"input": torch.zeros(len(target), 2), "target": target}


def test_loss_f1_and_accuracy_are_those_by_hand() -> None:
    losses, right, hits, misses, false = [], 0, 0, 0, 0
    for row, wanted in zip(LOGITS.tolist(), TRUE.tolist(), strict=True):
        for logit, true in zip(row, wanted, strict=True):
            share = 1 / (1 + math.exp(-logit))
            losses.append(-(true * math.log(share) + (1 - true) * math.log(1 - share)))
            said = share > 0.5
            right += said == (true == 1)
            hits += said and true == 1
            misses += (not said) and true == 1
            false += said and true == 0
    precision, recall = hits / (hits + false), hits / (hits + misses)
    expected = {
        "loss": sum(losses) / 60,
        "f1": 2 * precision * recall / (precision + recall),
        "accuracy": right / 60,
    }
    assert measured(Multilabel(), LOGITS, batch(TRUE)) == pytest.approx(expected, rel=1e-5)
    assert float(Multilabel().loss(LOGITS, batch(TRUE))) == pytest.approx(
        expected["loss"], rel=1e-5
    )


def test_without_any_label_f1_is_zero() -> None:
    found = measured(Multilabel(), -torch.ones(3, 4), batch(torch.zeros(3, 4)))
    assert found["f1"] == 0
    assert found["accuracy"] == 1


def test_it_needs_an_output_for_each_label() -> None:
    assert Multilabel().outputs(Split.of(torch.zeros(15, 2), TRUE)) == 4
    with pytest.raises(InputError) as caught:
        Multilabel().check(torch.zeros(15, 3), batch(TRUE))
    assert str(caught.value) == (
        "the network gives [15, 3] for targets [15, 4]: expected one logit for each label"
    )
    with pytest.raises(InputError, match="gives int64 numbers, expected logits in floating point"):
        Multilabel().check(torch.zeros(15, 4, dtype=torch.int64), batch(TRUE))


def test_a_sigmoid_at_the_end_is_noted() -> None:
    (note,) = Multilabel().check(LOGITS.sigmoid(), batch(TRUE))
    assert note.startswith("the network seems to end in sigmoid: its outputs are probabilities")
    assert Multilabel().check(LOGITS, batch(TRUE)) == []


@pytest.mark.parametrize("target", [TRUE * 2, TRUE - 0.5, TRUE[:, 0], TRUE[:, :, None]])
def test_targets_that_are_no_labels_are_refused(target: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        Multilabel().check_targets(Split.of(torch.zeros(15, 2), target), "validation")
    assert str(caught.value) == (
        f"the validation split's targets are {list(target.shape)}: expected 0 or 1 for each label, "
        "[N, labels]"
    )
    Multilabel().check_targets(Split.of(torch.zeros(15, 2), TRUE), "validation")
