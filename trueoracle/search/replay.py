"""Searches among networks that were all retrained: what a budget would have cost in quality.

An engineer retrains once: each search sees the curves of one retraining seed. How good its choice
is, is read twice: from that seed's own network, which would be used, and from the mean over the
other seeds, which no luck of the choosing has touched. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaln

from trueoracle.analysis.outcomes import METRICS, higher_is_better
from trueoracle.errors import InputError, unknown
from trueoracle.search.schedule import ETA
from trueoracle.search.strategies import STRATEGIES, Strategy, choose, find_strategy

__all__ = ["BUDGETS", "OUTCOMES", "replay", "selection_metric"]

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the full budget, which retrains every candidate."""

OUTCOMES = ("test_accuracy", "test_loss")
"""What the choice is judged by, beside the metric that it was made by."""

SELECTORS = ("validation_loss", "validation_accuracy", "train_loss")
"""What may be compared in a search: never the test images."""

_INTERVAL = (0.025, 0.975)


def selection_metric(by: str | None, *, has_validation: bool) -> str:
    """The metric that a search compares: ``by``, or validation loss where there is a split for it.

    Raises :class:`InputError` for a metric of the test images, and for one of a split that is
    missing.
    """
    if by is None:
        return "validation_loss" if has_validation else "train_loss"
    if by not in SELECTORS:
        if by not in METRICS:
            raise unknown("metric of a search", by, SELECTORS)
        raise InputError(
            f"a search does not choose by {by}: take {', '.join(SELECTORS[:-1])} or {SELECTORS[-1]}"
        )
    if by.startswith("validation") and not has_validation:
        raise InputError(f"{by} needs a validation split: set data.validation_images")
    return by


def replay(
    outcomes: pd.DataFrame,
    scores: pd.Series,
    *,
    epochs: int,
    by: str | None = None,
    budgets: Iterable[float] = BUDGETS,
    strategies: Sequence[str] = tuple(STRATEGIES),
    eta: float = ETA,
    draws: int = 100,
    pruned: np.ndarray | None = None,
) -> pd.DataFrame:
    """Budget against regret, of searches on recorded curves.

    ``outcomes`` has one row a candidate, seed and epoch (``Results.outcomes``), ``scores`` the
    criterion that orders the candidates, by their ids; ``epochs`` are those of the recipe;
    ``pruned`` ``[P, F]`` says which filters each prunes, without which strategies that learn from
    it are left out. One row a strategy, budget, ``outcome`` (the metric compared by, and those of
    ``OUTCOMES``) and ``network`` (``own``: of the seed that was searched; ``other seeds``: the mean
    of the rest):

    - ``share``, ``budget``: what may be spent, of the full budget and in epochs of one candidate;
      ``spent``, ``spent_share``: what is;
    - ``regret``: how much better the best candidate is, the mean over all searches, and ``low``,
      ``high``: the middle 95 % of searches (seeds × random orders; exact for ``random``), NaN of a
      single one;
    - ``rank``: the mean of the chosen candidate's (1 is the best; equal ones share the better);
    - ``in_top``: the share of searches whose choice is among the best 1 % (of fewer than 200
      candidates: is the best one); ``searches``: how many seeds were searched.

    A network that diverged counts as the worst that did not. ``random-halving`` draws ``draws``
    orders a seed. Raises :class:`InputError` where no seed has every candidate retrained.
    """
    chosen_by = selection_metric(by, has_validation=bool(outcomes["validation_loss"].notna().any()))
    record = _Record.of(outcomes, list(scores.index), epochs, chosen_by)
    count = len(scores)
    rows = []
    for share in budgets:
        budget = int(share * count * epochs + 1e-6)
        if budget < epochs:
            continue
        for name in strategies:
            strategy = find_strategy(name)
            if strategy.learns and pruned is None:
                continue
            schedule = strategy.plan(count, epochs, budget, eta)
            found = [
                _search(record, seed, strategy, scores, budget, eta, draws, pruned)
                for seed in record.seeds
            ]
            facts = {"strategy": name, "share": share, "budget": budget, "spent": schedule.cost}
            facts["spent_share"] = schedule.cost / (count * epochs)
            rows += [facts | row for row in _judged(record, found)]
    if not rows:
        raise InputError(
            f"none of the budgets finishes a network: {epochs} of {count * epochs:,} epochs do"
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Record:
    """Recorded values as costs, lower being better.

    ``curves[seed]`` ``[P, epochs]`` are of the metric that is compared; ``final[metric]``
    ``[seeds, P]``.
    """

    seeds: tuple[int, ...]
    curves: Mapping[int, np.ndarray]
    final: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, outcomes: pd.DataFrame, ids: list[str], epochs: int, by: str) -> _Record:
        begun = outcomes[outcomes["epoch"] == 0]
        complete = begun[begun["candidate"].isin(ids)].groupby("seed")["candidate"].nunique()
        seeds = tuple(int(seed) for seed in complete.index[complete == len(ids)])
        if not seeds:
            raise InputError(
                "a replay needs every candidate retrained with one seed at least: 'trueoracle run' "
                "goes on"
            )
        metrics = dict.fromkeys((by, *OUTCOMES))
        tables = {
            metric: {seed: _curve(outcomes, ids, seed, epochs, metric) for seed in seeds}
            for metric in metrics
        }
        final = {
            metric: np.stack([_finite(one[:, -1]) for one in table.values()])
            for metric, table in tables.items()
        }
        return cls(seeds, tables[by], final)


def _curve(
    outcomes: pd.DataFrame, ids: list[str], seed: int, epochs: int, metric: str
) -> np.ndarray:
    own = outcomes[outcomes["seed"] == seed]
    table = own.pivot(index="candidate", columns="epoch", values=metric)
    values = table.reindex(index=ids, columns=range(epochs)).to_numpy(dtype=float)
    losses = own.pivot(index="candidate", columns="epoch", values="train_loss")
    diverged = ~np.isfinite(losses.reindex(index=ids, columns=range(epochs)).to_numpy(dtype=float))
    cost = -values if higher_is_better(metric) else values
    return np.where(diverged, np.nan, cost)


def _finite(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).any():
        raise InputError("every network of a seed diverged: there is nothing to choose")
    worst: float = np.nanmax(np.where(np.isfinite(values), values, np.nan))
    return np.where(np.isfinite(values), values, worst)


def _search(
    record: _Record,
    seed: int,
    strategy: Strategy,
    scores: pd.Series,
    budget: int,
    eta: float,
    draws: int,
    pruned: np.ndarray | None,
) -> np.ndarray:
    """How probable it is that each candidate is chosen, ``[P]``."""
    curve = record.curves[seed]
    count, epochs = curve.shape
    schedule = strategy.plan(count, epochs, budget, eta)
    chance = np.zeros(count)
    if strategy.order == "random" and len(schedule.rungs) == 1:
        return _best_of_random(curve[:, -1], schedule.rungs[0].candidates)
    orders = range(draws) if strategy.order == "random" else range(1)
    for draw in orders:
        order = strategy.ordered(scores.to_numpy(dtype=float), scores.index.tolist(), seed=draw)
        course = choose(
            order,
            schedule,
            lambda chosen, end: curve[chosen, end - 1].tolist(),
            pruned if strategy.learns else None,
        )
        chance[course.chosen] += 1 / len(orders)
    return chance


def _best_of_random(costs: np.ndarray, drawn: int) -> np.ndarray:
    """The chance of each candidate to be the best of ``drawn`` random ones, exactly.

    Of equal ones each has the same, since the first in a random order is taken.
    """
    count = len(costs)
    comparable = np.where(np.isfinite(costs), costs, np.inf)
    place = np.argsort(np.argsort(comparable, kind="stable"))
    worse = count - 1 - place  # the others that are drawn are among these
    with np.errstate(invalid="ignore"):
        logarithm = _log_choose(worse, drawn - 1) - _log_choose(np.array(count), drawn)
    chance = np.where(worse >= drawn - 1, np.exp(logarithm), 0.0)
    _, block = np.unique(comparable, return_inverse=True)
    mean: np.ndarray = np.bincount(block, chance) / np.bincount(block)
    return mean[block]


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    found: np.ndarray = gammaln(n + 1.0) - gammaln(k + 1.0) - gammaln(np.maximum(n - k, 0) + 1.0)
    return found


def _judged(record: _Record, found: Sequence[np.ndarray]) -> list[dict[str, object]]:
    """What the choices are worth, by each outcome, in the own network and in the other seeds'."""
    rows: list[dict[str, object]] = []
    weights = np.concatenate(found) / len(found)
    for metric, values in record.final.items():
        targets = {"own": values}
        if len(values) > 1:
            total = values.sum(axis=0)
            targets["other seeds"] = (total - values) / (len(values) - 1)
        for network, target in targets.items():
            regret = target - target.min(axis=1, keepdims=True)
            rank = 1 + (target[:, None, :] < target[:, :, None]).sum(axis=2)
            top = rank <= max(1, target.shape[1] // 100)
            low, high = math.nan, math.nan
            if len(found) > 1 or np.count_nonzero(weights) > 1:  # more searches than one
                low, high = _quantiles(regret.ravel(), weights)
            rows.append(
                {
                    "outcome": metric,
                    "network": network,
                    "regret": float(regret.ravel() @ weights),
                    "low": low,
                    "high": high,
                    "rank": float(rank.ravel() @ weights),
                    "in_top": float(top.ravel() @ weights),
                    "searches": len(found),
                }
            )
    return rows


def _quantiles(values: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    first, last = (int(np.searchsorted(below, share * below[-1] - 1e-12)) for share in _INTERVAL)
    return float(values[order][first]), float(values[order][last])
