"""Searches replayed on recorded studies: how often a tenth of the budget finds one of the best.

    trueoracle run lenet5-mini-bench --runs runs --set 'criteria=["oracle", "l2"]'    # hours
    python benchmarks/search.py runs [--by train_loss] [--budget 0.1]

Every finished study of 100 candidates or more below the folder, ordered by each of its criteria;
one search per retraining seed, 100 orders each where they are random. Nothing is trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from trueoracle.record.results import Results
from trueoracle.record.runs import recorded_runs
from trueoracle.search.replay import BUDGETS

LEAST = 100
"""Candidates of a study: of fewer, the best 1 % is a single one."""


def searched(results: Results, by: str, budget: float) -> pd.DataFrame:
    """The searches of one study, judged by the network that each would have chosen."""
    found = pd.concat([results.replay(name, by).assign(order=name) for name in results.criteria])
    found = found[(found["share"] == budget) & (found["network"] == "own")]
    layers = " and ".join(results.spec.pruning.layers)
    return found.assign(part=f"{layers}, dense network {results.spec.dense.seed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--by", default="validation_loss")
    parser.add_argument("--budget", type=float, choices=BUDGETS, default=0.1)
    given = parser.parse_args()
    studies = [one for one in map(Results, recorded_runs(given.runs)) if one.finished]
    studies = [one for one in studies if len(one.candidates) >= LEAST]
    if not studies:
        parser.exit(2, f"error: no finished study of {LEAST} candidates or more in {given.runs}\n")
    found = pd.concat([searched(one, given.by, given.budget) for one in studies])
    own = found[found["outcome"] == given.by]
    print(f"{len(studies)} studies, {given.budget:.0%} of the budget, compared by {given.by}")
    by_part = own.pivot_table(index="strategy", columns="part", values="in_top", sort=False)
    print("\nshare of searches within the best 1 %")
    print(by_part.assign(mean=own.groupby("strategy")["in_top"].mean()).round(2).to_string())
    print("\nmean rank, and regret by outcome")
    regret = found.pivot_table(index="strategy", columns="outcome", values="regret", sort=False)
    print(regret.assign(rank=own.groupby("strategy")["rank"].mean()).round(4).to_string())


if __name__ == "__main__":
    main()
