"""Networks that others made and trained: ``hf:``, ``timm:`` and ``torchvision:`` names.

``hf:FOLDER`` and ``hf:ORGANISATION/NAME`` are built by transformers from a folder with a config and
safetensors, which is downloaded where it is missing (:mod:`trueoracle.spec.hub`); code in such a
folder is never run. ``timm:NAME`` and ``torchvision:NAME`` are networks of these libraries, with
the weights that the libraries offer. With ``pretrained = false`` all of them begin with random
weights, which are trained here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from trueoracle.errors import InputError, first_line, shown, unknown
from trueoracle.files import parse_json
from trueoracle.networks import tinyllava
from trueoracle.spec.hub import CONFIG, HF, TIMM, TORCHVISION, folder_of

__all__ = [
    "build_from_config",
    "build_pretrained",
    "import_transformers",
    "processor_of",
    "quiet",
    "read_config",
]

_ARGUMENTS = ("attn_implementation", "dtype", "pretrained", "revision")
"""The names that ``network.arguments`` may contain for a network ``hf:…``."""

_OF_FILES = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")
"""Arguments of timm's networks that name files, which may be pickles."""

_IMPLEMENTATION = "_implementation"
"""The ending of the fields of a config that choose code."""

_DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")

_KINDS = {
    "AutoModelForImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "AutoModelForCausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "AutoModelForImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AutoModelForSequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
"""The transformers classes whose networks can be pruned, and where transformers lists these."""


def build_pretrained(
    name: str, arguments: Mapping[str, Any], *, input_shape: tuple[int, ...], classes: int
) -> nn.Module:
    """The network of a name ``hf:…``, ``timm:…`` or ``torchvision:…``.

    ``input_shape`` (of one example) and ``classes`` matter only where timm or torchvision builds a
    network that is to be trained here; with 0 classes the network keeps its usual number. Raises
    :class:`InputError`, in one line, where the library, the network, its files or an argument is
    not available.
    """
    given = dict(arguments)
    for argument in _OF_FILES if not name.startswith(HF) else ():
        if argument in given:
            raise InputError(
                f"network {name!r} takes no {argument}, whose file could run code: network.weights "
                "takes a file of weights, which is read as data"
            )
    pretrained = given.pop("pretrained", True)
    if not isinstance(pretrained, bool):
        raise InputError(f"pretrained of network {name!r} takes true or false, got {pretrained!r}")
    scheme, _, named = name.partition(":")
    if f"{scheme}:" == HF:
        return _from_transformers(named, given, pretrained)
    if not pretrained and classes:
        given.setdefault("num_classes", classes)
    if f"{scheme}:" == TIMM:
        if not pretrained and len(input_shape) == 3:
            given.setdefault("in_chans", input_shape[0])
        return _from_timm(named, given, pretrained)
    return _from_torchvision(named, given, pretrained)


def build_from_config(config: Mapping[str, Any], what: str) -> nn.Module:
    """The untrained transformers network of a config, given as in ``config.json``.

    Raises :class:`InputError`, naming ``what`` the config belongs to, where there is no such
    network.
    """
    transformers = import_transformers(what)
    _check_config(config, what)
    is_tiny = config.get("architectures") == [tinyllava.ARCHITECTURE]
    kind = None if is_tiny else getattr(transformers, _kind(what, config))
    try:
        with quiet():
            if kind is None:
                return tinyllava.build_tinyllava(config)
            made = transformers.AutoConfig.for_model(**config)
            network: nn.Module = kind.from_config(
                made, trust_remote_code=False, dtype=config.get("dtype") or "float32"
            )
    except Exception as error:  # the config's numbers may not fit together
        raise InputError(f"the network of {what} cannot be built: {first_line(error)}") from error
    return network


def processor_of(name: str, revision: str | None = None) -> Any:
    """The processor or tokenizer that makes the inputs of a network ``hf:…``.

    For an image-and-text network this is its ``ProcessorMixin`` (with ``.tokenizer``), for a
    language model its tokenizer, for an image classifier its image processor. ``name`` may be given
    without ``hf:``. Raises :class:`InputError` where the files are not available or contain none of
    these.
    """
    named = name.removeprefix(HF)
    folder = folder_of(named, revision, _in_silence)
    transformers = import_transformers(f"{HF}{named}")
    try:
        with quiet():
            if (config := read_config(folder)).get("model_type") == tinyllava.MODEL_TYPE:
                return tinyllava.tinyllava_processor(folder, config)
            return transformers.AutoProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # a folder may hold anything
        raise InputError(
            f"{HF}{named} has no tokenizer or processor that transformers reads: "
            f"{first_line(error)}"
        ) from error


def import_transformers(what: str) -> Any:
    """Import transformers; raises :class:`InputError`, naming ``what``, if it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{what} needs transformers: pip install '.[transformers]'") from error
    return transformers


@contextmanager
def quiet() -> Iterator[None]:
    """Within the block, transformers shows no progress bars and no remarks.

    The remarks that matter are raised as errors here.
    """
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a network's ``config.json``; raises :class:`InputError` if it is damaged."""
    try:
        read = parse_json((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {folder / CONFIG}: {first_line(error)}") from error
    if not isinstance(read, dict):
        raise InputError(f"{folder / CONFIG} is no network's config: expected a JSON object")
    _check_config(read, str(folder / CONFIG))
    return read


def _check_config(config: object, what: str, within: str = "") -> None:
    """Refuse a config by which transformers or timm would run code that comes with no library.

    That is attention in a repository of kernels (``ORGANISATION/NAME``), and a file for timm, which
    may be a pickle.
    """
    if isinstance(config, list):
        for value in config:
            _check_config(value, what, within)
    for key, value in config.items() if isinstance(config, Mapping) else ():
        # Configs on the hub have a pretrained_cfg, which is used where it is an argument only.
        is_file = key in _OF_FILES and (key != "pretrained_cfg" or within.endswith("args"))
        if is_file or (key.endswith(_IMPLEMENTATION) and _has_slash(value)):
            raise InputError(f"{what} says {key} = {shown(value)}, which could run code of others")
        _check_config(value, what, key)


def _has_slash(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_slash, value.values()))
    return isinstance(value, str) and "/" in value


def _in_silence(_: str) -> None:
    """Report no download: a study and ``inspect`` have announced it before."""


def _from_transformers(named: str, given: dict[str, Any], pretrained: bool) -> nn.Module:
    name = f"{HF}{named}"
    for argument in given:
        if argument not in _ARGUMENTS:
            raise unknown(f"argument of network {name!r}", argument, _ARGUMENTS)
    if _has_slash(given.get("attn_implementation")):
        raise InputError(
            f"attn_implementation of network {name!r} is one of transformers' own, such as "
            f"'eager', got {given['attn_implementation']!r}: code of others is not run"
        )
    if (dtype := given.setdefault("dtype", "float32")) not in _DTYPES:
        raise unknown(f"dtype of network {name!r}", str(dtype), _DTYPES)
    folder = folder_of(named, given.pop("revision", None), _in_silence)
    transformers, config = import_transformers(name), read_config(folder)
    if config.get("model_type") == tinyllava.MODEL_TYPE:
        with quiet():
            return tinyllava.load_tinyllava(folder, config, **given)
    kind = getattr(transformers, _kind(name, config))
    if "quantization_config" in config:
        raise InputError(f"{name} holds quantised weights, which cannot be pruned and retrained")
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        with quiet():
            if not pretrained:
                made = transformers.AutoConfig.from_pretrained(str(folder), **safe)
                network: nn.Module = kind.from_config(made, trust_remote_code=False, **given)
                return network
            network, about = kind.from_pretrained(
                str(folder), use_safetensors=True, output_loading_info=True, **safe, **given
            )
    except Exception as error:  # a damaged file, or an argument that the network does not take
        raise InputError(f"network {name!r} cannot be built: {first_line(error)}") from error
    # transformers initialises missing weights at random and only logs a remark.
    if missing := sorted(about["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{name} lacks the weights {missing[0]}{more}: it is not a whole network")
    return network.train()


def _kind(name: str, config: Mapping[str, Any]) -> str:
    """The class of transformers that builds a network, by the architecture that it names."""
    from transformers.models.auto import modeling_auto

    said = config.get("architectures")
    architecture = said[0] if isinstance(said, list) and said else None
    for kind, listed in _KINDS.items():
        found = getattr(modeling_auto, listed).get(config.get("model_type"), ())
        if architecture in ((found,) if isinstance(found, str) else found):
            return kind
    raise InputError(
        f"{name} is of architecture {architecture!r} (model_type {config.get('model_type')!r}), "
        "which is none of transformers' for causal language models, image-text-to-text, image "
        "classification or sequence classification"
    )


def _from_timm(named: str, given: dict[str, Any], pretrained: bool) -> nn.Module:
    name = f"{TIMM}{named}"
    try:
        import timm
    except Exception as error:  # timm needs torchvision, whose import can raise anything
        raise InputError(
            f"{name} needs timm, which does not import ({first_line(error)}): "
            "pip install '.[vision]'"
        ) from error
    if not timm.is_model(named):
        raise unknown("network of timm", named, timm.list_models())
    return _made(lambda: timm.create_model(named, pretrained=pretrained, **given), name, pretrained)


def _from_torchvision(named: str, given: dict[str, Any], pretrained: bool) -> nn.Module:
    name = f"{TORCHVISION}{named}"
    try:
        from torchvision import models
    except Exception as error:  # with a torch of another release its import can raise anything
        raise InputError(
            f"{name} needs torchvision, which does not import ({first_line(error)}): "
            "pip install '.[vision]'"
        ) from error
    if named not in (known := models.list_models()):
        raise unknown("network of torchvision", named, known)
    given.setdefault("weights", "DEFAULT" if pretrained else None)
    return _made(lambda: models.get_model(named, **given), name, pretrained)


def _made(make: Callable[[], nn.Module], name: str, pretrained: bool) -> nn.Module:
    try:
        return make()
    except Exception as error:  # no connection, no such argument
        by_hand = (
            "; where its weights cannot be downloaded, give a file of them as network.weights"
            if pretrained and isinstance(error, OSError | RuntimeError)
            else ""
        )
        raise InputError(
            f"network {name!r} cannot be built: {first_line(error)}{by_hand}"
        ) from error
