"""The numbers of relations as tables of text, for the pages of a study and of a grid alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trueoracle.analysis.numbers import ABSENT, interval, mean_count, number, p_value, percent

__all__ = ["Table", "differences_table", "further_table", "partial_table", "relations_table"]

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first ``texts`` columns are words, the others numbers.

    ``titles`` says in a few words what each column is; ``strong`` is the one that matters most.
    """

    headings: tuple[str, ...]
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int
    strong: int


@dataclass(frozen=True)
class _Column:
    heading: str
    title: str
    cell: Callable[[Entry], str]


def _number(name: str, digits: int) -> Callable[[Entry], str]:
    return lambda entry: number(entry.get(name), digits)


def _percent(name: str) -> Callable[[Entry], str]:
    return lambda entry: percent(entry.get(name))


def _p_value(name: str) -> Callable[[Entry], str]:
    return lambda entry: p_value(entry.get(name))


def _interval(name: str, digits: int) -> Callable[[Entry], str]:
    return lambda entry: interval(entry.get(f"{name}_low"), entry.get(f"{name}_high"), digits)


def _with_interval(name: str, digits: int) -> Callable[[Entry], str]:
    def cell(entry: Entry) -> str:
        value, around = number(entry.get(name), digits), _interval(name, digits)(entry)
        return value if around == ABSENT else f"{value} {around}"

    return cell


def _percentile(entry: Entry) -> str:
    value = entry.get("percentile")
    return ABSENT if value is None else f"{value:.0f}"


def _rank(entry: Entry) -> str:
    value, around = mean_count(entry.get("rank")), _interval("rank", 0)(entry)
    return value if around == ABSENT else f"{value} {around}"


def _tied(entry: Entry) -> str:
    count = entry.get("tied")
    return ABSENT if count is None or count == 1 else f"{count:,}"


def _share(entry: Entry) -> str:
    value = entry.get("share_of_ceiling")
    return ABSENT if value is None else f"{value:z.0%}".replace("-", "−")


_CRITERION = _Column("criterion", "what scores candidates", lambda r: str(r["criterion"]))

_MAIN = (
    _Column("agreement", "τ with its sign turned so that +1 is perfect", _number("agreement", 2)),
    _Column("Kendall's τ", "rank correlation", _number("kendall_tau", 2)),
    _Column("95% interval", "of τ, given the dense network and images", _interval("kendall", 2)),
    _Column(
        "p (Holm)",
        "filter labels permuted, adjusted for all criteria of a study, by outcome",
        _p_value("adjusted_p_value"),
    ),
    _Column("ceiling", "what retraining noise leaves, on these images", _number("ceiling", 2)),
    _Column("of ceiling", "agreement as a share of it", _share),
    _Column("anomalies", "share that ends better than the lowest score", _percent("anomaly_ratio")),
    _Column("tied", "candidates that share the lowest score: the others are means", _tied),
    _Column("over {k} lowest", "mean anomaly ratio of these", _percent("anomaly_ratio_k")),
    _Column("percentile", "of the chosen candidate, 100 is the best", _percentile),
    _Column("regret", "what the best has over the chosen", _with_interval("regret", 4)),
)
_FURTHER = (
    _Column("n", "candidates", lambda r: f"{r['n']:,}"),
    _Column("top-weighted τ", "the best count most", _number("weighted_tau", 2)),
    _Column("Spearman", "rank correlation", _number("spearman_r", 2)),
    _Column("Pearson", "linear correlation", _number("pearson_r", 2)),
    _Column("p (textbook)", "as if candidates were independent", _p_value("kendall_p_value")),
    _Column("discordant", "share of pairs in opposite order", _percent("discordant_ratio")),
    _Column("rank", "of the chosen candidate, 1 is the best", _rank),
    _Column("beats random", "share of random choices that it beats", _percent("beats_random")),
    _Column("precision at {k}", "of the lowest scores", _percent("precision_at_k")),
    _Column("regret at {k}", "of the best of the lowest scores", _number("regret_at_k", 4)),
)  # fmt: skip


def relations_table(entries: Sequence[tuple[Mapping[str, str], Entry]]) -> Table:
    """The numbers that matter, from (words by heading, relation) of each row.

    Columns of which nothing is known are left out.
    """
    return _of_relations(entries, _MAIN, strong="agreement")


def further_table(entries: Sequence[tuple[Mapping[str, str], Entry]]) -> Table:
    """The other numbers of the same rows."""
    return _of_relations(entries, _FURTHER, strong="")


def _of_relations(
    entries: Sequence[tuple[Mapping[str, str], Entry]], columns: Sequence[_Column], strong: str
) -> Table:
    relations = [relation for _, relation in entries]
    known = {k for relation in relations if (k := relation.get("k")) is not None}
    k = str(known.pop()) if len(known) == 1 else "k"
    columns = [replace(one, heading=one.heading.format(k=k)) for one in columns]
    words = list(dict.fromkeys(heading for own, _ in entries for heading in own))
    named = [(heading, heading, [own.get(heading, "") for own, _ in entries]) for heading in words]
    return _table(named, (_CRITERION,), columns, relations, strong)


def differences_table(entries: Sequence[tuple[str, Entry]]) -> Table:
    """Paired differences of agreement between criteria, from (outcome, difference).

    By outcome, and the most certain first.
    """
    columns = (
        _Column("difference", "of agreement, paired", _number("difference", 2)),
        _Column("95% interval", "of the difference", lambda d: interval(d["low"], d["high"])),
        _Column("p (Holm)", "adjusted for all of an outcome", _p_value("adjusted_p_value")),
    )
    names = (
        _Column("first", "its agreement", lambda d: str(d["first"])),
        _Column("second", "less this one's", lambda d: str(d["second"])),
    )
    outcomes = list(dict.fromkeys(outcome for outcome, _ in entries))

    def doubt(entry: tuple[str, Entry]) -> tuple[int, float, float]:
        p, raw = (entry[1].get(name) for name in ("adjusted_p_value", "p_value"))
        if p is None or raw is None:
            return outcomes.index(entry[0]), 2.0, 2.0
        # Holm's are often equal, at 1: then in the order of what they were adjusted from.
        return outcomes.index(entry[0]), float(p), float(raw)

    return _of_outcomes(sorted(entries, key=doubt), names, columns, "difference")


def partial_table(entries: Sequence[tuple[str, Entry]]) -> Table:
    """Partial correlations, from (outcome, partial): what a criterion tells beyond another."""
    names = (
        _Column("criterion", "what scores candidates", lambda d: str(d["criterion"])),
        _Column("given", "what is known already", lambda d: str(d["given"])),
    )
    columns = (_Column("partial τ", "of the criterion with the outcome", _number("tau", 2)),)
    return _of_outcomes(entries, names, columns, "partial τ")


def _of_outcomes(
    entries: Sequence[tuple[str, Entry]],
    names: Sequence[_Column],
    columns: Sequence[_Column],
    strong: str,
) -> Table:
    words = [("outcome", "what criteria are held against", [outcome for outcome, _ in entries])]
    return _table(words, names, columns, [entry for _, entry in entries], strong)


def _table(
    words: Sequence[tuple[str, str, list[str]]],
    names: Sequence[_Column],
    columns: Sequence[_Column],
    entries: Sequence[Entry],
    strong: str,
) -> Table:
    filled = list(words)
    filled += [(one.heading, one.title, [one.cell(e) for e in entries]) for one in names]
    texts = len(filled)
    for one in columns:
        cells = [one.cell(entry) for entry in entries]
        if any(cell != ABSENT for cell in cells):
            filled.append((one.heading, one.title, cells))
    headings = tuple(heading for heading, _, _ in filled)
    rows = tuple(zip(*(cells for _, _, cells in filled), strict=True))
    titles = tuple(title for _, title, _ in filled)
    return Table(
        headings, titles, rows, texts, headings.index(strong) if strong in headings else -1
    )
