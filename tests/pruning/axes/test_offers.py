"""Groups of networks of all kinds: what is offered, that it is right, and why the rest is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.networks.graph import answer, converted
from trueoracle.pruning.groups import Group
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups, follow_groups


def by_hand(network: nn.Module, group: Group, pruned: list[int], example: Any) -> Tensor:
    """The dense network with the consumers' weights of some filters zeroed, found from places.

    Index by index, not by the product's own masking.
    """
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for place in group.places:
            if place.role != "reads":
                continue
            weight = twin.get_parameter(place.tensor).movedim(place.axis or 0, 0)
            for index in pruned:
                for block in range(place.outer):
                    start = place.offset + (block * group.filters + index) * place.inner
                    weight[start : start + place.inner] = 0
        result: Tensor = answer(twin, example)
    return result


def check(network: nn.Module, example: Any, names: set[str]) -> dict[str, Group]:
    """The groups of a network by name, each cut in several ways and compared with zeroing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    network = network.double().eval()
    example = converted(example, torch.float64)
    found = find_groups(network, example)
    assert set(found.groups) == names, found.refused
    for group in found.groups.values():
        for pruned in ([0], list(range(1, group.filters)), list(range(0, group.filters, 2))):
            kept = [i for i in range(group.filters) if i not in pruned]
            if not kept:
                continue
            small = prune(network, [group], {group.name: kept})
            assert sum(map(torch.numel, small.parameters())) < sum(
                map(torch.numel, network.parameters())
            )
            with torch.no_grad():
                expected = by_hand(network, group, pruned, example)
                assert (answer(small, example) - expected).abs().max() < 1e-12
                assert (answer(network, example) - expected).abs().max() > 1e-9
    return found.groups


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], set[str]]] = {
    "1-d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 6, 3),
            nn.BatchNorm1d(6),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(6, 4, 3),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (2, 16),
        {"0", "4"},
    ),
    "3-d": (
        lambda: nn.Sequential(
            nn.Conv3d(1, 4, 3),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.AvgPool3d(2),
            nn.Conv3d(4, 3, 1),
            nn.Flatten(),
            nn.Linear(24, 2),
        ),
        (1, 6, 6, 6),
        {"0", "4"},
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.ConvTranspose2d(4, 5, 2, stride=2),
            nn.InstanceNorm2d(5, affine=True, track_running_stats=True),
            nn.Conv2d(5, 3, 1),
            nn.Flatten(),
            nn.Linear(3 * 144, 2),
        ),
        (1, 8, 8),
        {"0", "1", "3"},
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(4, 4, 3, groups=4),
            nn.PReLU(4),
            nn.Conv2d(4, 3, 1),
            nn.Flatten(),
            nn.Linear(48, 2),
        ),
        (1, 8, 8),
        {"0", "3"},
    ),
    "depthwise, more channels": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(128, 2)
        ),
        (1, 8, 8),
        {"0", "1"},
    ),
    "pixels to channels": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.PixelUnshuffle(2), nn.Conv2d(16, 3, 1), nn.Flatten(),
            nn.Linear(27, 2),
        ),
        (1, 8, 8),
        {"0", "2"},
    ),
    "circular": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
            nn.Flatten(),
            nn.Linear(108, 2),
        ),
        (1, 8, 8),
        {"0", "1"},
    ),
    "a norm without numbers": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 3), nn.Flatten(),
            nn.Linear(32, 2),
        ),
        (1, 8, 8),
        {"0", "2"},
    ),
    "windows": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Unfold(2, stride=2), nn.Flatten(), nn.Linear(16 * 9, 2)
        ),
        (1, 8, 8),
        {"0"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind: str) -> None:
    make, shape, names = CONVOLUTIONS[kind]
    check(make(), noise(3, *shape), names)


class Grouped(nn.Module):
    """Attention as language models write it: queries share keys and values."""

    def __init__(self, heads: int, groups: int, fused: bool = False) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.width = heads, groups, 4
        self.fused = fused
        self.embed = nn.Embedding(11, 8)
        if fused:
            self.qkv = nn.Linear(8, (heads + 2 * groups) * 4)
        else:
            self.q, self.k, self.v = (nn.Linear(8, n * 4) for n in (heads, groups, groups))
        self.o = nn.Linear(heads * 4, 8)
        self.gate_up, self.down = nn.Linear(8, 20), nn.Linear(10, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids)
        heads, groups = self.num_heads, self.num_kv_heads
        if self.fused:
            sizes = [n * self.width for n in (heads, groups, groups)]
            q, k, v = self.qkv(x).split(sizes, -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q, k, v = (one.unflatten(-1, (-1, self.width)).transpose(1, 2) for one in (q, k, v))
        if groups != heads:
            shape = (len(x), q.shape[1], x.shape[1], self.width)
            k, v = (one[:, :, None].expand(-1, -1, heads // groups, -1, -1).reshape(shape)
                    for one in (k, v))  # fmt: skip
        allowed = mask[:, None, None, :].bool()
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        x = x + self.o(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(x).chunk(2, -1)
        x = x + self.down(functional.silu(gate) * up)
        return self.head(x)  # type: ignore[no-any-return]


PADDED = {
    "ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0], [7, 8, 9, 0]]),
    "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]),
}


@pytest.mark.parametrize(
    ("heads", "groups", "fused", "filters"),
    [
        (4, 4, False, 4),
        (4, 2, False, 2),
        (4, 1, False, 4),
        (4, 4, True, 4),
        (4, 2, True, 2),
    ],
)
def test_heads_that_share_keys_and_values_go_together(
    heads: int, groups: int, fused: bool, filters: int
) -> None:
    first = "qkv" if fused else "q"
    is_shared = 1 < groups < heads
    more = {f"{first}:heads"} if is_shared else set()
    found = check(Grouped(heads, groups, fused), PADDED, {first, "gate_up", "embed", *more})
    assert found[first].filters == filters
    unit = "key/value groups" if is_shared else "heads" if groups == heads else "query heads"
    assert found[first].kind == unit
    for name in more:
        assert (found[name].filters, found[name].kind) == (heads // groups, "query heads")
    assert [part.module for part in found[first].consumers] == ["o"]
    assert {part.module for part in found["embed"].layers} == {"embed", "o", "down"}


def test_numbers_that_count_heads_are_found_and_lowered() -> None:
    network = Grouped(4, 2).double().eval()
    group = find_groups(network, PADDED).groups["q"]
    pruned = prune(network, [group], {"q": [1]})
    counts = {place.tensor: place.inner for place in group.places if place.role == "counts"}
    for name, times in counts.items():
        assert getattr(pruned, name) == getattr(network, name) - times
    assert pruned(**PADDED).shape == (3, 4, 3)
    assert (network.num_heads, network.num_kv_heads) == (4, 2)


class Configured(nn.Module):
    """Blocks that share a configuration, in which a size stands that a cut has to change."""

    def __init__(self) -> None:
        super().__init__()

        class Config:
            inner = 6

        self.config = Config()
        self.config.inner = 6
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(4, 12), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.up(x).split(self.config.inner, -1)
        return self.down(first * second)  # type: ignore[no-any-return]


def test_a_number_in_a_shared_configuration_is_each_modules_own_after_a_cut() -> None:
    network = Configured()
    names = {f"blocks.{i}.up" for i in range(3)}
    groups = check(network, noise(3, 4), names)
    pruned = prune(network, [groups["blocks.1.up"]], {"blocks.1.up": [0, 5]})
    assert [block.config.inner for block in pruned.blocks] == [6, 2, 6]  # type: ignore[union-attr]
    assert network.config.inner == 6


class Tied(nn.Module):
    """One table looks tokens up and gives their logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(10, 6), nn.LayerNorm(6)
        self.hidden, self.out = nn.Linear(6, 6), nn.Linear(6, 10, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.out(self.norm(x + self.hidden(x)))  # type: ignore[no-any-return]


def test_a_table_that_is_shared_is_cut_once() -> None:
    network = Tied()
    found = find_groups(network, PADDED["ids"])
    assert set(found.groups) == {"embed"}
    assert found.refused == {"out": "it shares its weights with embed"}
    pruned = prune(network, [found.groups["embed"]], {"embed": [0, 2, 3]})
    assert isinstance(pruned, Tied)
    assert pruned.out.weight is pruned.embed.weight
    assert pruned.embed.weight.shape == (10, 3)
    assert pruned.norm.normalized_shape == (3,)
    assert pruned.hidden.in_features == pruned.hidden.out_features == 3


class Locked(nn.Module):
    """What keeps a layer from being pruned."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a = nn.Linear(5, 6)
        self.rnn = nn.GRU(6, 6, batch_first=True)
        self.norm = nn.GroupNorm(2, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.kind == "norm":
            h = self.norm(h.transpose(1, 2)).transpose(1, 2)
        if self.kind == "softmax":
            h = h.softmax(-1)
        if self.kind == "sorted":
            h = h.sort(-1).values
        if self.kind == "outer":
            h = h @ (h.transpose(1, 2) @ h)
        return self.out(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("norm", "its output meets GroupNorm (norm)"),
        ("softmax", "its output meets '_softmax'"),
        ("sorted", "its output meets 'sort'"),
        ("outer", "its output meets 'bmm' of other tensors"),
    ],
)
def test_reasons_name_the_layer_or_the_operation(kind: str, words: str) -> None:
    found = follow_groups(Locked(kind), noise(3, 4, 5))
    assert found.groups == {}
    assert found.refused["a"] == words
    assert found.refused["rnn"]


class Masked(nn.Module):
    """Drops and branches in training, which parity looks at too."""

    def __init__(self, in_training: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)
        self.in_training = in_training

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.first(x))
        if float(h.sum()) < 1e9 and self.training:
            h = self.in_training(h)
        return self.out(h)  # type: ignore[no-any-return]


def test_training_mode_is_tried_too() -> None:
    right = find_groups(Masked(torch.tanh), noise(3, 5))
    assert set(right.groups) == {"first"}
    wrong = find_groups(Masked(lambda h: h * h[:, :1]), noise(3, 5))
    assert wrong.groups == {}
    assert "removing its filters is not the same as zeroing" in wrong.refused["first"]


class RootMean(nn.Module):
    """As language models write it: nothing of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class OwnRootMeanNorm(RootMean):
    pass


class FirstAxisNorm(nn.LayerNorm):
    """Of images ``[N, C, H, W]``, over C."""

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.layer_norm(
            x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed.movedim(-1, 1)


class Wide(nn.Module):
    def __init__(self, norm: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        kind = nn.Conv2d if len(shape) == 4 else nn.Linear
        more = (1,) if kind is nn.Conv2d else ()
        self.first, self.norm, self.out = kind(5, 6, *more), norm, kind(6, 3, *more)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.first(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.LayerNorm(6), (3, 5)),
        (nn.LayerNorm(6, elementwise_affine=False), (3, 4, 5)),
        (nn.RMSNorm(6), (3, 4, 5)),
        (OwnRootMeanNorm(6), (3, 4, 5)),
        (FirstAxisNorm(6), (3, 5, 4, 4)),
    ],
)
def test_norms_over_channels_take_their_statistics_from_the_kept_ones(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    network = Wide(norm, shape).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    images = noise(*shape).double()
    group = find_groups(network, images).groups["first"]
    kept = [0, 2, 5]
    with torch.no_grad():
        # By hand: only the kept channels arrive, and only their weights read.
        hand = copy.deepcopy(network)
        axis = 1 if len(shape) == 4 else -1
        index = torch.tensor(kept)
        channels = hand.first(images).index_select(axis, index)
        mean = channels.mean(axis, keepdim=True) if isinstance(norm, nn.LayerNorm) else 0.0
        spread = (channels - mean).square().mean(axis, keepdim=True)
        eps = 1e-6 if isinstance(norm, RootMean) else getattr(norm, "eps", None)
        normed = (channels - mean) / (spread + (eps or torch.finfo(torch.float64).eps)).sqrt()
        view = (-1, 1, 1) if len(shape) == 4 else (-1,)
        for name, combine in (("weight", torch.mul), ("bias", torch.add)):
            if (own := dict(hand.norm.named_parameters()).get(name)) is not None:
                normed = combine(normed, own[index].view(view))
        hand.out.weight = nn.Parameter(hand.out.weight.index_select(1, index))
        expected = hand.out(normed)
        assert (prune(network, [group], {"first": kept})(images) - expected).abs().max() < 1e-12
        with masked(network, [group], {"first": kept}) as zeroed:
            assert (zeroed(images) - expected).abs().max() < 1e-12


def test_what_norms_and_is_not_called_so_is_refused() -> None:
    found = find_groups(Wide(RootMean(6), (3, 5)), noise(3, 5))
    assert found.groups == {}
    assert found.refused["first"] == "its output meets 'mean'"


class Beside(nn.Module):
    """A stream that the answer is read from, and layers beside it that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 6), nn.Linear(6, 2)
        nn.init.constant_(self.first.bias, 1.0)  # no unit is dead, whatever is drawn
        self.norm, self.gate, self.inner = nn.LayerNorm(6), nn.Linear(6, 4), nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        stream = torch.relu(self.first(x))
        beside = stream + self.inner(torch.relu(self.gate(self.norm(stream))))
        self.seen = beside * self.norm(beside)
        return self.second(stream)  # type: ignore[no-any-return]


def test_what_nothing_reads_is_cut_with_what_it_reads_and_never_chosen() -> None:
    found = check(Beside(), torch.rand(4, 3), {"first"})
    assert [part.module for part in found["first"].consumers] == ["second"]
    assert [part.module for part in found["first"].layers] == ["first"]
    assert {"norm", "gate", "inner"} <= set(found["first"].members)
    small = prune(Beside(), [found["first"]], {"first": [0, 2]})
    assert small.get_submodule("inner").out_features == 2
