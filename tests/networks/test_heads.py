from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueoracle.networks.heads import MultiheadAttention, free_heads
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups


class Attends(nn.Module):
    """torch's attention, with what it may be given."""

    def __init__(self, *, by_name: bool = True, **options: Any) -> None:
        super().__init__()
        self.options, self.by_name = options, by_name
        own = {
            key: options[key] for key in ("kdim", "vdim", "bias", "batch_first") if key in options
        }
        more = {key: True for key in ("add_bias_kv", "add_zero_attn") if key in options}
        self.width = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 4, **own, **more)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor, memory: Tensor, padding: Tensor) -> Tensor:
        x = self.width(x)
        memory = memory if "kdim" in self.options else x
        given = {"need_weights": self.options.get("need_weights", False)}
        if self.options.get("padding"):
            given["key_padding_mask"] = padding
        if self.options.get("causal"):
            length = x.shape[1] if self.options.get("batch_first") else x.shape[0]
            given["attn_mask"] = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.out(x + self.attention(x, memory, memory, **given)[0])  # type: ignore[no-any-return]


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch first": {"batch_first": True},
    "without biases": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 6, "batch_first": True},
    "added keys": {"add_bias_kv": True, "add_zero_attn": True},
    "weights": {"need_weights": True, "batch_first": True},
    "padded": {"padding": True, "batch_first": True},
    "causal": {"causal": True, "batch_first": True},
    "both masks": {"causal": True, "padding": True, "add_zero_attn": True, "batch_first": True},
}


def inputs(options: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 8, generator=generator, dtype=torch.float64)
    memory = x
    if "kdim" in options:
        memory = torch.randn(3, 5, 5, generator=generator, dtype=torch.float64)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    if options.get("padding"):
        padding[1, 3:] = True
    return (x, memory, padding)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_of_torchs_attention_are_cut(kind: str) -> None:
    options = KINDS[kind]
    if kind == "other widths":
        options = options | {"vdim": 5}
    torch.manual_seed(0)
    network = Attends(**options).double().eval()
    example = inputs(options)
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value), alpha=0.1)
        freed = prune(network, [], {})
        free_heads(freed)
        assert isinstance(freed.attention, MultiheadAttention)
        torch.testing.assert_close(freed(*example), network(*example), rtol=0, atol=1e-12)
    found = find_groups(network, example)
    name = "attention.q_proj_weight" if "kdim" in options else "attention"
    name = "attention" if "attention" in found.groups else name
    heads = found.groups[name]
    assert (heads.filters, heads.kind) == (4, "heads")
    assert {part.module for part in heads.consumers} == {"attention.out_proj"}
    assert found.groups["width"].filters == 8
    for group in (heads, found.groups["width"]):
        kept = {group.name: [0, 2]}
        with torch.no_grad():
            pruned = prune(network, [group], kept)
            with masked(network, [group], kept) as zeroed:
                expected = zeroed(*example)
            assert (pruned(*example) - expected).abs().max() < 1e-12
    attention: Any = pruned.attention
    assert (attention.num_heads, attention.head_dim, attention.embed_dim) == (4, 2, 2)


def test_a_layer_of_torchs_transformer_leaves_its_fast_path_once_it_is_cut() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True)
    network = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)).eval()
    example = torch.randn(2, 5, 8)
    found = find_groups(network, example)
    assert {name: group.kind for name, group in found.groups.items()} == {
        "0.layers.0.self_attn": "heads",
        "0.layers.0.linear1": "units",
        "0.layers.1.self_attn": "heads",
        "0.layers.1.linear1": "units",
    }
    groups = list(found.groups.values())
    kept = {group.name: range(1, group.filters) for group in groups}
    with torch.no_grad():
        found_ = prune(network, groups, kept)(example)
        with masked(network, groups, kept) as zeroed:
            torch.testing.assert_close(found_, zeroed(example), rtol=0, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_heads_of_torchvisions_windows_are_cut(version: int) -> None:
    models = pytest.importorskip("torchvision.models.swin_transformer")
    torch.manual_seed(0)
    block = models.SwinTransformerBlock if version == 1 else models.SwinTransformerBlockV2
    network = models.SwinTransformer(
        [4, 4], 16, [2, 1], [4, 4], [4, 4], num_classes=3, block=block,
        downsample_layer=models.PatchMerging if version == 1 else models.PatchMergingV2,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value), alpha=0.05)
    example = torch.rand(2, 3, 40, 24, dtype=torch.float64)
    found = find_groups(network, example)
    heads = [group for group in found.groups.values() if group.kind == "heads"]
    assert len(heads) == 3
    groups = list(found.groups.values())
    for chosen in (*([group] for group in heads), groups):
        kept = {group.name: range(1, group.filters) for group in chosen}
        with torch.no_grad():
            result = prune(network, chosen, kept)(example)
            with masked(network, chosen, kept) as zeroed:
                assert (result - zeroed(example)).abs().max() < 1e-12
