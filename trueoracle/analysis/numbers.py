"""How numbers are written, in figures, tables and pages alike."""

from __future__ import annotations

import math
from typing import Any

__all__ = [
    "ABSENT",
    "finite_or_none",
    "interval",
    "many",
    "mean_count",
    "milliseconds",
    "number",
    "p_value",
    "percent",
    "quantity",
]

ABSENT = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits and a true minus, never before a zero; a dash if it is missing."""
    return ABSENT if value is None else f"{value:z.{digits}f}".replace("-", "−")


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """An interval, such as ``"[−0.30, −0.10]"``; a dash where an end is missing."""
    if low is None or high is None:
        return ABSENT
    return f"[{number(low, digits)}, {number(high, digits)}]"


def milliseconds(part: float, whole: float) -> str:
    """Two times in seconds, and how many times faster: ``"1.90 of 2.40 ms, 1.26×"``."""
    return f"{in_milliseconds(part)} of {in_milliseconds(whole)} ms" + (
        f", {whole / part:.2f}×" if part else ""
    )


def in_milliseconds(seconds: float) -> str:
    """Seconds in milliseconds, with three digits or, of 100 ms and more, whole ones."""
    return f"{1000 * seconds:,.0f}" if seconds >= 0.1 else f"{1000 * seconds:.3g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A percentage, by default with one digit after the point: ``"4.4%"``."""
    return ABSENT if value is None else f"{value:z.{digits}%}".replace("-", "−")


def p_value(value: float | None, least: float = 1e-300) -> str:
    """A p-value with two digits, or a power of ten where it is tiny: none is shown as zero.

    A zero is less than ``least``, the smallest number that whoever computed it could tell from it.
    """
    if value is None:
        return ABSENT
    shown = f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}" if value > 0 else f"<{least:.0e}"
    return shown.replace("-", "−")


def many(count: int, what: str, plural: str = "") -> str:
    """A count with its noun: ``"1 epoch"``, ``"1,000 candidates"``; ``plural`` where s is wrong."""
    return f"{count:,} {what if count == 1 else plural or f'{what}s'}"


def mean_count(count: float | None) -> str:
    """A count, or a mean of counts with one digit after the point: ``"1,204"``, ``"12.5"``."""
    if count is None:
        return ABSENT
    return f"{count:,.0f}" if count == round(count) else f"{count:,.1f}"


def quantity(*values: float) -> str:
    """Large numbers to three digits, in the unit of the largest: ``"0.21 of 0.33 M"``."""
    units = {1e12: " T", 1e9: " G", 1e4: " M"}
    largest = max(values)
    start = next((size for size in units if largest >= size), None)
    if start is None:
        return " of ".join(f"{value:,.0f}" for value in values)
    scaled = [value / max(start, 1e6) for value in values]
    shown = [f"{one:.0f}" if one >= 100 else f"{one:.3g}" for one in scaled]
    return " of ".join(shown) + units[start]


def finite_or_none(values: dict[str, Any]) -> dict[str, Any]:
    """The values with None for NaN and infinities, which JSON does not have."""
    return {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
    }
