"""The pictures of a study as a page shows them without its script, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from trueoracle.analysis.numbers import many, mean_count
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import SHORT, Results
from trueoracle.report.drawings import (
    Drawn,
    Folder,
    filter_names,
    ladder_figure,
    ladder_in_words,
    learning_figure,
    networks_forest,
    networks_panel,
    panel_figure,
    scatter_figure,
    slug,
    worth_figure,
)
from trueoracle.report.words import (
    CERTAIN,
    best_first,
    ceiling_sentences,
    pruned_in_words,
)

__all__ = [
    "FEW",
    "stills_of",
]

FEW = 4
"""The most criteria that all get a figure of their own; of more, only the best and the oracle."""

_LADDER = (
    "Agreement is τ with its sign turned so that +1 is perfect; criteria are in the order of its "
    f"mean over the outcomes. A filled dot is certain not to be zero: {CERTAIN}. Where the study "
    "does not say what candidates prune, none is."
)


def stills_of(
    results: Results,
    summary: dict[str, Any],
    relations: Sequence[dict[str, Any]],
    rule: str,
    folder: Folder,
    *,
    is_first: bool,
) -> dict[str, tuple[Drawn, ...]]:
    """The pictures of a study by the id of their view; more figures are written than are shown."""
    name, found = summary["study"], dict[str, list[Drawn | None]]()
    found["ladder"] = [
        folder.draw(
            lambda: ladder_figure(summary, relations),
            f"{name}-criteria",
            alt=ladder_in_words(relations),
            caption=" ".join([_LADDER, *ceiling_sentences(summary)]),
        )
    ]
    alone = _alone(summary["relations"])
    for relation in relations:
        if relation["criterion"] != SHORT and (
            (relation["criterion"], relation["metric"]) not in alone
        ):
            continue
        view = "short" if relation["criterion"] == SHORT else "scatter"
        found.setdefault(view, []).extend(_scatters(results, summary, relation, rule, folder))
    _panels(results, summary, rule, folder)
    first = next(r for r in relations if r["criterion"] != SHORT)
    if is_first and len(results.networks) == 1:
        found |= _of_candidates(results, summary, first, rule, folder)
    return {view: tuple(filter(None, drawn[:1])) for view, drawn in found.items()}


def _scatters(
    results: Results,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> list[Drawn | None]:
    if isinstance(results, PooledResults):
        return _networks(results, summary, relation, rule, folder)
    words = f"{relation['criterion']} against {relation['outcome_name']}: {relation['verdict']}"
    return [
        folder.draw(
            lambda: scatter_figure(results, relation, rule),
            f"{summary['study']}-{slug(relation['criterion'])}-{relation['metric']}",
            alt=words,
            caption=_caption(relation),
        )
    ]


def _of_candidates(
    results: Results,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> dict[str, list[Drawn | None]]:
    """The learning curves, and which filters matter, for one outcome of one dense network."""
    name, outcome = summary["study"], relation["outcome_name"]
    found = {
        "curves": [
            folder.draw(
                lambda: learning_figure(results, relation, rule),
                f"{name}-curves-{relation['metric']}",
                alt=f"Learning curves of all candidates: {outcome} by epoch.",
                caption="Grey: all candidates, the middle half of them and their median by epoch.",
            )
        ]
    }
    if filter_names(results):
        found["filters"] = [
            folder.draw(
                lambda: worth_figure(results, relation, rule),
                f"{name}-filters-{relation['metric']}",
                alt=f"Mean {outcome} of the candidates that prune each filter, and that keep it.",
                caption="Left: candidates that prune a filter (filled) and that keep it. Right: "
                "those that prune both of two.",
            )
        ]
    return found


def _networks(
    results: PooledResults,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> list[Drawn | None]:
    """One criterion against one outcome in every dense network."""
    stem = f"{summary['study']}-{slug(relation['criterion'])}-{relation['metric']}"
    words = f"{relation['criterion']} against {relation['outcome_name']}"
    over = f"95% over {relation['interval_over']}" if relation["interval_over"] else "no interval"
    return [
        folder.draw(
            lambda: networks_forest(summary, relation),
            f"{stem}-forest",
            alt=f"{words}, network by network: {relation['verdict']}",
            caption=f"{words} in each dense network, its own interval given that network; the "
            f"diamond is their mean ({over}).",
        ),
        folder.draw(
            lambda: networks_panel(results, summary, relation, rule),
            stem,
            alt=f"{words}, one scatter for each dense network.",
            caption=f"{words}, network by network; a star has the lowest score.",
        ),
    ]


def _alone(relations: Sequence[Mapping[str, Any]]) -> set[tuple[str, str]]:
    """The criteria that have a scatter of their own, as (criterion, metric)."""
    found = set()
    for metric in dict.fromkeys(r["metric"] for r in relations):
        own = best_first([r for r in relations if r["metric"] == metric])
        names = [r["criterion"] for r in own]
        found |= {
            (name, metric) for name in names if len(names) <= FEW or name in ("oracle", names[0])
        }
    return found


def _panels(results: Results, summary: Mapping[str, Any], rule: str, folder: Folder) -> None:
    """Write one figure per outcome with all criteria, unless each has a scatter of its own."""
    if isinstance(results, PooledResults):  # there, each network has a panel
        return
    for metric in dict.fromkeys(r["metric"] for r in summary["relations"]):
        own = best_first([r for r in summary["relations"] if r["metric"] == metric])
        if len(own) > FEW:
            draw = partial(panel_figure, results, own, metric, rule)
            folder.draw(draw, f"{summary['study']}-every-criterion-{metric}", alt="")


def _caption(relation: Mapping[str, Any]) -> str:
    end = "Highest" if relation["higher_score_is_better"] else "Lowest"
    place = f"number {mean_count(relation['rank'])} of {relation['n']:,}"
    if relation["tied"] > 1:
        text = (
            f"{end} {relation['score_name']}: {relation['tied']:,} candidates share it, and end as "
            f"{place} on average."
        )
    else:
        text = (
            f"{end} {relation['score_name']}: prunes {pruned_in_words(relation['chosen_pruned'])}; "
            f"ends as {place}."
        )
    if dropped := relation["dropped"]:
        text += f" {many(dropped, 'candidate')} without a finite value "
        text += "are left out." if dropped > 1 else "is left out."
    return text
