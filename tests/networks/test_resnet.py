from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

from tests.networks.costs import count
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.networks.resnet import PaddedShortcut

SMALL, LARGE = (3, 32, 32), (3, 224, 224)


def test_resnet56_has_its_known_size() -> None:
    # 55 convolutions of 16, 32 and 64 filters, on 32x32, 16x16 and 8x8 positions.
    convolutions = [432 + 18 * 2304, 4608 + 17 * 9216, 18432 + 17 * 36864]
    parameters = sum(convolutions) + 2 * (19 * 16 + 18 * 32 + 18 * 64) + 64 * 10 + 10
    macs = sum(n * size**2 for n, size in zip(convolutions, (32, 16, 8), strict=True)) + 640
    assert (parameters, macs) == (853_018, 125_485_696)
    assert count("resnet56", SMALL, 10) == (parameters, macs)


def test_shortcuts_b_are_two_1x1_convolutions_with_norms() -> None:
    more = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    macs = 16 * 32 * 16**2 + 32 * 64 * 8**2
    assert count("resnet56", SMALL, 10, shortcut="B") == (853_018 + more, 125_485_696 + macs)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters", "macs"),
    [
        ("resnet20", SMALL, 10, 269_722, 40_551_040),
        ("resnet110", SMALL, 10, 1_727_962, 252_887_680),
        ("resnet18", LARGE, 1000, 11_689_512, 1_814_073_344),
        ("resnet34", LARGE, 1000, 21_797_672, 3_663_761_408),
        ("resnet50", LARGE, 1000, 25_557_032, 4_089_184_256),
    ],
)
def test_the_others_have_their_known_sizes(
    name: str, shape: tuple[int, ...], classes: int, parameters: int, macs: int
) -> None:
    assert count(name, shape, classes) == (parameters, macs)


def test_one_pattern_names_the_first_convolution_of_each_block() -> None:
    network = build("resnet56", {"width": 2}, input_shape=(1, 32, 32), classes=10)
    named = [name for name, _ in network.named_modules() if fnmatchcase(name, "layer*.conv1")]
    assert named == [f"layer{i}.{j}.conv1" for i in (1, 2, 3) for j in range(9)]


def test_a_padded_shortcut_by_hand() -> None:
    image = torch.arange(1.0, 10.0).view(1, 1, 3, 3)  # 1 2 3 / 4 5 6 / 7 8 9
    zeros, corners = [[0.0, 0.0]] * 2, [[1.0, 3.0], [7.0, 9.0]]
    assert PaddedShortcut(2, before=1, after=2)(image).tolist() == [[zeros, corners, zeros, zeros]]


@pytest.mark.parametrize("width", [4, 5])
def test_a_shortcut_a_is_all_that_is_left_without_its_block(width: int) -> None:
    network = build("resnet20", {"width": width}, input_shape=SMALL, classes=10).eval()
    block = network.get_submodule("layer2.0")
    nn.init.zeros_(block.get_parameter("conv2.weight"))
    x = torch.rand(2, width, 6, 6)
    with torch.no_grad():
        y = block(x)
    assert y.shape == (2, 2 * width, 3, 3)
    before = width // 2
    assert torch.equal(y[:, before : before + width], x[:, :, ::2, ::2])
    assert y[:, :before].count_nonzero() == y[:, before + width :].count_nonzero() == 0


def test_width_is_the_first_stages() -> None:
    network = build("resnet18", {"width": 8}, input_shape=SMALL, classes=10)
    for i in range(4):
        assert network.get_parameter(f"layer{i + 1}.1.conv2.weight").shape[0] == 8 * 2**i


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet20", {"shortcut": "C"}, "shortcut must be 'A' or 'B', got 'C'"),
        ("resnet20", {"width": 0}, "width must be at least 1, got 0"),
        ("resnet50", {"width": 0}, "width must be at least 1, got 0"),
        ("resnet50", {"shortcut": "A"}, "unknown argument of network 'resnet50' 'shortcut'"),
        ("resnet57", {}, "did you mean .*'resnet56'"),
    ],
)
def test_what_cannot_be_built_is_said(
    name: str, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(name, arguments, input_shape=SMALL, classes=10)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_it_is_torchvisions(name: str) -> None:
    """The same first weights from a seed, and with them the same answers and statistics."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.get_model(name, width_per_group=64, num_classes=20)
    torch.manual_seed(0)
    ours = build(name, input_shape=LARGE, classes=20)
    expected = theirs.state_dict()
    assert list(ours.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    ours.load_state_dict(theirs.state_dict())
    copy.deepcopy(theirs).load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    for training in (False, True):
        with torch.no_grad():
            found, wanted = ours.train(training)(images), theirs.train(training)(images)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    after = theirs.state_dict()
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(value, after[key], rtol=1e-5, atol=1e-5)
