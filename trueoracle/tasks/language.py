"""Predicting tokens: the next one of a text, or those of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Examples, Targets, Task
from trueoracle.tasks.metric import Metric

__all__ = ["IGNORED", "Answers", "NextToken"]

IGNORED = -100
"""The label of a token that does not count, as in transformers."""


_LOSS = Metric("loss", "loss", unit="nats", exponential="perplexity")
_ANSWER_ACCURACY = Metric("answer_accuracy", "answer accuracy", better="higher", low=0.0, high=1.0)
_ANSWER_TOKENS = Metric(
    "token_accuracy", "answer token accuracy", better="higher", low=0.0, high=1.0
)

_SHORT = 8
"""The most tokens of a short answer."""
_LOOKED_AT = 64


class NextToken(Task):
    """Cross-entropy (nats) and accuracy of the next token, over the tokens that count.

    Examples have ``input_ids`` ``[N, T]`` and, where they are padded (on either side),
    ``attention_mask``; the network gives logits ``[N, T, V]``. Position t is compared with token
    t + 1, where neither is padding. ``labels``, where there are any, say which tokens count: not
    those of label -100. ``vocabulary`` is the number of different tokens, where it is known.
    """

    name: ClassVar[str] = "next-token"
    targets: ClassVar[Targets] = "indices"
    metrics: Sequence[Metric] = (
        _LOSS,
        Metric("token_accuracy", "token accuracy", better="higher", low=0.0, high=1.0),
    )

    def __init__(self, vocabulary: int | None = None) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def of(cls, train: Examples) -> NextToken:
        """For the vocabulary of a text's tokenizer; that of a user's own tokens is not known."""
        return cls(getattr(train, "vocabulary", None))

    def outputs(self, train: Examples) -> int:
        """One logit for each token of the vocabulary, or for each that the data may hold."""
        if self.vocabulary is not None:
            return self.vocabulary
        return int(train.targets.max()) + 1 if "labels" in train.shapes else super().outputs(train)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        logits, labels = self._shifted(outputs, batch)
        total = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return total / (labels != IGNORED).sum().clamp(min=1)

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._shifted(outputs, batch)
        return {
            "loss": functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"),
            "right": (logits.argmax(-1) == labels).sum(),
            "count": (labels != IGNORED).sum(),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        count = sums["count"].clamp(min=1)
        return {"loss": sums["loss"] / count, "token_accuracy": sums["right"] / count}

    def weight(self, batch: Batch) -> float:
        return float((self.labels(batch)[:, 1:] != IGNORED).sum())

    def logits(self, outputs: Tensor) -> Tensor:
        return outputs

    def counted(self, outputs: Tensor, batch: Batch) -> Tensor:
        told = self.labels(batch)[:, 1:] != IGNORED  # each token is predicted one position earlier
        return functional.pad(told, (0, 1))

    def labels(self, batch: Batch) -> Tensor:
        """The tokens ``[N, T]`` to be predicted one position earlier; -100 where none counts."""
        labels = batch.get("labels", batch["input_ids"])
        if "attention_mask" in batch:
            seen = batch["attention_mask"] != 0
            # The first token of a text follows no token, also where it is padded on the left.
            follows = functional.pad(seen[:, :-1], (1, 0), value=True)
            labels = labels.masked_fill(~(seen & follows), IGNORED)
        return labels

    def _shifted(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``[n, V]`` and the labels ``[n]`` that they are compared with."""
        return outputs[:, :-1].flatten(0, 1), self.labels(batch)[:, 1:].flatten()

    def check(self, outputs: Tensor, batch: Batch) -> list[str]:
        tokens = batch["input_ids"].shape
        if outputs.ndim != 3 or outputs.shape[:2] != tokens:
            raise InputError(
                f"the network gives {list(outputs.shape)} for tokens {list(tokens)}: expected "
                f"{[*tokens, 'vocabulary']}"
            )
        if not bool((self.labels(batch)[:, 1:] != IGNORED).any()):
            raise InputError("no token of the first examples counts: all are padding or ignored")
        return []

    def check_targets(self, split: Examples, where: str) -> None:
        if "input_ids" not in split.shapes:
            raise InputError(
                f"task {self.name!r} needs tokens: examples with input_ids [N, T], found "
                f"{', '.join(split.shapes)}"
            )


class Answers(NextToken):
    """As ``next-token``, over the tokens of the answers alone.

    Examples have ``labels`` ``[N, T]``, which are -100 everywhere but in the answer; besides
    ``input_ids`` there may be any other input of the network, such as ``pixel_values``. An answer
    is right where each of its tokens is the likeliest one after the tokens before it. Where answers
    are long, the accuracy of tokens is the headline, since hardly any whole answer is right.
    """

    name: ClassVar[str] = "answers"

    def __init__(self, vocabulary: int | None = None, *, has_short_answers: bool = True) -> None:
        super().__init__(vocabulary)
        both = (_ANSWER_ACCURACY, _ANSWER_TOKENS)
        self.metrics = (_LOSS, *(both if has_short_answers else reversed(both)))

    @classmethod
    def of(cls, train: Examples) -> Answers:
        """Answers are short where those of the first examples have at most 8 tokens on average."""
        short = True
        if hasattr(train, "take") and "labels" in train.shapes:
            labels = train.take(torch.arange(min(_LOOKED_AT, len(train)))).targets
            short = float((labels != IGNORED).sum(1).double().mean()) <= _SHORT
        return cls(getattr(train, "vocabulary", None), has_short_answers=short)

    def sums(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        labels = self.labels(batch)[:, 1:]
        counts = labels != IGNORED
        is_right = ((outputs[:, :-1].argmax(-1) == labels) | ~counts).all(1)
        has_answer = counts.any(1)
        return {
            **super().sums(outputs, batch),
            "right_answers": (is_right & has_answer).sum(),
            "answers": has_answer.sum(),
        }

    def finish(self, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answers = sums["answers"].clamp(min=1)
        found = {**super().finish(sums), "answer_accuracy": sums["right_answers"] / answers}
        return {metric.name: found[metric.name] for metric in self.metrics}

    def check_targets(self, split: Examples, where: str) -> None:
        super().check_targets(split, where)
        if "labels" not in split.shapes:
            raise InputError(f"task {self.name!r} needs labels [N, T], -100 outside the answers")
