"""From recorded epochs to one outcome a candidate."""

from __future__ import annotations

import pandas as pd

from trueoracle.errors import InputError, unknown

__all__ = [
    "METRIC_NAMES",
    "RULES",
    "final_outcomes",
    "higher_is_better",
    "rule_in_words",
    "seed_outcomes",
]

METRIC_NAMES = {
    "test_accuracy": "final test accuracy",
    "test_loss": "final test loss",
    "train_loss": "final train loss",
    "train_accuracy": "final train accuracy",
    "validation_loss": "final validation loss",
    "validation_accuracy": "final validation accuracy",
}

RULES = {
    "last": "last epoch",
    "last-5": "mean of the last 5 epochs",
    "best-on-validation": "epoch of lowest validation loss",
    "best-on-test": "epoch of best test accuracy: chosen on the test set, as in the paper",
}


_BEST = {"best-on-validation": ("validation_loss", True), "best-on-test": ("test_accuracy", False)}


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better; raises :class:`InputError` for an unknown one."""
    if metric not in METRIC_NAMES:
        raise unknown("metric", metric, METRIC_NAMES)
    return metric.endswith("accuracy")


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
    count (``RULES``). A retraining that diverged (a train loss that is NaN) has no outcome: NaN.
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
    diverged = epochs[epochs["train_loss"].isna()]
    for candidate, seed in zip(diverged["candidate"], diverged["seed"], strict=True):
        table.loc[candidate, seed] = float("nan")
    return table


def final_outcomes(
    epochs: pd.DataFrame, metric: str = "test_accuracy", rule: str = "last"
) -> pd.Series:
    """The mean over seeds of :func:`seed_outcomes`, by candidate; NaN where every one diverged.

    The mean runs over the retrainings recorded so far, so while a study is unfinished, candidates
    may be means over different seeds.
    """
    return seed_outcomes(epochs, metric, rule).mean(axis=1).rename("outcome")
