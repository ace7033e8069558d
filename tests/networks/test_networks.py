from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trueoracle.errors import InputError, StoreError
from trueoracle.networks.registry import NETWORKS, build, network
from trueoracle.networks.weights import load_weights, read_metadata, save_weights, weights_sha256

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
    ("name", "arguments", "shape", "message"),
    [
        ("lenet5-mni", {}, SHAPE, "did you mean 'lenet5-mini'"),
        ("lenet5-mini", {"widht": 20}, SHAPE, "did you mean 'width'"),
        ("lenet5-mini", {"depth": 4}, SHAPE, "depth must be 5 to 9, got 4"),
        ("lenet5-mini", {"width": "wide"}, SHAPE, "cannot be built"),
        ("lenet5-mini", {}, (1, 28, 28), "images must be at least 32x32, got 28x28"),
        ("mlp", {"hidden": []}, SHAPE, "at least one layer"),
        ("no.such.module:factory", {}, SHAPE, "cannot import the network"),
        ("math:pi", {}, SHAPE, "cannot be called"),
        ("fractions:Fraction", {}, SHAPE, "gave a Fraction, not an nn.Module"),
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


def test_a_network_is_registered_by_one_decorator() -> None:
    @network("only-for-this-test")
    def factory(classes: int) -> nn.Module:
        return nn.Linear(2, classes)

    assert isinstance(build("only-for-this-test", input_shape=(2,), classes=3), nn.Linear)
    with pytest.raises(InputError, match="named 'only-for-this-test' already"):
        network("only-for-this-test")(lambda: nn.Identity())
    assert "only-for-this-test" in NETWORKS


def test_weights_survive_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, loaded = lenet(), lenet()
    save_weights(saved, tmp_path / "dense.safetensors", {"epochs": [{"loss": 0.5}]})
    load_weights(loaded, tmp_path / "dense.safetensors")
    assert weights_sha256(loaded) == weights_sha256(saved)
    assert read_metadata(tmp_path / "dense.safetensors") == {"epochs": [{"loss": 0.5}]}
    assert list(tmp_path.iterdir()) == [tmp_path / "dense.safetensors"]


@pytest.mark.parametrize("wrapping", ["plain", "state_dict", "model", "module."])
def test_common_checkpoints_are_understood(tmp_path: Path, wrapping: str) -> None:
    saved, loaded, path = lenet(), lenet(), tmp_path / "checkpoint.pt"
    tensors = saved.state_dict()
    if wrapping == "module.":
        content: object = {"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}
    elif wrapping == "plain":
        content = tensors
    else:
        content = {wrapping: tensors}
    torch.save(content, path)
    load_weights(loaded, path)
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_a_checkpoint_that_does_not_fit_names_tensors_and_shapes(tmp_path: Path) -> None:
    path = tmp_path / "wide.safetensors"
    save_file(lenet(width=20).state_dict(), path)
    with pytest.raises(InputError) as caught:
        load_weights(lenet(), path)
    message = str(caught.value)
    assert "conv1.weight is [20, 1, 5, 5], expected [10, 1, 5, 5]" in message
    save_file(lenet(depth=6).state_dict(), path)
    with pytest.raises(InputError, match=r"fc3\.weight is not in the network"):
        load_weights(lenet(), path)
    with pytest.raises(InputError, match=r"fc4\.weight is missing"):
        load_weights(lenet(depth=7), path)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (Path.touch, (Path("harmed"),))  # type: ignore[return-value]


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "bad.pt").open("wb") as file:
        pickle.dump({"weight": Harmful()}, file, protocol=2)
    with pytest.raises(InputError, match="read safely"):
        load_weights(lenet(), tmp_path / "bad.pt")
    assert not (tmp_path / "harmed").exists()


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights file"):
        load_weights(lenet(), tmp_path / "none.safetensors")
    path = tmp_path / "cut.safetensors"
    save_weights(lenet(), path, {})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut\.safetensors is no safetensors file"):
        load_weights(lenet(), path)
    with pytest.raises(StoreError, match=r"cannot read .*cut\.safetensors"):
        read_metadata(path)
    for content in (b"", b"hello world"):
        (tmp_path / "text.pt").write_bytes(content)
        with pytest.raises(InputError, match="is no safetensors file or PyTorch checkpoint"):
            load_weights(lenet(), tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state_dict"):
        load_weights(lenet(), tmp_path / "list.pt")
