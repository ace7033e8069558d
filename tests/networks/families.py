"""Tiny networks of transformers, one a family, each with a padded batch for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

LANGUAGE = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "phi")
FAMILIES = (*LANGUAGE, "llava", "vit")
IN_TIME = [
    one if one in ("llama", "vit") else pytest.param(one, marks=pytest.mark.slow)
    for one in FAMILIES
]
"""All of them, of which most are left to the slow tests."""

VOCABULARY, LENGTH = 30, 10
IMAGE = 29
"""The token in whose places an image's patches go."""


def made(family: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network with random weights, in evaluation mode, and a batch of three."""
    transformers: Any = pytest.importorskip("transformers")
    torch.manual_seed(0)
    network: nn.Module = _BUILDERS[family](transformers).eval()
    with torch.no_grad():  # biases and norms that do something
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    generator = torch.Generator().manual_seed(1)
    if family == "vit":
        return network, {"pixel_values": torch.rand(3, 3, 16, 16, generator=generator)}
    ids = torch.randint(IMAGE, (3, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if family == "llava":
        ids[:, 2:6] = IMAGE
        batch["pixel_values"] = torch.rand(3, 3, 16, 16, generator=generator)
    return network, batch


_SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
_TEXT: dict[str, Any] = {**_SMALL, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
_VISION: dict[str, Any] = {**_SMALL, "image_size": 16, "patch_size": 8}


def _llava(t: Any) -> nn.Module:
    config = t.LlavaConfig(
        vision_config=t.SiglipVisionConfig(**_VISION, vision_use_head=False),
        text_config=t.LlamaConfig(**_TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    network: nn.Module = t.LlavaForConditionalGeneration(config)
    return network


_BUILDERS: dict[str, Any] = {
    "llama": lambda t: t.LlamaForCausalLM(t.LlamaConfig(**_TEXT, tie_word_embeddings=True)),
    "qwen2": lambda t: t.Qwen2ForCausalLM(t.Qwen2Config(**_TEXT)),
    "qwen3": lambda t: t.Qwen3ForCausalLM(t.Qwen3Config(**_TEXT, head_dim=8)),
    "gpt2": lambda t: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=4, n_positions=32)
    ),
    # Its layers alternate between two kinds of attention.
    "gemma2": lambda t: t.Gemma2ForCausalLM(t.Gemma2Config(**_TEXT, head_dim=8, sliding_window=4)),
    "phi": lambda t: t.PhiForCausalLM(t.PhiConfig(**_TEXT)),
    "llava": _llava,
    "vit": lambda t: t.ViTForImageClassification(t.ViTConfig(**_VISION, num_labels=5)),
}
