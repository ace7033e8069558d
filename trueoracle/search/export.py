"""The chosen network as a file: physically smaller, retrained, and built again from two lines.

``.safetensors`` holds weights and what :func:`load` needs to build the network around them;
``.onnx`` and ``.pt2`` (``torch.export``) hold the computation itself, for any number of images.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.networks.registry import build
from trueoracle.networks.weights import load_weights, read_metadata, save_weights
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.unstructured import unmasked
from trueoracle.pruning.walk import find_groups
from trueoracle.version import __version__

__all__ = ["Origin", "check_export", "export", "load"]

FORMAT = 1


@dataclass(frozen=True)
class Origin:
    """What a pruned network was made of: its dense network, and what was taken away.

    ``name`` is None for a network given in Python. ``input_shape`` is one image's, ``(C, H, W)``;
    ``pruned`` maps groups to their pruned filters, and is empty where single weights are zero.
    """

    name: str | None
    arguments: Mapping[str, Any]
    input_shape: tuple[int, ...]
    classes: int
    pruned: Mapping[str, tuple[int, ...]]


def export(
    network: nn.Module, path: Path, origin: Origin, facts: Mapping[str, object] | None = None
) -> Path:
    """Write ``network`` in the format that the file's ending says, all or nothing.

    ``facts`` go into the metadata of ``.safetensors``. Raises what :func:`check_export` raises,
    :class:`InputError` for a network that cannot be exported so, and :class:`StoreError` where the
    file cannot be written.
    """
    check_export(path)
    plain = unmasked(network).cpu().eval()
    for parameter in plain.parameters():
        parameter.grad = None
    _WRITERS[path.suffix](plain, path, origin, dict(facts or {}))
    return path


def check_export(path: Path) -> None:
    """Refuse, before long work, a file that could not be written in the end: one line says why."""
    if path.suffix not in _WRITERS:
        raise InputError(
            f"a network is exported as {', '.join(_WRITERS)}, by the file's ending; got {path}"
        )
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to export to")
    if path.suffix == ".onnx":
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(
                f"{path}: ONNX needs {error.name}: pip install 'trueoracle[export]'"
            ) from error


def load(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """The network of a ``.safetensors`` file written by ``trueoracle search --export``.

    In evaluation mode, on the CPU. ``network`` is the dense architecture, with any weights, where
    the search was given it in Python; it stays as it is. Raises :class:`InputError` for a missing
    file, another one, and a network that cannot be built or does not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no file {path}")
    known = read_metadata(path)
    if "origin" not in known:
        raise InputError(f"{path} was not written by 'trueoracle search --export'")
    fields: dict[str, Any] = known["origin"]  # type: ignore[assignment]
    if fields.get("format") != FORMAT:
        raise InputError(
            f"{path} has format {fields.get('format')}, and this trueoracle reads {FORMAT}"
        )
    shape = tuple(fields["input_shape"])
    if network is not None:
        dense = copy.deepcopy(network).cpu()
    elif fields["name"] is None:
        raise InputError(
            f"{path} prunes a network that was given in Python: trueoracle.load(path, network=…)"
        )
    else:
        with torch.random.fork_rng(devices=[]):  # whoever loads has random numbers of his own
            dense = build(
                fields["name"], fields["arguments"], input_shape=shape, classes=fields["classes"]
            )
    made = _cut(dense, fields["pruned"], shape, path)
    load_weights(made, path)
    return made.eval()


def _cut(
    dense: nn.Module, pruned: Mapping[str, list[int]], shape: tuple[int, ...], path: Path
) -> nn.Module:
    """The shape that is left: which filters go does not matter, since weights are loaded."""
    if not pruned:
        return dense
    groups = find_groups(dense, _example(shape)).groups
    for name, filters in pruned.items():
        if name not in groups or max(filters) >= groups[name].filters:
            raise InputError(f"{path} does not fit the network: it has no such filters of {name}")
    kept = {
        name: np.setdiff1d(np.arange(groups[name].filters), filters)
        for name, filters in pruned.items()
    }
    return prune(dense, [groups[name] for name in pruned], kept)


def _example(shape: tuple[int, ...]) -> Tensor:
    """A few images: one alone would be taken for a number of images that is fixed."""
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def _safetensors(
    network: nn.Module, path: Path, origin: Origin, facts: Mapping[str, object]
) -> None:
    versions = {"trueoracle": __version__, "torch": torch.__version__}
    save_weights(
        network, path, {"origin": {"format": FORMAT, **asdict(origin)}, **versions, **facts}
    )


def _pt2(network: nn.Module, path: Path, origin: Origin, _: Mapping[str, object]) -> None:
    images = torch.export.Dim("images", min=1)

    def write(target: Path) -> None:
        program = torch.export.export(
            network, (_example(origin.input_shape),), dynamic_shapes=({0: images},)
        )
        torch.export.save(program, target)

    _written(write, path, "torch.export")


def _onnx(network: nn.Module, path: Path, origin: Origin, _: Mapping[str, object]) -> None:
    def write(target: Path) -> None:
        program = torch.onnx.export(
            network,
            (_example(origin.input_shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )
        if program is None:
            raise RuntimeError("nothing came out")
        program.save(target)

    _written(write, path, "ONNX")


_WRITERS: dict[str, Callable[[nn.Module, Path, Origin, Mapping[str, object]], None]] = {
    ".safetensors": _safetensors,
    ".onnx": _onnx,
    ".pt2": _pt2,
}


def _written(write: Callable[[Path], None], path: Path, what: str) -> None:
    """Write beside the file and put it in its place; an older one stays where that fails."""
    # The ending is kept: the writers go by it.
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with _quiet():
            write(temporary)
        temporary.replace(path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error}") from error
    except Exception as error:  # the network's own forward is traced: anything can come out
        raise InputError(
            f"the network cannot be exported to {what}: {first_line(error)}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch's exporters warn of: their own insides, which nobody here can mend."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
