"""A few steps of retraining, and batch norm's statistics, by plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.criteria.tiny import chain, every_way, images, residual, score
from trueoracle.criteria import retrained
from trueoracle.criteria.samples import sample
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import NotApplicableError
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.regression import Regression
from trueoracle.training.evaluate import evaluate
from trueoracle.training.loop import batches
from trueoracle.training.recipe import Retraining


@pytest.mark.parametrize(
    ("batch", "passes", "used"),
    [(8, 2, 16), (6, 1, 24), (100, 4, 24), (24, 4, 24)],
)
def test_the_loss_after_steps_is_that_of_so_many_steps(
    batch: int, passes: int, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrained, "STEPS", 4)
    network, data = chain(), images()
    candidates = every_way(network, {"0": 0.5}).take([0, 5])
    recipe = Retraining(
        epochs=3, batch_size=batch, learning_rate=0.1, milestones=(1,), label_smoothing=0.1
    )
    found = score("loss-after-steps", network, candidates, data, recipe)
    few = Splits(sample(data.train, data.task, used), None, data.test, Classification(3))
    one_batch = recipe.model_copy(update={"batch_size": min(batch, 24)})
    for index in range(2):
        pruned = candidates.prune(network, index).train()
        optimizer = torch.optim.SGD(
            pruned.parameters(), lr=0.1, momentum=0.9, weight_decay=recipe.weight_decay
        )
        steps = 0
        for epoch in range(passes):
            for step in batches(few, one_batch, 0, epoch, "loss-after-steps"):
                optimizer.zero_grad()
                loss = functional.cross_entropy(
                    pruned(step["input"]), step["target"], label_smoothing=0.1
                )
                loss.backward()
                optimizer.step()
                steps += 1
        assert steps == 4
        assert found[index] == pytest.approx(
            evaluate(pruned, data.train, Classification(10))["loss"], rel=1e-4
        )


@pytest.mark.parametrize("counts", [(17, 5, 2), (22, 1, 1), (22, 2, 0)])
def test_it_takes_as_many_steps_on_unbalanced_classes(
    counts: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrained, "STEPS", 3)
    data = images()
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    data = Splits(Split.of(data.train.inputs, labels), None, data.test, Classification(3))
    short, few = retrained._cut_short(Retraining(batch_size=7), data)
    assert short.epochs * len(few.train) == 3 * 7
    assert len(torch.unique(few.train.inputs, dim=0)) == len(few.train)
    # What a class lacks of its share others give; none that has its share gives less for it.
    got = torch.bincount(few.train.targets, minlength=3).tolist()
    assert all(found >= min(7, count) for found, count in zip(got, counts, strict=True))


def test_the_steps_follow_a_teacher_where_the_recipe_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrained, "STEPS", 3)
    network, data = chain(), images()
    candidates = every_way(network, {"0": 0.5}).take([0, 5])
    recipe = Retraining(batch_size=8, learning_rate=0.1, distil={"weight": 0.6, "temperature": 2})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = score("loss-after-steps", network, candidates, data, recipe)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    short, few = retrained._cut_short(recipe, data)
    for index in range(2):
        pruned = candidates.prune(network, index).train()
        optimizer = torch.optim.SGD(
            pruned.parameters(), lr=0.1, momentum=0.9, weight_decay=recipe.weight_decay
        )
        for epoch in range(short.epochs):
            for step in batches(few, short, 0, epoch, "loss-after-steps"):
                optimizer.zero_grad()
                with torch.no_grad():
                    taught = (network.eval()(step["input"]) / 2).softmax(1)
                logits = pruned(step["input"])
                apart = functional.kl_div(
                    (logits / 2).log_softmax(1), taught, reduction="batchmean"
                )
                loss = 0.4 * functional.cross_entropy(logits, step["target"]) + 0.6 * 4 * apart
                loss.backward()
                optimizer.step()
        assert found[index] == pytest.approx(
            evaluate(pruned, data.train, Classification(10))["loss"], rel=1e-4
        )
    plain = recipe.model_copy(update={"distil": None})
    assert abs(score("loss-after-steps", network, candidates, data, plain) - found).min() > 1e-4


def test_steps_of_a_training_procedure_of_ones_own_are_not_asked_for() -> None:
    network = chain()
    candidates = every_way(network, {"0": 0.5}).take([0])
    recipe = Retraining(batch_size=8, procedure="mine:train")
    with pytest.raises(NotApplicableError, match="'mine:train' decides itself how many steps"):
        score("loss-after-steps", network, candidates, images(), recipe)


def test_a_diverged_network_has_no_score() -> None:
    network = chain()
    candidates = every_way(network, {"0": 0.5}).take([0])
    recipe = Retraining(batch_size=8, learning_rate=1e30)
    assert math.isnan(score("loss-after-steps", network, candidates, images(), recipe)[0])


def test_batch_norms_statistics_are_those_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = residual(), images(24)
    candidates = every_way(network, {"stem": 0.5})
    found = score("oracle-bn", network, candidates, data)
    assert found != pytest.approx(score("oracle", network, candidates, data), rel=1e-3)
    for index in range(len(candidates)):
        pruned = candidates.prune(network, index)
        # One batch of all images: normed by its own statistics, they are those estimated.
        variances = []
        for module in pruned.modules():
            if isinstance(module, nn.BatchNorm2d):
                variances.append(module)
                module.track_running_stats = True
                module.momentum = 1.0
                module.train()
        with torch.no_grad():
            pruned(data.train.inputs)
        assert variances
        assert found[index] == pytest.approx(
            evaluate(pruned, data.train, Classification(10))["loss"], rel=1e-5
        )
    monkeypatch.setattr(retrained, "STATISTICS_BATCH", 8)
    in_batches = score("oracle-bn", network, candidates, data)
    assert in_batches == pytest.approx(found, rel=0.2)
    assert not (in_batches == found).any()


def test_eagleeye_is_the_accuracy_on_images_held_out() -> None:
    network, data = residual(), images(48)
    with torch.no_grad():  # so that it does not say one class of all images
        network.head.bias.sub_(network(data.train.inputs).mean(0))
    candidates = every_way(network, {"stem": 0.5})
    some = images(400, seed=1).train
    data = Splits(data.train, some, data.test, Classification(3))
    found = score("eagleeye", network, candidates, data)
    assert len(set(found)) > 3
    for index in range(len(candidates)):
        pruned = candidates.prune(network, index)
        for module in pruned.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
                module.train()
        with torch.no_grad():
            pruned(data.train.inputs)
            said = pruned.eval()(some.inputs).argmax(1)
        assert -found[index] == pytest.approx(float((said == some.targets).float().mean()))


def test_eagleeye_needs_images_held_out_and_a_metric() -> None:
    network, data = residual(), images()
    candidates = every_way(network, {"stem": 0.5})
    without = Splits(data.train, None, data.test, data.task)
    with pytest.raises(NotApplicableError, match="no validation split"):
        score("eagleeye", network, candidates, without)
    task = Regression()
    task.metrics = task.metrics[:1]
    only_loss = Splits(data.train, data.validation, data.test, task)
    with pytest.raises(NotApplicableError, match="measures nothing but its loss"):
        score("eagleeye", network, candidates, only_loss)


def test_batch_norm_sees_batches_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    # A sample lies in the order of the data, which is often by class.
    monkeypatch.setattr(retrained, "STATISTICS_BATCH", 16)
    network, data = residual(), images(48)
    order = data.train.targets.argsort(stable=True)
    by_class = replace(data, train=data.train.take(order))
    candidates = every_way(network, {"stem": 0.5}).take([0])
    classes = by_class.train.targets
    forwarded: list[Tensor] = []
    task_forward = type(data.task).forward

    def forward(self: Any, net: nn.Module, batch: Any) -> Any:
        forwarded.append(batch["target"])
        return task_forward(self, net, batch)

    monkeypatch.setattr(type(data.task), "forward", forward)
    score("oracle-bn", network, candidates, by_class)
    first = forwarded[:3]
    assert [len(one) for one in first] == [16, 16, 16]
    assert all(len(one.unique()) == len(classes.unique()) for one in first)
