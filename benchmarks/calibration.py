"""How often intervals, tests and verdicts are right, where the truth is known.

    .venv/bin/python benchmarks/calibration.py            # 200 tables for each scenario, 40 minutes
    .venv/bin/python benchmarks/calibration.py --tables 20 plain samples
    .venv/bin/python benchmarks/calibration.py --size 1000  # p-values of the one that knows nothing

Each table is one imaginary study. Every filter of a dense network has a worth, drawn from a normal
distribution, and candidates are worth what the filters that they prune are, and what these do in
twos. Retraining adds noise, to each candidate and to each filter, other for each seed; examples add
theirs. There are three criteria: ``null``, which knows nothing, and ``good`` and ``twin``, which
know as much as each other of each filter's worth. The truth is what the mean over very many such
studies is: other filters, other seeds, of one kind.

What the words say is 95 % or 5 %: coverage belongs between 93 and 98 %, size at 6 % or below.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from trueoracle.analysis import permutation
from trueoracle.analysis import table as tables
from trueoracle.analysis.assessment import assess
from trueoracle.analysis.comparison import differences
from trueoracle.analysis.meta import effect, meta_analysis
from trueoracle.analysis.table import CandidateTable

RELABELLINGS = 300
"""A tenth of what a study has: enough for the rate at which p is below 0.05."""

TRUTHS = 600
"""Studies that a true value is the mean of."""


@dataclass(frozen=True)
class Scenario:
    """One kind of study.

    - ``filters``, ``count``: of ``filters`` ``count`` are pruned; all ways, or ``samples`` of them;
    - ``seeds``; ``noise``: the standard deviation of retraining, for each candidate, with the worth
      of a candidate having 1; ``by_filter``: of what a seed adds to each filter;
      ``tilt``: of what a seed adds to the score of ``good``, as if it favoured it;
    - ``twos``: the share of what filters do in twos in the variance of the outcome, and
      ``twos_of_score`` in that of the scores;
    - ``images``: the standard deviation of what examples add, in ``blocks`` of them;
    - ``tails``: degrees of freedom of the noise (Student's t); ``step``: outcomes are rounded to
      it; ``collapse``: the share of retrainings that end far worse;
    - ``knows``: the correlation of the worth that ``good`` and ``twin`` give each filter with its
      true one.
    """

    filters: int = 8
    count: int = 4
    samples: int = 0
    seeds: int = 3
    noise: float = 0.7
    by_filter: float = 0.2
    tilt: float = 0.0
    twos: float = 0.2
    twos_of_score: float = 0.0
    images: float = 0.0
    blocks: int = 0
    tails: float = 0.0
    step: float = 0.0
    collapse: float = 0.0
    knows: float = 0.7


SCENARIOS = {
    "plain": Scenario(),
    "two seeds": Scenario(seeds=2),
    "five seeds": Scenario(seeds=5),
    "few pruned": Scenario(filters=10, count=2),
    "little noise": Scenario(noise=0.2, by_filter=0.05, twos=0.05),
    "samples": Scenario(filters=12, count=6, samples=100),
    "samples of many filters": Scenario(filters=48, count=24, samples=120),
    "twos": Scenario(twos=0.6, twos_of_score=0.4),
    "a seed's favour": Scenario(tilt=0.3),
    "heavy tails": Scenario(tails=2.0),
    "ties": Scenario(step=0.8),
    "collapse": Scenario(collapse=0.05),
    "collapse, two seeds": Scenario(collapse=0.05, seeds=2),
    "images": Scenario(images=1.0, blocks=20, seeds=2),
}


@cache
def _ways(filters: int, count: int) -> np.ndarray:
    ways = list(itertools.combinations(range(filters), count))
    pruned = np.zeros((len(ways), filters), dtype=bool)
    for row, way in enumerate(ways):
        pruned[row, list(way)] = True
    return pruned


@dataclass(frozen=True, eq=False)
class Study:
    """A table, and the truth of it: the expected outcome ``[P]`` of every candidate."""

    table: CandidateTable
    worth: np.ndarray


def draw(scenario: Scenario, generator: np.random.Generator) -> Study:
    """One study of a scenario."""
    s = scenario
    if s.samples:
        order = generator.random((s.samples, s.filters)).argsort(axis=1)
        pruned = np.zeros((s.samples, s.filters), dtype=bool)
        np.put_along_axis(pruned, order[:, : s.count], True, axis=1)
    else:
        pruned = _ways(s.filters, s.count)
    plain = (pruned - s.count / s.filters) / math.sqrt(
        s.count * (s.filters - s.count) / s.filters * s.filters / (s.filters - 1)
    )
    pairs = np.array(list(itertools.combinations(range(s.filters), 2)))
    twos = plain[:, pairs[:, 0]] * plain[:, pairs[:, 1]]
    twos = twos - twos.mean(axis=0)
    twos /= math.sqrt((twos**2).sum(axis=1).mean())

    def column(own: np.ndarray, share: float) -> np.ndarray:
        made: np.ndarray = math.sqrt(1 - share) * plain @ own
        return made + math.sqrt(share) * twos @ generator.normal(size=len(pairs))

    true, *others = generator.normal(size=(4, s.filters))
    worth = column(true, s.twos)
    known = [s.knows * true + math.sqrt(1 - s.knows**2) * one for one in others[:2]]
    scores = dict(
        zip(
            ("null", "good", "twin"),
            (column(one, s.twos_of_score) for one in (others[2], *known)),
            strict=True,
        )
    )
    shape = (len(pruned), s.seeds)
    drawn = generator.standard_t(s.tails, shape) if s.tails else generator.normal(size=shape)
    outcomes = worth[:, None] + s.noise * drawn
    outcomes += s.by_filter * plain @ generator.normal(size=(s.filters, s.seeds))
    outcomes += s.tilt * scores["good"][:, None] * generator.normal(size=s.seeds)
    outcomes += np.where(generator.random(shape) < s.collapse, 15 + drawn, 0)
    more: dict[str, Any] = {}
    if s.blocks:
        of_examples = (
            s.images * math.sqrt(s.blocks) * generator.normal(size=(len(pruned), 1, s.blocks))
        )
        by_block = outcomes[:, :, None] + of_examples
        outcomes = by_block.mean(axis=2)
        if hasattr(tables, "Blocks"):
            more["blocks"] = tables.Blocks(50 * by_block, np.full(s.blocks, 50))
    if s.step:
        outcomes = np.round(outcomes / s.step) * s.step
    table = CandidateTable(outcomes, scores, False, bool(s.samples), pruned, (s.filters,), **more)
    return Study(table, worth)


def tau(x: np.ndarray, y: np.ndarray) -> float:
    """Kendall's tau-b."""
    return float(stats.kendalltau(x, y).statistic)


def truth(scenario: Scenario, number: int = TRUTHS) -> dict[str, float]:
    """Mean tau of ``good`` with the outcome, and with the expected one, and their correlations."""
    generator = np.random.default_rng(10**6)
    studies = (draw(scenario, generator) for _ in range(number))
    found = [
        (tau(one.table.scores["good"], one.table.outcome), tau(one.table.scores["good"], one.worth))
        for one in studies
    ]
    # Means of what intervals are symmetric in.
    measured, without = np.tanh(np.arctanh(np.clip(found, -0.999, 0.999)).mean(axis=0))
    return {"good": float(measured), "null": 0.0, "without noise": float(without)}


Seen = dict[str, list[float]]


def measure(scenario: Scenario, number: int, seed: int = 0) -> dict[str, float]:
    """Rates and biases over so many studies."""
    generator = np.random.default_rng(seed)
    true = truth(scenario)
    seen: Seen = {}
    for _ in range(number):
        for name, value in _of_study(draw(scenario, generator), true):
            seen.setdefault(name, []).append(value)
    return {name: float(np.nanmean(values)) for name, values in seen.items()}


def _of_study(study: Study, true: dict[str, float]) -> Iterator[tuple[str, float]]:
    table = study.table
    found = {one.criterion: one for one in assess(table)}
    for name in ("null", "good"):
        around = found[name].interval
        yield f"{name} in interval", float(around.low <= true[name] <= around.high)
    null, good = found["null"], found["good"]
    yield "null is certain", float(null.is_certain)
    yield "null p < 0.05", float(null.permutation_p_value < 0.05)
    if hasattr(null, "answer"):
        yield "null is Yes", float(null.answer == "Yes")
        yield "good is No", float(good.answer == "No")
        yield "good is Yes", float(good.answer == "Yes")
        yield "good at most", float(good.at_most >= true["good"])
        around = good.disattenuated_interval
        if not math.isnan(around.low):
            inside = around.low <= true["without noise"] <= around.high
            yield "good without noise in interval", float(inside)
            yield "without noise, bias", good.disattenuated - true["without noise"]
    (other,) = [one for one in differences([table], "good") if one.first == "twin"]
    yield "twins differ", float(other.low > 0 or other.high < 0)
    best = tau(study.worth, table.outcome)
    yield "ceiling, true", best
    yield "ceiling, bias", good.reliability.ceiling - best
    chosen = study.worth[int(np.argmin(table.scores["good"]))]
    yield "regret, true", chosen - study.worth.min()
    yield "regret, as found", good.relation.regret
    if hasattr(good.selection, "held_out_regret"):
        yield "regret, held out", good.selection.held_out_regret


def size(scenario: Scenario, number: int, seed: int = 4) -> float:
    """How often the one that knows nothing has p below 0.05, over so many studies."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        table = draw(scenario, generator).table
        null = replace(table, scores={"null": table.scores["null"]})
        found.append(permutation.label_permutation_p_values(null)["null"] < 0.05)
    return float(np.mean(found))


def families(number: int, criteria: int = 24) -> dict[str, float]:
    """How often some of many criteria that know nothing is called certain."""
    generator = np.random.default_rng(1)
    certain, answers = [], []
    for _ in range(number):
        table = draw(SCENARIOS["plain"], generator).table
        pruned = np.asarray(table.pruned, dtype=np.float64)
        plain = pruned - pruned.mean(axis=0)
        worths = generator.normal(size=(criteria, pruned.shape[1]))
        scores = {f"null {i}": plain @ one for i, one in enumerate(worths)}
        found = assess(replace(table, scores=scores))
        certain.append(any(one.is_certain for one in found))
        if hasattr(found[0], "answer"):
            answers.append(any(one.answer == "Yes" for one in found))
    made = {"some of 24 certain": float(np.mean(certain))}
    return made | ({"some of 24 Yes": float(np.mean(answers))} if answers else {})


def networks(number: int, several: int, seed: int = 2) -> dict[str, float]:
    """Coverage over dense networks, each pruned at five ratios, that differ in what is known."""
    generator = np.random.default_rng(seed)
    ratios = (2, 3, 4, 5, 6)

    def network(generator: np.random.Generator) -> list[CandidateTable]:
        """Five ratios: the same filters, and the same worths of them."""
        knows = float(np.clip(0.5 + 0.25 * generator.normal(), -0.95, 0.95))
        start = int(generator.integers(2**62))
        made = []
        for count in ratios:
            own = np.random.default_rng(start)  # the same filters
            one = draw(replace(SCENARIOS["plain"], count=count, knows=knows, seeds=2), own).table
            again = one.outcomes + 0.3 * generator.normal(size=one.outcomes.shape)
            made.append(replace(one, outcomes=again, scores={"good": one.scores["good"]}))
        return made

    true_ = np.random.default_rng(3)
    true = float(
        np.mean([tau(t.scores["good"], t.outcome) for _ in range(200) for t in network(true_)])
    )
    clusters = "cluster" in inspect.signature(effect).parameters
    inside, known = [], []
    for _ in range(number):
        effects = []
        for place in range(several):
            for table in network(generator):
                (one,) = assess(table)
                more: dict[str, Any] = {"cluster": str(place)} if clusters else {}
                made = effect(
                    "", one.relation.kendall.value, len(table), one.standard_error, one.interval,
                    **more,
                )  # fmt: skip
                if made is not None:
                    effects.append(made)
        found = meta_analysis(effects)
        known.append(not math.isnan(found.low))
        inside.append(found.low <= true <= found.high)
    return {
        f"{several} networks in interval": float(np.mean(np.array(inside)[known]))
        if any(known)
        else math.nan
    }


def rows(found: dict[str, dict[str, float]], wanted: list[str]) -> list[str]:
    """A table in Markdown: one row per scenario."""
    lines = [f"| scenario | {' | '.join(wanted)} |", "|---" * (1 + len(wanted)) + "|"]
    for name, values in found.items():
        cells = [_cell(one, values.get(one)) for one in wanted]
        if any(cell != "–" for cell in cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(name: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    is_rate = not any(word in name for word in ("bias", "true", "regret"))
    return (
        f"{100 * value:.0f}%" if is_rate else f"{value:+.2f}" if "bias" in name else f"{value:.2f}"
    )


COVERAGE = [
    "null in interval",
    "good in interval",
    "good at most",
    "good without noise in interval",
]
SIZE = [
    "null p < 0.05",
    "null is certain",
    "null is Yes",
    "good is No",
    "good is Yes",
    "twins differ",
]
BIAS = ["ceiling, true", "ceiling, bias", "without noise, bias", "regret, true", "regret, as found",
        "regret, held out"]  # fmt: skip


def main() -> None:
    """Run the scenarios that are named, or all, and print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("scenarios", nargs="*", help="names; by default all, families and networks")
    parser.add_argument("--tables", type=int, default=200, help="studies for each scenario")
    parser.add_argument("--size", type=int, help="only p-values, of so many studies for each")
    parser.add_argument("--json", help="also write all numbers to this file")
    given = parser.parse_args()
    permutation.PERMUTATIONS = permutation.FITTED = RELABELLINGS
    found: dict[str, dict[str, float]] = {}
    names = given.scenarios or list(SCENARIOS)
    if given.size:
        for name in names:
            print(f"{name}: p < 0.05 in {size(SCENARIOS[name], given.size):.1%}", flush=True)
        return
    for name in names:
        if name in SCENARIOS:
            started = time.perf_counter()
            found[name] = measure(SCENARIOS[name], given.tables)
            taken = f"{name} ({time.perf_counter() - started:.0f} s)"
            print(taken, json.dumps(found[name]), file=sys.stderr, flush=True)
    more: dict[str, float] = {}
    if not given.scenarios or "families" in given.scenarios:
        more |= families(given.tables // 2)
    if not given.scenarios or "networks" in given.scenarios:
        for several in (1, 2, 4, 6):
            more |= networks(given.tables // 2, several)
    for wanted in (COVERAGE, SIZE, BIAS):
        print("\n".join(rows(found, wanted)), end="\n\n")
    for name, value in more.items():
        print(f"{name}: {_cell(name, value)}")
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"scenarios": found, "more": more}, file, indent=1)


if __name__ == "__main__":
    main()
