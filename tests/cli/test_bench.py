from __future__ import annotations

import json
from pathlib import Path

import pytest

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
    chosen = ("--layer", "conv1", "--ratio", "0.2", "--network", 0)
    called = call("bench", path, *chosen, "--studies")
    assert called.code == 0, called.err
    assert "1 study, 135 retrained networks of LeNet5-Mini" in called.out
    assert "spread: number " in called.out
    assert "that retraining noise allows on these examples" in called.out
    assert "LeNet5-Mini (1 dense network) on 5,000 embedded MNIST digits" in called.out
    over = "95%: over 3 retraining seeds and 10 filters, given the dense network and the examples"
    assert called.out.count(over) == 3  # of two tables and of the studies
    assert "On other examples, and in other dense networks, tau can be another" in called.out
    partly = tmp_path / "partly.py"
    partly.write_text(OWN.replace("return candidates", "return float('nan') * candidates"))
    called = call("bench", partly, *chosen)
    assert called.code == 0, called.err
    assert "spread has no place: it gives a finite score to 0.0% of the candidates" in called.out
    fields = json.loads(call("bench", path, *chosen, "--studies", "--json", "-q").out)
    assert fields["criterion"] == "spread"
    place = next(p for p in fields["places"]["test_loss"] if p["criterion"] == "spread")
    assert place["of"] == len(fields["places"]["test_loss"])
    assert place["low"] < place["agreement"] < place["high"]
    by_layer = fields["parts"]["test_loss"]["conv1"]
    assert next(p for p in by_layer if p["criterion"] == "spread") == place
    assert 0 < fields["additive"]["test_loss"] < place["ceiling"]
    (loss, accuracy) = fields["studies"]
    assert (loss["metric"], accuracy["metric"]) == ("test_loss", "test_accuracy")
    assert loss["kendall_tau"] == place["agreement"]
    assert 0 < loss["permutation_p_value"] <= 1


@pytest.mark.slow
def test_shipped_criteria_need_no_scoring() -> None:
    called = call("bench", "l1", "--layer", "conv1", "--ratio", "0.2")
    assert called.code == 0, called.err
    assert called.err == ""
    assert "l1: number " in called.out
    everything = json.loads(call("bench", "--json").out)
    assert everything["criterion"] is None
    assert everything["studies"] is None
    assert everything["card"]["grid"] == "lenet5-mini-bench"


def test_what_the_bench_does_not_hold_is_refused(tmp_path: Path) -> None:
    for options, message in (
        (("--layer", "conv9"), "unknown layer of the bench 'conv9'"),
        (("--ratio", "0.25"), "unknown ratio of the bench"),
        (("--network", "77"), "unknown dense network of the bench"),
        (("l3",), "unknown criterion 'l3'"),
        (("--studies",), "--studies is about one criterion: name it"),
        ((tmp_path / "gone.py",), "no file"),
    ):
        called = call("bench", *options)
        assert called.code == 2
        assert message in called.err
        assert called.err.count("\n") == 1
