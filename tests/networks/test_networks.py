from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from trueoracle.errors import InputError
from trueoracle.networks.registry import NETWORKS, build, network
from trueoracle.pruning.walk import find_groups

SHAPE = (1, 32, 32)


def lenet(**arguments: object) -> nn.Module:
    return build("lenet5-mini", arguments, input_shape=SHAPE, classes=10)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_lenet5_mini_is_the_papers() -> None:
    shapes = {name: list(value.shape) for name, value in lenet().state_dict().items()}
    assert {name: shape for name, shape in shapes.items() if name.endswith("weight")} == {
        "conv1.weight": [10, 1, 5, 5],
        "conv2.weight": [10, 10, 5, 5],
        "conv3.weight": [10, 10, 5, 5],
        "fc1.weight": [10, 10],
        "fc2.weight": [10, 10],
    }


def test_width_is_conv1s_filters_and_depth_adds_linear_layers() -> None:
    wide, deep = lenet(width=40), lenet(depth=9)
    assert wide.get_parameter("conv1.weight").shape[0] == 40
    assert wide.get_parameter("conv2.weight").shape == (10, 40, 5, 5)
    assert parameters(deep) == parameters(lenet()) + 4 * 110
    with_weights = [m for m in deep.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(with_weights) == 9
    assert deep(torch.zeros(2, *SHAPE)).shape == (2, 10)


def test_lenet5_has_61706_parameters() -> None:
    # LeCun et al. 1998 with full connections between its second and third layer.
    assert parameters(build("lenet5", input_shape=SHAPE, classes=10)) == 61_706


def test_mlp_takes_its_hidden_units() -> None:
    made = build("mlp", {"hidden": [300, 100]}, input_shape=(1, 28, 28), classes=10)
    assert parameters(made) == 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10  # LeNet-300-100


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lenet5-mini", {}),
        ("lenet5", {}),
        ("mlp", {"hidden": [12, 7]}),
        ("mlp", {"hidden": [12], "batch_norm": True}),
    ],
)
def test_the_linear_variant_is_the_same_network_without_its_relus(
    name: str, arguments: dict[str, object]
) -> None:
    made = []
    for activation in ("relu", "identity"):
        torch.manual_seed(0)
        given = arguments | {"activation": activation}
        made.append(build(name, given, input_shape=SHAPE, classes=10).eval())
    plain, linear = made
    weights, same = plain.state_dict(), linear.state_dict()
    assert list(weights) == list(same)
    assert all(torch.equal(weights[key], same[key]) for key in weights)
    assert [n for n, _ in plain.named_modules()] == [n for n, _ in linear.named_modules()]
    images = torch.randn(3, *SHAPE)
    by_hand = images
    for module in plain:  # type: ignore[attr-defined]
        by_hand = by_hand if isinstance(module, nn.ReLU) else module(by_hand)
    assert torch.equal(linear(images), by_hand)
    assert not torch.equal(linear(images), plain(images))


def test_a_linear_mlp_is_linear() -> None:
    made = build("mlp", {"activation": "identity"}, input_shape=(1, 8, 8), classes=4)
    one, other = torch.randn(2, 5, 1, 8, 8)
    nothing = made(torch.zeros(5, 1, 8, 8))
    torch.testing.assert_close(made(one + other) + nothing, made(one) + made(other))


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "message"),
    [
        ("lenet5-mini", {"activation": "rleu"}, SHAPE, "activation 'rleu': did you mean 'relu'"),
        ("mlp", {"activation": "tanh"}, SHAPE, "available: identity, relu"),
        ("lenet5-mni", {}, SHAPE, "did you mean 'lenet5-mini'"),
        ("lenet5-mini", {"widht": 20}, SHAPE, "did you mean 'width'"),
        ("lenet5-mini", {"depth": 4}, SHAPE, "depth must be 5 to 9, got 4"),
        ("lenet5-mini", {"width": "wide"}, SHAPE, "cannot be built"),
        ("lenet5-mini", {}, (1, 28, 28), "images must be at least 32x32, got 28x28"),
        ("mlp", {"hidden": []}, SHAPE, "at least one layer"),
        ("no.such.module:factory", {}, SHAPE, "cannot import the network"),
        ("numpy:pi", {}, SHAPE, "cannot be called"),
        ("pandas:Series", {}, SHAPE, "gave a Series, not an nn.Module"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(
    name: str, arguments: dict[str, object], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(name, arguments, input_shape=shape, classes=10)
    assert "\n" not in str(caught.value)


def test_a_users_factory_is_found_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_networks.py").write_text(
        "from torch import nn\n"
        "def tiny(classes, units=3):\n"
        "    layers = nn.Linear(1024, units), nn.Linear(units, classes)\n"
        "    return nn.Sequential(nn.Flatten(), *layers)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    made = build("their_networks:tiny", {"units": 4}, input_shape=SHAPE, classes=7)
    assert made(torch.zeros(1, *SHAPE)).shape == (1, 7)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``factories`` whose networks say how many classes they were asked for."""
    (tmp_path / "factories.py").write_text(
        "from torch import nn\n"
        "def names_it(num_classes=1000):\n"
        "    return nn.Linear(1, num_classes)\n"
        "def names_both(input_shape, classes, num_classes):\n"
        "    return nn.Linear(input_shape[0] * classes, num_classes)\n"
        "def takes_anything(**options):\n"
        "    return nn.Linear(1, options.pop('num_classes', 1000), **options)\n"
        "def of_torchvision(*, weights=None, **options):\n"
        "    return takes_anything(**options)\n"
        "of_torchvision.__module__ = 'torchvision.models.tiny'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "factories", raising=False)


@pytest.mark.parametrize(
    ("factory", "arguments", "expected"),
    [
        ("names_it", {}, (1, 7)),
        ("names_it", {"num_classes": 9}, (1, 9)),
        ("names_both", {}, (21, 7)),
        ("takes_anything", {}, (1, 1000)),
        ("takes_anything", {"num_classes": 9}, (1, 9)),
        ("of_torchvision", {}, (1, 7)),
        ("of_torchvision", {"bias": False}, (1, 7)),
        ("of_torchvision", {"num_classes": 9}, (1, 9)),
    ],
)
@pytest.mark.usefixtures("factories")
def test_a_factory_is_told_the_number_of_classes(
    factory: str, arguments: dict[str, object], expected: tuple[int, int]
) -> None:
    made = build(f"factories:{factory}", arguments, input_shape=(3, 32, 32), classes=7)
    assert isinstance(made, nn.Linear)
    assert (made.in_features, made.out_features) == expected
    assert (made.bias is None) == ("bias" in arguments)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "vgg11_bn"])
def test_torchvisions_factories_work_as_they_are(name: str) -> None:
    pytest.importorskip("torchvision")
    with torch.device("meta"):
        made = build(f"torchvision.models:{name}", input_shape=(3, 64, 64), classes=7)
        assert made(torch.empty(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet18", "vit-b-16", "torchvision.models:resnet18"])
def test_grey_images_for_a_network_of_colour_are_one_clear_line(name: str) -> None:
    if ":" in name:
        pytest.importorskip("torchvision")
    network = build(name, input_shape=(3, 32, 32), classes=10)
    with pytest.raises(
        InputError, match=r"does not run on images of shape \[1, 32, 32\]"
    ) as caught:
        find_groups(network, torch.zeros(2, 1, 32, 32))
    assert "\n" not in str(caught.value)


def test_a_network_is_registered_by_one_decorator() -> None:
    @network("only-for-this-test")
    def factory(classes: int) -> nn.Module:
        return nn.Linear(2, classes)

    assert isinstance(build("only-for-this-test", input_shape=(2,), classes=3), nn.Linear)
    with pytest.raises(InputError, match="named 'only-for-this-test' already"):
        network("only-for-this-test")(lambda: nn.Identity())
    assert "only-for-this-test" in NETWORKS
