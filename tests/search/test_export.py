from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import trueoracle
from trueoracle.errors import InputError, StoreError
from trueoracle.networks.registry import build
from trueoracle.networks.weights import read_metadata
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups
from trueoracle.search.export import Origin, check_export, export

IMAGES = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))
PRUNED = {"conv1": (0, 3, 5), "conv2": (1, 2)}


def pruned(dense: nn.Module) -> nn.Module:
    groups = find_groups(dense, IMAGES).groups
    kept = {name: np.setdiff1d(np.arange(10), gone) for name, gone in PRUNED.items()}
    return prune(dense, [groups[name] for name in PRUNED], kept).eval()


def origin(**changes: Any) -> Origin:
    fields: dict[str, Any] = {
        "name": "lenet5-mini",
        "arguments": {},
        "input_shape": (1, 32, 32),
        "classes": 10,
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
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not written by 'trueoracle search --export'"):
        trueoracle.load(tmp_path / "other.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"cannot read .*torn"):
        trueoracle.load(tmp_path / "torn.safetensors")
    gone = export(network, tmp_path / "gone.safetensors", origin(name="no_such_module:factory"))
    with pytest.raises(InputError, match="cannot import the network 'no_such_module:factory'"):
        trueoracle.load(gone)


def test_files_are_refused_before_long_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"\.safetensors, \.onnx, \.pt2, .*; got model\.bin"):
        check_export(Path("model.bin"))
    with pytest.raises(InputError, match="no folder"):
        check_export(tmp_path / "absent" / "model.pt2")
    real = builtins.__import__

    def without_onnx(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("onnx"):
            raise ImportError("no module", name=name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(InputError, match=r"ONNX needs onnx: pip install 'trueoracle\[export\]'"):
        check_export(tmp_path / "model.onnx")


def test_a_forward_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) if float(x.sum()) > 0 else -self.linear(x)  # type: ignore[no-any-return]

    with pytest.raises(InputError, match=r"cannot be exported to torch\.export: "):
        export(Branches(), tmp_path / "model.pt2", origin(input_shape=(4,)))
    assert list(tmp_path.iterdir()) == []
