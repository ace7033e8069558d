"""Networks by the names of others: transformers, timm, torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trueoracle.errors import InputError
from trueoracle.networks.pretrained import processor_of
from trueoracle.spec.hub import files_sha256, folder_of

transformers: Any = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of three words."""
    import tokenizers

    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>")
    read = tokenizers.Tokenizer(words)
    read.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=read, unk_token="<unk>")
    config = transformers.LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    path = tmp_path / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_language_models_tokenizer_comes_with_it(folder: Path) -> None:
    for name in (f"hf:{folder}", str(folder)):
        assert processor_of(name)("a b a").input_ids == [0, 1, 0]


def test_an_image_classifiers_processor_comes_with_it(tmp_path: Path) -> None:
    from PIL import Image

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    transformers.SiglipImageProcessorPil(size=size).save_pretrained(tmp_path)
    made = processor_of(f"hf:{tmp_path}")(Image.new("RGB", (9, 7)), return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 16, 16)


def test_without_a_tokenizer_it_is_said(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=rf"hf:{folder} has no tokenizer or processor"):
        processor_of(f"hf:{folder}")


def test_what_cannot_be_had_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf:nobody/nothing is neither .* 'hf download nobody/no"):
        folder_of("nobody/nothing")
    with pytest.raises(InputError, match="'hf download nobody/nothing --revision v1' puts it"):
        folder_of("nobody/nothing", "v1")
    with pytest.raises(InputError, match="hf:a b/c/d is neither a folder nor a name of the hub"):
        folder_of("a b/c/d")
    with pytest.raises(InputError, match=r"is no network: .* has no config.json"):
        folder_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="'v1' is of the hub, and .* is a folder here"):
        folder_of(str(tmp_path), "v1")


def test_the_hash_is_of_the_files_not_of_the_path(folder: Path, tmp_path: Path) -> None:
    before = files_sha256(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert files_sha256(moved) == before
    (moved / "tokenizer.json").write_text("{}")  # which is the data's
    assert files_sha256(moved) == before
    config = moved / "config.json"
    config.write_text(config.read_text() + " ")
    assert files_sha256(moved) != before
