"""Small language and image-and-text models of transformers, to be trained from scratch.

The size of their vocabulary is ``classes``, which comes from the data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from trueoracle.errors import InputError
from trueoracle.networks.pretrained import import_transformers
from trueoracle.networks.registry import network

__all__ = ["llama", "llava"]


@network("llama")
def llama(
    classes: int = 1024,
    *,
    hidden: int = 64,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    mlp: int = 176,
    tie: bool = True,
    context: int = 2048,
) -> nn.Module:
    """Llama (Touvron et al. 2023, arXiv 2302.13971) with grouped queries (arXiv 2305.13245).

    ``heads`` query heads share ``kv_heads`` keys and values; ``tie`` makes embedding and output
    layer share one tensor; ``context`` is the stated length of the longest sequence, in tokens.
    """
    transformers = import_transformers("it")
    sizes = _Sizes(classes, hidden, layers, heads, kv_heads, mlp, tie, context)
    made: nn.Module = transformers.LlamaForCausalLM(sizes.config(transformers))
    return made


@network("llava")
def llava(
    input_shape: tuple[int, ...] = (3, 64, 64),
    classes: int = 128,
    *,
    patch: int = 16,
    vision_hidden: int = 64,
    vision_layers: int = 2,
    vision_heads: int = 4,
    vision_mlp: int = 128,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    mlp: int = 176,
    tie: bool = True,
    context: int = 2048,
    image_token: int = 4,
) -> nn.Module:
    """LLaVA (Liu et al. 2023, arXiv 2304.08485): a SigLIP tower, a projector and a Llama.

    An image ``[C, H, H]`` becomes ``(H / patch)²`` tokens, which replace the token ``image_token``
    in ``input_ids``; its default is the image token of the vocabularies that are trained here.
    """
    transformers = import_transformers("it")
    if not 0 <= image_token < classes:
        raise InputError(f"image_token = {image_token} is none of the {classes:,} tokens")
    if len(input_shape) != 3 or input_shape[1] != input_shape[2] or input_shape[1] % patch:
        raise InputError(
            f"expected square images [C, H, H] of a multiple of {patch} pixels, "
            f"got {list(input_shape)}"
        )
    vision = transformers.SiglipVisionConfig(
        hidden_size=vision_hidden,
        intermediate_size=vision_mlp,
        num_hidden_layers=vision_layers,
        num_attention_heads=vision_heads,
        num_channels=input_shape[0],
        image_size=input_shape[1],
        patch_size=patch,
        vision_use_head=False,
    )
    sizes = _Sizes(classes, hidden, layers, heads, kv_heads, mlp, tie, context)
    config = transformers.LlavaConfig(
        vision_config=vision,
        text_config=sizes.config(transformers),
        image_token_index=image_token,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=(input_shape[1] // patch) ** 2,
        tie_word_embeddings=tie,
    )
    made: nn.Module = transformers.LlavaForConditionalGeneration(config)
    # The projector reads the last layer directly, so the norm after that layer cannot learn.
    made.get_submodule("model.vision_tower.post_layernorm").requires_grad_(False)
    return made


class _Sizes(NamedTuple):
    """The sizes of a Llama."""

    classes: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    tie: bool
    context: int

    def config(self, transformers: Any) -> Any:
        heads, kv_heads = self.heads, self.kv_heads
        if heads % kv_heads:
            raise InputError(f"heads = {heads} is no multiple of kv_heads = {kv_heads}")
        if self.hidden % (2 * heads):
            raise InputError(f"hidden = {self.hidden} is no multiple of 2 · heads = {2 * heads}")
        return transformers.LlamaConfig(
            vocab_size=self.classes,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=self.mlp,
            tie_word_embeddings=self.tie,
            max_position_embeddings=self.context,
        )
