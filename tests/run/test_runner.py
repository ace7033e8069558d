from __future__ import annotations

import copy
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import trueoracle
from trueoracle.criteria.base import find_criterion
from trueoracle.data.splits import Splits
from trueoracle.errors import BusyError, InputError, StoreError, TrainingError
from trueoracle.networks.registry import build
from trueoracle.networks.weights import (
    load_weights,
    read_metadata,
    save_weights,
    weights_sha256,
)
from trueoracle.pruning.candidates import Candidates
from trueoracle.record.lock import locked
from trueoracle.record.paths import DATABASE, DENSE
from trueoracle.record.results import Results
from trueoracle.record.store import Failed, Store
from trueoracle.record.verify import repair
from trueoracle.run import dense, drive, score
from trueoracle.run.drive import chunks
from trueoracle.spec import spec
from trueoracle.study import Study
from trueoracle.training.loop import train


def outcomes(results: Results) -> pd.DataFrame:
    return results.outcomes.reset_index(drop=True)


@pytest.fixture
def study(tiny_fields: dict[str, Any], tmp_path: Path) -> Study:
    return Study(**tiny_fields, runs=tmp_path / "runs")


def otherwise(network: nn.Module, *args: Any, **options: Any) -> Any:
    """Training that comes out otherwise, as on another machine."""
    records = train(network, *args, **options)
    next(network.parameters()).data[0] += 1e-3
    return records


class Recorder:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int, int]] = []
        self.advanced = 0.0
        self.messages: list[str] = []

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.stages.append((name, total, done))

    def advance(self, count: float = 1, note: str = "") -> None:
        self.advanced += count

    def message(self, text: str) -> None:
        self.messages.append(text)


def test_a_study_from_beginning_to_end(study: Study) -> None:
    progress = Recorder()
    results = study.run(progress=progress)
    assert results.finished
    assert results.folder.name == study.spec.folder_name
    assert len(results.candidates) == 10
    assert results.criteria == ["oracle", "l1"]
    assert results.scores.notna().all().all()
    assert len(results.outcomes) == 10 * 2 * 2
    assert results.outcomes.notna().all().all()
    assert progress.stages == [
        ("dense network", 4, 0),
        ("score by oracle", 10, 0),
        ("score by l1", 10, 0),
        ("retrain", 20, 0),
    ]
    assert progress.advanced == 4 + 10 + 10 + 20
    # One of ten filters is gone, and with it a tenth of what reads them.
    macs = 9 * 25 * 784 + 9 * 250 * 100 + 2500 + 100 + 100
    assert progress.messages[0] == (
        "the study: 20 networks of 0.404 M MACs, 2 epochs of 300 examples each: "
        f"{3 * macs * 300 * 2 * 20:.1e} MACs of training (3 × forward)".replace("e+", "e")
    )
    assert "τ" in progress.messages[1]  # what the study would tell from chance
    # 500 images of 32 x 32 numbers; 5,500 weights, their gradients and their momentum, and a batch.
    memory = re.fullmatch(r"memory: at least (\S+) MB, of data .*", progress.messages[2])
    assert memory is not None
    assert 500 * 1024 * 4 + 3 * 5500 * 4 < float(memory[1]) * 1e6 < 5e6
    assert re.fullmatch(r"training the dense network \(about \d+ .*\)", progress.messages[3])
    assert results.candidates["macs"].tolist() == [macs] * 10
    assert results.candidates["parameters"].tolist() == [5500 - 26 - 250] * 10
    assert results.dense is not None
    assert results.dense["origin"] == "trained"
    assert (results.dense["parameters"], results.dense["macs"]) == (5500, 448_700)
    assert results.provenance[0]["ended"] is not None
    assert results.provenance[0]["torch"] == torch.__version__
    table = results.correlate()
    assert table[["criterion", "metric"]].to_numpy().tolist() == [
        ["oracle", "test_accuracy"],
        ["oracle", "test_loss"],
        ["l1", "test_accuracy"],
        ["l1", "test_loss"],
    ]
    assert table["kendall_tau"].notna().all()


@pytest.mark.slow
def test_what_is_recorded_is_what_the_parts_compute(study: Study) -> None:
    """Scores and outcomes of one candidate, recomputed from the saved network alone."""
    results = study.run(progress=False, engine="loop")
    prepared = study.prepare()
    network = prepared.network
    load_weights(network, results.folder / DENSE)
    candidate = prepared.candidates.ids[6]
    score = find_criterion("oracle")(network, prepared.candidates.take([6]), prepared.data)[0]
    recorded = results.scores.set_index("candidate").loc[candidate, "oracle"]
    assert recorded == pytest.approx(score, abs=1e-7)
    pruned = prepared.candidates.prune(network, 6)
    records = train(pruned, prepared.data, study.spec.retraining, seed=1)
    rows = results.outcomes.query("candidate == @candidate and seed == 1")
    assert rows["test_loss"].tolist() == [record.values["test_loss"] for record in records]
    assert rows["validation_accuracy"].tolist() == [
        r.values["validation_accuracy"] for r in records
    ]


def test_running_again_does_nothing_again(study: Study, finished: Results) -> None:
    progress = Recorder()
    second = study.run(progress=progress)
    assert progress.stages == []
    pd.testing.assert_frame_equal(finished.retrainings, second.retrainings)
    assert len(second.provenance) == 2


@pytest.mark.slow
def test_the_same_study_gives_the_same_numbers(
    finished: Results, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    two = Study(**tiny_fields, runs=tmp_path / "two").run(progress=False)
    pd.testing.assert_frame_equal(outcomes(finished), outcomes(two))
    pd.testing.assert_frame_equal(finished.scores, two.scores)


@pytest.mark.slow
def test_an_interrupted_study_goes_on(
    finished: Results, tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within the second population; the first one is kept."""
    study = Study(**tiny_fields, runs=tmp_path / "part")

    def seed_by_seed(
        left: Mapping[int, Sequence[int]], group: int, groups: int
    ) -> Iterator[list[tuple[int, int]]]:
        return chunks(left, 10, 1)

    monkeypatch.setattr(drive, "chunks", seed_by_seed)

    class Stopper(Recorder):
        def advance(self, count: float = 1, note: str = "") -> None:
            super().advance(count)
            if self.stages[-1][0] == "retrain" and self.advanced > 4 + 20 + 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stopper())
    part = study.results()
    assert part.counts["retrainings"] == 10
    assert part.status()["state"] == "interrupted"
    assert part.correlate()["n"].tolist() == [10] * 4
    progress = Recorder()
    results = study.run(progress=progress)
    assert progress.stages == [("retrain", 20, 10)]
    pd.testing.assert_frame_equal(outcomes(results), outcomes(finished))
    assert results.provenance[0]["ended"] is None


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["loop", "wide"])
def test_engines_change_nothing_but_the_speed(
    finished: Results, tiny_fields: dict[str, Any], tmp_path: Path, engine: str
) -> None:
    other = Study(**tiny_fields, runs=tmp_path / engine).run(progress=False, engine=engine)
    assert other.provenance[0]["engine"] == engine
    pd.testing.assert_frame_equal(outcomes(finished), outcomes(other), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_a_resumed_study_keeps_its_engine(study: Study) -> None:
    class Stopper(Recorder):
        def advance(self, count: float = 1, note: str = "") -> None:
            super().advance(count)
            if self.stages[-1][0] == "retrain" and self.advanced >= 4 + 20 + 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stopper(), engine="loop")
    progress = Recorder()
    results = study.run(progress=progress)
    chosen = "): engine loop, one network at a time: as in the sitting before"
    assert progress.messages[-1].startswith("retraining (about ")
    assert progress.messages[-1].endswith(chosen)
    assert progress.messages[0].startswith("what is left: ")
    assert [sitting["engine"] for sitting in results.provenance] == ["loop", "loop"]
    assert 3 <= progress.stages[0][2] < 20


def test_an_engine_that_cannot_is_refused_before_anything_is_written(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    network = {"name": "mlp", "arguments": {"hidden": (4,), "batch_norm": True}}
    fields = tiny_fields | {"network": network, "pruning": {"layers": {"fc1": 0.25}}}
    with pytest.raises(InputError, match="engine 'native' cannot train this network"):
        Study(**fields, runs=tmp_path / "runs").run(progress=False, engine="native")
    with pytest.raises(InputError, match="unknown engine 'fast'"):
        Study(**tiny_fields, runs=tmp_path / "runs").run(progress=False, engine="fast")
    with pytest.raises(InputError, match="amount of memory"):
        Study(**tiny_fields, runs=tmp_path / "runs").run(progress=False, memory="much")
    assert not (tmp_path / "runs").exists()


@settings(max_examples=50, deadline=None)
@given(
    left=st.dictionaries(st.integers(0, 5), st.lists(st.integers(0, 99), unique=True), max_size=4),
    group=st.integers(1, 7),
    groups=st.integers(1, 4),
)
def test_chunks_hold_every_network_once_and_one_seed_a_group(
    left: dict[int, list[int]], group: int, groups: int
) -> None:
    found = list(chunks(left, group, groups))
    members = [member for chunk in found for member in chunk]
    assert members == [(seed, index) for seed, indices in left.items() for index in indices]
    assert all(0 < len(chunk) <= group * groups for chunk in found)
    assert all(len(chunk) == group * groups for chunk in found[:-1]) or len(left) > 1


def test_scoring_is_resumed_too(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "SCORE_CHUNK", 3)
    monkeypatch.setattr(score, "CHUNK_SECONDS", 0)

    class Stopper(Recorder):
        def advance(self, count: float = 1, note: str = "") -> None:
            super().advance(count)
            if self.advanced == 4 + 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stopper())
    assert study.results().counts["scores"] == 6
    progress = Recorder()
    study.run(progress=progress)
    assert progress.stages[0] == ("score by oracle", 10, 6)


def test_a_second_process_is_told_and_stops(study: Study) -> None:
    study.folder.mkdir(parents=True)
    with locked(study.folder), pytest.raises(BusyError, match="another process"):
        study.run(progress=False)


@pytest.mark.slow
def test_more_seeds_and_criteria_take_over_what_is_recorded(
    study: Study, finished: Results, tiny_fields: dict[str, Any]
) -> None:
    more = tiny_fields | {"criteria": ["oracle", "l1", "l2"]}
    more["retraining"] = tiny_fields["retraining"] | {"seeds": [0, 1, 2]}
    progress = Recorder()
    second = Study(**more, runs=study.folder.parent).run(progress=progress)
    assert second.folder != finished.folder
    assert [stage[0] for stage in progress.stages] == ["score by l2", "retrain"]
    assert progress.stages[-1] == ("retrain", 30, 20)
    assert any("taken over from tiny-" in message for message in progress.messages)
    assert second.dense is not None
    assert second.dense["origin"] == "adopted"
    pd.testing.assert_frame_equal(
        second.outcomes.query("seed < 2").reset_index(drop=True), outcomes(finished)
    )
    # The same study on its own, without anything to take over, finds the same numbers.
    alone = Study(**more, runs=study.folder.parent.parent / "alone").run(progress=False)
    pd.testing.assert_frame_equal(outcomes(second), outcomes(alone))
    pd.testing.assert_frame_equal(second.scores, alone.scores)


def test_what_was_all_taken_over_is_not_retrained(
    study: Study, finished: Results, tiny_fields: dict[str, Any]
) -> None:
    progress = Recorder()
    more = tiny_fields | {"criteria": ["oracle", "l2"]}
    results = Study(**more, runs=study.folder.parent).run(progress=progress)
    assert results.finished
    assert [stage[0] for stage in progress.stages] == ["score by l2"]
    assert not any(message.startswith("retraining") for message in progress.messages)
    assert "engine" not in results.provenance[0]


def test_another_surgery_takes_over_the_dense_network_only(
    study: Study, finished: Results, tiny_fields: dict[str, Any]
) -> None:
    fields = tiny_fields | {"pruning": {"layers": {"conv1": 0.1}, "surgery": "as-released"}}
    progress = Recorder()
    released = Study(**fields, runs=study.folder.parent).run(progress=progress)
    assert [stage for stage in progress.stages if stage[0] == "retrain"] == [("retrain", 20, 0)]
    exact = study.results()
    same = (released.scores["oracle"] - exact.scores["oracle"]).abs() < 1e-6
    # The one candidate that the L1 pass chose is wired alike in both.
    assert same.sum() == 1
    assert exact.scores.loc[same, "l1"].item() == exact.scores["l1"].min()


def test_an_unchanged_criterion_is_not_scored_again_and_a_changed_one_is(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "my_criterion.py"
    text = "def first(dense, candidates, data):\n    return [float(w[0][0]) for w in candidates]\n"
    module.write_text(text)
    fields = tiny_fields | {"criteria": ["my_criterion:first"]}
    results = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    assert results.scores["my_criterion:first"].tolist() == [float(i) for i in range(10)]
    module.write_text(text.replace("float(", "10 + float("))
    sys.modules.pop("my_criterion")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    import linecache

    linecache.checkcache()
    progress = Recorder()
    results = Study(**fields, runs=tmp_path / "runs").run(progress=progress)
    assert results.scores["my_criterion:first"].tolist() == [10.0 + i for i in range(10)]
    assert progress.messages == [
        "criterion my_criterion:first: its code may have changed, so it is scored anew"
    ]


def test_candidates_that_diverge_are_recorded_and_counted(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {
        "retraining": {"epochs": 3, "batch_size": 32, "learning_rate": 1e8, "seeds": [0]}
    }
    results = Study(**fields, runs=tmp_path).run(progress=False)
    assert results.finished
    assert results.status()["diverged"] == 10
    assert results.retrainings["diverged"].tolist() == [1] * 10
    with pytest.raises(InputError, match="no candidate has both"):
        results.relation("oracle", "test_loss")


def test_a_dense_network_that_diverges_ends_the_study(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {"dense": {"epochs": 2, "batch_size": 32, "learning_rate": 1e9}}
    with pytest.raises(TrainingError, match=r"nothing to prune .*dense\.learning_rate"):
        Study(**fields, runs=tmp_path).run(progress=False)


def test_a_missing_or_changed_dense_file_is_noticed(study: Study, finished: Results) -> None:
    path = study.folder / DENSE
    other = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    whole = path.read_bytes()
    save_weights(other, path, {"dense_digest": "x", "epochs": []})
    for damaged in (path.read_bytes(), whole[:300], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"dense\.safetensors is damaged: .* a backup"):
            study.run(progress=False)
        with pytest.raises(StoreError, match=r"dense\.safetensors is damaged: .* a backup"):
            study.search("50%", progress=False)


@pytest.mark.slow
def test_a_dense_network_made_again_is_taken_where_it_is_the_same(
    study: Study, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study.folder / DENSE
    path.unlink()
    progress = Recorder()
    again = study.run(progress=progress)
    assert any("the network is made again" in message for message in progress.messages)
    pd.testing.assert_frame_equal(again.outcomes, finished.outcomes)
    assert again.dense is not None
    assert finished.dense is not None
    # Safetensors writes its metadata in any order.
    unlike = {key for key, value in again.dense.items() if value != finished.dense[key]}
    assert unlike <= {"file_sha256"}
    # Trained elsewhere it may come out otherwise, and the scores are of another network.
    path.unlink()
    monkeypatch.setattr(dense, "train", otherwise)
    with pytest.raises(StoreError, match=r"is another one than .* 20 scores and 20 outcomes"):
        study.run(progress=False)
    assert not path.exists()


def test_another_network_of_a_neighbour_is_not_taken_for_the_missing_one(
    study: Study, finished: Results, tiny_fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = Study(**tiny_fields | {"criteria": ["l2"]}, runs=study.folder.parent / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(dense, "train", otherwise)
        neighbour.score(progress=False)
    neighbour.folder.rename(study.folder.parent / neighbour.folder.name)
    (study.folder / DENSE).unlink()
    progress = Recorder()
    assert study.run(progress=progress).finished
    assert "dense network" in [name for name, _, _ in progress.stages]


def test_a_damaged_row_of_the_dense_network_costs_nothing_else(
    study: Study, finished: Results
) -> None:
    names = list(finished.candidates["candidate"])
    with Store(study.folder) as store:
        with store._transaction():
            for table in ("retrainings", "outcomes"):
                store._drop(table, "seed = 1")
        store.record_failed([Failed(name, 1, "no") for name in names])
    with sqlite3.connect(study.folder / DATABASE) as database:
        database.execute("UPDATE dense SET test_loss = 0")
    database.close()
    repair(study.folder)
    again = study.run(progress=False)
    assert again.counts["retrainings"] == len(again.failures) == len(names)
    assert again.dense is not None
    pd.testing.assert_frame_equal(again.dense_epochs, finished.dense_epochs)
    kept = read_metadata(study.folder / DENSE)["epochs"]
    assert isinstance(kept, list)
    assert len(kept) == len(finished.dense_epochs)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["dense network", "score by l1", "retrain"])
def test_a_runs_folder_that_is_moved_while_it_is_worked_on_is_said(
    study: Study, moment: str
) -> None:
    runs = study.folder.parent
    moved = runs.with_name("moved")

    class Mover(Recorder):
        def stage(self, name: str, total: int, done: int, unit: str) -> None:
            if name == moment:
                runs.rename(moved)

    with pytest.raises(StoreError) as caught:
        study.run(progress=Mover())
    assert "\n" not in str(caught.value)
    assert not runs.exists()
    # What was committed is there, and it goes on where it is now.
    assert Study(study.spec, runs=moved).run(progress=False).finished


def test_a_neighbours_changed_weights_are_not_taken_over(
    study: Study, finished: Results, tiny_fields: dict[str, Any]
) -> None:
    path = finished.folder / DENSE
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    save_weights(network, path, read_metadata(path))
    fields = tiny_fields | {"criteria": ["l2"]}
    second = Study(**fields, runs=study.folder.parent).run(progress=False)
    assert second.dense is not None
    assert finished.dense is not None
    assert second.dense["origin"] == "trained"
    assert second.dense["sha256"] == finished.dense["sha256"]


@pytest.mark.slow
def test_numbers_of_another_digest_format_are_not_taken_over(
    study: Study, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spec, "DIGEST_FORMAT", 10_000)
    again = Study(study.spec, runs=study.folder.parent)
    assert again.folder != study.folder
    assert "adopted" not in again.run(progress=False).provenance[0]


def test_a_users_criterion_that_fails_is_noticed_before_long_work(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    def failing(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        raise KeyError("conv9")

    def too_many(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        return [0.0] * 7

    trueoracle.criterion("failing")(failing)
    trueoracle.criterion("too-many")(too_many)
    for name, message in {
        "failing": "criterion 'failing' failed: KeyError: 'conv9'",
        "too-many": r"scores of shape \[7\], expected \[3\]",
    }.items():
        study = Study(**(tiny_fields | {"criteria": [name]}), runs=tmp_path / "runs")
        with pytest.raises(InputError, match=message):
            study.run(progress=False)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_damaged_neighbour_does_not_stop_a_study(
    study: Study, finished: Results, tiny_fields: dict[str, Any]
) -> None:
    database = finished.folder / DATABASE
    database.write_bytes(database.read_bytes()[:5000])
    fields = tiny_fields | {"criteria": ["l2"]}
    assert Study(**fields, runs=study.folder.parent).run(progress=False).finished


def test_nothing_is_taken_over_from_a_neighbour_whose_numbers_changed(
    study: Study, finished: Results, tiny_fields: dict[str, Any]
) -> None:
    with sqlite3.connect(finished.folder / DATABASE) as database:
        database.execute("UPDATE outcomes SET test_loss = test_loss + 1 WHERE epoch = 1")
    database.close()
    progress = Recorder()
    second = Study(**tiny_fields | {"criteria": ["l1"]}, runs=study.folder.parent)
    results = second.run(progress=progress)
    said = [m for m in progress.messages if m.startswith("nothing is taken over from tiny-")]
    assert len(said) == 1
    assert "table outcomes" in said[0]
    pd.testing.assert_frame_equal(outcomes(results), outcomes(finished))


# A network and data of one's own


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(196, 10),
    )  # fmt: skip


OWN: dict[str, Any] = {
    "name": "own",
    "pruning": {"layers": {"0": 0.25}},
    "retraining": {"epochs": 1, "seeds": [0], "learning_rate": 0.01},
}


def test_a_network_and_tensors_of_ones_own(few_digits: Splits, tmp_path: Path) -> None:
    network = own_network()
    before = weights_sha256(network)
    tensors = tuple((split.inputs, split.targets) for _, split in few_digits.named())
    study = Study(**OWN, network=network, data=tensors, runs=tmp_path)
    results = study.run(progress=False)
    assert results.finished
    assert len(results.candidates) == 4
    assert results.dense is not None
    assert results.dense["origin"] == "given"
    assert weights_sha256(network) == before
    assert results.plot("l1", "test_loss").axes[0].get_xlabel() == "L1 norm of the pruned filters"
    other = own_network()
    nn.init.zeros_(other.get_parameter("0.bias"))
    assert Study(**OWN, network=other, data=tensors, runs=tmp_path).folder != study.folder
    # The record alone does not hold the network or the data.
    with pytest.raises(InputError, match=r"own needs its network: Study\(…, network=…\)"):
        Study(results.spec, runs=tmp_path).run(progress=False)
    with pytest.raises(InputError, match="own needs its data"):
        Study(results.spec, network=network, runs=tmp_path).run(progress=False)


def test_another_architecture_with_the_same_weights_is_another_study(
    few_digits: Splits, tmp_path: Path
) -> None:
    relu = own_network()
    variants = [copy.deepcopy(relu) for _ in range(3)]
    variants[0].set_submodule("1", nn.Tanh())
    variants[1].get_submodule("4").p = 0.5  # type: ignore[assignment]
    variants[2].get_parameter("0.bias").requires_grad_(False)
    named = [Named("relu"), Named("tanh"), Named("relu", scale=2.0)]
    for one in named:
        one.load_state_dict(named[0].state_dict())
    folders = {
        Study(**OWN, network=network, data=few_digits, runs=tmp_path).folder
        for network in (relu, *variants, *named)
    }
    assert len(folders) == 4 + 3


class Named(nn.Module):
    """Two networks that differ in a plain attribute, or in a buffer that no checkpoint holds."""

    def __init__(self, activation: str, scale: float = 1.0) -> None:
        super().__init__()
        self.activation = activation
        self.conv, self.out = nn.Conv2d(1, 4, 32), nn.Linear(4, 10)
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = getattr(torch, self.activation)(self.conv(x)).flatten(1)
        return self.out(h) * self.scale  # type: ignore[no-any-return]


def test_what_happens_to_a_given_network_later_is_not_the_studys(
    few_digits: Splits, tmp_path: Path
) -> None:
    network = own_network()
    study = Study(**OWN, network=network, data=few_digits, runs=tmp_path)
    nn.init.zeros_(network.get_parameter("0.weight"))
    dense = study.run(progress=False).dense
    assert dense is not None
    assert dense["sha256"] == weights_sha256(own_network())


def test_a_network_without_tensors_yet_is_refused(few_digits: Splits, tmp_path: Path) -> None:
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, 10))
    with pytest.raises(InputError, match=r"1\.weight of the network has no numbers yet"):
        Study(**OWN, network=lazy, data=few_digits, runs=tmp_path)


FACTORY = """
from torch import nn
def small(classes):
    return nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(),
                         nn.Linear(196, classes))
"""


@pytest.mark.slow
def test_a_users_factory_that_changes_is_noticed_and_not_mixed(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    fields = tiny_fields | {
        "network": {"name": "small_networks:small"},
        "pruning": {"layers": {"0": 0.25}},
    }
    more = fields | {"retraining": tiny_fields["retraining"] | {"seeds": [0, 1, 2]}}

    def write(text: str) -> None:
        (tmp_path / "small_networks.py").write_text(text)
        sys.modules.pop("small_networks", None)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)

    write(FACTORY)
    first = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    write(FACTORY.replace("ReLU", "Tanh"))
    with pytest.raises(InputError, match="the code of network 'small_networks:small' has changed"):
        Study(**fields, runs=tmp_path / "runs").run(progress=False)
    second = Study(**more, runs=tmp_path / "runs").run(progress=False)
    alone = Study(**more, runs=tmp_path / "alone").run(progress=False)
    pd.testing.assert_frame_equal(outcomes(second), outcomes(alone))
    assert second.dense is not None
    assert first.dense is not None
    assert second.dense["origin"] == "trained"
    # Nor is a dense network taken over that began otherwise.
    write(FACTORY.replace("    return", "    nn.init.zeros_(nn.Linear(2, 2).weight)\n    return"))
    began = Study(**(more | {"name": "began"}), runs=tmp_path / "runs").run(progress=False)
    assert began.dense is not None
    assert began.dense["origin"] == "trained"
    # Other shapes do not stop it either.
    write(FACTORY.replace("(1, 4, 5)", "(1, 8, 5)").replace("196", "392"))
    wide = more | {"name": "wide"}
    assert Study(**wide, runs=tmp_path / "runs").run(progress=False).finished


CENTRED = """
import numpy as np
def centred(dense, candidates, data):
    first = np.array([way[0][0] for way in candidates], dtype=float)
    return (first - first.mean()) / len(first)
"""


def test_scores_that_depend_on_the_list_are_not_taken_over(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "centring.py").write_text(CENTRED)
    fields = tiny_fields | {"criteria": ["centring:centred"]}
    some = fields | {"pruning": {"layers": {"conv1": 0.1}, "candidates": 3}}
    Study(**some, runs=tmp_path / "runs").run(progress=False)
    whole = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    expected = [(i - 4.5) / 10 for i in range(10)]
    assert whole.scores["centring:centred"].tolist() == pytest.approx(expected)
    # Their retrainings are the same, and are.
    assert whole.provenance[0]["adopted"] == {Study(**some).folder.name: 6}


@pytest.mark.slow
def test_a_criterion_cannot_harm_the_dense_network(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    @trueoracle.criterion("vandal")
    def vandal(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        assert not dense.training
        with torch.no_grad():
            for parameter in dense.parameters():
                parameter.zero_()
        return [0.0] * len(candidates)

    alone = Study(**tiny_fields, runs=tmp_path / "alone").run(progress=False)
    fields = tiny_fields | {"criteria": ["vandal", "oracle", "l1"]}
    beside = Study(**fields, runs=tmp_path / "beside").run(progress=False)
    pd.testing.assert_frame_equal(outcomes(alone), outcomes(beside))
    pd.testing.assert_frame_equal(alone.scores, beside.scores[alone.scores.columns])


def test_fields_given_in_python_change_a_study_and_keep_the_rest(tmp_path: Path) -> None:
    study = Study("digits-conv1-0.2", retraining={"epochs": 3}, runs=tmp_path)
    base = Study("digits-conv1-0.2", runs=tmp_path).spec
    assert study.spec.retraining == base.retraining.model_copy(update={"epochs": 3})
    assert study.spec.dense == base.dense
    assert Study("digits-conv1-0.2", network={"arguments": {"depth": 6}}).spec.network.name == (
        "lenet5-mini"
    )
    assert Study("digits-conv1-0.2", network="lenet5", runs=tmp_path).spec.network.arguments == {}


def test_a_registered_network_on_data_of_ones_own(few_digits: Splits, tmp_path: Path) -> None:
    study = Study(
        name="mlp-on-mine", network={"name": "mlp", "arguments": {"hidden": [8]}}, data=few_digits,
        dense={"epochs": 2, "batch_size": 32}, pruning={"layers": {"fc1": 0.125}},
        retraining={"epochs": 1, "seeds": [0]}, runs=tmp_path,
    )  # fmt: skip
    results = study.run(progress=False)
    assert results.finished
    assert results.dense is not None
    assert results.dense["origin"] == "trained"


def test_weights_from_a_file(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    path = tmp_path / "mine.safetensors"
    save_weights(network, path, {})
    fields = tiny_fields | {"network": {"name": "lenet5-mini", "weights": str(path)}}
    results = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    assert results.dense is not None
    assert results.dense["origin"] == "given"
    assert results.dense["sha256"] == weights_sha256(network)
    assert results.dense_epochs.empty
    nn.init.zeros_(network.get_parameter("conv1.bias"))
    save_weights(network, path, {})
    with pytest.raises(InputError, match=r"mine\.safetensors has changed since this study began"):
        Study(**fields, runs=tmp_path / "runs").run(progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"name": "lenet5-mini", "arguments": {"widht": 3}}}, "did you mean 'width'"),
        ({"data": {"name": "mnits-5k"}}, "did you mean 'mnist-5k'"),
        ({"data": {"name": "mnist-5k", "validation_images": 4000}}, "takes 400 of class 0"),
        ({"criteria": ["orcale"]}, "did you mean 'oracle'"),
        ({"pruning": {"layers": {"conv7": 0.5}}}, "unknown layer in pruning.layers 'conv7'"),
        ({"pruning": {"layers": {"fc2": 0.5}}}, "'fc2' cannot be pruned: its output is"),
        ({"pruning": {"layers": {"conv1": 0.01}}}, "would remove nothing of 10 filters"),
        ({"network": {"name": "lenet5-mini", "weights": "none.pt"}}, "no weights file none.pt"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_written(
    tiny_fields: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    study = Study(**(tiny_fields | changes), runs=tmp_path / "runs")
    with pytest.raises(InputError) as caught:
        study.run(progress=False)
    assert message in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_networks_and_images_that_do_not_go_together_are_refused(
    few_digits: Splits, tmp_path: Path
) -> None:
    too_few = nn.Sequential(nn.Conv2d(1, 4, 32), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(InputError, match=r"gives \[3, 5\] for 3 examples, expected \[3, 10\]"):
        Study(**OWN, network=too_few, data=few_digits, runs=tmp_path).run(progress=False)
    frozen = own_network().requires_grad_(requires_grad=False)
    with pytest.raises(InputError, match="nothing can train"):
        Study(**OWN, network=frozen, data=few_digits, runs=tmp_path).run(progress=False)
    normed = nn.Sequential(nn.Conv2d(1, 4, 32), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))
    for size in (299, 1):
        odd = OWN | {"retraining": {"batch_size": size}}
        with pytest.raises(InputError, match=f"retraining.batch_size = {size} leaves a last batch"):
            Study(**odd, network=normed, data=few_digits, runs=tmp_path).run(progress=False)
    # 300 examples: batches of 14 and one of 6, computed by 5 at a time, are 5 + 5 + 4 and 5 + 1.
    parts = OWN | {"retraining": {"batch_size": 14, "accumulate": 3}}
    with pytest.raises(InputError, match="14 computed in 3 parts leaves a last part of one"):
        Study(**parts, network=normed, data=few_digits, runs=tmp_path).run(progress=False)
    few = OWN | {"retraining": {"batch_size": 299, "steps_per_epoch": 1}}  # the last is not drawn
    Study(**few, network=normed, data=few_digits, runs=tmp_path).prepare()
    # A norm over the pixels of one image is fine.
    wider = nn.Sequential(nn.Conv2d(1, 4, 29), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 10))
    odd = OWN | {"retraining": {"batch_size": 299}}
    Study(**odd, network=wider, data=few_digits, runs=tmp_path).prepare()
    rows = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    table = (torch.rand(9, 4), torch.arange(9) % 2)
    shifted = OWN | {"retraining": {"shift": 1}}
    with pytest.raises(InputError, match=r"retraining\.shift needs images \[C, H, W\]"):
        Study(**shifted, network=rows, data=(table, table), runs=tmp_path).run(progress=False)
    three_channels = nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(InputError, match=r"does not run on images of shape \[1, 32, 32\]"):
        Study(**OWN, network=three_channels, data=few_digits, runs=tmp_path).run(progress=False)
    with pytest.raises(InputError, match="device 'gpu' cannot be used"):
        Study(**OWN, network=own_network(), data=few_digits, runs=tmp_path).prepare("gpu")
    with pytest.raises(InputError, match="a study needs a name"):
        Study(network=own_network(), data=few_digits)
    assert list(tmp_path.iterdir()) == []


# Killed at any moment


def start(runs: Path) -> subprocess.Popen[str]:
    settings = [
        "dense.epochs=2",
        "retraining.epochs=2",
        "pruning.layers.conv1=0.1",
        "criteria=['l1']",
        "data.train_images=1500",
        "data.test_images=200",
    ]
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "trueoracle", "run", "digits-conv1-0.2", "--runs", str(runs)]
    return subprocess.Popen(
        [*command, "--engine", "loop", *arguments],  # a network at a time: many moments to kill
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )  # fmt: skip


def committed(runs: Path, table: str) -> int:
    for database in runs.glob(f"*/{DATABASE}"):
        try:
            with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as connection:
                return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.Error:
            return 0
        finally:
            connection.close()
    return 0


@pytest.mark.slow
def test_a_killed_run_resumes_with_what_was_committed(tmp_path: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # Killed in the dense network's training, then twice in the retraining.
    for table, wanted in (("provenance", 1), ("retrainings", 1), ("retrainings", 8)):
        process = start(killed)
        deadline = time.monotonic() + 120
        while committed(killed, table) < wanted:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (folder,) = killed.iterdir()
    before = Results(folder).retrainings
    assert 8 <= len(before) < 20
    output, _ = start(killed).communicate()
    assert f"retrain: 20 networks, {len(before)} recorded already" in output
    results = Results(folder)
    assert results.finished
    # What was committed before the kill was not done again: its times are the very same.
    after = results.retrainings.head(len(before))
    pd.testing.assert_frame_equal(after, before)
    start(whole).communicate()
    (other,) = whole.iterdir()
    same = outcomes(Results(other))
    pd.testing.assert_frame_equal(outcomes(results), same, check_exact=True)
