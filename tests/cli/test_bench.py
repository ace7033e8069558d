from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.made import made_bench
from tests.cli.test_cli import call

OWN = '''"""Ten lines."""

from trueoracle.pruning.groups import filter_weights


def spread(dense, candidates, data):
    """The variance of the pruned filters' weights, summed."""
    importance = {g.name: filter_weights(dense, g).var(dim=1) for g in candidates.groups}
    return candidates.sum_pruned(importance)
'''


@pytest.mark.slow
def test_a_criterion_of_ones_own_gets_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    chosen = ("--family", "glyphs-mlp", "--layer", "fc1", "--ratio", "0.5", "--network", 0)
    called = call("bench", path, *chosen, "--studies")
    assert called.code == 0, called.err
    assert "1 study, 64 retrained networks (1 dense network of 1 family)" in called.out
    assert "spread: number " in called.out
    assert "that noise allows" in called.out
    over = (
        "over 2 retraining seeds, 20 blocks of examples, 32 sampled candidates and 12 filters, "
        "given the dense network"
    )
    assert called.out.count(f"95%: {over}") == 3  # of two tables and of the studies
    partly = tmp_path / "partly.py"
    partly.write_text(OWN.replace("return candidates", "return float('nan') * candidates"))
    called = call("bench", partly, *chosen)
    assert called.code == 0, called.err
    assert "spread has no place: it gives a finite score to 0.0% of the candidates" in called.out
    fields = json.loads(call("bench", path, *chosen, "--studies", "--json", "-q").out)
    assert fields["criterion"] == "spread"
    place = next(p for p in fields["places"]["test_loss"] if p["criterion"] == "spread")
    assert place["of"] == sum(p["rank"] is not None for p in fields["places"]["test_loss"])
    assert place["low"] < place["agreement"] < place["high"]
    by_layer = fields["parts"]["test_loss"]["fc1"]
    assert next(p for p in by_layer if p["criterion"] == "spread") == place
    assert fields["additive"]["test_loss"] is None  # 32 candidates of 12 filters are too few
    (loss, accuracy) = fields["studies"]
    assert (loss["metric"], accuracy["metric"]) == ("test_loss", "test_accuracy")
    assert (loss["family"], loss["network"]) == ("glyphs-mlp", 0)
    assert loss["kendall_tau"] == pytest.approx(place["agreement"])
    assert 0 < loss["permutation_p_value"] <= 1


@pytest.mark.slow
def test_shipped_criteria_need_no_scoring() -> None:
    called = call("bench", "l1", "--family", "glyphs-mlp")
    assert called.code == 0, called.err
    assert called.err == ""
    assert "l1: number " in called.out
    assert "a sum of one number per filter, fitted to other candidates' outcomes" in called.out
    everything = json.loads(call("bench", "--json").out)
    assert everything["criterion"] is None
    assert everything["studies"] is None
    assert everything["card"]["version"] == 2


@pytest.mark.slow
def test_findings_are_shown_question_by_question(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_bench({"glyphs-10": 0.2, "glyphs-62": 3.0})
    monkeypatch.setattr("trueoracle.cli.bench.read_bench", lambda: made)
    called = call("bench", "--findings")
    assert called.code == 0, called.err
    shown = called.out.splitlines()
    assert "Does the pruned train loss predict the network after retraining?" in shown
    assert any(
        line.startswith("test loss") and "glyphs-10 − glyphs-62  good " in line for line in shown
    )
    assert any("a sum over filters − good" in line and line.endswith("Yes") for line in shown)
    missing = "than where underfitted? The bench lacks networks to compare."
    assert any(line.endswith(missing) for line in shown)
    fields = json.loads(call("bench", "--findings", "--json").out)
    assert {one["answer"] for one in fields["findings"]} <= {"Yes", "No", "Unclear"}
    assert {one["question"] for one in fields["findings"]} == {"oracle", "best", "sum", "classes"}


def test_what_the_bench_does_not_hold_is_refused(tmp_path: Path) -> None:
    for options, message in (
        (("--layer", "conv9"), "unknown layer of the bench 'conv9'"),
        (("--family", "digit"), "unknown family of the bench 'digit'"),
        (("--ratio", "0.26"), "unknown ratio of the bench"),
        (("--network", "77"), "unknown dense network of the bench"),
        (("l3",), "unknown criterion 'l3'"),
        (("--studies",), "--studies is about one criterion: name it"),
        (("l1", "--findings"), "--findings are about the whole bench: name nothing else"),
        ((tmp_path / "gone.py",), "no file"),
    ):
        called = call("bench", *options)
        assert called.code == 2
        assert message in called.err
        assert called.err.count("\n") == 1
