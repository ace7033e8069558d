"""Finds the config from which transformers builds a pruned network, where there is one.

A config has one number for all layers: one intermediate_size, one number of heads. Where every
layer has lost the same number of units, numbers can be found that give the pruned shapes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["config_of", "fitted_config", "plain_config", "sections"]

_FIXED = ("head_dim", "image_size", "max_position_embeddings", "patch_size", "vocab_size")
"""Numbers that pruning leaves alone."""

Shapes = Mapping[str, tuple[int, ...]]


def config_of(network: nn.Module) -> Any:
    """The config of a network of transformers; None for any other network."""
    config = getattr(network, "config", None)
    is_theirs = hasattr(network, "save_pretrained") and hasattr(config, "to_dict")
    return config if is_theirs else None


def plain_config(network: nn.Module) -> dict[str, Any] | None:
    """The config of a network of transformers as in ``config.json``; None for any other network."""
    config = config_of(network)
    if config is None:
        return None
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return plain | {"architectures": [type(network).__name__]}


def fitted_config(network: nn.Module) -> Any:
    """A config from which transformers builds a network of these shapes; None if there is none.

    Numbers of the network's own config are changed one at a time until the shapes are right. A
    number that the config leaves to be computed, the width of a head, is written out where that is
    needed.
    """
    wanted = _shapes(network)
    for with_head_dim in (False, True):
        config = copy.deepcopy(config_of(network))
        if with_head_dim:
            _say_head_dim(config)
        try:
            built = _built_shapes(network, config)
        except Exception:  # the network cannot be built from its config alone
            return None
        while wrong := _wrong(built, wanted):
            better = _better(network, config, built, wanted, wrong)
            if better is None:
                break
            config, built = better
        else:
            return config
    return None


def _better(
    network: nn.Module, config: Any, built: Shapes, wanted: Shapes, wrong: int
) -> tuple[Any, Shapes] | None:
    """The config with one number changed so that fewer shapes are wrong, and the shapes."""
    changes = {
        (before, after)
        for name in built.keys() & wanted.keys()
        for before, after in zip(built[name], wanted[name], strict=False)
        if before != after
    }
    for place, key, value in _trials(config, sorted(changes)):
        tried = copy.deepcopy(config)
        try:
            setattr(list(sections(tried))[place], key, value)
            found = _built_shapes(network, tried)
        except Exception:  # noqa: S112 — the config does not allow this number
            continue
        if _wrong(found, wanted) < wrong:
            return tried, found
    return None


def _trials(config: Any, changes: list[tuple[int, int]]) -> Iterator[tuple[int, str, int]]:
    """Numbers to try, as (section, name, value); those that equal a changed size come first."""
    exact, scaled = [], []
    for place, section in enumerate(sections(config)):
        for key, value in vars(section).items():
            if key in _FIXED or key.startswith("_") or key.endswith(("_id", "_ids", "_index")):
                continue
            for before, after in changes:
                if value == before or value is None:
                    exact.append((place, key, after))
                elif type(value) is int and value > 1 and value * after % before == 0:
                    scaled.append((place, key, value * after // before))
    yield from exact
    yield from dict.fromkeys(scaled)


def sections(config: Any) -> Iterator[Any]:
    """A config and the configs within it, such as ``text_config``."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from sections(value)


def _say_head_dim(config: Any) -> None:
    for section in sections(config):
        heads = getattr(section, "num_attention_heads", None)
        hidden = getattr(section, "hidden_size", None)
        if heads and hidden and getattr(section, "head_dim", None) is None:
            section.head_dim = hidden // heads


def _built_shapes(network: nn.Module, config: Any) -> Shapes:
    with torch.device("meta"):
        built: nn.Module = type(network)(copy.deepcopy(config))
    return _shapes(built)


def _shapes(network: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def _wrong(built: Shapes, wanted: Shapes) -> int:
    """How many tensors have a wrong shape, are missing, or should not exist."""
    return sum(built.get(name) != wanted.get(name) for name in built.keys() | wanted.keys())
