"""Tokenizers, which turn text to tokens: read from files, or trained on the training text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trueoracle.errors import InputError, StoreError, first_line
from trueoracle.files import write_text
from trueoracle.networks.pretrained import import_transformers, processor_of, quiet
from trueoracle.spec.hub import HF, snapshot_of

__all__ = ["IMAGE", "SPECIAL", "Tokenizer", "find_tokenizer", "is_trained"]

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
"""The first tokens of a tokenizer that is trained here, at Llama's default places."""

IMAGE = SPECIAL.index("<image>")
"""The token that stands for a part of an image, in tokenizers that are trained here."""

_UNKNOWN = "<unk>"
_TRAINED = re.compile(r"(bpe|words)(?::(\d+))?")
_LARGEST_VOCABULARY = 1_000_000
_BYTES = 256
_WORDS = 30_000


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer, and what a record says of it.

    - ``name``: its name in the study;
    - ``vocabulary``: the number of different tokens;
    - ``pad``, ``bos``, ``eos``: its tokens for padding (0 where it has none), for the beginning and
      for the end of a text (None where it has none);
    - ``begins``: whether it puts ``bos`` before a text by itself;
    - ``json``: the content of the tokenizer's file, where it has such a form; ``sha256`` is the
      hash of this content;
    - ``processor``: transformers' processor or tokenizer, where it is read and not trained here.
    """

    name: str
    vocabulary: int
    pad: int
    bos: int | None
    eos: int | None
    begins: bool
    json: str
    sha256: str
    encode: Callable[[Sequence[str]], list[list[int]]]
    """Texts to tokens; "<s>" in a text is ordinary text, and becomes no special token."""
    processor: Any = None

    def beginning(self, bos: str | None) -> list[int]:
        """The tokens at the beginning of each example: one token or none.

        ``bos`` is "one", "none", or None for what the tokenizer does by itself. Raises
        :class:`InputError` where one is asked for and the tokenizer has none.
        """
        if bos == "none" or (bos is None and not self.begins):
            return []
        if self.bos is None:
            raise InputError(
                f"data.bos = {bos!r}: tokenizer {self.name!r} has no beginning-of-text token"
            )
        return [self.bos]

    @property
    def files(self) -> dict[str, str]:
        """The files that transformers reads the tokenizer from, by name; may be none."""
        if not self.json:
            return {}
        written = {one["id"]: one["content"] for one in json.loads(self.json)["added_tokens"]}
        ids = {"pad_token": self.pad, "bos_token": self.bos, "eos_token": self.eos}
        said = {name: written[own] for name, own in ids.items() if own in written}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **said}
        return {"tokenizer.json": self.json, "tokenizer_config.json": json.dumps(config)}


def is_trained(name: str | None) -> bool:
    """Whether a tokenizer of that name is trained here: ``bpe:SIZE``, ``words``, ``words:SIZE``."""
    return name is not None and _TRAINED.fullmatch(name) is not None


def find_tokenizer(
    name: str | None,
    network: str,
    texts: Callable[[], Iterator[str]],
    text_sha256: str,
    cache: Path,
    revision: str | None = None,
) -> Tokenizer:
    """The tokenizer of a study.

    ``name`` is ``data.tokenizer``. Where it is None, the tokenizer of the ``network`` is read, in
    its ``revision`` on the hub. A tokenizer to be trained is trained on ``texts()``, whose hash is
    ``text_sha256``, and kept in ``cache``. Raises :class:`InputError` for a name without a
    tokenizer.
    """
    if name is not None and (made := _TRAINED.fullmatch(name)):
        return _trained(name, made[1], made[2], texts, text_sha256, cache)
    if name is None and not network.startswith(HF):
        raise InputError(
            f"data.tokenizer is needed: network {network!r} brings none; 'bpe:1024' or 'words' "
            "trains one on the training text, a path reads one"
        )
    if name is None:
        return _read(network, processor_of(network, revision))
    return _read(name, _tokenizer_of(name))


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "text is read with the package tokenizers: pip install '.[transformers]'"
        ) from error
    return tokenizers


def _trained(
    name: str,
    kind: str,
    size: str | None,
    texts: Callable[[], Iterator[str]],
    text_sha256: str,
    cache: Path,
) -> Tokenizer:
    library = _library()
    least = len(SPECIAL) + (_BYTES if kind == "bpe" else 1)
    vocabulary = int(size or (0 if kind == "bpe" else _WORDS))
    if not least <= vocabulary <= _LARGEST_VOCABULARY:
        raise InputError(
            f"data.tokenizer = {name!r}: expected {kind}:SIZE with {least} to "
            f"{_LARGEST_VOCABULARY:,} tokens"
        )
    key = hashlib.sha256(f"{kind} {vocabulary} {SPECIAL} {text_sha256}".encode()).hexdigest()
    file = cache / f"{kind}-{vocabulary}-{key[:16]}.json"
    made = None
    with suppress(Exception):  # a damaged file is treated as if there were none
        made = library.Tokenizer.from_file(str(file))
    if made is None:
        made = _train(library, kind, vocabulary, texts())
        with suppress(StoreError):  # the file only saves time
            write_text(file, made.to_str())
    # The name of a special token within a text is encoded as ordinary text.
    made.encode_special_tokens = True
    text = made.to_str()
    return Tokenizer(
        name,
        made.get_vocab_size(),
        pad=SPECIAL.index("<pad>"),
        bos=SPECIAL.index("<s>"),
        eos=SPECIAL.index("</s>"),
        begins=False,
        json=text,
        sha256=_sha256(text),
        encode=partial(_encode, made),
    )


def _train(library: Any, kind: str, vocabulary: int, texts: Iterator[str]) -> Any:
    """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909), or whole words."""
    models, before, trainers = library.models, library.pre_tokenizers, library.trainers
    common = {"vocab_size": vocabulary, "special_tokens": list(SPECIAL), "show_progress": False}
    if kind == "bpe":
        made = library.Tokenizer(models.BPE())
        made.pre_tokenizer = before.ByteLevel(add_prefix_space=False)
        made.decoder = library.decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=before.ByteLevel.alphabet(), **common)
    else:
        made = library.Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        made.pre_tokenizer = before.Whitespace()
        trainer = trainers.WordLevelTrainer(**common)
    made.train_from_iterator(texts, trainer)
    return made


def _read(name: str, processor: Any) -> Tokenizer:
    own = getattr(processor, "tokenizer", processor)
    if not callable(own) or not hasattr(own, "bos_token_id"):
        raise InputError(f"{name!r} has no tokenizer: {type(processor).__name__}")
    backend = getattr(own, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else ""
    begun = own("a")["input_ids"][:1]
    return Tokenizer(
        name,
        len(own),
        own.pad_token_id or 0,
        own.bos_token_id,
        own.eos_token_id,
        begins=own.bos_token_id is not None and begun == [own.bos_token_id],
        json=text,
        sha256=_sha256(text or repr(sorted(own.get_vocab().items()))),
        encode=partial(_encode_by_transformers, own),
        processor=processor,
    )


# A task may hold a tokenizer, and be sent to another process: functions of a module can be.


def _encode(made: Any, texts: Sequence[str]) -> list[list[int]]:
    return [one.ids for one in made.encode_batch_fast(list(texts))]


def _encode_by_transformers(own: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    found: list[list[int]] = own(
        list(texts),
        add_special_tokens=False,
        split_special_tokens=True,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    return found


def _tokenizer_of(name: str) -> Any:
    """Transformers' processor or tokenizer from a folder or the hub; code in it is never run."""
    transformers = import_transformers(f"tokenizer {name!r}")
    place = str(snapshot_of(name, download=lambda _: None, weights=False))
    refusal = ""
    for kind in (transformers.AutoProcessor, transformers.AutoTokenizer):
        try:
            with quiet():
                return kind.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a folder may hold anything
            refusal = refusal or first_line(error)
    raise InputError(f"{name!r} has no tokenizer or processor that transformers reads: {refusal}")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
