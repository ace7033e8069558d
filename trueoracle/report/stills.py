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
    title_of,
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
    "left_out_in_words",
    "stills_of",
    "stills_of_candidates",
    "stills_of_point",
]

FEW = 4
"""The most criteria that all get a figure of their own; of more, only the best and the oracle.

Likewise the most studies of a page whose pictures are all shown.
"""


def left_out_in_words(studies: int) -> str:
    """Which studies of a page have no pictures of their own; empty where all have."""
    if studies <= FEW:
        return ""
    shown = f"the first {FEW} of {studies} studies"
    return f"Pictures are of {shown}; the page's script draws any of them."


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
) -> dict[str, tuple[Drawn, ...]]:
    """The pictures of a study by the id of their view; more figures are written than are shown."""
    found: dict[str, list[Drawn | None]] = {}
    alone = _alone(summary["relations"])
    for relation in relations:
        if relation["criterion"] != SHORT and (
            (relation["criterion"], relation["metric"]) not in alone
        ):
            continue
        view = "short" if relation["criterion"] == SHORT else "scatter"
        found.setdefault(view, []).extend(_scatters(results, summary, relation, rule, folder))
    _panels(results, summary, rule, folder)
    shown = {view: tuple(filter(None, drawn[:1])) for view, drawn in found.items()}
    return shown | stills_of_candidates(results, summary, relations, rule, folder)


def stills_of_candidates(
    results: Results,
    summary: dict[str, Any],
    relations: Sequence[dict[str, Any]],
    rule: str,
    folder: Folder,
) -> dict[str, tuple[Drawn, ...]]:
    """The ladder of criteria, the learning curves, and which filters matter.

    The last two are of the first outcome, and of the first dense network, which the captions say.
    """
    name = summary["study"]
    one, relation = _first(results, summary, relations)
    of = f" in dense network {one.spec.dense.seed}" if one is not results else ""
    outcome, column = relation["outcome_name"], relation["metric"]
    ladder = folder.draw(
        lambda: ladder_figure(results, relations),
        f"{name}-criteria",
        alt=ladder_in_words(relations),
        caption=" ".join([_LADDER, *ceiling_sentences(summary)]),
    )
    curves = folder.draw(
        lambda: learning_figure(one, relation, rule, title_of(results)),
        f"{name}-curves-{column}",
        alt=f"Learning curves of all candidates{of}: {outcome} by epoch.",
        caption=f"Grey: all candidates{of}, the middle half of them and their median by epoch.",
    )
    worth = None
    if filter_names(one):
        worth = folder.draw(
            lambda: worth_figure(one, relation, rule, title_of(results)),
            f"{name}-filters-{column}",
            alt=f"Mean {outcome} of the candidates{of} that prune each filter, and that keep it.",
            caption=f"Left: candidates{of} that prune a filter (filled) and that keep it; a "
            "cross: what a sum over filters, fitted to all candidates, makes of pruning it. Right: "
            "those that prune both of two.",
        )
    drawn = {"ladder": ladder, "curves": curves, "filters": worth}
    return {view: (one,) for view, one in drawn.items() if one is not None}


def stills_of_point(
    results: Results, summary: dict[str, Any], rule: str, folder: Folder
) -> dict[str, tuple[Drawn, ...]]:
    """The pictures of a grid's point: a scatter, and those of :func:`stills_of_candidates`."""
    relations = best_first(summary["relations"])
    found = stills_of_candidates(results, summary, relations, rule, folder)
    one, relation = _first(results, summary, summary["relations"])
    drawn = _scatter(one, summary, relation, rule, folder, title_of(results))
    return found | ({"scatter": (drawn,)} if drawn else {})


def _first(
    results: Results, summary: Mapping[str, Any], relations: Sequence[Mapping[str, Any]]
) -> tuple[Results, Mapping[str, Any]]:
    """The first dense network of which any candidate is retrained, and the first relation in it."""
    first = next(r for r in relations if r["criterion"] != SHORT)
    if not isinstance(results, PooledResults):
        return results, first
    wanted = first["criterion"], first["metric"]
    seed, one = next(iter(results.retrained.items()))
    own = next(each for each in summary["networks"] if each["dense_seeds"][0] == seed)
    within = (r for r in own["relations"] if (r["criterion"], r["metric"]) == wanted)
    return one, next(within)


def _scatters(
    results: Results,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
) -> list[Drawn | None]:
    if isinstance(results, PooledResults):
        return _networks(results, summary, relation, rule, folder)
    return [_scatter(results, summary, relation, rule, folder, title_of(results))]


def _scatter(
    results: Results,
    summary: Mapping[str, Any],
    relation: Mapping[str, Any],
    rule: str,
    folder: Folder,
    title: str,
) -> Drawn | None:
    """One criterion against one outcome in one dense network."""
    words = f"{relation['criterion']} against {relation['outcome_name']}: {relation['verdict']}"
    return folder.draw(
        lambda: scatter_figure(results, relation, rule, title),
        f"{summary['study']}-{slug(relation['criterion'])}-{relation['metric']}",
        alt=words,
        caption=_caption(relation),
    )


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
            lambda: networks_forest(results, summary, relation),
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
