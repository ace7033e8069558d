"""Splits for language models, and for models of images and text, from a study's fields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trueoracle.data.conversations import Conversations, Encoder, PlainEncoder, ProcessorEncoder
from trueoracle.data.questions import (
    Question,
    answer_without_images,
    find_questions,
    hold_out,
)
from trueoracle.data.splits import Splits, capped
from trueoracle.data.text import CONTEXT, PackedText, Text, as_parts, find_texts, pack
from trueoracle.data.tokens import Tokenizer, find_tokenizer
from trueoracle.errors import InputError, unknown
from trueoracle.spec.spec import QUESTIONS, TEXTS, DataSpec
from trueoracle.tasks.language import Answers, NextToken

__all__ = ["load_language"]

_MOST_LOOKED_AT = 20_000
"""The most questions that a processor encodes to find the longest, since it reads their images."""

_IMAGE_SIZE = 64
"""The default for networks without a processor, in pixels: the size of easy-VQA's images."""


def load_language(
    data: DataSpec, network: str, folder: Path, revision: str | None = None
) -> Splits:
    """The splits of text or questions, with what a record says of them (``Splits.facts``).

    ``network`` is the name of the study's network (``revision`` its revision on the hub); its
    tokenizer is read where the data names none. ``folder`` keeps trained tokenizers and the tokens
    of large texts. Raises :class:`InputError` for what cannot be read, and for fields that have no
    effect here.
    """
    if data.name in TEXTS:
        _refuse(data, "arguments", "image_folder", "image_tokens", "test", "image_size", "uint8")
        return _load_text(data, network, folder, revision)
    if data.name in QUESTIONS:
        _refuse(data, "arguments", "stretches", "stride", "uint8")
        return _load_questions(data, network, folder, revision)
    raise unknown("data set", data.name, TEXTS + QUESTIONS)


def _refuse(data: DataSpec, *fields: str) -> None:
    for name in fields:
        if (value := getattr(data, name)) not in (None, {}):
            raise InputError(f"data.{name} = {value!r} does nothing for data set {data.name!r}")


# Text


def _load_text(data: DataSpec, network: str, folder: Path, revision: str | None) -> Splits:
    if data.stride is not None and data.stride > (data.context or CONTEXT):
        raise InputError(
            f"data.stride = {data.stride} would leave out text: expected at most data.context = "
            f"{data.context or CONTEXT}"
        )
    texts = find_texts(data.name, data.path, data.columns)
    parts, sha256 = as_parts(
        texts,
        data.held_out,
        validation=data.validation_images > 0,
        stretches=data.stretches or 1,
    )
    size, training = parts["train"].measure()
    tokenizer = find_tokenizer(
        data.tokenizer,
        network,
        lambda: _of(parts["train"]),
        training,
        folder / "tokenizers",
        revision,
    )
    most = {
        "train": data.train_images,
        "validation": data.validation_images,
        "test": data.test_images,
    }
    splits: dict[str, PackedText] = {}
    for part, text in parts.items():
        # As large as the training text: what is mapped is all of it, or nothing.
        cut = f"{data.held_out} {data.stretches} {[*parts]} {part}"
        key = hashlib.sha256(f"{sha256} {tokenizer.sha256} {cut}".encode())
        made = pack(
            text,
            tokenizer,
            context=data.context or CONTEXT,
            stride=data.stride,
            bos=data.bos,
            size=size,
            file=folder / "tokens" / f"{key.hexdigest()[:24]}.bin",
        )
        splits[part] = _capped(made, most[part], data.split_seed)
    facts = {
        "text": ", ".join(dict.fromkeys(text.label for text in texts.values())),
        "text_sha256": sha256,
        **_facts(tokenizer, splits["train"].beginning),
        "context": splits["train"].context,
        "stride": splits["train"].step,
        "tokens_counted": {part: split.counted for part, split in splits.items()},
    }
    return _splits(splits, NextToken(tokenizer.vocabulary), facts, tokenizer, data)


def _of(text: Text) -> Iterator[str]:
    return (piece for piece, _ in text.pieces())


# Questions


def _load_questions(data: DataSpec, network: str, folder: Path, revision: str | None) -> Splits:
    read = find_questions(data.name, data.path, data.image_folder, data.columns)
    parts, notes = dict(read.parts), list(read.notes)
    if data.test is not None:
        name, _, path = data.test.partition(":")
        if name not in QUESTIONS or not path:
            raise InputError(
                f"data.test = {data.test!r}: expected NAME:PATH with one of {', '.join(QUESTIONS)}"
            )
        tested = find_questions(name, path, data.image_folder, {})
        parts["test"] = tested.parts.get("test", tested.parts["train"])
        notes += tested.notes
    if "test" not in parts:
        parts["train"], parts["test"] = hold_out(parts["train"], data.held_out[1])
        notes.append(
            "questions: those about the last images are tested on, as the files have no part for it"
        )
    if data.validation_images == 0:
        parts.pop("validation", None)
    elif "validation" not in parts:
        parts["train"], parts["validation"] = hold_out(parts["train"], data.held_out[0])
    parts = {
        part: _some(questions, most, data.split_seed)
        for part, most in (
            ("train", data.train_images),
            ("validation", data.validation_images),
            ("test", data.test_images),
        )
        if (questions := parts.get(part)) is not None
    }
    _check_images(parts)
    digest = hashlib.sha256("\n".join(_said(parts["train"])).encode()).hexdigest()
    tokenizer = find_tokenizer(
        data.tokenizer,
        network,
        lambda: _said(parts["train"]),
        digest,
        folder / "tokenizers",
        revision,
    )
    encoder = _encoder(data, tokenizer, has_images=parts["train"][0].image is not None)
    length, counted, cut = _lengths(parts, encoder, data.context)
    if cut:
        notes.append(f"questions: {cut:,} are longer than {length} tokens, and their ends are cut")
    splits = {part: Conversations.of(some, encoder, length) for part, some in parts.items()}
    whole = "\n".join(line for questions in parts.values() for line in _said(questions))
    facts = {
        "text": (data.test and f"{data.path or data.name}, tested on {data.test}")
        or data.path
        or data.name,
        "text_sha256": hashlib.sha256(whole.encode()).hexdigest(),
        **_facts(tokenizer, encoder(parts["train"][0]).tokens[:1].tolist()),
        "context": length,
        "tokens_counted": counted,
        "baselines": [
            {"metric": "answer_accuracy", "label": label, **_without_looking(parts, kind)}
            for kind, label in (
                ("question", "from the question alone"),
                ("answer", "by the most usual answer"),
            )
        ],
    }
    return _splits(splits, Answers.of(splits["train"]), facts, tokenizer, data, notes)


def _without_looking(parts: Mapping[str, Sequence[Question]], kind: str) -> dict[str, float]:
    """By split, the share of right guesses of one ``kind`` (a field of :class:`Baseline`)."""
    return {
        part: getattr(answer_without_images(parts["train"], some), kind)
        for part, some in parts.items()
        if part != "train"
    }


def _some(questions: Sequence[Question], most: int | None, seed: int) -> list[Question]:
    if most is None or most >= len(questions):
        return list(questions)
    kinds = torch.zeros(len(questions), dtype=torch.int64)
    return [questions[i] for i in capped(kinds, most, seed).tolist()]


def _check_images(parts: Mapping[str, Sequence[Question]]) -> None:
    for questions in parts.values():
        for image in dict.fromkeys(q.image for q in questions if q.image is not None):
            if not image.is_file():
                raise InputError(f"image {image} is not there: say its folder in data.image_folder")


def _said(questions: Sequence[Question]) -> Iterator[str]:
    return (f"{asked} {answer}" for q in questions for asked, answer in q.turns)


def _encoder(data: DataSpec, tokenizer: Tokenizer, *, has_images: bool) -> Encoder:
    if tokenizer.processor is not None:
        if data.image_tokens is not None:
            raise InputError(
                f"data.image_tokens = {data.image_tokens} does nothing: the processor of "
                f"{tokenizer.name!r} says how many an image takes"
            )
        if has_images and not hasattr(tokenizer.processor, "tokenizer"):
            raise InputError(
                f"{tokenizer.name!r} is of a network that takes text only, and the questions are "
                "about images"
            )
        return ProcessorEncoder(tokenizer, data.bos, data.image_size)
    if has_images and data.image_tokens is None:
        raise InputError(
            "data.image_tokens is needed: the tokens that an image takes, such as (image size / "
            "patch size)²"
        )
    return PlainEncoder(tokenizer, data.bos, data.image_size or _IMAGE_SIZE, data.image_tokens or 0)


def _lengths(
    parts: Mapping[str, Sequence[Question]], encoder: Encoder, context: int | None
) -> tuple[int, dict[str, int], int]:
    """The tokens of an example, the tokens that count in each part, and how many examples are cut.

    Raises :class:`InputError` where there are too many questions to find the longest.
    """
    count = sum(map(len, parts.values()))
    if count > _MOST_LOOKED_AT and isinstance(encoder, ProcessorEncoder):
        if context is None:
            raise InputError(f"data.context is needed: {count:,} questions are too many to measure")
        return context, {}, 0
    longest, cut, counted = 0, 0, {}
    for part, questions in parts.items():
        counted[part] = 0
        for question in questions:
            counts = encoder.counts(question)
            longest = max(longest, len(counts))
            cut += context is not None and len(counts) > context
            counted[part] += int(counts[1:context].sum())
    return context or longest, counted, cut


# Both


def _facts(tokenizer: Tokenizer, beginning: Sequence[int]) -> dict[str, Any]:
    begins = tokenizer.bos is not None and list(beginning) == [tokenizer.bos]
    return {
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "vocabulary": tokenizer.vocabulary,
        "bos": "one" if begins else "none",
    }


def _capped(split: PackedText, most: int | None, seed: int) -> PackedText:
    if most is None or most >= len(split):
        return split
    return split.select(capped(torch.zeros(len(split), dtype=torch.int64), most, seed))


def _splits(
    splits: Mapping[str, Any],
    task: NextToken,
    facts: Mapping[str, Any],
    tokenizer: Tokenizer,
    data: DataSpec,
    notes: Sequence[str] = (),
) -> Splits:
    files = tokenizer.files
    if data.tokenizer is None:  # what else belongs to it is the network's
        files.pop("tokenizer_config.json", None)
    made = Splits(
        splits["train"],
        splits.get("validation"),
        splits["test"],
        task,
        facts=facts,
        files=files,
        remarks=tuple(notes),
    )
    return made.measured_in_part(data.measured_fraction, data.split_seed)
