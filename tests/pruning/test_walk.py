from __future__ import annotations

import copy
import sys
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.networks.attention import Attention
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.groups import Part
from trueoracle.pruning.masks import masked
from trueoracle.pruning.parity import check_parity
from trueoracle.pruning.walk import find_groups

IMAGES = torch.zeros(2, 1, 32, 32)


def test_lenet5_mini_has_four_prunable_layers() -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    found = find_groups(network, IMAGES)
    assert {name: group.filters for name, group in found.groups.items()} == {
        "conv1": 10,
        "conv2": 10,
        "conv3": 10,
        "fc1": 10,
    }
    assert found.groups["conv3"].consumers == (Part("fc1", spread=1),)
    assert found.refused == {"fc2": "its output is the network's output"}


def test_flattening_spreads_a_filter_over_several_inputs() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 5), nn.MaxPool2d(7), nn.Flatten(), nn.Linear(48, 2))
    assert find_groups(network, IMAGES).groups["0"].consumers == (Part("3", spread=16),)


def test_norms_belong_to_the_group() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 5), nn.Flatten(),
        nn.Linear(1152, 2),
    )  # fmt: skip
    group = find_groups(network, IMAGES).groups["0"]
    assert group.norms == (Part("1"),)
    assert group.consumers == (Part("3"),)


class Branching(nn.Module):
    """One of everything that keeps a layer from being pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.doubled = nn.Conv2d(1, 2, 3, padding=1)
        self.feeds_grouped = nn.Conv2d(4, 4, 3, padding=1)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)
        self.feeds_group_norm = nn.Conv2d(8, 4, 1)
        self.group_norm = nn.GroupNorm(2, 4)
        self.feeds_fixed_view = nn.Conv2d(4, 2, 1)
        self.shared = nn.Linear(1800, 1800)
        self.free = nn.Linear(1800, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.doubled(x)
        x = self.grouped(self.feeds_grouped(torch.cat([x, x], 1)))
        x = self.feeds_fixed_view(self.group_norm(self.feeds_group_norm(x)))
        x = x.view(-1, 1800)
        x = self.shared(self.shared(x))
        return self.out(functional.gelu(self.free(x)))  # type: ignore[no-any-return]


def test_what_cannot_be_pruned_says_why() -> None:
    found = find_groups(Branching(), IMAGES)
    assert set(found.groups) == {"doubled", "feeds_grouped", "grouped", "free"}
    reasons = {
        "feeds_group_norm": "its output meets GroupNorm (group_norm)",
        "feeds_fixed_view": "without some of its filters the network does not run: mat1 and mat2",
        "shared": "without some of its filters the network does not run: mat1 and mat2",
        "out": "its output is the network's output",
    }
    assert set(found.refused) == set(reasons)
    for name, words in reasons.items():
        assert words in found.refused[name]


class Trap(nn.Module):
    """Networks in which a plain cut would be wrong or would not run."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(1, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.rows = nn.Linear(30, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.out = nn.Linear(4, 3)
        if kind == "hook":
            self.first.register_forward_hook(lambda module, args, output: output.flip(1))
        if kind == "spectral":
            nn.utils.parametrizations.spectral_norm(self.second)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "weights read":
            h = h * self.first.weight.norm()
        if self.kind == "reader twice":
            return self.end(self.second(h.relu()) + self.second(h.tanh()))
        if self.kind == "norm twice":
            return self.end(self.second(self.norm(self.norm(h))))
        if self.kind == "rows":
            return self.end(self.second(self.rows(h)[:, :, :, :3].relu()))
        if self.kind == "batch only":
            return self.end(self.second(x.new_zeros(h.size(0), 4, 5, 5)))
        return self.end(self.second(h.relu()))

    def end(self, h: Tensor) -> Tensor:
        return self.out(self.pool(h).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("weights read", "its weights are used in 'linalg_vector_norm'"),
        ("hook", "its output meets 'flip'"),
        ("spectral", "its reader second computes its weights from others"),
        ("batch only", "what the network gives does not depend on it"),
    ],
)
def test_traps_are_refused(kind: str, words: str) -> None:
    found = find_groups(Trap(kind), IMAGES)
    assert "first" not in found.groups
    assert words in found.refused["first"]


@pytest.mark.parametrize("kind", ["reader twice", "norm twice", "rows"])
def test_layers_that_are_used_more_than_once_are_followed(kind: str) -> None:
    torch.manual_seed(0)
    network, images = Trap(kind), torch.rand(3, 1, 32, 32)
    found = find_groups(network, images)
    assert [part.module for part in found.groups["first"].consumers] == ["second"]
    check_parity(network, list_candidates(found, {"*": 0.5}), images)


def test_tied_weights_are_cut_together() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                            nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))  # fmt: skip
    network[5].weight = network[3].weight
    images = torch.rand(3, 1, 32, 32)
    found = find_groups(network, images)
    assert set(found.groups) == {"1"}
    candidates = list_candidates(found, {"1": 0.5}, count=5)
    check_parity(network, candidates, images)
    pruned = candidates.prune(network, 0)
    assert pruned[5].weight is pruned[3].weight  # type: ignore[index]
    assert pruned[5].weight.shape == (4, 4)  # type: ignore[index]


def test_a_linear_layer_over_rows_of_an_image_is_followed() -> None:
    # As many units as channels: an axis of the right length is not yet the right axis.
    network = nn.Sequential(nn.Conv2d(1, 6, 25), nn.Linear(8, 6), nn.Flatten(), nn.Linear(288, 3))
    images = torch.rand(3, 1, 32, 32)
    found = find_groups(network, images)
    assert found.groups["0"].consumers == (Part("3", spread=48),)
    assert found.groups["1"].consumers == (Part("3", spread=1, outer=48),)
    check_parity(network, list_candidates(found, {"*": 0.5}), images)


class OtherInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(1024, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(x.flatten(1))
        return logits.tanh() if self.training else logits


def test_a_network_that_is_another_one_in_training_is_refused() -> None:
    network = OtherInTraining().eval()
    with pytest.raises(InputError, match="other things in training"):
        find_groups(network, IMAGES)
    assert not network.training


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 9)
        self.out = nn.Linear(4 * 576, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.reshape(input=self.first(x).relu(), shape=(x.size(0), -1))
        return self.out(input=x)  # type: ignore[no-any-return]


def test_arguments_by_keyword_are_followed() -> None:
    network, images = Keywords().eval(), torch.rand(2, 1, 32, 32)
    found = find_groups(network, images)
    assert found.groups["first"].consumers == (Part("out", spread=576),)
    check_parity(network, list_candidates(found, {"first": 0.5}), images)


class Usual(nn.Module):
    """Ways that people write a network's end."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.out = nn.Linear(4 if "pool" in kind else 3600, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.dropout(functional.relu(self.norm(self.conv(x))), training=self.training)
        if self.kind == "pool by mean":
            x = x.mean((2, 3))
        elif self.kind == "pool and squeeze":
            x = functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)
        elif self.kind == "unpacked":
            n, _c, _h, _w = x.shape
            x = x.view(n, -1)
        elif self.kind == "size":
            x = x.reshape(x.size(dim=0), -1)
        elif self.kind == "sizes":
            x = x.reshape(x.size()[0], -1)
        else:
            x = torch.flatten(x, start_dim=1)
        return self.out(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "kind", ["pool by mean", "pool and squeeze", "unpacked", "size", "sizes", "flatten"]
)
def test_usual_ways_to_write_a_network_are_followed(kind: str) -> None:
    network, images = Usual(kind), torch.rand(3, 1, 32, 32)
    found = find_groups(network, images)
    assert found.groups["conv"].norms == (Part("norm"),)
    assert found.groups["conv"].consumers == (Part("out", 1 if "pool" in kind else 900),)
    check_parity(network, list_candidates(found, {"conv": 0.5}), images)


class Optional(nn.Module):
    """A forward with more arguments than the images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 32), nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, features: bool = False) -> Tensor:
        x = self.conv(x).flatten(1)
        if mask is not None:
            x = x * mask
        return x if features else self.out(x)


def test_optional_arguments_keep_their_defaults() -> None:
    network, images = Optional(), torch.rand(3, 1, 32, 32)
    found = find_groups(network, images)
    assert found.groups["conv"].consumers == (Part("out"),)
    check_parity(network, list_candidates(found, {"conv": 0.5}), images)


class Mean(nn.Module):
    """As many filters as columns: a mean over the wrong axes leaves an axis of the right length."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        super().__init__()
        self.dims = dims
        self.conv, self.out = nn.Conv2d(1, 30, 3), nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x).mean(self.dims))  # type: ignore[no-any-return]


@pytest.mark.parametrize("dims", [(1, 2), (1, 3)])
def test_a_mean_over_channels_is_refused(dims: tuple[int, ...]) -> None:
    found = find_groups(Mean(dims), IMAGES)
    assert found.groups == {}
    assert found.refused["conv"] == "its output meets 'mean'"


class Residual(nn.Module):
    """A sum of layers, a squeeze-and-excitation, a depthwise convolution, a scale a channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, stride=2)
        self.norm0 = nn.BatchNorm2d(6)
        self.inner = nn.Conv2d(6, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.act = nn.PReLU(8)
        self.outer = nn.Conv2d(8, 6, 1)
        self.scale = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.squeeze = nn.Conv2d(6, 3, 1)
        self.excite = nn.Conv2d(3, 6, 1)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.norm0(self.stem(x)))
        branch = self.outer(self.act(self.depthwise(self.inner(x)))) * self.scale
        weights = self.squeeze(functional.adaptive_avg_pool2d(branch, 1)).relu()
        x = x + branch * torch.sigmoid(self.excite(weights)) + 1
        return self.last(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_layers_that_are_added_up_become_one_group() -> None:
    found = find_groups(Residual(), IMAGES)
    assert found.refused == {"last": "its output is the network's output"}
    stem = found.groups["stem"]
    assert [part.module for part in stem.layers] == ["stem", "outer", "excite"]
    assert stem.norms == (Part("norm0"), Part("scale", axis=1))
    assert stem.consumers == (Part("inner"), Part("squeeze"), Part("last"))
    assert found.groups["inner"].norms == (Part("depthwise"), Part("act"))
    assert stem.members == (
        *("stem", "outer", "excite", "norm0", "scale", "inner", "squeeze", "last"),
    )
    assert set(found.groups) == {"stem", "inner", "squeeze"}


class Dense(nn.Module):
    """Concatenations, then flattening: one layer reads several groups, at offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.second = nn.Conv2d(5, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(11)
        self.out = nn.Linear(11 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        both = torch.cat([x, first], 1)
        all_of_them = torch.cat((both, self.second(both).relu()), dim=1)
        pooled = functional.adaptive_avg_pool2d(self.norm(all_of_them).tanh(), 4)
        return self.out(torch.flatten(pooled, 1))  # type: ignore[no-any-return]


def test_behind_a_concatenation_filters_lie_at_an_offset() -> None:
    found = find_groups(Dense(), IMAGES)
    first, second = found.groups["first"], found.groups["second"]
    assert first.norms == (Part("norm", offset=1),)
    assert first.consumers == (Part("second", offset=1), Part("out", 16, 16))
    assert second.norms == (Part("norm", offset=5),)
    assert second.consumers == (Part("out", 16, 80),)


class Tokens(nn.Module):
    """A small vision transformer: class token, positions, layer norms, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 12))
        self.positions = nn.Parameter(torch.randn(1, 17, 12))
        self.norm1 = nn.LayerNorm(12)
        self.attention = Attention(12, 3)
        self.norm2 = nn.LayerNorm(12)
        self.up = nn.Linear(12, 10)
        self.down = nn.Linear(10, 12)
        self.norm3 = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        x = x + self.attention(self.norm1(x))
        x = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x)[:, 0])  # type: ignore[no-any-return]


def test_heads_hidden_units_and_the_width_of_a_transformer_are_groups() -> None:
    found = find_groups(Tokens(), IMAGES)
    width = found.groups["patches"]
    assert [part.module for part in width.layers] == ["patches", "attention.out_proj", "down"]
    assert width.norms == (
        Part("token", axis=2),
        Part("positions", axis=2),
        Part("norm1"),
        Part("norm2"),
        Part("norm3"),
    )
    assert width.consumers == (Part("attention"), Part("up"), Part("head"))
    assert found.groups["attention"].filters == 3
    assert found.groups["attention"].consumers == (Part("attention.out_proj", spread=4),)
    assert found.groups["up"].consumers == (Part("down"),)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Residual, Dense, Tokens])
def test_surgery_equals_masking_in_coupled_groups(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(3)
    network = kind().double().train(training)
    shuffle_norms(network)
    images = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    found = find_groups(network, images)
    for layers in [*({name: 0.5} for name in found.groups), {"*": 0.4}]:
        candidates = list_candidates(found, layers, count=3, seed=1)
        for index in range(len(candidates)):
            with torch.no_grad():
                pruned = copy.deepcopy(candidates.prune(network, index)).train(training)
                with masked(network, candidates.groups, candidates.kept(index)) as zeroed:
                    expected = copy.deepcopy(zeroed)(images)
                assert (pruned(images) - expected).abs().max() < 1e-12
                assert (expected - copy.deepcopy(network)(images)).abs().max() > 1e-6


def shuffle_norms(network: nn.Module) -> None:
    """Norms that do something: random entries and statistics."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_()
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]


class OfOthers(nn.Module):
    """Ways in which channels meet others that they cannot be matched with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Conv2d(1, 6, 3, padding=1)
        self.narrow = nn.Conv2d(1, 2, 3, padding=1)
        self.one = nn.Conv2d(1, 1, 1)
        self.fixed = nn.Buffer(torch.randn(1, 6, 1, 1))
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "padded":
            h = h + functional.pad(self.narrow(x), (0, 0, 0, 0, 2, 2))
        if self.kind == "images":
            h = h + x.expand(-1, 6, -1, -1)
        if self.kind == "buffer":
            h = h * self.fixed
        if self.kind == "literal":
            h = h * torch.arange(6.0).view(1, 6, 1, 1)
        if self.kind == "spatial":
            h = h * self.one(x).sigmoid()
        if self.kind == "border":
            h = functional.pad(h, (1, 1, 1, 1))[:, :, 1:-1, ::2]
        if self.kind == "part":
            h = torch.cat([h[:, 3:], h[:, :3]], 1)
        return self.out(h.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("padded", "its output meets 'add' of other channels"),
        ("images", "the network does not run: The size of tensor a (3) must match"),
        ("literal", "its output meets 'mul' of something that keeps its size"),
        ("buffer", ""),
        ("spatial", ""),
        ("part", "its output meets 'slice'"),
        ("border", ""),
    ],
)
def test_channels_that_meet_others_are_refused(kind: str, words: str) -> None:
    found = find_groups(OfOthers(kind), IMAGES)
    assert ("first" in found.groups) is (not words)
    assert words in found.refused.get("first", "")
    if kind == "spatial":  # a gate of positions is of no filter
        assert found.refused["one"] == "its output meets 'mul' of many channels"


class DataDependent(nn.Module):
    """Branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 5, stride=4), nn.BatchNorm2d(6)
        self.second, self.third = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 3)
        self.out = nn.Linear(4 * 25, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        if x.sum() > 0:
            x = x.relu()
        x = x + self.second(x)
        return self.out(self.third(x).flatten(1))  # type: ignore[no-any-return]


def test_a_network_that_branches_on_values_is_followed() -> None:
    torch.manual_seed(0)
    network, images = DataDependent().eval(), torch.rand(3, 1, 32, 32)
    network.first.weight.requires_grad_(False)
    found = find_groups(network, images)
    assert not network.training
    assert not network.first.weight.requires_grad
    assert {part.module for part in found.groups["first"].layers} == {"first", "second"}
    assert {part.module for part in found.groups["first"].consumers} == {"second", "third"}
    assert found.groups["third"].consumers == (Part("out", spread=25),)
    assert found.refused == {"out": "its output is the network's output"}
    check_parity(network, list_candidates(found, {"first": 0.5, "third": 0.5}, count=3), images)


class InferenceOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv2d(1, 4, 32), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("for inference only")
        return self.out(self.first(x).flatten(1))  # type: ignore[no-any-return]


def test_no_gradients_are_needed_to_follow_a_network() -> None:
    assert set(find_groups(InferenceOnly(), IMAGES).groups) == {"first"}


class Endless(nn.Module):
    """A gate of one channel, on which Torch-Pruning 1.6.1 goes round in circles."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 5, stride=4), nn.Conv2d(6, 4, 3)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 1e9:
            x = x.relu()
        x = self.second(x)
        return self.out((x * x[:, -1:].sigmoid()).mean((2, 3)))  # type: ignore[no-any-return]


def test_following_needs_no_thread_and_no_time_limit() -> None:
    before = set(threading.enumerate()), sys.getprofile()
    found = find_groups(Endless(), torch.rand(2, 1, 32, 32))
    assert (set(threading.enumerate()), sys.getprofile()) == before
    assert set(found.groups) == {"first"}
    assert found.refused["second"] == "its output meets 'slice' into unequal parts"


def test_images_of_the_wrong_shape_are_refused() -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    with pytest.raises(InputError, match=r"images of shape \[3, 32, 32\]"):
        find_groups(network, torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("training", [False, True])
def test_a_network_stays_as_it_is(training: bool) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(3600, 3)
    ).train(training)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images, random = torch.rand(3, 1, 32, 32), torch.get_rng_state()
    find_groups(network, images)
    assert network[1].training is training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


class Odd(nn.Module):
    """Ways to write the same that rules have to read."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3)
        self.up = nn.ConvTranspose2d(6, 6, 1)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.kind == "asks":
            torch._assert(h.dim() == 4, "images")
            ones = torch.ones(h.shape[-2:], device=h.device, dtype=h.dtype)
            h = functional.interpolate(-h * ones, size=h.shape[2:]) ** 2
        if self.kind == "unpacked":
            _n, channels, height, width = h.shape
            h = h.reshape(-1, channels, height * width).unflatten(2, (height, width))
        if self.kind == "upsampled":
            h = self.up(h)
        if self.kind == "chunked":
            h = torch.cat(h.chunk(2, 1), 1)
        if self.kind == "computed axis":
            h = h.transpose(1, h.dim() - 2).transpose(1, 2)
        h = functional.adaptive_avg_pool2d(self.second(h), 1)
        h = h.amax((2, 3)) if self.kind == "asks" else h.squeeze((-2, -1))
        return self.out(h)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("asks", ""),
        ("squeezed", ""),
        ("unpacked", ""),
        ("upsampled", ""),
        ("chunked", ""),
        ("computed axis", ""),
    ],
)
def test_odd_ways_are_followed_or_refused_in_words(kind: str, words: str) -> None:
    found = find_groups(Odd(kind), IMAGES)
    assert found.refused.get("first", "") == words
    assert found.groups["second"].consumers == (Part("out"),)
    unused = "its weights were not used on the example"
    assert found.refused.get("up", "") == ("" if kind == "upsampled" else unused)
