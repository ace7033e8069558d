"""Studies of every kind of pruning, from start to record."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn

import trueoracle
from tests.run.test_criteria import Listener
from trueoracle.data.splits import Split, Splits
from trueoracle.engines.choose import engine_for
from trueoracle.errors import InputError
from trueoracle.networks.weights import write_tensors
from trueoracle.record.paths import AROUND, DENSE
from trueoracle.record.verify import repair, verify
from trueoracle.report.grid import summarise_grid
from trueoracle.report.summary import summarise
from trueoracle.run.chunks import Chunk, retrain_chunk
from trueoracle.spec.grid import Variant
from trueoracle.study import Study
from trueoracle.tasks.classification import Classification

LAYERS = {"kind": "depth", "layers": {"layer1.*": 0.34}}
HALVES = {"kind": "n:m", "layers": {"conv2": "1:2"}, "candidates": "around:wanda", "count": 5}


def with_(fields: dict[str, Any], pruning: dict[str, Any], **others: Any) -> dict[str, Any]:
    retraining = fields["retraining"] | {"epochs": 1, "seeds": [0]}
    return fields | {"pruning": pruning, "retraining": retraining} | others


def of_blocks(fields: dict[str, Any]) -> dict[str, Any]:
    network = {"name": "resnet20", "arguments": {"width": 2}}
    criteria = ["oracle", "block-influence", "fpgm"]
    return with_(fields, LAYERS, network=network, dense={"epochs": 1}, criteria=criteria)


@pytest.mark.slow
def test_a_study_of_whole_layers(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    heard = Listener()
    study = Study(**of_blocks(tiny_fields), runs=tmp_path)
    results = study.run(progress=heard)
    assert results.finished
    assert [one["layer1"] for one in results.candidates["pruned"]] == [[0], [1], [2]]
    assert results.criteria == ["oracle", "block-influence"]
    assert "fpgm" in results.skipped
    summary = summarise(results)
    assert summary["cost"]["parameters"] < summary["cost"]["dense_parameters"]
    assert results.score("block-influence").label == "block influence of the pruned layers"
    assert results.table().groups == (3,)
    over = [one.interval_over for one in results.assess("test_loss")]
    assert all("filter" not in words for words in over), over
    assert any("3 layers" in words or "its layers" in words for words in over), over
    assert any("engine loop" in text for text in heard.messages)
    with pytest.raises(InputError, match="engine 'wide' computes networks as one that differ in"):
        study.run(progress=False, engine="wide")
    assert engine_for(study.prepare().candidates, "auto") == "loop"
    study.report(tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "whole layers" in page
    found = study.search("100%", progress=False, strategy="full")
    found.export(tmp_path / "found.safetensors")
    loaded: Any = trueoracle.load(tmp_path / "found.safetensors")
    assert len(loaded.layer1) == 2


@pytest.mark.slow
def test_candidates_around_a_choice_are_the_dense_networks_own(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = with_(tiny_fields, HALVES, criteria=["oracle", "wanda"])
    heard = Listener()
    study = Study(**fields, runs=tmp_path / "one")
    results = study.run(progress=heard)
    said = "the choice of criterion 'wanda' (the first), and 4 drawn at random around it: 10% of "
    assert any(said in text for text in heard.messages)
    assert said in summarise(results)["candidates_in_words"]
    # The criterion's own choice has its lowest score.
    assert results.scores["wanda"].idxmin() == 0
    assert results.candidates["pruned"][0]["mask"] == "0" * 16
    assert study.run(progress=False).outcomes.equals(results.outcomes)
    again = Study(**fields, runs=tmp_path / "two").run(progress=False)
    assert again.candidates.equals(results.candidates)
    # A chunk that is carried elsewhere draws the same masks.
    name = results.candidates["candidate"][3]
    (retrained,) = retrain_chunk(Chunk(study.spec, study.folder / DENSE, ((0, name),), "loop"))
    own = results.outcomes[results.outcomes["candidate"] == name]
    assert retrained.epochs[0]["test_loss"] == pytest.approx(own["test_loss"].iloc[0], rel=1e-4)
    # What the criterion said is kept, so that it need not say the very same on another machine.
    path = study.folder / AROUND
    kept = load_file(path)
    path.unlink()
    study.score(progress=False)
    assert {name: one.tolist() for name, one in load_file(path).items()} == {
        name: one.tolist() for name, one in kept.items()
    }


def test_a_flipped_bit_of_what_a_criterion_said_is_found(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    pruning = {"layers": {"conv1": 0.3}, "candidates": "around:l1", "count": 6, "share": 0.4}
    fields = with_(tiny_fields, pruning)
    fields["dense"] = fields["dense"] | {"epochs": 1}
    study = Study(**fields, runs=tmp_path)
    first = study.score(progress=False)
    path = study.folder / AROUND
    (around,) = [part for part in verify(study.folder).parts if part.name == AROUND]
    assert around.state == "whole"
    whole = path.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 64])
    path.write_bytes(flipped)
    assert [part.name for part in verify(study.folder).damaged] == [AROUND]
    assert study.score(progress=False).candidates.equals(first.candidates)
    assert verify(study.folder).state == "whole"
    path.write_bytes(flipped)
    assert f"{AROUND} was set aside" in repair(study.folder)
    # Older files have no checksum.
    write_tensors(load(whole), path, {"of": "x"})
    (around,) = [part for part in verify(study.folder).parts if part.name == AROUND]
    assert around.state == "unchecked"


def test_filters_around_a_choice_are_ordinary_ways(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    pruning = {"layers": {"conv1": 0.3}, "candidates": "around:l1", "count": 6, "share": 0.4}
    results = Study(**with_(tiny_fields, pruning), runs=tmp_path).score(progress=False)
    assert results.scores["l1"].idxmin() == 0
    ways = [tuple(one["conv1"]) for one in results.candidates["pruned"]]
    assert len(set(ways)) == 6
    assert {len(way) for way in ways} == {3}
    listed = tmp_path / results.folder.name / "candidates.json"
    taken = {"layers": {"conv1": 0.3}, "candidates": str(listed)}
    again = Study(**with_(tiny_fields, taken), runs=tmp_path).prepare()
    assert list(again.candidates.ids) == results.candidates["candidate"].tolist()


def test_only_criteria_with_numbers_of_their_own_are_drawn_around(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    for name, message in (
        ("oracle", "around:oracle': criterion 'oracle' scores candidates as a whole"),
        ("sparsegpt", "it is of single weights, and filters are pruned"),
        ("l3", "unknown criterion 'l3'"),
    ):
        pruning = {"layers": {"conv1": 0.3}, "candidates": f"around:{name}", "count": 3}
        with pytest.raises(InputError, match=message):
            Study(**with_(tiny_fields, pruning), runs=tmp_path).prepare()


class Quotient(nn.Module):
    """Divides by the size of each row, which is nothing once all of it is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(2, 30, bias=False), nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.inner.weight.abs().sum(1)
        logits: Tensor = self.head(self.inner(x) / sizes)
        return logits


def points(count: int = 60) -> Splits:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 2, generator=generator)
    split = Split.of(inputs, (inputs[:, 0] > inputs[:, 1]).long())
    return Splits(split, None, split, Classification(2))


def test_a_candidate_without_a_number_hides_no_other(tmp_path: Path) -> None:
    pruning = {"kind": "unstructured", "layers": {"inner": 0.1}, "candidates": 8}
    fields: dict[str, Any] = {"name": "quotient", "pruning": pruning, "criteria": ["oracle", "l1"]}
    retraining = {"epochs": 2, "batch_size": 20, "seeds": [0]}
    torch.manual_seed(0)
    study = Study(**fields, retraining=retraining, network=Quotient(), data=points(), runs=tmp_path)
    results = study.run(progress=False)
    scores = results.scores["oracle"].to_numpy()
    lost = ~np.isfinite(scores)
    assert 0 < lost.sum() < 6
    assert np.isfinite(results.scores["l1"]).all()
    diverged = results.retrainings.set_index("candidate")["diverged"]
    assert diverged.reindex(results.candidates["candidate"]).astype(bool).tolist() == lost.tolist()
    assert results.relation("oracle").n == 8 - lost.sum()


def noise_of(study: Study) -> dict[str, float]:
    found = [sitting["noise"] for sitting in study.results().provenance if "noise" in sitting]
    return dict(found[-1])


@pytest.mark.slow
def test_losses_within_their_noise_are_warned_of(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    heard = Listener()
    few = tiny_fields["data"] | {"measured_fraction": 0.1}
    untrained = tiny_fields | {"dense": {"epochs": 1, "learning_rate": 1e-6}, "data": few}
    little = Study(**untrained, runs=tmp_path)
    little.score(progress=heard)
    noise = noise_of(little)
    assert noise["range"] < noise["noise"]
    (said,) = [text for text in heard.messages if "within the noise" in text]
    assert said.startswith("warning: the pruned losses of 10 candidates range over 0.0")
    again = Listener()
    little.score(progress=again)
    assert not any("within the noise" in text for text in again.messages)
    assert "which is within the noise" in summarise(little.results())["warning"]
    spread = Study(**tiny_fields | {"dense": {"epochs": 20, "batch_size": 32}}, runs=tmp_path)
    spread.score(progress=again)
    noise = noise_of(spread)
    assert noise["range"] > noise["noise"]
    assert not any("within the noise" in text for text in again.messages)
    assert math.isfinite(noise["standard_error"])


@pytest.mark.slow
def test_kinds_of_pruning_are_not_pooled(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    masks: dict[str, Any] = {"kind": "unstructured", "layers": {"conv1": 0.5}, "candidates": 6}
    prunings: dict[str, dict[str, Any]] = {
        "tenth": {"layers": {"conv1": 0.1}},
        "fifth": {"layers": {"conv1": 0.2}, "candidates": 6},
        "masks": masks,
    }
    made, recorded = [], {}
    for label, pruning in prunings.items():
        study = Study(**with_(tiny_fields, pruning, name=label), runs=tmp_path)
        recorded[label] = study.run(progress=False)
        made.append(Variant(study.spec, "mixed", label, {"pruning": label}))
    summary = summarise_grid(made, recorded)
    assert summary["kinds"] == ["structured", "unstructured"]
    assert summary["kinds_in_words"].startswith("2 kinds of pruning (structured, unstructured), ")
    assert {one["kind"] for one in summary["meta"]} == {"structured"}
    assert all(len(one["studies"]) == 2 for one in summary["meta"])
    alone = summarise_grid(made[:2], recorded)
    assert alone["kinds_in_words"] == ""
    assert [one["tau"] for one in alone["meta"]] == [one["tau"] for one in summary["meta"]]
