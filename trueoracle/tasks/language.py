"""Tokens: the next one of a text, or those of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from trueoracle.errors import InputError
from trueoracle.tasks.base import Batch, Examples, Targets, Task
from trueoracle.tasks.metric import Metric

__all__ = ["IGNORED", "Answers", "NextToken"]

IGNORED = -100
"""The label of a token that counts nowhere, as transformers has it."""


_LOSS = Metric("loss", "loss", unit="nats", exponential="perplexity")


class NextToken(Task):
    """Cross-entropy (nats) and accuracy of the next token, over the tokens that count.

    Examples have ``input_ids`` ``[N, T]`` and, where they are padded, ``attention_mask``; the
    network gives logits ``[N, T, V]``. Position t is compared with token t + 1, where that is not
    padding. ``labels``, where they are there, say which tokens count (-100 does not).
    """

    name: ClassVar[str] = "next-token"
    targets: ClassVar[Targets] = "indices"
    metrics: Sequence[Metric] = (
        _LOSS,
        Metric("token_accuracy", "token accuracy", better="higher", low=0.0, high=1.0),
    )

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
        told = self.labels(batch)[:, 1:] != IGNORED  # by the position before each
        return functional.pad(told, (0, 1))

    def labels(self, batch: Batch) -> Tensor:
        """The tokens ``[N, T]`` that positions before them are to tell, -100 where none counts."""
        labels = batch.get("labels", batch["input_ids"])
        if "attention_mask" in batch:
            labels = labels.masked_fill(batch["attention_mask"] == 0, IGNORED)
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

    Examples have ``labels`` ``[N, T]``, which are -100 everywhere but in the answer; beside
    ``input_ids`` there may be whatever else the network takes, such as ``pixel_values``.
    """

    name: ClassVar[str] = "answers"
    metrics: Sequence[Metric] = (
        _LOSS,
        Metric("token_accuracy", "answer token accuracy", better="higher", low=0.0, high=1.0),
    )

    def check_targets(self, split: Examples, where: str) -> None:
        super().check_targets(split, where)
        if "labels" not in split.shapes:
            raise InputError(f"task {self.name!r} needs labels [N, T], -100 outside the answers")
