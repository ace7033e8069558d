"""What a study can find: the tau that it would tell from chance, before anything is retrained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from trueoracle.analysis.jackknife import LEAST_NETWORKS
from trueoracle.analysis.numbers import finite_or_none, many, number
from trueoracle.errors import InputError

__all__ = ["Assumptions", "Power", "power"]


@dataclass(frozen=True)
class Assumptions:
    """What a plan has to assume about networks that do not exist yet.

    The defaults are near what version 1 of the bench shows for LeNet5-Mini on digits.

    - ``sum_of_score``, ``sum_of_outcome``: the share of a sum over filters in the variance of a
      criterion, and of the expected outcome; the rest is what filters do together;
    - ``repeats``: the correlation of two retrainings of the same candidates;
    - ``half_examples``: the number of test examples whose choice makes half of the variance of the
      outcome;
    - ``between``: the standard deviation of tau between dense networks.
    """

    sum_of_score: float = 0.9
    sum_of_outcome: float = 0.7
    repeats: float = 0.5
    half_examples: int = 1400
    between: float = 0.1


@dataclass(frozen=True)
class Power:
    """What a plan can find.

    - ``null_sd``: the standard deviation of tau of a criterion unrelated to the outcome;
    - ``detectable``: the size of tau that is told from chance with the given ``chance``, after
      Holm's adjustment for so many ``criteria``;
    - ``without_noise``: the size of tau with outcomes free of noise that this is: the more noise,
      the larger;
    - ``over``: what the plan counts, and what it takes as given, in words.
    """

    filters: int
    candidates: int | None
    seeds: int
    examples: int | None
    networks: int
    criteria: int
    chance: float
    null_sd: float
    detectable: float
    without_noise: float
    over: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))

    def sentence(self) -> str:
        """The plan's worth in words."""
        adjusted = f" of {self.criteria} criteria" if self.criteria > 1 else ""
        return (
            f"a |τ| of {number(self.detectable, 2)} or more, without noise "
            f"{number(self.without_noise, 2)}, would be told from chance"
            f"{adjusted} with {self.chance:.0%} (chance alone spreads τ by "
            f"{number(self.null_sd, 2)}; {self.over})"
        )


def power(
    filters: int,
    *,
    candidates: int | None = None,
    seeds: int = 1,
    examples: int | None = None,
    networks: int = 1,
    criteria: int = 1,
    layers: int = 1,
    chance: float = 0.8,
    assumptions: Assumptions | None = None,
) -> Power:
    """The tau that a study would tell from chance at the 5 % level with probability ``chance``.

    - ``filters``: the number of filters that are pruned or kept, of all ``layers`` together, in one
      dense network;
    - ``candidates``: the size of a sample; None for all ways to prune, however many these are;
    - ``seeds``: the number of retraining seeds;
    - ``examples``: the number of examples that outcomes are measured on, None to take them as
      given;
    - ``networks``: the number of dense networks; fewer than :data:`LEAST_NETWORKS` are taken as
      given;
    - ``criteria``: the number of criteria that are shown together.

    A criterion that is a sum over F filters orders candidates as a column of F numbers does, and so
    its tau scatters as a correlation of F pairs does, by (2/π)/√(F-1), however many candidates
    there are. Noise and what filters do together lower tau. The test is Student's t of atanh(τ), as
    in :class:`trueoracle.analysis.jackknife.Jackknife`; for several networks, that of their
    scatter. Raises :class:`InputError` for numbers that no study has.
    """
    for name, value, least in (
        ("filters", filters - layers + 1, 3), ("seeds", seeds, 1), ("networks", networks, 1),
        ("criteria", criteria, 1), ("layers", layers, 1),
        ("candidates", 10 if candidates is None else candidates, 5),
        ("examples", 10 if examples is None else examples, 2),
    ):  # fmt: skip
        if value < least:
            raise InputError(f"a plan needs at least {least} {name}, got {value}")
    if not 0 < chance < 1:
        raise InputError(f"a chance lies between 0 and 1, got {chance}")
    given = assumptions or Assumptions()
    if not 0 < given.repeats <= 1:
        raise InputError(f"outcomes repeat themselves by a share from 0 to 1, got {given.repeats}")
    if not 0 <= given.between < math.inf:
        raise InputError(f"τ differs between networks by 0 or more, got {given.between}")
    reliability = seeds * given.repeats / (1 + (seeds - 1) * given.repeats)
    if examples is not None:
        reliability *= examples / (examples + given.half_examples)
    sums = given.sum_of_score * given.sum_of_outcome * reliability
    together = (1 - given.sum_of_score) * (1 - given.sum_of_outcome * reliability)
    free = filters - layers
    twos = max(1, filters * (filters - 1) // 2 - filters)
    variance = (2 / math.pi) ** 2 * (sums / free + together / twos)
    freedom: float = free
    if candidates is not None:
        left = max(0.0, 1 - free / candidates)
        variance += left * 2 * (2 * candidates + 5) / (9 * candidates * (candidates - 1))
    null_sd = math.sqrt(variance / networks)
    if networks >= LEAST_NETWORKS:
        variance, freedom = variance + given.between**2, networks - 1
    else:
        freedom *= networks
    error = math.sqrt(variance / networks)
    from scipy import stats

    found = stats.t.ppf(1 - 0.025 / criteria, freedom) * error
    if networks >= LEAST_NETWORKS:  # Holm's p permutes labels, the interval is over networks
        permuted = stats.norm.ppf(1 - 0.025 / criteria) * null_sd
        found = max(stats.t.ppf(0.975, freedom) * error, permuted)
    reach = float(found + stats.t.ppf(chance, freedom) * error)
    detectable = max(0.0, math.tanh(reach))
    free_of_noise = math.sin(math.pi * detectable / 2) / math.sqrt(reliability)
    return Power(
        filters=filters,
        candidates=candidates,
        seeds=seeds,
        examples=examples,
        networks=networks,
        criteria=criteria,
        chance=chance,
        null_sd=null_sd,
        detectable=detectable,
        without_noise=2 / math.pi * math.asin(min(1.0, free_of_noise)),
        over=_over(filters, candidates, seeds, examples, networks),
    )


def _over(
    filters: int, candidates: int | None, seeds: int, examples: int | None, networks: int
) -> str:
    of_each = " of each" if networks > 1 else ""
    counted = [many(filters, "filter") + of_each, many(seeds, "retraining seed")]
    given = []
    if networks >= LEAST_NETWORKS:
        counted.insert(0, many(networks, "dense network"))
    else:
        given.append("one dense network" if networks == 1 else f"these {networks} dense networks")
    if candidates is not None:
        counted.append(f"{candidates:,} sampled candidates")
    if examples is None:
        given.append("the examples")
    else:
        counted.append(many(examples, "example"))
    words = ", ".join(counted)
    return f"{words}; given {' and '.join(given)}" if given else words
