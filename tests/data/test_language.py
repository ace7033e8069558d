"""Splits of questions from a study's fields; those of text are in test_text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.language import llava_processor, tokenizer, write_images, write_lines
from trueoracle.data import language
from trueoracle.data.conversations import Conversations
from trueoracle.data.language import load_language
from trueoracle.data.splits import AnySplit, Splits
from trueoracle.errors import InputError
from trueoracle.spec.spec import DataSpec
from trueoracle.tasks.language import IGNORED

pytest.importorskip("tokenizers")


def write_pope(folder: Path, images: int = 20, name: str = "coco_pope_random.json") -> Path:
    """Three questions about each image: two are answered yes, one no."""
    names = [f"COCO_val2014_{i:012}.jpg" for i in range(images)]
    write_images(folder, names)
    return write_lines(
        folder / name,
        [
            {"question_id": 3 * i + j, "image": one, "text": f"Is there a {thing}?", "label": label}
            for i, one in enumerate(names)
            for j, (thing, label) in enumerate((("dog", "yes"), ("cat", "no"), ("cow", "yes")))
        ],
    )


def load(folder: Path, **fields: Any) -> Splits:
    given: dict[str, Any] = {
        "name": "pope",
        "path": str(folder / "coco_pope_random.json"),
        "tokenizer": "words",
    }
    given |= {"image_tokens": 4, "image_size": 8, "held_out": [0.2, 0.2], **fields}
    given = {name: value for name, value in given.items() if value is not None}
    return load_language(DataSpec.model_validate(given), "mine:network", folder / "cache")


def images_of(split: AnySplit | None) -> set[Path | None]:
    assert isinstance(split, Conversations)
    return {question.image for question in split.questions}


def test_questions_in_one_file_are_parted_by_their_images(tmp_path: Path) -> None:
    write_pope(tmp_path)
    data = load(tmp_path)
    parts = [images_of(split) for _, split in data.named()]
    assert [len(one) for one in parts] == [13, 3, 4]
    assert not parts[0] & parts[1]
    assert not (parts[0] | parts[1]) & parts[2]
    assert data.notes == [
        "questions: those about the last images are tested on, as the files have no part for it"
    ]
    facts = data.facts
    assert (facts["tokenizer"], facts["bos"], facts["context"]) == ("words", "none", 4 + 5 + 10 + 1)
    assert facts["tokens_counted"] == {"train": 39, "validation": 9, "test": 12}
    question, answer = facts["baselines"]
    assert question["metric"] == answer["metric"] == data.task.metrics[1].name
    assert (question["test"], answer["test"]) == (1.0, pytest.approx(2 / 3))
    assert data.task.outputs(data.train) == facts["vocabulary"]
    assert data.network_shape == (3, 8, 8)
    batch = next(data.test.batches(100))
    assert int((batch["labels"] != IGNORED).sum()) == 12


def test_amounts_are_drawn_by_the_seed(tmp_path: Path) -> None:
    write_pope(tmp_path)

    def drawn(**fields: Any) -> tuple[list[int], Sequence[Any]]:
        data = load(tmp_path, train_images=7, test_images=5, validation_images=2, **fields)
        assert isinstance(data.train, Conversations)
        return [len(split) for _, split in data.named()], data.train.questions

    sizes, questions = drawn()
    assert sizes == [7, 2, 5]
    assert drawn()[1] == questions
    assert drawn(split_seed=1)[1] != questions
    assert load(tmp_path, validation_images=0).validation is None
    assert len(load(tmp_path, measured_fraction=0.5).measured_train) == 20


def test_others_may_be_tested_on(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    write_pope(tmp_path / "train")
    other = write_pope(tmp_path, 4, "coco_pope_popular.json")
    data = load(tmp_path / "train", test=f"pope:{other}", image_folder=None)
    assert images_of(data.test) == {tmp_path / f"COCO_val2014_{i:012}.jpg" for i in range(4)}
    assert len(images_of(data.train)) == 16
    assert data.facts["text"].endswith(f"coco_pope_random.json, tested on pope:{other}")
    for test in ("pope", "mnist:x", "pope:"):
        with pytest.raises(InputError, match=f"data.test = '{test}': expected NAME:PATH with one"):
            load(tmp_path / "train", test=test)


def test_the_whole_identity_is_in_the_fingerprint(tmp_path: Path) -> None:
    file = write_pope(tmp_path)
    first = load(tmp_path).fingerprint()
    assert load(tmp_path).fingerprint() == first
    assert load(tmp_path, bos="one").fingerprint() != first
    assert load(tmp_path, image_size=16).fingerprint() != first
    file.write_text(file.read_text().replace("dog", "fox"), "utf-8")
    assert load(tmp_path).fingerprint() != first


def test_a_models_own_processor_makes_the_examples(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_pope(tmp_path)
    llava_processor(adds_bos=True).save_pretrained(tmp_path / "model")
    own = str(tmp_path / "model")
    data = load(tmp_path, tokenizer=own, image_tokens=None, image_size=None)
    assert data.train.shapes["pixel_values"] == (3, 32, 32)
    assert (data.facts["vocabulary"], data.facts["bos"]) == (400, "one")
    assert json.loads(data.files["tokenizer.json"])["model"]["type"] == "BPE"
    with pytest.raises(InputError, match=r"data\.image_tokens = 4 does nothing: the processor of"):
        load(tmp_path, tokenizer=own, image_size=None)
    tokenizer().save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    with pytest.raises(InputError, match="is of a network that takes text only, and the questions"):
        load(tmp_path, tokenizer=str(tmp_path / "text"), image_tokens=None)


def test_too_many_to_measure_need_a_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    write_pope(tmp_path)
    llava_processor().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(language, "_MOST_LOOKED_AT", 10)
    own = {"tokenizer": str(tmp_path / "model"), "image_tokens": None, "image_size": None}
    with pytest.raises(InputError, match="context is needed: 60 questions are too many to measure"):
        load(tmp_path, **own)
    data = load(tmp_path, context=60, **own)
    assert data.train.shapes["input_ids"] == (60,)
    assert data.facts["tokens_counted"] == {}


def test_examples_that_are_cut_are_said(tmp_path: Path) -> None:
    write_pope(tmp_path)
    data = load(tmp_path, context=17)
    assert data.notes[-1] == "questions: 60 are longer than 17 tokens, and their ends are cut"
    assert data.facts["tokens_counted"]["test"] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_tokens": None}, "data.image_tokens is needed: the tokens that an image takes"),
        ({"stride": 4}, "data.stride = 4 does nothing for data set 'pope'"),
        ({"uint8": "scale"}, "data.uint8 = 'scale' does nothing for data set 'pope'"),
        ({"tokenizer": None}, "data.tokenizer is needed: network 'mine:network' brings none"),
        ({"image_folder": "away"}, r"image away\S+ is not there: say its folder in data.image_fol"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    write_pope(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, **fields)
    assert "\n" not in str(caught.value)


def test_questions_without_images_need_no_places(tmp_path: Path) -> None:
    records = [{"prompt": f"{i} and {i}", "answer": str(2 * i)} for i in range(30)]
    write_lines(tmp_path / "sums.jsonl", records)
    path = str(tmp_path / "sums.jsonl")
    data = load(tmp_path, name="instructions", path=path, image_tokens=None, image_size=None)
    assert set(data.train.shapes) == {"input_ids", "attention_mask", "labels"}
    assert torch.equal(data.train.targets, data.train.take(torch.arange(len(data.train))).targets)
