"""Tokenizers that are trained here, and those that are read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data.language import LINES, tokenizer
from trueoracle.data import tokens
from trueoracle.data.tokens import IMAGE, SPECIAL, Tokenizer, find_tokenizer, is_trained
from trueoracle.errors import InputError

pytest.importorskip("tokenizers")


def lines() -> Iterator[str]:
    return iter(LINES)


def trained(name: str, cache: Path, sha256: str = "0") -> Tokenizer:
    return find_tokenizer(name, "mine", lines, sha256, cache)


def test_names_of_tokenizers_that_are_trained() -> None:
    assert all(map(is_trained, ("bpe:1024", "words", "words:50", "bpe")))
    assert not any(map(is_trained, (None, "gpt2", "bpe:", "words:many", "folder/bpe:10")))


def test_bytes_come_back_and_special_names_are_text(tmp_path: Path) -> None:
    own = trained("bpe:300", tmp_path)
    assert (own.vocabulary, own.pad, own.bos, own.eos) == (300, 0, 1, 2)
    assert SPECIAL[IMAGE] == "<image>"
    (ids,) = own.encode(["In line <s> of <image> 中\n"])
    assert not {0, 1, 2, 3, 4} & set(ids)
    import tokenizers

    read = tokenizers.Tokenizer.from_str(own.json)
    assert read.decode(ids) == "In line <s> of <image> 中\n"


def test_words_are_those_of_the_training_text(tmp_path: Path) -> None:
    own = trained("words", tmp_path)
    (known, unknown) = own.encode(["line", "zebra"])
    assert len(known) == len(unknown) == 1
    assert unknown == [SPECIAL.index("<unk>")]
    assert trained("words:10", tmp_path).vocabulary == 10


def test_it_is_trained_once_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained("bpe:300", tmp_path / "a")
    assert trained("bpe:300", tmp_path / "b").sha256 == first.sha256  # trained anew
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_train", lambda *args: pytest.fail("trained again"))
        assert trained("bpe:300", tmp_path / "a").sha256 == first.sha256
    (file,) = (tmp_path / "a").iterdir()
    file.write_text("{", "utf-8")  # a damaged file is trained again
    assert trained("bpe:300", tmp_path / "a").sha256 == first.sha256
    trained("bpe:300", tmp_path / "a", sha256="1")  # of another text
    assert len(list((tmp_path / "a").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "network", "message"),
    [
        ("bpe:100", "mine", "data.tokenizer = 'bpe:100': expected bpe:SIZE with 261 to 1,000,000"),
        ("bpe", "mine", "data.tokenizer = 'bpe': expected bpe:SIZE with 261 to 1,000,000 tokens"),
        ("words:5", "mine", "data.tokenizer = 'words:5': expected words:SIZE with 6 to 1,000,000"),
        (None, "mine", "data.tokenizer is needed: network 'mine' brings none; 'bpe:1024' or"),
    ],
)
def test_names_that_give_none_are_refused(
    tmp_path: Path, name: str | None, network: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        find_tokenizer(name, network, lines, "0", tmp_path)
    assert str(caught.value).startswith(message)


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"pip install '\.\[transformers\]'"):
        trained("words", tmp_path)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_models_own_is_read(tmp_path: Path, adds_bos: bool) -> None:
    pytest.importorskip("transformers")
    tokenizer(adds_bos=adds_bos).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    for name, network in ((str(tmp_path), "mine"), (None, f"hf:{tmp_path}")):
        own = find_tokenizer(name, network, lines, "0", tmp_path)
        assert (own.vocabulary, own.pad, own.bos, own.eos) == (400, 0, 1, 2)
        assert own.begins == adds_bos
        assert own.beginning(None) == ([1] if adds_bos else [])
        assert own.encode([]) == []
        (ids,) = own.encode(["<s>In line"])  # no token for the beginning in it, and none before
        assert 1 not in ids


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match="has no tokenizer or processor that transformers reads"):
        find_tokenizer(str(tmp_path), "mine", lines, "0", tmp_path)
