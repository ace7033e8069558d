"""Two inputs by name and a dict output: whether one digit is larger than another."""

import torch
from data import images, labels, show, trained
from torch import Tensor, nn
from torch.nn import functional

from trueoracle import Study

order = torch.randperm(len(images))
fields = {"left": images, "right": images[order], "label": (labels > labels[order]).long()}


class Compare(nn.Module):
    """Both images through one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 10, 3)
        self.head = nn.Linear(720, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        """Logits under a name, as transformers gives them."""
        both = [functional.relu(self.conv(one)).flatten(1) for one in (left, right)]
        return {"logits": self.head(torch.cat(both, 1))}


def some(rows: Tensor | slice) -> dict[str, Tensor]:
    """The fields of some examples."""
    return {name: value[rows] for name, value in fields.items()}


def loss(network: nn.Module, rows: Tensor) -> Tensor:
    """Cross-entropy on some examples."""
    batch = some(rows)
    logits = network(batch["left"], batch["right"])["logits"]
    return functional.cross_entropy(logits, batch["label"])


study = Study(
    name="two-inputs",
    network=trained(Compare(), loss),
    data=(some(slice(0, 1200)), some(slice(1200, 1797))),
    pruning={"layers": {"conv": 0.3}, "candidates": 40},
    criteria=["oracle", "l1"],
    retraining={"epochs": 2, "seeds": [0, 1]},
)
show(study.run())
