"""Studies that share their candidates, and studies of single weights, from start to report."""

from __future__ import annotations

import json
import pickle
import sqlite3
import sys
from collections import OrderedDict
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from tests.record.records import older_record
from tests.run.test_runner import Recorder
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.networks.weights import load_weights, weights_sha256
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.walk import find_groups
from trueoracle.record.paths import CANDIDATES, DATABASE, DENSE
from trueoracle.record.results import Results
from trueoracle.report.page import write_report
from trueoracle.report.summary import cost_in_words, summarise
from trueoracle.study import Study
from trueoracle.tasks.classification import Classification
from trueoracle.training.evaluate import evaluate


@pytest.fixture
def quick(tiny_fields: dict[str, Any]) -> dict[str, Any]:
    """Two networks' training, so that a test can afford several studies."""
    return tiny_fields | {
        "dense": {"epochs": 1, "batch_size": 32, "learning_rate": 0.05},
        "retraining": {"epochs": 1, "batch_size": 64, "seeds": [0]},
    }


def test_two_studies_share_their_candidates(quick: dict[str, Any], tmp_path: Path) -> None:
    sampled = quick | {"pruning": {"layers": {"conv1": 0.2}, "candidates": 4, "seed": 3}}
    first = Study(**sampled, runs=tmp_path).run(progress=False)
    path = first.folder / CANDIDATES
    shared = quick | {
        "name": "released",
        "pruning": {
            "layers": {"conv1": 0.2}, "candidates": str(path), "surgery": "as-released"
        },
    }  # fmt: skip
    second = Study(**shared, runs=tmp_path).run(progress=False)
    assert second.finished
    assert second.candidates["candidate"].tolist() == first.candidates["candidate"].tolist()
    assert (second.folder / CANDIDATES).read_text() == path.read_text()
    progress = Recorder()
    Study(**shared, runs=tmp_path).run(progress=progress)
    assert progress.stages == []
    whole = path.read_text()
    listing = {k: v for k, v in json.loads(whole).items() if k != "sha256"}
    path.write_text(json.dumps(listing | {"candidates": listing["candidates"][::-1]}))
    with pytest.raises(InputError, match=r"candidates\.json has changed since this study began"):
        Study(**shared, runs=tmp_path).run(progress=False)
    # Its own study puts its list right again.
    Study(**sampled, runs=tmp_path).run(progress=False)
    assert path.read_text() == whole


def test_the_papers_own_files_run_by_both_surgeries(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint, with the whole network in it, and its combination file of conv1 and conv2."""
    code = ModuleType("model.lenet5")
    theirs_class: Any = type("LeNet5_Mini", (nn.Sequential,), {"__module__": code.__name__})
    code.LeNet5_Mini = theirs_class  # type: ignore[attr-defined]
    trained = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    theirs = theirs_class(OrderedDict(trained.named_children()))
    weights = tmp_path / "ckpt_best.pth"
    parallel = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "model", ModuleType("model"))
        patched.setitem(sys.modules, code.__name__, code)
        torch.save({"arch": "lenet5_mini", "model": theirs, "state_dict": parallel}, weights)
    assert code.__name__ not in sys.modules

    ways = [((0, 9), (3, 4)), ((2, 5), (0, 8)), ((1, 3), (3, 4))]
    combinations = tmp_path / "lenet5_mini-mnist-0.001-combination.pkl"
    combinations.write_bytes(pickle.dumps(ways))
    listed = [{"conv1": list(one), "conv2": list(two)} for one, two in ways]

    losses, ids = {}, {}
    for surgery in ("exact", "as-released"):
        fields = quick | {
            "name": surgery,
            "network": {"name": "lenet5-mini", "weights": str(weights)},
            "pruning": {
                "layers": {"conv2": 0.2, "conv1": 0.2},
                "candidates": str(combinations),
                "surgery": surgery,
            },
        }
        study = Study(**fields, runs=tmp_path / "runs")
        results = study.run(progress=False)
        assert results.finished
        assert json.loads((results.folder / CANDIDATES).read_text())["candidates"] == listed
        recorded = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
        load_weights(recorded, results.folder / DENSE)
        assert weights_sha256(recorded) == weights_sha256(trained)
        # What is scored are those networks, cut by that surgery.
        prepared = study.prepare()
        losses[surgery], ids[surgery] = results.scores["oracle"], results.candidates["candidate"]
        for index in range(3):
            pruned = prepared.candidates.prune(trained, index)
            expected = evaluate(pruned.eval(), prepared.data.train, Classification(10))["loss"]
            assert losses[surgery].iloc[index] == pytest.approx(expected, rel=1e-5)
    assert (losses["exact"].to_numpy() != losses["as-released"].to_numpy()).all()
    assert ids["exact"].tolist() == ids["as-released"].tolist()
    combinations.write_bytes(pickle.dumps(ways[::-1]))
    with pytest.raises(InputError, match=r"combination\.pkl has changed since this study began"):
        study.run(progress=False)


def test_what_weights_lose_is_said_before_the_work(quick: dict[str, Any], tmp_path: Path) -> None:
    network, path = build("lenet5-mini", input_shape=(1, 32, 32), classes=10), tmp_path / "w.pth"
    torch.save({name: v.double() / 3 for name, v in network.state_dict().items()}, path)
    weights = {"network": {"name": "lenet5-mini", "weights": str(path)}}
    pruning = {"pruning": {"layers": {"conv1": 0.2}, "candidates": 2}}
    progress = Recorder()
    Study(**quick | weights | pruning, runs=tmp_path).score(progress=progress)
    assert progress.messages[0].startswith(f"{path} holds conv1.weight and 9 more in a precision")


@pytest.mark.parametrize(
    ("name", "arguments", "pattern", "layers"),
    [
        ("lenet5-mini", {}, "conv*", 3),
        ("vgg19", {"width": 0.05}, "conv*", 16),
        ("resnet56", {"width": 2}, "layer*.conv1", 27),
        ("resnet18", {"width": 2}, "layer*.conv1", 8),
    ],
)
def test_the_papers_networks_list_their_layers_in_their_order(
    name: str, arguments: dict[str, Any], pattern: str, layers: int
) -> None:
    """By which the tuples of a combination file are known to be of one layer or another."""
    shape = (1, 32, 32) if name == "lenet5-mini" else (3, 32, 32)
    network = build(name, arguments, input_shape=shape, classes=10)
    available = find_groups(network, torch.rand(2, *shape))
    listed = list_candidates(available, {pattern: 0.5}, count=1)
    order = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert [group.name for group in listed.groups] == [n for n in order if fnmatch(n, pattern)]
    assert len(listed.groups) == layers


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_study_of_single_weights_from_start_to_report(
    quick: dict[str, Any], tmp_path: Path, scope: str
) -> None:
    fields = quick | {
        "pruning": {
            "kind": "unstructured", "scope": scope, "layers": {"conv*": 0.5}, "candidates": 4
        },
        "criteria": ["oracle", "l1"],
    }  # fmt: skip

    class Stopper(Recorder):
        def advance(self, count: float = 1, note: str = "") -> None:
            super().advance(count)
            if self.stages[-1][0] == "retrain" and self.advanced >= 1 + 8 + 1:
                raise KeyboardInterrupt

    study = Study(**fields, runs=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stopper(), engine="loop")
    progress = Recorder()
    results = study.run(progress=progress)
    assert [stage[0] for stage in progress.stages] == ["retrain"]
    assert results.finished
    alone = Study(**fields, runs=tmp_path / "alone").run(progress=False, engine="loop")
    pd.testing.assert_frame_equal(results.outcomes, alone.outcomes)
    pd.testing.assert_frame_equal(results.scores, alone.scores)
    summary = summarise(results)
    weights = 250 + 2500 + 2500
    assert summary["cost"]["parameters"] == 5500 - weights // 2
    assert summary["cost"]["equal"] == (scope == "layer")
    half = (196_000 + 250_000 + 2500) // 2
    if scope == "layer":
        assert summary["cost"]["macs"] == half + 200
        assert cost_in_words(summary["cost"]) == (
            "each candidate: 2,875 of 5,500 parameters (compression 1.91x), 0.224 of 0.449 M MACs "
            "(theoretical speed-up 2.00x)"
        )
    else:
        assert summary["cost"]["macs"] == pytest.approx(half, rel=0.3)
        assert cost_in_words(summary["cost"]).startswith("the median candidate: 2,875 of 5,500")
    written = write_report(results, [], tmp_path / "report")
    page = written.page.read_text()
    assert f"prunes mask {summary['relations'][0]['chosen_pruned']['mask']};" in page
    if scope == "layer":
        for shown in ("2,875 of 5,500", "1.91×", "0.224 of 0.449 M", "2.00×"):
            assert shown in page
    assert "L1 norm of the pruned weights" in page
    # Its candidates can be shared, too.
    shared = fields | {"pruning": fields["pruning"] | {"candidates": str(
        results.folder / CANDIDATES
    )}}  # fmt: skip
    again = Study(**shared, runs=tmp_path).prepare()
    assert list(again.candidates.ids) == results.candidates["candidate"].tolist()


def test_a_criterion_that_cannot_score_single_weights_is_refused_first(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_filters.py").write_text(
        "def first(dense, candidates, data):\n    return candidates.sum_pruned({})\n"
    )
    fields = quick | {
        "pruning": {"kind": "unstructured", "layers": {"conv1": 0.5}, "candidates": 4},
        "criteria": ["of_filters:first"],
    }
    with pytest.raises(
        InputError, match="the importance of conv1 is one number for each of its weights"
    ):
        Study(**fields, runs=tmp_path / "runs").run(progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_record_from_before_costs_is_read_and_completed(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    # One of the second format, which had costs, made to one of the first.
    folder = older_record(tmp_path)
    with sqlite3.connect(folder / DATABASE) as database:
        for table in ("dense", "candidates"):
            for column in ("parameters", "macs"):
                database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        database.execute("PRAGMA user_version = 1")
    database.close()
    old = Results(folder)
    assert old.candidates["macs"].isna().all()
    assert old.dense is not None
    assert old.dense["macs"] is None
    assert summarise(old)["cost"] is None
    assert write_report(old, [], tmp_path / "report").page.is_file()
    progress = Recorder()
    completed = Study(**tiny_fields, runs=tmp_path).run(progress=progress)
    assert completed.folder == folder
    # Its l1 is of an earlier version.
    assert [stage[0] for stage in progress.stages] == ["score by l1", "retrain"]
    assert completed.candidates["candidate"].tolist() == old.candidates["candidate"].tolist()
    assert completed.candidates["macs"].notna().all()
    assert completed.dense is not None
    assert completed.dense["macs"] > 0
