from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from trueoracle.analysis.own import read_tables
from trueoracle.errors import InputError


@pytest.fixture
def write(tmp_path: Path) -> object:
    def written(text: str) -> Path:
        path = tmp_path / "points.csv"
        path.write_text(text)
        return path

    return written


def test_a_column_a_seed_and_a_row_a_seed_are_the_same(write: object) -> None:
    wide = write("x,a,b\n1,0.5,0.6\n2,0.7,0.8\n")  # type: ignore[operator]
    (one,) = read_tables(wide, ["x"], ["a", "b"], higher_is_better=True).values()
    assert one.sampled
    long = write("id,x,s,y\np,1,0,0.5\nq,2,0,0.7\nq,2,1,0.8\np,1,1,0.6\n")  # type: ignore[operator]
    (other,) = read_tables(
        long, ["x"], ["y"], higher_is_better=True, candidate="id", seed="s"
    ).values()
    assert np.array_equal(one.outcomes, other.outcomes)
    assert np.array_equal(one.scores["x"], other.scores["x"])


def test_names_are_taken_as_they_are_written(write: object) -> None:
    """Not as numbers, as which all of these are one hundred."""
    path = write("id,x,s,y,n\n1e2,1,0,5,7\n100,2,0,6,7\n0100,3,0,7,07\n")  # type: ignore[operator]
    options = {"candidate": "id", "seed": "s", "network": "n"}
    tables = read_tables(path, ["x"], ["y"], higher_is_better=True, **options)  # type: ignore[arg-type]
    assert {name: len(table) for name, table in tables.items()} == {"7": 2, "07": 1}


@pytest.mark.parametrize("text", ["0.1", "0.300000000000000044", "1.797693134862315e308", "4e-324"])
def test_numbers_are_the_nearest_to_what_is_written(write: object, text: str) -> None:
    numbers = [text, "8.944271909999159", "5e-2", " 7", "", "NaN", "-inf", "9007199254740992"]
    rows = "".join(f'"{number}",1\n' for number in numbers)
    (table,) = read_tables(write(f"x,y\n{rows}"), ["x"], ["y"], higher_is_better=True).values()  # type: ignore[operator]
    expected = [float(number or "nan") for number in numbers]
    assert np.array_equal(table.scores["x"], expected, equal_nan=True)


def test_networks_and_pruned_filters(write: object) -> None:
    path = write(  # type: ignore[operator]
        'net,x,y,pruned\na,1,0.5,"0 1"\na,2,0.4,"0 2"\na,3,0.1,"1,2"\nb,1,0.3,"[1, 2]"\n'
    )
    tables = read_tables(
        path, ["x"], ["y"], higher_is_better=True, network="net", pruned="pruned", exhaustive=True
    )
    assert list(tables) == ["a", "b"]
    assert tables["a"].pruned is not None
    assert tables["a"].pruned.tolist() == [
        [True, True, False],
        [True, False, True],
        [False, True, True],
    ]
    assert tables["a"].groups == (3,)
    assert not tables["a"].sampled
    named = write(
        'x,y,p\n1,2,"{""conv1"": [0], ""conv2"": [1]}"\n2,1,"{""conv1"": [1], ""conv2"": [0]}"\n'
    )  # type: ignore[operator]
    (one,) = read_tables(named, ["x"], ["y"], higher_is_better=True, pruned="p").values()
    assert one.groups == (2, 2)
    assert one.pruned is not None
    assert one.pruned.tolist() == [[True, False, False, True], [False, True, True, False]]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x,y\n1,2\n", {"pruned": "p"}, "column of .* 'p'"),
        ("x,y\n", {}, "no rows"),
        ("x,y\na,2\n", {}, "column 'x' of .* is not numeric"),
        ("x,y,s\n1,2,0\n", {"seed": "s"}, "--seed needs --candidate"),
        ("x,y,c,s\n1,2,0,0\n1,2,0,0\n", {"candidate": "c", "seed": "s"}, "two rows of candidate"),
        ("x,y,c,s\n1,2,0,0\n3,2,0,1\n", {"candidate": "c", "seed": "s"}, "differs between its"),
        ("x,y,p\n1,2,some\n", {"pruned": "p"}, "takes pruned filters such as"),
        ("x,y,p\n1,2,[0.7]\n", {"pruned": "p"}, "takes pruned filters such as"),
        ("x,y,p\n1,2,1000000000\n", {"pruned": "p"}, "not from 0 to 99,999"),
        ("x,y,n\n1,2,a\n1,2,\n", {"network": "n"}, "column 'n' of .* is empty in line 3"),
        ("x,y\nTrue,2\nFalse,3\n", {}, "column 'x' of .* is not numeric"),
        ("x,y\n1_000,2\n", {}, "column 'x' of .* is not numeric"),
        ("x,y\n1+2j,2\n", {}, "column 'x' of .* is not numeric"),
        ("x,y\n1,9007199254740993\n", {}, "'y' .*: 9007199254740993 has the same float64 as"),
        ("x,y\n1.5,2\n9007199254740993,3\n", {}, "'x' .*: 9007199254740993 has the same float64"),
        (f"x,y\n1{'0' * 400},2\n", {}, "'x' .*: 10{39} has the same float64 as inf"),
        ("x,y,x\n1,2,3\n", {}, "has 2 columns named 'x'"),
        ("x,y,p\n1,2,-1\n", {"pruned": "p"}, "a filter that is not from 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    write: object, text: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_tables(write(text), ["x"], ["y"], higher_is_better=True, **options)  # type: ignore[arg-type, operator]


def test_kinds_of_pruning_are_tables_of_their_own(tmp_path: Path) -> None:
    """Pooled, two kinds of which each has no tau at all have a high one."""
    path = tmp_path / "kinds.csv"
    rows = [("filters", 1, 1.2), ("filters", 2, 1.1), ("filters", 3, 1.3), ("filters", 4, 1.15)]
    rows += [(f"{kind}", x + 10, y + 1) for kind, x, y in [("layers", *r[1:]) for r in rows]]
    path.write_text("kind,x,y\n" + "\n".join(f"{k},{x},{y}" for k, x, y in rows))
    pooled = read_tables(path, ["x"], ["y"], higher_is_better=False)
    apart = read_tables(path, ["x"], ["y"], higher_is_better=False, kind="kind")
    assert list(apart) == ["filters", "layers"]
    (whole,) = pooled.values()
    assert kendalltau(whole.scores["x"], whole.outcome).statistic > 0.5
    for one in apart.values():
        assert kendalltau(one.scores["x"], one.outcome).statistic == pytest.approx(0)


def rows(header: str, *cells: str) -> str:
    return "\n".join([header, *cells]) + "\n"


@pytest.mark.parametrize(
    "data",
    [
        b"x,y\n0.5,1.25\n0.7,2\n",
        b"x;y\n0.5;1.25\n0.7;2\n",
        b"x;y\n0,5;1,25\n0,7;2\n",
        b"x\ty\n0.5\t1.25\n0.7\t2\n",
        b"x\ty\n0,5\t1,25\n0,7\t2\n",
        "x,y\n0.5,1.25\n0.7,2\n".encode("utf-8-sig"),
        "x;y\n0,5;1,25\n0,7;2\n".encode("utf-16"),
        b"\xfe\xff" + "x,y\n0.5,1.25\n0.7,2\n".encode("utf-16-be"),
        gzip.compress(b"x;y\n0,5;1,25\n0,7;2\n", mtime=0),
    ],
)
def test_a_table_is_the_same_in_any_dialect(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "points.csv"
    path.write_bytes(data)
    (one,) = read_tables(path, ["x"], ["y"], higher_is_better=True).values()
    assert one.scores["x"].tolist() == [0.5, 0.7]
    assert one.outcomes.tolist() == [[1.25], [2.0]]


def test_parquet_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "points.parquet"
    frame = pd.DataFrame({"x": [0.1, None], "y": [1, 2], "p": [[0, 1], [1, 2]]})
    frame.to_parquet(path)
    (one,) = read_tables(path, ["x"], ["y"], higher_is_better=True, pruned="p").values()
    np.testing.assert_array_equal(one.scores["x"], [0.1, math.nan])
    assert one.groups == (3,)


def test_what_is_no_decimal_comma_is_no_number(write: object) -> None:
    for text in ("x;y\n1.234,5;1\n2;2\n", 'x,y\n"1,234",1\n2,2\n'):
        with pytest.raises(InputError, match=r"column 'x' of .* is not numeric"):
            read_tables(write(text), ["x"], ["y"], higher_is_better=True)  # type: ignore[operator]


LONG = [f"c{i},{s},{i},{i + s}" for i in range(5) for s in range(3)]


def test_a_seed_column_is_found_by_its_name(write: object) -> None:
    path = write(rows("Candidate,seed,x,y", *LONG))  # type: ignore[operator]
    (one,) = read_tables(path, ["x"], ["y"], higher_is_better=True).values()
    assert one.outcomes.tolist() == [[i, i + 1, i + 2] for i in range(5)]
    # A column of that name where each candidate has one row says something else.
    single = write(rows("id,seed,x,y", "a,1,1,1", "b,2,2,2"))  # type: ignore[operator]
    (other,) = read_tables(single, ["x"], ["y"], higher_is_better=True).values()
    assert other.seeds == 1


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("id,nr,x,y", {}, r"the same candidate appears 3 times .id 'c0'.: name .* with --seed"),
        ("who,nr,x,y", {}, "the same candidate appears 3 times, if its scores tell it"),
        ("who,nr,x,y", {"candidate": "who"}, r"the same candidate appears 3 times .who 'c0'"),
        ("p,nr,x,y", {"pruned": "p"}, "the same candidate appears 3 times"),
    ],
)
def test_retrainings_that_pass_for_candidates_are_refused(
    write: object, header: str, options: dict[str, str], message: str
) -> None:
    cells = [row.replace("c", "", 1) if header[0] == "p" else row for row in LONG]
    with pytest.raises(InputError, match=message):
        read_tables(write(rows(header, *cells)), ["x"], ["y"], higher_is_better=True, **options)  # type: ignore[arg-type, operator]


def test_scores_that_tie_are_candidates_where_it_is_said(write: object) -> None:
    path = write(rows("who,x,y", *(f"{i},{i // 2},{i}" for i in range(8))))  # type: ignore[operator]
    with pytest.raises(InputError, match="if its scores tell it"):
        read_tables(path, ["x"], ["y"], higher_is_better=True)
    (one,) = read_tables(path, ["x"], ["y"], higher_is_better=True, candidate="who").values()
    assert len(one) == 8


def test_a_column_named_twice_is_no_second_seed(write: object) -> None:
    path = write("x,y\n1,2\n2,3\n")  # type: ignore[operator]
    for x, y in ((["x"], ["y", "y"]), (["x", "x"], ["y"]), (["x"], ["x"])):
        with pytest.raises(InputError, match="is named twice"):
            read_tables(path, x, y, higher_is_better=True)


def test_an_infinite_outcome_is_of_a_network_that_diverged(write: object) -> None:
    path = write("x,y\n1,inf\n2,3\n3,1\n")  # type: ignore[operator]
    (one,) = read_tables(path, ["x"], ["y"], higher_is_better=False).values()
    assert one.diverged[:, 0].tolist() == [True, False, False]
    assert one.outcome.tolist() == [3, 3, 1]


def test_networks_and_kinds_of_one_name_together_are_refused(write: object) -> None:
    path = write('n,k,x,y\n"a b",c,1,1\n"a b",c,2,2\na,"b c",3,3\na,"b c",1,4\n')  # type: ignore[operator]
    with pytest.raises(InputError, match="have one name together"):
        read_tables(path, ["x"], ["y"], higher_is_better=True, network="n", kind="k")


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("{}", "names no filter in any row"),
        ('"{""conv1"": ""13""}"', "takes pruned filters"),
        ("1_3", "takes pruned filters"),
    ],
)
def test_pruned_filters_that_are_none_are_refused(write: object, cell: str, message: str) -> None:
    path = write(f"id,x,y,p\na,1,1,{cell}\nb,2,2,{cell}\n")  # type: ignore[operator]
    how = {"candidate": "id", "pruned": "p"}
    for exhaustive in (False, True):
        with pytest.raises(InputError, match=message):
            read_tables(path, ["x"], ["y"], higher_is_better=True, exhaustive=exhaustive, **how)


def test_a_number_of_the_row_is_no_seed(write: object) -> None:
    text = "".join(f"c{i % 3},{i},{i % 5},{i}\n" for i in range(9))
    path = write(f"id,run,x,y\n{text}")  # type: ignore[operator]
    with pytest.raises(InputError, match="the same candidate appears 3 times"):
        read_tables(path, ["x"], ["y"], higher_is_better=True)
    with pytest.raises(InputError, match="'id' cannot be both"):
        read_tables(path, ["x"], ["y"], higher_is_better=True, candidate="id", seed="id")
