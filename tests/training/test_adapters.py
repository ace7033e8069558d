"""Adapters, against the same arithmetic written out."""

from __future__ import annotations

import builtins
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from tests.training.tiny import answers, reader
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.pruning.held import unmasked
from trueoracle.pruning.unstructured import WeightCandidates, list_weight_candidates
from trueoracle.training.adapters import Adapters, layers_to_adapt
from trueoracle.training.loop import Training, train
from trueoracle.training.recipe import Lora, Retraining

pytest.importorskip("peft")

LORA = Lora(rank=2, alpha=3.0)
RECIPE = Retraining(epochs=2, batch_size=8, learning_rate=0.3, weight_decay=0.0, lora=LORA)


def still(network: nn.Module) -> nn.Module:
    """Without dropout."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def candidates(network: nn.Module, sparsity: float | str = 0.5) -> WeightCandidates:
    return list_weight_candidates(network, {"blocks.*": sparsity}, count=2)


def drawn(network: nn.Module, lora: Lora, seed: int) -> dict[str, Tensor]:
    """The A of each layer, as they are drawn."""
    other = copy.deepcopy(network)
    Adapters(other, lora, seed)
    return {
        name: other.get_parameter(f"{name}.lora_A.default.weight").detach().clone()
        for name in layers_to_adapt(network, lora)
    }


def written_out(network: nn.Module, data: Splits, recipe: Retraining, seed: int) -> nn.Module:
    """The training by hand: W + (alpha / rank) M∘(BA) put in the place of each weight, by SGD."""
    from trueoracle.training.loop import batches, stream_seed

    lora = recipe.lora
    assert lora is not None
    first = drawn(network, lora, stream_seed(seed, 0, "adapters", ""))
    plain = unmasked(network)
    masks = {
        name: (plain.get_parameter(f"{name}.weight") != 0).double() if _masked(network, name) else 1
        for name in first
    }
    held = {n: p.detach().clone() for n, p in plain.named_parameters()}
    a = {name: value.clone().requires_grad_() for name, value in first.items()}
    b = {
        name: torch.zeros(len(held[f"{name}.weight"]), lora.rank).double().requires_grad_()
        for name in first
    }

    def weights() -> dict[str, Tensor]:
        changed = {
            f"{name}.weight": held[f"{name}.weight"]
            + lora.alpha / lora.rank * (b[name] @ a[name]) * masks[name]
            for name in first
        }
        return held | changed

    trained = [*a.values(), *b.values()]
    speed = [torch.zeros_like(one) for one in trained]
    for epoch in range(recipe.epochs):
        for batch in batches(data, recipe, seed, epoch):
            logits = torch.func.functional_call(plain, weights(), (batch["input_ids"],))
            loss = data.task.loss(logits, batch)
            for one, gradient, v in zip(
                trained, torch.autograd.grad(loss, trained), speed, strict=True
            ):
                v.mul_(recipe.momentum).add_(gradient)
                with torch.no_grad():
                    one.sub_(recipe.learning_rate * v)
    plain.load_state_dict(weights())
    return plain


def _masked(network: nn.Module, name: str) -> bool:
    return parametrize.is_parametrized(network.get_submodule(name))


@pytest.mark.parametrize("sparse", [False, True])
def test_training_by_adapters_is_that_written_out(sparse: bool) -> None:
    data, network = answers(), still(reader(double=True))
    if sparse:
        network = candidates(network).prune(network, 0)
    expected = written_out(network, data, RECIPE, seed=3)
    before = unmasked(network).state_dict()
    records = train(network, data, RECIPE, seed=3)
    found = unmasked(network).state_dict()
    assert set(found) == set(before)
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    moved = {name for name, value in found.items() if not torch.equal(value, before[name])}
    assert moved == {f"{name}.weight" for name in layers_to_adapt(reader(), LORA)}
    assert records[-1].train_loss < records[0].train_loss
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [LORA, None])
def test_zeros_stay_zeros_after_every_epoch_and_after_merging(
    lora: Lora | None, precision: str, sparsity: float | str
) -> None:
    data, dense = answers(), reader()
    some = candidates(dense, sparsity)
    network = some.prune(dense, 1)
    kept = some.kept(1)
    recipe = RECIPE.model_copy(
        update={"epochs": 3, "weight_decay": 0.1, "lora": lora, "precision": precision}
    )
    training = Training(network, data, recipe, (0, ""))

    def zeros() -> dict[str, Tensor]:
        with training.measured() as measured:
            plain = unmasked(copy.deepcopy(measured))
        named = {n.replace(".base_layer", ""): v for n, v in plain.state_dict().items()}
        return {name: named[f"{name}.weight"] == 0 for name in kept}

    first = zeros()
    assert len(first) == 4
    for epoch in range(3):
        training.train_epoch(epoch)
        now = zeros()
        assert all(torch.equal(now[name], first[name]) for name in first)
    training.finish()
    merged = unmasked(network)
    for name, mask in kept.items():
        weight = merged.get_parameter(f"{name}.weight")
        assert weight.dtype == torch.float32
        assert torch.equal(weight != 0, mask)
        if sparsity == "2:4":
            assert ((weight.unflatten(1, (-1, 4)) == 0).sum(-1) == 2).all()


def test_what_is_measured_is_the_merged_network() -> None:
    data, network = answers(), still(reader())
    records = train(network, data, RECIPE, seed=0)
    from trueoracle.training.evaluate import evaluate

    assert evaluate(network, data.test, data.task)["loss"] == records[-1].values["test_loss"]


def test_measuring_leaves_no_rounding_behind() -> None:
    data, network = answers(), reader()
    training = Training(network, data, RECIPE, (0, ""))
    training.train_epoch(0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(3):
        training.measure(0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_some_parameters_are_trained_in_full() -> None:
    data, network = answers(), still(reader())
    lora = LORA.model_copy(update={"targets": ("*.up",), "train": ("*norm*", "head.bias")})
    before = copy.deepcopy(network.state_dict())
    train(network, data, RECIPE.model_copy(update={"lora": lora}), seed=0)
    moved = {n for n, v in network.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {
        *("head.bias", "blocks.0.up.weight", "blocks.1.up.weight"),
        *(f"blocks.{i}.norm.{part}" for i in (0, 1) for part in ("weight", "bias")),
    }


def test_adapters_go_on_where_they_stopped() -> None:
    data = answers()
    lora = LORA.model_copy(update={"train": ("*norm*",), "dropout": 0.2})
    recipe = RECIPE.model_copy(update={"epochs": 3, "lora": lora, "optimizer": "adamw"})
    whole, pieces = reader(), reader()
    expected = train(whole, data, recipe, seed=0)
    first = Training(pieces, data, recipe, (0, ""))
    first.train_epoch(0)
    state = first.state()
    first.finish()  # merges
    second = Training(pieces, data, recipe, (0, ""), state)
    for epoch in (1, 2):
        second.train_epoch(epoch)
    assert second.measure(2) == expected[2]
    second.finish()
    for name, value in whole.state_dict().items():
        assert torch.equal(pieces.state_dict()[name], value)


def test_a_diverging_candidate_is_recorded_as_one() -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 1e20, "accumulate": 2})
    records = train(reader(), answers(), recipe, seed=0)
    assert records[-1].diverged
    assert len(records) <= 2


class Attentive(nn.Module):
    """torch's attention reads its layers' weights itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 13)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = self.attention(x, x, x)[0]
        logits: Tensor = self.head(functional.linear(x, self.inner.weight))
        return logits


def test_layers_that_an_adapter_would_not_reach_are_told() -> None:
    network = Attentive()
    assert layers_to_adapt(network, LORA) == ["inner", "head"]
    data = answers()
    with pytest.raises(InputError, match="weights of inner past its adapter"):
        Training(network, data, RECIPE, (0, "")).check(data.example(4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": ("conv*",)}, r"lora.targets: 'conv\*' fits no linear layer"),
        ({"train": ("projector.*",)}, r"lora.train: 'projector\.\*' fits no parameter"),
    ],
)
def test_a_pattern_that_fits_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Adapters(reader(), Lora(**fields), 0)


@pytest.mark.parametrize("lora", [None, LORA])
def test_tied_layers_get_no_adapter_and_stay_tied(lora: Lora | None) -> None:
    network = reader()
    network.head.weight = network.embed.weight
    assert "head" not in layers_to_adapt(network, LORA)
    recipe = RECIPE.model_copy(update={"lora": lora, "precision": "bfloat16"})
    train(network, answers(), recipe, seed=0)
    assert network.head.weight is network.embed.weight


def test_without_peft_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    true_import = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("peft"):
            raise ImportError(name)
        return true_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r"needs peft: pip install '\.\[transformers\]'"):
        Adapters(reader(), LORA, 0)


def test_transformers_conv1d_takes_adapters_and_masks() -> None:
    utils = pytest.importorskip("transformers.pytorch_utils")
    from trueoracle.pruning.held import Masked

    torch.manual_seed(0)
    layer = utils.Conv1D(5, 3).double()
    network = nn.Sequential(layer, nn.Linear(5, 2).double())
    mask = (torch.rand(3, 5) > 0.5).double()
    with torch.no_grad():
        layer.weight.mul_(mask)
    parametrize.register_parametrization(layer, "weight", Masked(mask))
    adapters = Adapters(network, LORA, 0)
    inputs = torch.randn(4, 3).double()
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    before = network(inputs)
    adapters.finish()
    torch.testing.assert_close(network(inputs), before)
    plain = unmasked(network)
    assert torch.equal(plain.get_parameter("0.weight") != 0, mask.bool())
