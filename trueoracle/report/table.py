"""Numbers as tables of text, for pages and terminals alike.

Tables are made here only; ``templates/parts.html`` shows them on a page, ``cli/console.py`` in a
terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from trueoracle.analysis.numbers import (
    ABSENT,
    interval,
    mean_count,
    milliseconds,
    number,
    p_value,
    percent,
    quantity,
)
from trueoracle.run.progress import duration

if TYPE_CHECKING:
    from trueoracle.spec.file import Published

__all__ = [
    "Column",
    "PublishedTable",
    "TextTable",
    "brief_table",
    "costs_table",
    "differences_table",
    "further_table",
    "networks_table",
    "number_cell",
    "partial_table",
    "published_table",
    "relations_table",
    "text_table_of",
]

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class TextTable:
    """Headings and rows of text; the first ``texts`` columns are words, the others numbers.

    ``titles`` says in a few words what each column is; ``strong`` is the column that matters most
    (-1 for none), and ``marked`` are the rows that stand out.
    """

    headings: tuple[str, ...]
    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int
    strong: int = -1
    marked: tuple[int, ...] = ()


@dataclass(frozen=True)
class Column:
    """A column: its heading, its meaning in a few words, and the function for an entry's cell."""

    heading: str
    title: str
    cell: Callable[[Entry], str]


def number_cell(name: str, digits: int) -> Callable[[Entry], str]:
    """The function that gives the cell of an entry's number ``name``."""
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


def _held_out_regret(entry: Entry) -> str:
    value, around = number(entry.get("held_out_regret"), 4), _interval("regret", 4)(entry)
    return value if around == ABSENT else f"{value} {around}"


def _percentile(entry: Entry) -> str:
    value = entry.get("percentile")
    return ABSENT if value is None else f"{value:.0f}"


def _rank(entry: Entry) -> str:
    value, around = mean_count(entry.get("rank")), _interval("rank", 0)(entry)
    return value if around == ABSENT else f"{value} {around}"


def _tied(entry: Entry) -> str:
    count = entry.get("tied")
    return ABSENT if count is None or count == 1 else f"{count:,}"


_CRITERION = Column("criterion", "what scores candidates", lambda r: str(r["criterion"]))

_MAIN = (
    Column(
        "agreement", "τ with its sign turned so that +1 is perfect", number_cell("agreement", 2)
    ),
    Column("95% interval", "of the agreement: over what, is said above", _interval("agreement", 2)),
    Column("at most", "size of τ, with 95%", number_cell("at_most", 2)),
    Column(
        "p (Holm)",
        "labels of what is pruned permuted, adjusted for all that is shown",
        _p_value("adjusted_p_value"),
    ),
    Column("answer", "does it predict the outcome?", lambda r: r.get("answer") or ABSENT),
    Column("ceiling", "what noise leaves to a perfect criterion", number_cell("ceiling", 2)),
    Column(
        "without noise",
        "agreement with what retraining comes to on average",
        _with_interval("disattenuated", 2),
    ),
    Column("anomalies", "share that ends better than the lowest score", _percent("anomaly_ratio")),
    Column("tied", "candidates that share the lowest score: the others are means", _tied),
    Column("over {k} lowest", "mean anomaly ratio of these", _percent("anomaly_ratio_k")),
    Column("percentile", "of the chosen candidate, 100 is the best", _percentile),
    Column(
        "regret",
        "how much better the best by some seeds or examples is than the chosen, in others",
        _held_out_regret,
    ),
)
_FURTHER = (
    Column("Kendall's τ", "agreement, its sign as it is", number_cell("kendall_tau", 2)),
    Column("n", "candidates", lambda r: f"{r['n']:,}"),
    Column("top-weighted", "agreement, the best count most", number_cell("weighted_agreement", 2)),
    Column("Spearman", "rank correlation", number_cell("spearman_r", 2)),
    Column("Pearson", "linear correlation", number_cell("pearson_r", 2)),
    Column("p (textbook)", "as if candidates were independent", _p_value("kendall_p_value")),
    Column("discordant", "share of pairs in opposite order", _percent("discordant_ratio")),
    Column("rank", "of the chosen candidate, 1 is the best", _rank),
    Column("beats random", "share of random choices that it beats", _percent("beats_random")),
    Column("precision at {k}", "of the lowest scores", _percent("precision_at_k")),
    Column("regret, in sample", "luck of the best included", number_cell("regret", 4)),
    Column("rank of the best", "by some seeds, in the others", number_cell("best_rank", 1)),
    Column("regret at {k}", "of the best of the lowest scores", number_cell("regret_at_k", 4)),
)  # fmt: skip


def _p_or_textbook(entry: Entry) -> str:
    """Holm's p-value or, where it is unknown what candidates prune, the textbook's in brackets."""
    if entry["adjusted_p_value"] is not None:
        return p_value(entry["adjusted_p_value"])
    textbook = entry["kendall_p_value"]
    return p_value(textbook) if textbook is None else f"({p_value(textbook)})"


_BRIEF = (
    Column("n", "candidates", lambda r: str(r["n"])),
    Column("tau", "rank correlation, its sign as it is", number_cell("kendall_tau", 2)),
    Column("95%", "interval of tau", _interval("kendall", 2)),
    Column("at most", "size of tau, with 95%", number_cell("at_most", 2)),
    Column(
        "p (Holm)",
        "labels of what is pruned permuted; else the textbook's, in brackets",
        _p_or_textbook,
    ),
    Column("answer", "does it predict the outcome?", lambda r: r.get("answer") or ABSENT),
    Column("ceiling", "what noise leaves", number_cell("ceiling", 2)),
    Column("anomalies", "share that ends better than the lowest score", _percent("anomaly_ratio")),
    Column("rank", "of the chosen candidate", lambda r: mean_count(r["rank"])),
    Column("regret", "of the best by some seeds, in others", number_cell("held_out_regret", 4)),
)  # fmt: skip


def brief_table(entries: Sequence[tuple[Mapping[str, str], Entry]]) -> TextTable:
    """The numbers that fit a terminal, from (words by heading, relation) of each row."""
    words = list(dict.fromkeys(heading for own, _ in entries for heading in own))
    named = [(heading, "", [own.get(heading, "") for own, _ in entries]) for heading in words]
    return text_table_of(named, (), _BRIEF, [one for _, one in entries], keep_empty=True)


def relations_table(entries: Sequence[tuple[Mapping[str, str], Entry]]) -> TextTable:
    """The main numbers, from (words by heading, relation) of each row.

    Columns without any value are left out.
    """
    return _of_relations(entries, _MAIN, strong="agreement")


def further_table(entries: Sequence[tuple[Mapping[str, str], Entry]]) -> TextTable:
    """The other numbers of the same rows."""
    return _of_relations(entries, _FURTHER, strong="")


def networks_table(summary: Mapping[str, Any]) -> TextTable:
    """The results in each dense network of a study over several, by outcome and criterion."""
    entries = [
        (str(network["dense_seeds"][0]), relation)
        for over in summary["relations"]
        for network in summary["networks"]
        for relation in network["relations"]
        if (relation["criterion"], relation["metric"]) == (over["criterion"], over["metric"])
    ]
    relations = [relation for _, relation in entries]
    words = [
        ("outcome", "what criteria are held against", [r["outcome_name"] for r in relations]),
        ("dense network", "its seed", [seed for seed, _ in entries]),
    ]
    columns = [one for one in _MAIN if one.heading in _OF_NETWORKS]
    return text_table_of(words, (_CRITERION,), columns, relations, "agreement")


_OF_NETWORKS = ("agreement", "95% interval", "ceiling", "anomalies", "percentile")


def _of_relations(
    entries: Sequence[tuple[Mapping[str, str], Entry]], columns: Sequence[Column], strong: str
) -> TextTable:
    relations = [relation for _, relation in entries]
    known = {k for relation in relations if (k := relation.get("k")) is not None}
    k = str(known.pop()) if len(known) == 1 else "k"
    columns = [replace(one, heading=one.heading.format(k=k)) for one in columns]
    words = list(dict.fromkeys(heading for own, _ in entries for heading in own))
    named = [(heading, heading, [own.get(heading, "") for own, _ in entries]) for heading in words]
    return text_table_of(named, (_CRITERION,), columns, relations, strong)


def differences_table(entries: Sequence[tuple[str, Entry]]) -> TextTable:
    """Paired differences of agreement between criteria, from (outcome, difference).

    Rows are sorted by outcome, and within an outcome from the most certain difference on.
    """
    columns = (
        Column("difference", "of agreement, paired", number_cell("difference", 2)),
        Column("95% interval", "of the difference", lambda d: interval(d["low"], d["high"])),
        Column("p (Holm)", "adjusted for all of an outcome", _p_value("adjusted_p_value")),
    )
    names = (
        Column("first", "its agreement", lambda d: str(d["first"])),
        Column("second", "less this one's", lambda d: str(d["second"])),
    )
    outcomes = list(dict.fromkeys(outcome for outcome, _ in entries))

    def doubt(entry: tuple[str, Entry]) -> tuple[int, float, float]:
        p, raw = (entry[1].get(name) for name in ("adjusted_p_value", "p_value"))
        if p is None or raw is None:
            return outcomes.index(entry[0]), 2.0, 2.0
        # Adjusted p-values are often all 1; rows then have the order of the unadjusted ones.
        return outcomes.index(entry[0]), float(p), float(raw)

    return _of_outcomes(sorted(entries, key=doubt), names, columns, "difference")


def partial_table(entries: Sequence[tuple[str, Entry]]) -> TextTable:
    """Partial correlations, from (outcome, partial): what a criterion adds to another one."""
    names = (
        Column("criterion", "what scores candidates", lambda d: str(d["criterion"])),
        Column("given", "what is known already", lambda d: str(d["given"])),
    )
    columns = (
        Column("partial τ", "of the criterion with the outcome", number_cell("kendall_tau", 2)),
    )
    return _of_outcomes(entries, names, columns, "partial τ")


def costs_table(studies: Sequence[tuple[str, Entry]]) -> TextTable:
    """What pruning saves and what the studies took, from (label, summary) of each."""

    def cost(*names: str) -> Callable[[Entry], str]:
        def cell(entry: Entry) -> str:
            known = entry["cost"]
            if known is None or any(known[name] is None for name in names):
                return ABSENT
            return quantity(*(known[name] for name in names))

        return cell

    def times(name: str) -> Callable[[Entry], str]:
        def cell(entry: Entry) -> str:
            value = (entry["cost"] or {}).get(name)
            return ABSENT if value is None else f"{value:.2f}×"

        return cell

    def latency(place: int) -> Callable[[Entry], str]:
        def cell(entry: Entry) -> str:
            known = entry["latency"]
            if known is None or place >= len(known["batch"]):
                return ABSENT
            shown = milliseconds(known["pruned"][place], known["dense"][place])
            return f"{known['batch'][place]}: {shown}" if place else shown

        return cell

    columns = (
        Column("parameters", "of the dense network's", cost("parameters", "dense_parameters")),
        Column("compression", "dense by pruned parameters", times("compression_ratio")),
        Column("MACs", "for one example, of the dense network's", cost("macs", "dense_macs")),
        Column("theoretical speed-up", "by MACs, not measured", times("theoretical_speedup")),
        Column("latency, one example", "of the dense network's, measured", latency(0)),
        Column("latency, a batch", "how many examples: of the dense network's", latency(1)),
        Column("retrained", "networks", lambda s: f"{s['retrained']:,} of {s['to_retrain']:,}"),
        Column("time retraining", "of all networks", lambda s: duration(s["retraining_seconds"])),
    )  # fmt: skip
    words = [("study", "which", [label for label, _ in studies])]
    return text_table_of(words, (), columns, [summary for _, summary in studies])


@dataclass(frozen=True)
class PublishedTable:
    """Published values beside ours, and what the two have in common and what not."""

    intro: str
    table: TextTable


def published_table(
    settings: Sequence[Published], relations: Sequence[Entry], badge: str
) -> PublishedTable | None:
    """The published values of a study's settings beside ours; None where there are none."""
    # Imported here: a page has it loaded, and the help of a command does not wait for it.
    from trueoracle.record.results import SHORT
    from trueoracle.spec.published import PRINTED

    def printed(entry: Entry) -> str:
        return p_value(entry["kendall_p_value"], entry.get("printed", 1e-300))

    columns = (
        Column("n", "candidates", lambda r: ABSENT if r["n"] is None else f"{r['n']:,}"),
        Column("Kendall's τ", "its sign as it is", number_cell("kendall_tau", 2)),
        Column("p (textbook)", "as if candidates were independent", printed),
        Column("anomalies", "share that ends better", _percent("anomaly_ratio")),
    )
    rows: list[tuple[str, Entry]] = []
    for one in settings:
        criterion = SHORT if one.needs_short else "oracle"
        ours = [r for r in relations if r["criterion"] == criterion]
        ours = [r for r in ours if r["metric"] == one.y.replace(" ", "_")]
        if not one.has_values or not ours:
            continue
        values = one.model_dump() | {"kendall_p_value": one.p_value, "printed": PRINTED}
        rows += [(f"published: {one.setting}", values), ("ours", ours[0])]
    if not rows:
        return None
    words = [("of", "whose", [label for label, _ in rows])]
    differs = f" Ours is changed, so that the two need not agree: {badge}." if badge else ""
    return PublishedTable(
        f"As printed in {settings[0].source}; the sign of τ is theirs, raw.{differs}",
        text_table_of(words, (), columns, [one for _, one in rows]),
    )


def _of_outcomes(
    entries: Sequence[tuple[str, Entry]],
    names: Sequence[Column],
    columns: Sequence[Column],
    strong: str,
) -> TextTable:
    words = [("outcome", "what criteria are held against", [outcome for outcome, _ in entries])]
    return text_table_of(words, names, columns, [entry for _, entry in entries], strong)


def text_table_of(
    words: Sequence[tuple[str, str, list[str]]],
    names: Sequence[Column],
    columns: Sequence[Column],
    entries: Sequence[Entry],
    strong: str = "",
    *,
    marked: Sequence[int] = (),
    keep_empty: bool = False,
) -> TextTable:
    """A table with one row per entry.

    ``words`` are (heading, title, cells) of columns that are given whole; ``names`` are columns of
    words, ``columns`` are columns of numbers. Columns of numbers without any value are left out,
    unless ``keep_empty``. ``strong`` is the heading of the column that matters most.
    """
    filled = list(words)
    filled += [(one.heading, one.title, [one.cell(e) for e in entries]) for one in names]
    texts = len(filled)
    for one in columns:
        cells = [one.cell(entry) for entry in entries]
        if keep_empty or any(cell != ABSENT for cell in cells):
            filled.append((one.heading, one.title, cells))
    headings = tuple(heading for heading, _, _ in filled)
    return TextTable(
        headings=headings,
        titles=tuple(title for _, title, _ in filled),
        rows=tuple(zip(*(cells for _, _, cells in filled), strict=True)),
        texts=texts,
        strong=headings.index(strong) if strong in headings else -1,
        marked=tuple(marked),
    )
