"""What a study over several dense networks has found, in each and over all. Needs no torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from trueoracle.analysis.numbers import many
from trueoracle.analysis.outcomes import Outcome
from trueoracle.analysis.ranking import Ranking
from trueoracle.analysis.relation import Relation, mean_relation
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError, StoreError
from trueoracle.record.networks import read_networks, status_of_networks
from trueoracle.record.paths import DATABASE, NETWORKS
from trueoracle.record.results import SHORT, Results, Score
from trueoracle.spec.scale import titled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["PooledResults", "open_results"]


def open_results(folder: Path) -> Results:
    """The results in a folder, of one dense network or of a study over several.

    Raises :class:`StoreError` where nothing is recorded.
    """
    return PooledResults(folder) if (folder / NETWORKS).is_file() else Results(folder)


class PooledResults(Results):
    """The results of a study over several dense networks, as far as it has come.

    ``networks`` has the results of each network that is recorded, by its ``dense.seed``. Statistics
    are computed within networks and averaged over them, with intervals over networks. Tables have
    the rows of all networks, with the column ``dense_seed`` first. ``dense`` has the means of the
    networks' metrics. What belongs to one network alone (:meth:`table`, :meth:`ranking`,
    :meth:`replay`) is to be had from one of ``networks``.
    """

    def __init__(self, folder: Path) -> None:
        """Read the records of all networks; raises :class:`StoreError` where there is none."""
        self.folder, self.short = Path(folder), None
        self.spec = read_networks(self.folder)
        runs = {one.dense.seed: self.folder.parent / one.folder_name for one in self.spec.networks}
        self._networks = {
            seed: Results(run) for seed, run in runs.items() if (run / DATABASE).is_file()
        }
        if not self.networks:
            raise StoreError(f"nothing is recorded of the dense networks of {self.folder}")
        each = self.networks.values()
        first = next(iter(each))
        self.task, self.metrics = first.task, first.metrics
        self.dense = _mean_dense([one.dense for one in each if one.dense is not None])
        self.counts = {name: sum(one.counts[name] for one in each) for name in first.counts}
        self.provenance = [
            {"dense_seed": seed, **sitting}
            for seed, one in self.networks.items()
            for sitting in one.provenance
        ]
        self._labels = {name: label for one in each for name, label in one._labels.items()}
        self.candidates = self._joined(lambda one: one.candidates)
        self.scores = self._joined(lambda one: one.scores)
        self.outcomes = self._joined(lambda one: one.outcomes)
        self.retrainings = self._joined(lambda one: one.retrainings)
        self.failures = self._joined(lambda one: one.failures)
        self.dense_epochs = self._joined(lambda one: one.dense_epochs)

    def _joined(
        self,
        table: Callable[[Results], pd.DataFrame],
        networks: Mapping[int, Results] | None = None,
    ) -> pd.DataFrame:
        """The rows of networks, by default of all, each with its seed.

        Empty tables do not affect column types.
        """
        found = {seed: table(one) for seed, one in (networks or self.networks).items()}
        filled = {seed: one for seed, one in found.items() if len(one)} or found
        return pd.concat(
            [one.assign(dense_seed=seed) for seed, one in filled.items()], ignore_index=True
        ).pipe(lambda rows: rows[["dense_seed", *rows.columns.drop("dense_seed")]])

    def _blocks_table(self) -> pd.DataFrame:
        return self._joined(lambda one: one._blocks_table())

    @property
    def networks(self) -> Mapping[int, Results]:
        """The results of each dense network that is recorded, by its ``dense.seed``."""
        return self._networks

    @property
    def latency(self) -> dict[str, Any] | None:
        """The medians over networks of what was measured of each; ``networks`` says of how many.

        Networks that were measured on another device, with other threads or other batches than the
        first are left out.
        """
        known = [one.latency for one in self.networks.values()]
        measured = [one for one in known if one is not None]
        if not measured:
            return None
        same = ("batch", "device", "threads")
        first = measured[0]
        like = [one for one in measured if all(one[name] == first[name] for name in same)]
        medians = {
            name: np.median([one[name] for one in like], axis=0).tolist()
            for name in ("repeats", "dense", "pruned")
        }
        return {**first, **medians, "networks": len(like)}

    def _with_scores(self, names: Collection[str]) -> dict[int, Results]:
        """Those of the retrained networks that have some columns of scores; all where none has."""
        begun = self.retrained
        known = {s: one for s, one in begun.items() if one.score_columns.issuperset(names)}
        return known or begun

    @property
    def skipped(self) -> dict[str, str]:
        """The criteria that do not apply to some of the networks, each with a reason."""
        return {name: why for one in self.networks.values() for name, why in one.skipped.items()}

    @cached_property
    def criteria(self) -> list[str]:
        """The criteria that have scored candidates of every network, in the study's order.

        Once any network is retrained, those of which none is do not count.
        """
        each = (self.retrained or self.networks).values()
        return [name for name in self.spec.criteria if all(name in one.criteria for one in each)]

    def with_short(self, short: Results) -> Results:
        """The same results with the outcomes of a shorter retraining, where a network has both."""
        pairs = short.networks if isinstance(short, PooledResults) else {}
        if not any(seed in pairs for seed in self.networks):
            raise InputError(f"{short.spec.name} and {self.spec.name} prune different networks")
        for one in (self, short):
            one._check_retrained()
        shared = [s for s in self.retrained if s in pairs and not pairs[s].outcomes.empty]
        if not shared:
            raise InputError(f"{short.spec.name} and {self.spec.name} share no candidate")
        made = copy.copy(self)
        made._networks = self._networks | {
            seed: self.networks[seed].with_short(pairs[seed]) for seed in shared
        }
        made.short = short
        return made

    def score(self, criterion: str, outcome: Outcome | None = None) -> Score:
        """A criterion's scores of all networks, in the order of ``candidates``.

        They are NaN where a network is not yet scored, or has no shorter retraining.
        """
        scored = {s: one for s, one in self.networks.items() if criterion in one.score_columns}
        known = {s: one.score(criterion, outcome) for s, one in (scored or self.networks).items()}
        each = [
            known[seed].values if seed in known else np.full(len(one.candidates), np.nan)
            for seed, one in self.networks.items()
        ]
        first = next(iter(known.values()))
        return Score(np.concatenate(each), first.label, first.higher_is_chosen)

    def points(
        self, criterion: str = "oracle", column: str | None = None, rule: str = "last"
    ) -> pd.DataFrame:
        """The rows of :meth:`Results.points` of every network, with its ``dense_seed``."""
        self._check_retrained()
        return self._joined(
            lambda one: one.points(criterion, column, rule), self._with_scores([criterion])
        )

    def relation(
        self, criterion: str = "oracle", column: str | None = None, rule: str = "last"
    ) -> Relation:
        """The statistics of one criterion against one outcome, over the networks."""
        self._check_retrained()
        each = self._compared(column, rule, [criterion])
        return mean_relation([one.relation(criterion, column, rule) for one, _ in each])

    def candidate_tables(
        self,
        column: str | None = None,
        rule: str = "last",
        criteria: Sequence[str] | None = None,
    ) -> list[CandidateTable]:
        """What the statistics read: one table per network whose candidates can be compared.

        They can where two have an outcome, and not all the same one. Where there is no such
        network, the tables are those of all of which any candidate is retrained.
        """
        self._check_retrained()
        names = self.criteria if criteria is None else criteria
        return [table for _, table in self._compared(column, rule, names)]

    def _compared(
        self, column: str | None, rule: str, names: Sequence[str]
    ) -> list[tuple[Results, CandidateTable]]:
        begun = self._with_scores(names).values()
        tables = [(one, one.table(column, rule, names)) for one in begun]
        return [(one, table) for one, table in tables if _can_be_compared(table)] or tables

    def table(
        self,
        column: str | None = None,
        rule: str = "last",
        criteria: Sequence[str] | None = None,
    ) -> CandidateTable:
        """Raises :class:`InputError`: candidates of different networks are not compared."""
        raise self._of_one("table")

    def ranking(self, criterion: str = "oracle", sampled: int = 1000, seed: int = 0) -> Ranking:
        """Raises :class:`InputError`: a ranking is of the candidates of one network."""
        raise self._of_one("ranking")

    def replay(self, criterion: str | None = None, by: str | None = None) -> pd.DataFrame:
        """Raises :class:`InputError`: a search is among the candidates of one network."""
        raise self._of_one("replay")

    def _of_one(self, method: str) -> InputError:
        seed = next(iter(self.networks))
        return InputError(
            f"{self.spec.name} is over {many(len(self.spec.networks), 'dense network')}, and "
            f"{method} is of one: results.networks[{seed}].{method}(…), or in a command --set "
            f"'dense.seeds=[{seed}]'"
        )

    def plot(
        self, criterion: str = "oracle", column: str | None = None, rule: str = "last"
    ) -> Figure:
        """One scatter for each network, as one matplotlib figure."""
        from trueoracle.figures.panel import draw_panel, panel_data

        self._check_retrained()
        outcome = self.outcome(column, rule)
        known = self._with_scores([criterion])
        found = {seed: one.points(criterion, column, rule) for seed, one in known.items()}
        return draw_panel(
            panel_data(
                [
                    (f"dense network {seed}", one["score"].to_numpy(), one["outcome"].to_numpy())
                    for seed, one in found.items()
                ],
                higher_is_better=outcome.higher_is_better,
                x_label=self.score(criterion, outcome).label,
                y_label=outcome.axis,
                title=titled(self.spec),
            )
        )

    def status(self) -> dict[str, Any]:
        """How far the study is, as plain values, and how far each network is (``networks``)."""
        each = [one.status() for one in self.networks.values()]
        return status_of_networks(self.folder, self.spec, each)


def _can_be_compared(table: CandidateTable) -> bool:
    """Whether outcomes differ, also among those that a short retraining has scored."""
    known = np.isfinite(table.outcome)
    if SHORT in table.scores:
        known &= np.isfinite(table.scores[SHORT])
    return len(np.unique(table.outcome[known])) > 1


def _mean_dense(each: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The means of the networks' numbers; of anything else, all of its values."""
    if not each:
        return None
    return {name: _mean(one[name] for one in each) for name in each[0]}


def _mean(values: Iterable[Any]) -> Any:
    known = list(values)
    if all(one == known[0] for one in known):
        return known[0]
    if all(isinstance(one, int | float) for one in known):
        return float(np.mean(known))
    return " ".join(map(str, known))
