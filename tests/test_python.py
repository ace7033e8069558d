"""What Python and notebooks show, and how wrong calls end."""

from __future__ import annotations

import linecache
import pydoc
import re
import sys
import traceback
import webbrowser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trueoracle
from trueoracle.criteria.base import CRITERIA
from trueoracle.errors import InputError
from trueoracle.figures.drawing import new_figure
from trueoracle.record.pooled import PooledResults
from trueoracle.record.results import Results
from trueoracle.sources import code_fingerprint, named_fingerprint
from trueoracle.study import Study

PNG = b"\x89PNG"


def test_completion_and_help_list_every_public_name() -> None:
    assert {name for name in dir(trueoracle) if not name.startswith("__")} == {
        *trueoracle.__all__
    } - {"__version__"}
    assert "__version__" in dir(trueoracle)
    text = pydoc.render_doc(trueoracle, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    for name in {*trueoracle.__all__} - {"__version__"}:
        assert re.search(rf"^    (class )?{name}\(", text, re.MULTILINE), name


def test_results_show_themselves(finished: Results) -> None:
    assert repr(finished).startswith("<Results of tiny: finished, 20 of 20 networks retrained, in ")
    html = finished._repr_html_()
    assert "<strong>tiny</strong>: finished, 20 of 20 networks retrained" in html
    assert html.count("<tr>") == 1 + 4
    assert 'src="data:image/png;base64,' in html
    assert "pruned train loss" in html


def test_results_of_a_hostile_name_inject_nothing(finished: Results) -> None:
    finished._labels["oracle"] = "<script>alert(1)</script>"
    html = finished._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_results_of_a_scored_study_show_themselves(
    tiny_fields: dict[str, Any], tmp_path: Path
) -> None:
    scored = Study(**tiny_fields, runs=tmp_path).score(progress=False)
    assert "scored, 0 of 20 networks retrained" in scored._repr_html_()
    assert "<img" not in scored._repr_html_()
    with pytest.raises(InputError, match="no network has been retrained yet"):
        _ = scored.best


def test_results_of_several_networks_show_themselves(three_networks: PooledResults) -> None:
    assert "60 of 60 networks retrained" in three_networks._repr_html_()
    assert repr(three_networks).startswith("<PooledResults of tiny: finished")


def test_a_figure_shows_itself(finished: Results) -> None:
    figure = finished.plot("oracle")
    assert figure._repr_png_().startswith(PNG)  # type: ignore[attr-defined]
    assert figure._repr_png_() == figure._repr_png_()  # type: ignore[attr-defined]
    assert new_figure((2, 1))._repr_png_().startswith(PNG)  # type: ignore[attr-defined]


def test_results_have_a_summary_a_best_and_a_report(
    finished: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.summary()["retrained"] == 20
    best, points = finished.best, finished.points("oracle")
    higher = finished.outcome().higher_is_better
    assert best["outcome"] == (points["outcome"].max() if higher else points["outcome"].min())
    assert set(best["pruned"]) == {"conv1"}
    assert len(finished.export(str(tmp_path / "tables"))) == 8
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = finished.open()
    assert page.is_file()
    assert opened == [page.as_uri()]
    written = finished.report(str(tmp_path / "report"))
    assert written.page == tmp_path / "report" / "report.html"
    assert len(repr(written)) < 3000


def test_what_is_prepared_prints_no_tensor(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    prepared = Study(**tiny_fields, runs=tmp_path).prepare()
    assert repr(prepared) == (
        "<Prepared tiny: 10 candidates, criteria oracle, l1, 20 networks to retrain, on cpu>"
    )
    assert "tensor(" not in repr(prepared.data)
    assert (
        repr(prepared.data.test)
        == "<Split of 100: input [100, 1, 32, 32] float32, target [100] int64>"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 3}, "unknown field 'epochs': did you mean 'retraining.epochs' or"),
        ({"retraining": {"epochs": -1}}, "retraining.epochs: input should be greater than"),
        ({"criteria": [lambda dense, candidates, data: [0.0]]}, "has no name: define it by def"),
        ({"criteria": [1]}, "criteria.0: input should be a valid string"),
    ],
)
def test_a_wrong_call_gives_one_message(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Study("digits-conv1-0.2", **wrong)
    assert message in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert "pydantic" not in shown.replace("pydantic.", "", 0) or "ValidationError" not in shown
    assert "another exception" not in shown
    assert "direct cause" not in shown


def test_a_wrong_setting_of_a_search_is_named(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="unknown setting of a search 'criteria': did you mean 'cri"
    ):
        Study(**tiny_fields, runs=tmp_path).search(2, criteria="l1", progress=False)


def fewest_first(dense: Any, candidates: Any, data: Any) -> list[float]:
    """The sum of the pruned filters' numbers."""
    return [float(sum(candidates.pruned(i)["conv1"])) for i in range(len(candidates))]


def another(score: float) -> Any:
    """Another function of the same name."""

    def fewest_first(dense: Any, candidates: Any, data: Any) -> list[float]:
        return [score] * len(candidates)

    return fewest_first


def typed(code: str) -> Any:
    """The function ``own`` of a notebook's cell."""
    name = f"<cell {hash(code)}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    made: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, name, "exec"), made)  # noqa: S102
    return made["own"]


def test_a_notebooks_function_is_known_by_its_code_and_what_it_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    code = "FACTOR = 2\ndef part(x):\n    return x\ndef own(x):\n    return FACTOR * part(x)\n"
    first = code_fingerprint(typed(code))
    assert first
    assert code_fingerprint(typed(code)) == first
    for change in (("= 2", "= 3"), ("return x", "return -x"), ("FACTOR *", "FACTOR +")):
        assert code_fingerprint(typed(code.replace(*change))) not in ("", first)
    # Nothing certain can be said of a function that uses an object of the notebook.
    assert not code_fingerprint(typed("class A: ...\none = A()\ndef own(x):\n    return one\n"))
    typed_class = "class A:\n    width = 1\n    def part(self):\n        return 1\nown = A\n"
    first = named_fingerprint(typed(typed_class))
    assert first == named_fingerprint(typed(typed_class))
    for change in (("return 1", "return 2"), ("width = 1", "width = 2")):
        assert named_fingerprint(typed(typed_class.replace(*change))) not in ("", first)


@pytest.fixture(autouse=True)
def _own_criteria_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CRITERIA, "_entries", dict(CRITERIA._entries))
    monkeypatch.setattr(CRITERIA, "_origins", dict(CRITERIA._origins))


def test_a_function_is_a_criterion(tiny_fields: dict[str, Any], tmp_path: Path) -> None:
    fields = {**tiny_fields, "criteria": ["l1", fewest_first]}
    study = Study(**fields, runs=tmp_path)
    assert study.spec.criteria == ("l1", "fewest_first")
    scored = study.score(progress=False)
    pruned = [one["conv1"] for one in scored.candidates["pruned"]]
    assert scored.scores["fewest_first"].tolist() == [float(sum(one)) for one in pruned]
    # The same function goes on; another of the same name, whose code differs, is scored anew.
    again = Study(**fields, runs=tmp_path).score(progress=False)
    assert again.scores.equals(scored.scores)
    CRITERIA._entries.pop("fewest_first")
    CRITERIA._origins.pop("fewest_first")
    other = Study(**{**fields, "criteria": ["l1", another(7.0)]}, runs=tmp_path)
    assert other.spec.digest == study.spec.digest
    assert other.score(progress=False).scores["fewest_first"].tolist() == [7.0] * 10


def test_a_function_may_not_take_a_criterions_name(tiny_fields: dict[str, Any]) -> None:
    def oracle(dense: Any, candidates: Any, data: Any) -> list[float]:
        return [0.0] * len(candidates)

    with pytest.raises(InputError, match="there is a criterion named 'oracle' already"):
        Study(**{**tiny_fields, "criteria": [oracle]})


def test_a_decorated_function_is_a_criterion(tiny_fields: dict[str, Any]) -> None:
    made = trueoracle.criterion("fewest")(fewest_first)
    assert Study(**{**tiny_fields, "criteria": [made]}).spec.criteria == ("fewest",)
