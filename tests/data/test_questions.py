"""Questions from the files that they are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.language import write_images, write_lines
from trueoracle.data import questions
from trueoracle.data.questions import (
    Question,
    answer_without_images,
    find_questions,
    hold_out,
)
from trueoracle.errors import InputError

SHORT = "Answer the question using a single word or phrase."


def test_llavas_conversations(tmp_path: Path) -> None:
    record = {
        "id": "000000033471",
        "image": "coco/train2017/000000033471.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "The bus is white and red."},
            {"from": "human", "value": "What feature can be seen on its back?"},
            {"from": "gpt", "value": "An advertisement."},
        ],
    }
    behind = {**record, "conversations": [
        {"from": "human", "value": "Give a brief description.\n<image>"},
        {"from": "gpt", "value": "A bus."},
    ]}  # fmt: skip
    spoken = {"id": "x", "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Who are you?"},
        {"from": "gpt", "value": "A model."},
        {"from": "human", "value": "And?"},
    ]}  # fmt: skip
    (tmp_path / "mix.json").write_text(json.dumps([record, behind, spoken]), "utf-8")
    write_images(tmp_path / "images", [str(record["image"])])
    read = find_questions("instructions", str(tmp_path / "mix.json"), None, {})
    image = tmp_path / "images" / "coco/train2017/000000033471.jpg"
    assert read.parts == {
        "train": [
            Question(
                (
                    ("What are the colors of the bus?", "The bus is white and red."),
                    ("What feature can be seen on its back?", "An advertisement."),
                ),
                image,
            ),
            Question((("Give a brief description.", "A bus."),), image),
        ]
    }
    assert read.notes == ("questions: 1 of 3 have no image and are left out",)
    (tmp_path / "text.json").write_text(json.dumps([spoken]), "utf-8")
    only = find_questions("instructions", str(tmp_path / "text.json"), None, {})
    assert only.parts["train"] == [Question((("Be brief.\nWho are you?", "A model."),))]
    assert find_questions(
        "instructions", str(write_lines(tmp_path / "mix.jsonl", [record])), str(tmp_path), {}
    ).parts["train"][0].image == tmp_path / str(record["image"])  # not there, and said later


def test_jsonl_of_prompts_and_answers(tmp_path: Path) -> None:
    records = [{"question": "2 + 2?", "reply": "4"}, {"question": "3 + 3?", "reply": "6"}]
    for part in ("train", "val"):
        write_lines(tmp_path / f"sums_{part}.jsonl", records)
    columns = {"prompt": "question", "answer": "reply"}
    read = find_questions("instructions", str(tmp_path), None, columns)
    wanted = [Question((("2 + 2?", "4"),)), Question((("3 + 3?", "6"),))]
    assert read.parts == {"train": wanted, "test": wanted}
    with pytest.raises(InputError, match="no text in column 'prompt', only question, reply: say"):
        find_questions("instructions", str(tmp_path), None, {})


def problem(**changes: Any) -> dict[str, Any]:
    return {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana", "Arizona"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "social science",
        "topic": "geography",
        "category": "Geography",
        "skill": "Read a map: cardinal directions",
        "lecture": "Maps have four cardinal directions.",
        "solution": "",
        "split": "train",
        **changes,
    }


def test_scienceqa(tmp_path: Path) -> None:
    problems = {
        "1": problem(),
        "2": problem(split="val", hint="Look at the map.", answer=2),
        "3": problem(split="test", answer=1),
        "4": problem(image=None),
    }
    splits = {"train": ["1", "4"], "val": ["2"], "test": ["3"], "trainval": ["1", "4", "2"]}
    (tmp_path / "problems.json").write_text(json.dumps(problems), "utf-8")
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits), "utf-8")
    write_images(tmp_path, ["train/1/image.png"])
    write_images(tmp_path / "images", ["val/2/image.png", "test/3/image.png"])
    read = find_questions("scienceqa", str(tmp_path), None, {})
    options = "A. West Virginia\nB. Louisiana\nC. Arizona\n"
    asked = (
        f"Which of these states is farthest north?\n{options}"
        "Answer with the option's letter from the given choices directly."
    )
    assert read.parts == {
        "train": [Question(((asked, "A"),), tmp_path / "train/1/image.png")],
        "validation": [
            Question(
                ((f"Context: Look at the map.\n{asked}", "C"),),
                tmp_path / "images/val/2/image.png",
            )
        ],
        "test": [Question(((asked, "B"),), tmp_path / "images/test/3/image.png")],
    }
    assert read.notes == ("questions: 1 of 4 have no image and are left out",)


def textvqa(part: str, answers: list[str] | None) -> dict[str, Any]:
    entry = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck", "Printer"],
        "flickr_original_url": "-",
        "flickr_300k_url": "-",
        "image_width": 1024,
        "image_height": 664,
        "question_tokens": ["what", "is", "the", "brand", "of", "this", "camera"],
        "question_id": 34602,
        "set_name": part,
    }
    if answers is not None:
        entry["answers"] = answers
    return {
        "dataset_type": part,
        "dataset_name": "textvqa",
        "dataset_version": "0.5.1",
        "data": [entry],
    }


def test_textvqa(tmp_path: Path) -> None:
    answers = ["dakota"] * 4 + [
        "nous les gosses",
        "dakota digital",
        "clos culombu",
        *["dakota"] * 3,
    ]
    for part, given in (("train", answers), ("val", ["b"] * 5 + ["a"] * 5), ("test", None)):
        file = tmp_path / f"TextVQA_0.5.1_{part}.json"
        file.write_text(json.dumps(textvqa(part, given)), "utf-8")
    write_images(tmp_path / "train_images", ["003a8ae2ef43b901.jpg"])
    read = find_questions("textvqa", str(tmp_path), None, {})
    image = tmp_path / "train_images/003a8ae2ef43b901.jpg"
    asked = f"what is the brand of this camera?\n{SHORT}"
    assert read.parts == {
        "train": [Question(((asked, "dakota"),), image)],
        "test": [Question(((asked, "a"),), image)],  # of equally many, the first by alphabet
    }
    alone = find_questions("textvqa", str(tmp_path / "TextVQA_0.5.1_val.json"), None, {})
    assert alone.parts == {"train": [Question(((asked, "a"),), image)]}


def test_gqa(tmp_path: Path) -> None:
    def entry(answer: str) -> dict[str, Any]:
        return {
            "semantic": [],
            "entailed": [],
            "equivalent": ["201307251"],
            "question": "Is it overcast?",
            "imageId": "n161313",
            "isBalanced": True,
            "groups": {"global": None, "local": "13-weather_overcast"},
            "answer": answer,
            "semanticStr": "select: scene->verify weather: overcast [0]",
            "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
            "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
            "fullAnswer": f"{answer}, it is.",
        }

    for part, answer in (("train", "no"), ("val", "yes"), ("testdev", "no")):
        file = tmp_path / f"{part}_balanced_questions.json"
        file.write_text(json.dumps({"201307251": entry(answer)}), "utf-8")
    (tmp_path / "train_all_questions.json").write_text("{", "utf-8")  # is not looked at
    write_images(tmp_path / "images", ["n161313.jpg"])
    read = find_questions("gqa", str(tmp_path), None, {})
    image = tmp_path / "images/n161313.jpg"
    assert {part: own[0].turns[0][1] for part, own in read.parts.items()} == {
        "train": "no", "validation": "yes", "test": "no",
    }  # fmt: skip
    assert read.parts["train"] == [Question(((f"Is it overcast?\n{SHORT}", "no"),), image)]


def test_pope(tmp_path: Path) -> None:
    records = [
        {
            "question_id": number,
            "image": "COCO_val2014_000000310196.jpg",
            "text": f"Is there a {thing} in the image?",
            "label": label,
        }
        for number, (thing, label) in enumerate([("snowboard", "yes"), ("chair", "no")], 1)
    ]
    write_lines(tmp_path / "coco_pope_random.json", records)
    write_images(tmp_path / "val2014", ["COCO_val2014_000000310196.jpg"])
    read = find_questions("pope", str(tmp_path / "coco_pope_random.json"), str(tmp_path), {})
    image = tmp_path / "val2014" / "COCO_val2014_000000310196.jpg"
    assert read.parts == {
        "train": [
            Question(((f"Is there a snowboard in the image?\n{SHORT}", "yes"),), image),
            Question(((f"Is there a chair in the image?\n{SHORT}", "no"),), image),
        ]
    }


@pytest.mark.slow
def test_easy_vqa_and_what_it_gives_without_looking() -> None:
    pytest.importorskip("easy_vqa")
    parts = find_questions("easy-vqa", None, None, {}).parts
    assert {part: len(own) for part, own in parts.items()} == {"train": 38_575, "test": 9_673}
    first = parts["train"][0]
    assert first.turns == (("what is the blue shape?", "rectangle"),)
    assert first.image is not None
    assert first.image.is_file()
    assert len({q.image for own in parts.values() for q in own}) == 5_000
    assert len({q.turns[0][1] for own in parts.values() for q in own}) == 13
    found = answer_without_images(parts["train"], parts["test"])
    assert found.question == pytest.approx(0.670, abs=5e-4)
    assert found.question > found.answer + 0.2


def test_the_usual_answers_by_hand() -> None:
    def of(*pairs: tuple[str, str]) -> list[Question]:
        return [Question((pair,)) for pair in pairs]

    train = of(("a", "1"), ("a", "1"), ("a", "2"), ("b", "2"), ("b", "2"), ("c", "2"))
    asked = of(("a", "1"), ("a", "2"), ("b", "2"), ("new", "2"), ("new", "1"))
    found = answer_without_images(train, asked)
    assert (found.question, found.answer) == (3 / 5, 3 / 5)
    assert answer_without_images(train, of(("a", "1"))).answer == 0
    talk = [Question((("a", "1"), ("b", "2"))), Question((("a", "1"), ("b", "3")))]
    assert answer_without_images(talk[:1], talk).question == 0.5  # all answers of an example


def test_questions_about_one_image_are_held_out_together() -> None:
    asked = [Question(((str(i), "x"),), Path(f"{i % 10}.png")) for i in range(40)]
    train, held = hold_out(asked, 0.2)
    assert {q.image for q in held} == {Path("8.png"), Path("9.png")}
    assert {q.image for q in train} & {q.image for q in held} == set()
    assert sorted(train + held, key=asked.index) == asked
    with pytest.raises(InputError, match=r"the questions are about 1 images: too few to hold 0\.5"):
        hold_out(asked[:1], 0.5)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scienceqa", None, "is not there: expected a folder with problems.json"),
        ("scienceqa", "{}", "cannot be read as JSON"),
        ("textvqa", "{}", "not in the format of data set 'textvqa' (KeyError: 'data'): expected"),
        ("gqa", "[]", "is not in the format of data set 'gqa' (AttributeError"),
        ("pope", "[1]\n", "line 1: expected a JSON object"),
        ("pope", '{"text": "a"}\n', "not in the format of data set 'pope' (KeyError: 'label')"),
        ("instructions", "[{}]", "no text in column 'prompt', only"),
        (
            "instructions",
            '[{"conversations": [{"from": "gpt", "value": "a"}]}]',
            "goes ['gpt']: ex",
        ),
        ("instructions", "[]", "no question of the train part has an answer"),
        ("textvqa", '{"data": []}', "no question of the train part has an answer"),
    ],
)
def test_files_of_another_format_are_refused_in_a_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    file = tmp_path / "questions.json"
    if content is not None:
        file.write_text(content, "utf-8")
    with pytest.raises(InputError) as caught:
        find_questions(name, str(file), None, {})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("instructions", "gqa"):
        with pytest.raises(InputError, match=f"data set '{name}' needs data.path: "):
            find_questions(name, None, None, {})
    with pytest.raises(InputError, match=r"is no \.json file, nor a folder of them with 'TextVQA'"):
        find_questions("textvqa", str(tmp_path), None, {})
    with pytest.raises(InputError, match=r"data\.columns does nothing for data set 'gqa'"):
        find_questions("gqa", str(tmp_path), None, {"prompt": "x"})
    (tmp_path / "beside.json").write_text("[]", "utf-8")  # is not read in its place
    for name in ("instructions", "textvqa", "gqa", "pope", "scienceqa"):
        with pytest.raises(InputError, match=r"data\.path = '.*wrong\.json' is not there"):
            find_questions(name, str(tmp_path / "wrong.json"), None, {})
    with pytest.raises(InputError, match=r"the package easy-vqa: no data\.path"):
        find_questions("easy-vqa", str(tmp_path), None, {})
    monkeypatch.setattr(questions, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"easy-vqa: pip install '\.\[transformers\]'"):
        find_questions("easy-vqa", None, None, {})
