"""A pruned network of transformers as a folder, which other tools for transformers accept.

Where every layer has lost as much, ``from_pretrained`` alone loads the folder, since the config has
the smaller sizes. Otherwise :func:`trueoracle.load` does. Which of them loads it is tried on the
files, and written down in ``trueoracle.json``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.files import parse_json
from trueoracle.networks.fitting import fitted_config
from trueoracle.networks.pretrained import quiet
from trueoracle.networks.weights import save_weights
from trueoracle.spec.hub import CONFIG, commit_of
from trueoracle.tasks.base import Batch, inputs_of, unwrap

__all__ = ["FACTS", "check_folder", "is_plain", "write_folder"]

FACTS = "trueoracle.json"
"""The file beside a network's own files that has facts of the study and of the pruning."""

WEIGHTS = "model.safetensors"

_TOLERANCE = 1e-5
"""The tolerance, relative to the largest output: operations and numbers are the same."""

_NOT_COPIED = (".bin", ".h5", ".md", ".msgpack", ".onnx", ".pt", ".pth", ".py", ".safetensors")
_OWN = (CONFIG, FACTS, "generation_config.json", "model.safetensors.index.json")


def check_folder(path: Path) -> None:
    """Refuse, before long work, a folder that could not be written in the end."""
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to export to")
    if path.is_file():
        raise InputError(f"{path} is a file: an export without an ending is a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / FACTS).is_file():
        raise InputError(f"{path} holds other files: an export takes a folder of its own")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: permission denied")


def write_folder(
    network: nn.Module,
    path: Path,
    facts: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    source: Path | None,
    files: Mapping[str, str],
    example: Batch,
) -> None:
    """Write ``network``, its config, tokenizer and ``facts``, whole or not at all.

    ``network`` is changed by it. ``config`` is that of the dense network. The tokenizer and
    processor are copied from the folder ``source``; ``files`` are those of the tokenizer that the
    network was trained with. ``example`` is a batch on which the network is compared with what
    from_pretrained loads. Raises :class:`StoreError` where the folder cannot be written.
    """
    check_folder(path)
    with _replacing(path) as draft:
        plain = _write_plain(network, draft) and _loads(draft, network, example)
        if not plain:
            _write_own(network, draft, config)
        if source is not None:
            _copy_others(source, draft)
        for name, text in files.items():
            (draft / name).write_text(text, encoding="utf-8")
        text = json.dumps({"from_pretrained": plain, **facts}, allow_nan=False, indent=1)
        (draft / FACTS).write_text(text, encoding="utf-8")


def is_plain(path: Path) -> bool:
    """Whether from_pretrained alone loads an export; raises :class:`InputError` if it is none."""
    return bool(read_facts(path)["from_pretrained"])


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that an export has; raises :class:`InputError` where they cannot be read."""
    try:
        facts = parse_json((path / FACTS).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} was not written by 'trueoracle search --export'") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path / FACTS} is damaged: {first_line(error)}") from error
    if not isinstance(facts, dict) or "from_pretrained" not in facts:
        raise InputError(f"{path / FACTS} is damaged: it does not say how to load the network")
    return facts


def _write_plain(network: nn.Module, draft: Path) -> bool:
    """Write the network as transformers does, if some config has its sizes; returns whether."""
    config = fitted_config(network)
    if config is None:
        return False
    owner: Any = network
    owner.config = config
    with quiet():
        owner.save_pretrained(draft)
    return True


def _loads(draft: Path, network: nn.Module, example: Batch) -> bool:
    """Whether from_pretrained gives a network with the same outputs."""
    import transformers

    kind: Any = getattr(transformers, type(network).__name__, None)
    try:
        with quiet():
            again, about = kind.from_pretrained(
                str(draft),
                dtype=next(network.parameters()).dtype,
                local_files_only=True,
                output_loading_info=True,
            )
        args, kwargs = inputs_of(network, example)
        with torch.no_grad():
            ours, theirs = (unwrap(one.eval()(*args, **kwargs)) for one in (network, again))
    except Exception:  # the network is then written the other way
        return False
    if about["missing_keys"] or ours.shape != theirs.shape:
        return False
    return bool((ours - theirs).abs().max() <= _TOLERANCE * ours.abs().max())


def _write_own(network: nn.Module, draft: Path, config: Mapping[str, Any]) -> None:
    """Write the tensors by the modules' names, and the dense network's config."""
    for path in draft.iterdir():
        path.unlink()
    (draft / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
    if (generation := getattr(network, "generation_config", None)) is not None:
        with suppress(Exception), quiet():  # a setting that is refused need not be kept
            generation.save_pretrained(draft)
    save_weights(network, draft / WEIGHTS, {})


def _copy_others(source: Path, draft: Path) -> None:
    """Copy the tokenizer's and processor's files, whatever their names are.

    A link out of the folder could lead to any file of the user's, and an export goes to others: it
    is not copied, which is warned of. A snapshot in the hub's cache consists of links to the files
    of its repository there.
    """
    root = (source.parent.parent if commit_of(source) else source).resolve()
    for path in sorted(source.iterdir()):
        if not path.is_file() or path.suffix in _NOT_COPIED or path.name in _OWN:
            continue
        if (leads := path.resolve()).is_relative_to(root):
            shutil.copyfile(path, draft / path.name)
        else:
            warnings.warn(
                f"{path} is not exported: it is a link out of its folder, to {leads}", stacklevel=2
            )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """An empty folder beside ``path`` that takes its place after the block, or is removed."""
    draft = path.parent / f".trueoracle-{secrets.token_hex(16)}"
    old = path.parent / f".trueoracle-{secrets.token_hex(16)}"
    try:
        draft.mkdir()
        yield draft
        if path.is_dir():
            path.replace(old)
        draft.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if old.is_dir() and not path.exists():
            old.replace(path)
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
