"""A search on networks in training: what it chooses, keeps, and goes on from."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import trueoracle
from tests.conftest import kept_criteria
from tests.record.records import older_record
from tests.run.test_runner import Recorder, otherwise
from trueoracle.data.splits import Splits
from trueoracle.engines import choose as engines
from trueoracle.errors import BusyError, FailedError, InputError, StoreError, TrainingError
from trueoracle.files import read_checked_json
from trueoracle.networks.weights import read_metadata
from trueoracle.pruning.candidates import Candidates
from trueoracle.record.lock import locked
from trueoracle.record.paths import DENSE
from trueoracle.record.results import Results
from trueoracle.run import dense, retrain
from trueoracle.search import live
from trueoracle.search.live import folder_name
from trueoracle.search.search import SearchResult
from trueoracle.search.settings import SearchSettings
from trueoracle.search.strategies import STRATEGIES, choose
from trueoracle.study import Study
from trueoracle.training import checkpoint


@pytest.fixture
def fields(tiny_fields: dict[str, Any]) -> dict[str, Any]:
    dense = {**tiny_fields["dense"], "epochs": 1}
    retraining = {**tiny_fields["retraining"], "epochs": 4, "seeds": [0]}
    data = {**tiny_fields["data"], "train_images": 100, "validation_images": 40, "test_images": 50}
    return tiny_fields | {"dense": dense, "retraining": retraining, "data": data}


@pytest.fixture
def study(fields: dict[str, Any], tmp_path: Path) -> Study:
    return Study(**fields, runs=tmp_path / "runs")


def searched(study: Study, budget: object = 22, **options: Any) -> SearchResult:
    options = {"engine": "loop", "progress": False} | options
    return study.search(budget, **options)  # type: ignore[arg-type]


def test_settings_are_given_by_name_or_whole(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[SearchSettings] = []
    monkeypatch.setattr(
        "trueoracle.search.search.search", lambda *given, **_: told.append(given[3])
    )
    searched(study, 22, strategy="top", seed=3)
    searched(study, SearchSettings("22", "top", seed=3))
    searched(study, SearchSettings("22", "top", seed=1), seed=3)
    assert told == [SearchSettings(budget="22", strategy="top", seed=3)] * 3
    searched(study, None)
    assert told[-1] == SearchSettings()
    with pytest.raises(InputError, match=r"'strateg': did you mean 'strategy'\?"):
        searched(study, 22, strateg="top")


def test_the_search_finds_what_the_record_says(study: Study) -> None:
    found = searched(study)
    # 40 epochs would retrain all 10 candidates.
    assert (found.full_budget, found.budget) == (40, 22)
    assert found.spent == found.schedule.cost <= 22
    assert len(found.schedule.rungs) > 2
    results = study.run(progress=False, engine="loop")
    outcomes = results.outcomes[results.outcomes["seed"] == 0].set_index(["candidate", "epoch"])
    # Each survivor's curve is that of its uninterrupted retraining.
    curves = found.history.set_index(["candidate", "epoch"])
    expected = outcomes.loc[curves.index]
    assert curves["validation_loss"].tolist() == pytest.approx(expected["validation_loss"].tolist())
    assert curves["test_accuracy"].tolist() == expected["test_accuracy"].tolist()
    scores = results.scores.set_index("candidate")["oracle"]
    going = list(scores.sort_values(kind="stable").index)
    for place, rung in enumerate(found.schedule.rungs):
        losses = found.history[found.history["rung"] == place + 1]
        assert set(losses["candidate"]) == set(going[: rung.candidates])
        losses = losses[losses["epoch"] == rung.epochs - 1].set_index("candidate")
        going = list(losses["validation_loss"].sort_values().index)
    assert found.chosen == going[0]
    assert found.outcome.values["test_accuracy"] == outcomes.loc[(found.chosen, 3), "test_accuracy"]
    (place,) = results.candidates.index[results.candidates["candidate"] == found.chosen]
    pruned: dict[str, list[int]] = results.candidates["pruned"].tolist()[place]
    assert {name: list(filters) for name, filters in found.pruned.items()} == pruned


@pytest.mark.slow
def test_a_killed_search_goes_on_after_the_last_rung(
    study: Study, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(Study(**fields, runs=tmp_path / "whole"))
    real = engines.train_epochs
    trained: list[range] = []

    def dies_in_the_third_rung(*args: Any, **options: Any) -> Any:
        epochs = args[4]
        if epochs.start >= whole.schedule.rungs[1].epochs:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", dies_in_the_third_rung)
    with pytest.raises(KeyboardInterrupt):
        searched(study)

    def watched(*args: Any, **options: Any) -> Any:
        trained.append(args[4])
        return real(*args, **options)

    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", watched)
    found = searched(study)
    assert min(epochs.start for epochs in trained) == whole.schedule.rungs[1].epochs
    assert found.chosen == whole.chosen
    assert found.history.equals(whole.history)
    weights = whole.network.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in found.network.state_dict().items())
    # What is done is not done again, and only the last two rungs' weights are kept.
    trained.clear()
    again = searched(study)
    assert trained == []
    assert again.chosen == whole.chosen
    rungs = len(whole.schedule.rungs)
    assert sorted(p.name for p in again.folder.glob("*.safetensors")) == [
        f"after-rung-{rungs - 1}.safetensors", f"after-rung-{rungs}.safetensors"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["full", "halving", "guided"])
def test_a_search_killed_within_a_rung_goes_on_there(
    strategy: str, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = None if strategy == "full" else "60%"
    # The only rung of one, and the first and the second one of the others.
    dies_after = (7,) if strategy == "full" else (4, 13)
    whole = searched(Study(**fields, runs=tmp_path / "whole"), budget, strategy=strategy)
    study = Study(**fields, runs=tmp_path / "runs")
    monkeypatch.setattr(live, "PART_SECONDS", -1.0)
    real = engines.train_epochs
    trained = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal trained
        if trained in dies:
            dies.remove(trained)
            raise KeyboardInterrupt
        trained += len(args[0])
        return real(*args, **options)

    dies = list(dies_after)
    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", counted)
    for _ in dies_after:
        with pytest.raises(KeyboardInterrupt):
            searched(study, budget, strategy=strategy)
        (folder,) = (study.folder / "search").iterdir()
        assert json.loads((folder / live.RECORD).read_text(encoding="utf-8"))["part"]
        assert 1 <= len(list(folder.glob("*.safetensors"))) <= 2
    found = searched(study, budget, strategy=strategy)
    # Nobody was trained twice.
    assert trained == sum(rung.candidates for rung in whole.schedule.rungs)
    assert found.chosen == whole.chosen
    assert found.history.equals(whole.history)
    weights = whole.network.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in found.network.state_dict().items())
    assert len(list(found.folder.glob("*.safetensors"))) == min(2, len(whole.schedule.rungs))


def test_another_order_does_not_go_on_within_a_rung(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = 1.0
    kept_criteria(monkeypatch)

    @trueoracle.criterion("signed")
    def signed(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        return [sign * way[0][0] for way in candidates]

    study = Study(**fields | {"criteria": ["signed"]}, runs=tmp_path)
    monkeypatch.setattr(live, "PART_SECONDS", -1.0)
    real = engines.train_epochs
    left = 2

    def dies(*args: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", dies)
    with pytest.raises(KeyboardInterrupt):
        searched(study, 12, strategy="top")  # two of three are trained
    assert study.results().status()["state"] == "interrupted"
    sign = -1.0
    left = 9
    with pytest.raises(InputError, match="the candidates that begin are others"):
        searched(study, 12, strategy="top")


def test_a_criterion_that_refuses_all_images_is_passed_over(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["network"] = {"name": "lenet5-mini", "arguments": {"activation": "identity"}}
    study = Study(**fields | {"criteria": ["apoz", "l1"]}, runs=tmp_path)
    heard = Heard()
    assert searched(study, 4, progress=heard).criterion == "l1"
    assert any("ordered by l1, since criterion 'apoz': no activation" in one for one in heard.said)
    with pytest.raises(InputError, match=r"^criterion 'apoz': no activation of the pruned"):
        searched(study, 4, criterion="apoz")


def test_a_search_leaves_a_finished_study_finished(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["network"] = {"name": "lenet5-mini", "arguments": {"activation": "identity"}}
    study = Study(**fields | {"criteria": ["l1", "apoz"]}, runs=tmp_path)
    study.run(progress=False)
    searched(study, 4)
    status = study.results().status()
    assert (status["state"], list(status["skipped"])) == ("finished", ["apoz"])


def test_another_dense_network_is_refused_where_only_a_search_is_recorded(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched(study, 8, strategy="random")
    (study.folder / DENSE).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(dense, "train", otherwise)
        with pytest.raises(StoreError, match=r"another one than .* 0 outcomes and 1 search "):
            searched(study, 8, strategy="random")
    assert searched(study, 8, strategy="random").spent == 8


@pytest.mark.parametrize("lost", ["the last", "all"])
def test_weights_that_are_damaged_or_gone_are_trained_again(
    study: Study, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    found = searched(study, 22)
    last = len(found.schedule.rungs)
    for path in found.folder.glob("*.safetensors"):
        if path.stem == f"after-rung-{last}":
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 8
            path.write_bytes(content)
        elif lost == "all":
            path.unlink()
    trained: list[range] = []
    real = engines.train_epochs

    def watched(*args: Any, **options: Any) -> Any:
        trained.append(args[4])
        return real(*args, **options)

    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", watched)
    progress = Recorder()
    again = study.search(22, progress=progress)
    rung = last if lost == "the last" else 1
    said = [m for m in progress.messages if f"trained again from rung {rung}" in m]
    assert len(said) == 1
    assert f"after-rung-{last}.safetensors is damaged" in said[0]
    assert min(e.start for e in trained) == found.schedule.starts[rung - 1]
    assert again.history.equals(found.history)
    weights = found.network.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in again.network.state_dict().items())


@pytest.mark.slow
def test_a_flipped_bit_of_a_search_changes_nothing_that_comes_out(study: Study) -> None:
    found = searched(study, 4)
    weights = found.network.state_dict()
    whole = {path: path.read_bytes() for path in found.folder.iterdir()}
    draw = random.Random(0)
    said = 0
    for _ in range(25):
        for path, content in whole.items():
            path.write_bytes(content)
        path = draw.choices(list(whole), [len(content) for content in whole.values()])[0]
        flipped = bytearray(whole[path])
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            again = searched(study, 4)
        except StoreError:
            said += 1
            continue
        assert again.chosen == found.chosen
        assert again.history.equals(found.history)
        assert all(torch.equal(weights[n], v) for n, v in again.network.state_dict().items())
    assert said < 25  # weights are trained again


def test_a_search_of_an_earlier_version_goes_on(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = older_record(tmp_path)
    (older,) = folder.glob("search/*/search.json")
    record = json.loads(older.read_text(encoding="utf-8"))
    # Digests have changed since: the settings as they are today, in the folder that these name.
    record["settings"]["outcome_digest"] = Study(**tiny_fields).spec.outcome_digest
    older.write_text(json.dumps(record), encoding="utf-8")
    path = folder / "search" / folder_name(record["settings"]) / older.name
    older.parent.rename(path.parent)

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("it was done")

    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", never)
    found = Study(**tiny_fields, runs=tmp_path).search("50%", progress=False)
    assert found.folder == path.parent
    assert found.chosen in record["rungs"][-1]


def test_a_procedure_of_ones_own_is_no_search(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    retraining = tiny_fields["retraining"] | {"procedure": "numpy:floor"}
    study = Study(**tiny_fields | {"retraining": retraining}, runs=tmp_path)
    with pytest.raises(InputError, match="'numpy:floor': a search trains"):
        study.search("50%", progress=False)
    assert not study.folder.exists()


def test_a_search_of_which_nothing_can_be_read_is_said(study: Study) -> None:
    found = searched(study, 4)
    (found.folder / live.RECORD).write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match=r"search.json.*move its folder away"):
        searched(study, 4)
    shutil.rmtree(found.folder)
    assert searched(study, 4).chosen == found.chosen


@pytest.mark.slow
def test_a_damaged_record_is_said(study: Study) -> None:
    found = searched(study, 22)
    path = found.folder / live.RECORD
    whole = json.loads(path.read_text(encoding="utf-8"))
    changed = whole | {"seconds": whole["seconds"] + 1}
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(StoreError, match=r"search\.json: it does not have the checksum of what"):
        searched(study, 22)
    # One of an older version has neither this nor the weights' checksums.
    del whole["sha256"], whole["files"]
    first = whole["rungs"][0][0]
    dropped = next(name for name in whole["rungs"][0] if name not in whole["rungs"][1])
    for changes, message in (
        ({"epochs": {}}, "lacks epochs of rung 1"),
        ({"epochs": whole["epochs"] | {first: whole["epochs"][first][:0]}}, f"{first} lacks"),
        ({"epochs": whole["epochs"] | {first: [{"epoch": 0}]}}, "learning_rate.* is missing"),
        ({"settings": whole["settings"] | {"seed": 5}}, "settings are those of another search"),
        ({"rungs": [["x"], *whole["rungs"][1:]]}, "candidate 'x' of rung 1"),
        ({"rungs": [whole["rungs"][0][1:], *whole["rungs"][1:]]}, "rung 1 has"),
        ({"rungs": 3}, "rungs: "),
        ({"part": ["x"]}, "begun a rung after the last"),
        ({"rungs": whole["rungs"][:1], "part": ["x"]}, "part of rung 2 is no part of that"),
        ({"rungs": whole["rungs"][:1], "part": [dropped]}, "lacks epochs of rung 2"),
        ({"rungs": whole["rungs"] * 2}, "rungs, expected"),
    ):
        path.write_text(json.dumps(whole | changes), encoding="utf-8")
        with pytest.raises(StoreError, match=rf"search\.json: .*{message}.*move its folder away"):
            searched(study, 22)
    path.write_text(json.dumps(whole), encoding="utf-8")
    checkpoint = max(found.folder.glob("*.safetensors"))
    tensors = load_file(checkpoint)
    value = torch.zeros(3)
    for damaged, message in (
        (tensors | {"x/weights/y": value}, "'x/weights/y' is nothing of rung"),
        (tensors | {"x": value}, "'x' is nothing of rung"),
        ({}, "it holds 0 networks, expected 1"),
        ({found.chosen + "/weights/y": value}, "do not fit"),
    ):
        save_file(damaged, checkpoint)
        with pytest.raises(StoreError, match=f"{message}.*move its folder away"):
            searched(study, 22)


@pytest.mark.slow
def test_a_guided_search_is_the_one_that_the_record_replays(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["pruning"] = {"layers": {"conv1": 0.2}}
    fields["retraining"] |= {"epochs": 3}
    study = Study(**fields, runs=tmp_path / "runs")
    found = searched(study, "40%")
    assert found.strategy == "guided"
    first = found.schedule.rungs[0].candidates
    assert first >= 16  # so that they come in four batches
    plain = searched(study, "40%", strategy="halving")
    assert plain.folder != found.folder

    results = study.run(progress=False, engine="loop")
    table = results.table("validation_loss")
    scores = results.scores.set_index("candidate")["oracle"]
    curves = results.outcomes.pivot(index="candidate", columns="epoch", values="validation_loss")
    curves = curves.loc[scores.index]
    for search, pruned in ((found, table.pruned), (plain, None)):
        course = choose(
            STRATEGIES[search.strategy].ordered(scores.to_numpy(), scores.index.tolist()),
            search.schedule,
            lambda some, end: curves.iloc[list(some), end - 1].tolist(),
            pruned,
        )
        assert scores.index[course.chosen] == search.chosen
        for number, rung in enumerate(course.candidates, start=1):
            own = search.history[search.history["rung"] == number]
            assert set(own["candidate"]) == {scores.index[i] for i in rung}

    # A search that goes on knows the batches again.
    record = read_checked_json((found.folder / live.RECORD).read_text(encoding="utf-8"))
    assert searched(study, "40%").chosen == found.chosen
    begun = record["rungs"][0]
    record["rungs"][0] = [begun[-1], *begun[1:-1], begun[0]]
    (found.folder / live.RECORD).write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(InputError, match="the candidates that begin are others"):
        searched(study, "40%")


def test_each_setting_is_a_search_of_its_own(study: Study) -> None:
    found = searched(study, 8, strategy="top", criterion="l1")
    other = searched(study, 8, strategy="random", by="train_loss", seed=1)
    assert found.folder != other.folder
    assert (found.spent, other.spent) == (8, 8)
    results = Results(study.folder)
    # Only what orders the candidates was scored, and nothing of the searches is in the tables.
    assert results.criteria == ["l1"]
    assert results.counts["retrainings"] == 0
    assert other.criterion == ""
    assert set(other.history["candidate"]) != set(found.history["candidate"])
    lowest = results.scores.sort_values("l1", kind="stable")["candidate"].iloc[:2]
    assert set(found.history["candidate"]) == set(lowest)


def _in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let searches train two networks at once."""
    cut = retrain.plan_networks

    def in_pairs(*args: Any, **options: Any) -> Any:
        return replace(cut(*args, **options), group=2, groups=1)

    monkeypatch.setattr("trueoracle.search.search.plan_networks", in_pairs)


@pytest.mark.slow
def test_the_survivors_fit_the_chunks_whatever_they_are(
    study: Study, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(study, 12, engine="wide")
    _in_pairs(monkeypatch)
    found = searched(Study(**fields, runs=tmp_path / "pairs"), 12, engine="wide")
    assert found.chosen == whole.chosen
    assert found.outcome.values["test_loss"] == pytest.approx(
        whole.outcome.values["test_loss"], rel=1e-4
    )


@pytest.mark.slow
def test_too_little_memory_for_a_population_halves_it(
    study: Study, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(study, 12)
    _in_pairs(monkeypatch)
    real, sizes = engines.train_epochs, list[int]()

    def short(*args: Any, **options: Any) -> Any:
        sizes.append(len(args[0]))
        if len(args[0]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **options)

    monkeypatch.setattr("trueoracle.engines.retrain.train_epochs", short)
    found = searched(Study(**fields, runs=tmp_path / "halved"), 12)
    assert 2 in sizes
    assert found.chosen == whole.chosen
    assert found.outcome.values == whole.outcome.values


@pytest.mark.slow
def test_a_search_killed_within_a_population_goes_on_there(
    study: Study, fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = searched(study, 12)
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpoint, "SHARE", 1e9)
    save, saves = checkpoint.Checkpoint.save, 0

    def dying(self: checkpoint.Checkpoint, *args: Any) -> None:
        nonlocal saves
        save(self, *args)
        saves += 1
        if saves in (6, 9):
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", dying)
    killed = Study(**fields, runs=tmp_path / "killed")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            searched(killed, 12)
        assert list(killed.folder.glob("search/*/*.partial.pt"))
    found = searched(killed, 12)
    assert not list(killed.folder.glob("search/*/*.partial.pt"))
    assert found.history.equals(whole.history)
    weights = whole.network.state_dict()
    assert all(torch.equal(weights[n], v) for n, v in found.network.state_dict().items())


def test_what_is_wrong_is_said_before_any_work(study: Study) -> None:
    for options, message in (
        ({"budget": 3}, "budget of 3 epochs finishes no network: one retraining takes 4"),
        ({"budget": "lots"}, "got 'lots'"),
        ({"strategy": "best"}, "unknown strategy 'best'"),
        ({"criterion": "l2"}, "unknown criterion of this study 'l2'.*l1, oracle"),
        ({"by": "test_loss"}, "does not choose by test_loss"),
        ({"seed": -1}, "a seed is a whole number from 0"),
        ({"engine": "fast"}, "unknown engine 'fast'"),
    ):
        with pytest.raises(InputError, match=message):
            searched(study, **options)
    with pytest.raises(InputError, match="'full' takes all 40 epochs, and the budget is 22"):
        searched(study, strategy="full")
    for name in ("random", "random-halving", "full"):
        with pytest.raises(InputError, match=f"'l1' does nothing with strategy '{name}'"):
            searched(study, strategy=name, criterion="l1")
    assert not study.folder.exists()


def test_too_little_memory_for_the_survivors(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "available_memory", lambda _: 1000)
    with pytest.raises(InputError, match=r"need .* at once, and 1 kB are free: lower --budget"):
        searched(study)


def test_one_search_at_a_time(study: Study) -> None:
    searched(study, 4)
    with locked(study.folder), pytest.raises(BusyError):
        searched(study, 4)


class Heard:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, *_: object) -> None: ...
    def advance(self, count: float = 1, note: str = "") -> None: ...
    def message(self, text: str) -> None:
        self.said.append(text)


def test_the_whole_budget_is_that_of_full(study: Study) -> None:
    found = searched(study, None, strategy="full")
    assert (found.budget, found.spent, found.criterion) == (40, 40, "")
    # Every candidate begins: what would order them is not computed.
    results = Results(study.folder)
    assert results.criteria == []
    for asked in (results.replay, results.points, lambda: results.plot("l1")):
        with pytest.raises(InputError, match="tiny: no criterion has scored its candidates yet"):
            asked()
    with pytest.raises(InputError, match="tiny: no network has been retrained yet"):
        _ = results.best


def test_the_first_criterion_that_applies_orders_the_candidates(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    # The network has no batch norm.
    study = Study(**fields | {"criteria": ["bn-scale", "l1"]}, runs=tmp_path / "runs")
    with pytest.raises(InputError, match="'bn-scale': no batch norm with a scale follows conv1"):
        searched(study, 4, criterion="bn-scale")
    assert not study.folder.exists()
    heard = Heard()
    assert searched(study, 4, progress=heard).criterion == "l1"
    assert any("ordered by l1, since criterion 'bn-scale'" in text for text in heard.said)


def test_ties_are_counted_whatever_candidate_has_no_score(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_criteria(monkeypatch)

    @trueoracle.criterion("holed")
    def holed(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        return [float("nan"), 1.0, 1.0, *(2.0 for _ in range(len(candidates) - 3))]

    heard = Heard()
    searched(Study(**fields | {"criteria": ["holed"]}, runs=tmp_path), 4, progress=heard)
    assert any("2 candidates share the lowest score of holed" in text for text in heard.said)


def test_networks_that_diverge(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["retraining"] |= {"learning_rate": 1e9}
    with pytest.raises(TrainingError, match="every network of the search diverged"):
        searched(Study(**fields, runs=tmp_path), 8)


def test_the_result_as_plain_values(study: Study) -> None:
    found = searched(study, 12)
    plain = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert plain["chosen"] == found.chosen
    assert plain["spent"] == found.spent
    assert [len(rung["candidates"]) for rung in plain["rungs"]] == [
        rung.candidates for rung in found.schedule.rungs
    ]
    last = {one["candidate"]: one["validation_loss"] for one in plain["rungs"][-1]["candidates"]}
    assert min(last, key=last.__getitem__) == found.chosen


def test_the_chosen_network_is_loaded_by_two_lines(study: Study, tmp_path: Path) -> None:
    found = searched(study, 4)
    path = found.export(tmp_path / "model.safetensors")
    network = trueoracle.load(path)
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(network(images), found.network(images))
    known = read_metadata(path)
    assert known["normalised"] == {"mean": [0.1307], "std": [0.3081]}
    assert known["candidate"] == found.chosen
    assert network.get_parameter("conv1.weight").shape[0] == 9


def test_a_network_given_in_python(few_digits: Splits, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 10)
    )
    study = Study(
        name="given",
        network=network,
        data=few_digits,
        pruning={"layers": {"0": 0.5}},
        retraining={"epochs": 2, "seeds": [3]},
        runs=tmp_path,
    )
    found = searched(study, "50%")
    assert found.seed == 3
    path = found.export(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="given in Python"):
        trueoracle.load(path)
    images = torch.randn(3, 1, 32, 32)
    assert torch.equal(trueoracle.load(path, network)(images), found.network(images))


def test_a_search_without_a_validation_split_says_so(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    fields["data"] |= {"validation_images": 0}
    heard = Heard()
    found = searched(Study(**fields, runs=tmp_path), 4, progress=heard)
    assert found.by == "train_loss"
    assert any("no validation split" in text for text in heard.said)


def test_single_weights_too(fields: dict[str, Any], tmp_path: Path) -> None:
    fields["pruning"] = {"kind": "unstructured", "layers": {"conv1": 0.5}, "candidates": 4}
    study = Study(**fields, runs=tmp_path / "runs")
    with pytest.raises(InputError, match=r"'guided' learns of the filters .* take 'halving'"):
        searched(study, 9, strategy="guided")
    found = searched(study, 9, criterion="l1")
    assert found.strategy == "halving"
    path = found.export(tmp_path / "model.safetensors")
    network = trueoracle.load(path)
    images = torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(network(images), found.network(images))
    weight = network.get_parameter("conv1.weight")
    assert (weight == 0).float().mean().item() == pytest.approx(0.5, abs=0.01)


class Scaled(nn.Module):
    """A layer whose extra state is part of what it computes."""

    scale = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale

    def get_extra_state(self) -> dict[str, int]:
        return {"scale": self.scale}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.scale = state["scale"]


@pytest.mark.parametrize("engine", ["loop", "wide"])
def test_extra_state_stays_with_a_network(tmp_path: Path, engine: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3), Scaled())
    network[4].scale = 3  # type: ignore[assignment]
    images, labels = torch.randn(60, 1, 4, 4), torch.arange(60) % 3
    thirds = [(images[i::3], labels[i * 20 : i * 20 + 20]) for i in range(3)]
    study = Study(
        name="extra",
        network=network,
        data=tuple(thirds),
        pruning={"layers": {"1": 0.4}, "candidates": 6},
        criteria=["oracle", "taylor", "fisher"],
        retraining={"epochs": 4, "seeds": [0], "batch_size": 20},
        runs=tmp_path,
    )
    assert study.run(progress=False, engine=engine).finished
    found = searched(study, "60%", engine=engine)
    assert found.network[4].scale == 3  # type: ignore[index]
    found.export(tmp_path / "found.safetensors")
    network[4].scale = 1  # type: ignore[assignment]
    loaded: Any = trueoracle.load(tmp_path / "found.safetensors", network=network)
    assert loaded[4].scale == 3
    assert torch.equal(loaded(images), found.network.eval()(images))


def test_a_finished_study_is_searched_in_its_record(
    finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(finished.spec, runs=finished.folder.parent)
    # The same search among networks in training, in a folder that has no outcomes yet.
    live = Study(finished.spec, runs=finished.folder.parent.parent / "anew").search(
        12, progress=False, engine="loop"
    )
    assert not live.from_record

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("a network is retrained")

    with monkeypatch.context() as patch:
        patch.setattr("trueoracle.search.live.train_rung", refuse)
        found = study.search(12, progress=False)
        assert found.from_record
        assert found.seconds == 0
        assert (found.chosen, found.spent) == (live.chosen, live.spent)
        columns = ["candidate", "rung", "epoch"]
        pd.testing.assert_frame_equal(found.history[columns], live.history[columns])
        np.testing.assert_allclose(
            found.history["validation_loss"], live.history["validation_loss"], rtol=1e-3
        )
        assert found.dense == {n: v for n, v in live.dense.items() if n in found.dense}
        assert found.dense["test_accuracy"] == finished.dense["test_accuracy"]  # type: ignore[index]
        assert found.cost == live.cost == {"parameters": 5224, "macs": 404_100}
        with pytest.raises(FailedError, match="AssertionError: a network is retrained"):
            _ = found.network
    # Only the chosen one is retrained, when its weights are asked for.
    theirs = dict(live.network.named_parameters())
    for name, ours in found.network.named_parameters():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-3, atol=1e-4)
    assert found.network is found.network
    # A seed that the study has not retrained is searched in training.
    assert not study.search(2, seed=7, strategy="criterion", progress=False).from_record
