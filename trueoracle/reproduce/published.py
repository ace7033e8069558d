"""What the paper printed: its scatters' statistics, beside which one's own are put."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationError

from trueoracle.errors import InputError
from trueoracle.spec.grid import find_point
from trueoracle.spec.spec import file_fields, load_spec, shipped_studies
from trueoracle.training.recipe import Frozen

__all__ = [
    "PAPER",
    "Published",
    "all_settings",
    "published",
    "read_published",
]

PAPER = "Is Oracle Pruning the True Oracle? (arXiv 2412.00143)"


class Published(Frozen):
    """One published scatter: the values that are printed in it.

    ``study`` is the shipped study that repeats it. ``x`` is what is related to ``y``: the pruned
    train loss, or the accuracy of a short retraining (a tenth of the epochs: the study's arm
    ``short``). ``p_value`` is as printed, to five digits, so that 0 means less than half of the
    last one. ``anomaly_ratio`` is a fraction, absent where none is printed.
    """

    setting: str
    study: str
    n: int = Field(ge=2)
    kendall_tau: float = Field(ge=-1, le=1)
    p_value: float = Field(ge=0, le=1)
    anomaly_ratio: float | None = Field(None, ge=0, le=1)
    x: Literal["pruned train loss", "short retraining"] = "pruned train loss"
    y: Literal["test accuracy"] = "test accuracy"

    @property
    def source(self) -> str:
        """Where it was published."""
        return f"{PAPER}, scatter {self.setting!r} on its project page"

    @property
    def needs_short(self) -> bool:
        """Whether it takes two studies: the full retraining and its short arm."""
        return self.x == "short retraining"


def published(study: str) -> list[Published]:
    """The published values that a study's file names; raises :class:`InputError` in one line.

    Those of a grid's point are the ones of the shipped study that it is, if it is one.
    """
    if (point := find_point(study)) is not None:
        like = (one for one in shipped_studies() if load_spec(one).digest == point.spec.digest)
        study = next(like, "")
    return read_published(study, file_fields(study)) if study else []


def read_published(study: str, fields: Mapping[str, Any]) -> list[Published]:
    """The published values among the fields of a study's file."""
    found = []
    for one in fields["published"]:
        try:
            found.append(Published.model_validate({"study": fields["name"], **one}))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{study}: published.{where}: {first['msg'].lower()}") from error
    return found


def all_settings() -> list[Published]:
    """Every published setting of the shipped studies, in the order of their names."""
    found = [one for study in shipped_studies() for one in published(study)]
    return sorted(found, key=lambda one: one.setting)
