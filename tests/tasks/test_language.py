from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.tasks.cases import largest, log_softmax, measured, tokens
from trueoracle.data.splits import Split
from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.language import IGNORED, Answers, NextToken
from trueoracle.tasks.registry import TASKS

LOGITS = torch.randn(7, 6, 11, generator=torch.Generator().manual_seed(0))


def made(*, padded: bool, labelled: bool) -> Batch:
    return tokens(padded=padded, labelled=labelled)(torch.Generator().manual_seed(1))


def by_hand(logits: Tensor, batch: Batch) -> tuple[dict[str, float], int]:
    """Position t says token t + 1, where that is not padding and its label counts."""
    losses, right = [], 0
    labels = batch.get("labels", batch["input_ids"])
    for text in range(len(labels)):
        for place in range(1, labels.shape[1]):
            wanted = int(labels[text, place])
            is_padding = "attention_mask" in batch and not batch["attention_mask"][text, place]
            if wanted == IGNORED or is_padding:
                continue
            row = logits[text, place - 1].tolist()
            losses.append(-log_softmax(row)[wanted])
            right += largest(row) == wanted
    count = len(losses)
    return {"loss": sum(losses) / count, "token_accuracy": right / count}, count


def answers_right(logits: Tensor, batch: Batch) -> float:
    """The share of texts with an answer in which every token of it is told right."""
    found = []
    for text, labels in enumerate(batch["labels"].tolist()):
        is_right = [
            largest(logits[text, place - 1].tolist()) == labels[place]
            for place in range(1, len(labels))
            if labels[place] != IGNORED and batch["attention_mask"][text, place]
        ]
        if is_right:
            found.append(all(is_right))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("task", "padded", "labelled", "count"),
    [
        (NextToken(), False, False, 35),
        (NextToken(), True, False, 0 + 1 + 2 + 3 + 4 + 5 + 5),
        (NextToken(), True, True, 0 + 1 + 2 * 5),
        (Answers(), True, True, 0 + 1 + 2 * 5),
    ],
    ids=["text", "padded", "labelled", "answers"],
)
def test_loss_and_accuracy_are_those_by_hand(
    task: Task, padded: bool, labelled: bool, count: int
) -> None:
    batch = made(padded=padded, labelled=labelled)
    expected, counted = by_hand(LOGITS, batch)
    assert counted == count
    assert task.weight(batch) == count
    if isinstance(task, Answers):
        expected["answer_accuracy"] = answers_right(LOGITS, batch)
    assert measured(task, LOGITS, batch) == pytest.approx(expected, rel=1e-5)
    assert float(task.loss(LOGITS, batch)) == pytest.approx(expected["loss"], rel=1e-5)


def test_what_follows_padding_or_is_no_answer_changes_nothing() -> None:
    batch, task = made(padded=True, labelled=True), Answers()
    changed = {
        "input_ids": batch["input_ids"].where(batch["attention_mask"] == 1, 7),
        "attention_mask": batch["attention_mask"],
        "labels": batch["labels"].where(batch["attention_mask"] == 1, 7),
    }
    assert measured(task, LOGITS, changed) == measured(task, LOGITS, batch)
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(task.loss(logits, batch), logits)
    counts = task.labels(batch)[:, 1:] != IGNORED
    moved = gradient.abs().sum(-1) > 0
    assert torch.equal(moved[:, :-1], counts)
    assert not moved[:, -1].any()  # nothing follows the last


def test_an_answer_is_right_where_all_of_its_tokens_are() -> None:
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])}
    batch["labels"] = torch.tensor(
        [[-100, -100, 3, 4], [-100, -100, 3, 4], [-100, -100, -100, 4], [-100] * 4]
    )
    told = torch.tensor([[0, 3, 4, 0], [0, 3, 9, 0], [0, 9, 4, 0], [0, 0, 0, 0]])
    logits = torch.nn.functional.one_hot(told, 11).float()
    found = measured(Answers(), logits, batch)
    assert found["answer_accuracy"] == pytest.approx(2 / 3)  # the last has no answer
    assert found["token_accuracy"] == pytest.approx(4 / 5)
    assert measured(Answers(), logits, batch, cuts=[1, 3]) == pytest.approx(found)


def test_long_answers_are_measured_by_their_tokens_first() -> None:
    def names(tokens: int) -> list[str]:
        labels = torch.full((3, 20), IGNORED)
        labels[:, 20 - tokens :] = 1
        train = Split({"input_ids": torch.ones(3, 20, dtype=torch.int64), "labels": labels})
        return [metric.name for metric in Answers.of(train).metrics]

    assert names(2) == ["loss", "answer_accuracy", "token_accuracy"]
    assert names(12) == ["loss", "token_accuracy", "answer_accuracy"]


def test_padding_on_either_side_is_the_same_text() -> None:
    texts = [[1, 2, 3], [4, 5, 6, 7, 8]]
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(len(text), 11, generator=generator) for text in texts]
    found = []
    for side in ("right", "left"):
        fields: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "logits": []}
        for text, row in zip(texts, rows, strict=True):
            room = 6 - len(text)
            ends = (0, room) if side == "right" else (room, 0)
            for name, value, filler in (
                ("input_ids", torch.tensor(text), 9),
                ("attention_mask", torch.ones(len(text)).long(), 0),
            ):
                fields[name].append(torch.nn.functional.pad(value, ends, value=filler))
            fields["logits"].append(torch.nn.functional.pad(row, (0, 0, *ends), value=7.0))
        batch = {name: torch.stack(values) for name, values in fields.items()}
        logits = batch.pop("logits")
        found.append(measured(NextToken(), logits, batch))
        assert NextToken().weight(batch) == 2 + 4
    assert found[0] == pytest.approx(found[1])


def test_perplexity_is_shown_and_no_metric() -> None:
    loss, *others = NextToken().metrics
    assert loss.exponential == "perplexity"
    assert [metric.name for metric in others] == ["token_accuracy"]
    assert math.exp(
        measured(NextToken(), torch.zeros(7, 6, 11), made(padded=False, labelled=False))["loss"]
    ) == pytest.approx(11, rel=1e-5)  # as many as there are tokens to guess among


def test_texts_of_padding_alone_add_nothing() -> None:
    batch = {"input_ids": torch.zeros(2, 6, dtype=torch.int64)}
    batch["attention_mask"] = torch.zeros_like(batch["input_ids"])
    logits = torch.zeros(2, 6, 11, requires_grad=True)
    loss = NextToken().loss(logits, batch)
    assert float(loss.detach()) == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
    assert NextToken().weight(batch) == 0
    with pytest.raises(InputError, match="no token of the first examples counts: all are padding"):
        NextToken().check(logits, batch)
    batch["labels"] = torch.full_like(batch["input_ids"], IGNORED)
    found = measured(Answers(), logits.detach(), batch)
    assert found == {"loss": 0.0, "token_accuracy": 0.0, "answer_accuracy": 0.0}


@pytest.mark.parametrize("outputs", [LOGITS[:, :5], LOGITS[..., 0], LOGITS[:6], LOGITS[None]])
def test_outputs_that_do_not_fit_are_refused(outputs: Tensor) -> None:
    with pytest.raises(InputError) as caught:
        NextToken().check(outputs, made(padded=False, labelled=False))
    assert str(caught.value) == (
        f"the network gives {list(outputs.shape)} for tokens [7, 6]: expected [7, 6, 'vocabulary']"
    )


def test_data_without_tokens_or_answers_is_refused() -> None:
    pairs = Split.of(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    for name in ("next-token", "answers"):
        with pytest.raises(InputError) as caught:
            TASKS[name].of(pairs).check_targets(pairs, "train")
        assert str(caught.value) == (
            f"task {name!r} needs tokens: examples with input_ids [N, T], found input, target"
        )
    texts = Split(made(padded=True, labelled=False))
    NextToken().check_targets(texts, "train")
    with pytest.raises(InputError, match=r"'answers' needs labels \[N, T\], -100 outside the ans"):
        Answers().check_targets(texts, "train")
    Answers().check_targets(Split(made(padded=True, labelled=True)), "train")
