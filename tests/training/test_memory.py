from __future__ import annotations

import pytest
import torch

from trueoracle.errors import InputError
from trueoracle.training.memory import available_memory, parse_bytes, readable_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("800MB", 800_000_000),
        ("4GiB", 4 * 2**30),
        ("2.5 g", 2_500_000_000),
        (" 64k ", 64_000),
        ("123", 123),
        ("1TB", 10**12),
    ],
)
def test_amounts_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-1GB", "4 XB", "0", "GB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="amount of memory such as 800MB"):
        parse_bytes(text)


def test_amounts_in_words() -> None:
    assert [readable_bytes(n) for n in (12, 3_400, 56_700_000, 1_440_000_000)] == [
        "12 bytes",
        "3.4 kB",
        "56.7 MB",
        "1.44 GB",
    ]


def test_there_is_some_memory() -> None:
    assert 10**7 < available_memory(torch.device("cpu")) < 10**14
