"""Small texts, tokenizers, processors and question files, in the formats of the real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LINES = [f"In line {i} of the text the number {i * i} stands beside {i + 1}.\n" for i in range(200)]

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | upper }}: "
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
"""A chat template of the usual form: what follows the prompt is the answer and the end token."""


def write_images(folder: Path, names: Sequence[str], size: tuple[int, int] = (40, 30)) -> None:
    """Images of noise, each another one."""
    for seed, name in enumerate(names):
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)


def write_lines(file: Path, records: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return file


def tokenizer(*, adds_bos: bool = False, template: str | None = None) -> Any:
    """A byte-level tokenizer of transformers' kind, with the special tokens of Llama and LLaVA."""
    import tokenizers as library
    from transformers import PreTrainedTokenizerFast

    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<|image_pad|>", "<vision>"]
    trainer = library.trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    if adds_bos:
        made.post_processor = library.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    own = PreTrainedTokenizerFast(
        tokenizer_object=made,
        **{
            f"{name}_token": token
            for name, token in (("bos", "<s>"), ("eos", "</s>"), ("pad", "<pad>"), ("unk", "<unk>"))
        },
        extra_special_tokens={"image_token": "<image>"},
    )
    own.chat_template = template
    return own


def llava_processor(*, adds_bos: bool = False, template: str | None = None) -> Any:
    """LLaVA's processor: images of 32 pixels, 16 patches of 8, and one class token that goes."""
    from transformers import CLIPImageProcessor, LlavaProcessor

    return LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        ),
        tokenizer=tokenizer(adds_bos=adds_bos),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template and template.replace("IMAGE", "<image>\n"),
    )


def llava(vocabulary: int, image_token: int = 4) -> Any:
    """A tiny LLaVA (CLIP, projector, Llama with grouped queries) for :func:`llava_processor`."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token)
    return LlavaForConditionalGeneration(config)
