"""Small networks and texts to train on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trueoracle.data.splits import Split, Splits
from trueoracle.tasks.language import IGNORED, Answers

TOKENS = 13


class Block(nn.Module):
    """A perceptron behind a norm and beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.dropout(self.down(torch.relu(self.up(self.norm(x)))))
        return y


class Reader(nn.Module):
    """Logits ``[N, T, TOKENS]`` of tokens ``[N, T]``, each from those before it on average."""

    def __init__(self, width: int = 8, blocks: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.head = nn.Linear(width, TOKENS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)[:, None]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def reader(*, double: bool = False) -> Reader:
    torch.manual_seed(0)
    network = Reader()
    return network.double() if double else network


def answers(count: int = 20) -> Splits:
    """Texts of 6 tokens, of which the last 0 to 5 are an answer."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(TOKENS, (count, 6), generator=generator)
    length = torch.arange(count) % 6
    labels = ids.masked_fill(torch.arange(6) < 6 - length[:, None], IGNORED)
    split = Split({"input_ids": ids, "labels": labels})
    return Splits(split, None, split, Answers())
