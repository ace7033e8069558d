"""Searches replayed on the shipped table: how often a tenth of the budget finds one of the best.

    python benchmarks/search.py [--by train_loss] [--budget 0.1]

Every study of 100 candidates or more (layer, ratio and dense network), ordered by ``oracle`` and
by ``l2``; one search a retraining seed, 100 orders each where they are random. Nothing is trained.
"""

from __future__ import annotations

import argparse

import pandas as pd

from trueoracle.bench.table import Bench, BenchStudy, read_bench
from trueoracle.search.replay import SELECTORS, replay

ORDERS = ("oracle", "l2")
LEAST = 100
"""Candidates of a study: of fewer, the best 1 % is a single one."""


def searched(bench: Bench, study: BenchStudy, by: str, budget: float) -> pd.DataFrame:
    """The searches of one study, judged by the network that each would have chosen."""
    epochs = bench.epochs[bench.epochs["candidate"].isin(study.rows)]
    pruned = bench.table(study, "test_loss").pruned
    found = []
    for order in ORDERS:
        scores = pd.Series(bench.scores[order][study.rows], index=study.rows)
        length = 1 + int(epochs["epoch"].max())
        rows = replay(epochs, scores, epochs=length, by=by, budgets=[budget], pruned=pruned)
        found.append(rows[rows["network"] == "own"].assign(order=order))
    names = {"layer": study.layer, "ratio": study.ratio, "dense": study.network}
    return pd.concat(found).assign(**names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", choices=SELECTORS, default="validation_loss")
    parser.add_argument("--budget", type=float, default=0.1)
    given = parser.parse_args()
    bench = read_bench()
    studies = [one for one in bench.studies if len(one.rows) >= LEAST]
    found = pd.concat([searched(bench, one, given.by, given.budget) for one in studies])
    own = found[found["outcome"] == given.by]
    print(f"{len(studies)} studies, {given.budget:.0%} of the budget, compared by {given.by}")
    own = own.assign(part=own["dense"].astype(str) + " " + own["layer"])
    by_layer = own.pivot_table(index="strategy", columns="part", values="in_top", sort=False)
    print("\nshare of searches within the best 1 %, by dense network and layer")
    print(by_layer.assign(mean=own.groupby("strategy")["in_top"].mean()).round(2).to_string())
    print("\nmean rank, regret, and regret on the test images")
    test = found.pivot_table(index="strategy", columns="outcome", values="regret", sort=False)
    print(test.assign(rank=own.groupby("strategy")["rank"].mean()).round(4).to_string())


if __name__ == "__main__":
    main()
