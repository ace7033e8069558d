from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.errors import InputError, StoreError
from trueoracle.pruning.candidates import Candidates, list_candidates
from trueoracle.pruning.groups import Group, GroupMap, Part
from trueoracle.pruning.listing import Listing, read_listing, write_listing

GROUPS = GroupMap({name: Group(name, n, (Part(name),)) for name, n in (("a", 4), ("b", 6))}, {})
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
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "has format 2, and this trueoracle reads 1"),
        ({"kind": "unstructured"}, "candidates of kind 'unstructured', and this study's are of"),
        ({"groups": {"a": 4, "b": 8}}, "candidates of groups a (4), b (8), and this study's"),
        ({"groups": None}, "lists candidates of groups None"),
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
