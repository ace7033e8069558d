"""Channels that can only go several at a time: what a unit is, and that removing it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from tests.pruning.axes.test_offers import check, noise
from trueoracle.networks.weights import load_weights, save_weights
from trueoracle.pruning.groups import Group
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups, follow_groups

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def around(middle: nn.Module, read: int, put_out: int, dims: int = 2) -> nn.Module:
    """A convolution, what is between, and one that reads it."""
    convolution, norm = CONVOLUTIONS[dims], NORMS[dims]
    return nn.Sequential(
        convolution(1, read, 3),
        norm(read),
        nn.Tanh(),
        middle,
        norm(put_out),
        nn.Tanh(),
        convolution(put_out, 3, 1),
        nn.Flatten(),
        nn.LazyLinear(2),
    )


def built(network: nn.Module, *shape: int) -> nn.Module:
    network(torch.zeros(3, *shape))
    return network


def sizes(network: nn.Module) -> list[tuple[int, int, int]]:
    return [
        (one.in_channels, one.out_channels, one.groups)
        for one in network.modules()
        if isinstance(one, nn.modules.conv._ConvNd)
    ]


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(
    groups=st.integers(2, 4),
    read=st.integers(1, 3),
    put_out=st.integers(1, 3),
    dims=st.integers(1, 3),
    is_transposed=st.booleans(),
    bias=st.booleans(),
)
def test_grouped_convolutions_of_any_shape(
    groups: int, read: int, put_out: int, dims: int, is_transposed: bool, bias: bool
) -> None:
    kind = (TRANSPOSED if is_transposed else CONVOLUTIONS)[dims]
    middle = kind(groups * read, groups * put_out, 2, groups=groups, bias=bias)
    shape = (1, *(5,) * dims)
    network = built(around(middle, groups * read, groups * put_out, dims), *shape)
    found = check(network, noise(3, *shape), {"0", "6", *(["3"] if put_out > 1 else [])})
    # Convolution groups or positions in them: of what there is more.
    assert found["0"].filters == max(groups, read)
    if put_out > 1:
        assert found["3"].filters == put_out
        assert all(
            place.outer == groups for place in found["3"].places if place.tensor != "3.weight"
        )
    removed = prune(network, list(found.values()), {n: [0] for n in found})
    left = (1, read) if groups >= read else (groups, 1)
    assert sizes(removed)[1] == (left[0] * left[1], left[0], left[0])


def test_units_are_said_in_words() -> None:
    shape = (1, 8, 8)
    network = built(around(nn.Conv2d(32, 32, 3, groups=16), 32, 32), *shape)
    found = find_groups(network, noise(3, *shape)).groups
    assert found["0"].unit == "2 neighbouring filters of 0"
    assert found["3"].unit == "16 filters of 3, one of each of 16 blocks"
    assert found["6"].unit == ""
    # A group of a convolution goes as a channel of a depthwise one: it is carried.
    assert [part.module for part in found["0"].norms] == ["1", "3", "4"]


class Bottleneck(nn.Module):
    """As in ResNeXt: narrow, grouped, wide, and a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.bn1(self.conv1(x)))
        return torch.tanh(x + self.conv3(torch.tanh(self.bn2(self.conv2(h)))))


def test_groups_and_positions_of_one_convolution_go_at_once() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), Bottleneck(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    found = check(network, noise(3, 1, 8, 8), {"0", "1.conv1", "1.conv2"})
    assert (found["1.conv1"].filters, found["1.conv2"].filters) == (4, 2)
    kept = {"0": [1, 4], "1.conv1": [0, 2, 3], "1.conv2": [1]}
    pruned = prune(network, list(found.values()), kept)
    assert sizes(pruned) == [(1, 2, 1), (2, 6, 1), (6, 3, 3), (3, 2, 1)]
    old, new = (one.get_parameter("1.conv2.weight") for one in (network, pruned))
    assert torch.equal(new, old[[1, 5, 7]])


class Split(nn.Module):
    """Channels that are split, treated apart and put together again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.width = how, 4
        self.first = nn.Conv2d(1, 8, 3)
        self.one, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 3, 1)
        self.last, self.out = nn.Conv2d(7, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        ways: dict[str, Callable[[], Any]] = {
            "chunk": lambda: h.chunk(2, 1),
            "split": lambda: torch.split(h, self.width, 1),
            "sizes": lambda: torch.split(h, [self.width, self.width], 1),
            "slices": lambda: (h[:, : self.width], h[:, self.width :]),
            "half": lambda: (h[:, : h.shape[1] // 2], h[:, h.shape[1] // 2 :]),
            "unbind": lambda: h.view(len(h), 2, -1, *h.shape[2:]).unbind(1),
            "number": lambda: torch.split(h, 4, 1),
            "numbers": lambda: (h[:, :4], h[:, 4:]),
            "unequal": lambda: (functional.pad(h[:, :3], (0, 0, 0, 0, 1, 0)), h[:, 3:7]),
        }
        a, b = ways[self.how]()
        both = torch.cat([b + self.one(a), self.other(b)], 1)
        return self.out(torch.tanh(self.last(both)).mean((2, 3)))  # type: ignore[no-any-return]


class Fused(nn.Module):
    """Slices of one layer, of which two are alike and one is not: a product of the first two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(3, 12), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        both = torch.cat([h[:, 6:9], h[:, 9:]], 1)
        return self.out(h[:, :6] * both * self.second(x))  # type: ignore[no-any-return]


def test_slices_that_are_not_all_equal_are_parts_of_their_own() -> None:
    """As of queries, and keys and values together: the first slice alone would be a half."""
    found = follow_groups(Fused(), noise(3, 3))
    assert "into unequal parts" in found.refused["second"]


@pytest.mark.parametrize("how", ["chunk", "split", "sizes", "slices", "half", "unbind"])
def test_equal_parts_lose_the_same_channels(how: str) -> None:
    network = Split(how)
    found = check(network, noise(3, 1, 6, 6), {"first", "other", "last"})
    assert found["first"].filters == 4
    assert [part.module for part in found["first"].layers] == ["first", "one"]
    pruned = prune(network, [found["first"]], {"first": [0, 3]})
    assert isinstance(pruned, Split)
    assert torch.equal(pruned.first.weight, network.first.weight[[0, 3, 4, 7]])
    assert pruned.width == (2 if how in ("split", "sizes", "slices") else 4)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("number", "(its output meets 'split' into parts of 4, and a size written in code cannot"),
        ("numbers", "(its output meets 'slice' into parts of 4, and a size written in code cannot"),
        ("unequal", "its output meets 'slice' into unequal parts"),
    ],
)
def test_sizes_that_are_written_in_code_cannot_be_changed(how: str, words: str) -> None:
    found = find_groups(Split(how), noise(3, 1, 6, 6))
    assert set(found.groups) == {"other", "last"}
    assert words in found.refused["first"]


class Shuffle(nn.Module):
    """A unit of ShuffleNet: half of the channels pass, and then all are mixed."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.one = nn.Conv2d(half, half, 1)
        self.depthwise = nn.Conv2d(half, half, 3, padding=1, groups=half)
        self.two = nn.Conv2d(half, half, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        h = torch.cat([a, torch.tanh(self.two(self.depthwise(torch.tanh(self.one(b)))))], 1)
        n, c, height, width = h.shape
        return h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)


def chain(*middle: nn.Module, channels: int = 8, last: int = 0) -> nn.Module:
    """A convolution, what is between, and a linear layer that reads ``last`` channels."""
    out = nn.Linear((last or channels) * 16, 2)
    return nn.Sequential(nn.Conv2d(1, channels, 3), nn.Tanh(), *middle, nn.Flatten(), out)


def test_channels_that_are_shuffled_go_together() -> None:
    names = {"0", "2.one", "3.one"}
    found = check(chain(Shuffle(8), Shuffle(8)), noise(3, 1, 6, 6), names)
    assert {name: group.filters for name, group in found.items()} == {
        "0": 2,
        "2.one": 4,
        "3.one": 4,
    }


def test_a_split_across_what_goes_together_is_refused() -> None:
    found = find_groups(chain(Shuffle(4), Shuffle(4), Shuffle(4), channels=4), noise(3, 1, 6, 6))
    assert set(found.groups) == {"2.one", "3.one", "4.one"}
    assert "its output meets 'split'" in found.refused["0"]


@pytest.mark.parametrize("module", [True, False])
def test_channels_of_groups_that_are_shuffled(module: bool) -> None:
    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(len(x), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2)

    middle = nn.ChannelShuffle(2) if module else View()
    network = chain(nn.Conv2d(8, 12, 1, groups=2), middle, nn.Conv2d(12, 9, 1, groups=3), last=9)
    found = check(network, noise(3, 1, 6, 6), {"0", "2", "4"})
    assert {name: group.filters for name, group in found.items()} == {"0": 4, "2": 3, "4": 3}


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_shuffle_takes_blocks_of_channels(factor: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4 * factor**2, 3),
        nn.PixelShuffle(factor),
        nn.Tanh(),
        nn.PixelUnshuffle(factor),
        nn.Conv2d(4 * factor**2, 2 * factor**2, 3),
        nn.PixelShuffle(factor),
        nn.Conv2d(2, 1, 3),
    )
    found = check(network, noise(3, 1, 8, 8), {"0", "4"})
    assert {name: group.filters for name, group in found.items()} == {"0": 4, "4": 2}
    assert found["0"].unit == f"{factor**2} neighbouring filters of 0"


class SuperResolution(nn.Module):
    """ESPCN (Shi et al. 2016, arXiv 1609.05158): the last layer's channels are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 8, 5, padding=2), nn.Conv2d(8, 6, 3, padding=1)
        self.three, self.shuffle = nn.Conv2d(6, 9, 3, padding=1), nn.PixelShuffle(3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.two(torch.tanh(self.one(x))))
        return self.shuffle(self.three(h))  # type: ignore[no-any-return]


def test_pixels_of_the_output_stay() -> None:
    found = find_groups(SuperResolution(), noise(3, 1, 6, 6))
    assert set(found.groups) == {"one", "two"}
    assert found.refused == {"three": "its output meets PixelShuffle (shuffle)"}


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(functional.silu(self.cv1(x)))  # type: ignore[no-any-return]


class C2f(nn.Module):
    """A block of YOLOv8: both halves of a layer's channels, and all that residual blocks add."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.cv1, self.cv2 = nn.Conv2d(8, 8, 1), nn.Conv2d((2 + blocks) * 4, 8, 1)
        self.m = nn.ModuleList(Residual(4) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        y = list(functional.silu(self.cv1(x)).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return functional.silu(self.cv2(torch.cat(y, 1)))


class Res2(nn.Module):
    """A block of Res2Net: each part but the last is convolved, with what the one before gave."""

    def __init__(self, width: int = 3, scale: int = 4) -> None:
        super().__init__()
        self.width = width
        self.conv1, self.conv3 = nn.Conv2d(8, width * scale, 1), nn.Conv2d(width * scale, 8, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(torch.tanh(self.conv1(x)), self.width, 1)
        found, h = [], torch.zeros_like(parts[0])
        for conv, part in zip(self.convs, parts[:-1], strict=True):
            h = torch.tanh(conv(h + part))
            found.append(h)
        return x + self.conv3(torch.cat([*found, parts[-1]], 1))  # type: ignore[no-any-return]


class Ghost(nn.Module):
    """A module of GhostNet: half of the channels are made of the other half."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, half = width, width // 2
        self.primary = nn.Conv2d(8, half, 1)
        self.cheap = nn.Conv2d(half, half, 3, padding=1, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.primary(x))
        return torch.cat([h, torch.tanh(self.cheap(h))], 1)[:, : self.width]


BLOCKS: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "C2f": (C2f, {"0": 8, "2.cv1": 4, "2.m.0.cv1": 4, "2.m.1.cv1": 4, "2.cv2": 8}),
    "Res2Net": (Res2, {"0": 8, "2.conv1": 3, "2.convs.2": 3}),
    "GhostNet": (Ghost, {"0": 8, "2.primary": 4}),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_of_public_networks(kind: str) -> None:
    block, filters = BLOCKS[kind]
    found = check(chain(block()), noise(3, 1, 6, 6), set(filters))
    assert {name: group.filters for name, group in found.items()} == filters


def train_and_reload(
    network: nn.Module, groups: list[Group], example: Tensor, folder: Path
) -> None:
    """One step of training without half of all units, then to a file and back."""
    kept = {group.name: range(group.filters // 2, group.filters) for group in groups}
    pruned = prune(network, groups, kept).train()
    pruned(example).square().mean().backward()
    with torch.no_grad():
        for value in pruned.parameters():
            assert value.grad is not None
            value.sub_(value.grad, alpha=0.1)
    path = folder / "pruned.safetensors"
    save_weights(pruned, path, {})
    again = prune(network, groups, kept)
    load_weights(again, path)
    with torch.no_grad():
        assert torch.equal(again.eval()(example), pruned.eval()(example))


@pytest.mark.parametrize("kind", ["grouped", "shuffled", "pixels", *BLOCKS])
def test_what_is_left_trains_and_loads(kind: str, tmp_path: Path) -> None:
    middle: list[nn.Module] = [BLOCKS[kind][0]()] if kind in BLOCKS else [Bottleneck()]
    if kind == "shuffled":
        middle = [Shuffle(8), Shuffle(8)]
    if kind == "pixels":
        middle = [nn.PixelShuffle(2), nn.PixelUnshuffle(2)]
    network = chain(*middle, channels=6 if kind == "grouped" else 8)
    example = noise(3, 1, 6, 6)
    groups = list(find_groups(network, example).groups.values())
    assert groups
    train_and_reload(network, groups, example, tmp_path)
