"""What a study has found: its tables, their statistics and its figure. Needs no torch."""

from __future__ import annotations

import copy
import json
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
import pandas as pd

from trueoracle.analysis.assessment import Assessment, assess, judged_together
from trueoracle.analysis.cells import shown_cells
from trueoracle.analysis.numbers import many
from trueoracle.analysis.outcomes import (
    Outcome,
    default_outcomes,
    final_outcomes,
    find_outcome,
    seed_outcomes,
    shared_outcomes,
)
from trueoracle.analysis.ranking import Ranking, rank
from trueoracle.analysis.relation import Relation, relate
from trueoracle.analysis.table import Blocks, CandidateTable, pruned_filters
from trueoracle.errors import InputError, StoreError, unknown
from trueoracle.files import make_folder, replacing
from trueoracle.record.layout import COUNTED, LATENCY
from trueoracle.record.older import fallback_label
from trueoracle.record.searches import recorded_searches
from trueoracle.record.status import recorded_spec, skipped_in, status_of
from trueoracle.record.store import Store
from trueoracle.spec.scale import titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trueoracle.report.page import WrittenReport

__all__ = ["SHORT", "Form", "Results", "Score"]

Form = Literal["csv", "parquet", "latex", "markdown"]
"""Formats of tables."""

_UNITS = {"depth": "layer"}
"""The unit that is pruned, by the kind of pruning, where the unit is no filter."""

SHORT = "short retraining"
"""The column of scores that :meth:`Results.with_short` adds."""


@dataclass(frozen=True, eq=False)
class Score:
    """One column of scores: ``values`` ``[P]`` in the order of the candidates, and its label.

    The candidate of the lowest score is chosen or, where ``higher_is_chosen``, that of the highest.
    """

    values: np.ndarray
    label: str
    higher_is_chosen: bool = False


class Results:
    """The recorded tables of one study, read once, as far as the study has come.

    - ``task``, ``metrics``: the task's name, and what it measures; the first metric is the loss;
    - ``candidates``: one row per candidate (``candidate``, ``position``, ``pruned``,
      ``parameters``, ``macs`` for one example);
    - ``scores``: one row per candidate, one column per criterion;
    - ``outcomes``: one row per candidate, seed and epoch, with the learning rate and a column
      ``{split}_{metric}`` for each split and metric (``test_loss``);
    - ``retrainings``: one row per candidate and seed (``diverged``, ``seconds``);
    - ``failures``: one row per candidate and seed whose retraining raised an ``error``;
    - ``dense``: the dense network's metrics, parameters and MACs.

    In methods with a ``column`` of outcomes, the default is the first of ``default_outcomes``, and
    ``rule`` says which epochs count (``last``, ``last-5``, ``best-on-validation``,
    ``best-on-test``). They raise :class:`InputError` for unknown names, and where nothing has been
    retrained yet.
    """

    is_shared = False
    """Whether reports leave out host, user and absolute paths."""

    def __init__(self, folder: Path) -> None:
        """Read the record in ``folder``; raises :class:`StoreError` where there is none."""
        self.folder = Path(folder)
        self.short: Results | None = None
        with Store(self.folder, read_only=True) as store:
            self.spec = recorded_spec(store, self.folder)
            if store.task is None:
                raise StoreError(
                    f"{self.folder} does not say what its task measures: run the study again, "
                    "which records it"
                )
            self.task, self.metrics = store.task.name, store.task.metrics
            self.dense = store.dense()
            self.provenance = store.provenance()
            self.counts = store.counts(skipped_in(self.provenance))
            candidates = store.frame("candidates").rename(columns={"id": "candidate"})
            scores = store.frame("scores")
            self._labels = store.labels()
            self.outcomes = store.frame("outcomes")
            self.retrainings = store.frame("retrainings")
            self.failures = store.frame("failures")
            self.dense_epochs = store.frame("dense_epochs")
            self._block_sizes = store.blocks()
            self._block_sums = store.block_sums()
        candidates["pruned"] = [json.loads(text) for text in candidates["pruned"]]
        self.candidates = candidates
        wide = scores.pivot(index="candidate", columns="criterion", values="score")
        order = [name for name in self.spec.criteria if name in wide.columns]
        self.scores = wide.reindex(index=candidates["candidate"], columns=order).reset_index()
        self.scores.columns.name = None

    def to_share(self) -> Self:
        """The same results, of which reports leave out host, user and absolute paths."""
        made = copy.copy(self)
        made.is_shared = True
        return made

    @property
    def default_outcomes(self) -> tuple[str, ...]:
        """The columns that are reported: the headline metric and the loss, on the test split."""
        return default_outcomes(self.metrics)

    def outcome(self, column: str | None = None, rule: str = "last") -> Outcome:
        """A column of ``outcomes`` with its name, unit and direction."""
        return find_outcome(self.metrics, column or self.default_outcomes[0], rule)

    @property
    def skipped(self) -> dict[str, str]:
        """The criteria that do not apply to the study, each with the reason."""
        return skipped_in(self.provenance)

    @property
    def data_facts(self) -> dict[str, Any]:
        """What is recorded of text and questions: tokenizer, hash, tokens; empty for other data."""
        said = [sitting["data"] for sitting in self.provenance if "data" in sitting]
        return dict(said[-1]) if said else {}

    @property
    def latency(self) -> dict[str, Any] | None:
        """How long one forward takes, as measured in the latest sitting that did; None if none.

        ``batch`` (examples), ``repeats``, ``dense`` and ``pruned`` (median seconds, the pruned
        network's of the candidate of median MACs) have one value per batch size; ``device`` and
        ``threads`` are those of the sitting.
        """
        measured = [sitting for sitting in self.provenance if sitting.get(LATENCY)]
        if not measured:
            return None
        last = measured[-1]
        return {**last[LATENCY], "device": last["device"], "threads": last["threads"]}

    @property
    def searches(self) -> list[dict[str, Any]]:
        """The recorded searches (:func:`trueoracle.record.searches.recorded_searches`), each with
        what the chosen candidate prunes (``pruned``; None where none is chosen).
        """
        known = self.candidates
        pruned = dict(zip(known["candidate"], known["pruned"], strict=True))
        found = recorded_searches(self.folder, self.metrics)
        return [one | {"pruned": pruned.get(one["chosen"])} for one in found]

    @property
    def finished(self) -> bool:
        """Whether every candidate is scored by each criterion and retrained with each seed.

        Criteria that do not apply (``skipped``) do not count.
        """
        return bool(self.status()["state"] == "finished")

    @property
    def left_out(self) -> frozenset[str]:
        """The candidates that statistics leave out, since a retraining of theirs failed.

        A candidate that failed with one seed is left out with all seeds, so that all others keep
        all of theirs. Where that would leave none, none is left out.
        """
        failed = frozenset(self.failures["candidate"])
        return failed if set(self.outcomes["candidate"]) - failed else frozenset()

    @property
    def _counted(self) -> pd.DataFrame:
        """The rows of ``outcomes`` that statistics read."""
        return self.outcomes[~self.outcomes["candidate"].isin(self.left_out)]

    @cached_property
    def criteria(self) -> list[str]:
        """The criteria that have scored candidates, in the study's order.

        Criteria that were skipped are left out, though they may have scored some candidates before
        they failed.
        """
        out = {"candidate", *self.skipped}
        return [name for name in self.scores.columns if name not in out]

    @property
    def score_columns(self) -> frozenset[str]:
        """The columns of scores: the criteria and, where there is one, the short retraining."""
        return frozenset(self.criteria) | (frozenset() if self.short is None else {SHORT})

    def with_short(self, short: Results) -> Results:
        """The same results with one more column of scores, :data:`SHORT`.

        The column has the candidates' outcomes in ``short``, a shorter retraining: the same column
        of outcomes, by the same rule, NaN where ``short`` has none. Raises :class:`InputError`
        where the two prune different networks or share no candidate, and where either has retrained
        nothing.
        """
        ours, theirs = (one.dense or {} for one in (self, short))
        if ours.get("sha256") != theirs.get("sha256"):
            raise InputError(f"{short.spec.name} and {self.spec.name} prune different networks")
        for one in (self, short):
            one._check_retrained()
        if not self.candidates["candidate"].isin(short.outcomes["candidate"]).any():
            raise InputError(f"{short.spec.name} and {self.spec.name} share no candidate")
        made = copy.copy(self)
        made.short = short
        return made

    def _check_retrained(self) -> None:
        if self.outcomes.empty:
            raise InputError(f"{self.spec.name}: no network has been retrained yet")

    def _check_scored(self, criterion: str) -> None:
        if not self.criteria:
            raise InputError(f"{self.spec.name}: no criterion has scored its candidates yet")
        if criterion not in self.criteria:
            raise unknown("recorded criterion", criterion, self.criteria)

    def score(self, criterion: str, outcome: Outcome | None = None) -> Score:
        """A criterion's scores, or those of :data:`SHORT` by an ``outcome``.

        Raises :class:`InputError` for one that was skipped, with the reason, and for one that
        scored nothing.
        """
        if criterion == SHORT and self.short is not None:
            ours = outcome or self.outcome()
            theirs = self.short.outcome(ours.column, ours.rule)
            found = final_outcomes(self.short._counted, theirs)
            epochs = many(self.short.spec.retraining.epochs, "epoch")
            return Score(
                found.reindex(self.candidates["candidate"]).to_numpy(dtype=np.float64),
                f"{ours.label} after a short retraining ({epochs})",
                higher_is_chosen=ours.higher_is_better,
            )
        if criterion in self.skipped:
            raise InputError(f"{self.spec.name}: {self.skipped[criterion]}")
        self._check_scored(criterion)
        values = self.scores[criterion].to_numpy(dtype=np.float64)
        return Score(values, self._labels.get(criterion) or fallback_label(criterion))

    def points(
        self, criterion: str = "oracle", column: str | None = None, rule: str = "last"
    ) -> pd.DataFrame:
        """One row per candidate: ``candidate``, ``pruned``, ``score`` and ``outcome``.

        The outcome is the mean over seeds, as statistics read it: a network that diverged has the
        worst one of all, and where there is none it is NaN.
        """
        outcome = self.outcome(column, rule)
        score = self.score(criterion, outcome)
        self._check_retrained()
        values = self._with_diverged(shared_outcomes(self._counted, outcome), outcome)
        return self.candidates[["candidate", "pruned"]].assign(
            score=score.values,
            outcome=CandidateTable(values, {}, outcome.higher_is_better).outcome,
        )

    def by_seed(self, column: str | None = None, rule: str = "last") -> pd.DataFrame:
        """The outcomes of the candidates, in their order, by every retraining seed.

        A network that diverged has the worst outcome of all; NaN where there is none yet.
        """
        outcome = self.outcome(column, rule)
        self._check_retrained()
        found = seed_outcomes(self._counted, outcome)
        ids = pd.Index(self.candidates["candidate"])
        values = self._with_diverged(found, outcome)
        table = CandidateTable(values, {}, outcome.higher_is_better)
        return pd.DataFrame(table.finished, index=ids, columns=found.columns)

    def relation(
        self, criterion: str = "oracle", column: str | None = None, rule: str = "last"
    ) -> Relation:
        """The statistics of one criterion against one outcome."""
        self.score(criterion)
        table = self.table(column, rule, [criterion])
        return relate(
            table.scores[criterion],
            table.outcome,
            higher_is_better=table.higher_is_better,
            higher_score_is_better=criterion in table.higher_is_chosen,
            diverged=table.any_diverged,
        )

    def table(
        self,
        column: str | None = None,
        rule: str = "last",
        criteria: Sequence[str] | None = None,
    ) -> CandidateTable:
        """Scores beside the outcome of every seed: what the statistics read.

        The rows are those of ``candidates``, the seeds those that all candidates have, the scores
        those of ``criteria``, by default all that are recorded.
        """
        outcome = self.outcome(column, rule)
        self._check_retrained()
        outcomes = shared_outcomes(self._counted, outcome)
        names = self.criteria if criteria is None else criteria
        scores = {name: self.score(name, outcome) for name in names}
        pruned, groups = self._pruned_filters()
        return CandidateTable(
            outcomes=self._with_diverged(outcomes, outcome),
            scores={name: score.values for name, score in scores.items()},
            higher_is_better=outcome.higher_is_better,
            sampled=self.spec.pruning.candidates != "all",
            pruned=pruned,
            groups=groups,
            higher_is_chosen=frozenset(n for n, score in scores.items() if score.higher_is_chosen),
            blocks=self._blocks(outcome, outcomes),
            unit=_UNITS.get(self.spec.pruning.kind, "filter"),
        )

    @property
    def networks(self) -> Mapping[int, Results]:
        """The results of each dense network by its ``dense.seed``: here only these results."""
        return {self.spec.dense.seed: self}

    @property
    def retrained(self) -> dict[int, Results]:
        """The results of the dense networks of which any candidate is retrained.

        Those whose every retraining diverged are left out, unless there are no others.
        """
        begun = {seed: one for seed, one in self.networks.items() if not one.outcomes.empty}
        ended = {s: one for s, one in begun.items() if not one.retrainings["diverged"].all()}
        return ended or begun

    def candidate_tables(
        self,
        column: str | None = None,
        rule: str = "last",
        criteria: Sequence[str] | None = None,
    ) -> list[CandidateTable]:
        """The :meth:`table` of each dense network: here that of the only one."""
        return [self.table(column, rule, criteria)]

    def assess(
        self,
        column: str | None = None,
        rule: str = "last",
        criteria: Sequence[str] | None = None,
    ) -> list[Assessment]:
        """Criteria against one outcome, with intervals, permutation tests and ceiling.

        P-values are adjusted for the given ``criteria``, by default all that are recorded.
        """
        return assess(self.candidate_tables(column, rule, criteria))

    def _with_diverged(self, outcomes: pd.DataFrame, outcome: Outcome) -> np.ndarray:
        """Outcomes by candidate and seed as an array, infinitely bad where a network diverged."""
        ids = self.candidates["candidate"]
        made = outcomes.reindex(ids).to_numpy(dtype=np.float64)
        counted = self.retrainings[~self.retrainings["candidate"].isin(self.left_out)]
        went = counted[counted["diverged"].astype(bool)]
        diverged = went.assign(one=1.0).pivot(index="candidate", columns="seed", values="one")
        known = diverged.reindex(index=ids, columns=outcomes.columns).notna().to_numpy()
        return np.where(known, -np.inf if outcome.higher_is_better else np.inf, made)

    def _blocks(self, outcome: Outcome, outcomes: pd.DataFrame) -> Blocks | None:
        """The last epoch's ``outcomes``, by candidate and seed, by blocks of examples.

        None where some outcomes were recorded without blocks, and for any other rule, since the
        epochs before the last are recorded over all examples only.
        """
        counts = self._block_sizes.get(outcome.split)
        if counts is None or outcome.rule != "last":
            return None
        rows = pd.MultiIndex.from_product([self.candidates["candidate"], outcomes.columns])
        sums = self._block_sums[outcome.column].reindex(rows).to_numpy(dtype=np.float64)
        ended = self.retrainings[~self.retrainings["diverged"].astype(bool)]
        known = pd.MultiIndex.from_frame(ended[["candidate", "seed"]])
        lacking = ~np.isfinite(sums).all(axis=1) & rows.isin(known)
        shape = len(self.candidates), len(outcomes.columns), len(counts)
        return None if lacking.any() else Blocks(sums.reshape(shape), np.array(counts))

    def _pruned_filters(self) -> tuple[np.ndarray | None, tuple[int, ...]]:
        """Which filters (or layers) ``[P, F]`` each candidate prunes, and how many each group has.

        None where single weights are pruned.
        """
        if self.spec.pruning.kind not in COUNTED:
            return None, ()
        return pruned_filters(self.candidates["pruned"].tolist())

    def ranking(self, criterion: str = "oracle", sampled: int = 1000, seed: int = 0) -> Ranking:
        """The best candidate by one criterion's scores, its margin, and what samples miss.

        Where every way to prune is listed, samples of ``sampled`` ways are compared with all ways:
        any such sample, and the one that a study with ``pruning.candidates = sampled`` and
        ``pruning.seed = seed`` draws. Raises :class:`InputError` for a criterion without finite
        scores.
        """
        # Imported here because this module imports torch, which nothing else in this file needs.
        from trueoracle.pruning.ways import sample

        scores = self.score(criterion).values
        if sampled < 1:
            raise InputError(f"a sample holds at least one candidate, got {sampled}")
        drawn = sample(len(scores), sampled, seed) if sampled < len(scores) else []
        return rank(scores, every_way=self.spec.pruning.candidates == "all", drawn=drawn)

    def replay(self, criterion: str | None = None, by: str | None = None) -> pd.DataFrame:
        """What searches on a budget would have found here: :func:`trueoracle.search.replay.replay`.

        ``criterion`` (the first, by default) orders the candidates, ``by`` is the column that
        searches compare. Raises :class:`InputError` where no seed has every candidate retrained.
        """
        from trueoracle.search.replay import replay

        name = criterion or next(iter(self.criteria), "oracle")
        self._check_scored(name)
        self._check_retrained()
        pruned, _ = self._pruned_filters()
        rows = ~self.candidates["candidate"].isin(self.left_out).to_numpy()
        return replay(
            self._counted,
            self.scores[rows].set_index("candidate")[name],
            metrics=self.metrics,
            epochs=self.spec.retraining.epochs,
            by=by,
            pruned=None if pruned is None else pruned[rows],
        )

    def correlate(self, columns: Sequence[str] | None = None, rule: str = "last") -> pd.DataFrame:
        """One row per criterion and outcome (``metric``), with all fields of :class:`Assessment`.

        ``columns`` are those of outcomes, by default ``default_outcomes``. P-values are adjusted
        for all rows.
        """
        each = list(columns or self.default_outcomes)
        found = dict(zip(each, judged_together([self.assess(c, rule) for c in each]), strict=True))
        rows = [
            {"criterion": name, "metric": column} | one.as_dict()
            for name in self.criteria
            for column, assessments in found.items()
            for one in assessments
            if one.criterion == name
        ]
        return pd.DataFrame(rows)

    def plot(
        self, criterion: str = "oracle", column: str | None = None, rule: str = "last"
    ) -> Figure:
        """The scatter of one criterion against one outcome, as a matplotlib figure."""
        from trueoracle.figures.scatter import draw_scatter, scatter_data

        outcome = self.outcome(column, rule)
        points, score = self.points(criterion, column, rule), self.score(criterion, outcome)
        return draw_scatter(
            scatter_data(
                points["score"].to_numpy(),
                points["outcome"].to_numpy(),
                higher_is_better=outcome.higher_is_better,
                higher_score_is_better=score.higher_is_chosen,
                x_label=score.label,
                y_label=outcome.axis,
                title=titled(self.spec),
            )
        )

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name, with values that CSV and Parquet files can both hold."""
        candidates = self.candidates.copy()
        candidates["pruned"] = [json.dumps(pruned) for pruned in candidates["pruned"]]
        return {
            "candidates": candidates,
            "scores": self.scores,
            "outcomes": self.outcomes,
            "retrainings": self.retrainings,
            "failures": self.failures,
            "dense_epochs": self.dense_epochs,
            "metrics": self._metrics_table(),
            "blocks": self._blocks_table(),
        }

    def _blocks_table(self) -> pd.DataFrame:
        """One row per network, column of outcomes and block; the dense network has no candidate."""
        sums = self._block_sums
        columns: list[Any] = list(sums.columns)
        sizes = [self._block_sizes[name.partition("_")[0]][block] for name, block in columns]
        made = pd.DataFrame(
            {
                "candidate": sums.index.get_level_values(0).repeat(len(columns)),
                "seed": sums.index.get_level_values(1).repeat(len(columns)),
                "metric": [name for name, _ in columns] * len(sums),
                "block": [block for _, block in columns] * len(sums),
                "examples": sizes * len(sums),
                "sum": sums.to_numpy().ravel(),
            }
        )
        of_dense = made["candidate"] == ""
        made["candidate"] = made["candidate"].mask(of_dense, None)
        made["seed"] = made["seed"].astype("Int64").mask(of_dense)
        return made

    def _metrics_table(self) -> pd.DataFrame:
        fields = ("name", "label", "unit", "better", "low", "high", "exponential")
        # Files have no empty text: they would hold an empty cell, or null.
        rows = [
            [None if (value := getattr(metric, field)) == "" else value for field in fields]
            for metric in self.metrics
        ]
        made = pd.DataFrame(rows, columns=list(fields))
        made.insert(0, "task", self.task)
        return made

    def figures(
        self,
        out: str | Path,
        formats: Sequence[str] = ("pdf",),
        columns: int = 1,
        outcome: str = "last",
    ) -> list[Path]:
        """Write figures as wide as 1 or 2 columns of a paper, each with its values as CSV.

        See :func:`trueoracle.report.paper.write_figures`. ``formats`` are of pdf, svg and png.
        """
        from trueoracle.report.paper import write_figures

        return write_figures(self, Path(out), formats, columns, outcome)

    def export(self, out: str | Path, form: Form = "csv") -> list[Path]:
        """Write every table to ``out``, or as ``latex`` or ``markdown`` that of the statistics.

        With the latter, the values of the table are written as CSV, too. In CSV files, texts that a
        spreadsheet would compute have an apostrophe in front (:mod:`trueoracle.analysis.cells`).
        Raises :class:`StoreError` where a file cannot be written.
        """
        if form not in get_args(Form):
            raise unknown("format of tables", form, get_args(Form))
        if form in ("latex", "markdown"):
            from trueoracle.report.paper import write_relations

            return write_relations(self, Path(out), form)
        written = []
        for name, table in self.tables().items():
            path = Path(out) / f"{name}.{form}"
            make_folder(path.parent)
            with replacing(path) as draft:
                if form == "csv":
                    shown_cells(table).to_csv(draft, index=False)
                else:
                    table.to_parquet(draft, index=False)
            written.append(path)
        return written

    @property
    def best(self) -> pd.Series[Any]:
        """The candidate with the best mean outcome: a row of :meth:`points`.

        It is the best of many, so that luck is part of its outcome. Raises :class:`InputError`
        where nothing has been retrained or scored yet, and where all networks diverged.
        """
        self._check_retrained()
        outcome = self.outcome()
        points = self.points(next(iter(self.criteria), "oracle")).dropna(subset="outcome")
        if points.empty:
            raise InputError(f"{self.spec.name}: every network that was retrained diverged")
        values = points["outcome"] if outcome.higher_is_better else -points["outcome"]
        best: pd.Series[Any] = points.drop(columns="score").iloc[int(values.argmax())]
        return best

    def summary(self, outcome: str = "last") -> dict[str, Any]:
        """What is found, as plain values: the fields that docs/tables.md lists.

        ``outcome`` says which epochs count.
        """
        from trueoracle.report.summary import summarise  # imports matplotlib, which is slow

        return summarise(self, outcome)

    def report(
        self, out: str | Path | None = None, outcome: str = "last", *, share: bool = False
    ) -> WrittenReport:
        """Write ``report.html``, ``summary.json`` and the figures; returns where they are.

        Recorded arms of the study are shown beside it. ``out`` is the folder to write to, by
        default ``report/`` in the study's own folder. ``outcome`` says which epochs count. With
        ``share``, host, user and absolute paths are left out.
        """
        from trueoracle.record.runs import find_arms
        from trueoracle.report.page import write_report

        results, arms = self, find_arms(self)
        if share:
            results, arms = self.to_share(), [arm.to_share() for arm in arms]
        folder = self.folder / "report" if out is None else Path(out)
        return write_report(results, arms, folder, outcome)

    def open(self) -> Path:
        """Write the report and show it in the browser; returns its page."""
        page = self.report().page.resolve()
        webbrowser.open(page.as_uri())
        return page

    def __repr__(self) -> str:
        status = self.status()
        return (
            f"<{type(self).__name__} of {self.spec.name}: {status['state']}, "
            f"{status['retrained']:,} of {status['to_retrain']:,} networks retrained, in "
            f"{self.folder}>"
        )

    def _repr_html_(self) -> str:
        from trueoracle.report.notebook import results_html

        return results_html(self)

    def status(self) -> dict[str, Any]:
        """How far the study is, as plain values."""
        return status_of(self.folder, self.spec, self.counts, self.provenance)
