"""Random crops, mixup and cutmix (shifts and flips: test_splits.py)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from trueoracle.data.augmentation import crop_box, cut_out, draw_crops, mix
from trueoracle.data.splits import Split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    numbers=st.lists(st.floats(0, 1, exclude_max=True), min_size=22, max_size=22),
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    least=st.floats(0.01, 1),
)
def test_a_crop_lies_within_the_image(
    numbers: list[float], height: int, width: int, least: float
) -> None:
    top, left, high, wide = crop_box(numbers, height, width, least)
    assert 0 <= top <= top + high <= height
    assert 0 <= left <= left + wide <= width
    assert min(high, wide) >= 1
    if min(height, width) > 100 and max(height, width) < 1.3 * min(height, width):
        assert high * wide >= (least - 0.05) * height * width
        assert 0.73 < wide / high < 1.36


def test_crops_spread_over_areas_aspects_and_places() -> None:
    numbers = draw_crops(4000, generator())
    boxes = torch.tensor([crop_box(one, 1000, 1000, 0.2) for one in numbers]).double()
    top, left, high, wide = boxes.t()
    areas, aspects = high * wide / 1e6, (wide / high).log()
    assert float(areas.min()) > 0.199
    assert float(areas.max()) > 0.98
    small = areas[areas < 0.75]  # of which all fit; of the larger ones some are drawn again
    below = [float((small < share).double().mean()) for share in (0.31, 0.42, 0.53, 0.64)]
    assert below == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=0.03)
    assert float(aspects.mean()) == pytest.approx(0, abs=0.02)
    assert float(aspects.abs().max()) == pytest.approx(0.2877, abs=0.01)
    for start, extent in ((top, high), (left, wide)):
        assert float((start / (1000 - extent).clamp(min=1)).mean()) == pytest.approx(0.5, abs=0.03)


def test_an_image_too_long_is_cut_in_the_middle() -> None:
    assert crop_box([0.99] * 22, 30, 3000, 0.9) == (0, 1480, 30, 40)


def test_cutting_out_is_resizing_the_part() -> None:
    images = torch.randn(5, 3, 12, 10, generator=generator())
    boxes = [(0, 0, 12, 10), (3, 2, 5, 7), (11, 9, 1, 1), (0, 4, 12, 2), (2, 0, 9, 10)]
    found = cut_out(images, boxes)
    for image, one, (top, left, high, wide) in zip(images, found, boxes, strict=True):
        part = image[None, :, top : top + high, left : left + wide]
        expected = functional.interpolate(part, (12, 10), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(one, expected, atol=1e-5, rtol=1e-5)
    assert torch.allclose(found[0], images[0], atol=1e-5)


def test_training_batches_in_memory_are_cut() -> None:
    split = Split.of(torch.randn(9, 1, 8, 8, generator=generator()), torch.arange(9))
    indices = torch.arange(9).split(4)
    plain = [batch["input"] for batch in split.training_batches(indices, None, seed=1)]
    assert torch.equal(torch.cat(plain), split.inputs)
    cut, again, other = (
        torch.cat([batch["input"] for batch in split.training_batches(indices, 0.3, seed)])
        for seed in (1, 1, 2)
    )
    assert cut.shape == split.inputs.shape
    assert torch.equal(cut, again)
    assert not torch.allclose(cut, other)
    assert not torch.allclose(cut, split.inputs, atol=0.1)


def mixed(
    images: Tensor, labels: Tensor, seed: int, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Tensor, Tensor]:
    return mix(images, labels, classes=16, mixup=mixup, cutmix=cutmix, generator=generator(seed))


def unique_images() -> tuple[Tensor, Tensor]:
    """Image i is i everywhere, and the only one of its class."""
    return torch.arange(16.0).view(16, 1, 1, 1).repeat(1, 1, 64, 64), torch.arange(16)


def test_without_mixing_batches_stay_as_they_are() -> None:
    images, labels = unique_images()
    found = mixed(images, labels, 0)
    assert found[0] is images
    assert found[1] is labels


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_mixed_in_the_measure_of_the_images(kind: str) -> None:
    images, labels = unique_images()
    before = images.clone()
    shares = []
    for seed in range(200):
        found, soft = mixed(images, labels, seed, **{kind: 1.0})
        assert soft.shape == (16, 16)
        assert torch.allclose(soft.sum(1), torch.ones(16))
        # Every image's values average to what its labels say, whichever its partner is.
        torch.testing.assert_close(found.mean((1, 2, 3)), soft @ torch.arange(16.0))
        if kind == "cutmix":
            assert torch.equal(found, found.round())
        else:
            torch.testing.assert_close(found.amax((1, 2, 3)), found.amin((1, 2, 3)))
        shares.append(float(soft.diagonal().median()))
    assert torch.equal(images, before)
    spread = torch.tensor(shares)
    # Beta(1, 1) is uniform. A square of side s around a uniform place covers s - s²/4 of each axis.
    expected = 0.5 if kind == "mixup" else 1 - (1 / 2 - 1 / 5 + 1 / 48)
    assert float(spread.mean()) == pytest.approx(expected, abs=0.07)
    assert float(spread.std()) > 0.15


def test_a_small_alpha_mixes_little() -> None:
    images, labels = unique_images()
    soft = [mixed(images, labels, seed, mixup=0.05)[1].diagonal().median() for seed in range(100)]
    between = [share for share in soft if 0.05 < float(share) < 0.95]
    assert len(between) < 30


def test_with_both_each_takes_half_of_the_batches() -> None:
    images, labels = unique_images()
    cut = 0
    for seed in range(300):
        found, _ = mixed(images, labels, seed, mixup=1.0, cutmix=1.0)
        cut += torch.equal(found, found.round())
    assert 110 < cut < 190
