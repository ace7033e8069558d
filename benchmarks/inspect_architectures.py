"""Groups of public architectures that are not shipped: how many, whether right, how long it takes.

Random weights; small configurations of transformers; a few blocks written here (``own``).
``error`` is the largest difference of the network with half of all groups' filters removed from the
one with them masked, relative to the largest output, in double precision. Packages that are not
installed are skipped. ``python benchmarks/inspect_architectures.py [--json FILE] [name …]``
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.networks.graph import answer
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups

Case = tuple[str, Callable[[], nn.Module], Any]

TORCHVISION = {
    **dict.fromkeys(("alexnet", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small"), 96),
    **dict.fromkeys(("densenet121", "efficientnet_b0", "efficientnet_v2_s", "mnasnet1_0"), 64),
    **dict.fromkeys(("regnet_y_400mf", "resnext50_32x4d", "wide_resnet50_2"), 64),
    **dict.fromkeys(("shufflenet_v2_x1_0", "convnext_tiny", "swin_t", "googlenet"), 64),
    "vit_b_16": 224,
}
TIMM = {
    **dict.fromkeys(("vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224"), 224),
    **dict.fromkeys(("convnext_atto", "ghostnet_100", "dla34", "res2net50_26w_4s"), 64),
    **dict.fromkeys(("hrnet_w18_small", "mobilevit_xxs", "efficientvit_b0", "poolformer_s12"), 64),
    **dict.fromkeys(("levit_128s", "xcit_nano_12_p16_224"), 224),
}


def images(size: int) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))


class SuperResolution(nn.Module):
    """ESPCN (Shi et al. 2016, arXiv 1609.05158), between two more convolutions at full size."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 64, 5, padding=2), nn.Conv2d(64, 32, 3, padding=1)
        self.three, self.shuffle = nn.Conv2d(32, 16 * 4, 3, padding=1), nn.PixelShuffle(2)
        self.four = nn.Conv2d(16, 3 * 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.two(torch.tanh(self.one(x))))
        shuffled: Tensor = self.shuffle(self.four(torch.tanh(self.shuffle(self.three(h)))))
        return shuffled


class Convolved(nn.Sequential):
    """A convolution, a batch norm and SiLU."""

    def __init__(self, given: int, filters: int, size: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(given, filters, size, stride, size // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(filters), nn.SiLU())


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Convolved(width, width, 3), Convolved(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.cv2(self.cv1(x))
        return added


class C2f(nn.Module):
    """The block of YOLOv8 (github.com/ultralytics/ultralytics)."""

    def __init__(self, given: int, filters: int, blocks: int) -> None:
        super().__init__()
        half = filters // 2
        self.cv1 = Convolved(given, 2 * half)
        self.cv2 = Convolved((2 + blocks) * half, filters)
        self.m = nn.ModuleList(Residual(half) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        put_out: Tensor = self.cv2(torch.cat(y, 1))
        return put_out


def yolo() -> nn.Module:
    """The first stages of YOLOv8n, and a linear layer."""
    return nn.Sequential(
        *(Convolved(3, 16, 3, 2), Convolved(16, 32, 3, 2), C2f(32, 32, 1)),
        *(Convolved(32, 64, 3, 2), C2f(64, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


class Speech(nn.Module):
    """Convolutions over frames and a bidirectional LSTM, as for recognising speech."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Conv1d(40, 64, 5, padding=2)
        self.rnn = nn.LSTM(64, 48, num_layers=2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(96, 29)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.rnn(torch.relu(self.frames(x)).transpose(1, 2))[0])
        return logits


def own_cases() -> Iterator[Case]:
    yield "own ESPCN", SuperResolution, images(32)
    yield "own YOLO C2f", yolo, images(64)
    yield "own LSTM", Speech, torch.rand(2, 40, 30)


def torchvision_cases() -> Iterator[Case]:
    from torchvision import models

    for name, size in TORCHVISION.items():
        more = {"aux_logits": False} if name == "googlenet" else {}
        make = getattr(models, name)
        yield name, lambda make=make, more=more: make(weights=None, **more), images(size)
    for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"):
        make = getattr(models.segmentation, name)
        yield name, lambda make=make: make(weights=None, weights_backbone=None), images(64)
    yield "r3d_18", lambda: models.video.r3d_18(weights=None), torch.rand(2, 3, 4, 32, 32)


def timm_cases() -> Iterator[Case]:
    import timm

    for name, size in TIMM.items():
        yield f"timm {name}", lambda name=name: timm.create_model(name), images(size)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 50,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "use_cache": False,
}
WIDE = {**SMALL, "intermediate_size": 48}
GROUPED = {**WIDE, "num_key_value_heads": 2}
VISION = {"image_size": 32, "patch_size": 8, "num_channels": 3}

LANGUAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", GROUPED),
    "Mistral": ("MistralForCausalLM", GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", {**GROUPED, "head_dim": 8}),
    "Gemma2": ("Gemma2ForCausalLM", {**GROUPED, "head_dim": 8}),
    "Phi": ("PhiForCausalLM", WIDE),
    "Phi3": ("Phi3ForCausalLM", GROUPED),
    "GPTNeoX": ("GPTNeoXForCausalLM", WIDE),
    "GPT2": (
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50, "n_positions": 64},
    ),
    "OPT": ("OPTForCausalLM", {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    "Bloom": ("BloomForCausalLM", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50}),
    "Falcon": ("FalconForCausalLM", {**SMALL, "new_decoder_architecture": False}),
    "Bert": ("BertForSequenceClassification", WIDE),
    "Electra": ("ElectraForSequenceClassification", {**WIDE, "embedding_size": 32}),
    "DistilBert": (
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 50},
    ),
    "Albert": ("AlbertForSequenceClassification", {**WIDE, "embedding_size": 16}),
}
IMAGE: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", {**WIDE, **VISION}),
    "Dinov2": ("Dinov2ForImageClassification", {**SMALL, **VISION, "mlp_ratio": 2}),
    "Swinv2": (
        "Swinv2ForImageClassification",
        {**VISION, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]},
    ),
    "Segformer": ("SegformerForSemanticSegmentation", {}),
    "ResNet": ("ResNetForImageClassification", {"embedding_size": 16, "depths": [1, 1, 1, 1]}),
    "MobileNetV1": ("MobileNetV1ForImageClassification", {}),
}


def transformers_cases() -> Iterator[Case]:
    import transformers

    ids = torch.randint(3, 50, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 8:] = 0
    ids[1, 8:] = 0
    for family, (name, numbers) in (LANGUAGE | IMAGE).items():
        config = getattr(transformers, f"{family}Config")
        kind = getattr(transformers, name)

        def make(kind: Any = kind, config: Any = config, numbers: Any = numbers) -> nn.Module:
            made: nn.Module = kind(config(**numbers))
            made.config.use_cache = False
            return made

        given = {"input_ids": ids, "attention_mask": mask}
        if family in IMAGE:
            given = {"pixel_values": images(64 if family in ("Segformer", "MobileNetV1") else 32)}
        yield f"hf {family}", make, given


def answers(network: nn.Module, example: Any) -> list[Tensor]:
    with torch.no_grad():
        leaves = pytree.tree_leaves(answer(network, example))
    return [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]


def double(example: Any) -> Any:
    return pytree.tree_map(lambda one: one.double() if one.is_floating_point() else one, example)


def error(network: nn.Module, groups: list[Any], example: Any) -> float:
    """Of all groups at once, in evaluation mode."""
    try:
        network, example = network.double().eval(), double(example)
        answers(network, example)
    except RuntimeError:
        network = network.float()
        example = pytree.tree_map(
            lambda one: one.float() if one.is_floating_point() else one, example
        )
    halved = [group for group in groups if group.filters > 1]
    kept = {group.name: range(group.filters // 2, group.filters) for group in halved}
    pruned = answers(prune(network, halved, kept).eval(), example)
    with masked(network, halved, kept) as zeroed:
        expected = answers(zeroed, example)
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(pruned, expected, strict=True)
    )


def inspected(make: Callable[[], nn.Module], example: Any) -> dict[str, Any]:
    torch.manual_seed(0)
    try:
        network = make()
    except Exception as reason:
        return {"failed": f"not built: {str(reason).splitlines()[0][:70]}"}
    with torch.no_grad():
        for parameter in network.parameters():  # a head may begin at zero, and hide all
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    started = time.perf_counter()
    try:
        found = find_groups(network, example)
    except Exception as reason:
        return {"failed": str(reason).splitlines()[0][:90]}
    seconds = time.perf_counter() - started
    groups = list(found.groups.values())
    worst = error(network, groups, example) if groups else 0.0
    return {
        "groups": len(groups),
        "filters": sum(group.filters for group in groups),
        "refused": len(found.refused),
        "error": worst,
        "seconds": round(seconds, 2),
        "reasons": found.refused,
        "names": list(found.groups),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path)
    parser.add_argument("--reasons", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    cases: list[Case] = [*own_cases()]
    for package, listed in (
        ("torchvision", torchvision_cases),
        ("timm", timm_cases),
        ("transformers", transformers_cases),
    ):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed")
            continue
        cases += listed()
    results = {}
    print(f"{'network':34} {'groups':>6} {'filters':>8} {'refused':>7} {'error':>8} {'seconds':>7}")
    for name, make, example in cases:
        if given.names and not any(part in name for part in given.names):
            continue
        one = results[name] = inspected(make, example)
        if "failed" in one:
            print(f"{name:34} {one['failed']}", flush=True)
            continue
        print(
            f"{name:34} {one['groups']:6} {one['filters']:8,} {one['refused']:7} "
            f"{one['error']:8.0e} {one['seconds']:7.1f}",
            flush=True,
        )
        if given.reasons:
            for layer, reason in one["reasons"].items():
                print(f"    {layer}: {reason}")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
