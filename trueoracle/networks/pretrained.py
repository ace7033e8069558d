"""Networks that others made and trained: ``hf:``, ``timm:`` and ``torchvision:`` names.

``hf:FOLDER`` and ``hf:ORGANISATION/NAME`` are built by transformers from a folder of config and
safetensors (:mod:`trueoracle.spec.hub`); code that lies in such a folder is never run.
``timm:NAME`` and ``torchvision:NAME`` are those libraries' networks with the weights that they
offer. With ``pretrained = false`` they begin with random weights and are trained here.
"""

from __future__ import annotations

from typing import Any

from trueoracle.errors import InputError, first_line
from trueoracle.spec.hub import HF, folder_of

__all__ = ["processor_of"]


def processor_of(name: str, revision: str | None = None) -> Any:
    """What belongs to a network ``hf:…`` to make its inputs: a processor, tokenizer or both.

    Of an image-and-text network its ``ProcessorMixin`` (with ``.tokenizer``), of a language model
    its tokenizer, of an image classifier its image processor. ``name`` may come without ``hf:``.
    Raises :class:`InputError` where the files cannot be had, or hold none of these.
    """
    named = name.removeprefix(HF)
    folder = folder_of(named, revision)
    transformers = import_transformers(f"{HF}{named}")
    try:
        return transformers.AutoProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a folder may hold anything
        raise InputError(
            f"{HF}{named} has no tokenizer or processor that transformers reads: "
            f"{first_line(error)}"
        ) from error


def import_transformers(what: str) -> Any:
    """The library; raises :class:`InputError`, for ``what``, where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"{what} needs transformers: pip install 'trueoracle[transformers]'"
        ) from error
    return transformers
