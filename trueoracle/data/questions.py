"""Questions and answers, most of them about an image, from the files of published data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trueoracle.data.text import part_name, read_jsonl
from trueoracle.errors import InputError, first_line, shown
from trueoracle.files import parse_json

__all__ = ["Baseline", "Question", "Read", "answer_without_images", "find_questions", "hold_out"]

PLACE = "<image>"
"""The mark in a question of LLaVA's files at which the image belongs."""


@dataclass(frozen=True)
class Question:
    """A conversation, as questions and answers turn by turn, and the image that it is about."""

    turns: tuple[tuple[str, str], ...]
    image: Path | None = None


@dataclass(frozen=True)
class Read:
    """What was read from the files of a data set: its questions by part, and remarks on them."""

    parts: dict[str, list[Question]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Where:
    """Where a reader looks: the path of the questions, the image folder, the columns of JSONL."""

    path: Path
    images: Path | None
    columns: Mapping[str, str]

    @property
    def folder(self) -> Path:
        """The folder of the questions."""
        return self.path if self.path.is_dir() else self.path.parent

    def image(self, name: str, *below: str) -> Path:
        """The path of an image by its name: in the first of the usual folders that has it.

        Raises :class:`InputError` for a name that leads out of them, since the file of questions
        may be somebody else's.
        """
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(
                f"{self.path}: the image {shown(name)} lies outside of the folder of images, which "
                "data.image_folder names"
            )
        bases = [self.images] if self.images is not None else [self.folder / "images", self.folder]
        names = [str(Path(part) / name) for part in below] + [name]
        places = [base / one for base in bases for one in names]
        return next((place for place in places if place.is_file()), places[0])

    def files(self, suffixes: tuple[str, ...], containing: str = "") -> dict[str, list[Path]]:
        """The files by the part that their names say; all in one part where no name says any."""
        if self.path.is_file():
            return {"train": [self.path]}
        found: dict[str, list[Path]] = {}
        for file in sorted(self.folder.iterdir()) if self.folder.is_dir() else ():
            if file.suffix in suffixes and containing in file.name:
                found.setdefault(part_name(file.stem) or "", []).append(file)
        if not found:
            raise InputError(
                f"{self.path} is no {' or '.join(suffixes)} file, nor a folder of them"
                + (f" with {containing!r} in their names" if containing else "")
            )
        if "train" in found and len(found) > 1:
            return {part: files for part, files in found.items() if part}
        return {"train": [file for files in found.values() for file in files]}


def find_questions(
    name: str, path: str | None, image_folder: str | None, columns: Mapping[str, str]
) -> Read:
    """The questions of a data set by part: ``train``, and the others that its files have.

    Where there is a validation part but no test part, the former is used for the test. Questions
    without an image are left out where others have one, since a batch cannot mix both. Raises
    :class:`InputError` for files that are missing, or are not in the data set's format.
    """
    if path is None and name != "easy-vqa":
        raise InputError(f"data set {name!r} needs data.path: {_EXPECTED[name]}")
    if name == "easy-vqa" and (path or image_folder):
        raise InputError(
            "data set 'easy-vqa' is read from the package easy-vqa: no data.path, nor "
            "data.image_folder"
        )
    if columns and name != "instructions":
        raise InputError(f"data.columns does nothing for data set {name!r}")
    where = _Where(
        Path(path or ".").expanduser(),
        None if image_folder is None else Path(image_folder).expanduser(),
        columns,
    )
    if not where.path.exists():  # what lies beside it was not meant
        raise InputError(f"data.path = {path!r} is not there: expected {_EXPECTED[name]}")
    try:
        parts = _READERS[name](where)
    except InputError:
        raise
    except OSError as error:  # a name that no file can have
        raise InputError(f"{path} names a file that cannot be read: {first_line(error)}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(
            f"{path} is not in the format of data set {name!r} "
            f"({type(error).__name__}: {first_line(error)}): expected {_EXPECTED[name]}"
        ) from error
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    if empty := [part for part, questions in parts.items() if not questions]:
        raise InputError(f"{path or name}: no question of the {empty[0]} part has an answer")
    return _of_one_kind(parts)


def _of_one_kind(parts: dict[str, list[Question]]) -> Read:
    count = sum(map(len, parts.values()))
    pictured = {p: [q for q in questions if q.image] for p, questions in parts.items()}
    left = sum(map(len, pictured.values()))
    if left in (0, count):
        return Read(parts)
    if empty := [part for part, questions in pictured.items() if not questions]:
        raise InputError(f"no question of the {empty[0]} part has an image, and others have one")
    said = f"questions: {count - left:,} of {count:,} have no image and are left out"
    return Read(pictured, (said,))


def hold_out(questions: Sequence[Question], share: float) -> tuple[list[Question], list[Question]]:
    """The questions about the first images, and those about the last ``share`` of the images.

    Questions about one image stay together; one without an image counts as an image of its own.
    Raises :class:`InputError` where one side would be empty.
    """
    about = [q.image or place for place, q in enumerate(questions)]
    different = list(dict.fromkeys(about))
    count = max(1, round(share * len(different)))
    if count >= len(different):
        raise InputError(
            f"the questions are about {len(different)} images: too few to hold {share:g} out"
        )
    held = set(different[-count:])
    return (
        [q for q, one in zip(questions, about, strict=True) if one not in held],
        [q for q, one in zip(questions, about, strict=True) if one in held],
    )


# Answers without images


@dataclass(frozen=True)
class Baseline:
    """The share of questions that are answered right in every turn without looking at an image.

    For ``question``, the guess is the most frequent answer to the same question in the training
    split, or the most frequent answer of all where the split does not have the question. For
    ``answer``, the guess is always the most frequent answer of all.
    """

    question: float
    answer: float


def answer_without_images(train: Sequence[Question], asked: Sequence[Question]) -> Baseline:
    """The share of ``asked`` that the most frequent answers in ``train`` get right."""
    usual: dict[tuple[str, ...], Counter[str]] = {}
    overall: Counter[str] = Counter()
    for question in train:
        for key, answer in _keyed(question):
            usual.setdefault(key, Counter())[answer] += 1
            overall[answer] += 1
    most = _usual(overall)
    best = {key: _usual(answers, overall) for key, answers in usual.items()}
    keyed = [list(_keyed(question)) for question in asked]
    return Baseline(
        sum(all(best.get(k, most) == answer for k, answer in own) for own in keyed) / len(keyed),
        sum(all(answer == most for _, answer in own) for own in keyed) / len(keyed),
    )


def _keyed(question: Question) -> Iterator[tuple[tuple[str, ...], str]]:
    """Each answer, keyed by all that was said before it."""
    said: tuple[str, ...] = ()
    for asked, answer in question.turns:
        yield (*said, asked), answer
        said = (*said, asked, answer)


def _usual(answers: Counter[str], overall: Mapping[str, int] | None = None) -> str:
    """The most frequent answer; ties go by the frequency ``overall``, then by the alphabet."""
    more = overall or answers
    return min(answers, key=lambda answer: (-answers[answer], -more[answer], answer))


# Readers


def _read_json(file: Path) -> Any:
    try:
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as JSON: {first_line(error)}") from error


def _easy_vqa(where: _Where) -> dict[str, list[Question]]:
    """The files of the easy-VQA package: ``[question, answer, number of the image]``."""
    found = find_spec("easy_vqa")
    if found is None or not found.submodule_search_locations:
        raise InputError(
            "data set 'easy-vqa' is read from the package easy-vqa: pip install '.[transformers]'"
        )
    data = Path(next(iter(found.submodule_search_locations))) / "data"
    return {
        part: [
            Question(((asked, answer),), data / part / "images" / f"{number}.png")
            for asked, answer, number in _read_json(data / part / "questions.json")
        ]
        for part in ("train", "test")
    }


def _instructions(where: _Where) -> dict[str, list[Question]]:
    """LLaVA's conversations (arXiv 2304.08485), as JSON or JSONL; or JSONL of prompt and answer."""
    found = where.files((".json", ".jsonl"))
    return {part: [q for f in files for q in _told(f, where)] for part, files in found.items()}


def _told(file: Path, where: _Where) -> Iterator[Question]:
    records: Iterable[Any] = _read_json(file) if file.suffix == ".json" else _records(file)
    for record in records:
        turns = _turns(record["conversations"]) if "conversations" in record else None
        if turns is None:
            turns = ((_column(record, "prompt", where), _column(record, "answer", where)),)
        image = record.get(where.columns.get("image", "image"))
        if image is not None and not isinstance(image, str):
            raise InputError(f"{file}: an example has {len(image)} images, expected one")
        # From a conversation that ends before the first answer there is nothing to learn.
        if turns:
            yield Question(turns, None if image is None else where.image(image))


def _records(file: Path) -> Iterator[dict[str, Any]]:
    return (record for _, record in read_jsonl(file))


def _turns(conversations: Sequence[Mapping[str, str]]) -> tuple[tuple[str, str], ...]:
    said = [
        (one["from"], one["value"].replace(f"{PLACE}\n", "").replace(f"\n{PLACE}", ""))
        for one in conversations
    ]
    if said and said[0][0] == "system":
        said = [("human", f"{said[0][1]}\n{said[1][1]}"), *said[2:]]
    if [who for who, _ in said[::2]] != ["human"] * len(said[::2]) or any(
        who != "gpt" for who, _ in said[1::2]
    ):
        raise InputError(f"a conversation goes {[who for who, _ in said]}: expected human, gpt, …")
    words = [text.replace(PLACE, "").strip() for _, text in said]
    return tuple(zip(words[::2], words[1::2], strict=False))


def _column(record: Mapping[str, object], role: str, where: _Where) -> str:
    name = where.columns.get(role, role)
    value = record.get(name)
    if not isinstance(value, str):
        raise InputError(
            f"{where.path}: no text in column {name!r}, only {', '.join(map(str, record))}: say "
            "data.columns = {prompt = …, answer = …}"
        )
    return value


def _scienceqa(where: _Where) -> dict[str, list[Question]]:
    """``problems.json`` and ``pid_splits.json`` (Lu et al. 2022, arXiv 2209.09513).

    Questions are put as LLaVA does (arXiv 2310.03744): the hint as context, the choices with
    letters, and the letter as the answer. Images are ``PART/NUMBER/image.png``.
    """
    problems = _read_json(where.folder / "problems.json")
    splits = _read_json(where.folder / "pid_splits.json")
    return {
        part: [_problem(n, problems[n], where) for n in splits[own] if n in problems]
        for part, own in (("train", "train"), ("validation", "val"), ("test", "test"))
    }


def _problem(number: str, problem: Mapping[str, Any], where: _Where) -> Question:
    hint = f"Context: {problem['hint']}\n" if problem["hint"] else ""
    choices = "\n".join(f"{chr(65 + i)}. {c}" for i, c in enumerate(problem["choices"]))
    asked = (
        f"{hint}{problem['question']}\n{choices}\n"
        "Answer with the option's letter from the given choices directly."
    )
    name, part = problem["image"], problem["split"]
    image = None if not name else where.image(f"{number}/{name}", part, f"images/{part}")
    return Question(((asked, chr(65 + problem["answer"])),), image)


_SHORT = "Answer the question using a single word or phrase."


def _textvqa(where: _Where) -> dict[str, list[Question]]:
    """``TextVQA_0.5.1_*.json`` (Singh et al. 2019, arXiv 1904.08920): the commonest of ten answers.

    The test part has no answers and is left out. Images are ``train_images/ID.jpg``.
    """
    parts = {
        part: [
            Question(
                ((f"{one['question']}\n{_SHORT}", _usual(Counter(one["answers"]))),),
                where.image(
                    f"{one['image_id']}.jpg", "train_images", "train_val_images/train_images"
                ),
            )
            for file in files
            for one in _read_json(file)["data"]
            if one.get("answers")
        ]
        for part, files in where.files((".json",), "TextVQA").items()
    }
    return {part: questions for part, questions in parts.items() if questions or part == "train"}


def _gqa(where: _Where) -> dict[str, list[Question]]:
    """``*_balanced_questions.json`` (Hudson & Manning 2019, arXiv 1902.09506): questions by ID.

    Images are ``ID.jpg``.
    """
    return {
        part: [
            Question(
                ((f"{one['question']}\n{_SHORT}", one["answer"]),),
                where.image(f"{one['imageId']}.jpg"),
            )
            for file in files
            for one in _read_json(file).values()
            if "answer" in one
        ]
        for part, files in where.files((".json",), "balanced_questions").items()
    }


def _pope(where: _Where) -> dict[str, list[Question]]:
    """``coco_pope_*.json`` (Li et al. 2023, arXiv 2305.10355): a JSON object on each line.

    The images are COCO's of 2014, ``COCO_val2014_*.jpg``.
    """
    return {
        part: [
            Question(
                ((f"{one['text']}\n{_SHORT}", one["label"]),), where.image(one["image"], "val2014")
            )
            for file in files
            for one in _records(file)
        ]
        for part, files in where.files((".json", ".jsonl"), "pope").items()
    }


_READERS: dict[str, Callable[[_Where], dict[str, list[Question]]]] = {
    "easy-vqa": _easy_vqa,
    "instructions": _instructions,
    "scienceqa": _scienceqa,
    "textvqa": _textvqa,
    "gqa": _gqa,
    "pope": _pope,
}

_EXPECTED = {
    "easy-vqa": "the files of the package easy-vqa",
    "instructions": "LLaVA's JSON of conversations, or JSONL with prompt and answer",
    "scienceqa": "a folder with problems.json, pid_splits.json and the images",
    "textvqa": "TextVQA_0.5.1_val.json, or a folder with it and TextVQA_0.5.1_train.json",
    "gqa": "a file ..._balanced_questions.json, or a folder of them",
    "pope": "a file coco_pope_....json, or a folder of them",
}
