"""From recorded epochs to one outcome a candidate."""

from __future__ import annotations

import numpy as np
import pandas as pd

from trueoracle.errors import InputError, unknown

__all__ = [
    "METRICS",
    "RULES",
    "chance_in_words",
    "final_outcomes",
    "higher_is_better",
    "outcome_name",
    "rule_in_words",
    "seed_outcomes",
    "shared_outcomes",
]

METRICS = (
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
)

RULES = {
    "last": "last epoch",
    "last-5": "mean of the last 5 epochs",
    "best-on-validation": "epoch of lowest validation loss",
    "best-on-test": "epoch of best test accuracy: chosen on the test set, as in the paper",
}


_BEST = {"best-on-validation": ("validation_loss", True), "best-on-test": ("test_accuracy", False)}


def chance_in_words(accuracy: float | None, classes: int | None) -> str:
    """A warning of a dense network that is hardly better than chance; empty for any other.

    Up to 1.5 times the accuracy of guessing counts as chance. Empty where ``classes`` is not known.
    """
    if accuracy is None or classes is None or not accuracy <= 1.5 / classes:
        return ""
    return (
        f"the dense network is hardly better than chance: test accuracy {accuracy:.1%} of "
        f"{classes} classes; what follows says little about pruning"
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better; raises :class:`InputError` for an unknown one."""
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    return metric.endswith("accuracy")


def outcome_name(metric: str, rule: str = "last") -> str:
    """What an outcome is called; every rule but the last epoch is said."""
    words = metric.replace("_", " ")
    return f"final {words}" if rule == "last" else f"{words} ({rule})"


def rule_in_words(rule: str) -> str:
    """Which epochs a rule takes; raises :class:`InputError` for an unknown one."""
    if rule not in RULES:
        raise unknown("outcome rule", rule, RULES)
    return RULES[rule]


def seed_outcomes(
    epochs: pd.DataFrame, metric: str = "test_accuracy", rule: str = "last"
) -> pd.DataFrame:
    """One outcome for each retraining: a table of candidates × seeds.

    ``epochs`` has the columns candidate, seed, epoch and the metrics; ``rule`` says which epochs
    count (``RULES``). A retraining that diverged (a train loss that is not finite) has no outcome:
    NaN.
    """
    higher_is_better(metric)
    rule_in_words(rule)
    if rule == "best-on-validation" and epochs["validation_loss"].isna().all():
        raise InputError("outcome rule 'best-on-validation' needs a validation split")
    keys = ["candidate", "seed"]
    epochs = epochs.sort_values("epoch", kind="stable")
    if rule == "last":
        values = epochs.drop_duplicates(keys, keep="last")
    elif rule == "last-5":
        tail = epochs.groupby(keys, sort=False).tail(5)
        values = tail.groupby(keys, sort=False)[metric].mean().reset_index()
    else:
        by, ascending = _BEST[rule]
        ranked = epochs.sort_values(by, ascending=ascending, kind="stable")
        values = ranked.drop_duplicates(keys)
    table = values.pivot(index="candidate", columns="seed", values=metric)
    diverged = epochs[~np.isfinite(epochs["train_loss"])]
    for candidate, seed in zip(diverged["candidate"], diverged["seed"], strict=True):
        table.loc[candidate, seed] = float("nan")
    return table


def final_outcomes(
    epochs: pd.DataFrame, metric: str = "test_accuracy", rule: str = "last"
) -> pd.Series:
    """The mean over seeds of :func:`seed_outcomes`, by candidate.

    All candidates are means over the same seeds, so that what a seed does to all is no difference
    between them: the seeds with which every one of them has been retrained or, where there is none
    yet, the one with the most retrainings. NaN where a candidate lacks one or diverged in it.
    """
    outcomes: pd.Series = shared_outcomes(epochs, metric, rule).mean(axis=1, skipna=False)
    return outcomes.rename("outcome")


def shared_outcomes(
    epochs: pd.DataFrame, metric: str = "test_accuracy", rule: str = "last"
) -> pd.DataFrame:
    """Those columns of :func:`seed_outcomes` that :func:`final_outcomes` is the mean of."""
    table = seed_outcomes(epochs, metric, rule)
    recorded = epochs.groupby(["candidate", "seed"]).size().unstack().reindex_like(table)
    counts = recorded.notna().sum()
    most = counts[counts == counts.max()].index
    shared: pd.DataFrame = table[most if counts.max() == len(table) else most[:1]]
    return shared
