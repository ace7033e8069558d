from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trueoracle.analysis.numbers import number
from trueoracle.criteria.base import CRITERIA, Criterion
from trueoracle.errors import StoreError
from trueoracle.record.results import Results
from trueoracle.record.runs import find_arms
from trueoracle.report.grid import summarise_grid
from trueoracle.report.page import write_report
from trueoracle.report.summary import summarise
from trueoracle.spec.grid import variants
from trueoracle.study import Study


@pytest.fixture
def results(finished: Results) -> Results:
    return finished


class Checker(HTMLParser):
    """Collects text and images, and notices a tag that is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.inner: list[str] = []
        self.ids: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name == "src"]
        self.inner += [value or "" for name, value in attrs if name == "href"]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.alts += [value or "" for name, value in attrs if name == "alt"]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def read(page: Path) -> Checker:
    checker = Checker()
    checker.feed(page.read_text(encoding="utf-8"))
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert {link.removeprefix("#") for link in checker.inner} <= set(checker.ids)
    return checker


def test_a_summary_holds_the_relations_and_survives_json(results: Results) -> None:
    summary = json.loads(json.dumps(summarise(results), allow_nan=False))
    assert [(r["criterion"], r["metric"]) for r in summary["relations"]] == [
        ("oracle", "test_accuracy"),
        ("oracle", "test_loss"),
        ("l1", "test_accuracy"),
        ("l1", "test_loss"),
    ]
    first = summary["relations"][0]
    relation = results.relation("oracle", "test_accuracy")
    assert first["kendall_tau"] == pytest.approx(relation.kendall.value)
    assert relation.chosen is not None
    assert first["chosen_pruned"] == results.points("oracle")["pruned"].iloc[relation.chosen]
    assert summary["state"] == "finished"
    assert summary["dense"]["test_accuracy"] > 0.1
    assert summary["retraining_seconds"] > 0


@pytest.mark.slow
def test_the_page_says_what_the_summary_says_and_needs_nothing_else(
    results: Results, tmp_path: Path
) -> None:
    written = write_report(results, [], tmp_path / "out")
    page = read(written.page)
    text = " ".join(" ".join(page.text).split())
    for relation in written.summaries[0]["relations"]:
        assert relation["verdict"] in text
        assert number(relation["kendall_tau"], 2) in text
    # One picture of each view: scatter, ladder, learning curves, filters.
    assert len(page.links) == 4
    assert all(link.startswith("data:image/") for link in page.links)
    assert len(written.figures) == 7 * 3  # and a scatter of each criterion and outcome
    assert all(path.stat().st_size > 1000 for path in written.figures)
    assert json.loads(written.summary.read_text())[0]["study"] == "tiny"


@pytest.mark.slow
def test_tables_of_all_arms_are_sorted_by_the_agreement_that_they_show(
    results: Results, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    released = tiny_fields | {"name": "tiny@as-released"}
    released["pruning"] = {**tiny_fields["pruning"], "surgery": "as-released"}
    arm = Study(**released, runs=tmp_path / "runs").run(progress=False)
    page = write_report(results, [arm], tmp_path / "out").page.read_text(encoding="utf-8")
    tables = re.findall(r'aria-label="Each criterion against [^"]*">(.*?)</table>', page, re.S)
    assert page.count("pruning.surgery as-released, not exact") > 4  # wherever the arm is named
    assert len(tables) == 2
    for table in tables:
        shown = re.findall(r"<td><b>([^<]*)</b>", table)
        assert len(shown) == 4
        values = [float(one.replace("−", "-")) for one in shown if one != "–"]
        assert values == sorted(values, reverse=True)


@pytest.mark.slow
def test_many_criteria_have_a_ladder_a_heat_map_and_one_panel(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    criteria = ["l1", "oracle", "l2", "random", "lamp", "bn-scale"]
    results = Study(**tiny_fields | {"criteria": criteria}, runs=tmp_path / "runs").run(
        progress=False
    )
    written = write_report(results, [], tmp_path / "out")
    names = {path.name for path in written.figures if path.suffix == ".svg"}
    best = {
        metric: max(
            (r for r in written.summaries[0]["relations"] if r["metric"] == metric),
            key=lambda r: -2 if r["agreement"] is None else r["agreement"],
        )["criterion"]
        for metric in ("test_accuracy", "test_loss")
    }
    scatters = {
        f"tiny-{criterion}-{metric}.svg"
        for metric in best
        for criterion in ("oracle", best[metric])
    }
    panels = {f"tiny-every-criterion-{metric}.svg" for metric in best}
    more = {f"tiny-{name}-{next(iter(best))}.svg" for name in ("curves", "filters")}
    assert names == {"tiny-criteria.svg", "tiny-agreement.svg", *scatters, *panels, *more}
    page = read(written.page)
    assert all(alt.strip() for alt in page.alts)
    assert len(page.alts) == len(page.links) == 5
    text = " ".join(" ".join(page.text).split())
    found = re.search(
        r"(Yes|No|Unclear): of 5 criteria, \d predicts? final test accuracy .*?; (\S+) agrees most",
        text,
    )
    assert found is not None
    assert found[2] == best["test_accuracy"]
    assert "bn-scale does not apply and is skipped: " in text
    assert "Differences of agreement" in text
    assert "counts the noise of seeds and examples" in text
    over = "2 retraining seeds, 20 blocks of examples and 10 filters, given the dense network"
    assert f"Intervals and p are over {over}." in text
    for criterion in criteria[1:-1]:  # each against the first
        assert f"{criterion} l1" in text
    assert written.page.stat().st_size < 1_000_000


@pytest.mark.slow
def test_arms_are_shown_beside_the_study(
    results: Results, tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {
        "name": "tiny@as-released",
        "pruning": {"layers": {"conv1": 0.1}, "surgery": "as-released"},
    }
    Study(**fields, runs=tmp_path / "runs").run(progress=False)
    unrelated = tiny_fields | {"name": "tiny@other", "dense": {"epochs": 1}}
    Study(**unrelated, runs=tmp_path / "runs").run(progress=False)
    arms = find_arms(results)
    assert [arm.spec.name for arm in arms] == ["tiny@as-released"]
    assert [arm.spec.name for arm in find_arms(arms[0])] == ["tiny"]
    written = write_report(results, arms, tmp_path / "out")
    assert [summary["surgery"] for summary in written.summaries] == ["exact", "as-released"]
    assert "pruning.surgery as-released, not exact" in " ".join(
        " ".join(read(written.page).text).split()
    )


@pytest.mark.slow
def test_one_epoch_and_changes_are_said_plainly(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {
        "name": "digits-conv1-0.2",
        "purpose": "all 45 ways",
        "criteria": ["l1"],
    }
    fields["retraining"] = {"epochs": 1, "seeds": [0]}
    results = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    written = write_report(results, [], tmp_path / "out")
    text = " ".join(" ".join(read(written.page).text).split())
    assert "networks retrained, 1 seed, 1 epoch " in text
    assert "1 epoch of retraining" in text
    assert "changed: data.name tiny" in text
    assert "retraining.epochs 1, " in text
    assert written.summaries[0]["changed"]["pruning.layers"] == {"conv1": 0.1}


@pytest.mark.slow
def test_a_dense_network_at_chance_is_warned_of(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    fields = tiny_fields | {"criteria": ["l1"], "dense": {"epochs": 1, "learning_rate": 1e-7}}
    fields["retraining"] = {"epochs": 1, "seeds": [0]}
    told: list[str] = []

    class Listener:
        def stage(self, name: str, total: int, done: int, unit: str) -> None: ...

        def advance(self, count: float = 1, note: str = "") -> None: ...

        def message(self, text: str) -> None:
            told.append(text)

    results = Study(**fields, runs=tmp_path / "runs").run(progress=Listener())
    warning = "the dense network is hardly better than chance: test accuracy "
    assert any(text.startswith(f"warning: {warning}") for text in told)
    assert warning in write_report(results, [], tmp_path / "out").page.read_text()


def test_a_small_grid_says_what_stands_in_place_of_what() -> None:
    told = summarise_grid(variants("lenet5-mini-width@small"), {})["scale_in_words"]
    assert told.startswith("small scale: mnist-5k in place of mnist, 60 candidates in place of ")
    assert "60 candidates in place of 1,000 candidates" in told
    assert summarise_grid(variants("lenet5-mini-width"), {})["scale_in_words"] == ""


@pytest.mark.slow
def test_names_are_escaped(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    fields = tiny_fields | {"purpose": "<script>alert(1)</script> & so on"}
    results = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    page = write_report(results, [], tmp_path / "out").page.read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.slow
def test_a_criterion_of_any_name_is_text(
    tiny_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = '"><img src=x onerror=alert(1)>' + "x" * 40
    made = Criterion(name, "a paper", lambda dense, candidates, data: [0.0] * len(candidates))
    monkeypatch.setitem(CRITERIA._entries, name, made)
    fields = tiny_fields | {"criteria": [name]}
    results = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    written = write_report(results, [], tmp_path / "out")
    page = written.page.read_text()
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert max(len(path.name) for path in written.figures) < 100


def test_an_unfinished_study_says_so(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    class Stop:
        def __init__(self, at: str) -> None:
            self.at = at

        def stage(self, name: str, total: int, done: int, unit: str) -> None:
            if name == self.at:
                raise KeyboardInterrupt

        def advance(self, count: float = 1, note: str = "") -> None: ...

        def message(self, text: str) -> None: ...

    study = Study(**tiny_fields, runs=tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stop("dense network"))
    early = read(write_report(study.results(), [], tmp_path / "early").page)
    assert "dense network:" not in " ".join(early.text)
    with pytest.raises(KeyboardInterrupt):
        study.run(progress=Stop("retrain"))
    page = read(write_report(study.results(), [], tmp_path / "out").page)
    text = " ".join(" ".join(page.text).split())
    assert "No network has been retrained yet." in text
    assert "0 of 20 networks are retrained" in text


def test_divergence_is_told(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    fields = tiny_fields | {
        "retraining": {"epochs": 3, "batch_size": 32, "learning_rate": 1e8, "seeds": [0]}
    }
    results = Study(**fields, runs=tmp_path / "runs").run(progress=False)
    page = read(write_report(results, [], tmp_path / "out").page)
    assert "10 retrainings diverged" in " ".join(page.text)


def test_a_page_that_cannot_be_written_is_said(results: Results, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_report(results, [], tmp_path / "file")
