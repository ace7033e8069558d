"""A search within a study's folder: what it needs from the study, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pandas import isna
from torch import nn

from trueoracle.analysis.numbers import finite_or_none, many
from trueoracle.analysis.outcomes import find_outcome
from trueoracle.analysis.table import pruned_filters
from trueoracle.data.datasets import DATASETS, dataset_info
from trueoracle.engines.choose import Plan
from trueoracle.errors import InputError, NotApplicableError, unknown
from trueoracle.executors.base import ChunkExecutor, as_executor
from trueoracle.networks.fitting import plain_config
from trueoracle.record.layout import COSTS
from trueoracle.record.lock import locked
from trueoracle.record.paths import DENSE, SEARCHES
from trueoracle.record.results import Results
from trueoracle.run.around import candidates_for
from trueoracle.run.chunks import Shared, threads
from trueoracle.run.dense import read_dense
from trueoracle.run.drive import check_executor
from trueoracle.run.prepare import Prepared
from trueoracle.run.progress import Progress
from trueoracle.run.retrain import check_retraining, plan_networks
from trueoracle.run.runner import score
from trueoracle.search.export import Origin, export
from trueoracle.search.live import Search, SearchRecord, check_memory, folder_name
from trueoracle.search.replay import selection_metric
from trueoracle.search.schedule import ETA, Schedule, parse_budget
from trueoracle.search.settings import SearchSettings
from trueoracle.search.strategies import BATCHES, LEAST_BATCH, Strategy, choose, find_strategy
from trueoracle.spec.spec import DataSpec
from trueoracle.tasks.base import TARGETS
from trueoracle.tasks.metric import Metric
from trueoracle.training.loop import EpochRecord

__all__ = ["SearchResult", "search"]


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult:
    """One pruned network, and how it was chosen.

    - ``chosen`` is the candidate's id, ``pruned`` what it prunes;
    - ``dense`` has the dense network's metrics, ``parameters`` and ``macs``; ``cost`` the chosen
      one's ``parameters`` and ``macs`` (for one example), None where they are not recorded;
    - ``latency`` is what the study has measured (:attr:`Results.latency`), of the candidate of
      median MACs; None where it has not;
    - ``outcome`` has the network's ``metrics`` on every split after the last epoch, of which the
      search compared ``by`` alone;
    - ``history`` has one row per candidate and epoch: ``candidate``, ``rung`` (from 1), ``epoch``
      (from 0), the learning rate and all metrics;
    - ``budget``, ``spent`` and ``full_budget`` count epochs of one candidate; ``seconds`` is the
      time that training took; where the study has retrained every candidate, the choice is
      ``from_record``, and nothing is trained for it;
    - ``folder`` keeps the search;
    - ``normalised`` has the means and standard deviations per channel by which images were
      normalised, where the data set has a name;
    - ``files`` has the texts of files that belong to the network, by name, such as a tokenizer that
      was trained for it.
    """

    study: str
    chosen: str
    pruned: Mapping[str, Any]
    dense: Mapping[str, Any]
    cost: Mapping[str, int | None]
    latency: Mapping[str, Any] | None
    outcome: EpochRecord
    history: pd.DataFrame
    schedule: Schedule
    strategy: str
    criterion: str
    by: str
    seed: int
    budget: int
    full_budget: int
    seconds: float
    engine: str
    folder: Path
    origin: Origin
    normalised: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    files: Mapping[str, str]
    from_record: bool
    train: Callable[[], nn.Module]

    @cached_property
    def network(self) -> nn.Module:
        """The chosen candidate's retrained network, in evaluation mode.

        Where the choice is ``from_record``, it is retrained when it is first asked for: a record
        holds outcomes, not weights.
        """
        return self.train()

    def __repr__(self) -> str:
        return (
            f"<SearchResult of {self.study}: candidate {self.chosen}, {self.by} "
            f"{self.outcome.values[self.by]:.4g}, {self.spent:,} of {self.full_budget:,} epochs>"
        )

    @property
    def spent(self) -> int:
        return self.schedule.cost

    @property
    def compared(self) -> Metric:
        """The metric that the search compared, on the split that ``by`` names."""
        return find_outcome(self.metrics, self.by).metric

    def export(self, path: str | Path) -> Path:
        """Write the network: ``.safetensors`` (for ``trueoracle.load``), ``.onnx`` or ``.pt2``.

        A path without an ending is a folder for transformers. Raises :class:`InputError` for any
        other ending, and where the network cannot be written in that format.
        """
        facts = {
            "study": self.study,
            "candidate": self.chosen,
            "outcome": finite_or_none(self.outcome.as_row()),
            "normalised": dict(self.normalised),
        }
        return export(self.network, Path(path), self.origin, facts, self.files)

    def as_dict(self) -> dict[str, Any]:
        """The result as plain values, with each rung's candidates and their values."""
        last = self.history.groupby(["rung", "candidate"], sort=False).tail(1)
        rungs = [
            {
                "epochs": rung.epochs,
                "candidates": [
                    {"candidate": name, self.by: value}
                    for name, value in zip(own["candidate"], own[self.by], strict=True)
                ],
            }
            for rung, (_, own) in zip(self.schedule.rungs, last.groupby("rung"), strict=True)
        ]
        for rung in rungs:
            rung["candidates"] = [finite_or_none(one) for one in rung["candidates"]]  # type: ignore[attr-defined]
        return {
            "study": self.study,
            "chosen": self.chosen,
            "pruned": dict(self.pruned),
            "outcome": finite_or_none(self.outcome.as_row()),
            "dense": finite_or_none(dict(self.dense)),
            **self.cost,
            "latency": None if self.latency is None else dict(self.latency),
            "from_record": self.from_record,
            "strategy": self.strategy,
            "criterion": self.criterion,
            "by": self.by,
            "seed": self.seed,
            "budget": self.budget,
            "spent": self.spent,
            "full_budget": self.full_budget,
            "rungs": rungs,
            "seconds": self.seconds,
            "engine": self.engine,
            "folder": str(self.folder),
        }


def search(
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    wanted: SearchSettings,
    *,
    eta: float = ETA,
    engine: str = "auto",
    memory: int | None = None,
    executor: Executor | None = None,
) -> SearchResult:
    """Choose one candidate of a study and retrain it, for at most the budget that is ``wanted``.

    The strategy ``full`` has the full budget by default. ``engine`` and ``memory`` are those of
    :func:`trueoracle.engines.choose.plan`; ``executor`` trains the candidates, by default this
    process. The dense network, scores and, where every candidate is retrained with the search's
    seed, outcomes are taken from the record in ``folder``; else they are made. A search that was
    stopped goes on where it stopped. Raises :class:`InputError` before any long work.
    """
    spec, candidates, recipe = prepared.spec, prepared.candidates, prepared.spec.retraining
    if recipe.procedure is not None:
        raise InputError(
            f"retraining.procedure = {recipe.procedure!r}: a search trains candidates for some "
            "epochs at a time, and a procedure of one's own for all of them"
        )
    way = _strategy(prepared, wanted.strategy)
    priors, passed_over = _priors(prepared, way, wanted.criterion)
    metric = selection_metric(
        wanted.by,
        tuple(prepared.data.task.metrics),
        has_validation=prepared.data.validation is not None,
    )
    start = recipe.seeds[0] if wanted.seed is None else wanted.seed
    if not 0 <= start < 2**31:
        raise InputError(f"a seed is a whole number from 0 to {2**31 - 1}, got {start}")
    schedule, epochs = _planned(way, wanted.budget, len(candidates), recipe.epochs, eta)
    example = candidates.prune(prepared.network, 0)
    check_retraining(prepared, engine)
    workers = as_executor(executor)
    check_executor(prepared, workers)
    check_memory(example, schedule, prepared.device)

    prior = _recorded(prepared, folder, progress, priors, passed_over)
    made = _search_of(prepared, folder, progress, way, prior, schedule, metric, start)
    prepared = replace(prepared, candidates=made.candidates)
    candidates = made.candidates
    if metric == "train_loss" and wanted.by is None:
        progress.message("there is no validation split: the search compares train loss")
    full = len(candidates) * recipe.epochs
    steps = (f"{many(r.candidates, 'candidate')} until epoch {r.epochs}" for r in schedule.rungs)
    progress.message(
        f"search ({way.name}): {schedule.cost:,} of the {full:,} epochs that retrain all "
        f"({schedule.cost / full:.1%}): {', then '.join(steps)}"
    )
    recorded = Results(folder)

    def train(one: Search) -> tuple[SearchRecord, str, nn.Module]:
        with locked(folder, patience=1.0):
            return _carried_out(one, prepared, progress, engine, memory, workers)

    known = None if made.has_begun else _recorded_epochs(recorded, candidates.ids, start)
    if known is None:
        record, name, network = train(made)
        index = candidates.ids.index(name)
        trained = partial(nn.Module.eval, network)
    else:
        progress.message(f"read from the record: {many(full, 'epoch')} of seed {start}")
        record, index = _read(made, known)
        name = candidates.ids[index]
        trained = partial(lambda one: train(one)[2], made.of_one(index, recipe.epochs))
    dense, costs = recorded.dense or {}, recorded.candidates.set_index("candidate")
    return SearchResult(
        study=spec.name,
        chosen=name,
        pruned=candidates.pruned(index),
        dense={n: v for n, v in dense.items() if n in COSTS or n in record.epochs[name][-1].values},
        cost={n: None if isna(costs[n][name]) else int(costs[n][name]) for n in COSTS},
        latency=recorded.latency,
        outcome=record.epochs[name][-1],
        history=_history(record, schedule),
        schedule=schedule,
        strategy=way.name,
        criterion=prior,
        by=metric,
        seed=start,
        budget=epochs,
        full_budget=full,
        seconds=record.seconds,
        engine=record.engine,
        folder=made.folder,
        origin=_origin(prepared, index),
        normalised=_normalised(spec.data),
        files=prepared.data.files,
        metrics=tuple(prepared.data.task.metrics),
        from_record=known is not None,
        train=trained,
    )


def _recorded_epochs(
    recorded: Results, ids: Sequence[str], seed: int
) -> dict[str, list[EpochRecord]] | None:
    """Every candidate's epochs with one retraining seed; None where a candidate has none."""
    rows = recorded.outcomes[recorded.outcomes["seed"] == seed].sort_values("epoch")
    if not set(ids) <= set(rows["candidate"]):
        return None
    return {
        str(name): [
            EpochRecord.from_row({str(column): value for column, value in row.items()})
            for row in own.to_dict("records")
        ]
        for name, own in rows.drop(columns=["candidate", "seed"]).groupby(rows["candidate"])
    }


def _read(made: Search, known: Mapping[str, list[EpochRecord]]) -> tuple[SearchRecord, int]:
    """The course that the search takes in recorded epochs, and the candidate that it chooses."""
    ids = made.candidates.ids
    course = choose(
        made.order,
        made.schedule,
        lambda some, epochs: [made.value(known[ids[index]][:epochs]) for index in some],
        made.pruned,
    )
    record = SearchRecord(dict(made.settings), engine="record")
    record.rungs = [[ids[index] for index in rung] for rung in course.candidates]
    record.epochs = {name: known[name] for name in record.rungs[0]}
    made.check_chosen(record, ids[course.chosen])
    return record, course.chosen


def _planned(
    way: Strategy, budget: str | None, candidates: int, epochs: int, eta: float
) -> tuple[Schedule, int]:
    """The strategy's schedule, and the budget in epochs of one candidate."""
    affordable = parse_budget(budget, candidates, epochs)
    schedule = way.plan(candidates, epochs, affordable, eta)
    if schedule.cost <= affordable:
        return schedule, affordable
    if budget is not None:  # the strategy retrains every candidate, whatever the budget
        raise InputError(
            f"strategy {way.name!r} takes all {candidates * epochs:,} epochs, and the budget is "
            f"{affordable:,}: leave the budget out, or take another strategy"
        )
    return schedule, schedule.cost


def _search_of(
    prepared: Prepared,
    folder: Path,
    progress: Progress,
    way: Strategy,
    prior: str,
    schedule: Schedule,
    metric: str,
    seed: int,
) -> Search:
    """The search among the study's candidates, in the order that the scores of ``prior`` give."""
    recorded = Results(folder)
    dense = read_dense(prepared, folder, recorded.dense or {})
    prepared = candidates_for(prepared, dense, folder)
    candidates = prepared.candidates
    settings: dict[str, Any] = {
        "strategy": way.name,
        "criterion": prior or None,
        "by": metric,
        "seed": seed,
        "rungs": [[rung.candidates, rung.epochs] for rung in schedule.rungs],
        "outcome_digest": prepared.spec.outcome_digest,
    }
    pruned = None
    scores = _ordering_scores(recorded, prior, len(candidates), progress)
    if way.learns:
        pruned, _ = pruned_filters([candidates.pruned(i) for i in range(len(candidates))])
        settings["batches"] = [BATCHES, LEAST_BATCH]
    return Search(
        schedule,
        way.ordered(scores, candidates.ids, seed),
        Shared.of(prepared, dense),
        folder / DENSE,
        metric,
        seed,
        settings,
        folder / SEARCHES / folder_name(settings),
        pruned,
    )


def _ordering_scores(
    recorded: Results, prior: str, candidates: int, progress: Progress
) -> list[float]:
    """The scores that order the candidates; zeros where the order depends on no criterion."""
    if not prior:
        return [0.0] * candidates
    if prior not in recorded.scores or recorded.scores[prior].isna().all():
        raise InputError(f"criterion {prior!r} gave no score to order the candidates by")
    scores: list[float] = recorded.scores[prior].tolist()
    lowest = recorded.scores[prior].min()  # of those that are numbers
    if (tied := scores.count(lowest)) > 1:
        progress.message(
            f"{tied:,} candidates share the lowest score of {prior}: those that tie begin in "
            "the order of their ids"
        )
    return scores


def _strategy(prepared: Prepared, name: str | None) -> Strategy:
    """The named strategy; the default learns what to prune, but not for single weights."""
    whole = prepared.candidates.units != "weights"
    way = find_strategy(name or ("guided" if whole else "halving"))
    if way.learns and not whole:
        raise InputError(
            f"strategy {way.name!r} learns of the filters that candidates share, and this study "
            "prunes single weights: take 'halving'"
        )
    return way


def _priors(prepared: Prepared, way: Strategy, named: str | None) -> tuple[list[str], str]:
    """The criteria that may order the candidates, and why the study's first is not among them."""
    criteria, skipped = prepared.spec.criteria, prepared.skipped
    if named is not None and named not in criteria:
        raise unknown("criterion of this study", named, criteria)
    if way.order != "criterion":
        if named is not None:
            raise InputError(
                f"criterion {named!r} does nothing with strategy {way.name!r}, which begins with "
                f"{'random candidates' if way.order == 'random' else 'all candidates'}"
            )
        return [], ""
    if named is not None:
        if named in skipped:
            raise InputError(skipped[named])
        return [named], ""
    return [name for name in criteria if name not in skipped], skipped.get(criteria[0], "")


def _recorded(
    prepared: Prepared, folder: Path, progress: Progress, priors: list[str], passed_over: str
) -> str:
    """Record the dense network and the scores of the first of ``priors`` that applies.

    Returns that criterion's name.
    """
    for place, prior in enumerate(priors, start=1):
        if passed_over:
            progress.message(f"candidates are ordered by {prior}, since {passed_over}")
        try:
            score(prepared, folder, progress, criteria=(prior,))
        except NotApplicableError as reason:  # this can show only on all examples
            if place == len(priors):
                raise
            passed_over = str(reason)
        else:
            return prior
    score(prepared, folder, progress, criteria=())
    return ""


def _carried_out(
    made: Search,
    prepared: Prepared,
    progress: Progress,
    engine: str,
    memory: int | None,
    executor: ChunkExecutor,
) -> tuple[SearchRecord, str, nn.Module]:
    schedule = made.schedule
    known: dict[str, Plan] = {}
    began = False

    def planned(members: int, before: str) -> Plan:
        wanted = before if engine == "auto" and before else engine
        if wanted not in known:  # one trial of the engines is enough for all rungs
            with threads(executor.threads):
                known[wanted] = plan_networks(prepared, wanted, memory, members)
            known[known[wanted].engine] = known[wanted]
        return known[wanted]

    def on_rung(number: int, trained: int, how: str) -> None:
        nonlocal began
        if not began:
            steps = list(zip(schedule.rungs, schedule.starts, strict=True))
            done = sum(r.candidates * (r.epochs - start) for r, start in steps[:number])
            rung, start = steps[number]
            done += trained * (rung.epochs - start)
            progress.message(f"on {executor}, {how}" if executor.is_elsewhere else how)
            progress.stage("search", schedule.cost, done, "epochs")
            began = True

    return made.run(
        planned, executor, on_rung=on_rung, on_epoch=progress.advance, say=progress.message
    )


def _history(record: SearchRecord, schedule: Schedule) -> pd.DataFrame:
    rows = []
    for number, (rung, start, names) in enumerate(
        zip(schedule.rungs, schedule.starts, record.rungs, strict=True), start=1
    ):
        for name in names:
            own = [one for one in record.epochs[name] if start <= one.epoch < rung.epochs]
            # A network that diverged has no later records: its last one serves for later rungs.
            rows += [
                {"candidate": name, "rung": number, **one.as_row()}
                for one in own or record.epochs[name][-1:]
            ]
    return pd.DataFrame(rows)


def _normalised(data: DataSpec) -> dict[str, Any]:
    if data.fingerprint or data.name not in DATASETS:
        return {}
    info = dataset_info(data.name, path=data.path, image_size=data.image_size)
    return {"mean": list(info.mean), "std": list(info.std)}


def _origin(prepared: Prepared, index: int) -> Origin:
    network, data = prepared.spec.network, prepared.data
    few = data.train.take(torch.arange(3) % len(data.train)).fields
    pruned: dict[str, tuple[int, ...]] = {}
    if prepared.candidates.units != "weights":
        pruned = {
            name: tuple(int(one) for one in filters)
            for name, filters in prepared.candidates.pruned(index).items()
        }
    return Origin(
        name=None if network.fingerprint else network.name,
        arguments=dict(network.arguments),
        inputs={
            name: (tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
            for name, value in few.items()
            if name not in TARGETS
        },
        outputs=None if network.is_fixed else data.task.outputs(data.train),
        pruned=pruned,
        units=prepared.candidates.units,
        values={
            name: value.tolist()
            for name, value in few.items()
            if name not in TARGETS and not value.is_floating_point()
        },
        config=plain_config(prepared.network),
    )
