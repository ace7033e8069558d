"""Example batches to inspect a network with when there is no data: made up or read from files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trueoracle.errors import InputError, first_line, shown

__all__ = ["ITEMS", "made_up", "read_inputs"]

ITEMS = 2
"""The number of items in a made-up batch; in a batch of tokens, the second item is padded."""

CONTEXT = 32
"""The number of tokens of an item by default."""

_KINDS = ("int", "float", "ones")


def read_inputs(given: Sequence[str]) -> dict[str, Tensor]:
    """A batch from ``NAME=KIND:SHAPE`` and from files of named tensors (``.safetensors``).

    ``KIND`` is ``float`` (uniform below 1), ``ones``, or ``int`` (whole numbers below 10;
    ``int50``: below 50). ``SHAPE`` is, for example, ``2x32``, with the number of items first.
    Raises :class:`InputError` for anything else.
    """
    batch: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for text in given:
        name, is_named, value = text.partition("=")
        if not is_named:
            batch |= _from_file(Path(text))
            continue
        kind, _, shape = value.partition(":")
        match = re.fullmatch(r"(int|float|ones)(\d*)", kind)
        sizes = shape.split("x")
        if not (match and all(re.fullmatch("0*[1-9][0-9]{0,8}", size) for size in sizes)):
            raise InputError(
                f"--input takes NAME=KIND:SHAPE (kinds: {', '.join(_KINDS)}), such as "
                f"input_ids=int50:2x32, or a file of tensors; got {shown(text)}"
            )
        size = [*map(int, sizes)]
        if match[1] == "int":
            batch[name] = torch.randint(max(int(match[2] or 10), 1), size, generator=generator)
        else:
            batch[name] = torch.rand(size, generator=generator)
            if match[1] == "ones":
                batch[name] = torch.ones(size, dtype=torch.int64)
    return batch


def _from_file(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # no such file, or none of that format
        raise InputError(f"cannot read a batch from {path}: {first_line(error)}") from error


def made_up(network: nn.Module, context: int | None = None) -> dict[str, Tensor] | None:
    """A batch of random items for a network of transformers; None where its inputs are unknown.

    The batch has tokens ``[ITEMS, context]`` (:data:`CONTEXT` by default), of which the last
    quarter of the second item is padding, images of the configuration's size, or both. Raises
    :class:`InputError` where the images cannot be put among the tokens.
    """
    config, main = getattr(network, "config", None), getattr(network, "main_input_name", None)
    if config is None or main not in ("input_ids", "pixel_values"):
        return None
    vision = getattr(config, "vision_config", None)
    if main == "pixel_values":
        return {"pixel_values": _images(config)}
    batch = _tokens(network, context or CONTEXT)
    if vision is not None:
        return _with_images(network, batch, _images(vision))
    if getattr(config, "is_encoder_decoder", False):
        batch["decoder_input_ids"] = batch["input_ids"].clone()
    return batch


def _tokens(network: nn.Module, context: int) -> dict[str, Tensor]:
    config: Any = network.config
    text = config.get_text_config()
    special = {getattr(config, name, None) for name in ("image_token_id", "video_token_id")}
    usual = [one for one in range(min(text.vocab_size, 1000)) if one not in special]
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(usual), (ITEMS, context), generator=generator)
    mask = torch.ones_like(chosen)
    if context > 1:
        mask[1, -max(context // 4, 1) :] = 0
    return {"input_ids": torch.tensor(usual)[chosen], "attention_mask": mask}


def _images(config: Any) -> Tensor:
    size = getattr(config, "image_size", None) or 224
    sides = [*size] if isinstance(size, tuple | list) else [size, size]
    channels = getattr(config, "num_channels", 3)
    return torch.rand(ITEMS, channels, *sides, generator=torch.Generator().manual_seed(1))


def _with_images(network: nn.Module, batch: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
    """Put as many image tokens before each item's words as the network makes of an image."""
    name = type(network).__name__
    token = getattr(network.config, "image_token_id", None)
    features = getattr(network, "get_image_features", None)
    said = "it does not say how"
    for given in (images, images[:, None]):  # some take several images for each item
        if token is None or features is None:
            break
        try:
            with torch.no_grad():
                count = _rows(features(pixel_values=given)) // ITEMS
        except Exception as error:  # other networks expect other inputs
            said = first_line(error)
            continue
        places = torch.full((ITEMS, count), token)
        return {
            "input_ids": torch.cat([places, batch["input_ids"]], 1),
            "attention_mask": torch.cat([torch.ones_like(places), batch["attention_mask"]], 1),
            "pixel_values": given,
        }
    raise InputError(
        f"no batch can be made up for {name}, whose images stand among its tokens ({said}): give "
        "one with --input FILE.safetensors"
    )


def _rows(features: Any) -> int:
    """How many tokens the features of a batch of images make up."""
    pooled = getattr(features, "pooler_output", None)
    found = features if pooled is None else pooled
    if isinstance(found, Mapping):
        found = found["last_hidden_state"]
    tensors = [one for one in pytree.tree_leaves(found) if isinstance(one, Tensor)]
    return sum(one.numel() // one.shape[-1] for one in tensors)
