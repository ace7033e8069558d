"""Writes and reads weights: safetensors, or PyTorch checkpoints read without running code."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from trueoracle.errors import InputError, StoreError, first_line, unknown
from trueoracle.files import parse_json, write_bytes
from trueoracle.networks.checkpoints import EXTRA_STATE, read_checkpoint
from trueoracle.networks.tracing import trace

__all__ = [
    "architecture_sha256",
    "load_state",
    "load_weights",
    "read_metadata",
    "read_weights",
    "save_weights",
    "state_tensors",
    "weights_sha256",
    "write_tensors",
]

_RENAMED = (
    (r"\b_orig_mod\.", ""),  # torch.compile
    (r"\bmodule\.", ""),  # parallel training of the whole network or, in old VGGs, of a part
    # Vision transformers and DenseNets in files of torchvision's hub that are older than its code.
    (r"\bmlp\.linear_1\.", "mlp.0."),
    (r"\bmlp\.linear_2\.", "mlp.3."),
    (r"\b(norm|conv)\.([12])\.", r"\1\2."),
    # The paper's released code: the last layer of ResNet-56 and of VGG-19 (its repository,
    # fscdc/Oracle-Pruning-Sanity-Check: pruning/model/resnet_cifar10.py and vgg.py).
    (r"^(linear|classifier)\.", "fc."),
    (r"\bshortcut\.", "downsample."),  # akamaster/pytorch_resnet_cifar10, the source of that code
)


def load_weights(network: nn.Module, source: Path | str) -> str:
    """Load a file, or ``torchvision:NAME``, into ``network``, in place.

    Prefixes that compiling, parallel training and training frameworks add to the names
    (``_orig_mod.``, ``module.``, a prefix that all names share) are removed, and the names of the
    paper's released code are translated. Numbers are converted where the network has them in
    another precision of the same kind (floating-point, whole, complex, bool); sparse tensors are
    made dense. Returns a sentence about the tensors that were rounded, or an empty string. Raises
    :class:`InputError` naming the tensors, types and shapes that do not fit, and whatever
    :func:`read_weights` raises.
    """
    expected = state_tensors(network)
    tensors = _named_as(network, expected, read_weights(source), source)
    for name, first in _shared(network).items():  # a file has them once or under each name
        if name not in tensors and first in tensors:
            tensors[name] = tensors[first]
        elif first not in tensors and name in tensors:
            tensors[first] = tensors[name]
    problems = [
        f"{name} is {list(tensors[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in tensors and not _is_extra(name) and tensors[name].shape != value.shape
    ]
    # Old checkpoints lack the counter of batches seen, which changes no result.
    missing = [n for n in expected if n not in tensors and not n.endswith("num_batches_tracked")]
    surplus = [n for n in tensors if n not in expected]
    problems += [f"{name} is missing" for name in missing]
    problems += [f"{name} is not in the network" for name in surplus]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(f"{source} does not fit the network: {'; '.join(problems[:4])}{more}")
    rounded = []
    for name, value in tensors.items():
        if _is_extra(name):
            continue
        tensors[name], is_rounded = _converted(name, value, expected[name].dtype, source)
        if is_rounded:
            rounded.append(name)
    load_state(network, expected | tensors, source)
    if not rounded:
        return ""
    first = rounded[0]
    more = f" and {len(rounded) - 1} more" if len(rounded) > 1 else ""
    return (
        f"{source} holds {first}{more} in a precision that the network does not have: rounded to "
        f"{_type(expected[first].dtype)}"
    )


def load_state(network: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Load the state of :func:`state_tensors` back into a network, in place and exactly.

    Raises :class:`InputError`, naming ``source``, where the network does not accept the state, or
    shares tensors that differ in the state.
    """
    own = network.state_dict()
    try:
        network.load_state_dict(
            {
                name: value if isinstance(own.get(name), Tensor) else _decoded(value)
                for name, value in tensors.items()
            }
        )
    except Exception as error:  # the user's code handles a module's extra state
        raise InputError(f"{source} does not fit the network: {first_line(error)}") from error
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor) and _bytes(value) != _bytes(tensors[name]):
            raise InputError(
                f"{source} does not fit the network: {name} did not become what the file says, "
                "since the network shares it with another tensor or computes it"
            )


def read_weights(source: Path | str) -> dict[str, Tensor]:
    """The tensors of a file, or of ``torchvision:NAME``, by name.

    ``.safetensors`` files and PyTorch checkpoints are read, without running code; a ``state_dict``
    is found wherever a checkpoint holds it
    (:func:`trueoracle.networks.checkpoints.read_checkpoint`). Extra state of modules is as in
    :func:`state_tensors`. ``NAME`` is one of torchvision's, such as
    ``torchvision:ResNet18_Weights.IMAGENET1K_V1``; its file is downloaded once, checked, and kept
    where ``torch.hub`` keeps its files. Raises :class:`InputError` where the source cannot be found
    or read.
    """
    scheme, colon, name = str(source).partition(":")
    if isinstance(source, str) and colon and scheme == "torchvision":
        return _from_hub(name)
    path = Path(source)
    tensors = _read_file(path)
    for name in tensors:
        if len(name) > 1000 or not name.isprintable():  # names appear in messages
            raise InputError(f"{path} holds a tensor of the name {name[:100]!r}: it is damaged")
    return tensors


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        return _as_tensors(read_checkpoint(path), str(path))
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"no weights file {path}") from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(
            f"{path} is no safetensors file that can be read: {first_line(error)[:160]}"
        ) from error


def state_tensors(network: nn.Module) -> dict[str, Tensor]:
    """All of a network's state as tensors, by the names of its ``state_dict``.

    Extra state of modules (``get_extra_state``) that is no tensor is given as the bytes, uint8, of
    its JSON text, provided that JSON restores it exactly. Raises :class:`InputError` naming any
    value that is neither such state nor a dense tensor, since it could not be stored in a file or
    hashed.
    """
    tensors = _as_tensors(network.state_dict(), "the network")
    for name, value in tensors.items():
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise InputError(f"{name} of the network has no numbers yet: run it once on a batch")
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "meta" if value.is_meta else "quantised" if value.is_quantized else "sparse"
            raise InputError(f"{name} of the network is a {kind} tensor, expected a dense one")
    return tensors


def _as_tensors(state: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    tensors = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif _is_extra(name):
            tensors[name] = _encoded(name, value, source)
        else:
            raise InputError(
                f"{name} of {source} is of type {type(value).__name__}, and no tensor: dynamically "
                "quantised layers and the like can neither be retrained nor recorded"
            )
    return tensors


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, object]) -> str:
    """Write a network's tensors and JSON metadata to a safetensors file, all or nothing.

    A tensor that several modules share is written once. Returns the SHA-256 of the file. Raises
    :class:`StoreError` where the file cannot be written; an older file then stays as it was.
    """
    shared = _shared(network)
    state = {n: v for n, v in state_tensors(network).items() if n not in shared}
    tensors = {n: v.detach().cpu().contiguous().clone() for n, v in state.items()}
    return write_tensors(tensors, path, {k: json.dumps(v) for k, v in metadata.items()})


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> str:
    """Write a safetensors file, all or nothing, with the permissions of any new file.

    Returns the SHA-256 of the file. Raises :class:`StoreError` where the file cannot be written; an
    older file then stays as it was.
    """
    try:
        # The files of safetensors' own writer can be read by their owner only.
        content = save(dict(tensors), dict(metadata or {}))
    except SafetensorError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_metadata(path: Path) -> dict[str, object]:
    """The metadata of :func:`save_weights`; raises :class:`StoreError` for a damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {k: parse_json(v) for k, v in (file.metadata() or {}).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {error}; move it away to make it anew") from error


def weights_sha256(network: nn.Module) -> str:
    """The SHA-256 of the names, shapes and values of all tensors: the identity of a network."""
    digest = hashlib.sha256()
    for name, value in state_tensors(network).items():
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()


def architecture_sha256(network: nn.Module) -> str:
    """The SHA-256 of what a network computes with its tensors.

    It covers module names, types and settings; the traced operations in training and evaluation
    mode; buffers (including those that no checkpoint holds); which parameters train; and the source
    text of the classes that are not torch's own.
    """
    digest = hashlib.sha256()
    for name, module in network.named_modules():
        kind = type(module)
        digest.update(f"{name} {kind.__module__}.{kind.__qualname__}".encode())
        digest.update(module.extra_repr().encode())
        if not kind.__module__.startswith("torch."):
            with suppress(OSError, TypeError):  # code typed at a prompt has no source text
                digest.update(inspect.getsource(kind).encode())
            for key, value in sorted(vars(module).items()):
                if isinstance(value, Tensor):
                    digest.update(key.encode() + _bytes(value))
                elif key != "training" and _is_plain(value):
                    digest.update(f"{key}={value!r}".encode())
    modes = [(module, module.training) for module in network.modules()]
    for mode in (True, False):
        with suppress(Exception):  # find_groups has its own message for what it cannot follow
            traced = trace(network.train(mode))
            digest.update(traced.code.encode())
            for name, constant in traced.named_buffers():
                if name.startswith("_tensor_constant"):  # the code has only its name
                    digest.update(name.encode() + _bytes(constant))
    for module, training in modes:
        module.training = training
    for name, buffer in network.named_buffers():
        digest.update(name.encode())
        digest.update(_bytes(buffer))
    trains = [name for name, p in network.named_parameters() if p.requires_grad]
    digest.update(" ".join(trains).encode())
    return digest.hexdigest()


def _shared(network: nn.Module) -> dict[str, str]:
    """The further names of shared parameters and buffers, each with the first name."""
    found: dict[int, str] = {}
    shared = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and (first := found.setdefault(id(value), name)) != name:
            shared[name] = first
    return shared


def _is_plain(value: object) -> bool:
    """Whether a value's ``repr`` determines the value."""
    if isinstance(value, tuple):
        return all(_is_plain(one) for one in value)
    return isinstance(value, int | float | str | None)


def _bytes(tensor: Tensor) -> bytes:
    dense = tensor.detach().cpu() if tensor.layout == torch.strided else tensor.detach().to_dense()
    if dense.is_quantized:
        dense = dense.dequantize()
    # A conjugate or negative may be a lazy view, whose memory still holds the original numbers.
    numbers = dense.cpu().resolve_conj().resolve_neg().contiguous()
    return numbers.flatten().view(torch.uint8).numpy().tobytes()


def _is_extra(name: str) -> bool:
    return name.endswith(EXTRA_STATE)


def _encoded(name: str, value: object, source: str) -> Tensor:
    """Extra state as bytes; raises :class:`InputError` where JSON does not restore it."""
    try:
        text = json.dumps(value)
        is_kept = json.loads(text) == value
    except (TypeError, ValueError, RecursionError):
        is_kept = False
    if not is_kept:
        raise InputError(
            f"{name} of {source} is extra state of type {type(value).__name__} that cannot be "
            "recorded: expected a tensor, or numbers, texts, lists and dictionaries as JSON has"
        )
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _decoded(extra: Tensor) -> Any:
    return parse_json(bytes(extra.tolist()))


def _converted(name: str, value: Tensor, dtype: torch.dtype, source: object) -> tuple[Tensor, bool]:
    """A file's tensor in the network's type, and whether it had to be rounded."""
    where = f"{name} in {source}"
    if value.is_meta or value.is_nested or value.is_quantized:
        kind = "meta" if value.is_meta else "nested" if value.is_nested else "quantised"
        raise InputError(
            f"{where} is a {kind} tensor ({_type(value.dtype)}), expected {_type(dtype)} numbers"
        )
    if _kind(value.dtype) != _kind(dtype):
        raise InputError(
            f"{where} is {_type(value.dtype)}, and the network's {_type(dtype)}: no conversion "
            "gives what was meant"
        )
    if value.layout != torch.strided:
        value = value.to_dense()
    if value.dtype == dtype:
        return value, False
    made = value.to(dtype)
    before, after = (one.to(_kind(dtype)) for one in (value, made))
    changed = (before != after) & ~(before.isnan() & after.isnan())
    beyond = changed if _kind(dtype) == torch.int64 else changed & ~after.isfinite()
    if beyond.any():
        raise InputError(
            f"{where} is {_type(value.dtype)} and holds numbers beyond the network's {_type(dtype)}"
        )
    return made, bool(changed.any())


def _kind(dtype: torch.dtype) -> torch.dtype:
    """The widest of the types that hold numbers of the same kind."""
    if dtype in (torch.bool, torch.uint64):  # no other type holds these
        return dtype
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else torch.int64


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _named_as(
    network: nn.Module,
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source: object,
) -> dict[str, Tensor]:
    """A file's tensors by the network's names, as far as the file's names can be matched.

    A prefix that all names share is removed where all names fit without it.
    """
    rules = _rules(network)
    prefix, names = "", list(tensors)
    fitting = {name: _renamed(name, expected, rules) for name in names}
    while names and not all(name in expected for name in fitting.values()):
        first = names[0].partition(".")[0] + "."
        if not all(name.startswith(first) for name in names):
            return _by_name({n: _renamed(n, expected, rules) for n in tensors}, tensors, source)
        prefix += first
        names = [name.removeprefix(first) for name in names]
        fitting = {prefix + name: _renamed(name, expected, rules) for name in names}
    return _by_name(fitting, tensors, source)


def _by_name(
    names: Mapping[str, str], tensors: Mapping[str, Tensor], source: object
) -> dict[str, Tensor]:
    named: dict[str, str] = {}
    for theirs, ours in names.items():
        if ours in named:
            raise InputError(f"{source} holds {ours} twice: as {named[ours]} and as {theirs}")
        named[ours] = theirs
    return {ours: tensors[theirs] for ours, theirs in named.items()}


def _rules(network: nn.Module) -> list[tuple[str, str]]:
    """Regular expressions and their replacements, to apply to a file's names in this order."""
    rules = list(_RENAMED)
    if isinstance(network, nn.Sequential):
        # The paper's code and torchvision number the layers of VGGs, in the same order as here.
        rules += [
            (rf"^features\.{number}\.", f"{name}.") for number, name in enumerate(network._modules)
        ]
    return rules


def _renamed(name: str, expected: Container[str], rules: Sequence[tuple[str, str]]) -> str:
    """A tensor's name in the network; the file's name where no replacement leads to a known one."""
    made, before = name, ""
    while made != before:
        before = made
        for pattern, replacement in rules:
            if made in expected:
                return made
            made = re.sub(pattern, replacement, made)
    return made if made in expected else name


def _from_hub(name: str) -> dict[str, Tensor]:
    """The weights that torchvision offers by this name, downloaded or from torch.hub's cache."""
    reference = f"torchvision:{name}"
    try:
        from torchvision import models
    except Exception as error:  # with a torch of another release its import can raise anything
        raise InputError(
            f"network.weights = {reference!r} is read through torchvision, which does not import "
            f"({first_line(error)}): pip install '.[vision]'"
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
