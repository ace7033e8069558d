"""Low-rank adapters (LoRA) on a network: attached by peft, trained, and merged into its weights."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from trueoracle.errors import InputError
from trueoracle.pruning.held import held_weight
from trueoracle.training.continuing import BASE, VALUE, MemberState
from trueoracle.training.recipe import Lora

__all__ = ["Adapters", "layers_to_adapt"]

_NAME = "default"


class Adapters:
    """The adapters of one network, from attaching them to merging them.

    A layer with weights W computes with W + (alpha / rank) · BA, of which A ``[rank, in]`` and B
    ``[out, rank]`` are trained (Hu et al. 2021, arXiv 2106.09685, section 4.1). Where a mask M
    holds zeros in W, the layer computes with W + (alpha / rank) · M∘(BA), so that merging keeps
    every zero. All other parameters are frozen, except those that ``lora.train`` names. A is drawn
    from ``seed``; B begins at zero.
    Raises :class:`InputError` where peft is missing, or a pattern fits nothing.
    """

    def __init__(self, network: nn.Module, lora: Lora, seed: int) -> None:
        model, config = _peft()
        self._network = network
        self._trained_before = [(p, p.requires_grad) for p in network.parameters()]
        names, in_full = layers_to_adapt(network, lora), _trained_in_full(network, lora)
        wanted = config(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="|".join(map(re.escape, names)),
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # transformers' Conv1D holds weights [in, out], which peft notices by itself.
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
            torch.manual_seed(seed)
            self._tuner = model(network, wanted, _NAME)
        self._layers: dict[str, Any] = {name: network.get_submodule(name) for name in names}
        for layer in self._layers.values():
            for part in (layer.lora_A, layer.lora_B):
                if part[_NAME].weight.dtype is torch.bfloat16:  # too coarse for small steps
                    part[_NAME].float()
            if held_weight(layer.get_base_layer()) is not None:
                layer.lora_variant[_NAME] = _UnderMask
        for parameter in in_full:
            parameter.requires_grad_(True)

    def state(self, *, base: bool) -> MemberState:
        """The trained values, on the CPU; ``base`` adds the weights that the adapters change."""
        trained = {
            f"{VALUE}/{name}": parameter
            for name, parameter in self._network.named_parameters()
            if parameter.requires_grad
        }
        if base:
            trained |= {f"{BASE}/{name}": _weight(layer) for name, layer in self._layers.items()}
        return {name: value.detach().cpu().clone() for name, value in trained.items()}

    def without_gradient(self) -> list[str]:
        """The layers whose adapters got no gradient from the last step."""
        return [n for n, one in self._layers.items() if one.lora_B[_NAME].weight.grad is None]

    def restore(self, state: MemberState) -> None:
        """Put back the values that :meth:`state` returned."""
        trained = dict(self._network.named_parameters())
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind in (VALUE, BASE):
                own = trained[name] if kind == VALUE else _weight(self._layers[name])
                with torch.no_grad():
                    own.copy_(value)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Within the block, the network computes with merged weights, as it will in the end."""
        before = [_weight(layer).detach().clone() for layer in self._layers.values()]
        for layer in self._layers.values():
            layer.merge()
        try:
            yield
        finally:
            for layer, weight in zip(self._layers.values(), before, strict=True):
                # Not by subtraction, which would leave rounding behind.
                _weight(layer).data.copy_(weight)
                layer.merged_adapters.clear()

    def finish(self) -> None:
        """Merge and remove the adapters; parameters that were trainable before are so again."""
        self._tuner.merge_and_unload()
        for name in ("peft_config", "active_peft_config"):
            self._network.__dict__.pop(name, None)
        for parameter, trained in self._trained_before:
            parameter.requires_grad_(trained)


def _peft() -> tuple[Any, Any]:
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise InputError("retraining.lora needs peft: pip install '.[transformers]'") from error
    return LoraModel, LoraConfig


class _UnderMask:
    """How peft computes and merges the adapter of a layer whose zeros are held."""

    @staticmethod
    def forward(layer: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        change = _masked_change(layer, active_adapter)
        if layer.fan_in_fan_out:
            change = change.T
        dropped = layer.lora_dropout[active_adapter](x)
        return result + functional.linear(dropped, change.to(dropped.dtype))

    @staticmethod
    def merge_unsafe(layer: Any, active_adapter: str, _: Tensor) -> None:
        _weight(layer).data.add_(_masked_change(layer, active_adapter))


def _masked_change(layer: Any, adapter: str) -> Tensor:
    """(alpha / rank) · M∘(BA), shaped like the weight."""
    _, mask = cast(tuple[nn.Parameter, Tensor], held_weight(layer.get_base_layer()))
    change: Tensor = layer.get_delta_weight(adapter)
    return change * mask.to(change.dtype)


def _weight(layer: Any) -> nn.Parameter:
    """The parameter of the layer beneath an adapter."""
    base = layer.get_base_layer()
    held = held_weight(base)
    weight: nn.Parameter = base.weight if held is None else held[0]
    return weight


def layers_to_adapt(network: nn.Module, lora: Lora) -> list[str]:
    """The names of the layers that get adapters: those that ``lora.targets`` fits.

    Without targets, all linear layers get one, except the output layer if transformers names it.
    Raises :class:`InputError` for a pattern that fits no layer which can have an adapter.
    """
    output = getattr(network, "get_output_embeddings", lambda: None)()
    owners = Counter(id(p) for m in network.modules() for p in m.parameters(recurse=False))
    able = {}
    for name, module in network.named_modules():
        if name and _is_linear(module):
            held = held_weight(module)
            weight = module.get_parameter("weight") if held is None else held[0]
            if owners[id(weight)] == 1:
                able[name] = module
    if not lora.targets:
        names = [name for name, module in able.items() if module is not output]
        if not names:
            raise InputError("lora: the network has no linear layers to adapt")
        return names
    for pattern in lora.targets:
        _check_fits(pattern, "targets", "no linear layer with weights of its own", able)
    return [n for n in able if any(fnmatchcase(n, pattern) for pattern in lora.targets)]


def _is_linear(module: nn.Module) -> bool:
    # torch's attention reads the weights of its output layer directly, without any adapter.
    if isinstance(module, nn.Linear):
        return not isinstance(module, NonDynamicallyQuantizableLinear)
    return type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == (
        "Conv1D"
    )


def _trained_in_full(network: nn.Module, lora: Lora) -> list[nn.Parameter]:
    parameters = dict(network.named_parameters())
    for pattern in lora.train:
        _check_fits(pattern, "train", "no parameter", list(parameters))
    return [
        parameter
        for name, parameter in parameters.items()
        if any(fnmatchcase(name, pattern) for pattern in lora.train)
    ]


def _check_fits(pattern: str, field: str, nothing: str, names: Any) -> None:
    if not any(fnmatchcase(name, pattern) for name in names):
        some: Sequence[str] = list(names)[:6]
        raise InputError(
            f"lora.{field}: {pattern!r} fits {nothing}; there are {', '.join(some)}, …"
        )
