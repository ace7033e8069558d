"""What the linked plots of a page are drawn from, as plain values: the page computes nothing.

Everything that a control can choose is here: each study (an arm, a point of a grid), each of its
dense networks, each criterion, each outcome, and each retraining seed beside their mean.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from trueoracle.analysis.curves import learning_curves, spread
from trueoracle.analysis.filters import filter_worth
from trueoracle.analysis.numbers import ABSENT, interval, mean_count, number, percent
from trueoracle.analysis.relation import relate
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import InputError
from trueoracle.record.paths import DENSE
from trueoracle.record.results import SHORT, Results
from trueoracle.report.drawings import filter_names
from trueoracle.report.share import recorded_name
from trueoracle.report.words import pruned_in_words

__all__ = ["MEAN", "kernels", "linked"]

MEAN = "mean"
"""The seed of the control that takes the mean over all of them."""

MOST_CURVE_POINTS = 1_500_000
"""The most epochs of all learning curves of a page; of more, only every second, third, … is kept.

Each takes 8/3 bytes of the page.
"""

_MOST_KERNELS = 64
_LEVELS = 65534  # of a learning curve between its lowest and its highest value; one more is "none"

Summary = Mapping[str, Any]


def linked(studies: Sequence[tuple[Results, Summary, str, str]], rule: str) -> dict[str, Any]:
    """The values of several studies, the first one first.

    ``studies`` are (results, summary, label, badge); the summary is that of
    :func:`trueoracle.report.summary.summarise`, whose numbers are repeated and never computed anew.
    """
    shown = [one for one in studies if one[1]["relations"]]
    outcomes, criteria = dict[str, dict[str, Any]](), dict[str, str]()
    for results, summary, _, _ in shown:
        for relation in summary["relations"]:
            criteria.setdefault(relation["criterion"], relation["score_name"])
            one = results.outcome(relation["metric"], rule)
            outcomes.setdefault(
                one.column,
                {
                    "name": one.name,
                    "axis": one.axis,
                    "label": one.label,
                    "higher": one.higher_is_better,
                },
            )
    points = sum(len(one.outcomes) * len(outcomes) for one, _, _, _ in shown)
    stride = max(1, math.ceil(points / MOST_CURVE_POINTS))
    return {
        "criteria": [{"name": name, "label": label} for name, label in criteria.items()],
        "outcomes": [{"column": column, **one} for column, one in outcomes.items()],
        "studies": [_study(*one, rule, stride) for one in shown],
    }


def _study(
    results: Results, summary: Summary, label: str, badge: str, rule: str, stride: int
) -> dict[str, Any]:
    """A study: what is said over its dense networks, and each network."""
    own = {one["dense_seeds"][0]: one for one in summary["networks"] or [summary]}
    both = [(one, own[seed]) for seed, one in results.networks.items() if own[seed]["relations"]]
    alike = next((one["agreement"] for one in (summary["comparison"] or {}).values() if one), None)
    return {
        "label": label,
        "title": summary["title"],
        "badge": badge,
        "epochs": summary["epochs"],
        "over": len(both),
        "relations": _by_criterion(summary["relations"], _of_study),
        "ceilings": {
            column: None if one is None else one.get("ceiling")
            for column, one in summary["ceilings"].items()
        },
        "alike": alike,
        "networks": [_network(one, own, rule, stride) for one, own in both],
    }


def _by_criterion(
    relations: Sequence[Mapping[str, Any]], of: Any
) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for relation in relations:
        found.setdefault(relation["criterion"], {})[relation["metric"]] = of(relation)
    return found


def _of_study(relation: Mapping[str, Any]) -> dict[str, Any]:
    names = ("agreement", "agreement_low", "agreement_high")
    value, low, high = (_rounded(relation[name]) for name in names)
    return {
        "agreement": value,
        "low": low,
        "high": high,
        "certain": bool(relation["certain"]),
        "answer": relation["answer"],
        "verdict": relation["verdict"],
        "facts": _facts(relation, relation.get("ceiling")),
    }


def _facts(relation: Mapping[str, Any], ceiling: float | None) -> str:
    """The numbers of a relation that stand below its scatter."""
    said = f"Agreement {number(relation['agreement'], 2)}"
    around = interval(relation.get("agreement_low"), relation.get("agreement_high"))
    said += "" if around == ABSENT else f" {around}"
    if ceiling is not None:
        said += f"; noise leaves about {number(ceiling, 2)}"
    return (
        f"{said}. The chosen candidate is number {mean_count(relation['rank'])} of "
        f"{relation['n']:,}; anomalies: {percent(relation['anomaly_ratio'])}."
    )


def _network(results: Results, summary: Summary, rule: str, stride: int) -> dict[str, Any]:
    """One dense network: its candidates, and all that is drawn of them."""
    spec, candidates = results.spec, results.candidates
    columns = list(dict.fromkeys(one["metric"] for one in summary["relations"]))
    criteria = list(dict.fromkeys(one["criterion"] for one in summary["relations"]))
    own = {name: recorded_name(results, name) for name in criteria}
    tables = {column: results.table(column, rule, [*own.values()]) for column in columns}
    by_seed = {column: results.by_seed(column, rule) for column in columns}
    names = filter_names(results)
    pruned = tables[columns[0]].pruned
    return {
        "label": str(spec.dense.seed),
        "seeds": [str(seed) for seed in by_seed[columns[0]].columns],
        "pruned": [pruned_in_words(one) for one in candidates["pruned"]],
        "filters": names,
        "prunes": [] if pruned is None else [np.flatnonzero(row).tolist() for row in pruned],
        "scores": {name: _column(results.score(one).values) for name, one in own.items()},
        "outcomes": {
            column: {
                MEAN: _column(tables[column].outcome),
                **{str(seed): _column(one.to_numpy()) for seed, one in by_seed[column].items()},
            }
            for column in columns
        },
        "relations": _relations(results, summary, tables, by_seed),
        "short": _short(results, summary, tables, rule),
        "curves": {
            column: _curves(results.outcomes, candidates["candidate"], column, stride)
            for column in columns
        },
        "worth": {column: _worth(tables[column]) for column in columns if names},
        "kernels": kernels(results),
    }


def _relations(
    results: Results,
    summary: Summary,
    tables: Mapping[str, CandidateTable],
    by_seed: Mapping[str, pd.DataFrame],
) -> dict[str, Any]:
    """By criterion, outcome and seed: agreement, which candidate is chosen, which end better."""
    found: dict[str, Any] = {}
    for relation in summary["relations"]:
        name, column = relation["criterion"], relation["metric"]
        own = found.setdefault(name, {}).setdefault(column, {})
        scores = results.score(recorded_name(results, name)).values
        own[MEAN] = _of_study(relation) | _chosen(relation, scores, tables[column].outcome)
        for seed, outcomes in by_seed[column].items():
            values = outcomes.to_numpy()
            try:
                one = relate(
                    scores, values, higher_is_better=tables[column].higher_is_better
                ).as_dict()
            except InputError:  # nothing is retrained with this seed yet
                continue
            said = {"agreement": _rounded(one["agreement"]), "facts": _facts(one, None)}
            own[str(seed)] = said | _chosen(one, scores, values)
    return found


def _chosen(
    relation: Mapping[str, Any], scores: np.ndarray, outcomes: np.ndarray
) -> dict[str, Any]:
    """The rows of the chosen candidate, or of those that tie, and of those that end better."""
    lowest, reached = relation["chosen_score"], relation["chosen_outcome"]
    if lowest is None or reached is None:
        return {"chosen": [], "better": [], "score": lowest, "outcome": reached}
    better = outcomes > reached if relation["higher_is_better"] else outcomes < reached
    return {
        "chosen": np.flatnonzero(scores == lowest).tolist(),
        "better": np.flatnonzero(better & np.isfinite(scores)).tolist(),
        "score": lowest,
        "outcome": reached,
    }


def _short(
    results: Results, summary: Summary, tables: Mapping[str, CandidateTable], rule: str
) -> dict[str, Any] | None:
    """The outcomes of a shorter retraining beside the full one's, by outcome."""
    if results.short is None:
        return None
    found = {}
    said = (summary["short_retraining"] or {"relations": []})["relations"]
    for column in tables:
        outcome = results.outcome(column, rule)
        score = results.score(SHORT, outcome)
        known = next((one for one in said if one["metric"] == column), None)
        ends = tables[column].outcome
        if known is None:
            known = relate(
                score.values,
                ends,
                higher_is_better=outcome.higher_is_better,
                higher_score_is_better=score.higher_is_chosen,
            ).as_dict()
        found[column] = {
            "label": score.label,
            "values": _column(score.values),
            "facts": _facts(known, known.get("ceiling")),
            **_chosen(known, score.values, ends),
        }
    return found


def _worth(table: CandidateTable) -> dict[str, Any] | None:
    known = filter_worth(table)
    if known is None:
        return None
    return {
        "pruned": _column(known.pruned),
        "kept": _column(known.kept),
        "additive": _column(known.additive),
        "fitted": _column(known.fitted),
        "pairs": None if known.pairs is None else _rows(known.pairs),
    }


def _curves(
    epochs: pd.DataFrame, candidates: pd.Series, column: str, stride: int
) -> dict[str, Any] | None:
    """All learning curves ``[P, S, E]`` as base64 of 16-bit levels, and their spread by epoch.

    A level is little-endian, from 0 for ``low`` to 65534 for ``high``; 65535 is no value.
    """
    found = learning_curves(epochs, candidates, column, stride)
    values, known = found.values, np.isfinite(found.values)
    if not known.any():
        return None
    low, high = float(values[known].min()), float(values[known].max())
    levels = np.full(values.shape, _LEVELS + 1, dtype="<u2")
    levels[known] = np.rint((values[known] - low) / (high - low or 1.0) * _LEVELS).astype("<u2")
    return {
        "epochs": [one + 1 for one in found.epochs],
        "seeds": [str(seed) for seed in found.seeds],
        "low": low,
        "high": high,
        "levels": base64.b64encode(levels.tobytes()).decode(),
        "stride": stride,
        "spread": {
            MEAN: _rows(spread(found.mean)),
            **{str(seed): _rows(spread(values[:, i])) for i, seed in enumerate(found.seeds)},
        },
    }


def _rows(values: np.ndarray) -> list[list[float | None]]:
    return [_column(row) for row in values]


def kernels(results: Results) -> list[str]:
    """The kernels of the pruned filters that see the picture itself, as data URIs of pictures.

    One per name of :func:`filter_names`; empty where the first pruned layer is not the first of the
    network (one or three channels), and where filters are many.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    names = filter_names(results)
    layers = {name.rpartition(" ")[0] for name in names}
    if not 0 < len(names) <= _MOST_KERNELS or len(layers) != 1:
        return []
    try:
        weights = load_file(results.folder / DENSE).get(f"{layers.pop()}.weight")
    except (OSError, SafetensorError, KeyError, TypeError):  # gone, or of numbers numpy lacks
        return []
    if weights is None or weights.ndim != 4 or weights.shape[1] not in (1, 3):
        return []
    numbers = [int(name.rpartition(" ")[2]) for name in names]
    if max(numbers) >= len(weights) or 1 in weights.shape[2:]:
        return []
    most = float(np.abs(weights).max()) or 1.0
    return [_picture(weights[number] / most) for number in numbers]


def _picture(kernel: np.ndarray) -> str:
    """A kernel ``[C, H, W]`` of numbers from -1 to 1 as a picture in which zero is grey."""
    pixels = np.rint((kernel.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    held = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(held, "png")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"


def _column(values: np.ndarray) -> list[float | None]:
    return [_rounded(float(value)) for value in values]


def _rounded(value: float | None) -> float | None:
    """A value to six digits, which is more than a plot or a table shows; None where not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.6g}")
