"""Studies of every task, from start to outcomes: on small networks and data of one's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.small import InADict, Net, images, targets
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import InputError
from trueoracle.networks.weights import load_weights
from trueoracle.record.paths import DENSE
from trueoracle.record.results import Results
from trueoracle.run import prepare
from trueoracle.run.progress import SilentProgress
from trueoracle.study import Study
from trueoracle.tasks.base import Task
from trueoracle.tasks.regression import Regression
from trueoracle.training.evaluate import evaluate

RETRAINING = {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "seeds": [0]}


class Two(nn.Module):
    """Two inputs by name, and an object out."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(2, 5, 3, stride=2), nn.Linear(3, 4)
        self.head = nn.Linear(9, 3)

    def forward(self, image: Tensor, numbers: Tensor) -> Any:
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        return self.Output(self.head(torch.cat([pooled, self.other(numbers)], 1)))


def splits(task: str) -> list[tuple[Tensor, Tensor]]:
    return [(x, targets(task, x)) for x in (images(48, 0), images(16, 1), images(24, 2))]


def made(kind: type[nn.Module], *arguments: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(*arguments)


def study(name: str, network: nn.Module, data: Any, runs: Path, **fields: Any) -> Study:
    layer = "stem" if isinstance(network, InADict) else "conv"
    given = {
        "pruning": {"layers": {layer: 0.4}},
        "criteria": ["oracle", "l1", "taylor"],
        "retraining": RETRAINING,
        "data": data,
    }
    return Study(name=name, network=network, runs=runs, **given | fields)


def check(results: Results, task: str, metrics: list[str]) -> None:
    """All is recorded, under the task's own names, and every criterion has its tau."""
    assert results.finished
    assert results.task == task
    assert [metric.name for metric in results.metrics] == metrics
    columns = {f"{split}_{name}" for split in ("train", "validation", "test") for name in metrics}
    assert set(results.outcomes.columns) == {
        "candidate", "seed", "epoch", "learning_rate", *columns,
    }  # fmt: skip
    assert len(results.candidates) == 10
    assert np.isfinite(results.outcomes[sorted(columns)].to_numpy()).all()
    assert results.criteria == ["oracle", "l1", "taylor"]
    table = results.correlate()
    assert sorted(table["criterion"].unique()) == ["l1", "oracle", "taylor"]
    assert set(table["metric"]) == {"test_loss", f"test_{metrics[:2][-1]}"}
    last = results.outcomes[results.outcomes["epoch"] == results.outcomes["epoch"].max()]
    varies = {name for name in columns if last[name].nunique() > 1}  # what is alike has no order
    assert "test_loss" in varies
    assert np.isfinite(table["kendall_tau"][table["metric"].isin(varies)].to_numpy()).all()
    assert (table["n"] == 10).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "network", "metrics"),
    [
        ("regression", made(Net, 2), ["loss", "r2"]),
        ("multilabel", made(Net, 4), ["loss", "f1", "accuracy"]),
        ("segmentation", made(InADict, 3), ["loss", "mean_iou", "accuracy"]),
        ("classification", made(Net, 3), ["loss", "accuracy"]),
    ],
    ids=["regression", "multilabel", "segmentation", "classification"],
)
def test_a_study_of_every_task(
    task: str, network: nn.Module, metrics: list[str], tmp_path: Path
) -> None:
    made_of = study(f"of-{task}", network, splits(task), tmp_path, task=task)
    results = made_of.run(progress=False)
    check(results, task, metrics)
    # The oracle is the train loss of each pruned network.
    prepared = made_of.prepare()
    dense = prepared.network
    load_weights(dense, made_of.folder / DENSE)
    data = prepared.data
    for index in (0, 7):
        pruned = prepared.candidates.prune(dense, index)
        assert results.scores["oracle"][index] == pytest.approx(
            evaluate(pruned, data.train, data.task)["loss"], rel=1e-5
        )


@pytest.mark.slow
def test_a_study_with_a_teacher(tmp_path: Path) -> None:
    network, data = made(Net, 3), splits("classification")
    distil = {"weight": 0.7, "temperature": 2.0}
    taught = study("taught", network, data, tmp_path, retraining=RETRAINING | {"distil": distil})
    plain = study("plain", network, data, tmp_path)
    found, alone = taught.run(progress=False), plain.run(progress=False)
    check(found, "classification", ["loss", "accuracy"])
    pd.testing.assert_frame_equal(found.scores, alone.scores)  # before retraining all is as it was
    assert not np.allclose(found.outcomes["test_loss"], alone.outcomes["test_loss"], atol=1e-4)
    engines = [
        Study(taught.spec, network=network, data=data, runs=tmp_path / engine).run(
            progress=False, engine=engine
        )
        for engine in ("loop", "wide")
    ]
    for other in engines:
        np.testing.assert_allclose(
            other.outcomes["test_loss"], found.outcomes["test_loss"], atol=1e-3
        )


def test_what_has_no_logits_learns_from_no_teacher(tmp_path: Path) -> None:
    of_numbers = study(
        "numbers", made(Net, 2), splits("regression"), tmp_path,
        task="regression", retraining=RETRAINING | {"distil": {}},
    )  # fmt: skip
    with pytest.raises(InputError, match="task 'regression' has no logits"):
        of_numbers.run(progress=False)
    assert not of_numbers.folder.exists()


def test_a_study_of_two_inputs_by_name(tmp_path: Path) -> None:
    def split(count: int, seed: int) -> dict[str, Tensor]:
        x = images(count, seed)
        numbers = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
        return {"numbers": numbers, "image": x, "target": targets("classification", x)}

    data = (split(48, 0), split(16, 1), split(24, 2))
    check(
        study("two", made(Two), data, tmp_path).run(progress=False),
        "classification",
        ["loss", "accuracy"],
    )


OWN = '''
import torch
from trueoracle import Metric, Task


class Absolute(Task):
    """The mean absolute error, and how many are within one of the target."""

    metrics = (
        Metric("loss", "mean absolute error", unit="marks", low=0.0),
        Metric("within_one", "share within one", better="higher", low=0.0, high=1.0),
    )
    targets = "numbers"

    @classmethod
    def of(cls, train):
        return cls(float(train.targets.abs().max()))

    def __init__(self, most):
        self.most = most

    def loss(self, outputs, batch):
        return (outputs - batch["target"]).abs().mean()

    def sums(self, outputs, batch):
        apart = (outputs - batch["target"]).abs()
        return {
            "loss": apart.sum(),
            "near": (apart < 1).sum(),
            "count": torch.tensor(apart.numel()),
        }

    def finish(self, sums):
        return {
            "loss": sums["loss"] / sums["count"],
            "within_one": sums["near"] / sums["count"],
        }


class Exp(Absolute):
    metrics = (Metric("loss", "mean absolute error", unit="marks", low=0.0),)

    def finish(self, sums):
        return {"loss": sums["loss"] / sums["count"]}


def train(network, data, recipe, seed, report):
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.learning_rate)
    for epoch in range(recipe.epochs):
        network.train()
        for index in torch.randperm(len(data.train)).split(recipe.batch_size):
            batch = data.train.take(index).fields
            optimizer.zero_grad()
            data.task.loss(data.task.forward(network, batch), batch).backward()
            optimizer.step()
        report(epoch)


def fail(network, data, recipe, seed, report):
    report(0)
    raise ValueError("the cluster is gone")
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with a task and a training procedure of a user's own."""
    (tmp_path / "of_their_own.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "of_their_own"
    sys.modules.pop("of_their_own", None)


def test_a_study_of_a_task_of_ones_own(own: str, tmp_path: Path) -> None:
    data = splits("regression")
    named = study("named", made(Net, 2), data, tmp_path / "runs", task=f"{own}:Absolute")
    results = named.run(progress=False)
    check(results, "Absolute", ["loss", "within_one"])
    loss, share = results.metrics
    assert (loss.label, loss.unit, loss.higher_is_better) == ("mean absolute error", "marks", False)
    assert (share.label, share.higher_is_better) == ("share within one", True)
    assert results.default_outcomes == ("test_within_one", "test_loss")
    # The same task, given as an object or a class.
    kind: type[Task] = getattr(sys.modules[own], "Absolute")  # noqa: B009
    for task in (kind, kind.of(Split.of(*data[0]))):
        given = study("given", made(Net, 2), data, tmp_path / "runs", task=task)
        pd.testing.assert_frame_equal(given.run(progress=False).outcomes, results.outcomes)


def test_a_task_may_measure_its_loss_alone(own: str, tmp_path: Path) -> None:
    alone = study("alone", made(Net, 2), splits("regression"), tmp_path, task=f"{own}:Exp")
    results = alone.run(progress=False)
    check(results, "Exp", ["loss"])
    assert results.default_outcomes == ("test_loss",)


def test_a_study_with_a_training_procedure_of_ones_own(own: str, tmp_path: Path) -> None:
    class Stopper(SilentProgress):
        """Stops after three networks."""

        done = 0.0

        def stage(self, name: str, total: int, done: int, unit: str) -> None:
            self.retraining = name == "retrain"

        def advance(self, count: float = 1, note: str = "") -> None:
            self.done += count * self.retraining
            if self.done >= 3 + 1e-6:
                raise KeyboardInterrupt

    retraining = RETRAINING | {"procedure": f"{own}:train"}
    data = splits("regression")
    whole = study(
        "whole", made(Net, 2), data, tmp_path / "whole", task="regression", retraining=retraining
    ).run(progress=False)
    check(whole, "regression", ["loss", "r2"])
    assert whole.provenance[0]["engine"] == "loop"
    assert sorted(whole.outcomes["epoch"].unique()) == [0, 1]
    again = study(
        "whole", made(Net, 2), data, tmp_path / "again", task="regression", retraining=retraining
    )
    with pytest.raises(KeyboardInterrupt):
        again.run(progress=Stopper())
    assert again.results().counts["retrainings"] == 3
    pd.testing.assert_frame_equal(again.run(progress=False).outcomes, whole.outcomes)


def test_a_procedure_that_fails_ends_the_run_in_a_line(own: str, tmp_path: Path) -> None:
    failing = study(
        "failing", made(Net, 2), splits("regression"), tmp_path / "runs", task="regression",
        retraining=RETRAINING | {"procedure": f"{own}:fail"},
    )  # fmt: skip
    failures = failing.run(progress=False).failures
    assert failing.results().counts["retrainings"] == 0
    told = "retraining.procedure 'of_their_own:fail' failed: the c"
    assert failures["error"].map(lambda error: told in error and "\n" not in error).all()
    assert {*failures["candidate"]} == {*failing.results().candidates["candidate"]}
    nowhere = study(
        "nowhere", made(Net, 2), splits("regression"), tmp_path / "runs", task="regression",
        retraining=RETRAINING | {"procedure": f"{own}:nothing"},
    )  # fmt: skip
    with pytest.raises(InputError, match="cannot import the training procedure 'of_their_own:noth"):
        nowhere.run(progress=False)
    assert not nowhere.folder.exists()


@pytest.mark.parametrize(
    ("task", "network", "message"),
    [
        ("regression", made(Net, 3), r"gives \[3, 3\] for targets \[3, 2\]: expected one number"),
        ("multilabel", made(Net, 3), r"gives \[3, 3\] for targets \[3, 4\]: expected one logit"),
        ("segmentation", made(InADict, 2), "gives 2 logits for each pixel, and the masks have 3"),
        ("segmentation", made(Net, 3), r"gives \[3, 3\] for masks \[3, 8, 8\]"),
        ("classification", made(Net, 2), r"gives \[3, 2\] for 3 examples, expected \[3, 3\]"),
        ("next-token", made(Net, 2), "task 'next-token' needs tokens"),
        ("clasification", made(Net, 2), "unknown task 'clasification'"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_at_once(
    task: str, network: nn.Module, message: str, tmp_path: Path
) -> None:
    data = splits(task if task in ("regression", "multilabel", "segmentation") else "")
    with pytest.raises(InputError, match=message) as caught:
        study("misfit", network, data, tmp_path, task=task).run(progress=False)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_images_of_masks_are_not_moved(tmp_path: Path) -> None:
    for field, value in (("shift", 1), ("flip", True), ("resized_crop", 0.5)):
        moving = study(
            "moving", made(InADict, 3), splits("segmentation"), tmp_path, task="segmentation",
            retraining=RETRAINING | {field: value},
        )  # fmt: skip
        with pytest.raises(InputError, match=f"retraining.{field} would move images and not what"):
            moving.run(progress=False)
    for field, value in (("mixup", 0.2), ("label_smoothing", 0.1)):
        mixing = study(
            "mixing", made(Net, 2), splits("regression"), tmp_path, task="regression",
            retraining=RETRAINING | {field: value},
        )  # fmt: skip
        with pytest.raises(InputError, match=f"retraining.{field} needs classes, and task 'regr"):
            mixing.run(progress=False)


class Heard(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


def test_what_is_read_of_an_output_is_said(tmp_path: Path) -> None:
    heard = Heard()
    study("masks", made(InADict, 3), splits("segmentation"), tmp_path, task="segmentation").score(
        progress=heard
    )
    assert "network: of the network's dict ['out'] is read" in heard.lines
    heard = Heard()
    ending = nn.Sequential(made(Net, 3), nn.Softmax(1))
    study(
        "soft", ending, splits("classification"), tmp_path, pruning={"layers": {"0.conv": 0.4}}
    ).score(progress=heard)
    assert any(
        line.startswith("network: the network seems to end in softmax") for line in heard.lines
    )


def test_columns_and_bytes_of_ones_own(tmp_path: Path) -> None:
    def split(count: int, seed: int) -> dict[str, Tensor]:
        x = images(count, seed)
        pixels = (x * 40 + 128).clamp(0, 255).to(torch.uint8)
        return {"img": pixels, "fine": targets("classification", x), "more": torch.zeros(count)}

    data, columns = (split(48, 0), split(24, 2)), {"img": "input", "fine": "target"}
    with pytest.raises(InputError, match=r"input is uint8, .* say data\.uint8 = 'scale'"):
        study("bytes", made(Net, 3), data, tmp_path, columns=columns)
    scaled, kept = (
        study("bytes", made(Net, 3), data, tmp_path, columns=columns, overrides={"data.uint8": how})
        for how in ("scale", "keep")
    )
    assert scaled.spec.data.uint8 == "scale"
    assert scaled.folder != kept.folder
    inputs = scaled.prepare().data.train.inputs
    assert torch.equal(inputs, data[0]["img"] / 255)
    heard = Heard()
    scaled.score(progress=heard)
    assert "data: train, test input is uint8: divided by 255" in heard.lines


def test_the_task_is_part_of_what_a_study_is(tmp_path: Path) -> None:
    """Numbers 0 and 1 may be labels or just numbers: other losses, and another folder."""
    data = [(x, (x.mean((2, 3)) > 0).float()) for x in (images(48, 0), images(24, 2))]
    many, numbers = (
        study("same", made(Net, 2), data, tmp_path, task=task)
        for task in ("multilabel", "regression")
    )
    assert many.folder != numbers.folder
    scores = [one.score(progress=False).scores["oracle"] for one in (many, numbers)]
    assert not np.allclose(scores[0], scores[1])


def test_a_study_file_names_its_task(tmp_path: Path) -> None:
    path = tmp_path / "numbers.toml"
    path.write_text(
        'name = "numbers"\ntask = "regression"\ncriteria = ["oracle"]\n'
        '[network]\nname = "Net"\n[pruning.layers]\nconv = 0.4\n'
        "[retraining]\nepochs = 1\nseeds = [0]\n"
    )
    from_file = Study(path, network=made(Net, 2), data=splits("regression"), runs=tmp_path / "runs")
    assert from_file.spec.task == "regression"
    assert from_file.score(progress=False).task == "regression"


@pytest.mark.parametrize(
    ("what", "fields"),
    [
        ("task", {"task": "of_their_own:Absolute"}),
        (
            "retraining.procedure",
            {"task": "regression", "retraining": RETRAINING | {"procedure": "of_their_own:train"}},
        ),
    ],
)
def test_code_that_changed_is_not_taken_for_the_same(
    what: str, fields: dict[str, Any], own: str, tmp_path: Path
) -> None:
    def made_of(name: str) -> Study:
        few = {"candidates": 3, "layers": {"conv": 0.4}}
        return study(
            name, made(Net, 2), splits("regression"), tmp_path / "runs", pruning=few, **fields
        )

    first = made_of("first").run(progress=False)
    assert made_of("first").run(progress=False).counts == first.counts
    heard = Heard()
    same = made_of("second").run(progress=heard)
    assert any("results taken over from first-" in line for line in heard.lines)
    pd.testing.assert_frame_equal(same.outcomes, first.outcomes)
    path = tmp_path / f"{own}.py"
    path.write_text(path.read_text().replace(".abs()", ".square()").replace("Adam", "SGD"))
    sys.modules.pop(own)
    message = rf"^the code of {what} 'of_their_own:\w+' has changed since this study began: give"
    with pytest.raises(InputError, match=message):
        made_of("first").run(progress=False)
    heard = Heard()
    other = made_of("third").run(progress=heard)
    assert not any("results taken over" in line for line in heard.lines)
    assert not np.allclose(other.outcomes["test_loss"], first.outcomes["test_loss"])


WRAPPED = """
import functools


def logged(function):
    @functools.wraps(function)
    def inner(*given):
        return function(*given)

    return inner


decorated = logged(train)
partial = functools.partial(train)


class Trainer:
    rate = 0.1

    def __call__(self, *given):
        return train(*given)


trainer = Trainer()
absolute = Absolute(3.0)
"""


@pytest.mark.parametrize(
    ("what", "named", "change"),
    [
        ("retraining.procedure", "decorated", ("Adam", "SGD")),
        ("retraining.procedure", "partial", ("Adam", "SGD")),
        ("retraining.procedure", "trainer", ("rate = 0.1", "rate = 0.2")),
        ("task", "absolute", ("Absolute(3.0)", "Absolute(4.0)")),
    ],
)
def test_code_behind_an_object_that_changed_is_not_taken_for_the_same(
    what: str, named: str, change: tuple[str, str], own: str, tmp_path: Path
) -> None:
    base, path = tmp_path / "their_base.py", tmp_path / f"{own}.py"
    base.write_text(OWN)
    path.write_text("from their_base import Absolute, train\n" + WRAPPED)
    retraining = RETRAINING | {"epochs": 1, "seeds": [0]}
    fields: dict[str, Any] = {"task": f"{own}:{named}"}
    if what != "task":
        retraining["procedure"] = f"{own}:{named}"
        fields = {"task": "regression"}

    def made_of(name: str) -> Study:
        return study(
            name, made(Net, 2), splits("regression"), tmp_path / "runs", retraining=retraining,
            pruning={"candidates": 3, "layers": {"conv": 0.4}}, **fields,
        )  # fmt: skip

    first = made_of("first").run(progress=False)
    for one in (base, path):
        sys.modules.pop(one.stem)
    assert made_of("first").run(progress=False).counts == first.counts
    heard = Heard()
    made_of("second").run(progress=heard)
    assert any("results taken over from first-" in line for line in heard.lines)
    for one in (base, path):
        one.write_text(one.read_text().replace(*change))
        sys.modules.pop(one.stem)
    with pytest.raises(InputError, match=rf"^the code of {what} '\w+:{named}' has changed since"):
        made_of("first").run(progress=False)
    heard = Heard()
    made_of("third").run(progress=heard)
    assert not any("results taken over" in line for line in heard.lines)
    sys.modules.pop(base.stem)


def test_code_that_cannot_be_read_is_not_taken_for_the_same(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = RETRAINING | {"procedure": f"{own}:train", "epochs": 1, "seeds": [0]}
    monkeypatch.setattr(prepare, "named_fingerprint", lambda *_: "")

    def made_of(name: str) -> Study:
        return study(
            name, made(Net, 2), splits("regression"), tmp_path / "runs", task="regression",
            retraining=fields, pruning={"candidates": 3, "layers": {"conv": 0.4}},
        )  # fmt: skip

    made_of("first").run(progress=False)
    with pytest.raises(
        InputError, match=r"of retraining\.procedure '\w+:train' cannot be read, and"
    ):
        made_of("first").run(progress=False)
    heard = Heard()
    made_of("second").run(progress=heard)
    assert any(line.startswith("nothing is taken over from first-") for line in heard.lines)


def test_the_dense_network_of_another_tasks_code_is_not_taken_over(
    own: str, tmp_path: Path, tiny_fields: dict[str, Any]
) -> None:
    path = tmp_path / f"{own}.py"
    path.write_text(
        "from trueoracle.tasks.classification import Classification\n\n\n"
        "class Mine(Classification):\n"
        "    def loss(self, outputs, batch):\n"
        "        return super().loss(outputs, batch) * 1.0\n"
    )
    fields = tiny_fields | {"task": f"{own}:Mine", "criteria": ["l1"]}
    fields["dense"] = fields["dense"] | {"epochs": 1}

    def is_taken(name: str) -> bool:
        heard = Heard()
        Study(**fields | {"name": name}, runs=tmp_path / "runs").score(progress=heard)
        return any(line.startswith("dense network: taken over from fir") for line in heard.lines)

    assert not is_taken("first")
    assert is_taken("second")
    path.write_text(path.read_text().replace("* 1.0", "* 0.01"))
    sys.modules.pop(own)
    assert not is_taken("third")


class Text(nn.Module):
    """Says the next token from each alone."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.conv, self.head = nn.Embedding(11, 8), nn.Linear(8, 5), nn.Linear(5, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return {"logits": self.head(torch.relu(self.conv(self.tokens(input_ids))))}


@pytest.mark.parametrize("task", ["next-token", "answers"])
def test_a_study_of_padded_texts(task: str, tmp_path: Path) -> None:
    def split(count: int, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(10, (count, 6), generator=generator)
        tokens[:, 1:] = (tokens[:, :1] + torch.arange(1, 6)) % 11  # there is something to learn
        lengths = torch.randint(3, 7, (count, 1), generator=generator)
        mask = (torch.arange(6) < lengths).long()
        fields = {"input_ids": tokens, "attention_mask": mask}
        if task == "answers":
            fields["labels"] = tokens.masked_fill(torch.arange(6) < lengths - 2, -100)
        return fields

    data = (split(48, 0), split(16, 1), split(24, 2))
    retraining = RETRAINING | {"learning_rate": 0.1}
    texts = study("texts", made(Text), data, tmp_path, task=task, retraining=retraining)
    measured = ["loss", "token_accuracy"]
    if task == "answers":  # those of a token or two are right or wrong as a whole
        measured.insert(1, "answer_accuracy")
    check(texts.run(progress=False), task, measured)


def test_data_of_another_task_is_refused(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(6, 1, 8, 8, generator=generator)
    split = Split.of(inputs, torch.rand(6, generator=generator))
    data = Splits(split, None, split, Regression())
    with pytest.raises(InputError, match="made for task 'regression', and task is 'multilabel'"):
        study("mine", made(Net, 1), data, tmp_path, task="multilabel")
    assert study("mine", made(Net, 1), data, tmp_path).spec.task == "regression"
