"""Checkpoints as training scripts write them: wrapped, with whole networks in them, or harmful."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trueoracle.errors import InputError
from trueoracle.networks.checkpoints import read_checkpoint
from trueoracle.networks.registry import build
from trueoracle.networks.weights import load_weights, read_weights, weights_sha256


def lenet() -> nn.Module:
    return build("lenet5-mini", {}, input_shape=(1, 32, 32), classes=10)


def refused(network: nn.Module, path: Path) -> str:
    """The one line by which a file is refused, without its path."""
    with pytest.raises(InputError) as caught:
        load_weights(network, path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message.replace(str(path), "FILE")


# What a checkpoint is wrapped in


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "net": lambda t: {"net": t, "acc": 93.1, "epoch": 199},
    "network": lambda t: {"network": t},
    "any name": lambda t: {"my weights": t, "epoch": 3},
    "the optimiser beside it": lambda t: {"weights": t, "optimizer": adam_state()},
    "deeper": lambda t: {"epoch": 3, "result": {"best": {"weights": t}}, "list": [1]},
    "an average beside the model": lambda t: {"model": t, "ema": {n: v + 1 for n, v in t.items()}},
    "the same twice": lambda t: {"weights": t, "best": {"m." + n: v for n, v in t.items()}},
    "a common prefix": lambda t: {"state_dict": {"model." + n: v for n, v in t.items()}},
    "two common prefixes": lambda t: {"model.module.a." + n: v for n, v in t.items()},
    "parallel in the middle": lambda t: {n.replace(".", ".module.", 1): v for n, v in t.items()},
    "a framework's dictionary": lambda t: {"state_dict": t, "hyper_parameters": Attributes(lr=0.1)},
    "a default dictionary": lambda t: {"state_dict": t, "history": defaultdict(list, loss=[1.0])},
    "numpy's": lambda t: {"state_dict": t, "acc": np.float64(0.5), "curve": np.arange(3.0)},
    "a path": lambda t: {"state_dict": t, "data": Path("data")},
    "sets": lambda t: {"state_dict": t, "seen": {1, 2}, "fixed": frozenset({3})},
}


class Attributes(dict[str, Any]):
    """As of frameworks: a dictionary by another name."""


def adam_state() -> dict[str, Any]:
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_a_state_dict_is_found_in_what_it_is_wrapped_in(
    tmp_path: Path, wrapping: str, protocol: int
) -> None:
    saved, loaded, path = lenet(), lenet(), tmp_path / "checkpoint.pth"
    torch.save(WRAPPINGS[wrapping](saved.state_dict()), path, pickle_protocol=protocol)
    assert load_weights(loaded, path) == ""
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_of_several_networks_none_is_guessed(tmp_path: Path) -> None:
    path, one, other = tmp_path / "gan.pth", lenet().state_dict(), lenet().state_dict()
    torch.save({"generator": one, "discriminator": other, "epoch": 1}, path)
    message = refused(lenet(), path)
    assert (
        "holds 2 different mappings of names to tensors ('generator', 'discriminator')" in message
    )
    torch.save({"a": {"state_dict": one}, "b": {"state_dict": other}}, path)
    assert "('a.state_dict', 'b.state_dict')" in refused(lenet(), path)
    torch.save({"state_dict": one, "model": other}, path)
    assert "('state_dict', 'model')" in refused(lenet(), path)


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    path = tmp_path / "cyclic.pth"
    for key in ("state_dict", "model", "other"):
        content: dict[str, Any] = {"epoch": 1}
        content[key] = content
        torch.save(content, path)
        assert "holds no state_dict" in refused(lenet(), path)
    content = {"model": {}}
    content["model"]["model"] = content
    torch.save(content, path)
    assert "holds no state_dict" in refused(lenet(), path)
    content["model"]["weights"] = (saved := lenet()).state_dict()
    torch.save(content, path)
    load_weights(loaded := lenet(), path)
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_what_is_no_tensor_is_named(tmp_path: Path) -> None:
    path = tmp_path / "odd.pth"
    torch.save({**lenet().state_dict(), "epoch": 3}, path)
    assert refused(lenet(), path).endswith("'epoch' in it is no tensor, but of type int")
    # As a dynamically quantised layer has it.
    torch.save({"0.scale": torch.ones(1), "0._packed_params.dtype": torch.qint8}, path)
    assert "'0._packed_params.dtype' in it is no tensor, but of type dtype" in refused(
        lenet(), path
    )
    others: list[Any] = [[], {}, {"a": {}}, 3, None, "text", torch.ones(2), [torch.ones(2)]]
    for content in others:
        torch.save(content, path)
        assert "holds no state_dict" in refused(lenet(), path)


def test_nesting_and_names_have_bounds(tmp_path: Path) -> None:
    path = tmp_path / "deep.pth"
    torch.save({"a": torch.ones(1)}, path)
    deep = 20_000
    rewritten(
        path, data_pkl=b"\x80\x02" + b"}X\x01\x00\x00\x00a" * deep + b"}" + b"s" * deep + b"."
    )
    assert "holds no state_dict" in refused(lenet(), path)
    torch.save({"evil\x1b[31m\nname": torch.ones(1)}, path)
    message = refused(lenet(), path)
    assert "holds a tensor of the name 'evil\\x1b[31m\\nname'" in message


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    path, tensors = tmp_path / "twice.pth", lenet().state_dict()
    torch.save(tensors | {"module.fc2.bias": tensors["fc2.bias"] + 1}, path)
    assert "holds fc2.bias twice: as fc2.bias and as module.fc2.bias" in refused(lenet(), path)


# Numbers of other kinds


def saved_as(tmp_path: Path, convert: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Path]:
    network, path = lenet(), tmp_path / "converted.pth"
    torch.save({n: convert(v) for n, v in network.state_dict().items()}, path)
    return network, path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_shorter_floating_point_numbers_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    network, path = saved_as(tmp_path, lambda value: value.to(dtype))
    loaded = lenet()
    assert load_weights(loaded, path) == ""
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.to(dtype).float())


def test_what_is_rounded_is_said(tmp_path: Path) -> None:
    network, path = saved_as(tmp_path, lambda value: value.double() / 3)
    loaded, weight = lenet(), network.get_parameter("conv1.weight")
    assert load_weights(loaded, path) == (
        f"{path} holds conv1.weight and 9 more in a precision that the network does not have: "
        "rounded to float32"
    )
    assert torch.equal(loaded.get_parameter("conv1.weight"), (weight.double() / 3).float())
    _, path = saved_as(tmp_path, lambda value: value.double())
    assert load_weights(loaded, path) == ""  # every number is there
    _, path = saved_as(tmp_path, lambda value: value.double() * 1e200)
    message = refused(lenet(), path)
    assert (
        "conv1.weight in FILE is float64 and holds numbers beyond the network's float32" in message
    )


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("convert", "told"),
    [
        (lambda value: (value * 20).to(torch.int8), "is int8, and the network's float32"),
        (lambda value: value.to(torch.complex64), "is complex64, and the network's float32"),
        (lambda value: value > 0, "is bool, and the network's float32"),
        (
            lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
            "is a quantised tensor (qint8), expected float32",
        ),
        (lambda value: value.to("meta"), "is a meta tensor (float32)"),
    ],
)
def test_numbers_of_another_kind_are_refused(
    tmp_path: Path, convert: Callable[[Tensor], Tensor], told: str
) -> None:
    network, path = saved_as(tmp_path, convert)
    before = weights_sha256(network)
    assert f"conv1.weight in FILE {told}" in refused(network, path)
    assert weights_sha256(network) == before


def test_whole_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def counter(dtype: torch.dtype, value: int) -> nn.Module:
        network = nn.Linear(2, 2)
        network.register_buffer("steps", torch.tensor([value], dtype=dtype))
        return network

    path = tmp_path / "counter.pth"
    torch.save(counter(torch.int64, 300).state_dict(), path)
    loaded = counter(torch.int16, 0)
    assert load_weights(loaded, path) == ""
    assert loaded.get_buffer("steps").tolist() == [300]
    message = refused(counter(torch.uint8, 0), path)
    assert "steps in FILE is int64 and holds numbers beyond the network's uint8" in message


def test_sparse_tensors_are_made_dense(tmp_path: Path) -> None:
    def sparse(value: Tensor) -> Tensor:
        return (value * (value > 0)).to_sparse() if value.ndim > 1 else value

    network, path = saved_as(tmp_path, sparse)
    loaded = lenet()
    assert load_weights(loaded, path) == ""
    dense = network.get_parameter("conv1.weight").detach()
    assert torch.equal(loaded.get_parameter("conv1.weight"), dense * (dense > 0))


def test_tied_tensors_that_differ_in_the_file_are_refused(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    network[1].weight = network[0].weight
    tensors = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(tensors, tmp_path / "tied.pth")
    load_weights(network, tmp_path / "tied.pth")
    tensors["1.weight"] += 1
    torch.save(tensors, tmp_path / "tied.pth")
    assert "0.weight did not become what the file says" in refused(network, tmp_path / "tied.pth")


# Whole networks, saved as objects


@pytest.fixture
def elsewhere() -> Iterator[ModuleType]:
    """A module of code that is there when a file is written, and gone when it is read."""
    module = ModuleType("somebodys_code")
    sys.modules[module.__name__] = module
    yield module
    sys.modules.pop(module.__name__, None)


def of(module: ModuleType, made: type) -> Any:
    """A class as if it stood in that module."""
    made.__module__, made.__qualname__ = module.__name__, made.__name__
    setattr(module, made.__name__, made)
    return made


def write(content: Any, path: Path, module: ModuleType, protocol: int = 2) -> None:
    sys.modules[module.__name__] = module
    torch.save(content, path, pickle_protocol=protocol)
    del sys.modules[module.__name__]


class Network(nn.Module):
    """Layers in forward order, as the paper's code has them, and what else it keeps."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.named_children():
            self.add_module(name, layer)
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.settings = argparse.Namespace(lr=0.1)


def paper_checkpoint(network: nn.Module) -> dict[str, Any]:
    """What the paper's code saves: the network beside its state_dict, optimiser and metrics."""
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return {
        "epoch": 30,
        "arch": "lenet5_mini",
        "model": network,
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ExpID": "SERVER-1",
        "prune_state": "finetune",
        "lr": 0.001,
        "metrics": OrderedDict(acc1=np.arange(3.0), lr=[np.float64(0.1)]),
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("shape", ["checkpoint", "model", "network", "parallel"])
def test_whole_networks_are_read_without_their_code(
    tmp_path: Path, elsewhere: ModuleType, shape: str, protocol: int
) -> None:
    saved, loaded, path = lenet(), lenet(), tmp_path / "ckpt_best.pth"
    theirs = of(elsewhere, type("LeNet5_Mini", (Network,), {}))(saved)
    content = {
        "checkpoint": paper_checkpoint(theirs),
        "model": {"model": theirs, "epoch": 3},
        "network": theirs,
        "parallel": {"model": nn.DataParallel(theirs), "state_dict": theirs.state_dict()},
    }[shape]
    write(content, path, elsewhere, protocol)
    assert load_weights(loaded, path) == ""
    assert weights_sha256(loaded) == weights_sha256(saved)


def paper_vgg(ours: nn.Module) -> nn.Module:
    """Our VGG's layers under the names of the paper's code."""
    layers = list(ours.children())
    features = nn.Sequential(*layers[: len(layers) - 3])
    return nn.Sequential(OrderedDict(features=features, classifier=layers[-1]))


def paper_resnet(ours: nn.Module) -> nn.Module:
    """Our ResNet's layers under the names of the paper's code."""
    return nn.Sequential(
        OrderedDict(
            ("linear" if name == "fc" else name, layer) for name, layer in ours.named_children()
        )
    )


RENAMED: dict[str, tuple[dict[str, Any], Callable[[nn.Module], nn.Module]]] = {
    "lenet5-mini": ({"width": 20, "depth": 7}, lambda ours: ours),
    "vgg19": ({"width": 0.05}, paper_vgg),
    "resnet56": ({"width": 2}, paper_resnet),
    "resnet18": ({"width": 2}, lambda ours: ours),
}


@pytest.mark.parametrize("as_object", [False, True])
@pytest.mark.parametrize("name", RENAMED)
def test_the_papers_names_of_layers_are_known(
    tmp_path: Path, elsewhere: ModuleType, name: str, as_object: bool
) -> None:
    arguments, renamed = RENAMED[name]
    image = (1, 32, 32) if name == "lenet5-mini" else (3, 32, 32)
    torch.manual_seed(1)
    saved, loaded = (build(name, arguments, input_shape=image, classes=7) for _ in range(2))
    theirs = of(elsewhere, type("Theirs", (Network,), {}))(renamed(saved))
    assert ("fc.weight" in theirs.state_dict()) == (name == "resnet18")
    parallel = {"module." + key: value for key, value in theirs.state_dict().items()}
    content = {"model": theirs, "epoch": 3} if as_object else {"state_dict": parallel}
    write(content, tmp_path / "ckpt.pth", elsewhere)
    load_weights(loaded, tmp_path / "ckpt.pth")
    assert weights_sha256(loaded) == weights_sha256(saved)


def test_names_of_another_network_stay_as_the_file_has_them(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.ones(1), "classifier.0.weight": torch.ones(1)},
               tmp_path / "other.pth")  # fmt: skip
    vgg = build("vgg11", {"width": 0.05}, input_shape=(3, 32, 32), classes=7)
    message = refused(vgg, tmp_path / "other.pth")
    assert "conv1.weight is [1], expected [3, 3, 3, 3]" in message
    assert read_weights(tmp_path / "other.pth").keys() == {
        "features.0.weight",
        "classifier.0.weight",
    }


# Harm


class Harmful:
    def __init__(self, what: Any, *arguments: Any) -> None:
        self.made = (what, arguments)

    def __reduce__(self) -> Any:
        return self.made


HARM: dict[str, Callable[[str], Any]] = {
    "a command": lambda target: Harmful(os.system, f"touch {target}"),
    "code": lambda target: Harmful(eval, f"open({target!r}, 'w')"),
    "an opened file": lambda target: Harmful(open, target, "w"),
    "a path": lambda target: Harmful(Path.touch, Path(target)),
    "a nested read": lambda target: Harmful(
        pickle.loads, pickle.dumps(Harmful(os.system, f"touch {target}"))
    ),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["alone", "beside", "in the network", "as a tensor"])
@pytest.mark.parametrize("harm", HARM)
def test_no_code_runs(
    tmp_path: Path, elsewhere: ModuleType, harm: str, place: str, protocol: int
) -> None:
    target, path, saved = tmp_path / "harmed", tmp_path / "bad.pth", lenet()
    harmful = HARM[harm](str(target))
    theirs = of(elsewhere, type("Theirs", (Network,), {}))(saved)
    theirs.settings = harmful if place == "in the network" else None
    content = {
        "alone": harmful,
        "beside": {"state_dict": saved.state_dict(), "other": harmful},
        "in the network": theirs,
        "as a tensor": {"state_dict": {**saved.state_dict(), "conv1.weight": harmful}},
    }[place]
    write(content, path, elsewhere, protocol)
    if place in ("beside", "in the network"):
        load_weights(loaded := lenet(), path)
        assert weights_sha256(loaded) == weights_sha256(saved)
    else:
        assert "holds no state_dict" in refused(lenet(), path)
    assert not target.exists()


def rewritten(path: Path, **entries: bytes) -> None:
    """The archive with other content under some names, all of it unpacked."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(content)).partition("/")[0]
    for name, data in entries.items():
        content[f"{root}/{name.replace('_', '/').replace('data/pkl', 'data.pkl')}"] = data
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def pickled_tensor(key: object, size: Any, stride: Any, offset: Any = 0) -> bytes:
    """A checkpoint's pickle with one network of one tensor, of whatever numbers."""
    storage = ("storage", torch.FloatStorage, key, "cpu", 4)

    class Tensorish:
        def __reduce__(self) -> Any:
            hooks: dict[str, Any] = OrderedDict()
            arguments = (Kept(storage), offset, size, stride, False, hooks)
            return torch._utils._rebuild_tensor_v2, arguments

    class Kept:
        def __init__(self, identity: Any) -> None:
            self.identity = identity

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.identity if isinstance(value, Kept) else None

    file = io.BytesIO()
    # A type that PyTorch's own reader refuses makes ours read it.
    Pickler(file, 2).dump({"weights": {"a": Tensorish()}, "odd": argparse.ArgumentError})
    return file.getvalue()


@pytest.mark.parametrize(
    ("key", "size", "stride", "offset"),
    [
        ("0", (10**9,), (1,), 0),
        ("0", (2,), (10**9,), 0),
        ("0", (2,), (1,), 10**9),
        ("0", (-1,), (1,), 0),
        ("0", (2,), (-1,), 0),
        ("0", (10**30,), (1,), 0),
        ("0", "many", (1,), 0),
        ("0", (2, 2), (1,), 0),
        ("no such", (2,), (1,), 0),
        ("../../../etc/passwd", (2,), (1,), 0),
        (7, (2,), (1,), None),
    ],
)
def test_tensors_stay_within_what_the_file_stores(
    tmp_path: Path, key: object, size: Any, stride: Any, offset: Any
) -> None:
    path = tmp_path / "bad.pth"
    torch.save({"a": torch.ones(4)}, path)
    rewritten(path, data_pkl=pickled_tensor("0", (2, 2), (2, 1)))
    assert torch.equal(read_weights(path)["a"], torch.ones(2, 2))
    rewritten(path, data_pkl=pickled_tensor(key, size, stride, offset))
    assert "is damaged: a tensor in it cannot be made" in refused(lenet(), path)


def test_archives_that_are_packed_or_of_other_machines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "packed.pth"
    torch.save({"a": torch.ones(4)}, path)
    rewritten(path, data_pkl=pickled_tensor("0", (2, 2), (2, 1)), byteorder=b"big")
    if sys.byteorder == "little":
        assert "its bytes are in another order than this machine's" in refused(lenet(), path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", pickled_tensor("0", (2, 2), (2, 1)))
        archive.writestr("x/data/0", torch.ones(4).numpy().tobytes())
    assert "is no safetensors file or PyTorch checkpoint" in refused(lenet(), path)


@pytest.mark.slow
def test_networks_that_hold_themselves_or_too_much_end(
    tmp_path: Path, elsewhere: ModuleType
) -> None:
    made, path = of(elsewhere, type("Theirs", (Network,), {})), tmp_path / "endless.pth"
    endless = made(nn.Sequential(nn.Linear(2, 2)))
    endless._modules["again"] = endless
    write({"model": endless}, path, elsewhere)
    assert "is damaged: its layers are nested without an end" in refused(lenet(), path)
    twice = made(nn.Sequential())
    for _ in range(40):  # 2^40 layers
        twice, below = made(nn.Sequential()), twice
        twice._modules.update(a=below, b=below)
    write({"model": twice}, path, elsewhere)
    assert "is damaged: it has more layers than can be" in refused(lenet(), path)


def test_a_cut_off_archive_is_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    torch.save({"state_dict": {"a": torch.ones(4)}, "odd": argparse.ArgumentError}, path)
    whole = path.read_bytes()
    assert read_checkpoint(path).keys() == {"a"}
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        assert refused(lenet(), path)


def test_the_harm_is_there() -> None:
    """That the files above would do something to a reader that believes them."""
    for harm in HARM.values():
        names = {
            str(argument)
            for _, argument, _ in pickletools.genops(pickle.dumps(harm("x"), 2))
            if argument
        }
        assert any(name.count(" ") == 1 for name in names)
