from __future__ import annotations

import builtins
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import trueoracle
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.networks.weights import read_metadata
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups
from trueoracle.search.export import Origin, check_export, export

IMAGES = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))
PRUNED = {"conv1": (0, 3, 5), "conv2": (1, 2)}


INPUTS = {"input": ((1, 32, 32), "float32")}
FOUR = {"input": ((4,), "float32")}


def pruned(dense: nn.Module) -> nn.Module:
    groups = find_groups(dense, IMAGES).groups
    kept = {name: np.setdiff1d(np.arange(10), gone) for name, gone in PRUNED.items()}
    return prune(dense, [groups[name] for name in PRUNED], kept).eval()


def origin(**changes: Any) -> Origin:
    fields: dict[str, Any] = {
        "name": "lenet5-mini",
        "arguments": {},
        "inputs": INPUTS,
        "outputs": 10,
        "pruned": PRUNED,
    }
    return Origin(**fields | changes)


@pytest.fixture
def network(dense: nn.Module) -> nn.Module:
    return pruned(dense)


def test_safetensors_are_loaded_smaller_and_alike(network: nn.Module, tmp_path: Path) -> None:
    path = export(network, tmp_path / "model.safetensors", origin(), {"study": "mine"})
    before = torch.get_rng_state()
    loaded = trueoracle.load(str(path))
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), network(IMAGES))
    assert sum(p.numel() for p in loaded.parameters()) == sum(
        p.numel() for p in network.parameters()
    )
    known = read_metadata(path)
    assert known["study"] == "mine"
    assert known["trueoracle"] == trueoracle.__version__
    assert known["torch"] == torch.__version__


class Heads(nn.Module):
    """Keeps a number of heads and a size beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.size = 4, 12
        self.patches, self.qkv = nn.Conv2d(1, 8, 8, 8), nn.Linear(8, 36)
        self.back, self.out = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).split(self.size, 2)
        q, k, v = (one.unflatten(2, (self.heads, -1)).transpose(1, 2) for one in (q, k, v))
        read = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.out((tokens + self.back(read)).mean(1))  # type: ignore[no-any-return]


def test_numbers_that_change_with_a_cut_are_saved_and_set_again(tmp_path: Path) -> None:
    dense = Heads()
    groups = find_groups(dense, IMAGES).groups
    assert groups["qkv"].filters == 4
    made = prune(dense, [groups["qkv"]], {"qkv": [0, 2, 3]}).eval()
    about = origin(name=None, inputs=INPUTS, outputs=3, pruned={"qkv": (1,)})
    path = export(made, tmp_path / "model.safetensors", about, {})
    loaded = trueoracle.load(path, network=Heads())
    assert isinstance(loaded, Heads)
    assert (loaded.heads, loaded.size) == (3, 9)
    assert torch.equal(loaded(IMAGES), made(IMAGES))


def test_norms_come_with_their_statistics(tmp_path: Path) -> None:
    arguments = {"hidden": (8, 6), "batch_norm": True}
    dense = build("mlp", arguments, input_shape=(1, 32, 32), classes=10)
    dense.train()(IMAGES)
    groups = find_groups(dense, IMAGES).groups
    (name,) = list(groups)[:1]
    made = prune(dense, [groups[name]], {name: np.arange(5)}).eval()
    path = export(
        made,
        tmp_path / "model.safetensors",
        origin(name="mlp", arguments=arguments, pruned={name: (5, 6, 7)}),
    )
    assert torch.equal(trueoracle.load(path)(IMAGES), made(IMAGES))


def test_torch_export_takes_any_number_of_images(network: nn.Module, tmp_path: Path) -> None:
    path = export(network, tmp_path / "model.pt2", origin())
    again = torch.export.load(path).module()
    for count in (1, 5):
        torch.testing.assert_close(again(IMAGES[:count]), network(IMAGES[:count]))
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]


def test_onnx_takes_any_number_of_images(network: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export(network, tmp_path / "model.onnx", origin())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(["logits"], {"images": IMAGES[:count].numpy()})
        expected = network(IMAGES[:count]).detach().numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_network_stays_as_it_was(network: nn.Module, tmp_path: Path) -> None:
    network.train()
    export(network, tmp_path / "model.safetensors", origin())
    assert network.training


def test_a_network_given_in_python_is_loaded_around_it(
    dense: nn.Module, network: nn.Module, tmp_path: Path
) -> None:
    path = export(network, tmp_path / "model.safetensors", origin(name=None))
    with pytest.raises(InputError, match=r"given in Python: trueoracle.load\(path, network=…\)"):
        trueoracle.load(path)
    other = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert torch.equal(trueoracle.load(path, network=other)(IMAGES), network(IMAGES))
    assert all(torch.equal(before[name], value) for name, value in other.state_dict().items())
    narrow = build("lenet5-mini", {"width": 4}, input_shape=(1, 32, 32), classes=10)
    with pytest.raises(InputError, match="does not fit the network"):
        trueoracle.load(path, network=narrow)


def test_what_cannot_be_loaded_says_why(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        trueoracle.load(tmp_path / "absent.safetensors")
    for metadata in (None, {"format": "pt"}):
        save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors", metadata)
        with pytest.raises(InputError, match="not written by 'trueoracle search --export'"):
            trueoracle.load(tmp_path / "other.safetensors")
    for content in (b"torn", b"", b"\x08" + bytes(15)):
        (tmp_path / "torn.safetensors").write_bytes(content)
        with pytest.raises(InputError, match=r"torn.safetensors is no safetensors file"):
            trueoracle.load(tmp_path / "torn.safetensors")
    gone = export(network, tmp_path / "gone.safetensors", origin(name="no_such_module:factory"))
    with pytest.raises(InputError, match="cannot import the network 'no_such_module:factory'"):
        trueoracle.load(gone, trust=True)


WHOLE = {
    "format": 2,
    "name": "lenet5-mini",
    "arguments": {},
    "inputs": {"input": [[1, 32, 32], "float32"]},
    "outputs": 10,
    "pruned": {"conv1": [0]},
}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "its origin is no JSON"),
        ("null", "was not written by"),
        ('{"format": 3}', "has format 3"),
        ('{"format": 1}', "is damaged: origin, name"),
        ({"name": "lenet6"}, "unknown network 'lenet6'"),
        ({"name": "mlp", "arguments": {"hidden": "x"}}, "network 'mlp' cannot be built"),
        ({"arguments": 3}, "origin, arguments"),
        ({"inputs": 5}, "origin, inputs"),
        ({"inputs": {}}, "origin, inputs"),
        ({"inputs": {"input": [[1, 10**9, 10**9], "float32"]}}, "'lenet5-mini' cannot be built"),
        ({"inputs": {"input": [[3, 32, 32], "float32"]}}, "does not fit|cannot be built"),
        ({"outputs": "10"}, "origin, outputs"),
        ({"pruned": {"conv1": []}}, "origin, pruned.conv1"),
        ({"pruned": {"conv1": ["a"]}}, "origin, pruned.conv1.0"),
        ({"pruned": {"conv1": [-1]}}, "origin, pruned.conv1.0"),
        ({"pruned": {"conv1": [10]}}, "no such filters of conv1"),
        ({"pruned": {"conv9": [0]}}, "no such filters of conv9"),
        ({"pruned": {"conv1": list(range(10))}}, "prunes every filter of conv1"),
        ({"pruned": {"conv1": [1, 2]}}, "does not fit the network"),
    ],
)
def test_a_damaged_origin_is_said_in_one_line(
    network: nn.Module, tmp_path: Path, text: str | dict[str, Any], message: str
) -> None:
    origin = text if isinstance(text, str) else json.dumps(WHOLE | text)
    path = tmp_path / "model.safetensors"
    save_file(network.state_dict(), path, {"origin": origin})
    with pytest.raises(InputError, match=message) as caught:
        trueoracle.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_runs_no_code_of_its_choice(network: nn.Module, tmp_path: Path) -> None:
    written = tmp_path / "written"
    for name, arguments in (
        ("os:system", {"command": f"touch {written}"}),
        ("torchvision.models:resnet.os.system", {"command": f"touch {written}"}),
        ("torchvision.models:get_model.__globals__", {}),
    ):
        path = export(
            network, tmp_path / "model.safetensors", origin(name=name, arguments=arguments)
        )
        with pytest.raises(InputError, match=r"would run .*network=…\) .*trust=True"):
            trueoracle.load(path)
        assert not written.exists()
    other = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    assert torch.equal(trueoracle.load(path, other)(IMAGES), network(IMAGES))


def test_a_factory_of_ones_own_is_run_where_it_is_trusted(
    network: nn.Module, tmp_path: Path
) -> None:
    path = export(
        network,
        tmp_path / "model.safetensors",
        origin(name="trueoracle.networks.lenet:lenet5_mini"),
    )
    assert torch.equal(trueoracle.load(path, trust=True)(IMAGES), network(IMAGES))


def test_builders_that_torchvision_lists_are_known(tmp_path: Path) -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    made = models.mobilenet_v3_small(num_classes=3).eval()
    fields: dict[str, Any] = {
        "inputs": {"input": ((3, 32, 32), "float32")},
        "outputs": 3,
        "pruned": {},
    }
    path = export(
        made,
        tmp_path / "model.safetensors",
        origin(name="torchvision.models:mobilenet_v3_small", **fields),
    )
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(trueoracle.load(path)(images), made(images))
    path = export(
        made, tmp_path / "other.safetensors", origin(name="torchvision.models:get_weight", **fields)
    )
    with pytest.raises(InputError, match="would run"):
        trueoracle.load(path)


def test_files_are_refused_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"\.safetensors, \.onnx, \.pt2, .*; got model\.bin"):
        check_export(Path("model.bin"))
    with pytest.raises(InputError, match="no folder"):
        check_export(tmp_path / "absent" / "model.pt2")
    (tmp_path / "folder.pt2").mkdir()
    with pytest.raises(InputError, match=r"folder\.pt2 is a folder"):
        check_export(tmp_path / "folder.pt2")
    with pytest.raises(InputError, match=r"cannot write .*long\.pt2: "):
        check_export(tmp_path / f"{'long' * 100}.pt2")
    check_export(tmp_path / "model.pt2")
    assert [one.name for one in tmp_path.iterdir()] == ["folder.pt2"]
    real = builtins.__import__

    def without_onnx(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError("no module", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(InputError, match=r"ONNX needs onnx: pip install '\.\[export\]'"):
        check_export(tmp_path / "model.onnx")


def test_a_forward_that_cannot_be_exported_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if float(x.sum()) > 0 else -self.linear(x)  # type: ignore[no-any-return]

    for ending, what in ((".pt2", "torch.export"), (".onnx", "ONNX")):
        with pytest.raises(InputError) as error:
            export(
                Branches(),
                tmp_path / f"model{ending}",
                origin(inputs=FOUR),
            )
        message = str(error.value)
        assert message.startswith(f"the network cannot be exported to {what}: Could not guard on")
        assert message.endswith("; .safetensors can be written of any network")
        assert "\x1b" not in message
        said = capfd.readouterr()
        assert said.out + said.err == ""
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_the_file(network: nn.Module, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = export(network, tmp_path / "model.safetensors", origin())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_of_the_format_before_loads(network: nn.Module, tmp_path: Path) -> None:
    path = export(network, tmp_path / "model.safetensors", origin())
    with safe_open(path, framework="pt") as file:
        facts = dict(file.metadata())
    fields = json.loads(facts["origin"])
    fields |= {"format": 1, "input_shape": fields.pop("inputs")["input"][0]}
    fields["classes"] = fields.pop("outputs")
    facts["origin"] = json.dumps(fields)
    save_file(load_file(path), path, facts)
    assert torch.equal(trueoracle.load(path)(IMAGES), network(IMAGES))


class Both(nn.Module):
    """Two inputs by name, and an output with a name."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(4, 6), nn.Linear(12, 2)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        both = [self.hidden(one).relu() for one in (left, right)]
        return {"logits": self.out(torch.cat(both, 1))}


def test_a_network_of_two_named_inputs_is_written_and_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, batch = Both().eval(), {"left": torch.randn(5, 4), "right": torch.randn(5, 4)}
    groups = find_groups(dense, batch).groups
    made = prune(dense, [groups["hidden"]], {"hidden": [0, 2, 5]}).eval()
    inputs = dict.fromkeys(batch, ((4,), "float32"))
    about = origin(name=None, inputs=inputs, outputs=None, pruned={"hidden": (1, 3, 4)})
    expected = made(**batch)["logits"]
    path = export(made, tmp_path / "model.safetensors", about)
    assert torch.equal(trueoracle.load(path, network=Both())(**batch)["logits"], expected)
    program = torch.export.load(export(made, tmp_path / "model.pt2", about))
    torch.testing.assert_close(program.module()(**batch)["logits"], expected)
