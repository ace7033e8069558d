from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tasks.cases import largest, log_softmax, measured
from trueoracle.data.splits import Split
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch
from trueoracle.tasks.segmentation import IGNORED, Segmentation

LOGITS = torch.randn(4, 5, 3, 6, generator=torch.Generator().manual_seed(0))


def masks() -> Tensor:
    """Of classes 0 … 2 of 4: class 3 is in no mask, class 1 in one only; a third is ignored."""
    made = torch.randint(3, (4, 3, 6), generator=torch.Generator().manual_seed(1))
    made[1:][made[1:] == 1] = 2
    ignored = torch.rand(4, 3, 6, generator=torch.Generator().manual_seed(2)) < 0.3
    return made.masked_fill(ignored, IGNORED)


def batch(target: Tensor) -> Batch:
    return {"input": torch.zeros(len(target), 1, 3, 6), "target": target}


def by_hand(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Pixel by pixel: the ignored ones are left out of everything."""
    pixels = [
        (row, label)
        for row, label in zip(
            logits.movedim(1, -1).flatten(0, -2).tolist(), target.flatten().tolist(), strict=True
        )
        if label != IGNORED
    ]
    losses = [-log_softmax(row)[label] for row, label in pixels]
    said = [largest(row) for row, _ in pixels]
    true = [label for _, label in pixels]
    ious = []
    for one in sorted({*said, *true}):
        both = sum(s == t == one for s, t in zip(said, true, strict=True))
        either = sum(one in (s, t) for s, t in zip(said, true, strict=True))
        ious.append(both / either)
    return {
        "loss": sum(losses) / len(losses),
        "mean_iou": sum(ious) / len(ious),
        "accuracy": sum(s == t for s, t in zip(said, true, strict=True)) / len(said),
    }


def test_loss_iou_and_accuracy_are_those_by_hand() -> None:
    expected = by_hand(LOGITS, masks())
    assert measured(Segmentation(4), LOGITS, batch(masks())) == pytest.approx(expected, rel=1e-5)
    assert float(Segmentation(4).loss(LOGITS, batch(masks()))) == pytest.approx(
        expected["loss"], rel=1e-5
    )


def test_masks_may_have_any_number_of_axes() -> None:
    flat = LOGITS.flatten(2), masks().flatten(1)
    deep = LOGITS[:, :, None], masks()[:, None]
    expected = by_hand(LOGITS, masks())
    for logits, target in (flat, deep):
        assert measured(Segmentation(4), logits, batch(target)) == pytest.approx(expected, rel=1e-5)
        assert Segmentation(4).check(logits, batch(target)) == []


def test_a_class_that_occurs_nowhere_does_not_count() -> None:
    """Not in masks, not in predictions: it is no IoU of 0, and none of 1."""
    target = torch.zeros(1, 1, 4, dtype=torch.int64)
    target[0, 0, 2:] = 1
    logits = torch.zeros(1, 4, 1, 4)
    logits[0, 0, 0, :3] = 1  # class 0 is said of three pixels, of which two are it
    logits[0, 1, 0, 3] = 1
    found = measured(Segmentation(4), logits, batch(target))
    assert found["mean_iou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["accuracy"] == pytest.approx(3 / 4)


def test_what_is_said_of_ignored_pixels_changes_nothing() -> None:
    target, changed = masks(), LOGITS.clone()
    changed.movedim(1, -1)[target == IGNORED] = torch.tensor([0.0, 0, 0, 99, -99])
    task = Segmentation(4)
    assert measured(task, changed, batch(target)) == measured(task, LOGITS, batch(target))
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(logits, batch(target)), logits)
    assert (gradient.movedim(1, -1)[target == IGNORED] == 0).all()
    assert task.weight(batch(target)) == int((target != IGNORED).sum())


def test_a_batch_without_any_pixel_that_counts_adds_nothing() -> None:
    target = torch.full((4, 3, 6), IGNORED)
    task, logits = Segmentation(4), LOGITS.clone().requires_grad_()
    loss = task.loss(logits, batch(target))
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
    assert task.weight(batch(target)) == 0


def test_it_reads_its_classes_off_the_masks() -> None:
    task = Segmentation.of(Split.of(torch.zeros(4, 1, 3, 6), masks()))
    assert task.options() == {"classes": 3}
    assert task.outputs(Split.of(torch.zeros(4, 1, 3, 6), masks())) == 3
    assert Segmentation.has_spatial_targets


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (LOGITS[:, :2], "gives 2 logits for each pixel, and the masks have 4 classes"),
        (LOGITS[..., :5], "gives [4, 5, 3, 5] for masks [4, 3, 6]: expected [4, 4, 3, 6]"),
        (LOGITS[:3], "gives [3, 5, 3, 6] for masks [4, 3, 6]"),
        (LOGITS[:, :, 0, 0], "gives [4, 5] for masks [4, 3, 6]"),
        (LOGITS.argmax(1), "gives [4, 3, 6] for masks [4, 3, 6]"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: Tensor, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Segmentation(4).check(outputs, batch(masks()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (masks().float(), "masks are torch.float32 of shape [4, 3, 6]: expected classes [N, H, W]"),
        (masks()[:, 0, 0], "masks are torch.int64 of shape [4]"),
        (masks().clamp(max=7), "found 0…7, expected 0…3 for 4 classes, or 255 for ignored pixels"),
        (masks().where(masks() > 0, -1), "found -1…2, expected 0…3"),
    ],
)
def test_targets_that_are_no_masks_are_refused(target: Tensor, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Segmentation(4).check_targets(Split.of(torch.zeros(4, 1, 3, 6), target), "train")
    assert message in str(caught.value)
    assert "the train split" in str(caught.value)
    assert "\n" not in str(caught.value)
