"""What is wrong with a network, or with pruning it, is found before anything rests on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.networks.graph import record
from trueoracle.pruning.axes.offers import offers
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.groups import Group, Place
from trueoracle.pruning.masks import masked
from trueoracle.pruning.parity import check_network, check_parity, failures
from trueoracle.pruning.settling import settled
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups, follow_groups

IMAGES = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


PLACES = (Place("a.weight"), Place("a.bias"), Place("b.weight", 1, role="reads"))


class Small(nn.Module):
    """conv a (12 filters), what a kind of it does with them, conv b, mean, fc."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.clone) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 5, 1)
        self.fc = nn.Linear(5, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.between(torch.relu(self.a(x)))
        if y.mean() > 1e9:  # so that it cannot be traced, and the walk sees nothing of what follows
            y = y * 2
        return self.fc(torch.relu(self.b(y)).mean((2, 3)))  # type: ignore[no-any-return]


def written(y: Tensor, channel: int) -> Tensor:
    y = y * 1.0
    y[:, channel] = 0.5
    return y


SPECIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "first channel written": lambda y: written(y, 0),
    "last channel written": lambda y: written(y, -1),
    "sixth channel written": lambda y: written(y, 5),
    "gate of the first": lambda y: y * y[:, :1].sigmoid(),
    "third selected": lambda y: y + y.select(1, 2).mean((1, 2)).view(-1, 1, 1, 1),
    "some channels shifted": lambda y: torch.cat([y[:, :4].roll(1, 2), y[:, 4:]], 1),
    "order reversed": lambda y: y.flip(1),
    "normed over channels": lambda y: functional.group_norm(y, 1),
    "softmax over channels": lambda y: y.softmax(1),
    "number of channels": lambda y: y * y.shape[1],
    "hardly read": lambda y: y + 1e-4 * y.select(1, 7).mean((1, 2)).view(-1, 1, 1, 1),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_channels_that_are_treated_specially_are_never_offered(kind: str) -> None:
    found = find_groups(Small(SPECIAL[kind]), IMAGES)
    assert "a" not in found.groups
    assert found.refused["a"]
    assert "b" in found.groups


def test_neighbours_that_are_exchanged_go_in_pairs() -> None:
    network = Small(lambda y: y.unflatten(1, (-1, 2)).flip(2).flatten(1, 2))
    group = find_groups(network, IMAGES).groups["a"]
    assert (group.filters, group.unit) == (6, "2 neighbouring filters of a")


def shifted_first(y: Tensor) -> Tensor:
    first, *others = torch.split(y, 4, 1)
    return torch.cat([first.roll(1, 2), *others], 1)


def test_a_wrong_cut_is_not_hidden_by_what_is_cut_behind_it() -> None:
    """Half of the filters of ``b`` happen to be linear, and blind to a shift of some channels."""
    network = Small(shifted_first)
    offered = offers(network, record(network, IMAGES))
    groups = list(offered.first().groups.values())
    assert [group.name for group in groups] == ["a", "b"]
    assert failures(network, groups, IMAGES) == {}
    assert set(failures(network, groups[:1], IMAGES)) == {"a"}
    assert set(settled(network, offered, IMAGES).groups) == {"b"}


def test_what_reading_the_operations_offers_is_tried() -> None:
    network = Small(SPECIAL["number of channels"])
    offered = follow_groups(network, IMAGES)
    assert {"a", "b"} == set(offered.groups)
    assert set(failures(network, list(offered.groups.values()), IMAGES)) == {"a"}
    candidates = list_candidates(offered, {"a": 0.25}, count=20)
    with pytest.raises(InputError, match=r"^a cannot be pruned: removing its filters is not"):
        check_parity(network, candidates, IMAGES)


@pytest.mark.parametrize("channel", range(12))
def test_every_filter_is_pruned_once(channel: int) -> None:
    groups = [Group("a", 12, PLACES)]
    assert failures(Small(), groups, IMAGES) == {}
    assert set(failures(Small(lambda y: written(y, channel)), groups, IMAGES)) == {"a"}


def test_differences_are_measured_in_double_precision() -> None:
    """A channel that adds a millionth is noticed, and rounding is not."""
    group = find_groups(Small(), IMAGES).groups["a"]
    assert set(failures(Small(lambda y: y + 1e-6 * y[:, :1]), [group], IMAGES)) == {"a"}


class OnlySingle(Small):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype == torch.float32
        return super().forward(x)


@pytest.mark.parametrize("kind", [Small, OnlySingle])
def test_networks_that_compute_in_single_precision_are_tried_in_it(kind: type[Small]) -> None:
    # Norms of language models compute a part in it, whatever they are given.
    right = kind(lambda y: y.float().mul(1.1).to(y.dtype))
    assert {"a", "b"} == set(find_groups(right, IMAGES).groups)
    wrong = kind(lambda y: (y.float() * y.float()[:, :1].sigmoid()).to(y.dtype))
    assert "a" not in find_groups(wrong, IMAGES).groups


class Several(Small):
    """Gives more than one tensor, and whole numbers too."""

    def forward(self, x: Tensor) -> dict[str, Any]:  # type: ignore[override]
        hidden = torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3))
        return {"both": (self.fc(hidden), self.fc(hidden * 2)), "labels": hidden.argmax(1)}


def test_networks_with_several_outputs_are_tried() -> None:
    check_network(Several(), IMAGES)
    groups = [Group("a", 12, PLACES)]
    assert failures(Several(), groups, IMAGES) == {}
    wrong = [Group("a", 12, (*PLACES[:2], Place("b.weight", 0, role="reads")))]
    assert set(failures(Several(), wrong, IMAGES)) == {"a"}


def broken(kind: str) -> nn.Module:
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)
    )
    with torch.no_grad():
        if kind == "NaN":
            network[4].weight[0, 0] = float("nan")  # type: ignore[operator]
        if kind == "infinity":
            network[0].bias[3] = float("inf")  # type: ignore[operator]
        if kind == "buffer":
            network[1].running_mean[0] = float("nan")  # type: ignore[operator]
        if kind == "variance":
            network[1].running_var.fill_(-1)  # type: ignore[operator]
        if kind == "overflow":
            network[4].weight.fill_(3e38)  # type: ignore[operator]
    return network


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("NaN", "4.weight holds NaN or infinity"),
        ("infinity", "0.bias holds NaN or infinity"),
        ("buffer", "1.running_mean holds NaN or infinity"),
        ("variance", "1.running_var holds a negative variance"),
        ("overflow", "grow beyond all bounds"),
    ],
)
def test_a_network_of_numbers_that_are_not_finite_says_where(kind: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_groups(broken(kind), IMAGES)


class Chance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.dropout(self.conv(x).flatten(1)))  # type: ignore[no-any-return]


class NoTensor(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "a cat"


class NoGradient(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if not self.training else super().forward(x).detach()


def test_what_fails_without_pruning_is_not_blamed_on_it() -> None:
    with pytest.raises(InputError, match="Chance gives different answers to the same images"):
        check_network(Chance(), IMAGES)
    with pytest.raises(InputError, match="NoTensor gives a str, expected tensors in"):
        check_network(NoTensor(), IMAGES)
    with pytest.raises(InputError, match=r"does not run on images of shape \[3, 8, 8\]"):
        check_network(nn.Linear(5, 3), IMAGES)
    network = NoGradient()
    candidates = list_candidates(find_groups(Small(), IMAGES), {"a": 0.5}, count=2)
    with pytest.raises(InputError, match="NoGradient does not train on a batch"):
        check_parity(network, candidates, IMAGES)


def test_candidates_are_tried_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)).eval()
    candidates = list_candidates(find_groups(network, IMAGES), {"0": 0.5})
    check_parity(network, candidates, IMAGES)
    network[1].register_forward_hook(lambda module, args, output: output.view(-1, 4, 1, 1))
    with pytest.raises(InputError, match="0 cannot be pruned: without some of its filters"):
        check_parity(network, candidates, IMAGES)


def test_one_group_that_cannot_be_cut_hides_no_other() -> None:
    class Two(Small):
        def __init__(self) -> None:
            super().__init__(lambda y: written(y, 3))
            self.c, self.b = nn.Conv2d(12, 12, 1), nn.Conv2d(12, 12, 1)
            self.fc = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.c(self.between(torch.relu(self.a(x)))))
            return self.fc(torch.relu(self.b(y)).mean((2, 3)))  # type: ignore[no-any-return]

    found = find_groups(Two(), IMAGES)
    assert set(found.groups) == {"c", "b"}
    for name in ("c", "b"):
        group = found.groups[name]
        kept = {name: [0, 3, 4]}
        twin = Two().double().eval()
        with torch.no_grad():
            pruned = prune(twin, [group], kept)(IMAGES.double())
            with masked(twin, [group], kept) as zeroed:
                assert (pruned - zeroed(IMAGES.double())).abs().max() < 1e-12


class Deep(nn.Module):
    """Batch norms over two numbers, which enlarge rounding in training mode."""

    def __init__(self) -> None:
        super().__init__()
        layers = [(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(24)]
        self.first = nn.Conv2d(1, 8, 3)
        self.body = nn.Sequential(*(layer for three in layers for layer in three))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.first(x).mean((2, 3), keepdim=True)).flatten(1))  # type: ignore[no-any-return]


def test_rounding_that_batch_norms_enlarge_refuses_nothing() -> None:
    torch.manual_seed(0)
    found = find_groups(Deep(), torch.rand(2, 1, 6, 6))
    assert len(found.groups) == 25
    assert list(found.refused) == ["out"]


class Blind(nn.Module):
    """Tokens, a mean over those before, which of none is NaN, and layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        seen = attention_mask[..., None].to(self.a.weight)
        mean = (self.embed(input_ids) * seen).cumsum(1) / seen.cumsum(1)
        return self.b(torch.relu(self.a(mean)))  # type: ignore[no-any-return]


def test_what_is_given_for_padding_is_not_compared() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    example = {"input_ids": torch.arange(8).view(2, 4), "attention_mask": mask}
    assert not Blind()(**example).isfinite().all()
    assert set(find_groups(Blind(), example).groups) == {"embed", "a"}
    with pytest.raises(InputError, match="not finite"):  # where all is padding, all is compared
        find_groups(Blind(), example | {"attention_mask": torch.zeros_like(mask)})


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.Hardtanh(inplace=True)])
def test_a_network_that_changes_its_input_is_refused(first: nn.Module) -> None:
    network = nn.Sequential(first, nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    given = torch.randn(4, 1, 8, 8) * 3
    kept = given.clone()
    with pytest.raises(InputError, match="changes its input in place"):
        check_network(network, given)
    assert torch.equal(given, kept)


class OwnNorm(nn.Module):
    """A layer norm of one's own, over as many channels as ``width`` says, or as there are."""

    def __init__(self, width: float | None = None, *, length: bool = False) -> None:
        super().__init__()
        self.width, self.length = width, length
        self.weight = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.length:
            return x / x.square().sum(-1, keepdim=True).sqrt() * self.weight
        width = x.shape[-1] if self.width is None else self.width
        centred = x - x.sum(-1, keepdim=True) / width
        variance = centred.square().sum(-1, keepdim=True) / width
        return centred / (variance + 1e-5).sqrt() * self.weight


@pytest.mark.parametrize(
    ("norm", "is_right"),
    [(OwnNorm(), True), (OwnNorm(length=True), True), (OwnNorm(6.0), False)],
    ids=["any width", "length", "literal width"],
)
def test_a_norm_of_ones_own_is_right_whatever_its_width_or_refused(
    norm: nn.Module, is_right: bool
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 3))
    example = torch.randn(4, 5)
    found = find_groups(network, example)
    assert ("0" in found.groups) == is_right
    if not is_right:
        assert "0" in found.refused
