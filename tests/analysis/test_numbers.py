from __future__ import annotations

import math

import pytest

from trueoracle.analysis.numbers import finite_or_none, number, p_value, percent


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (-0.5, "−0.500"), (1.23456, "1.235"), (0.0, "0.000")]
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


def test_json_knows_no_nan_and_no_infinity() -> None:
    values = {"a": math.nan, "b": math.inf, "c": 1.5, "d": "text", "e": None}
    assert finite_or_none(values) == {"a": None, "b": None, "c": 1.5, "d": "text", "e": None}
