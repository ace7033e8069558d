"""The statistics of a study for a user's own files: of each file, and over all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trueoracle.analysis.assessment import Assessment, assess, judged_together
from trueoracle.analysis.comparison import compare
from trueoracle.analysis.meta import Effect, effect, meta_analysis
from trueoracle.analysis.own import read_tables
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError
from trueoracle.tasks.metric import CLASSIFICATION, SPLITS

__all__ = ["OwnAnalysis", "analyse"]


@dataclass(frozen=True, eq=False)
class OwnAnalysis:
    """What the statistics say of a user's own tables.

    - ``tables`` and ``assessments``: by study; the label of a single study is "";
    - ``outcome``: the outcome's name, and ``higher_is_better`` its direction;
    - ``networks``: the dense network of each study, where a column names it;
    - ``pooled``: each criterion's mean tau over the dense networks of one file, as plain values;
    - ``kinds``: the kinds of pruning that were told apart, over which nothing is pooled.
    """

    tables: dict[str, CandidateTable]
    assessments: dict[str, list[Assessment]]
    outcome: str
    higher_is_better: bool
    networks: dict[str, str]
    pooled: list[dict[str, Any]]
    kinds: tuple[str, ...] = ()

    def each(self) -> Iterator[tuple[str, Assessment]]:
        """Every assessment with the label of its study."""
        for label, several in self.assessments.items():
            for one in several:
                yield label, one

    def verdict(self, one: Assessment) -> str:
        """One assessment in a sentence."""
        return one.sentence(f"the score {one.criterion}", f"the outcome {self.outcome}")

    @cached_property
    def comparisons(self) -> dict[str, dict[str, Any]]:
        """The criteria of each study compared with each other, where there are several."""
        return {label: compare(one) for label, one in self.tables.items() if len(one.scores) > 1}

    @cached_property
    def meta(self) -> list[dict[str, Any]]:
        """The random-effects mean of each criterion's tau over the studies, as plain values."""
        effects: dict[str, list[Effect]] = {}
        for label, one in () if len(self.kinds) > 1 else self.each():
            tau = one.relation.kendall.value
            made = effect(
                label,
                tau,
                one.relation.n,
                one.standard_error,
                one.interval,
                self.networks.get(label),
            )
            if made is not None:
                effects.setdefault(one.criterion, []).append(made)
        return [
            {"criterion": criterion, **meta_analysis(several).as_dict()}
            for criterion, several in effects.items()
            if len(several) > 1
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: those of a single assessment, or those of all by study."""
        entries = [
            {"study": label, "x": one.criterion, "y": self.outcome, **one.as_dict()}
            | {"verdict": self.verdict(one)}
            for label, one in self.each()
        ]
        if len(entries) == 1:
            return entries[0]
        return {
            "studies": entries,
            "comparison": self.comparisons,
            "pooled": self.pooled,
            "meta": self.meta,
        }


def analyse(
    paths: Sequence[Path],
    x: Sequence[str],
    y: Sequence[str],
    *,
    higher_is_better: bool | None = None,
    exhaustive: bool = False,
    candidate: str | None = None,
    seed: str | None = None,
    network: str | None = None,
    kind: str | None = None,
    pruned: str | None = None,
) -> OwnAnalysis:
    """Apply the statistics of a study to tables in files: a study per file, network and kind.

    P-values are adjusted for all studies and scores. Studies of one dense network, which the column
    ``network`` names, count as one where they are combined; without that column, each file counts
    as another dense network's.

    The columns are those of :func:`~trueoracle.analysis.own.read_tables`. Where
    ``higher_is_better`` is None, columns have the direction that a study gives to their names; for
    any other name, higher is better.
    Raises :class:`InputError` where a file cannot be read so, or holds no candidate with both a
    score and an outcome.
    """
    if len(set(paths)) < len(paths):
        raise InputError("a file is named twice")
    higher = _higher_is_better(y) if higher_is_better is None else higher_is_better
    columns = {"candidate": candidate, "seed": seed, "network": network, "pruned": pruned}
    columns["kind"] = kind
    tables: dict[str, CandidateTable] = {}
    networks: dict[str, str] = {}
    for path, name in zip(paths, _names(paths), strict=True):
        read = read_tables(path, x, y, higher_is_better=higher, exhaustive=exhaustive, **columns)
        for label, one in read.items():
            study = " ".join(filter(None, (name, label)))
            tables[study] = one
            if network is not None:
                networks[study] = label
    outcome = y[0] if len(y) == 1 else f"{y[0]} … {y[-1]}"
    assessments = {}
    for label, one in tables.items():
        assessments[label] = assess(one)
        if not assessments[label]:
            where = label or paths[0]
            raise InputError(f"{where}: no row has both a finite score and a finite {outcome}")
    together = judged_together(list(assessments.values()))
    assessments = dict(zip(assessments, together, strict=True))
    kinds = tuple(dict.fromkeys(one.kind for one in tables.values() if one.kind))
    is_pooled = network is not None and len(paths) == 1 and len(tables) > 1 and len(kinds) < 2
    pooled = [
        {"criterion": one.criterion, **one.as_dict()}
        for one in (assess(list(tables.values())) if is_pooled else ())
    ]
    return OwnAnalysis(tables, assessments, outcome, higher, networks, pooled, kinds)


def _names(paths: Sequence[Path]) -> list[str]:
    """The studies' names: "" for a single file, else the files' stems, or paths if stems repeat."""
    stems = [path.stem for path in paths]
    if len(paths) == 1:
        return [""]
    return [p.stem if stems.count(p.stem) == 1 else str(p) for p in paths]


def _higher_is_better(y: Sequence[str]) -> bool:
    """The direction of a study's columns of these names; for any other name, higher is better."""
    known = {
        name: metric.higher_is_better
        for metric in CLASSIFICATION
        for name in (metric.name, *(f"{split}_{metric.name}" for split in SPLITS))
    }
    return all(known.get(name, True) for name in y)
