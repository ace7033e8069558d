"""A language model on disk, from inspect to an export that transformers alone loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import trueoracle
from tests.data.language import LINES, tokenizer
from trueoracle.search.folder import is_plain
from trueoracle.study import Study

transformers: Any = pytest.importorskip("transformers")

RECIPE: dict[str, Any] = {
    "epochs": 2,
    "steps_per_epoch": 3,
    "batch_size": 4,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "seeds": [0],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of grouped queries, with its tokenizer, as ``save_pretrained`` leaves them."""
    own = tokenizer(adds_bos=True)
    config = transformers.LlamaConfig(
        vocab_size=len(own),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    own.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text("".join(LINES), "utf-8")
    return tmp_path / "dense"


def study(folder: Path, **pruning: Any) -> Study:
    return Study(
        name="mine",
        network=f"hf:{folder}",
        data={"name": "text", "path": str(folder.parent / "text.txt"), "context": 16},
        pruning=pruning,
        retraining=RECIPE,
        criteria=["oracle", "l1"],
        runs=folder.parent / "runs",
    )


def generated(network: Any, prompt: Tensor) -> list[int]:
    out = network.generate(prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    tokens: list[int] = out[0].tolist()
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize(
    "pruning",
    [
        {"layers": {"model.layers.*.self_attn.k_proj": 0.5}, "candidates": 2},
        {"layers": {"model.layers.*.mlp.gate_proj": 0.5}, "candidates": 2},
        {"kind": "depth", "layers": {"model.layers.*": 0.5}},
        {
            "kind": "n:m",
            "layers": {"model.layers.*": "2:4"},
            "candidates": "around:wanda",
            "count": 2,
        },
    ],
    ids=["groups", "units", "layers", "2:4"],
)
def test_from_a_folder_to_one_that_from_pretrained_loads(
    folder: Path, pruning: dict[str, Any]
) -> None:
    mine = study(folder, **pruning)
    results = mine.run(progress=False)
    assert results.finished
    assert results.data_facts["bos"] == "one"
    written = mine.report()
    assert "hf:" in written.page.read_text("utf-8")
    found = mine.search("100%", progress=False, strategy="full")
    path = found.export(folder.parent / "pruned")
    assert is_plain(path)

    ours = trueoracle.load(path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, local_files_only=True)
    own = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    dense = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert own(LINES[:3]).input_ids == dense(LINES[:3]).input_ids
    assert own.special_tokens_map == dense.special_tokens_map
    prompt = own(LINES[0], return_tensors="pt").input_ids[:, :9]
    assert generated(theirs, prompt) == generated(ours, prompt)
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    if pruning.get("kind") == "n:m":
        check_zeros(theirs)
    else:
        whole = sum(p.numel() for p in transformers.AutoModel.from_pretrained(folder).parameters())
        assert sum(p.numel() for p in theirs.model.parameters()) < whole
    said = json.loads((path / "trueoracle.json").read_text("utf-8"))
    assert said["candidate"] == found.chosen


def check_zeros(network: Any) -> None:
    """Of every four consecutive inputs of each row, two weights at most are not zero."""
    layers = [m for n, m in network.named_modules() if n.endswith("_proj")]
    assert len(layers) == 14
    for layer in layers:
        kept = (layer.weight.unflatten(1, (-1, 4)) != 0).sum(-1)
        assert kept.max() == 2
        assert kept.float().mean() > 1.9  # few are zero by themselves
