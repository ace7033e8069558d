"""Searches among networks that are all retrained already: what a budget would cost in quality.

An engineer retrains once, so each search sees the curves of one retraining seed. The choice is
judged twice: by that seed's own network, which would be used, and by the mean over the other seeds,
which the search has not seen. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import gammaln

from trueoracle.analysis.outcomes import Outcome, default_outcomes, find_outcome
from trueoracle.errors import InputError, unknown
from trueoracle.search.schedule import ETA
from trueoracle.search.strategies import STRATEGIES, Strategy, choose, find_strategy
from trueoracle.tasks.metric import Metric, columns_of

__all__ = ["BUDGETS", "replay", "selection_metric"]

BUDGETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the full budget, which retrains every candidate."""

_INTERVAL = (0.025, 0.975)


def selection_metric(by: str | None, metrics: Sequence[Metric], *, has_validation: bool) -> str:
    """The column that a search compares: ``by``, or validation loss where there is a split for it.

    ``metrics`` are the task's. Any of them may be compared on the validation split, and the loss on
    the training split. None may be compared on the test split, since no choice is made on it.
    Raises :class:`InputError` for any other column, and for one of a split that is missing.
    """
    train_loss = f"train_{metrics[0].name}"
    validation = [f"validation_{metric.name}" for metric in metrics]
    if by is None:
        return validation[0] if has_validation else train_loss
    allowed = [*validation, train_loss]
    if by not in allowed:
        if by not in columns_of(metrics):
            raise unknown("metric of a search", by, allowed)
        raise InputError(
            f"a search does not choose by {by}: take {', '.join(allowed[:-1])} or {allowed[-1]}"
        )
    if by in validation and not has_validation:
        raise InputError(f"{by} needs a validation split: set data.validation_images")
    return by


def replay(
    outcomes: pd.DataFrame,
    scores: pd.Series,
    *,
    metrics: Sequence[Metric],
    epochs: int,
    by: str | None = None,
    budgets: Iterable[float] = BUDGETS,
    strategies: Sequence[str] = tuple(STRATEGIES),
    eta: float = ETA,
    draws: int = 100,
    pruned: np.ndarray | None = None,
) -> pd.DataFrame:
    """Budget against regret, of searches on recorded curves.

    - ``outcomes``: one row per candidate, seed and epoch (``Results.outcomes``), with the columns
      of the task's ``metrics``;
    - ``scores``: those of the criterion that orders the candidates, by the candidates' ids;
    - ``epochs``: those of the recipe;
    - ``by``: the column that is compared (:func:`selection_metric`);
    - ``pruned`` ``[P, F]``: which filters each candidate prunes; without it, strategies that learn
      from it are left out;
    - ``draws``: how many orders ``random-halving`` draws per seed.

    The table has one row per strategy, budget, ``outcome`` (the column compared, and the task's
    default outcomes) and ``network`` (``own``: of the seed that was searched; ``other seeds``: the
    mean of the others):

    - ``share``, ``budget``: what may be spent, as a share of the full budget and in epochs of one
      candidate; ``spent``, ``spent_share``: what is spent;
    - ``regret``: how much better than the choice the best candidate is, on average over all
      searches; ``low`` to ``high``: the middle 95 % of searches (seeds × random orders; for
      ``random``, all orders by their chances), NaN where there is a single search;
    - ``rank``: the mean rank of the chosen candidate (1 is the best; equal ones share the better);
    - ``in_top``: the share of searches whose choice is among the best 1 % (or, of fewer than 200
      candidates, the best one); ``searches``: how many seeds were searched.

    A network that diverged counts as the worst that did not. Raises :class:`InputError` where no
    seed has every candidate retrained.
    """
    has_validation = bool(outcomes[f"validation_{metrics[0].name}"].notna().any())
    chosen_by = selection_metric(by, metrics, has_validation=has_validation)
    judged = dict.fromkeys((chosen_by, *default_outcomes(metrics)))
    of = [find_outcome(metrics, column) for column in judged]
    record = _Record.of(outcomes, list(scores.index), epochs, of)
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
    """Recorded values as costs: their sign is turned so that lower is better.

    ``curves[seed]`` ``[P, epochs]`` are the values of the compared column; ``final[column]``
    ``[seeds, P]`` are those of the last epoch.
    """

    seeds: tuple[int, ...]
    curves: Mapping[int, np.ndarray]
    final: Mapping[str, np.ndarray]

    @classmethod
    def of(
        cls, outcomes: pd.DataFrame, ids: list[str], epochs: int, judged: Sequence[Outcome]
    ) -> _Record:
        """The record of the outcomes ``judged``, of which the first is compared."""
        begun = outcomes[outcomes["epoch"] == 0]
        complete = begun[begun["candidate"].isin(ids)].groupby("seed")["candidate"].nunique()
        seeds = tuple(int(seed) for seed in complete.index[complete == len(ids)])
        if not seeds:
            raise InputError(
                "a replay needs every candidate retrained with one seed at least: 'trueoracle run' "
                "goes on"
            )
        curves = {
            one.column: {seed: _curve(outcomes, ids, seed, epochs, one) for seed in seeds}
            for one in judged
        }
        final = {
            column: np.stack([_finite(curve[:, -1]) for curve in own.values()])
            for column, own in curves.items()
        }
        return cls(seeds, curves[judged[0].column], final)


def _curve(
    outcomes: pd.DataFrame, ids: list[str], seed: int, epochs: int, outcome: Outcome
) -> np.ndarray:
    """The costs ``[P, epochs]`` of one seed; NaN where a network diverged."""
    own = outcomes[outcomes["seed"] == seed]
    table = own.pivot(index="candidate", columns="epoch", values=outcome.column)
    values = table.reindex(index=ids, columns=range(epochs)).to_numpy(dtype=float)
    loss = f"train_{outcome.metrics[0].name}"
    losses = own.pivot(index="candidate", columns="epoch", values=loss)
    diverged = ~np.isfinite(losses.reindex(index=ids, columns=range(epochs)).to_numpy(dtype=float))
    cost = -values if outcome.higher_is_better else values
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
    """The probability ``[P]`` that each candidate is chosen."""
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
    """The exact chance of each candidate to be the best of ``drawn`` random ones.

    Equal candidates have the same chance, since the first in a random order is taken.
    """
    count = len(costs)
    comparable = np.where(np.isfinite(costs), costs, np.inf)
    place = np.argsort(np.argsort(comparable, kind="stable"))
    worse = count - 1 - place  # candidates among which the others must be drawn
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
    """The worth of the choices by each outcome of the seed's own network and of the other seeds."""
    rows: list[dict[str, object]] = []
    weights = np.concatenate(found) / len(found)
    for column, values in record.final.items():
        targets = {"own": values}
        if len(values) > 1:
            total = values.sum(axis=0)
            targets["other seeds"] = (total - values) / (len(values) - 1)
        for network, target in targets.items():
            regret = target - target.min(axis=1, keepdims=True)
            rank = 1 + (target[:, None, :] < target[:, :, None]).sum(axis=2)
            top = rank <= max(1, target.shape[1] // 100)
            low, high = math.nan, math.nan
            if len(found) > 1 or np.count_nonzero(weights) > 1:  # more than one search
                low, high = _quantiles(regret.ravel(), weights)
            rows.append(
                {
                    "outcome": column,
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
