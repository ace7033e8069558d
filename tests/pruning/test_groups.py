from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.groups import Reader, find_groups
from trueoracle.pruning.parity import check_parity

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
    assert found.groups["conv3"].consumers == (Reader("fc1", spread=1),)
    assert found.refused == {"fc2": "its output is the network's output"}


def test_flattening_spreads_a_filter_over_several_inputs() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 5), nn.MaxPool2d(7), nn.Flatten(), nn.Linear(48, 2))
    assert find_groups(network, IMAGES).groups["0"].consumers == (Reader("3", spread=16),)


def test_norms_belong_to_the_group() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 3, 5), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 5), nn.Flatten(),
        nn.Linear(1152, 2),
    )  # fmt: skip
    group = find_groups(network, IMAGES).groups["0"]
    assert group.norms == (Reader("1"),)
    assert group.consumers == (Reader("3"),)


class Branching(nn.Module):
    """One of everything that keeps a layer from being pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.added = nn.Conv2d(1, 2, 3, padding=1)
        self.feeds_depthwise = nn.Conv2d(2, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.feeds_fixed_view = nn.Conv2d(4, 2, 1)
        self.normed = nn.Linear(1800, 6)
        self.norm = nn.LayerNorm(6)
        self.shared = nn.Linear(6, 6)
        self.free = nn.Linear(6, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.added(x)
        x = self.feeds_depthwise(x + 1)
        x = self.feeds_fixed_view(functional.relu(self.depthwise(x)))
        x = x.view(-1, 1800)
        x = self.shared(self.shared(self.norm(self.normed(x))))
        return self.out(functional.gelu(self.free(x)))  # type: ignore[no-any-return]


def test_what_cannot_be_pruned_says_why() -> None:
    found = find_groups(Branching(), IMAGES)
    assert set(found.groups) == {"free"}
    reasons = {
        "added": "'add'",
        "feeds_depthwise": "grouped convolution (depthwise)",
        "depthwise": "grouped convolution",
        "feeds_fixed_view": "fixed 1800 features",
        "normed": "LayerNorm",
        "shared": "more than once",
        "out": "network's output",
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
        ("weights read", "weights that are read outside of it"),
        ("hook", "it has hooks"),
        ("reader twice", "its reader second is used more than once"),
        ("norm twice", "its reader norm is used more than once"),
        ("spectral", "its reader second computes its weights from others"),
        ("batch only", "no layer with weights reads its output"),
    ],
)
def test_traps_are_refused(kind: str, words: str) -> None:
    found = find_groups(Trap(kind), IMAGES)
    assert "first" not in found.groups
    assert words in found.refused["first"]


def test_tied_weights_are_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(),
                            nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))  # fmt: skip
    network[5].weight = network[3].weight
    found = find_groups(network, IMAGES)
    assert found.groups == {}
    assert found.refused["3"] == "it shares weights with another layer"
    assert found.refused["1"] == "its reader 3 shares weights with another layer"


def test_a_linear_layer_over_rows_of_an_image_is_refused() -> None:
    # As many units as channels: an axis of the right length is not yet the right axis.
    network = nn.Sequential(nn.Conv2d(1, 6, 25), nn.Linear(8, 6), nn.Flatten(), nn.Linear(288, 3))
    found = find_groups(network, IMAGES)
    assert found.groups == {}
    assert "more than one row an image" in found.refused["1"]


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
    assert found.groups["first"].consumers == (Reader("out", spread=576),)
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
    assert found.groups["conv"].norms == (Reader("norm"),)
    assert found.groups["conv"].consumers == (Reader("out", 1 if "pool" in kind else 900),)
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
    assert found.groups["conv"].consumers == (Reader("out"),)
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


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 4, 32), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.dropout(self.conv(x).flatten(1)))  # type: ignore[no-any-return]


def test_chance_in_evaluation_mode_is_noticed() -> None:
    candidates = list_candidates(find_groups(Chance(), IMAGES), {"conv": 0.5})
    with pytest.raises(InputError, match="different answers to the same images"):
        check_parity(Chance(), candidates, torch.rand(2, 1, 32, 32))


def test_parity_is_tried_where_tracing_cannot_see() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 32), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)).eval()
    candidates = list_candidates(find_groups(network, IMAGES), {"0": 0.5})
    images = torch.rand(2, 1, 32, 32)
    check_parity(network, candidates, images)
    # A hook that came after the walk, and mixes the channels.
    handle = network[3].register_forward_pre_hook(lambda module, args: args[0].cumsum(1))
    with pytest.raises(InputError, match="removing filters of 0 is not the same as zeroing them"):
        check_parity(network, candidates, images)
    handle.remove()
    network[1].register_forward_hook(lambda module, args, output: output.view(-1, 4, 1, 1))
    with pytest.raises(InputError, match="does not run once 0 are pruned"):
        check_parity(network, candidates, images)


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(InputError, match="cannot trace DataDependent"):
        find_groups(DataDependent(), IMAGES)


def test_images_of_the_wrong_shape_are_refused() -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    with pytest.raises(InputError, match=r"images of shape \[3, 32, 32\]"):
        find_groups(network, torch.zeros(2, 3, 32, 32))
