from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.errors import InputError, StoreError
from trueoracle.pruning import listing
from trueoracle.pruning.candidates import Candidates, list_candidates
from trueoracle.pruning.groups import Group, GroupMap, Place
from trueoracle.pruning.listing import Listing, read_listing, write_listing

GROUPS = GroupMap(
    {name: Group(name, n, (Place(f"{name}.weight"),)) for name, n in (("a", 4), ("b", 6))}, {}
)
RATIOS = {"a": 0.5, "b": 0.5}


def read(path: Path) -> Candidates:
    return list_candidates(GROUPS, RATIOS, count=path)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "candidates.json"
    listed = list_candidates(GROUPS, RATIOS, count=5, seed=3)
    write_listing(listed.listing(), path)
    assert read(path).ids == listed.ids
    return path


def test_a_listing_is_one_candidate_a_line(written: Path) -> None:
    lines = written.read_text().splitlines()
    assert lines[:4] == ["{", '  "format": 1,', '  "kind": "structured",', lines[3]]
    assert lines[3] == '  "groups": {"a": 4, "b": 6},'
    assert sum('"a": [' in line and '"b": [' in line for line in lines) == 5
    assert list(written.parent.iterdir()) == [written]


@given(st.lists(st.text(), min_size=1), st.dictionaries(st.text(), st.integers()))
def test_what_is_written_is_read(entries: list[str], header: dict[str, int]) -> None:
    import tempfile

    for reserved in ("format", "candidates"):
        header.pop(reserved, None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        write_listing(Listing(header, entries), path)
        assert read_listing(path, header) == entries


def changed(path: Path, **fields: Any) -> None:
    """As somebody edits it who has taken the checksum out."""
    content = {k: v for k, v in json.loads(path.read_text()).items() if k != "sha256"}
    path.write_text(json.dumps(content | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "has format 2, and this trueoracle reads 1"),
        ({"kind": "unstructured"}, "candidates of kind 'unstructured', and this study's are of"),
        ({"groups": {"a": 4, "b": 8}}, "candidates of groups a (4), b (8), and this study's"),
        ({"groups": None}, "lists candidates of groups nothing"),
        ({"candidates": []}, "lists no candidates"),
        ({"candidates": {}}, "holds no list of candidates"),
        ({"candidates": [{"a": [0, 1]}]}, "candidate 1 names the pruned filters of a, b"),
        ({"candidates": [[0]]}, "candidate 1 names the pruned filters of a, b"),
        ({"candidates": [{"a": [0, 1], "b": "all"}]}, "b takes a list of filters, got 'all'"),
        ({"candidates": [{"a": [0, 1.0], "b": [0, 1, 2]}]}, "a takes a list of filters"),
        ({"candidates": [{"a": [0, 4], "b": [0, 1, 2]}]}, "a has filters 0 to 3, got 4"),
        ({"candidates": [{"a": [0, -1], "b": [0, 1, 2]}]}, "a has filters 0 to 3, got -1"),
        ({"candidates": [{"a": [1, 1], "b": [0, 1, 2]}]}, "a names a filter twice: [1, 1]"),
        ({"candidates": [{"a": [1], "b": [0, 1, 2]}]}, "prunes 1 filters of a, and pruning.layers"),
        ({"candidates": [{"a": [0, 1], "b": [0, 1, 2]}, {"a": [1, 0], "b": [2, 0, 1]}]},
         "candidate 2 is the same as candidate 1"),
    ],
)  # fmt: skip
def test_a_listing_that_does_not_fit_is_refused_in_a_line(
    written: Path, fields: dict[str, Any], message: str
) -> None:
    changed(written, **fields)
    with pytest.raises(InputError) as caught:
        read(written)
    assert message in str(caught.value)
    assert str(written) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_damaged_or_cannot_be_written_is_named(written: Path) -> None:
    with pytest.raises(InputError, match=r"no file of candidates .*none\.json"):
        read(written.parent / "none.json")
    written.write_text(written.read_text()[:100])
    with pytest.raises(InputError, match=r"candidates\.json is damaged"):
        read(written)
    written.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"candidates\.json is damaged"):
        read(written)
    with pytest.raises(InputError, match="cannot read the candidates"):
        read(written.parent)
    with pytest.raises(StoreError, match="cannot write"):
        write_listing(Listing({}, ["x"]), written / "below" / "list.json")


# The combination files of the paper's code


def combinations(path: Path, content: Any, protocol: int = 4) -> Path:
    path = path / "vgg19_C-cifar100-0.01-combination.pkl"
    is_raw = isinstance(content, bytes)
    path.write_bytes(content if is_raw else pickle.dumps(content, protocol))
    return path


WAYS = (((0, 2), (1, 3, 5)), ((1, 3), (0, 1, 2)), ((0, 1), (3, 4, 5)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_combination_file_is_read_in_its_order(tmp_path: Path, protocol: int) -> None:
    for content in (
        list(WAYS),
        WAYS,
        [list(map(list, way)) for way in WAYS],
        [tuple(map(set, way)) for way in WAYS],
        [tuple(map(frozenset, way)) for way in WAYS],
        [tuple(part[::-1] for part in way) for way in WAYS],
    ):
        found = read(combinations(tmp_path, content, protocol))
        assert found.ways == WAYS
        assert found.pruned(0) == {"a": (0, 2), "b": (1, 3, 5)}
    assert set(read(combinations(tmp_path, set(WAYS), protocol)).ways) == set(WAYS)


def test_its_tuples_go_by_the_networks_order_whatever_the_studys(tmp_path: Path) -> None:
    path = combinations(tmp_path, list(WAYS))
    other = list_candidates(GROUPS, {"b": 0.5, "a": 0.5}, count=path)
    assert other.ids == read(path).ids
    assert list_candidates(GROUPS, {"[ab]": 0.5}, count=path).ids == read(path).ids


class Call:
    """A pickle that would call something."""

    def __init__(self, what: Any, *arguments: Any) -> None:
        self.made = (what, arguments)

    def __reduce__(self) -> Any:
        return self.made


def itself() -> list[Any]:
    held: list[Any] = []
    held.append(held)
    return held


def laughs() -> Any:
    """A hundred tuples, and 2^100 numbers for whoever walks through them."""
    laugh: Any = (0, 1)
    for _ in range(100):
        laugh = (laugh, laugh)
    return laugh


ENDLESS: dict[str, Callable[[], Any]] = {
    "itself": itself,
    "itself as filters": lambda: [(itself(), (0, 1, 2))],
    "itself as a layer": lambda: [((0, 1), (*itself(), 1, 2))],
    "laughs": laughs,
    "laughs as a candidate": lambda: [laughs()],
    "laughs as filters": lambda: [((0, 1), laughs())],
    "laughs as each filter": lambda: [((0, 1), (laughs(),) * 3)],
    "many layers of many": lambda: [(tuple(range(1000)),) * 3000] * 3000,
    "many filters of many": lambda: [(tuple(range(5000)),) * 2] * 5000,
    "one candidate many times": lambda: [WAYS[0]] * 5000,
    "deep": lambda: b"(" * 50_000 + b"t" * 50_000 + b".",
    "the last place of a memo": lambda: b"]" + b"K\x00a" + b"r\xff\xff\xff\xff" + b".",
}
"""Contents that hold themselves, or more than anybody could walk through."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([((0, 1),)], "candidate 1 has 1 entries, expected 2: one tuple of filters for each layer"),
        ([(0, 1, 2)], "candidate 1 has 3 entries, expected 2: one tuple of filters for each layer"),
        ([*WAYS, ((0, 1), (0, 1, 2), (3,))], "candidate 4 has 3 entries, expected 2"),
        ([(0, 1)], "candidate 1: a takes a list of filters, got 0"),
        ([0], "candidate 1 is 0"),
        ([((0, 4), (0, 1, 2))], "candidate 1: a has filters 0 to 3, got 4"),
        ([((0, -1), (0, 1, 2))], "candidate 1: a has filters 0 to 3, got -1"),
        (pickle.dumps([((0, 10**5000), (0, 1, 2))]), "got a number of thousands of digits"),
        ([((1, 1), (0, 1, 2))], "candidate 1: a names a filter twice: (1, 1)"),
        ([((1,), (0, 1, 2))], "candidate 1 prunes 1 filters of a, and pruning.layers 2 of 4: "
         "a ratio of 0.2 prunes 1"),
        ([((0, 1), (0, 1))], "prunes 2 filters of b, and pruning.layers 3 of 6: a ratio of 0.3"),
        ([((0, 1), ())], "prunes 0 filters of b, and pruning.layers 3 of 6"),
        ([WAYS[0], WAYS[1], WAYS[0]], "candidate 3 is the same as candidate 1"),
        ([((True, False), (0, 1, 2))], "a takes a list of filters, got (True, False)"),
        ([((0, 1.0), (0, 1, 2))], "a takes a list of filters, got (0, 1.0)"),
        ([(("0", "1"), (0, 1, 2))], "a takes a list of filters, got ('0', '1')"),
        ([((0, None), (0, 1, 2))], "a takes a list of filters, got (0, None)"),
        ([("01", (0, 1, 2))], "a takes a list of filters, got '01'"),
        ([{"a": (0, 1), "b": (0, 1, 2)}], "candidate 1 is {'a': "),
        ([], "lists no candidates"),
        (set(), "lists no candidates"),
        (3, "it holds 3"),
        ({"a": 1}, "it holds {'a': 1}"),
        ("text", "it holds 'text'"),
        (b"", "is not a pickled list of candidates"),
        (b"hello", "is not a pickled list of candidates"),
        (pickle.dumps(list(WAYS))[:-5], "is not a pickled list of candidates"),
        (json.dumps([[[0, 1], [0, 1, 2]]]).encode(), "is not a pickled list of candidates"),
        (Call(os.system, "touch harmed"), "it holds <a call of "),
        ([Call(eval, "1")], "candidate 1 is <a call of "),
        ([(Call(os.mkdir, "harmed"), (0, 1, 2))], "a takes a list of filters, got <a call of "),
        ([((Call(os.mkdir, "harmed"), 1), (0, 1, 2))], "a takes a list of filters, got (<a call "),
        ([os.system], "candidate 1 is "),
        ([threading.Thread], "candidate 1 is 'threading.Thread'"),
        (b"\x80\x02(X\x07\x00\x00\x00storageq\x01tQ.", "it holds <something kept elsewhere>"),
        (b"cos\nsystem\n(S'touch harmed'\ntR.", "it holds <a call of 'os.system'>"),
        (b"(S'touch harmed'\nios\nsystem\n.", "it holds <a call of 'os.system'>"),
        (b"(cos\nsystem\nS'touch harmed'\no.", "it holds <a call of 'os.system'>"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("protocol", [0, 4])
def test_a_combination_file_that_does_not_fit_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any, message: str, protocol: int
) -> None:
    monkeypatch.chdir(tmp_path)
    path = combinations(tmp_path, content, protocol)
    with pytest.raises(InputError) as caught:
        read(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]  # nothing was called


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_combination_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = combinations(tmp_path, ENDLESS[name]())
    with pytest.raises(InputError) as caught:
        read(path)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_a_combination_file_is_of_bearable_size_and_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = combinations(tmp_path, list(WAYS))
    monkeypatch.setattr(listing, "COMBINATION_BYTES", path.stat().st_size)
    assert len(read(path)) == 3
    monkeypatch.setattr(listing, "COMBINATION_BYTES", path.stat().st_size - 1)
    with pytest.raises(InputError, match="bytes: it is no list of candidates"):
        read(path)
    with pytest.raises(InputError, match=r"no file of candidates .*none\.pkl"):
        read(tmp_path / "none.pkl")
    (tmp_path / "folder.pkl").mkdir()
    with pytest.raises(InputError, match="cannot read the candidates"):
        read(tmp_path / "folder.pkl")
