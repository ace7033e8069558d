"""Small networks of transformers, family by family, each with a padded batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FAMILIES", "Family", "padded_on_the_left"]

_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
}
_WIDE = _SMALL | {"intermediate_size": 48}
_GROUPED = _WIDE | {"num_key_value_heads": 2}
_EXPERTS = _GROUPED | {"num_experts_per_tok": 2}
_GEMMA = _GROUPED | {"head_dim": 8}
_VISION = {"image_size": 16, "patch_size": 4, "num_channels": 3}
_TOWER = _WIDE | _VISION


@dataclass(frozen=True)
class Family:
    """How to build a small network of a family, and what is expected of its groups."""

    model: str
    numbers: dict[str, Any]
    units: dict[str, int]
    """How many groups there are of each kind of unit."""
    example: Callable[[], dict[str, Tensor]] = field(default=lambda: _tokens())

    def build(self) -> nn.Module:
        """The network, its weights moved a little, so that nothing is zero."""
        import transformers

        kind: Any = getattr(transformers, self.model)
        torch.manual_seed(0)
        config = kind.config_class(**self.numbers)
        network: nn.Module = kind(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return network


def _tokens(length: int = 9) -> dict[str, Tensor]:
    """Three texts of different lengths, padded on the right."""
    ids = torch.randint(3, 45, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, real in enumerate((length, length - 3, length - 1)):
        ids[row, real:], mask[row, real:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def padded_on_the_left(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts, padded on the other side."""
    shifts = (given["attention_mask"] == 0).sum(1).tolist()
    return given | {
        name: torch.stack([row.roll(by) for row, by in zip(given[name], shifts, strict=True)])
        for name in ("input_ids", "attention_mask", "mm_token_type_ids")
        if name in given
    }


def _images() -> dict[str, Tensor]:
    """Three images."""
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.rand(3, 3, 16, 16, generator=generator)}


def _images_and_text(image_token: int = 49, count: int = 16) -> dict[str, Tensor]:
    """Texts that begin with the places of an image's tokens."""
    given = _tokens()
    places = torch.full((3, count), image_token)
    return {
        "input_ids": torch.cat([places, given["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(places), given["attention_mask"]], 1),
        **_images(),
    }


def _smolvlm() -> dict[str, Tensor]:
    """One image for each text, beside others that it might have had."""
    given = _images_and_text(count=4)
    pixels = given.pop("pixel_values")[:, None]
    return given | {"pixel_values": pixels, "pixel_attention_mask": torch.ones(3, 1, 16, 16)}


def _qwen_vl() -> dict[str, Tensor]:
    """Images as rows of patches, four to a token."""
    given = _images_and_text(48, count=4)
    generator = torch.Generator().manual_seed(2)
    return given | {
        "pixel_values": torch.rand(3 * 16, 3 * 2 * 4 * 4, generator=generator),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 3),
        "mm_token_type_ids": (given["input_ids"] == 48).long(),
    }


def _translation() -> dict[str, Tensor]:
    given = _tokens()
    return given | {"decoder_input_ids": given["input_ids"][:, :5]}


def _llava(vision: str, text: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "vision_config": {"model_type": vision, **_TOWER},
        "text_config": text,
        "image_token_id": 49,
        **more,
    }


_LLAMA = {"model_type": "llama", **_GROUPED}
_LLAVA_UNITS = {"heads": 1, "key/value groups": 2, "query heads": 2, "units": 5, "filters": 1}
"""The last layer of the tower is computed and not read; what comes before is cut with it."""
_FULL = {"vision_feature_select_strategy": "full"}

_SHARED_QUERIES = {"key/value groups": 2, "query heads": 2, "units": 3}
_HEADS = {"heads": 2, "units": 3}

FAMILIES: dict[str, Family] = {
    "llama": Family("LlamaForCausalLM", _GROUPED, _SHARED_QUERIES),
    "llama 4/4": Family("LlamaForCausalLM", _GROUPED | {"num_key_value_heads": 4}, _HEADS),
    "llama 4/1": Family(
        "LlamaForCausalLM",
        _GROUPED | {"num_key_value_heads": 1},
        {"query heads": 2, "units": 3},
    ),
    "mistral": Family("MistralForCausalLM", _GROUPED, _SHARED_QUERIES),
    "qwen2": Family("Qwen2ForCausalLM", _GROUPED, _SHARED_QUERIES),
    "qwen3": Family("Qwen3ForCausalLM", _GEMMA, _SHARED_QUERIES),
    "qwen2-moe": Family(
        "Qwen2MoeForCausalLM",
        _EXPERTS
        | {"num_experts": 3, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 24},
        {"key/value groups": 2, "query heads": 2, "units": 5},
    ),
    "mixtral": Family("MixtralForCausalLM", _EXPERTS | {"num_local_experts": 3}, _SHARED_QUERIES),
    "gemma2": Family("Gemma2ForCausalLM", _GEMMA, _SHARED_QUERIES),
    "gemma3": Family("Gemma3ForCausalLM", _GEMMA, _SHARED_QUERIES),
    "phi": Family("PhiForCausalLM", _WIDE, _HEADS),
    "phi3": Family("Phi3ForCausalLM", _GROUPED, _SHARED_QUERIES),
    "gpt2": Family(
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64}
        | {"bos_token_id": 0, "eos_token_id": 0},
        _HEADS,
    ),
    "gpt-neox": Family("GPTNeoXForCausalLM", _WIDE, _HEADS),
    "opt": Family(
        "OPTForCausalLM",
        _SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
        _HEADS,
    ),
    "bloom": Family(
        "BloomForCausalLM",
        {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50},
        _HEADS,
    ),
    "falcon": Family("FalconForCausalLM", _SMALL, {"query heads": 2, "units": 3}),
    "falcon grouped": Family(
        "FalconForCausalLM",
        _SMALL | {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"key/value groups": 2, "units": 3},
    ),
    "falcon alibi": Family(
        "FalconForCausalLM", _SMALL | {"alibi": True, "multi_query": False}, _HEADS
    ),
    "t5": Family(
        "T5ForConditionalGeneration",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        | {"vocab_size": 50, "decoder_start_token_id": 0, "pad_token_id": 0},
        {"heads": 3, "units": 5},
        _translation,
    ),
    "llava clip": Family(
        "LlavaForConditionalGeneration",
        _llava("clip_vision_model", _LLAMA),
        _LLAVA_UNITS,
        _images_and_text,
    ),
    "llava siglip": Family(
        "LlavaForConditionalGeneration",
        _llava("siglip_vision_model", _LLAMA, **_FULL),
        _LLAVA_UNITS,
        _images_and_text,
    ),
    "llava phi": Family(
        "LlavaForConditionalGeneration",
        _llava("siglip_vision_model", {"model_type": "phi", **_WIDE}, **_FULL),
        {"heads": 3, "units": 5, "filters": 1},
        _images_and_text,
    ),
    "smolvlm": Family(
        "SmolVLMForConditionalGeneration",
        _llava("smolvlm_vision", _LLAMA, scale_factor=2, pad_token_id=0),
        {"heads": 2, "key/value groups": 2, "query heads": 2, "units": 5, "filters": 1},
        _smolvlm,
    ),
    "qwen2-vl": Family(
        "Qwen2VLForConditionalGeneration",
        {
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4}
            | {"mlp_ratio": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
            "text_config": _GROUPED
            | {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "image_token_id": 48,
            "video_token_id": 47,
            "vision_start_token_id": 46,
            "vision_end_token_id": 45,
        },
        {"heads": 2, "key/value groups": 2, "query heads": 2, "units": 6, "filters": 1},
        _qwen_vl,
    ),
    "clip vision": Family("CLIPVisionModel", _TOWER, {"heads": 2, "units": 2}, _images),
    "siglip vision": Family("SiglipVisionModel", _TOWER, {"heads": 3, "units": 3}, _images),
    "vit": Family(
        "ViTForImageClassification", _TOWER, {"heads": 2, "units": 2, "filters": 1}, _images
    ),
}
