from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from trueoracle.data.augmentation import augment
from trueoracle.data.given import as_split, as_splits
from trueoracle.data.splits import Split, Splits, capped, dealt, fraction, stratified
from trueoracle.errors import InputError
from trueoracle.tasks.classification import Classification


def split(count: int = 6, classes: int = 3, shape: tuple[int, ...] = (1, 4, 4)) -> Split:
    return Split.of(torch.randn(count, *shape), torch.arange(count) % classes)


def test_labels_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="labels out of range in the test split: found 0…4"):
        Splits(split(), None, split(classes=5), Classification(3))
    negative = Split.of(torch.zeros(1, 1, 4, 4), torch.tensor([-1]))
    with pytest.raises(InputError, match="found -1…-1, expected 0…2"):
        Splits(negative, None, split(), Classification(3))


def test_splits_of_different_shapes_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"test examples are input \[3, 4, 4\], target \[\] but train examples are"
    ):
        Splits(split(), None, split(shape=(3, 4, 4)), task=Classification(3))


def test_values_that_are_not_finite_are_refused() -> None:
    broken = split()
    broken.inputs[0, 0, 0, 0] = float("nan")
    with pytest.raises(
        InputError, match="validation split's input holds values that are not finite"
    ):
        Splits(split(), broken, split(), Classification(3))


def test_images_and_labels_must_match() -> None:
    with pytest.raises(
        InputError, match=r"as many examples: got input \[3, 1, 4, 4\], target \[2\]"
    ):
        Split.of(torch.zeros(3, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(InputError, match=r"named tensors with a leading axis of examples"):
        Split({"input": torch.zeros(2, 1, 4, 4), "target": torch.tensor(1)})
    with pytest.raises(InputError, match=r"named tensors with a leading axis of examples"):
        Split({})
    with pytest.raises(InputError, match="labels must be whole numbers"):
        as_split((torch.zeros(2, 1, 4, 4), torch.tensor([0.0, 0.7])))
    assert as_split((torch.zeros(1, 1, 4, 4), torch.tensor([2.0]))).targets.tolist() == [2]
    with pytest.raises(InputError, match="fill has 3 values for 1 channels"):
        Splits(split(), None, split(), Classification(3), fill=(0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="at least one example"):
        Split.of(torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.int64))


class Squares(Dataset[tuple[Tensor, int]]):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < 5:
            raise IndexError(index)
        return torch.full((1, 4, 4), float(index)), index % 2


def test_datasets_and_tensors_become_splits() -> None:
    from_dataset = as_split(Squares())
    assert from_dataset.targets.tolist() == [0, 1, 0, 1, 0]
    assert from_dataset.inputs[3].unique().tolist() == [3.0]
    tensors = (torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 2, 1]))
    assert len(as_split(TensorDataset(*tensors))) == 4
    data = as_splits((tensors, Squares()))
    assert data.task.options() == {"classes": 3}
    assert data.validation is None
    assert [name for name, _ in data.named()] == ["train", "test"]
    assert as_splits((tensors, Squares(), tensors)).validation is not None


def test_other_things_are_refused() -> None:
    with pytest.raises(InputError, match=r"must be \(input, target\), or mappings, got int"):
        as_split(range(5))
    with pytest.raises(InputError, match="data must be"):
        as_splits("nothing")


def test_a_fingerprint_sees_every_pixel_and_label() -> None:
    train, test = split(), split()
    before = Splits(train, None, test, Classification(3)).fingerprint()
    assert Splits(train, None, test, Classification(3)).fingerprint() == before
    test.inputs[5, 0, 3, 3] += 1
    changed = Splits(train, None, test, Classification(3)).fingerprint()
    assert changed != before
    train.targets[0] = 2
    assert Splits(train, None, test, Classification(3)).fingerprint() != changed


def test_a_stratified_draw_takes_equal_shares() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    drawn = stratified(labels, 31, seed=1)
    assert labels[drawn].bincount().tolist() == [11, 10, 10]
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert torch.equal(drawn, stratified(labels, 31, seed=1))
    assert not torch.equal(drawn, stratified(labels, 31, seed=2))
    with pytest.raises(InputError, match="takes 20 of class 2, which has 20"):
        stratified(labels, 60, seed=1)


def test_blocks_have_equal_shares_of_each_class_and_equal_sizes() -> None:
    labels = torch.tensor([0] * 31 + [1] * 20 + [2] * 9 + [3])[torch.randperm(61)]
    blocks = dealt(labels, 10)
    assert blocks.bincount().tolist() == [7] + [6] * 9
    for label in range(4):
        own = torch.bincount(blocks[labels == label], minlength=10)
        assert own.max() - own.min() <= 1
    # The same for whoever asks, and no row of the data's own.
    torch.manual_seed(1)
    assert torch.equal(blocks, dealt(labels, 10))
    assert not torch.equal(dealt(torch.zeros(60), 10), torch.arange(60) % 10)


def test_validation_and_test_examples_are_in_blocks_that_follow_them() -> None:
    whole = Splits(split(30), split(9), split(24), Classification(3))
    found = whole.in_blocks(4)
    assert {name: len(of) for name, of in found.blocks.items()} == {"validation": 9, "test": 24}
    assert found.blocks["test"].bincount().tolist() == [6, 6, 6, 6]
    assert whole.in_blocks(20).blocks["validation"].bincount().tolist() == [1] * 9
    assert "validation" not in Splits(split(), None, split(), Classification(3)).in_blocks(3).blocks
    one = Splits(split(), split(1, 1), split(), Classification(3))
    assert list(one.in_blocks(3).blocks) == ["test"]
    assert not found.few(2).blocks
    assert found.to(torch.device("cpu")).blocks.keys() == found.blocks.keys()
    assert found.fingerprint() == whole.fingerprint()


def test_a_cap_takes_equal_shares_as_far_as_they_go() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 5)
    drawn = capped(labels, 31, seed=1)
    assert labels[drawn].bincount().tolist() == [11, 10, 5]
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert not torch.equal(drawn, capped(labels, 31, seed=2))
    assert capped(labels, 85, seed=1).tolist() == list(range(85))


def test_a_fraction_takes_the_same_share_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [2] * 30 + [1] * 4)
    drawn = fraction(labels, 0.1, seed=1)
    assert labels[drawn].bincount().tolist() == [5, 1, 3]
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert not torch.equal(drawn, fraction(labels, 0.1, seed=2))
    assert fraction(labels, 1.0, seed=1).tolist() == list(range(84))


def test_what_is_measured_is_checked_and_moved_too() -> None:
    with pytest.raises(
        InputError, match=r"measured examples are input \[1, 5, 5\], target \[\] but train"
    ):
        Splits(split(), None, split(), Classification(3), measured=split(shape=(1, 5, 5)))
    data = Splits(split(), None, split(), Classification(3), measured=split(2))
    assert [(name, len(part)) for name, part in data.named()] == [("train", 2), ("test", 6)]
    assert data.to(torch.device("cpu")).measured is not None


def test_shifts_are_crops_after_padding() -> None:
    images = torch.arange(1.0, 17).view(1, 1, 4, 4).repeat(200, 2, 1, 1)
    generator = torch.Generator().manual_seed(0)
    moved = augment(images, shift=1, flip=False, fill=(-7.0, -8.0), generator=generator)
    padded = torch.empty(2, 6, 6)
    padded[0], padded[1] = -7, -8
    padded[:, 1:5, 1:5] = images[0]
    crops = {(y, x): padded[:, y : y + 4, x : x + 4] for y in range(3) for x in range(3)}
    seen = set()
    for image in moved:
        matches = [offset for offset, crop in crops.items() if torch.equal(image, crop)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert seen == set(crops)


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.arange(16.0).view(1, 1, 4, 4).repeat(400, 1, 1, 1)
    flipped = augment(
        images, shift=0, flip=True, fill=(0.0,), generator=torch.Generator().manual_seed(0)
    )
    mirrored = sum(torch.equal(image, images[0].flip(2)) for image in flipped)
    kept = sum(torch.equal(image, images[0]) for image in flipped)
    assert mirrored + kept == 400
    assert 160 < mirrored < 240
    assert torch.equal(images[0], torch.arange(16.0).view(1, 4, 4))


def test_no_augmentation_changes_nothing() -> None:
    images = torch.randn(3, 1, 4, 4)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(
        augment(images, shift=0, flip=False, fill=(0.0,), generator=generator), images
    )


@pytest.mark.parametrize("draw", [stratified, capped])
def test_of_more_classes_than_are_drawn_a_random_draw_is_taken(
    draw: Callable[[torch.Tensor, int, int], torch.Tensor],
) -> None:
    labels = torch.arange(1000).repeat_interleave(3)
    drawn = labels[draw(labels, 500, 0)]
    assert len(drawn.unique()) == 500
    assert 400 < drawn.float().mean() < 600  # the first 500 have a mean of 250
    assert torch.equal(drawn, labels[draw(labels, 500, 0)])
    assert not torch.equal(drawn, labels[draw(labels, 500, 1)])
