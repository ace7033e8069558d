"""How much memory training takes: what is foretold from shapes alone beside what is measured.

Run from the repository: ``python benchmarks/memory.py``. Each setting is trained for two steps in a
fresh process, whose peak beyond what it began with is measured; freed memory is given back at once
(MALLOC_MMAP_THRESHOLD_), so that the peak is that of tensors. Needs the extra ``[transformers]``.

``python benchmarks/memory.py --large`` foretells ViT-B/16 and TinyLLaVA-3.1B from their
configurations; nothing of their size is made.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from common import machine, show
from common import peak_bytes as measured_peak
from torch import Tensor, nn

from trueoracle.data.splits import Split, Splits
from trueoracle.engines.memory import peak_bytes, weight_bytes
from trueoracle.networks.registry import build
from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.language import Answers, NextToken
from trueoracle.training.evaluate import evaluation_batch
from trueoracle.training.loop import Training
from trueoracle.training.recipe import Retraining

LORA = {"rank": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "full, SGD": {},
    "full, AdamW": {"optimizer": "adamw"},
    "autocast": {"optimizer": "adamw", "precision": "autocast"},
    "bfloat16": {"optimizer": "adamw", "precision": "bfloat16"},
    "checkpointing": {"optimizer": "adamw", "gradient_checkpointing": True},
    "accumulate 8": {"optimizer": "adamw", "accumulate": 8},
    "LoRA": {"optimizer": "adamw", "lora": LORA},
    "LoRA, bfloat16, checkpointing": {
        "optimizer": "adamw",
        "lora": LORA,
        "precision": "bfloat16",
        "gradient_checkpointing": True,
    },
}


def vit(**sizes: int) -> nn.Module:
    side = sizes.pop("side", 64)
    return build("vit-b-16", sizes, input_shape=(3, side, side), classes=1000)


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    network: nn.Module = LlamaForCausalLM(config)
    return network


def images(count: int, side: int) -> Batch:
    return {"input": torch.zeros(count, 3, side, side), "target": torch.zeros(count).long()}


def text(count: int, tokens: int) -> Batch:
    return {"input_ids": torch.ones(count, tokens, dtype=torch.int64)}


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch], Task]] = {
    "ViT, 12.5 M": (
        lambda: vit(patch=8, layers=7, heads=6, width=384, mlp=1536),
        lambda count: images(count, 64),
        Classification(1000),
    ),
    "Llama, 6.6 M": (llama, lambda count: text(count, 128), NextToken()),
}
BATCH = 16
EVALUATED = 100
MEASURED = {"full, AdamW": "AdamW, then measured", "LoRA": "LoRA, then measured"}
"""Settings after whose steps the network is also measured, on EVALUATED examples."""


def two_steps(name: str, setting: str, evaluated: int) -> Callable[[], object]:
    """A training to be measured, in a process that has loaded all that training loads."""
    factory, batch, task = SMALL[name]
    fields = SETTINGS[setting]
    # What is loaded on first use, such as peft, is no memory of the training.
    first = {name: value for name, value in fields.items() if name != "gradient_checkpointing"}
    trained(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), _tiny(), Classification(2), first)
    network = factory()
    return lambda: trained(
        network, batch(BATCH), task, fields, batch(evaluated) if evaluated else None
    )


def _tiny() -> Batch:
    return {"input": torch.zeros(BATCH, 2), "target": torch.zeros(BATCH).long()}


def trained(
    network: nn.Module,
    batch: Batch,
    task: Task,
    fields: dict[str, Any],
    evaluated: Batch | None = None,
) -> None:
    split, test = Split(batch), Split(evaluated or batch)
    recipe = Retraining.model_validate({"batch_size": BATCH, **fields})
    training = Training(network, Splits(split, None, test, task), recipe, (0, ""))
    for epoch in range(2):
        training.train_epoch(epoch)
    if evaluated is not None:
        training.measure(1)


def compared(name: str, setting: str, evaluated: int = 0) -> dict[str, Any]:
    """One row: both figures count the network's weights."""
    factory, batch, task = SMALL[name]
    recipe = Retraining.model_validate({"batch_size": BATCH, **SETTINGS[setting]})
    network = factory()
    at_once = min(evaluated, evaluation_batch(Split(batch(max(evaluated, 1)))))
    foretold = peak_bytes(network, batch(1), BATCH, recipe, task, at_once) or 0
    measured = measured_peak(two_steps, name, setting, evaluated) + weight_bytes(network)
    return {
        "network": name,
        "setting": MEASURED[setting] if evaluated else setting,
        "foretold, MB": round(foretold / 1e6),
        "measured, MB": round(measured / 1e6),
        "ratio": round(foretold / measured, 3),
    }


class TinyLlava(nn.Module):
    """TinyLLaVA-3.1B's parts by their published configurations: SigLIP, two layers, Phi-2.

    The vision tower gives 729 places, of which the first is dropped, before the question's tokens.
    """

    def __init__(self) -> None:
        super().__init__()
        from transformers import (
            PhiConfig,
            PhiForCausalLM,
            SiglipVisionConfig,
            SiglipVisionModel,
        )

        self.vision = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
            )
        )
        self.projector = nn.Sequential(nn.Linear(1152, 2560), nn.GELU(), nn.Linear(2560, 2560))
        self.language = PhiForCausalLM(
            PhiConfig(
                vocab_size=51200,
                hidden_size=2560,
                intermediate_size=10240,
                num_hidden_layers=32,
                num_attention_heads=32,
                partial_rotary_factor=0.4,
            )
        )
        self.supports_gradient_checkpointing = True

    def activation_checkpointing_enable(self, options: dict[str, Any]) -> None:
        for part in (self.vision, self.language):
            part.activation_checkpointing_enable(options)

    def activation_checkpointing_disable(self) -> None:
        for part in (self.vision, self.language):
            part.activation_checkpointing_disable()

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> Tensor:
        seen = self.projector(self.vision(pixel_values).last_hidden_state[:, 1:])
        words = self.language.get_input_embeddings()(input_ids)
        logits: Tensor = self.language(inputs_embeds=torch.cat([seen, words], 1)).logits
        return logits


PLACES, WORDS = 728, 128


def question() -> Batch:
    return {
        "pixel_values": torch.zeros(1, 3, 384, 384),
        "input_ids": torch.zeros(1, WORDS, dtype=torch.int64),
        "labels": torch.zeros(1, PLACES + WORDS, dtype=torch.int64),
    }


@dataclass(frozen=True)
class Large:
    """One row of the large ones."""

    name: str
    batch: int
    fields: dict[str, Any] = field(default_factory=dict)


ADAMW = {"optimizer": "adamw"}
HALF = ADAMW | {"precision": "bfloat16"}
LARGE = [
    Large("ViT-B/16", 256),
    Large("ViT-B/16", 256, {"precision": "autocast"}),
    Large("ViT-B/16", 1024, {"precision": "autocast", "gradient_checkpointing": True}),
    Large("ViT-B/16", 1024, {"precision": "autocast", "accumulate": 8}),
    Large("TinyLLaVA-3.1B", 1, ADAMW),
    Large("TinyLLaVA-3.1B", 16, HALF | {"accumulate": 16}),
    Large("TinyLLaVA-3.1B", 16, HALF | {"accumulate": 4, "gradient_checkpointing": True}),
    Large("TinyLLaVA-3.1B", 16, HALF | {"lora": LORA, "accumulate": 8}),
    Large("TinyLLaVA-3.1B", 16, HALF | {"lora": LORA, "gradient_checkpointing": True}),
    Large(  # as the study tinyllava-3.1b has it
        "TinyLLaVA-3.1B",
        128,
        HALF
        | {"accumulate": 32, "gradient_checkpointing": True}
        | {"lora": {"rank": 128, "alpha": 256, "targets": ["language.model.layers.*"]}},
    ),
]


def foretold(one: Large) -> dict[str, Any]:
    with torch.device("meta"):
        network = vit(side=224) if one.name.startswith("ViT") else TinyLlava()
    example, task = (
        (images(1, 224), Classification(1000))
        if one.name.startswith("ViT")
        else (question(), Answers())
    )
    recipe = Retraining.model_validate({"batch_size": one.batch, **one.fields})
    peak = peak_bytes(network, example, one.batch, recipe, task)
    return {
        "network": one.name,
        "parameters, M": round(sum(p.numel() for p in network.parameters()) / 1e6),
        "batch": one.batch,
        "recipe": ", ".join(f"{k} = {v}" for k, v in one.fields.items()),
        "peak, GB": round((peak or 0) / 1e9, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="foretell the large ones alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # Freed memory goes back at once, also in the processes that measure.
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    rows = []
    if options.large:
        work = [functools.partial(foretold, one) for one in LARGE]
    else:
        work = [functools.partial(compared, n, setting) for n in SMALL for setting in SETTINGS]
        measured = functools.partial(compared, evaluated=EVALUATED)
        work += [functools.partial(measured, n, setting) for n in SMALL for setting in MEASURED]
    for one in work:
        rows.append(one())
        print(*rows[-1].values(), sep=", ", file=sys.stderr, flush=True)
    show({"machine": machine(), "rows": rows}, options.json, rows)


if __name__ == "__main__":
    main()
