"""How long forwards take: of networks whose time is known, since they wait."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.run import latency
from trueoracle.run.latency import latencies

CPU = torch.device("cpu")


class Waits(nn.Module):
    """Takes so many milliseconds, and as many more for each further example."""

    def __init__(self, milliseconds: float, each: float = 0.0) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 10)
        self._first, self._each = milliseconds, each
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        time.sleep((self._first + self._each * (len(images) - 1)) / 1000)
        return self.layer(images.flatten(1)[:, :1])  # type: ignore[no-any-return]


def test_medians_are_of_one_example_and_of_a_batch(few_digits: Splits) -> None:
    dense, pruned = Waits(8, each=1), Waits(4, each=0.5)
    found = latencies(dense, pruned, few_digits, 9, CPU)
    assert found["batch"] == [1, 9]
    assert set(dense.seen) == set(pruned.seen) == {1, 9}
    for place, (slow, fast) in enumerate([(0.008, 0.004), (0.016, 0.008)]):
        assert slow <= found["dense"][place]
        assert fast <= found["pruned"][place] < found["dense"][place]
        assert 3 <= found["repeats"][place] <= 31


def test_a_batch_is_no_larger_than_the_data(few_digits: Splits) -> None:
    found = latencies(Waits(0), Waits(0), few_digits, 10**6, CPU)
    assert found["batch"] == [1, len(few_digits.train)]


def test_a_batch_that_would_take_long_is_left_out(
    few_digits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_TOO_LONG", 0.1)
    dense = Waits(2)
    assert latencies(dense, Waits(1), few_digits, 64, CPU)["batch"] == [1]
    assert set(dense.seen) == {1}


def test_what_is_random_afterwards_is_what_it_would_have_been(few_digits: Splits) -> None:
    draws, other = nn.Sequential(nn.Dropout(), Waits(0)).train(), Waits(0)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    latencies(draws, other, few_digits, 2, CPU)
    torch.testing.assert_close(torch.rand(4), expected)
