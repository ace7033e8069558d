from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from torch import nn

from tests.networks.costs import count
from trueoracle.errors import InputError
from trueoracle.networks.registry import build

SMALL = (3, 32, 32)


def filters(name: str, **arguments: object) -> list[int]:
    network = build(name, arguments, input_shape=SMALL, classes=10)
    return [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]


def test_vgg19_for_cifar100_has_20_million_parameters() -> None:
    # Table 1 of arXiv 1409.1556, column E: 3x3 weights, two numbers a norm's channel, one linear.
    kernels = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 512)]
    kernels += [(256, 256)] * 3 + [(512, 512)] * 7
    weights = sum(9 * inputs * outputs for inputs, outputs in kernels)
    norms = 2 * (2 * 64 + 2 * 128 + 4 * 256 + 8 * 512)
    by_hand = weights + norms + 512 * 100 + 100
    assert by_hand == 20_081_188
    assert count("vgg19", SMALL, 100) == (by_hand, 398_182_400)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [
        ("vgg11", 9_228_362, 152_769_536),
        ("vgg13", 9_413_066, 228_267_008),
        ("vgg16", 14_724_042, 313_201_664),
    ],
)
def test_the_others_have_their_known_sizes(name: str, parameters: int, macs: int) -> None:
    assert count(name, SMALL, 10) == (parameters, macs)


def test_filters_are_those_of_the_papers_table() -> None:
    assert filters("vgg11") == [64, 128, 256, 256, 512, 512, 512, 512]
    assert filters("vgg13") == [64] * 2 + [128] * 2 + [256] * 2 + [512] * 4
    assert filters("vgg16") == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert filters("vgg19") == [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8


def test_width_multiplies_the_channels() -> None:
    assert filters("vgg11", width=0.25) == [16, 32, 64, 64, 128, 128, 128, 128]
    assert filters("vgg11", width=0.001) == [1] * 8


def test_one_pattern_names_all_convolutions() -> None:
    network = build("vgg19", {"width": 0.0625}, input_shape=(1, 32, 32), classes=10)
    named = [name for name, _ in network.named_modules() if fnmatchcase(name, "conv*")]
    assert named == [f"conv{i}" for i in range(1, 17)]


@pytest.mark.parametrize(
    ("arguments", "shape", "message"),
    [
        ({"width": 0}, SMALL, "width must be above 0, got 0"),
        ({}, (1, 8, 8), "images must be at least 16x16, got 8x8"),
        ({"widht": 1}, SMALL, "did you mean 'width'"),
    ],
)
def test_what_cannot_be_built_is_said(
    arguments: dict[str, object], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build("vgg16", arguments, input_shape=shape, classes=10)
