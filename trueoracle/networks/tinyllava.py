"""Checkpoints in TinyLLaVA's own format: a language model, a vision tower and an MLP between them.

Zhou et al. 2024, arXiv 2402.14289; the format is that of TinyLLaVA_Factory, whose
``modeling_tinyllava.py`` and ``vision_tower/base.py`` define what is computed. The output of the
vision tower's second to last layer, without its first token (728 of SigLIP's 729 patches are left,
although SigLIP has no class token), goes through ``linear, GELU, linear`` and replaces the image
among the words. transformers' LLaVA computes the same, except that its output layer has no bias,
while Phi's has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trueoracle.errors import InputError, first_line
from trueoracle.networks.weights import read_weights

__all__ = ["ARCHITECTURE", "MODEL_TYPE", "build_tinyllava", "load_tinyllava", "tinyllava_processor"]

ARCHITECTURE, MODEL_TYPE = "TinyLlavaForConditionalGeneration", "tinyllava"

_IMAGE = "<image>"

_STRATEGIES = {"patch": "default", "cls_patch": "full"}
"""Which tokens of the vision tower are read: TinyLLaVA's name and that of transformers."""

_RENAMED = (
    ("language_model.model.", ("model.language_model.",)),
    ("language_model.lm_head.", ("lm_head.",)),
    # In older releases of transformers the tower has one more level.
    (
        "vision_tower._vision_tower.vision_model.",
        ("model.vision_tower.", "model.vision_tower.vision_model."),
    ),
    ("connector._connector.0.", ("model.multi_modal_projector.linear_1.",)),
    ("connector._connector.2.", ("model.multi_modal_projector.linear_2.",)),
)

_COMPUTED = ("position_ids", "inv_freq")
"""Endings of the names of tensors that older files hold but networks compute themselves."""


def load_tinyllava(folder: Path, said: Mapping[str, Any], dtype: str, **options: Any) -> nn.Module:
    """The network in a folder of TinyLLaVA's format, with its weights.

    ``said`` is the content of its ``config.json``. The token for an image is ``<image>`` where the
    tokenizer has it, else the first token that the tokenizer does not use. Raises
    :class:`InputError` where the network is another kind of TinyLLaVA, or the weights do not fit.
    """
    network = build_tinyllava(_as_llava(folder, said), **options)
    read = [read_weights(path) for path in sorted(folder.glob("*.safetensors"))]
    tensors = {name: value for one in read for name, value in one.items()}
    if not tensors:
        raise InputError(f"{folder} holds no weights in safetensors files")
    if dtype == "auto":
        network.to(next(value.dtype for value in tensors.values() if value.is_floating_point()))
    else:
        network.to(getattr(torch, dtype))
    expected = network.state_dict()
    named = {_renamed(name, expected): value for name, value in tensors.items()}
    named = {n: v for n, v in named.items() if n in expected or not n.endswith(_COMPUTED)}
    try:
        network.load_state_dict(named)
    except RuntimeError as error:
        wrong = " ".join(str(error).split("\n")[1:]).strip()
        raise InputError(f"the weights of {folder} do not fit: {wrong[:300]}") from error
    return network


def build_tinyllava(config: Mapping[str, Any], **options: Any) -> nn.Module:
    """The untrained network of a config in the form of transformers' LLaVA."""
    import transformers

    for option, value in options.items():
        config = {**config, option: value}
    made: nn.Module = _kind()(transformers.LlavaConfig(**config))
    return made


def tinyllava_processor(folder: Path, said: Mapping[str, Any]) -> Any:
    """transformers' processor for LLaVA, with the tokenizer in a folder of TinyLLaVA's format."""
    import transformers

    vision = _section(said, "vision_config")
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    tokenizer.add_tokens([_IMAGE], special_tokens=True)
    tokenizer.padding_side = said.get("tokenizer_padding_side", "right")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    size = {"height": vision.image_size, "width": vision.image_size}
    return transformers.LlavaProcessor(
        image_processor=transformers.SiglipImageProcessor(size=size),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=_strategy(said),
        image_token=_IMAGE,
        num_additional_image_tokens=0,
    )


@lru_cache(maxsize=1)
def _kind() -> Any:
    """The class of transformers' LLaVA, extended by the bias of Phi's output layer."""
    import transformers

    class TinyLlavaForConditionalGeneration(
        transformers.LlavaForConditionalGeneration  # type: ignore[misc]
    ):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            text = config.text_config
            if text.model_type == "phi":
                self.lm_head = nn.Linear(text.hidden_size, text.vocab_size)

    return TinyLlavaForConditionalGeneration


def _as_llava(folder: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    if (connector := said.get("connector_type")) != "mlp2x_gelu":
        raise InputError(f"{folder}: connector_type is {connector!r}, expected 'mlp2x_gelu'")
    text, vision = _section(said, "text_config"), _section(said, "vision_config")
    return {
        "text_config": text.to_dict(),
        "vision_config": vision.to_dict(),
        "vision_feature_layer": said.get("vision_feature_layer", -2),
        "vision_feature_select_strategy": _strategy(said),
        "image_seq_length": (vision.image_size // vision.patch_size) ** 2 - 1,
        "image_token_index": _image_token(folder, text.vocab_size),
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": False,
    }


def _section(said: Mapping[str, Any], name: str) -> Any:
    import transformers

    try:
        return transformers.AutoConfig.for_model(**said[name])
    except Exception as error:  # a config may say anything
        raise InputError(f"TinyLLaVA's {name} cannot be read: {first_line(error)}") from error


def _strategy(said: Mapping[str, Any]) -> str:
    strategy = said.get("vision_feature_select_strategy", "patch")
    if strategy not in _STRATEGIES:
        raise InputError(
            f"vision_feature_select_strategy is {strategy!r}, expected 'patch' or 'cls_patch'"
        )
    return _STRATEGIES[strategy]


def _image_token(folder: Path, vocabulary: int) -> int:
    if not any(folder.glob("tokenizer*")):
        return vocabulary - 1
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(folder), local_files_only=True, trust_remote_code=False
    )
    tokenizer.add_tokens([_IMAGE], special_tokens=True)
    token: int = tokenizer.convert_tokens_to_ids(_IMAGE)
    if token >= vocabulary:
        raise InputError(
            f"{folder}: its tokenizer leaves none of its {vocabulary:,} tokens for the image"
        )
    return token


def _renamed(name: str, expected: Mapping[str, Tensor]) -> str:
    for theirs, ours in _RENAMED:
        if name.startswith(theirs):
            names = [prefix + name.removeprefix(theirs) for prefix in ours]
            return next((one for one in names if one in expected), names[0])
    return name
