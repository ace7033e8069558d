from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import Writer
from tests.record.records import synthetic
from trueoracle.errors import InputError
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.report.drawings import Folder
from trueoracle.report.page import study_page
from trueoracle.reproduce.comparison import (
    arm_reference,
    short_reference,
)
from trueoracle.spec.grid import load_spec
from trueoracle.spec.published import all_settings, has_published_values
from trueoracle.spec.published import published as published_of
from trueoracle.tasks.metric import CLASSIFICATION


def test_45_settings_are_published_each_once() -> None:
    settings = [one for one in all_settings() if one.has_values]
    assert len({one.setting for one in settings}) == len(settings) == 45
    short = [one for one in settings if one.needs_short]
    assert len(short) == 9
    assert all(one.setting.startswith("direction/") for one in short)
    assert all("short" in load_spec(f"{one.study}@short").name for one in short)


def test_what_is_named_without_a_scatter_stands_last_and_has_no_values() -> None:
    settings = all_settings()
    assert len({one.setting for one in settings}) == len(settings)
    named = settings[45:]
    assert not any(one.has_values for one in named)
    assert "tinyllava-3.1b" in {one.study for one in named}
    for one in named:
        assert (one.n, one.kendall_tau, one.p_value, one.anomaly_ratio) == (None,) * 4
        assert one.source.endswith("named there; no scatter on its project page")
        # What is listed is what its file says: nothing published gives a number of networks.
        assert isinstance(load_spec(one.study).pruning.candidates, int)
        assert load_spec(one.study).purpose.startswith("After the paper: ")
        assert published_of(one.study) == []


def test_they_are_what_was_printed(published: Path) -> None:
    with (published / "summary.csv").open(newline="") as file:
        printed = {row["setting"]: row for row in csv.DictReader(file)}
    ours = {one.setting: one for one in all_settings() if one.has_values}
    assert set(ours) == set(printed)
    for name, row in printed.items():
        one = ours[name]
        assert one.n == int(row["n"])
        assert one.kendall_tau == float(row["kendall_tau"])
        assert one.p_value == float(row["p_value"])
        assert one.needs_short == row["x"].startswith("test accuracy, short")
        shown = row["anomaly_ratio_pct"]
        assert one.anomaly_ratio == (pytest.approx(float(shown) / 100) if shown else None)
        spec = load_spec(one.study)
        assert set(spec.pruning.layers.values()) == {float(row["pruning_ratio"])}
        count = spec.pruning.candidates
        assert count in ("all", one.n)
        data = {"mnist": "mnist", "fmnist": "fashion-mnist"}.get(row["dataset"], row["dataset"])
        assert spec.data.name == data


def test_a_study_knows_its_own() -> None:
    loss, direction = published_of("lenet5-mini-conv1-0.5")
    assert (loss.kendall_tau, loss.p_value, loss.anomaly_ratio) == (-0.51, 0.0, 0.0437)
    assert (direction.x, direction.kendall_tau) == ("short retraining", 0.7)
    assert "lenet5/conv105" in loss.source
    assert direction in all_settings()
    assert published_of("digits-conv1-0.2") == []


def test_a_point_of_a_grid_has_those_of_the_study_that_it_is() -> None:
    width_20 = published_of("lenet5-mini-w20-conv1-0.5")
    assert published_of("lenet5-mini-width+width-20") == width_20 != []
    assert published_of("lenet5-mini-width+width-20@small") == []


def test_they_are_no_part_of_the_study(write_study: Writer) -> None:
    path = write_study(
        'extends = "lenet5-mini-conv1-0.5"\n[[published]]\nsetting = "a"\nn = 9\nkendall_tau = 0\n'
        "p_value = 1\n"
    )
    assert load_spec(str(path)).digest == load_spec("lenet5-mini-conv1-0.5").digest
    assert [one.setting for one in published_of(str(path))] == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("kendall_tau = 2", "published.kendall_tau: input should be less than or equal to 1"),
        ("tau = 0", "published.tau: extra inputs are not permitted"),
        ("x = 'loss'", "published.x: "),
        ("anomaly_ratio = 0.5\n#kendall", "published: kendall_tau is missing"),
    ],
)
def test_a_wrong_value_is_one_line(write_study: Writer, line: str, message: str) -> None:
    path = write_study(
        f'extends = "digits-conv1-0.2"\n[[published]]\nsetting = "a"\nn = 9\np_value = 1\n{line}\n'
        + ("" if "kendall" in line else "kendall_tau = 0\n")
    )
    for read in (published_of, load_spec):
        with pytest.raises(InputError, match=message):
            read(str(path))


def test_they_belong_to_any_study_that_is_the_same(write_study: Writer) -> None:
    same = write_study('extends = "lenet5-mini-conv1-0.5"\n')
    assert published_of(str(same)) == published_of("lenet5-mini-conv1-0.5")
    other = write_study('extends = "lenet5-mini-conv1-0.5"\nretraining.epochs = 29\n')
    assert published_of(str(other)) == []


def test_arms_are_found_by_what_they_are_for(write_study: Writer) -> None:
    path = write_study(
        'network.name = "lenet5-mini"\npruning.layers = { conv1 = 0.5 }\n[arms.tiny]\n'
        'role = "small"\n[arms.theirs]\nrole = "as-released"\n[arms.brief]\nrole = "short"\n'
    )
    assert arm_reference(str(path), "small", "as-released") == f"{path}@tiny@theirs"
    assert arm_reference(f"{path}@brief", "small") == f"{path}@tiny@brief"
    assert short_reference(f"{path}@tiny") == f"{path}@tiny@brief"
    assert has_published_values(load_spec(f"{path}@tiny@theirs"))
    assert not has_published_values(load_spec(f"{path}@tiny@brief"))
    with pytest.raises(InputError, match="is at small scale, so that it takes no --scale full"):
        arm_reference(f"{path}@tiny", "full")


def test_a_page_shows_published_values_where_they_belong(tmp_path: Path) -> None:
    for arm, epochs, is_shown in (("", 30, True), ("@short", 3, False)):
        name = f"lenet5-mini-conv1-0.5{arm}"
        made = synthetic(tmp_path, "classification", CLASSIFICATION, name=name, pruned=(5, 10))
        with Store(made) as store, store._transaction():
            spec = load_spec(name).model_dump(mode="json")
            store._db.execute("UPDATE provenance SET spec = ?", (json.dumps(spec),))
            for (one,) in store._db.execute("SELECT DISTINCT chunk FROM provenance").fetchall():
                store._seal("provenance", one)
        results = Results(made)
        assert results.spec.retraining.epochs == epochs
        text, _ = study_page(results, [], Folder(None))
        assert ("As printed in" in text) == is_shown
        assert ("&lt;5e−06" in text) == is_shown  # the paper prints 0.00000
        assert "1e−300" not in text
