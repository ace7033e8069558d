"""Data that a network of transformers has no places for is refused before long work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.language import LINES
from trueoracle.errors import InputError
from trueoracle.run.prepare import prepare
from trueoracle.spec.file import spec_from

pytest.importorskip("transformers")

_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}


def written(folder: Path, kind: str, **numbers: Any) -> str:
    """A small network in a folder of its own, by its name."""
    import transformers

    made: Any = getattr(transformers, kind)
    made(made.config_class(**{**_SMALL, **numbers})).save_pretrained(folder)
    return f"hf:{folder}"


def of_text(network: str, folder: Path, **data: Any) -> dict[str, Any]:
    file = folder / "text.txt"
    file.write_text("".join(LINES), "utf-8")
    own = {"name": "text", "path": str(file), "tokenizer": "bpe:300", "context": 16}
    return {
        "name": "mine",
        "task": "next-token",
        "network": {"name": network},
        "data": own | data,
        "pruning": {"layers": {"*mlp.*": 0.5}, "candidates": 3},
    }


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEORACLE_DATA", str(tmp_path / "data"))


@pytest.mark.parametrize("kind", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_examples_longer_than_the_positions_are_refused(kind: str, tmp_path: Path) -> None:
    network = written(
        tmp_path / "model", kind, vocab_size=300, max_position_embeddings=12, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    message = "has 12 positions, and the examples up to 16 tokens: expected data.context = 12 or"
    with pytest.raises(InputError, match=message):
        prepare(spec_from(of_text(network, tmp_path), {}), device="cpu")
    fine = spec_from(of_text(network, tmp_path, context=12), {})
    if kind == "LlamaForCausalLM":
        assert len(prepare(fine, device="cpu").candidates) == 3


def test_tokens_that_a_network_does_not_have_are_refused(tmp_path: Path) -> None:
    network = written(tmp_path / "model", "LlamaForCausalLM", vocab_size=299, bos_token_id=0)
    with pytest.raises(InputError, match="has 299 tokens, and the data hold token 299"):
        prepare(spec_from(of_text(network, tmp_path), {}), device="cpu")


def test_text_for_a_network_of_images_is_refused(tmp_path: Path) -> None:
    network = written(
        tmp_path / "model", "ViTForImageClassification", image_size=8, patch_size=4, num_channels=1
    )
    with pytest.raises(InputError, match="takes pixel_values, and the examples are text"):
        prepare(spec_from(of_text(network, tmp_path), {}), device="cpu")


def test_what_is_misnamed_is_said_first(tmp_path: Path) -> None:
    fields = of_text("nowhere:none", tmp_path)
    with pytest.raises(InputError, match="task 'answers' is of questions"):
        prepare(spec_from(fields | {"task": "answers"}, {}), device="cpu")
    around = fields | {"pruning": {"layers": {"hidden": 0.5}, "candidates": "around:wandaa"}}
    with pytest.raises(InputError, match="unknown criterion 'wandaa'"):
        prepare(spec_from(around, {}), device="cpu")
    images = {key: fields[key] for key in ("name", "pruning")} | {"network": {"name": "mlp"}}
    with pytest.raises(InputError, match=r"unknown data set 'tex': did you mean 'text'.*easy-vqa"):
        prepare(spec_from(images | {"data": {"name": "tex"}}, {}), device="cpu")
    seeds = fields | {"retraining": {"seeds": 2}}
    with pytest.raises(InputError, match=r"retraining\.seeds: input should be a list, got 2"):
        spec_from(seeds, {})
