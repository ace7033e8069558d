from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tasks.cases import largest, log_softmax, measured
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch
from trueoracle.tasks.classification import Classification, Smoothed

LOGITS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
CLASSES = torch.randint(3, (20,), generator=torch.Generator().manual_seed(1))
SHARES = torch.randn(20, 3, generator=torch.Generator().manual_seed(2)).softmax(1)


def batch(target: Tensor) -> Batch:
    return {"input": torch.zeros(len(target), 2), "target": target}


def by_hand(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> tuple[float, float]:
    """Cross-entropy and accuracy, example by example; logits beyond the classes have share 0."""
    losses, right = [], 0
    for row, wanted in zip(logits.tolist(), target.tolist(), strict=True):
        logs = log_softmax(row)
        shares = [0.0] * len(row)
        if isinstance(wanted, int):
            shares[wanted] = 1.0
        else:
            shares[: len(wanted)] = wanted
        right += largest(row) == largest(shares)
        shares = [(1 - smoothing) * share + smoothing / len(row) for share in shares]
        losses.append(-sum(share * log for share, log in zip(shares, logs, strict=True)))
    return sum(losses) / len(losses), right / len(losses)


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("target", [CLASSES, SHARES], ids=["classes", "probabilities"])
def test_loss_and_accuracy_are_those_by_hand(target: Tensor, columns: int) -> None:
    logits, task = LOGITS[:, :columns], Classification(3)
    loss, accuracy = by_hand(logits, target)
    assert float(task.loss(logits, batch(target))) == pytest.approx(loss, rel=1e-5)
    found = measured(task, logits, batch(target))
    assert found == {"loss": pytest.approx(loss, rel=1e-5), "accuracy": pytest.approx(accuracy)}
    assert 0 < accuracy < 1  # or nothing would be told apart


@pytest.mark.parametrize("columns", [3, 4])
@pytest.mark.parametrize("target", [CLASSES, SHARES], ids=["classes", "probabilities"])
def test_smoothing_spreads_a_share_over_all_logits(target: Tensor, columns: int) -> None:
    logits, task = LOGITS[:, :columns], Smoothed(3, 0.3)
    smoothed, _ = by_hand(logits, target, 0.3)
    plain, accuracy = by_hand(logits, target)
    assert float(task.loss(logits, batch(target))) == pytest.approx(smoothed, rel=1e-5)
    assert measured(task, logits, batch(target)) == {
        "loss": pytest.approx(plain, rel=1e-5),
        "accuracy": pytest.approx(accuracy),
    }


def test_one_hot_targets_are_classes() -> None:
    task = Classification(3)
    one_hot = torch.eye(3)[CLASSES]
    assert measured(task, LOGITS, batch(one_hot)) == pytest.approx(
        measured(task, LOGITS, batch(CLASSES)), rel=1e-6
    )
    torch.testing.assert_close(task.loss(LOGITS, batch(one_hot)), task.loss(LOGITS, batch(CLASSES)))


def test_it_reads_its_classes_off_the_training_targets() -> None:
    classes = Split.of(torch.zeros(20, 2), CLASSES)
    shares = Split.of(torch.zeros(20, 2), SHARES)
    for split in (classes, shares):
        task = Classification.of(split)
        assert task.options() == {"classes": 3}
        assert task.outputs(split) == 3
        assert task.chance() == pytest.approx(1 / 3)
    task = Classification(3)
    assert task.groups(classes).tolist() == CLASSES.tolist()
    assert task.groups(shares).tolist() == [largest(row) for row in SHARES.tolist()]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(20, 2), "gives [20, 2] for 20 examples, expected [20, 3]: one logit for each"),
        (torch.zeros(20), "gives [20] for 20 examples"),
        (torch.zeros(19, 3), "gives [19, 3] for 20 examples"),
        (torch.zeros(20, 3, 1), "gives [20, 3, 1] for 20 examples"),
        (torch.zeros(20, 3, dtype=torch.int64), "gives int64 numbers, expected logits in floating"),
        (torch.zeros(20, 3, dtype=torch.bool), "gives bool numbers"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: Tensor, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Classification(3).check(outputs, batch(CLASSES))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_softmax_at_the_end_is_noted() -> None:
    (note,) = Classification(3).check(LOGITS.softmax(1), batch(CLASSES))
    assert note.startswith("the network seems to end in softmax: its outputs are probabilities")
    assert "\n" not in note
    assert Classification(3).check(LOGITS, batch(CLASSES)) == []
    assert Classification(3).check(LOGITS.sigmoid(), batch(CLASSES)) == []  # they do not sum to 1
    assert Classification(3).check(LOGITS.log_softmax(1), batch(CLASSES)) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (CLASSES + 1, "labels out of range in the test split: found 1…3, expected 0…2 for 3"),
        (CLASSES - 1, "found -1…1, expected 0…2"),
        (CLASSES[:, None], "are torch.int64 of shape [20, 1]: expected classes [N] (int64), or"),
        (CLASSES.float(), "are torch.float32 of shape [20]"),
        (SHARES * 2, "targets are [20, 3]: expected classes [N], or the probabilities of 3"),
        (SHARES - 0.5, "the probabilities of 3 classes, which sum to 1"),
        (torch.full((20, 4), 0.25), "targets are [20, 4]: expected classes [N], or the prob"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(target: Tensor, message: str) -> None:
    train = Split.of(torch.zeros(20, 2), CLASSES if target.ndim == 1 else SHARES)
    other = Split.of(torch.zeros(20, 2), target)
    with pytest.raises(InputError) as caught:
        Classification(3).check_targets(other, "test")
    assert message in str(caught.value)
    assert "the test split" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        Splits(train, None, other, Classification(3))
