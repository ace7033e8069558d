"""Several studies together: random-effects meta-analysis of tau."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trueoracle.analysis.jackknife import NO_INTERVAL, Interval
from trueoracle.analysis.numbers import finite_or_none
from trueoracle.errors import InputError

__all__ = ["Effect", "MetaAnalysis", "Slope", "effect", "meta_analysis", "slope_in"]


_Z = 1.959963984540054
"""The normal distribution's 97.5 % quantile."""


@dataclass(frozen=True)
class Effect:
    """Raw tau in one study, its standard error and 95 % interval.

    Studies of one ``cluster``, that is of one dense network and its data, are not independent of
    each other. By default each study is a cluster of its own.
    """

    label: str
    tau: float
    standard_error: float
    low: float
    high: float
    cluster: str | None = None


@dataclass(frozen=True)
class MetaAnalysis:
    """The mean of raw tau over studies that differ.

    - ``low`` to ``high`` bound the mean, ``prediction_low`` to ``prediction_high`` the tau of one
      more study like these (95 % both);
    - ``tau2`` is the variance between studies, ``i2`` the share of all variance that it makes up;
    - ``q`` is Cochran's statistic of no difference between studies, ``p_value`` its p-value;
    - ``weights`` of the studies sum to 1; ``clusters`` counts the dense networks that they are of.

    Studies of one dense network count as one study: their mean counts, with the mean of their
    errors, as if they all erred together. Where all studies are of a single network, nothing is
    said of another: ``low`` to ``high`` bound that network's own mean, and the rest is NaN.
    """

    effects: tuple[Effect, ...]
    weights: tuple[float, ...]
    tau: float
    low: float
    high: float
    prediction_low: float
    prediction_high: float
    tau2: float
    i2: float
    q: float
    p_value: float
    clusters: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, one entry of ``studies`` per study: NaN becomes None."""
        plain = finite_or_none(asdict(self))
        del plain["effects"], plain["weights"]
        plain["studies"] = [
            finite_or_none(
                {
                    "label": effect.label,
                    "tau": effect.tau,
                    "low": effect.low,
                    "high": effect.high,
                    "weight": weight,
                    "cluster": effect.cluster,
                }
            )
            for effect, weight in zip(self.effects, self.weights, strict=True)
        ]
        return plain


def textbook_error(tau: float, n: int) -> float:
    """The standard error of tau over n independent candidates (Fieller, Hartley & Pearson 1957).

    Their squared error of atanh(tau) is 0.437/(n-4); NaN below five candidates. Since candidates
    overlap, the error is too small. It is for tables that hold only scores and outcomes.
    """
    if n < 5 or not math.isfinite(tau):
        return math.nan
    return math.sqrt(0.437 / (n - 4)) * (1 - tau**2)


def effect(
    label: str,
    tau: float,
    n: int,
    standard_error: float | None = None,
    interval: Interval = NO_INTERVAL,
    cluster: str | None = None,
) -> Effect | None:
    """An effect, with the textbook's error where none is given; None where neither is defined.

    A perfect tau shows no error, but it is not known perfectly. It takes the textbook's error of
    the tau that n candidates would have if one pair of neighbours were ordered wrongly.
    """
    if not math.isfinite(tau):
        return None
    error = math.nan if standard_error is None else standard_error
    if not error > 0:
        error = textbook_error(tau, n)
        if error == 0:
            error = textbook_error(1 - 2 / n, n)
    if not math.isfinite(error):
        return None
    if math.isnan(interval.low):
        interval = Interval(max(-1.0, tau - _Z * error), min(1.0, tau + _Z * error))
    return Effect(label, tau, error, interval.low, interval.high, cluster)


NEAR_ONE = 0.98
"""The size of tau from which on scatter does not measure its error: nothing is left to move."""


def _errors(effects: Sequence[Effect]) -> np.ndarray:
    """Standard errors for weights; that of a tau near ±1 is no less than the others' largest."""
    errors = np.array([one.standard_error for one in effects], dtype=np.float64)
    near = np.array([NEAR_ONE <= abs(one.tau) <= 1 for one in effects])
    if near.any() and not near.all():
        errors[near] = np.maximum(errors[near], errors[~near].max())
    made: np.ndarray = np.maximum(errors, 1e-6)
    return made


def _by_cluster(effects: Sequence[Effect]) -> list[list[int]]:
    """The places of each cluster's effects in the list."""
    places: dict[object, list[int]] = {}
    for place, one in enumerate(effects):
        places.setdefault((place,) if one.cluster is None else one.cluster, []).append(place)
    return list(places.values())


def meta_analysis(effects: Sequence[Effect]) -> MetaAnalysis:
    """The random-effects mean of tau, its variance between studies by Paule and Mandel (1982).

    Its interval is that of Hartung and Knapp (2001), which holds for few studies, in the form that
    is never narrower than the errors by themselves would make it (Röver, Knapp & Friede 2015); the
    prediction interval is that of Higgins, Thompson and Spiegelhalter (2009). Several
    studies of one dense network are first combined into one.
    Raises :class:`InputError` where there is no study.
    """
    effects = tuple(effects)
    if not effects:
        raise InputError("a meta-analysis needs at least one study with a tau")
    clusters = _by_cluster(effects)
    errors_of_all = _errors(effects)
    taus = np.array([np.mean([effects[p].tau for p in places]) for places in clusters])
    errors = np.array([errors_of_all[places].mean() for places in clusters])
    nan = math.nan
    if len(clusters) == 1:
        low, high = effects[0].low, effects[0].high
        if len(effects) > 1:  # no error is known to be smaller than their mean
            below, above = np.mean([(e.tau - e.low, e.high - e.tau) for e in effects], axis=0)
            low, high = max(-1.0, taus[0] - below), min(1.0, taus[0] + above)
        even = (1 / len(effects),) * len(effects)
        return MetaAnalysis(effects, even, float(taus[0]), float(low), float(high), *(nan,) * 6, 1)
    from scipy import stats
    from statsmodels.stats.meta_analysis import combine_effects

    with np.errstate(divide="ignore", invalid="ignore"):  # its I², where all studies are equal
        fitted = combine_effects(taus, errors**2, method_re="iterated", use_t=True)
    between = max(0.0, float(fitted.tau2))
    weights = 1 / (errors**2 + between)
    weights /= weights.sum()
    mean = float(weights @ taus)
    count = len(taus)
    # Hartung and Knapp take the scatter that is seen. But a few studies can agree by chance, so the
    # error is no less than what the studies' own errors promise.
    promised = 1 / float((1 / (errors**2 + between)).sum())
    spread = math.sqrt(max(float(weights @ (taus - mean) ** 2) / (count - 1), promised))
    reach = float(stats.t.ppf(0.975, count - 1)) * spread
    predicted = (nan, nan)
    if count > 2:
        wide = float(stats.t.ppf(0.975, count - 2)) * math.sqrt(between + spread**2)
        predicted = (max(-1.0, mean - wide), min(1.0, mean + wide))
    fixed = 1 / errors**2
    centre = (fixed @ taus) / fixed.sum()
    q = float(fixed @ (taus - centre) ** 2)
    own = np.empty(len(effects))
    for weight, places in zip(weights, clusters, strict=True):
        own[places] = weight / len(places)
    return MetaAnalysis(
        effects=effects,
        weights=tuple(map(float, own)),
        tau=mean,
        low=max(-1.0, mean - reach),
        high=min(1.0, mean + reach),
        prediction_low=predicted[0],
        prediction_high=predicted[1],
        tau2=between,
        i2=max(0.0, (q - (count - 1)) / q) if q > 0 else 0.0,
        q=q,
        p_value=float(stats.chi2.sf(q, count - 1)),
        clusters=count,
    )


@dataclass(frozen=True)
class Slope:
    """How much tau changes per unit of what makes a study harder, with the 95 % interval."""

    slope: float
    low: float
    high: float
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def slope_in(effects: Sequence[Effect], complexity: Sequence[float]) -> Slope | None:
    """Meta-regression of tau on one number per study, such as width or the dense network's error.

    Weighted least squares, with the variance that the slope leaves between studies by Paule and
    Mandel's equation. The slope's error is that of the scatter seen (Knapp & Hartung 2003), never
    less than what the studies' own errors promise: metafor's ``test="adhoc"``. Where several
    studies are of one dense network, the error is also no less than that of a jackknife over
    networks, with as many degrees of freedom as the networks leave. None for fewer than three
    studies or dense networks, or where the number is the same for all.
    """
    both = zip(effects, complexity, strict=True)
    kept = [(one, float(x)) for one, x in both if math.isfinite(x)]
    some = [one for one, _ in kept]
    clusters = _by_cluster(some)
    if len(clusters) < 3 or len({x for _, x in kept}) < 2:
        return None
    from scipy import stats

    taus, errors = np.array([one.tau for one in some]), _errors(some)
    given = np.array([x for _, x in kept])
    scale = float(given.std())
    # Standardised: numbers far from zero, or tiny ones, would be lost beside the constant.
    x = np.column_stack([np.ones(len(kept)), (given - given.mean()) / scale])
    # All studies of one network together count as much as a single study of another.
    share = np.empty(len(some))
    for places in clusters:
        share[places] = len(places)
    between = _left_between(taus, x, errors)
    weights = 1 / (errors**2 + between) / share
    slope, residuals = _fit(taus, x, weights)
    centres = [float(x[places, 1].mean()) for places in clusters]
    # Where every network has the same numbers, each has a slope of its own.
    free = len(clusters) - (2 if np.ptp(centres) > 1e-9 else 1)
    seen = float(weights @ residuals**2) / max(1, free)
    promised = float(np.linalg.inv(x.T @ (weights[:, None] * x))[1, 1])
    error = math.sqrt(promised * max(1.0, seen))
    if len(clusters) < len(some):
        left = []
        for places in clusters:
            rest = np.setdiff1d(np.arange(len(some)), places)
            if np.ptp(x[rest, 1]) == 0:
                return None
            left.append(_fit(taus[rest], x[rest], weights[rest])[0])
        number = len(clusters)
        error = max(error, math.sqrt((number - 1) * float(np.var(left))))
    reach = float(stats.t.ppf(0.975, free)) * error
    p_value = float(2 * stats.t.sf(abs(slope) / error, free))
    slope, reach = slope / scale, reach / scale
    return Slope(slope, slope - reach, slope + reach, p_value)


def _fit(taus: np.ndarray, x: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The slope of weighted least squares, and its residuals."""
    root = np.sqrt(weights)
    found = np.linalg.lstsq(root[:, None] * x, root * taus, rcond=None)[0]
    return float(found[1]), taus - x @ found


def _left_between(taus: np.ndarray, x: np.ndarray, errors: np.ndarray) -> float:
    """The variance between studies that makes weighted residuals as large as expected."""
    from scipy import optimize

    def excess(between: float) -> float:
        weights = 1 / (errors**2 + between)
        return float(weights @ _fit(taus, x, weights)[1] ** 2) - (len(taus) - 2)

    if excess(0.0) <= 0:
        return 0.0
    return float(optimize.brentq(excess, 0.0, 4.0))  # no variance of numbers in [-1, 1] is larger
