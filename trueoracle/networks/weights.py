"""Weights to and from files: safetensors, or a PyTorch checkpoint read without its code."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.networks.tracing import trace

__all__ = ["architecture_sha256", "load_weights", "read_metadata", "save_weights", "weights_sha256"]

_WRAPPINGS = ("state_dict", "model", "model_state_dict")


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a checkpoint into ``network``, in place.

    ``.safetensors`` files and PyTorch ones (``weights_only=True``: no code is run) are read; the
    wrappings ``state_dict`` and ``model`` and a ``module.`` prefix are taken off. Raises
    :class:`InputError` naming the tensors and shapes that do not fit.
    """
    tensors = _read_tensors(path)
    expected = network.state_dict()
    problems = [
        f"{name} is {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    # A missing counter of batches seen changes no result; old checkpoints lack it.
    missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    surplus = [n for n in tensors if n not in expected]
    problems += [f"{name} is missing" for name in missing]
    problems += [f"{name} is not in the network" for name in surplus]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(f"{path} does not fit the network: {'; '.join(problems[:4])}{more}")
    network.load_state_dict(expected | tensors)


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, object]) -> None:
    """Write a network's tensors and JSON metadata to a safetensors file, all or nothing.

    Raises :class:`StoreError` where the disk does not take it; an older file stays as it was.
    """
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in network.state_dict().items()}
    temporary = path.with_suffix(".partial")
    try:
        save_file(tensors, temporary, {k: json.dumps(v) for k, v in metadata.items()})
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(f"cannot write {path}: {error}") from error


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata of :func:`save_weights`; raises :class:`StoreError` for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; move it away to make it anew") from error


def weights_sha256(network: nn.Module) -> str:
    """The SHA-256 over names, shapes and values of all tensors: the identity of a network."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def architecture_sha256(network: nn.Module) -> str:
    """The SHA-256 over what a network computes with its tensors.

    Module names, types and settings; the traced operations in training and evaluation mode; buffers
    (those too that no checkpoint holds); which parameters train; and the source text of the classes
    that are not torch's own.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        kind = type(module)
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__}".encode())
        digest.update(module.extra_repr().encode())
        if not kind.__module__.startswith("torch."):
            with suppress(OSError, TypeError):  # typed at a prompt: the operations must do
                digest.update(inspect.getsource(kind).encode())
    modes = [(module, module.training) for module in network.modules()]
    for mode in (True, False):
        with suppress(Exception):  # find_groups says in its own words what cannot be traced
            digest.update(trace(network.train(mode)).code.encode())
    for module, training in modes:
        module.training = training
    for name, buffer in network.named_buffers():
        digest.update(name.encode())
        digest.update(_bytes(buffer))
    trains = [name for name, p in network.named_parameters() if p.requires_grad]
    digest.update(" ".join(trains).encode())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"no weights file {path}") from error
    except Exception as error:  # a damaged pickle can raise anything
        # PyTorch's own advice is to read it unsafely; ours is not.
        why = first_line(error).partition("(1)")[0].removeprefix("Weights only load failed. ")
        raise InputError(
            f"{path} is no safetensors file or PyTorch checkpoint that can be read safely "
            f"(damaged, or holding more than tensors): {why[:160]}"
        ) from error
    for wrapping in _WRAPPINGS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapping), Mapping):
            content = content[wrapping]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state_dict (a mapping of names to tensors)")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
