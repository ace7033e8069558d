"""What a study has found: its tables, their statistics and its figure. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from trueoracle.analysis.assessment import Assessment, assess
from trueoracle.analysis.numbers import many
from trueoracle.analysis.outcomes import (
    final_outcomes,
    higher_is_better,
    outcome_name,
    shared_outcomes,
)
from trueoracle.analysis.ranking import Ranking, rank
from trueoracle.analysis.relation import Relation, relate
from trueoracle.analysis.table import CandidateTable, pruned_filters
from trueoracle.errors import InputError, StoreError, unknown
from trueoracle.files import make_folder, replacing
from trueoracle.record.names import score_name
from trueoracle.record.store import DATABASE, Store, is_locked
from trueoracle.spec.file import is_reference
from trueoracle.spec.grid import load_spec
from trueoracle.spec.spec import StudySpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Results",
    "find_arms",
    "find_run",
    "find_short",
    "last_run",
    "read_status",
    "recorded_runs",
]


DENSE = "dense.safetensors"
"""The dense network of a run."""

UNDER_WAY = "dense.partial.pt"
"""The dense network's training, until it is done."""

CANDIDATES = "candidates.json"
"""The candidates of a run, which another study can take (``pruning.candidates``)."""

SEARCHES = "search"
"""The folder of a run's searches."""


class Results:
    """The recorded tables of one study, read once, as far as it has come.

    ``candidates``: one row a candidate (``candidate``, ``position``, ``pruned``, ``parameters``,
    ``macs`` for one image). ``scores``: one row a candidate, one column a criterion. ``outcomes``:
    one row a candidate, seed and epoch, with the learning rate, losses (nats) and accuracies
    (fractions). ``retrainings``: one row a candidate and seed (``diverged``, ``seconds``).
    ``dense``: the dense network's metrics, parameters and MACs.
    """

    def __init__(self, folder: Path) -> None:
        """Read the record in ``folder``; raises :class:`StoreError` where there is none."""
        self.folder = Path(folder)
        with Store(self.folder, read_only=True) as store:
            self.spec = _recorded_spec(store, self.folder)
            self.dense = store.dense()
            self.counts = store.counts()
            self.provenance = store.provenance()
            candidates = store.frame("candidates").rename(columns={"id": "candidate"})
            scores = store.frame("scores")
            self.outcomes = store.frame("outcomes")
            self.retrainings = store.frame("retrainings")
            self.dense_epochs = store.frame("dense_epochs")
        candidates["pruned"] = [json.loads(text) for text in candidates["pruned"]]
        self.candidates = candidates
        wide = scores.pivot(index="candidate", columns="criterion", values="score")
        order = [name for name in self.spec.criteria if name in wide.columns]
        self.scores = wide.reindex(index=candidates["candidate"], columns=order).reset_index()
        self.scores.columns.name = None

    @property
    def skipped(self) -> dict[str, str]:
        """The criteria that do not apply to the study, each with the reason."""
        return _skipped(self.provenance)

    @property
    def finished(self) -> bool:
        """Whether every candidate is scored and retrained: by each criterion, with each seed.

        Criteria that do not apply (``skipped``) have nothing to do.
        """
        return bool(self.status()["state"] == "finished")

    @cached_property
    def criteria(self) -> list[str]:
        """The criteria that have scored candidates, in the study's order.

        Not one that was skipped, though it may have scored some before it failed.
        """
        out = {"candidate", *self.skipped}
        return [name for name in self.scores.columns if name not in out]

    def _check_criterion(self, criterion: str) -> None:
        """Refuse one that was skipped, with the reason, and one that scored nothing."""
        if criterion in self.skipped:
            raise InputError(f"{self.spec.name}: {self.skipped[criterion]}")
        if criterion not in self.criteria:
            raise unknown("recorded criterion", criterion, self.criteria)

    def points(
        self, criterion: str = "oracle", metric: str = "test_accuracy", rule: str = "last"
    ) -> pd.DataFrame:
        """One row a candidate: ``candidate``, ``pruned``, ``score`` and ``outcome``.

        ``metric`` is a column of ``outcomes``; ``rule`` says which epochs count (``last``,
        ``last-5``, ``best-on-validation``, ``best-on-test``). The outcome is the mean over seeds;
        NaN where there is none. Raises :class:`InputError` for unknown names.
        """
        self._check_criterion(criterion)
        higher_is_better(metric)
        if self.outcomes.empty:
            raise InputError(f"{self.spec.name}: no network has been retrained yet")
        outcomes = final_outcomes(self.outcomes, metric, rule)
        table = self.candidates[["candidate", "pruned"]].merge(
            self.scores[["candidate", criterion]].rename(columns={criterion: "score"}),
            on="candidate",
        )
        return table.merge(outcomes, on="candidate", how="left")

    def relation(
        self, criterion: str = "oracle", metric: str = "test_accuracy", rule: str = "last"
    ) -> Relation:
        """The statistics of one criterion against one outcome."""
        points = self.points(criterion, metric, rule)
        return relate(
            points["score"].to_numpy(),
            points["outcome"].to_numpy(),
            higher_is_better=higher_is_better(metric),
        )

    def table(self, metric: str = "test_accuracy", rule: str = "last") -> CandidateTable:
        """All scores beside the outcome of every seed: what the statistics read.

        Its rows are those of ``candidates``, and its seeds those that all of them have. Raises
        :class:`InputError` for unknown names, and where nothing has been retrained yet.
        """
        higher_is_better(metric)
        if self.outcomes.empty:
            raise InputError(f"{self.spec.name}: no network has been retrained yet")
        outcomes = shared_outcomes(self.outcomes, metric, rule)
        pruned, groups = self._pruned_filters()
        return CandidateTable(
            outcomes=outcomes.reindex(self.candidates["candidate"]).to_numpy(dtype=np.float64),
            scores={name: self.scores[name].to_numpy(dtype=np.float64) for name in self.criteria},
            higher_is_better=higher_is_better(metric),
            sampled=self.spec.pruning.candidates != "all",
            pruned=pruned,
            groups=groups,
        )

    def assess(self, metric: str = "test_accuracy", rule: str = "last") -> list[Assessment]:
        """Every criterion against one outcome, with intervals, permutation tests and ceiling."""
        return assess(self.table(metric, rule))

    def _pruned_filters(self) -> tuple[np.ndarray | None, tuple[int, ...]]:
        """Which filters ``[P, F]`` each candidate prunes, and the filters of each group.

        None where single weights are pruned.
        """
        if self.spec.pruning.kind != "structured":
            return None, ()
        return pruned_filters(self.candidates["pruned"].tolist())

    def ranking(self, criterion: str = "oracle", sampled: int = 1000, seed: int = 0) -> Ranking:
        """What one criterion's scores say by themselves: the best, its margin, a sample's luck.

        Where every way to prune is listed, ``sampled`` of them are compared with all: any such
        sample, and the one that a study with ``pruning.candidates = sampled`` and ``pruning.seed =
        seed`` draws. Raises :class:`InputError` for a criterion without finite scores.
        """
        # Its room imports torch, which nothing else here needs.
        from trueoracle.pruning.candidates import sample

        self._check_criterion(criterion)
        if sampled < 1:
            raise InputError(f"a sample holds at least one candidate, got {sampled}")
        scores = self.scores[criterion].to_numpy()
        drawn = sample(len(scores), sampled, seed) if sampled < len(scores) else []
        return rank(scores, every_way=self.spec.pruning.candidates == "all", drawn=drawn)

    def replay(self, criterion: str | None = None, by: str | None = None) -> pd.DataFrame:
        """What searches on a budget would have found here: :func:`trueoracle.search.replay.replay`.

        ``criterion`` (the first, by default) orders the candidates, ``by`` is what is compared.
        Raises :class:`InputError` where no seed has every candidate retrained.
        """
        from trueoracle.search.replay import replay

        name = criterion or next(iter(self.criteria), "oracle")
        if name not in self.criteria:
            raise unknown("recorded criterion", name, self.criteria)
        if self.outcomes.empty:
            raise InputError(f"{self.spec.name}: no network has been retrained yet")
        scores = self.scores.set_index("candidate")[name]
        pruned, _ = self._pruned_filters()
        epochs = self.spec.retraining.epochs
        return replay(self.outcomes, scores, epochs=epochs, by=by, pruned=pruned)

    def correlate(
        self, metrics: tuple[str, ...] = ("test_accuracy", "test_loss"), rule: str = "last"
    ) -> pd.DataFrame:
        """One row a criterion and metric, with all that :class:`Assessment` holds."""
        found = {metric: self.assess(metric, rule) for metric in metrics}
        rows = [
            {"criterion": name, "metric": metric} | one.as_dict()
            for name in self.criteria
            for metric, assessments in found.items()
            for one in assessments
            if one.criterion == name
        ]
        return pd.DataFrame(rows)

    def plot(
        self, criterion: str = "oracle", metric: str = "test_accuracy", rule: str = "last"
    ) -> Figure:
        """The scatter of one criterion against one outcome, as a matplotlib figure."""
        from trueoracle.figures.scatter import draw_scatter, scatter_data

        points = self.points(criterion, metric, rule)
        return draw_scatter(
            scatter_data(
                points["score"].to_numpy(),
                points["outcome"].to_numpy(),
                higher_is_better=higher_is_better(metric),
                x_label=self.score_name(criterion),
                y_label=outcome_name(metric, rule),
                title=self.spec.title,
            )
        )

    def points_after(
        self, short: Results, metric: str = "test_accuracy", rule: str = "last"
    ) -> pd.DataFrame:
        """A short retraining's outcome as the ``score`` of this study's: a table as ``points``.

        The candidates that both hold, of the same dense network. Raises :class:`InputError` where
        the networks differ, no candidate is shared, or either has retrained nothing.
        """
        higher_is_better(metric)
        ours, theirs = (one.dense or {} for one in (self, short))
        if ours.get("sha256") != theirs.get("sha256"):
            raise InputError(f"{short.spec.name} and {self.spec.name} prune different networks")
        for one in (self, short):
            if one.outcomes.empty:
                raise InputError(f"{one.spec.name}: no network has been retrained yet")
        table = self.candidates[["candidate", "pruned"]].merge(
            final_outcomes(short.outcomes, metric, rule).rename("score"), on="candidate"
        )
        table = table.merge(final_outcomes(self.outcomes, metric, rule), on="candidate")
        if table.empty:
            raise InputError(f"{short.spec.name} and {self.spec.name} share no candidate")
        return table

    def relation_after(
        self, short: Results, metric: str = "test_accuracy", rule: str = "last"
    ) -> Relation:
        """The statistics of a short retraining's outcome against this study's."""
        points = self.points_after(short, metric, rule)
        return relate(
            points["score"].to_numpy(),
            points["outcome"].to_numpy(),
            higher_is_better=higher_is_better(metric),
            higher_score_is_better=higher_is_better(metric),
        )

    def assess_after(
        self, short: Results, metric: str = "test_accuracy", rule: str = "last"
    ) -> Assessment | None:
        """A short retraining's outcome against this study's; None where no candidate has both."""
        points = self.points_after(short, metric, rule)
        name = short_name(short, metric)
        outcomes = shared_outcomes(self.outcomes, metric, rule).reindex(points["candidate"])
        pruned, groups = self._pruned_filters()
        if len(points) < len(self.candidates):
            pruned, groups = None, ()
        table = CandidateTable(
            outcomes=outcomes.to_numpy(dtype=np.float64),
            scores={name: points["score"].to_numpy(dtype=np.float64)},
            higher_is_better=higher_is_better(metric),
            sampled=self.spec.pruning.candidates != "all",
            pruned=pruned,
            groups=groups,
            higher_is_chosen=frozenset([name] if higher_is_better(metric) else []),
        )
        return next(iter(assess(table)), None)

    def plot_after(
        self, short: Results, metric: str = "test_accuracy", rule: str = "last"
    ) -> Figure:
        """The scatter of a short retraining's outcome against this study's."""
        from trueoracle.figures.scatter import draw_scatter, scatter_data

        points = self.points_after(short, metric, rule)
        return draw_scatter(
            scatter_data(
                points["score"].to_numpy(),
                points["outcome"].to_numpy(),
                higher_is_better=higher_is_better(metric),
                higher_score_is_better=higher_is_better(metric),
                x_label=short_name(short, metric),
                y_label=outcome_name(metric, rule),
                title=self.spec.title,
            )
        )

    def score_name(self, criterion: str) -> str:
        """What a criterion's score is called in figures and sentences."""
        return score_name(criterion, self.spec.pruning.kind)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name, with values that CSV and Parquet hold alike."""
        candidates = self.candidates.copy()
        candidates["pruned"] = [json.dumps(pruned) for pruned in candidates["pruned"]]
        return {
            "candidates": candidates,
            "scores": self.scores,
            "outcomes": self.outcomes,
            "retrainings": self.retrainings,
            "dense_epochs": self.dense_epochs,
        }

    def export(self, out: Path, form: Literal["csv", "parquet"] = "csv") -> list[Path]:
        """Write every table to ``out``; raises :class:`StoreError` where it cannot be written."""
        written = []
        for name, table in self.tables().items():
            path = out / f"{name}.{form}"
            make_folder(out)
            with replacing(path) as draft:
                if form == "csv":
                    table.to_csv(draft, index=False)
                else:
                    table.to_parquet(draft, index=False)
            written.append(path)
        return written

    def status(self) -> dict[str, Any]:
        """How far the study is, as plain values."""
        return _status(self.folder, self.spec, self.counts, self.provenance)


def read_status(folder: Path) -> dict[str, Any]:
    """The status of a recorded study, without reading its tables; raises :class:`StoreError`."""
    with Store(folder, read_only=True) as store:
        spec = _recorded_spec(store, folder)
        return _status(folder, spec, store.counts(), store.provenance())


def _status(
    folder: Path, spec: StudySpec, counts: dict[str, int], provenance: list[dict[str, Any]]
) -> dict[str, Any]:
    skipped = _skipped(provenance)
    to_score = counts["candidates"] * (len(spec.criteria) - len(skipped))
    to_retrain = counts["candidates"] * len(spec.retraining.seeds)
    finished = (
        counts["candidates"] > 0
        and counts["scores"] >= to_score
        and counts["retrainings"] >= to_retrain
    )
    scored = 0 < to_score <= counts["scores"] and counts["retrainings"] == 0
    ended = provenance[-1]["ended"] is not None
    searches = list(folder.glob(f"{SEARCHES}/*/*.json"))
    if is_locked(folder):
        state = "running"
    elif finished:
        state = "finished"
    elif searches and ended and counts["retrainings"] == 0:
        state = "searched" if any(map(_is_complete, searches)) else "interrupted"
    else:
        state = "scored" if scored and ended else "interrupted"
    return {
        "study": spec.name,
        "digest": spec.digest,
        "folder": str(folder),
        "state": state,
        "candidates": counts["candidates"],
        "scored": counts["scores"],
        "to_score": to_score,
        "skipped": skipped,
        "retrained": counts["retrainings"],
        "to_retrain": to_retrain,
        "diverged": counts["diverged"],
        "started": provenance[0]["started"],
        "last_started": provenance[-1]["started"],
        "ended": provenance[-1]["ended"],
    }


def _is_complete(search: Path) -> bool:
    """Whether a search's record has all the rungs that were planned; not where it is damaged."""
    try:
        record = json.loads(search.read_text(encoding="utf-8"))
        return len(record["rungs"]) == len(record["settings"]["rungs"])
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _skipped(provenance: list[dict[str, Any]]) -> dict[str, str]:
    """What the latest sitting that said so skipped; a record of an earlier version skips none."""
    said: list[dict[str, str]] = [one["skipped"] for one in provenance if "skipped" in one]
    return said[-1] if said else {}


def _recorded_spec(store: Store, folder: Path) -> StudySpec:
    fields = store.spec()
    if fields is None:
        raise StoreError(f"nothing is recorded in {folder}")
    try:
        return StudySpec.model_validate(fields)
    except ValueError as error:
        raise StoreError(f"{folder} was recorded by another version of trueoracle") from error


def short_name(short: Results, metric: str) -> str:
    """What a short retraining's outcome is called."""
    epochs = many(short.spec.retraining.epochs, "epoch")
    return f"{metric.replace('_', ' ')} after a short retraining ({epochs})"


def find_short(results: Results, others: Iterable[Results]) -> Results | None:
    """The short retraining of a study among others: the same pruning, retrained for fewer epochs.

    It is an arm of the study whose role is ``short``.

    Of several, the one whose recipe and candidates are most like the study's.
    """
    fitting = [other for other in others if _is_short(results, other)]
    return max(fitting, key=lambda other: _likeness(results, other), default=None)


def _is_short(results: Results, other: Results) -> bool:
    ours, theirs = results.spec, other.spec
    base, _, arm = theirs.name.rpartition("@")
    return (
        base == ours.name
        and theirs.role(arm) == "short"
        and (other.dense or {}).get("sha256") == (results.dense or {}).get("sha256")
        and theirs.data == ours.data
        and theirs.pruning.kind == ours.pruning.kind
        and theirs.pruning.surgery == ours.pruning.surgery
        and theirs.retraining.epochs < ours.retraining.epochs
        and not results.outcomes.empty
        and not other.outcomes.empty
        and bool(results.candidates["candidate"].isin(other.candidates["candidate"]).any())
    )


def _likeness(results: Results, short: Results) -> tuple[int, int]:
    """How many fields of the recipe, and then how many candidates, two retrainings share."""
    ours, theirs = (dict(one.spec.retraining) for one in (results, short))
    shared = results.candidates["candidate"].isin(short.candidates["candidate"])
    return sum(ours[field] == theirs[field] for field in ours), int(shared.sum())


def recorded_runs(runs: Path) -> list[Path]:
    """The folders below ``runs`` that hold a recorded study, the last changed one first."""
    if not runs.is_dir():
        return []
    found = [path.parent for path in runs.glob(f"*/{DATABASE}")]
    return sorted(found, key=_changed, reverse=True)


def _changed(folder: Path) -> float:
    # A reader makes an empty write-ahead log, which is no change.
    files = [folder / DATABASE, folder / f"{DATABASE}-wal"]
    times = (path.stat().st_mtime for path in files if path.is_file() and path.stat().st_size)
    return max(times, default=0.0)


def last_run(runs: Path) -> Path:
    """The folder of the last changed study; raises :class:`InputError` where none is recorded."""
    return _some_runs(runs)[0]


def _some_runs(runs: Path) -> list[Path]:
    recorded = recorded_runs(runs)
    if not recorded:
        raise InputError(f"no study is recorded in {runs}: 'trueoracle run STUDY' records one")
    return recorded


def find_run(reference: str, runs: Path, overrides: dict[str, Any] | None = None) -> Path:
    """The folder of a recorded study.

    ``reference`` is a run's folder (or its name below ``runs``), a shipped name, a ``.toml`` or a
    grid's point, whose run with exactly its settings is meant, or another recorded name, whose last
    changed run is meant. Raises :class:`InputError` where there is none.
    """
    for folder in (Path(reference), runs / reference):
        if (folder / DATABASE).is_file():
            return folder
    spec = load_spec(reference, overrides) if is_reference(reference) else None
    recorded = _some_runs(runs)
    if spec is not None and (runs / spec.folder_name / DATABASE).is_file():
        return runs / spec.folder_name
    name = reference if spec is None else spec.name
    named = [run for run in recorded if _name(run) == name]
    if not named:
        raise unknown("recorded study", name, {_name(run) for run in recorded})
    if spec is not None or overrides:
        others = " or ".join(map(str, named[:3]))
        raise InputError(f"{name!r} is not recorded with these settings; there is {others}")
    return named[0]


def find_arms(results: Results) -> list[Results]:
    """The recorded arms of a study, or the study and other arms of an arm, one run a name.

    The last changed run of each; of the study's short retraining the one that fits it best.
    """
    base = results.spec.name.partition("@")[0]
    arms: dict[str, list[Results]] = {}
    for run in recorded_runs(results.folder.parent):
        name = _name(run)
        if name.partition("@")[0] != base or name == results.spec.name:
            continue
        # Of an arm of its own, each run may be the short retraining that fits.
        if name in arms and name.rpartition("@")[0] != results.spec.name:
            continue
        try:
            other = Results(run)
        except StoreError:  # a damaged neighbour is reported where it is asked for
            continue
        if other.spec.dense_digest == results.spec.dense_digest and not other.outcomes.empty:
            arms.setdefault(name, []).append(other)
    return [find_short(results, found) or found[0] for found in arms.values()]


def _name(folder: Path) -> str:
    return folder.name.rpartition("-")[0]
