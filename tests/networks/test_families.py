"""What holds for every family of networks."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from trueoracle.data.splits import Split, Splits
from trueoracle.data.tokens import IMAGE
from trueoracle.engines.wide import refusal
from trueoracle.errors import InputError
from trueoracle.networks.registry import NETWORKS, build
from trueoracle.networks.tracing import trace
from trueoracle.tasks.classification import Classification
from trueoracle.training.recipe import Recipe

CASES: list[tuple[str, dict[str, Any]]] = [
    ("lenet5-mini", {}),
    ("lenet5-mini", {"activation": "identity", "depth": 6}),
    ("lenet5", {}),
    ("mlp", {"hidden": [8, 6], "batch_norm": True, "activation": "identity"}),
    ("vgg11", {"width": 0.125}),
    ("vgg13", {"width": 0.0625}),
    ("vgg16", {"width": 0.0625}),
    ("vgg19", {"width": 0.0625}),
    ("resnet20", {"width": 5}),
    ("resnet20", {"width": 4, "shortcut": "B"}),
    ("resnet56", {"width": 2}),
    ("resnet110", {"width": 2}),
    ("resnet18", {"width": 8}),
    ("resnet34", {"width": 4}),
    ("resnet50", {"width": 4}),
    ("vit-b-16", {"patch": 8, "layers": 2, "heads": 2, "width": 12, "mlp": 20}),
]
LANGUAGE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"layers": 2}),
    ("llama", {"layers": 1, "heads": 6, "kv_heads": 3, "hidden": 24, "mlp": 20, "tie": False}),
    ("llava", {"patch": 16}),
]
CLASSES = 7
# The others differ from these in the number of layers only.
LIKE_THE_OTHERS = ("vgg13", "vgg16", "vgg19", "resnet56", "resnet110", "resnet34")
every_network = pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
every_family = pytest.mark.parametrize(
    ("name", "arguments"), [case for case in CASES if case[0] not in LIKE_THE_OTHERS], ids=str
)


def made(name: str, arguments: dict[str, Any], channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = build(name, arguments, input_shape=(channels, 32, 32), classes=CLASSES)
    with torch.no_grad():  # norms that have seen something, and no layer of zeros
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network


def images(channels: int = 3) -> Tensor:
    return torch.randn(4, channels, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_shipped_network_is_tried_here() -> None:
    shipped = {n for n, f in NETWORKS.items() if f.__module__.startswith("trueoracle.")}
    assert {name for name, _ in CASES + LANGUAGE} == shipped


@every_network
@pytest.mark.parametrize("channels", [1, 3])
def test_it_trains_and_answers_each_image_for_itself(
    name: str, arguments: dict[str, Any], channels: int
) -> None:
    network = made(name, arguments, channels)
    x = images(channels)
    logits = network.train()(x)
    assert logits.shape == (4, CLASSES)
    functional.cross_entropy(logits, torch.tensor([0, 1, 2, 6])).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
    network.eval()
    with torch.no_grad():
        together, alone = network(x), torch.cat([network(one) for one in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)
    assert together.std(0).min() > 1e-4


@every_family
def test_its_trace_computes_the_same_in_both_modes(name: str, arguments: dict[str, Any]) -> None:
    for training in (True, False):
        network, twin = made(name, arguments).train(training), made(name, arguments)
        traced = trace(twin.train(training))
        with torch.no_grad():
            assert torch.equal(traced(images()), network(images()))


@every_family
def test_a_population_of_it_trains_as_one(name: str, arguments: dict[str, Any]) -> None:
    few = Split.of(images(), torch.arange(len(images())) % CLASSES)
    data = Splits(few, None, few, Classification(CLASSES))
    assert refusal(made(name, arguments), data, Recipe()) is None


@every_family
def test_a_seed_gives_its_first_weights(name: str, arguments: dict[str, Any]) -> None:
    def first(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return build(name, arguments, input_shape=(3, 32, 32), classes=3).state_dict()

    one, same, other = first(0), first(0), first(1)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


# Of tokens, and images beside them


every_language = pytest.mark.parametrize(("name", "arguments"), LANGUAGE, ids=str)


def spoken(name: str, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    pytest.importorskip("transformers")
    torch.manual_seed(seed)
    return build(name, arguments, input_shape=(3, 32, 32), classes=CLASSES)


def sentences(name: str) -> dict[str, Tensor]:
    """Four of six tokens, of which the first have no more than four; an image takes four."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, (4, 6), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    batch["attention_mask"][:2, 4:] = 0
    if name == "llava":
        ids[:, :4] = 4
        batch["pixel_values"] = torch.rand(4, 3, 32, 32, generator=generator)
    return batch


@every_language
def test_it_trains_and_answers_each_text_for_itself(name: str, arguments: dict[str, Any]) -> None:
    network, batch = spoken(name, arguments), sentences(name)
    logits = network.train()(**batch).logits
    assert logits.shape == (4, 6, CLASSES)
    functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"].flatten()).backward()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.requires_grad is (parameter.grad is not None), parameter_name
    network.eval()
    with torch.no_grad():
        together = network(**batch).logits
        alone = torch.cat(
            [network(**{k: v[i : i + 1] for k, v in batch.items()}).logits for i in range(4)]
        )
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)
    assert together[:, -1].std(0).min() > 1e-4


@every_language
def test_a_seed_gives_its_first_weights_too(name: str, arguments: dict[str, Any]) -> None:
    one, same, other = (spoken(name, arguments, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("llama", {"kv_heads": 3}, "heads = 4 is no multiple of kv_heads = 3"),
        ("llama", {"hidden": 20}, "hidden = 20 is no multiple of 2 · heads = 8"),
        ("llava", {"patch": 5}, r"square images .* a multiple of 5 pixels, got \[3, 32, 32\]"),
        ("llava", {"image_token": 7}, "image_token = 7 is none of the 7 tokens"),
        ("llama", {"depth": 3}, "unknown argument of network 'llama'"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(
    name: str, arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        spoken(name, arguments)


def test_an_images_token_is_that_of_vocabularies_that_are_trained_here() -> None:
    assert inspect.signature(NETWORKS["llava"]).parameters["image_token"].default == IMAGE


def test_the_shipped_sizes() -> None:
    pytest.importorskip("transformers")
    text = build("llama", input_shape=(), classes=1024)
    assert sum(p.numel() for p in text.parameters()) == 250_432
    pictured = build("llava", input_shape=(3, 64, 64), classes=100)
    assert sum(p.numel() for p in pictured.parameters()) == 224_512
    with pytest.raises(InputError, match="network 'llava' is of images, and the examples have non"):
        build("llava", input_shape=(), classes=100)
