"""bfloat16 weights, and forward passes that are run again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tests.training.tiny import TOKENS, answers, reader
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.training.loop import Training, add_gradients, train
from trueoracle.training.recipe import Lora, Recipe, Retraining
from trueoracle.training.savings import checkpointed

AGAIN = Recipe(epochs=2, batch_size=8, learning_rate=0.1, gradient_checkpointing=True)


def bytes_kept(network: nn.Module, recipe: Recipe) -> int:
    """Of one forward pass, for the gradients."""
    data, kept = answers(), {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage()._cdata] = value.untyped_storage().nbytes()
        return value

    with checkpointed(network, recipe), saved_tensors_hooks(keep, lambda value: value):
        data.task.forward(network.train(), data.example(20))
    return sum(kept.values())


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_dropout=0.1,
    )
    network: nn.Module = transformers.LlamaForCausalLM(config)
    return network


@pytest.mark.parametrize("factory", [reader, llama])
def test_running_blocks_again_changes_no_number(factory: object) -> None:
    made = factory()  # type: ignore[operator]
    data, plain, again = answers(), copy.deepcopy(made), copy.deepcopy(made)
    expected = train(
        plain, data, AGAIN.model_copy(update={"gradient_checkpointing": False}), seed=1
    )
    found = train(again, data, AGAIN, seed=1)
    assert str(found) == str(expected)  # dropout drew the same numbers
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert bytes_kept(made, AGAIN) < 0.7 * bytes_kept(made, Recipe())
    assert "forward" not in vars(next(again.modules()))


def test_networks_without_blocks_or_with_batch_norms_are_refused() -> None:
    with pytest.raises(InputError, match="needs blocks that stand in a row, and Sequential has"):
        Training(nn.Sequential(nn.Linear(2, 2)), answers(), AGAIN, (0, "")).check({})
    resnet = build("resnet20", input_shape=(1, 8, 8), classes=3)
    with pytest.raises(InputError, match="norms would count their statistics twice"):
        Training(resnet, answers(), AGAIN, (0, "")).check({})
    blocks = [
        nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1, track_running_stats=True))
        for _ in range(2)
    ]
    with pytest.raises(InputError, match="norms would count their statistics twice"):
        Training(nn.Sequential(*blocks), answers(), AGAIN, (0, "")).check({})


@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_weights_are_held_in_bfloat16_and_given_back_in_float32(lora: Lora | None) -> None:
    if lora is not None:
        pytest.importorskip("peft")
    data, network = answers(), reader()
    recipe = Retraining(epochs=1, batch_size=8, learning_rate=0.1, precision="bfloat16", lora=lora)
    training = Training(network, data, recipe, (0, ""))
    kinds = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}
    assert {kind for name, kind in kinds.items() if "lora_" in name} <= {torch.float32}
    with training.measured() as measured:
        assert data.task.forward(measured, data.example(2)).dtype == torch.float32
    training.train_epoch(0)
    record = training.measure(0)
    training.finish()
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    for value in network.parameters():
        assert torch.equal(value, value.bfloat16().float())
    assert not record.diverged


def test_images_are_rounded_for_bfloat16_weights(few_digits: Splits) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 5, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10)
    )
    recipe = Recipe(epochs=1, batch_size=100, learning_rate=0.01, precision="bfloat16")
    few = few_digits.few(100)
    plain = train(
        copy.deepcopy(network), few, recipe.model_copy(update={"precision": "float32"}), seed=0
    )
    (record,) = train(network, few, recipe, seed=0)
    assert record.train_loss == pytest.approx(plain[0].train_loss, rel=0.05)
    assert record.train_loss != plain[0].train_loss


def test_gradients_of_bfloat16_are_near() -> None:
    data = answers()
    exact, rounded = reader().eval(), reader().eval()
    batch = data.example(8)
    add_gradients(exact, data.task, batch, Recipe())
    Training(rounded, data, Recipe(precision="bfloat16"), (0, ""))
    add_gradients(rounded, data.task, batch, Recipe())
    for (name, one), other in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        assert other.grad is not None
        assert one.grad is not None
        assert torch.norm(other.grad.float() - one.grad) < 0.05 * torch.norm(one.grad) + 1e-3, name
