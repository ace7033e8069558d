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
    """Raw tau in one study, its standard error and 95 % interval."""

    label: str
    tau: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True)
class MetaAnalysis:
    """The mean of raw tau over studies that differ.

    - ``low`` to ``high`` bound the mean, ``prediction_low`` to ``prediction_high`` the tau of one
      more study like these (95 % both);
    - ``tau2`` is the variance between studies, ``i2`` the share of all variance that it makes up;
    - ``q`` is Cochran's statistic of no difference between studies, ``p_value`` its p-value;
    - ``weights`` of the studies sum to 1.

    Where there is a single study, all but its tau and own interval are NaN.
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
                }
            )
            for effect, weight in zip(self.effects, self.weights, strict=True)
        ]
        return plain


_LEAST_ERROR = 1e-3
"""No tau of a few hundred candidates is known better; without a bound one study could be all."""


def textbook_error(tau: float, n: int) -> float:
    """The standard error of tau over n independent candidates (Fieller, Hartley & Pearson 1957).

    Theirs is of atanh(tau), 0.437/(n-4) squared; NaN below five candidates. Candidates overlap, so
    that it is too small; for tables that hold no more than scores and outcomes.
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
) -> Effect | None:
    """An effect, with the textbook's error where none is given; None where neither is defined."""
    error = math.nan if standard_error is None else standard_error
    if math.isnan(error):
        error = textbook_error(tau, n)
    if not (math.isfinite(tau) and math.isfinite(error)):
        return None
    if math.isnan(interval.low):
        interval = Interval(max(-1.0, tau - _Z * error), min(1.0, tau + _Z * error))
    return Effect(label, tau, error, interval.low, interval.high)


def meta_analysis(effects: Sequence[Effect]) -> MetaAnalysis:
    """The random-effects mean of tau, its variance between studies by Paule and Mandel (1982).

    Its interval is that of Hartung and Knapp (2001), which holds for few studies, in the form that
    is never narrower than the errors by themselves would make it (Röver, Knapp & Friede 2015); the
    prediction interval is that of Higgins, Thompson and Spiegelhalter (2009).
    Raises :class:`InputError` where there is no study.
    """
    effects = tuple(effects)
    if not effects:
        raise InputError("a meta-analysis needs at least one study with a tau")
    taus = np.array([effect.tau for effect in effects])
    errors = np.maximum([effect.standard_error for effect in effects], _LEAST_ERROR)
    if len(effects) == 1:
        (one,) = effects
        return MetaAnalysis(effects, (1.0,), one.tau, one.low, one.high, *(math.nan,) * 6)
    from scipy import stats
    from statsmodels.stats.meta_analysis import combine_effects

    with np.errstate(divide="ignore", invalid="ignore"):  # its I², where all studies are equal
        fitted = combine_effects(taus, errors**2, method_re="iterated", use_t=True)
    between = max(0.0, float(fitted.tau2))
    weights = 1 / (errors**2 + between)
    weights /= weights.sum()
    mean = float(weights @ taus)
    count = len(taus)
    # Hartung and Knapp: the scatter that is seen; but a few studies can agree by chance, and then
    # it is no less than what their errors promise.
    promised = 1 / float((1 / (errors**2 + between)).sum())
    spread = math.sqrt(max(float(weights @ (taus - mean) ** 2) / (count - 1), promised))
    reach = float(stats.t.ppf(0.975, count - 1)) * spread
    nan = math.nan
    predicted = (nan, nan)
    if count > 2:
        wide = float(stats.t.ppf(0.975, count - 2)) * math.sqrt(between + spread**2)
        predicted = (max(-1.0, mean - wide), min(1.0, mean + wide))
    fixed = 1 / errors**2
    centre = (fixed @ taus) / fixed.sum()
    q = float(fixed @ (taus - centre) ** 2)
    return MetaAnalysis(
        effects=effects,
        weights=tuple(map(float, weights)),
        tau=mean,
        low=max(-1.0, mean - reach),
        high=min(1.0, mean + reach),
        prediction_low=predicted[0],
        prediction_high=predicted[1],
        tau2=between,
        i2=max(0.0, (q - (count - 1)) / q) if q > 0 else 0.0,
        q=q,
        p_value=float(stats.chi2.sf(q, count - 1)),
    )


@dataclass(frozen=True)
class Slope:
    """How tau changes with what makes a study harder: per unit of it, with its 95 % interval."""

    slope: float
    low: float
    high: float
    p_value: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: NaN becomes None."""
        return finite_or_none(asdict(self))


def slope_in(effects: Sequence[Effect], complexity: Sequence[float]) -> Slope | None:
    """Meta-regression of tau on one number per study, such as width or the dense network's error.

    Weighted least squares, the variance that the slope leaves between studies by Paule and
    Mandel's equation; errors from the scatter seen. None for fewer than three studies, or where
    the number is the same for all.
    """
    both = zip(effects, complexity, strict=True)
    kept = [(one, float(x)) for one, x in both if math.isfinite(x)]
    if len(kept) < 3 or len({x for _, x in kept}) < 2:
        return None
    import statsmodels.api as sm

    taus = np.array([one.tau for one, _ in kept])
    errors = np.maximum([one.standard_error for one, _ in kept], _LEAST_ERROR)
    x = sm.add_constant(np.array([x for _, x in kept]), has_constant="add")

    def excess(between: float) -> float:
        """What weighted squares of the residuals have over their expectation."""
        left = sm.WLS(taus, x, weights=1 / (errors**2 + between)).fit().wresid
        return float((left**2).sum() - (len(taus) - 2))

    between, most = 0.0, 4.0  # no variance of numbers in [-1, 1] is larger
    if excess(0.0) > 0:
        from scipy import optimize

        between = float(optimize.brentq(excess, 0.0, most))
    fitted = sm.WLS(taus, x, weights=1 / (errors**2 + between)).fit()
    low, high = fitted.conf_int()[1]
    return Slope(float(fitted.params[1]), float(low), float(high), float(fitted.pvalues[1]))
