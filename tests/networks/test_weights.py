from __future__ import annotations

import argparse
import pickle
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trueoracle.errors import InputError, StoreError
from trueoracle.networks.registry import build
from trueoracle.networks.weights import (
    architecture_sha256,
    load_weights,
    read_metadata,
    read_weights,
    save_weights,
    state_tensors,
    weights_sha256,
)


def lenet(**arguments: object) -> nn.Module:
    return build("lenet5-mini", arguments, input_shape=(1, 32, 32), classes=10)


def test_weights_survive_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved, loaded = lenet(), lenet()
    save_weights(saved, tmp_path / "dense.safetensors", {"epochs": [{"loss": 0.5}]})
    load_weights(loaded, tmp_path / "dense.safetensors")
    assert weights_sha256(loaded) == weights_sha256(saved)
    assert read_metadata(tmp_path / "dense.safetensors") == {"epochs": [{"loss": 0.5}]}
    assert list(tmp_path.iterdir()) == [tmp_path / "dense.safetensors"]


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def in_the_middle(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As where single layers were compiled."""
    return {name.replace(".", "._orig_mod.", 1): value for name, value in tensors.items()}


WRAPPINGS: dict[str, Any] = {
    "plain": lambda tensors: tensors,
    "state_dict": lambda tensors: {"state_dict": tensors},
    "model": lambda tensors: {"model": tensors},
    "model_state_dict": lambda tensors: {"model_state_dict": tensors, "epoch": 3},
    "model in state_dict": lambda tensors: {"state_dict": {"model": tensors}, "epoch": 3},
    "state_dict in model": lambda tensors: {"model": {"state_dict": tensors, "epoch": 3}},
    "module.": lambda tensors: {"state_dict": prefixed(tensors, "module."), "epoch": 3},
    "module. in model in state_dict": lambda tensors: {
        "state_dict": {"model": prefixed(tensors, "module.")}
    },
    "_orig_mod.": lambda tensors: prefixed(tensors, "_orig_mod."),
    "module._orig_mod.": lambda tensors: {"model": prefixed(tensors, "module._orig_mod.")},
    "_orig_mod.module.": lambda tensors: prefixed(tensors, "_orig_mod.module."),
    "compiled layers": in_the_middle,
    "a script's arguments": lambda tensors: {"model": tensors, "args": argparse.Namespace(lr=0.1)},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_common_checkpoints_are_understood(tmp_path: Path, wrapping: str) -> None:
    saved, loaded, path = lenet(), lenet(), tmp_path / "checkpoint.pt"
    torch.save(WRAPPINGS[wrapping](saved.state_dict()), path)
    load_weights(loaded, path)
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_what_torch_compile_saves_is_understood(tmp_path: Path) -> None:
    saved, loaded, path = lenet(), lenet(), tmp_path / "compiled.safetensors"
    compiled: Any = torch.compile(saved, backend="eager")
    save_file(compiled.state_dict(), path)
    assert all(name.startswith("_orig_mod.") for name in read_weights(path))
    load_weights(loaded, path)
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_a_layer_that_is_called_module_keeps_its_name(tmp_path: Path) -> None:
    def nested() -> nn.Module:
        inner = nn.Sequential(OrderedDict(module=nn.Linear(2, 2), other=nn.Linear(2, 2)))
        return nn.Sequential(OrderedDict(module=inner))

    saved = nested()
    for number, prefix in enumerate(["", "module."]):
        loaded, path = nested(), tmp_path / f"{number}.safetensors"
        save_file(prefixed(saved.state_dict(), prefix), path)
        load_weights(loaded, path)
        assert weights_sha256(loaded) == weights_sha256(saved)


def test_old_files_of_vision_transformers_are_understood(tmp_path: Path) -> None:
    arguments = {"patch": 16, "layers": 1, "heads": 2, "width": 8, "mlp": 12}
    saved, loaded = (
        build("vit-b-16", arguments, input_shape=(3, 32, 32), classes=4) for _ in range(2)
    )
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for name, value in saved.state_dict().items()
    }
    assert sum("linear_" in name for name in old) == 4
    save_file(old, tmp_path / "old.safetensors")
    load_weights(loaded, tmp_path / "old.safetensors")
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_a_checkpoint_without_counters_of_batches_fits(tmp_path: Path) -> None:
    saved, loaded = (
        build("resnet20", {"width": 2}, input_shape=(3, 32, 32), classes=4) for _ in range(2)
    )
    tensors = {n: v for n, v in saved.state_dict().items() if not n.endswith("_tracked")}
    save_file(tensors, tmp_path / "old.safetensors")
    load_weights(loaded, tmp_path / "old.safetensors")
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


def test_weights_of_torchvisions_hub_need_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    reference = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
    with pytest.raises(InputError, match="which does not import") as caught:
        load_weights(lenet(), reference)
    assert reference in str(caught.value)
    assert ".[vision]" in str(caught.value)


def test_a_file_of_that_name_is_no_hubs(tmp_path: Path) -> None:
    path = tmp_path / "torchvision:mine.safetensors"
    save_file(lenet().state_dict(), path)
    assert "conv1.weight" in read_weights(path)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("ResNet18_Weights.IMAGENET1K_V2", "did you mean 'ResNet18_Weights.IMAGENET1K_V1'"),
        ("resnet18", "available: ResNet18_Weights.IMAGENET1K_V1$"),
        ("vit_b_16", "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"),
        ("Resnt18_Weights.IMAGENET1K_V1", "did you mean 'ResNet18_Weights.IMAGENET1K_V1'"),
    ],
)
def test_unknown_weights_of_torchvision(name: str, nearest: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=nearest) as caught:
        read_weights(f"torchvision:{name}")
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of downloads, and no network."""
    pytest.importorskip("torchvision")

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network here")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_without_a_network_the_error_says_what_to_do(hub: Path) -> None:
    with pytest.raises(InputError, match="no network here") as caught:
        read_weights("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    message = str(caught.value)
    assert "download https://" in message
    assert "network.weights" in message
    assert "\n" not in message


def test_weights_of_the_hub_fit_our_networks(hub: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    theirs = models.resnet18()
    file = Path(models.ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save(theirs.state_dict(), hub / file)
    ours = build("resnet18", input_shape=(3, 224, 224), classes=1000)
    load_weights(ours, "torchvision:ResNet18_Weights.IMAGENET1K_V1")
    assert weights_sha256(ours) == weights_sha256(theirs)
    few = build("resnet18", input_shape=(3, 224, 224), classes=10)
    with pytest.raises(InputError, match=r"fc\.weight is \[1000, 512\], expected \[10, 512\]"):
        load_weights(few, "torchvision:ResNet18_Weights.IMAGENET1K_V1")
    (hub / file).write_bytes(b"cut off")
    with pytest.raises(InputError, match="damaged") as caught:
        read_weights("torchvision:ResNet18_Weights.IMAGENET1K_V1")
    assert str(hub) in str(caught.value)


class Scaled(nn.Module):
    """Numbers that are neither parameters nor buffers."""

    def __init__(self, kind: str, number: float) -> None:
        super().__init__()
        self.kind, self.linear = kind, nn.Linear(4, 2)
        self.plain = number if kind in ("plain", "branching") else 0.0
        self.tensor = torch.tensor(number)
        self.hidden = [torch.tensor(number)]

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "branching" and x.sum() > 0:
            return self.linear(x * self.plain)  # type: ignore[no-any-return]
        if self.kind == "tensor":
            return self.linear(x * self.tensor)  # type: ignore[no-any-return]
        if self.kind == "hidden":
            return self.linear(x * self.hidden[0])  # type: ignore[no-any-return]
        return self.linear(x * self.plain)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["plain", "tensor", "hidden", "branching"])
def test_an_architecture_is_its_numbers_too(kind: str) -> None:
    assert architecture_sha256(Scaled(kind, 1.0)) == architecture_sha256(Scaled(kind, 1.0))
    assert architecture_sha256(Scaled(kind, 1.0)) != architecture_sha256(Scaled(kind, 3.0))


class Counting(nn.Linear):
    """A layer with extra state, which says how often its weights were loaded."""

    state: Any = None

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def counting(state: Any) -> nn.Module:
    network = nn.Sequential(OrderedDict(fc1=nn.Linear(4, 3), fc2=Counting(3, 2)))
    network.fc2.state = state  # type: ignore[union-attr]
    return network


EXTRA: list[Any] = [None, 3, {"scale": 1, "seen": [0.5, True, "ü"]}, torch.arange(3), [], "text"]


@pytest.mark.parametrize("state", EXTRA)
@pytest.mark.parametrize("ending", ["safetensors", "pt", "wrapped.pt"])
def test_extra_state_is_carried_along(tmp_path: Path, state: Any, ending: str) -> None:
    saved, path = counting(state), tmp_path / f"extra.{ending}"
    if ending == "safetensors":
        save_weights(saved, path, {})
    else:
        tensors = saved.state_dict()
        torch.save({"net": tensors} if ending == "wrapped.pt" else tensors, path)
    loaded: Any = counting(torch.zeros(3, dtype=torch.int64) if torch.is_tensor(state) else "other")
    assert weights_sha256(loaded) != weights_sha256(saved)
    load_weights(loaded, path)
    assert weights_sha256(loaded) == weights_sha256(saved)
    assert type(loaded.fc2.state) is type(state)
    assert str(loaded.fc2.state) == str(state)


@pytest.mark.parametrize("state", [(1, 2), {1: 2}, {1, 2}, b"x", object(), 1j, [object()]])
def test_extra_state_that_cannot_be_recorded_is_refused(tmp_path: Path, state: Any) -> None:
    network = counting(state)
    told = rf"fc2\._extra_state of the network is extra state of type {type(state).__name__} that"
    for use in (weights_sha256, state_tensors, lambda n: save_weights(n, tmp_path / "x", {})):
        with pytest.raises(InputError, match=told):
            use(network)
    assert not list(tmp_path.iterdir())


def test_extra_state_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "extra.safetensors"
    save_weights(counting(torch.ones(2)), path, {})
    with pytest.raises(InputError, match=r"extra\.safetensors does not fit the network"):
        load_weights(counting(3), path)

    class Strict(Counting):
        def set_extra_state(self, state: Any) -> None:
            raise KeyError("scale")

    strict = nn.Sequential(OrderedDict(fc1=nn.Linear(4, 3), fc2=Strict(3, 2)))
    save_weights(counting(3), path, {})
    with pytest.raises(InputError, match="does not fit the network: 'scale'"):
        load_weights(strict, path)


def test_state_that_is_neither_tensor_nor_extra_is_refused() -> None:
    class Packed(nn.Linear):  # as a dynamically quantised layer
        def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
            destination[prefix + "dtype"] = torch.qint8

    with pytest.raises(InputError, match=r"0\.dtype of the network is of type dtype, and no tens"):
        weights_sha256(nn.Sequential(Packed(2, 2)))


@pytest.mark.parametrize("kind", ["sparse", "meta", "has no numbers yet"])
def test_a_network_whose_tensors_have_no_plain_numbers_is_refused(kind: str) -> None:
    network: nn.Module = nn.Sequential(nn.Linear(2, 2))
    if kind == "sparse":
        network.register_buffer("mask", torch.eye(2).to_sparse())
    elif kind == "meta":
        network = network.to("meta")
    else:
        network = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(InputError, match=kind) as caught:
        weights_sha256(network)
    assert "\n" not in str(caught.value)


def test_an_architecture_with_tensors_of_other_kinds_has_a_fingerprint() -> None:
    def holding(tensor: Tensor) -> nn.Module:
        network = Scaled("plain", 1.0)
        network.tensor = tensor
        return network

    one = torch.tensor([1 + 2j, 3j])
    made = [torch.eye(2).to_sparse(), torch.ones(2).to_sparse(), one, one.conj()]
    assert len({architecture_sha256(holding(tensor)) for tensor in made}) == len(made)
