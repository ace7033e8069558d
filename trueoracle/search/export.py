"""The chosen network as a file: physically smaller, retrained, and loaded by two lines of code.

``.safetensors`` holds the weights and what :func:`load` needs to build their network. ``.onnx`` and
``.pt2`` (``torch.export``) hold the computation itself, for any number of examples. A path without
an ending is a folder for transformers (:mod:`trueoracle.search.folder`).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.files import check_writable, parse_json, replacing
from trueoracle.networks import language
from trueoracle.networks.copying import copied
from trueoracle.networks.fitting import config_of, plain_config, sections
from trueoracle.networks.pretrained import build_from_config, build_pretrained
from trueoracle.networks.registry import NETWORKS, build
from trueoracle.networks.weights import load_weights, save_weights
from trueoracle.pruning.candidates import Units
from trueoracle.pruning.held import unmasked
from trueoracle.pruning.stacks import cut_layers, find_stacks
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups
from trueoracle.search.folder import WEIGHTS, check_folder, read_facts, write_folder
from trueoracle.spec.hub import HF, folder_of, is_of_library
from trueoracle.tasks.base import INPUT, Batch, as_input, inputs_of
from trueoracle.version import __version__

__all__ = ["Origin", "check_export", "export", "is_known", "load"]

FORMAT = 2

_IMAGES = ["images"]
"""The name of a single input in an ONNX file, the same as in files written before tasks existed."""

_TORCHVISION = "torchvision.models:"


Inputs = Mapping[str, tuple[tuple[int, ...], str]]
"""The shape of each field, without the axis of examples, and its type."""


@dataclass(frozen=True)
class Origin:
    """What a pruned network was made of: its dense network, and what was taken away.

    - ``name`` is None for a network given in Python;
    - ``inputs`` has each input field's shape, without the axis of examples, and its type;
    - ``outputs`` is the number of outputs (such as classes) that a registered network is built for;
      None where the network was given in Python;
    - ``pruned`` maps groups to their pruned filters or, where ``units`` is "layers", lists of
      layers to the places of those that are taken out; it is empty where single weights are zero;
    - ``values`` has a few examples of the inputs that are whole numbers, such as tokens, for which
      not every number is valid;
    - ``config`` is that of a dense network of transformers.
    """

    name: str | None
    arguments: Mapping[str, Any]
    inputs: Inputs
    outputs: int | None
    pruned: Mapping[str, tuple[int, ...]]
    units: Units = "filters"
    values: Mapping[str, list[Any]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None


def export(
    network: nn.Module,
    path: Path,
    origin: Origin,
    facts: Mapping[str, object] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write ``network`` in the format of the file's ending, whole or not at all.

    ``facts`` go into the metadata of ``.safetensors`` and into a folder; ``files`` (texts by name)
    are written into a folder, too. Raises what :func:`check_export` raises, :class:`InputError` for
    a network that cannot be exported in this format, and :class:`StoreError` where the file cannot
    be written.
    """
    check_export(path)
    plain = unmasked(network).cpu().eval()
    for parameter in plain.parameters():
        parameter.grad = None
    if path.suffix in (".onnx", ".pt2") and (config := config_of(plain)) is not None:
        for section in sections(config):  # a cache for the next token is no output
            section.use_cache = False
    if path.suffix:
        _WRITERS[path.suffix](plain, path, origin, dict(facts or {}))
    else:
        _folder(plain, path, origin, dict(facts or {}), dict(files or {}))
    return path


def check_export(path: Path, name: str = "") -> None:
    """Refuse, before long work, a file that could not be written in the end: one line says why.

    ``name`` is that of the network, which may show that the network is none of transformers.
    """
    if path.suffix and path.suffix not in _WRITERS:
        raise InputError(
            f"a network is exported as {', '.join(_WRITERS)}, by the file's ending, or to a folder "
            f"for transformers, which has none; got {path}"
        )
    if not path.suffix:
        if not may_be_of_transformers(name):
            raise InputError(
                f"{path}: network {name!r} is none of transformers, of which alone a folder is "
                "written: give the file an ending, such as .safetensors"
            )
        check_folder(path)
        return
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to export to")
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, and an export is a file")
        check_writable(path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error}") from error
    if path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(f"{path}: ONNX needs {error.name}: pip install '.[export]'") from error


_Kind = Literal["float32", "float64", "float16", "bfloat16", "int64", "bool"]
"""The types that inputs may have."""


class _Stored(BaseModel):
    """An :class:`Origin` as read from a file, which anybody may have written."""

    model_config = ConfigDict(strict=True)

    name: str | None
    arguments: dict[str, Any]
    inputs: Annotated[
        dict[str, tuple[tuple[Annotated[int, Field(ge=1)], ...], _Kind]],
        Field(min_length=1),
    ]
    outputs: Annotated[int, Field(ge=1)] | None
    pruned: dict[str, Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]]
    units: Units = "filters"
    values: dict[str, list[Any]] = {}
    config: dict[str, Any] | None = None


def load(path: str | Path, network: nn.Module | None = None, *, trust: bool = False) -> nn.Module:
    """The network that ``trueoracle search --export`` wrote to a ``.safetensors`` file or a folder.

    The network is in evaluation mode, on the CPU. ``network`` is the dense architecture, with any
    weights, where the search was given one in Python; it is not changed. A file that names somebody
    else's ``module:factory`` is refused without ``network`` or ``trust``, since building that
    network runs their code; registered networks, those of ``torchvision.models`` and those of
    transformers need neither. Raises :class:`InputError` for a file that is missing, damaged or of
    another kind, and for a network that cannot be built or does not fit.
    """
    path = Path(path)
    if path.is_dir():
        facts = read_facts(path)
        if facts["from_pretrained"]:
            return build_pretrained(
                f"{HF}{path}", {"dtype": "auto"}, input_shape=(), classes=0
            ).eval()
        stored, weights = _origin(path, json.dumps(facts.get("origin"))), path / WEIGHTS
    else:
        stored, weights = _stored(path), path
    if network is not None:
        dense = copied(network).cpu()
    elif stored.config is not None:
        dense = build_from_config(stored.config, str(path))
    elif stored.name is None:
        raise InputError(
            f"{path} prunes a network that was given in Python: trueoracle.load(path, network=…)"
        )
    elif not trust and not is_known(stored.name):
        raise InputError(
            f"{path} would run {stored.name!r} to build its network: trueoracle.load(path, "
            "network=…) takes yours, and trust=True runs it"
        )
    else:
        dense = _built(stored.name, stored, path)
    cut = _without if stored.units == "layers" else _cut
    made = cut(dense, stored, path) if stored.pruned else dense
    load_weights(made, weights)
    return made.eval()


def _stored(path: Path) -> _Stored:
    if not path.is_file():
        raise InputError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("origin")
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"{path} is no safetensors file: {first_line(error)}") from error
    if text is None:
        raise InputError(f"{path} was not written by 'trueoracle search --export'")
    return _origin(path, text)


def _origin(path: Path, text: str) -> _Stored:
    """The origin of a network, as its file states it."""
    try:
        fields = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged: its origin is no JSON") from error
    if not isinstance(fields, dict):
        raise InputError(f"{path} was not written by 'trueoracle search --export'")
    if fields.get("format") == 1:  # this format was for classified images only
        shape, outputs = fields.pop("input_shape", None), fields.pop("classes", None)
        fields |= {"format": FORMAT, "inputs": {INPUT: [shape, "float32"]}, "outputs": outputs}
        text = json.dumps(fields)
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {fields.get('format')!r}, and this trueoracle reads {FORMAT}"
        )
    try:
        # Validated as JSON, in which a tuple is a list.
        return _Stored.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "what it says"
        raise InputError(f"{path} is damaged: origin, {where}: {first['msg']}") from error


def may_be_of_transformers(name: str) -> bool:
    """Whether a network of this name may be one of transformers.

    It may if the name is ``hf:…``, that of a shipped language model, or that of a user's own.
    """
    if is_of_library(name):
        return name.startswith(HF)
    return name not in NETWORKS or NETWORKS[name].__module__ == language.__name__


def is_known(name: str) -> bool:
    """Whether a file may name this network, since the name leads to nothing but a network's code.

    Such names are those registered in this process, those of a library's networks, and the builders
    that torchvision lists. A dot in a name could lead from torchvision's models to anything else.
    """
    if is_of_library(name):
        return True
    if not name.startswith(_TORCHVISION):
        return ":" not in name  # a name without a colon is never imported
    try:
        from torchvision import models
    except Exception:  # building the network then gives a better error
        return name.removeprefix(_TORCHVISION).isidentifier()
    return name.removeprefix(_TORCHVISION) in models.list_models(models)


def _built(name: str, stored: _Stored, path: Path) -> nn.Module:
    shape, _ = stored.inputs.get(INPUT) or stored.inputs.get("pixel_values") or ((), "")
    arguments, usual = stored.arguments, 1
    if is_of_library(name):  # its weights are in the file
        arguments, usual = {**arguments, "pretrained": False}, 0
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        try:
            return build(
                name,
                arguments,
                input_shape=shape,
                classes=stored.outputs or usual,
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error


def _cut(dense: nn.Module, stored: _Stored, path: Path) -> nn.Module:
    """The network in its pruned shape; weights are loaded later, so any filters can be cut."""
    pruned = stored.pruned
    try:
        groups = find_groups(dense, as_input(dense, _example(stored)), only=pruned).groups
    except Exception as error:  # sizes too large for memory, or sizes that do not fit
        raise InputError(f"{path} does not fit the network: {first_line(error)}") from error
    kept = {}
    for name, filters in pruned.items():
        if name not in groups or max(filters) >= groups[name].filters:
            raise InputError(f"{path} does not fit the network: it has no such filters of {name}")
        kept[name] = np.setdiff1d(np.arange(groups[name].filters), filters)
        if not len(kept[name]):
            raise InputError(f"{path} is damaged: it prunes every filter of {name}")
    return prune(dense, [groups[name] for name in pruned], kept)


def _without(dense: nn.Module, stored: _Stored, path: Path) -> nn.Module:
    """The network without the layers that were taken out."""
    try:
        stacks = find_stacks(dense, as_input(dense, _example(stored))).stacks
    except Exception as error:  # sizes too large for memory, or sizes that do not fit
        raise InputError(f"{path} does not fit the network: {first_line(error)}") from error
    gone = {}
    for name, places in stored.pruned.items():
        if name not in stacks or not set(places) <= set(stacks[name].places):
            raise InputError(f"{path} does not fit the network: it has no such layers of {name}")
        gone[name] = stacks[name], [stacks[name].places.index(place) for place in places]
    return cut_layers(dense, gone)


def _example(origin: Origin | _Stored) -> Batch:
    """A few examples, since a batch of one would be exported as a fixed number of examples."""
    made, generator = {}, torch.Generator().manual_seed(0)
    for name, (shape, kind) in origin.inputs.items():
        dtype: torch.dtype = getattr(torch, kind)
        if name in origin.values:
            made[name] = torch.tensor(origin.values[name], dtype=dtype)
            continue
        numbers = torch.rand(3, *shape, generator=generator)
        made[name] = (
            numbers.to(dtype) if dtype.is_floating_point else torch.ones(3, *shape, dtype=dtype)
        )
    return made


def _arguments(
    network: nn.Module, origin: Origin
) -> tuple[tuple[Tensor, ...], dict[str, Tensor], Any]:
    """Positional and keyword arguments to export with, and which of their axes may vary."""
    args, kwargs = inputs_of(network, _example(origin))
    varies = {0: torch.export.Dim("examples", min=1)}
    return args, kwargs, dict.fromkeys(kwargs, varies) if kwargs else tuple(varies for _ in args)


def _safetensors(
    network: nn.Module, path: Path, origin: Origin, facts: Mapping[str, object]
) -> None:
    versions = {"trueoracle": __version__, "torch": torch.__version__}
    save_weights(
        network, path, {"origin": {"format": FORMAT, **asdict(origin)}, **versions, **facts}
    )


def _pt2(network: nn.Module, path: Path, origin: Origin, _: Mapping[str, object]) -> None:
    args, kwargs, varies = _arguments(network, origin)

    def write(target: Path) -> None:
        program = torch.export.export(network, args, kwargs, dynamic_shapes=varies)
        torch.export.save(program, target)

    _written(write, path, "torch.export")


def _onnx(network: nn.Module, path: Path, origin: Origin, _: Mapping[str, object]) -> None:
    args, kwargs, varies = _arguments(network, origin)

    def write(target: Path) -> None:
        program = torch.onnx.export(
            network,
            args,
            kwargs=kwargs,
            dynamo=True,
            dynamic_shapes=varies,
            input_names=_IMAGES if [*origin.inputs] == [INPUT] else list(origin.inputs),
            output_names=["logits"],
            verbose=False,
        )
        if program is None:
            raise RuntimeError("nothing came out")
        program.save(target)

    _written(write, path, "ONNX")


def _folder(
    network: nn.Module,
    path: Path,
    origin: Origin,
    facts: Mapping[str, object],
    files: Mapping[str, str],
) -> None:
    config = origin.config or plain_config(network)
    if config is None:
        raise InputError(
            f"{path}: a folder is written of a network of transformers, and this one is of type "
            f"{type(network).__name__}; .safetensors can be written of any network"
        )
    source = None
    if origin.name is not None and origin.name.startswith(HF):
        with suppress(InputError):  # there is then nothing to copy
            source = folder_of(origin.name.removeprefix(HF), origin.arguments.get("revision"))
    about = {"trueoracle": __version__, "origin": {"format": FORMAT, **asdict(origin)}, **facts}
    write_folder(
        network, path, about, config=config, source=source, files=files, example=_example(origin)
    )


_WRITERS: dict[str, Callable[[nn.Module, Path, Origin, Mapping[str, object]], None]] = {
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".pt2": _pt2,
}


def _written(write: Callable[[Path], None], path: Path, what: str) -> None:
    """Write a file beside ``path`` and put it in its place; an older file stays if that fails."""
    try:
        with replacing(path) as draft, _quiet():
            write(draft)
    except StoreError:
        raise
    except Exception as error:  # the network's own forward is traced, which can raise anything
        raise InputError(
            f"the network cannot be exported to {what}: {_reason(error)}; .safetensors can be "
            "written of any network"
        ) from error


def _reason(error: BaseException) -> str:
    """The first cause of an error, without a terminal's colours."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return re.sub(r"\x1b\[[0-9;]*m", "", first_line(error))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what torch's exporters print of their internals, which users cannot act on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    nowhere = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
