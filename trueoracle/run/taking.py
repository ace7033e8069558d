"""Whether a network of transformers accepts what the data hold: positions, tokens, images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.data.splits import Splits
from trueoracle.errors import InputError

__all__ = ["check_taking"]

_IDS = "input_ids"
_LOOKED_AT = 64


def check_taking(network: nn.Module, data: Splits, example: Mapping[str, Tensor]) -> None:
    """Refuse data with tokens, positions or images that a network does not accept.

    The network's own error would come late and be unclear: one rare token can stop a retraining
    half-way, and rotary positions go on without any error beyond those that the network was trained
    on. ``example`` has a few examples of the data. Raises :class:`InputError`.
    """
    config, name = getattr(network, "config", None), type(network).__name__
    if config is None or _IDS not in example:
        return
    main = getattr(network, "main_input_name", _IDS)
    if main != _IDS and main not in example:
        raise InputError(f"the network, a {name}, takes {main}, and the examples are text")
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None)
    length = max(split.shapes[_IDS][0] for _, split in data.named() if _IDS in split.shapes)
    if isinstance(positions, int) and 0 < positions < length:
        raise InputError(
            f"the network, a {name}, has {positions:,} positions, and the examples up to "
            f"{length:,} tokens: expected data.context = {positions} or less"
        )
    embedding: Any = getattr(network, "get_input_embeddings", lambda: None)
    held = embedding()
    if isinstance(held, nn.Embedding) and (largest := _largest(data)) >= held.num_embeddings:
        raise InputError(
            f"the network, a {name}, has {held.num_embeddings:,} tokens, and the data hold token "
            f"{largest:,}: the tokenizer (data.tokenizer) is another network's"
        )


def _largest(data: Splits) -> int:
    """The largest token of the data: among all tokens of text, or the first examples of other data.

    Examples of questions are made only when they are needed.
    """
    found = -1
    for _, split in data.named():
        tokens = getattr(split, "tokens", None)
        if isinstance(tokens, np.ndarray):
            found = max(found, int(tokens.max()))
        elif _IDS in split.shapes:
            some = split.take(torch.arange(min(len(split), _LOOKED_AT)))
            found = max(found, int(some.fields[_IDS].max()))
    return found
