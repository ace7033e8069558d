"""Weights to and from files: safetensors, or a PyTorch checkpoint read without its code."""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from trueoracle.errors import InputError, StoreError, first_line, unknown
from trueoracle.files import write_bytes
from trueoracle.networks.tracing import trace

__all__ = [
    "architecture_sha256",
    "load_weights",
    "read_metadata",
    "read_weights",
    "save_weights",
    "weights_sha256",
    "write_tensors",
]

_WRAPPINGS = ("state_dict", "model", "model_state_dict")
_RENAMED = (
    (r"\b_orig_mod\.", ""),  # torch.compile
    (r"^module\.", ""),  # parallel training
    # Files of torchvision's hub that are older than its code, of vision transformers and DenseNets.
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
    (r"\b(norm|conv)\.([12])\.", r"\1\2."),
)


def load_weights(network: nn.Module, source: Path | str) -> None:
    """Load a file, or ``torchvision:NAME``, into ``network``, in place.

    What compiling and parallel training add to the names (``_orig_mod.``, ``module.``) is taken
    off. Raises :class:`InputError` naming the tensors and shapes that do not fit, and what
    :func:`read_weights` raises.
    """
    expected = network.state_dict()
    tensors = {_renamed(name, expected): value for name, value in read_weights(source).items()}
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
        raise InputError(f"{source} does not fit the network: {'; '.join(problems[:4])}{more}")
    network.load_state_dict(expected | tensors)


def read_weights(source: Path | str) -> dict[str, Tensor]:
    """The tensors of a file, or of ``torchvision:NAME``, by name.

    ``.safetensors`` files and PyTorch ones (``weights_only=True``: no code is run) are read; the
    wrappings ``state_dict``, ``model`` and ``model_state_dict`` are taken off. A name is one of
    torchvision's, such as ``torchvision:ResNet18_Weights.IMAGENET1K_V1``: downloaded once, checked,
    and kept where ``torch.hub`` keeps its files. Raises :class:`InputError` for what cannot be
    found or read.
    """
    scheme, colon, name = str(source).partition(":")
    if isinstance(source, str) and colon and scheme == "torchvision":
        return _from_hub(name)
    return _read_file(Path(source))


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, object]) -> str:
    """Write a network's tensors and JSON metadata to a safetensors file, all or nothing.

    Returns the SHA-256 of the file. Raises :class:`StoreError` where the disk does not take it; an
    older file stays as it was.
    """
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in network.state_dict().items()}
    return write_tensors(tensors, path, {k: json.dumps(v) for k, v in metadata.items()})


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, all or nothing, with the rights that new files have here.

    Returns the SHA-256 of the file. Raises :class:`StoreError` where the disk does not take it; an
    older file stays as it was.
    """
    try:
        # Not by safetensors' own writer, whose files nobody but their owner may read.
        content = save(dict(tensors), dict(metadata or {}))
    except SafetensorError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata of :func:`save_weights`; raises :class:`StoreError` for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {k: json.loads(v) for k, v in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
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
            for key, value in sorted(vars(module).items()):
                if isinstance(value, Tensor):
                    digest.update(key.encode() + _bytes(value))
                elif key != "training" and _is_plain(value):
                    digest.update(f"{key}={value!r}".encode())
    modes = [(module, module.training) for module in network.modules()]
    for mode in (True, False):
        with suppress(Exception):  # find_groups says in its own words what cannot be traced
            traced = trace(network.train(mode))
            digest.update(traced.code.encode())
            for name, constant in traced.named_buffers():
                if name.startswith("_tensor_constant"):  # which the code only names
                    digest.update(name.encode() + _bytes(constant))
    for module, training in modes:
        module.training = training
    for name, buffer in network.named_buffers():
        digest.update(name.encode())
        digest.update(_bytes(buffer))
    trains = [name for name, p in network.named_parameters() if p.requires_grad]
    digest.update(" ".join(trains).encode())
    return digest.hexdigest()


def _is_plain(value: object) -> bool:
    """Whether a value's text says all about it."""
    if isinstance(value, tuple):
        return all(_is_plain(one) for one in value)
    return isinstance(value, int | float | str | None)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Training scripts like to save their arguments beside the weights: plain values.
        with torch.serialization.safe_globals([argparse.Namespace]):
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
    while isinstance(content, Mapping):
        wrapped = [content[w] for w in _WRAPPINGS if isinstance(content.get(w), Mapping)]
        if not wrapped:
            break
        content = wrapped[0]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state_dict (a mapping of names to tensors)")
    return {str(name): value for name, value in content.items()}


def _renamed(name: str, expected: Container[str]) -> str:
    """A tensor's name in the network: without what was put into it, where it is not known so."""
    for pattern, replacement in _RENAMED:
        while name not in expected and (other := re.sub(pattern, replacement, name)) != name:
            name = other
    return name


def _from_hub(name: str) -> dict[str, Tensor]:
    """The weights that torchvision offers by this name, from its hub or from where it was kept."""
    reference = f"torchvision:{name}"
    try:
        from torchvision import models
    except Exception as error:  # beside a torch of another release it fails in its own ways
        raise InputError(
            f"network.weights = {reference!r} is read through torchvision, which does not import "
            f"({first_line(error)}): pip install 'trueoracle[vision]'"
        ) from error
    try:
        weights = models.get_weight(name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        known = [str(w) for m in models.list_models(models) for w in models.get_model_weights(m)]
        plain = name.partition("_Weights")[0].lower().replace("_", "")
        near = [one for one in known if one.lower().replace("_", "").startswith(plain)]
        raise unknown("weights of torchvision", name, near or known) from error
    by_hand = f"download {weights.url} by hand and give the file as network.weights"
    try:
        found = weights.get_state_dict(
            progress=True, check_hash=True, map_location="cpu", weights_only=True
        )
    except OSError as error:  # no network, no such host, no space
        raise InputError(f"cannot download {reference}: {first_line(error)}; {by_hand}") from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{reference} came damaged or lies damaged in {torch.hub.get_dir()}/checkpoints: "
            f"{first_line(error)}; remove it there, or {by_hand}"
        ) from error
    return {str(key): value for key, value in found.items()}
