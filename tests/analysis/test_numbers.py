from __future__ import annotations

import math

import pytest

from trueoracle.analysis.numbers import (
    finite_or_none,
    interval,
    many,
    number,
    p_value,
    percent,
    quantity,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (-0.5, "−0.500"), (1.23456, "1.235"), (0.0, "0.000"), (-1e-4, "0.000")],
)
def test_numbers_are_readable(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.693, "0.69"), (3e-4, "0.0003"), (8.8e-61, "9e−61"), (0.0, "<1e−300")],
)
def test_no_p_value_is_shown_as_zero(value: float | None, text: str) -> None:
    assert p_value(value) == text


def test_percentages_have_one_digit() -> None:
    assert percent(0.0444) == "4.4%"
    assert percent(None) == "–"
    assert percent(-0.0312) == "−3.1%"


def test_an_interval_has_both_ends_or_none() -> None:
    assert interval(-0.3, 0.104) == "[−0.30, 0.10]"
    assert interval(None, 0.1) == interval(0.1, None) == "–"


def test_one_is_no_plural() -> None:
    counts = [many(count, "epoch") for count in (0, 1, 1000)]
    assert counts == ["0 epochs", "1 epoch", "1,000 epochs"]


def test_json_knows_no_nan_and_no_infinity() -> None:
    values = {"a": math.nan, "b": math.inf, "c": 1.5, "d": "text", "e": None}
    assert finite_or_none(values) == {"a": None, "b": None, "c": 1.5, "d": "text", "e": None}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((812.0,), "812"),
        ((1924, 9210), "1,924 of 9,210"),
        ((21_000,), "0.021 M"),
        ((208_000, 333_456), "0.208 of 0.333 M"),
        ((125_485_706,), "125 M"),
        ((999_000, 1_814_073_344), "0.000999 of 1.81 G"),
        ((2.5e12,), "2.5 T"),
    ],
)
def test_large_numbers_share_a_unit(values: tuple[float, ...], text: str) -> None:
    assert quantity(*values) == text
