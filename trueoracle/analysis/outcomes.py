"""From recorded epochs to one outcome per candidate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from trueoracle.analysis.numbers import many
from trueoracle.errors import InputError, unknown
from trueoracle.tasks.metric import SPLITS, Metric, columns_of, headline

__all__ = [
    "RULES",
    "Outcome",
    "baseline_in_words",
    "chance_in_words",
    "check_rule",
    "default_outcomes",
    "failures_in_words",
    "final_outcomes",
    "find_outcome",
    "noise_in_words",
    "rule_in_words",
    "seed_outcomes",
    "shared_outcomes",
]

RULES = ("last", "last-5", "best-on-validation", "best-on-test")
"""Which epochs count; :func:`rule_in_words` says what each takes."""


@dataclass(frozen=True)
class Outcome:
    """What becomes of a retrained network, as one number: a metric on one split.

    - ``column``: the column of the recorded epochs that holds it;
    - ``split``, ``metric``: where and what is measured;
    - ``metrics``: all metrics of the task, of which the first is the loss;
    - ``rule``: which epochs count, one of :data:`RULES`.
    """

    column: str
    split: str
    metric: Metric
    metrics: tuple[Metric, ...]
    rule: str = "last"

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return self.metric.higher_is_better

    @property
    def label(self) -> str:
        """The outcome's name without its rule: ``"test loss"``."""
        return f"{self.split} {self.metric.label}"

    @property
    def name(self) -> str:
        """The outcome's name in sentences, which says the rule unless it is the last epoch."""
        return f"final {self.label}" if self.rule == "last" else f"{self.label} ({self.rule})"

    @property
    def axis(self) -> str:
        """The label of a figure's axis: the name with its unit."""
        return f"{self.name} ({self.metric.unit})" if self.metric.unit else self.name

    @property
    def rule_in_words(self) -> str:
        """Which epochs count, in words."""
        return rule_in_words(self.rule, self.metrics)


def find_outcome(metrics: Sequence[Metric], column: str, rule: str = "last") -> Outcome:
    """The outcome of a column; raises :class:`InputError` for an unknown column or rule."""
    check_rule(rule)
    for split in SPLITS:
        for metric in metrics:
            if column == f"{split}_{metric.name}":
                return Outcome(column, split, metric, tuple(metrics), rule)
    raise unknown("metric", column, columns_of(metrics))


def default_outcomes(metrics: Sequence[Metric]) -> tuple[str, ...]:
    """The columns that are analysed by default: headline metric and loss on the test split.

    Both are analysed, since they can disagree where pruning regularises.
    """
    return tuple(dict.fromkeys(f"test_{one.name}" for one in (headline(metrics), metrics[0])))


def chance_in_words(outcome: Outcome, value: float | None, chance: float | None) -> str:
    """A warning of a dense network that is hardly better than chance; empty for any other.

    ``chance`` is the value of a network that has learnt nothing. A value that is better by no more
    than half of ``chance`` counts as chance. Empty where either is not known.
    """
    if value is None or chance is None or not (math.isfinite(value) and math.isfinite(chance)):
        return ""
    slack = abs(chance) / 2
    is_better = value > chance + slack if outcome.higher_is_better else value < chance - slack
    if is_better:
        return ""
    return (
        f"the dense network is hardly better than chance: {outcome.label} {value:.3g}, and "
        f"guessing gives {chance:.3g}; what follows says little about pruning"
    )


def noise_in_words(noise: Mapping[str, float], unit: str) -> str:
    """A warning of pruned losses that hardly differ; empty where they do.

    ``noise`` is what :func:`trueoracle.criteria.noise.loss_noise` gives. Losses hardly differ where
    their range is no wider than that of candidates without any difference could be.
    """
    if noise["range"] > noise["noise"]:
        return ""
    count, examples = int(noise["candidates"]), int(noise["examples"])
    return (
        f"the pruned losses of {count:,} candidates range over {noise['range']:.2g}"
        f"{f' {unit}' if unit else ''}, which is within the noise of the {examples:,} examples "
        f"measured: candidates that do not differ would range over up to {noise['noise']:.2g} "
        f"(standard error of a difference: {noise['standard_error']:.2g}), so there is little to "
        "rank"
    )


def baseline_in_words(outcome: Outcome, value: float | None, data: Mapping[str, Any]) -> str:
    """A warning of a dense network that is no better than what needs no network; else empty.

    ``data`` holds a record's facts of its data. Its ``baselines`` are values by split, each with
    the name of its metric and a label that says how the value comes about.
    """
    for baseline in data.get("baselines") or ():
        known = baseline.get(outcome.split)
        if baseline.get("metric") != outcome.metric.name or None in (known, value):
            continue
        if value <= known if outcome.higher_is_better else value >= known:
            return (
                f"the dense network is no better than guessing {baseline['label']}: "
                f"{outcome.label} {value:.3g}, and that gives {known:.3g}"
            )
    return ""


def check_rule(rule: str) -> None:
    """Raise :class:`InputError` for an unknown rule."""
    if rule not in RULES:
        raise unknown("outcome rule", rule, RULES)


def rule_in_words(rule: str, metrics: Sequence[Metric]) -> str:
    """Which epochs a rule takes; raises :class:`InputError` for an unknown one."""
    check_rule(rule)
    best = headline(metrics).label
    return {
        "last": "last epoch",
        "last-5": "mean of the last 5 epochs",
        "best-on-validation": f"epoch of lowest validation {metrics[0].label}",
        "best-on-test": f"epoch of best test {best}: chosen on the test set, as in the paper",
    }[rule]


def failures_in_words(errors: Iterable[str], total: int) -> str:
    """How many of ``total`` retrainings failed, and by which errors; empty where none did."""
    counts = Counter(errors)
    if not counts:
        return ""
    (first, often), *others = counts.most_common()
    share = f" ({often:,} times)" if others else ""
    more = f", and {many(len(others), 'other error')}" if others else ""
    failed = counts.total()
    return f"{failed:,} of {many(total, 'retraining')} failed: {first}{share}{more}"


def seed_outcomes(epochs: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """One outcome for each retraining: a table of candidates × seeds.

    ``epochs`` has the columns candidate, seed, epoch and the metrics'. A retraining that diverged
    (a train loss that is not finite) has no outcome: NaN.
    """
    loss = outcome.metrics[0].name
    rule = outcome.rule
    if rule == "best-on-validation" and epochs[f"validation_{loss}"].isna().all():
        raise InputError("outcome rule 'best-on-validation' needs a validation split")
    keys = ["candidate", "seed"]
    epochs = epochs.sort_values("epoch", kind="stable")
    if rule == "last":
        values = epochs.drop_duplicates(keys, keep="last")
    elif rule == "last-5":
        tail = epochs.groupby(keys, sort=False).tail(5)
        values = tail.groupby(keys, sort=False)[outcome.column].mean().reset_index()
    else:
        best = headline(outcome.metrics)
        by, higher = f"validation_{loss}", False
        if rule == "best-on-test":
            by, higher = f"test_{best.name}", best.higher_is_better
        ranked = epochs.sort_values(by, ascending=not higher, kind="stable")
        values = ranked.drop_duplicates(keys)
    table = values.pivot(index="candidate", columns="seed", values=outcome.column)
    diverged = epochs[~np.isfinite(epochs[f"train_{loss}"])]
    for candidate, seed in zip(diverged["candidate"], diverged["seed"], strict=True):
        table.loc[candidate, seed] = float("nan")
    return table


def final_outcomes(epochs: pd.DataFrame, outcome: Outcome) -> pd.Series:
    """The mean over seeds of :func:`seed_outcomes`, by candidate.

    The means of all candidates are over the same seeds, so that what a seed does to all of them
    makes no difference between them. These are the seeds with which every candidate has been
    retrained or, where there is none yet, the seed with the most retrainings. NaN where a candidate
    lacks one of these retrainings or diverged in it.
    """
    outcomes: pd.Series = shared_outcomes(epochs, outcome).mean(axis=1, skipna=False)
    return outcomes.rename("outcome")


def shared_outcomes(epochs: pd.DataFrame, outcome: Outcome) -> pd.DataFrame:
    """The columns of :func:`seed_outcomes` over which :func:`final_outcomes` takes the mean."""
    table = seed_outcomes(epochs, outcome)
    recorded = epochs.groupby(["candidate", "seed"]).size().unstack().reindex_like(table)
    counts = recorded.notna().sum()
    most = counts[counts == counts.max()].index
    shared: pd.DataFrame = table[most if counts.max() == len(table) else most[:1]]
    return shared
