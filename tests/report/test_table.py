from __future__ import annotations

from typing import Any

from trueoracle.report.table import (
    Column,
    brief_table,
    differences_table,
    further_table,
    number_cell,
    partial_table,
    relations_table,
    text_table_of,
)


def relation(criterion: str, **known: Any) -> dict[str, Any]:
    return {
        "criterion": criterion,
        "n": 1000,
        "kendall_tau": -0.2,
        "kendall_p_value": 0.03,
        "spearman_r": -0.3,
        "pearson_r": None,
        "agreement": 0.2,
        "anomaly_ratio": 0.25,
        "discordant_ratio": 0.4,
        "rank": 12,
        "regret": 0.0012,
    } | known


KNOWN = {
    "kendall_low": -0.3, "kendall_high": -0.1, "agreement_low": 0.1, "agreement_high": 0.3,
    "permutation_p_value": 0.04,
    "adjusted_p_value": 0.08, "ceiling": 0.6, "disattenuated": 0.31, "disattenuated_low": 0.1,
    "disattenuated_high": 0.5, "at_most": 0.281, "answer": "Unclear", "percentile": 98.9,
    "held_out_regret": 0.0015, "best_rank": 7.5, "regret_low": 0.001, "regret_high": 0.002,
    "rank_low": 3, "rank_high": 40, "k": 10,
    "anomaly_ratio_k": 0.301, "precision_at_k": 0.2, "regret_at_k": 0.0, "beats_random": 0.75,
    "weighted_agreement": 0.24, "tied": 5,
}  # fmt: skip


def test_all_that_is_known_has_a_column() -> None:
    table = relations_table([({}, relation("l1", **KNOWN))])
    assert dict(zip(table.headings, table.rows[0], strict=True)) == {
        "criterion": "l1",
        "agreement": "0.20",
        "95% interval": "[0.10, 0.30]",
        "at most": "0.28",
        "p (Holm)": "0.08",
        "answer": "Unclear",
        "ceiling": "0.60",
        "without noise": "0.31 [0.10, 0.50]",
        "anomalies": "25.0%",
        "tied": "5",
        "over 10 lowest": "30.1%",
        "percentile": "99",
        "regret": "0.0015 [0.0010, 0.0020]",
    }
    assert table.headings[table.strong] == "agreement"
    assert table.texts == 1
    further = further_table([({}, relation("l1", **KNOWN))])
    assert dict(zip(further.headings, further.rows[0], strict=True)) == {
        "criterion": "l1",
        "Kendall's τ": "−0.20",
        "n": "1,000",
        "top-weighted": "0.24",
        "Spearman": "−0.30",
        "p (textbook)": "0.03",
        "discordant": "40.0%",
        "rank": "12 [3, 40]",
        "beats random": "75.0%",
        "precision at 10": "20.0%",
        "regret, in sample": "0.0012",
        "rank of the best": "7.5",
        "regret at 10": "0.0000",
    }


def test_what_is_nowhere_known_has_no_column_and_a_gap_has_a_dash() -> None:
    table = relations_table([({}, relation("l1"))])
    assert table.headings == ("criterion", "agreement", "anomalies")
    rows: list[tuple[dict[str, str], dict[str, Any]]] = [
        ({}, relation("l1", k=5, anomaly_ratio_k=0.1)),
        ({}, relation("l2", k=7)),
    ]
    mixed = relations_table(rows)
    assert mixed.headings[3] == "over k lowest"
    assert mixed.rows[1][3] == "–"


def test_words_of_the_rows_come_first() -> None:
    table = relations_table([({"width": "10"}, relation("l1")), ({"width": "20"}, relation("l1"))])
    assert table.headings[:2] == ("width", "criterion")
    assert [row[:2] for row in table.rows] == [("10", "l1"), ("20", "l1")]
    assert table.texts == 2
    assert len(table.titles) == len(table.headings)


def test_the_surest_difference_comes_first_within_each_outcome() -> None:
    def difference(first: str, p: float | None) -> dict[str, Any]:
        return {
            "first": first, "second": "l1", "difference": 0.1, "low": 0.0, "high": 0.2,
            "p_value": p, "adjusted_p_value": p,
        }  # fmt: skip

    pairs = [("y", difference("a", 0.5)), ("y", difference("b", None)), ("z", difference("d", 0.1))]
    table = differences_table([*pairs, ("y", difference("c", 0.01))])
    assert [row[1] for row in table.rows] == ["c", "a", "b", "d"]
    assert table.rows[0] == ("y", "c", "l1", "0.10", "[0.00, 0.20]", "0.01")


def test_partial_correlations_name_what_is_given() -> None:
    table = partial_table([("y", {"criterion": "l1", "given": "oracle", "kendall_tau": 0.1})])
    assert table.headings == ("outcome", "criterion", "given", "partial τ")
    assert table.rows == (("y", "l1", "oracle", "0.10"),)


def test_the_terminals_table_has_every_column_whatever_is_known() -> None:
    known = relation("l1", **KNOWN)
    blank = {"kendall_tau": None, "ceiling": None, "adjusted_p_value": None, "anomalies": 0}
    blank |= {"answer": None, "at_most": None, "held_out_regret": None}
    unknown = known | blank | {"kendall_low": None, "kendall_p_value": 0.5}
    table = brief_table([({"study": "a", "criterion": "l1"}, unknown)])
    assert table.headings == (
        "study", "criterion", "n", "tau", "95%", "at most", "p (Holm)", "answer", "ceiling",
        "anomalies", "rank", "regret",
    )  # fmt: skip
    assert table.texts == 2
    assert table.rows == (
        ("a", "l1", "1000", "–", "–", "–", "(0.5)", "–", "–", "25.0%", "12", "–"),
    )


def test_a_table_drops_what_nobody_knows_and_marks_its_rows() -> None:
    columns = (Column("a", "", number_cell("a", 1)), Column("b", "", number_cell("b", 1)))
    entries = [{"a": 1.0}, {"a": 2.0}]
    words = [("name", "who", ["x", "y"])]
    table = text_table_of(words, (), columns, entries, "a", marked=[1])
    assert table.headings == ("name", "a")
    assert (table.texts, table.strong, table.marked) == (1, 1, (1,))
    whole = text_table_of(words, (), columns, entries, keep_empty=True)
    assert whole.rows == (("x", "1.0", "–"), ("y", "2.0", "–"))
    assert whole.strong == -1
