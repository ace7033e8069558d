"""Networks by the names of timm and torchvision, where they are installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.search.export import is_known
from trueoracle.spec.file import spec_from

SMALL = {"timm": ("timm:vit_tiny_patch16_224", {"depth": 1}), "torchvision": ("resnet18", {})}


def made(library: str, **arguments: Any) -> Any:
    pytest.importorskip(library, exc_type=ImportError)
    name, own = SMALL[library]
    return build(
        name if ":" in name else f"{library}:{name}",
        {"pretrained": False, **own, **arguments},
        input_shape=(3, 224, 224),
        classes=7,
    )


@pytest.mark.parametrize("library", SMALL)
def test_without_its_weights_it_is_made_for_the_data(library: str) -> None:
    network = made(library)
    assert network(torch.rand(2, 3, 224, 224)).shape == (2, 7)
    assert made(library, num_classes=5).eval()(torch.rand(1, 3, 224, 224)).shape == (1, 5)


@pytest.mark.parametrize("library", SMALL)
def test_names_and_arguments_that_are_unknown_are_one_line(library: str) -> None:
    pytest.importorskip(library, exc_type=ImportError)
    with pytest.raises(InputError, match=rf"unknown network of {library} .*'resnet18'") as caught:
        build(f"{library}:resnet81", {}, input_shape=(), classes=0)
    assert len(str(caught.value)) < 400
    with pytest.raises(InputError, match=r"cannot be built: .*unexpected keyword"):
        made(library, colour="red")


def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models", exc_type=ImportError)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(InputError, match=r"no connection; where .* a file of them as network.wei"):
        build("torchvision:resnet18", {}, input_shape=(), classes=0)


def test_what_is_built_for_the_data() -> None:
    def fixed(name: str, **fields: Any) -> bool:
        network = {"name": name, **fields}
        return spec_from(
            {"name": "s", "network": network, "pruning": {"layers": {"*": 0.5}}}
        ).network.is_fixed

    assert fixed("timm:resnet18")
    assert fixed("hf:a/b", arguments={"pretrained": False})
    assert not fixed("timm:resnet18", arguments={"pretrained": False})
    assert not fixed("torchvision:resnet18", weights="mine.safetensors")
    assert not fixed("resnet18")


def test_a_file_may_name_them() -> None:
    for name in ("hf:a/b", "timm:resnet18", "torchvision:resnet18"):
        assert is_known(name)


@pytest.mark.parametrize(
    "argument", ["checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"]
)
def test_a_file_that_timm_would_unpickle_is_refused(argument: str) -> None:
    """Whether timm is installed or not."""
    for arguments in ({argument: "weights.pth"}, {argument: {"file": "weights.pth"}}):
        with pytest.raises(InputError, match=f"takes no {argument}, whose file could run code"):
            build("timm:resnet18", arguments, input_shape=(3, 32, 32), classes=10)
