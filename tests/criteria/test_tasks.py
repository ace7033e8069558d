"""Criteria of networks that are trained for other things than classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.criteria.test_all import SHIPPED
from tests.tasks.cases import cut
from trueoracle.criteria import curvature, gradients, retrained
from trueoracle.criteria.base import find_criterion
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import NotApplicableError
from trueoracle.pruning.candidates import Candidates, list_candidates
from trueoracle.pruning.walk import find_groups
from trueoracle.tasks.base import Batch, Task
from trueoracle.tasks.classification import Classification, Multilabel
from trueoracle.tasks.regression import Regression
from trueoracle.tasks.segmentation import IGNORED, Segmentation
from trueoracle.training.evaluate import evaluate
from trueoracle.training.recipe import Retraining

RECIPE = Retraining(epochs=2, batch_size=8, learning_rate=0.01)
OF_CLASSES = {
    "gradient-flow": "is solved for a cross-entropy of classes",
    "obd-c": "labels are drawn of classes",
}
"""Criteria that need the classes of a cross-entropy."""

OF_FILTERS = [name for name in SHIPPED if "filters" in find_criterion(name).applies_to]


class Net(nn.Module):
    """Two convolutions, their batch norms, a linear layer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 3, 3, stride=2), nn.BatchNorm2d(3)
        self.fc = nn.Linear(27, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        logits: Tensor = self.fc(torch.relu(self.norm2(self.second(x))).flatten(1))
        return logits


class PerPixel(nn.Module):
    """Two convolutions, their batch norms, and logits for each pixel."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.fc = nn.Conv2d(3, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.first(x)))
        return {"out": self.fc(torch.relu(self.norm2(self.second(x))))}


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def masks(inputs: Tensor) -> Tensor:
    """Masks of which the first images' are mostly ignored, and one wholly."""
    made = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    ignored = torch.rand(made.shape, generator=torch.Generator().manual_seed(9))
    shares = torch.linspace(0.95, 0, len(made)).view(-1, 1, 1)
    made = made.masked_fill(ignored < shares, IGNORED)
    made[-1] = IGNORED
    return made


TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "regression": lambda x: x.mean((2, 3)) * 8,
    "one number": lambda x: x.mean((1, 2, 3)) * 8,
    "multilabel": lambda x: (x.mean((2, 3)) > 0).float(),
    "segmentation": masks,
    "probabilities": lambda x: x.mean((2, 3)).softmax(1),
}
TASKS: dict[str, tuple[Task, int]] = {
    "regression": (Regression(), 2),
    "one number": (Regression(), 1),
    "multilabel": (Multilabel(), 2),
    "segmentation": (Segmentation(3), 3),
    "probabilities": (Classification(2), 2),
}
every_task = pytest.mark.parametrize("name", TASKS)


def made(name: str) -> tuple[nn.Module, Candidates, Splits]:
    torch.manual_seed(0)
    task, outputs = TASKS[name]
    network = (PerPixel if name == "segmentation" else Net)(outputs)
    for norm in (network.get_submodule("norm"), network.get_submodule("norm2")):
        nn.init.uniform_(norm.get_parameter("weight"), 0.5, 1.5)
    network.train()
    for seed in range(3):
        network(images(16, seed + 50))
    parts = [Split.of(x, TARGETS[name](x)) for x in (images(24), images(9, 1), images(10, 2))]
    available = find_groups(network.eval(), images(3))
    return (
        network,
        list_candidates(available, {"first": 0.5, "second": 0.3}),
        Splits(parts[0], parts[1], parts[2], task),
    )


@pytest.mark.slow
@every_task
@pytest.mark.parametrize("criterion", OF_FILTERS)
def test_a_criterion_applies_or_says_in_a_line_that_it_needs_classes(
    name: str, criterion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "HESSIAN_DRAWS", 8)
    monkeypatch.setattr(retrained, "STEPS", 2)
    network, candidates, data = made(name)
    candidates = candidates.take([0, 7, 17])
    before = {key: value.clone() for key, value in network.state_dict().items()}
    if criterion in OF_CLASSES and (criterion, name) != ("obd-c", "probabilities"):  # of classes
        with pytest.raises(NotApplicableError, match=OF_CLASSES[criterion]):
            find_criterion(criterion)(network, candidates, data, RECIPE)
        return
    scores = find_criterion(criterion)(network, candidates, data, RECIPE)
    assert scores.shape == (len(candidates),)
    assert np.isfinite(scores).all()
    assert len(np.unique(scores)) > 1
    again = find_criterion(criterion)(network, candidates, data, RECIPE)
    np.testing.assert_array_equal(scores, again)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@every_task
def test_the_oracle_is_the_loss_of_each_pruned_network(name: str) -> None:
    network, candidates, data = made(name)
    assert data.validation is not None
    splits = {"oracle": data.train, "oracle-validation": data.validation}
    for criterion, split in splits.items():
        found = find_criterion(criterion)(network, candidates, data, RECIPE)
        for index in range(0, len(candidates), 5):
            pruned = candidates.prune(network, index).eval()
            outputs = pruned(split.inputs)
            outputs = outputs["out"] if isinstance(outputs, dict) else outputs
            loss = data.task.loss(outputs, {"target": split.targets}).detach()
            assert found[index] == pytest.approx(float(loss), rel=1e-5)
            assert found[index] == pytest.approx(evaluate(pruned, split, data.task)["loss"])


def whole_loss(network: nn.Module, data: Splits) -> Tensor:
    batch: Batch = {"input": data.train.inputs, "target": data.train.targets}
    return data.task.loss(data.task.forward(network, batch), batch)


@every_task
def test_gradients_are_of_the_loss_of_the_whole_split(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it is cut, and however few pixels of a batch count."""
    network, _, data = made(name)
    names = ["first.weight", "fc.bias"]
    expected = torch.autograd.grad(
        whole_loss(network, data), [network.get_parameter(one) for one in names]
    )
    for size in (24, 7, 1):
        monkeypatch.setattr(gradients, "evaluation_batch", lambda _, n=size: n)
        found = gradients.weight_gradients(network, names, data.train, data.task)
        for one, value in zip(names, expected, strict=True):
            torch.testing.assert_close(found[one], value, atol=1e-6, rtol=1e-4)


@every_task
def test_taylor_is_the_change_of_the_train_loss_by_each_filter(name: str) -> None:
    """A gate on what is read of a filter: its derivative is that of the weights that read it."""
    network, candidates, data = made(name)
    readers = {"first": "second", "second": "fc"}
    importance = {}
    for group, reader in readers.items():
        weight = network.get_parameter(f"{reader}.weight")
        (gradient,) = torch.autograd.grad(whole_loss(network, data), weight)
        by_channel = (weight * gradient).detach().double()
        filters = next(g.filters for g in candidates.groups if g.name == group)
        by_channel = by_channel.unflatten(1, (filters, -1)).flatten(2).sum((0, 2))
        importance[group] = by_channel.square()
    expected = [
        sum(
            float(importance[group.name][filter_])
            for group, pruned in zip(candidates.groups, way, strict=True)
            for filter_ in pruned
        )
        for way in candidates
    ]
    found = find_criterion("taylor")(network, candidates, data, RECIPE)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_ignored_pixels_change_no_score() -> None:
    """Images of which nothing counts may as well not be there."""
    network, candidates, data = made("segmentation")
    fewer = Split(cut({"input": data.train.inputs, "target": data.train.targets}, 0, 23))
    assert (data.train.targets[23] == IGNORED).all()
    without = replace(data, train=fewer)
    for criterion in ("oracle", "taylor", "gradient", "snip", "l1"):
        found, expected = (
            find_criterion(criterion)(network, candidates, one, RECIPE) for one in (data, without)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_cross_entropy_of_probabilities_is_that_of_classes() -> None:
    """One-hot targets are scored as the classes that they are, by every way of computing."""
    network, candidates, data = made("probabilities")
    classes = functional.one_hot(data.train.targets.argmax(1), 2)
    one_hot, whole = (
        Split.of(data.train.inputs, target) for target in (classes.float(), classes.argmax(1))
    )
    for criterion in ("oracle", "taylor", "fisher", "gradient", "snip"):
        found, expected = (
            find_criterion(criterion)(
                network, candidates, Splits(split, None, split, Classification(2)), RECIPE
            )
            for split in (one_hot, whole)
        )
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-7)
