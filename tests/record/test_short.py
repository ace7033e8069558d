"""A short retraining against the full one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trueoracle.analysis.relation import relate
from trueoracle.errors import InputError
from trueoracle.record.results import SHORT, Results
from trueoracle.record.runs import find_arms, find_short
from trueoracle.report.page import write_report
from trueoracle.report.summary import summarise
from trueoracle.study import Study


@pytest.fixture
def run(tiny_fields: dict[str, Any], tmp_path: Path) -> Any:
    def run(name: str, **changes: Any) -> Results:
        fields = {**tiny_fields, "name": name, "criteria": ["l1"], **changes}
        fields["retraining"] = {"epochs": 1, "batch_size": 64, "learning_rate": 0.01, "seeds": [0]}
        fields["retraining"] |= changes.get("retraining", {})
        return Study(**fields, runs=tmp_path / "runs").run(progress=False)

    return run


@pytest.mark.slow
def test_the_short_retraining_is_a_score_of_the_full_one(run: Any, tmp_path: Path) -> None:
    full, short = run("tiny", retraining={"epochs": 3}), run("tiny@short")
    assert find_short(full, find_arms(full)) is not None
    assert find_short(short, [full]) is None
    both = full.with_short(short)
    points = both.points(SHORT)
    for mine, column in ((short, "score"), (full, "outcome")):
        last = mine.outcomes[mine.outcomes["epoch"] == mine.outcomes["epoch"].max()]
        expected = last.set_index("candidate")["test_accuracy"][points["candidate"]]
        assert np.array_equal(points[column].to_numpy(), expected.to_numpy())
    relation = both.relation(SHORT)
    assert relation.chosen_score == points["score"].max()
    by_hand = relate(-points["score"], points["outcome"], higher_is_better=True)
    assert relation.kendall.value == -by_hand.kendall.value
    losses = both.relation(SHORT, "test_loss")
    assert losses.chosen_score == both.points(SHORT, "test_loss")["score"].min()
    # One more column of scores: the others stay, and are adjusted for themselves alone.
    assert both.criteria == full.criteria
    assert full.short is None
    assert [one.as_dict() for one in both.assess()] == [one.as_dict() for one in full.assess()]
    (assessed,) = both.assess(criteria=[SHORT])
    assert assessed.relation.agreement == relation.agreement == relation.kendall.value
    assert both.score(SHORT).label == "test accuracy after a short retraining (1 epoch)"
    assert both.plot(SHORT, "test_loss").axes
    with pytest.raises(InputError, match="unknown recorded criterion 'short retraining'"):
        full.points(SHORT)

    assert summarise(full)["short_retraining"] is None
    told = summarise(full, short=short)["short_retraining"]
    assert (told["study"], told["epochs"]) == ("tiny@short", 1)
    assert told["relations"][0]["kendall_tau"] == relation.kendall.value
    assert "a short retraining (1 epoch)" in told["relations"][0]["verdict"]

    written = write_report(full, find_arms(full), tmp_path / "out")
    # What is shown together is judged together: the report shows the study's own criteria too.
    told = written.summaries[0]["short_retraining"]
    assert (told["study"], told["epochs"]) == ("tiny@short", 1)
    assert told["relations"][0]["kendall_tau"] == relation.kendall.value
    assert written.summaries[1]["short_retraining"] is None
    names = {path.name for path in written.figures}
    assert {"tiny-short-retraining-test_accuracy.png"} <= names
    page = written.page.read_text()
    assert told["relations"][0]["verdict"] in page
    assert "Highest test accuracy after a short retraining" in page


@pytest.mark.slow
def test_other_experiments_are_no_short_retraining(run: Any) -> None:
    full = run("tiny", retraining={"epochs": 2})
    for changes in (
        {"retraining": {"epochs": 2, "seeds": [1]}},
        {"pruning": {"layers": {"conv1": 0.1}, "surgery": "as-released"}},
    ):
        assert find_short(full, [run("tiny@short", **changes)]) is None


@pytest.mark.slow
def test_the_short_retraining_that_fits_best_is_taken(run: Any) -> None:
    full = run("tiny", retraining={"epochs": 3})
    fitting = run("tiny@short")
    other = run("tiny@short", retraining={"learning_rate": 0.05})  # the last changed one
    for runs in ([other, fitting], [fitting, other]):
        assert find_short(full, runs) is fitting
    (found,) = find_arms(full)
    assert found.spec == fitting.spec


@pytest.mark.slow
def test_the_role_says_which_arm_is_short(run: Any) -> None:
    full = run("tiny", retraining={"epochs": 2})
    brief = run("tiny@brief", roles={"brief": "short"})
    assert find_short(full, [run("tiny@other"), brief]) is brief
    assert find_short(full, find_arms(full)) is not None


@pytest.mark.slow
def test_other_networks_and_candidates_are_not_compared(run: Any) -> None:
    full = run("tiny", retraining={"epochs": 2})
    other = run("tiny@short", dense={"epochs": 1})
    assert find_short(full, [other]) is None
    with pytest.raises(InputError, match="tiny@short and tiny prune different networks"):
        full.with_short(other)
    apart = run("tiny@short", pruning={"layers": {"conv2": 0.1}})
    assert find_short(full, [apart]) is None
    with pytest.raises(InputError, match="share no candidate"):
        full.with_short(apart)
