"""The page in a real browser: Debian's chromium, driven by playwright, checked by axe-core."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.record.records import NOISES, synthetic, synthetic_networks
from trueoracle.criteria.base import CRITERIA
from trueoracle.record.pooled import open_results
from trueoracle.record.results import Results
from trueoracle.record.runs import find_arms
from trueoracle.report.drawings import Folder
from trueoracle.report.grid import grid_page, summarise_grid
from trueoracle.report.page import study_page
from trueoracle.spec.grid import Variant
from trueoracle.tasks.metric import CLASSIFICATION

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("pages"),  # which are made once
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]

SCRIPTS = Path(__file__).parents[2] / "trueoracle" / "report" / "script"
NASTY = "</script><img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Opened:
    """A page that is open, what it said to the console, and what it asked for."""

    page: Any
    said: list[str]
    asked: list[str]

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())

    def texts(self, selector: str) -> list[str]:
        return [" ".join(one.split()) for one in self.page.locator(selector).all_inner_texts()]

    def text(self, selector: str) -> str:
        return " ".join(str(self.page.locator(selector).inner_text()).split())

    def of_table(self, expression: str) -> Any:
        """What an expression of the table's script comes to."""
        script = (SCRIPTS / "4-table.js").read_text(encoding="utf-8")
        return self.page.evaluate(f"(() => {{ {script}\nreturn {expression}; }})()")

    def choose(self, control: str, value: str) -> None:
        self.page.select_option(f"#control-{control}", value)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Pages:
    """Pages by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        path = self.folder / f"{name}.html"
        if not path.exists():
            path.write_text(getattr(self, f"_{name}")(), encoding="utf-8")
        return path

    def _record(self, runs: str, name: str = "made-up", epochs: int = 3, **how: Any) -> Results:
        metrics = how.pop("metrics", CLASSIFICATION)
        folder = self.folder / runs
        made = synthetic(folder, "classification", metrics, name=name, epochs=epochs, **how)
        return Results(made)

    def _study(self, results: Results, *, figures: bool = False) -> str:
        drawn = Folder(self.folder / "figures" if figures else None)
        return study_page(results, find_arms(results), drawn)[0]

    def _arms(self) -> str:
        """A study with a short arm, and the pictures of its views."""
        self._record("arms", "made-up@short", epochs=2)
        return self._study(self._record("arms"), figures=True)

    def _many(self) -> str:
        """252 candidates and 25 criteria."""
        names = NOISES | {name: 1.0 for name in [*CRITERIA][:25] if name not in NOISES}
        noises = dict([*names.items()][:25])
        return self._study(self._record("many", pruned=(5, 10), noises=noises), figures=True)

    def _large(self) -> str:
        """1,000 candidates, 3 seeds and 120 epochs."""
        noises = {"oracle": 0.05, "l1": 5.0}
        how: dict[str, Any] = {"pruned": (10, 20), "most": 1000, "noises": noises}
        return self._study(self._record("large", epochs=120, **how))

    def _networks(self) -> str:
        """A study over three dense networks."""
        made = synthetic_networks(self.folder / "networks", "classification", CLASSIFICATION)
        return self._study(open_results(made), figures=True)

    def _several(self) -> str:
        """Two studies of different pruning, of which one has no criterion of the other but one."""
        one = self._record("several", "one")
        other = self._record("several", "another", epochs=2, pruned=(3, 10), noises={"oracle": 1.0})
        return study_page(one, [other], Folder(self.folder / "figures-several"))[0]

    def _grid(self) -> str:
        """Two ratios."""
        points = {
            "ratio-0.2": self._record("grid-2", pruned=(2, 10)),
            "ratio-0.3": self._record("grid-3", pruned=(3, 10)),
        }
        variants = [
            Variant(one.spec, "a grid", label, {"ratio": float(label.removeprefix("ratio-"))})
            for label, one in points.items()
        ]
        folder = Folder(self.folder / "figures-grid")
        return grid_page(summarise_grid(variants, points), points, folder, "last")

    def _nasty(self) -> str:
        """A metric whose name is markup."""
        loss, accuracy = CLASSIFICATION
        return self._study(self._record("nasty", metrics=(loss, replace(accuracy, label=NASTY))))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("pages"))


Opener = Callable[..., Opened]


@pytest.fixture(scope="module")
def opener(browser: Any, written: Pages) -> Iterator[Opener]:
    contexts: dict[tuple[Any, ...], Any] = {}

    def open_(
        name: str, fragment: str = "", width: int = 1280, scheme: str = "light", script: bool = True
    ) -> Opened:
        key = (width, scheme, script)
        if key not in contexts:
            contexts[key] = browser.new_context(
                viewport={"width": width, "height": 900 if width > 500 else 844},
                color_scheme=scheme,
                java_script_enabled=script,
                permissions=["clipboard-read", "clipboard-write"],
            )
        page, said, asked = contexts[key].new_page(), list[str](), list[str]()
        page.on("console", lambda one: said.append(one.text))
        page.on("pageerror", lambda one: said.append(str(one)))
        page.on("request", lambda one: asked.append(one.url))
        page.on("dialog", lambda one: said.append(f"dialog {one.message}"))
        page.goto(written[name].as_uri() + fragment)
        return Opened(page, said, asked)

    yield open_
    for context in contexts.values():
        context.close()


@pytest.fixture
def opened(opener: Opener) -> Iterator[Opener]:
    """Opens a page; it is closed, and was silent and asked for nothing, when the test ends."""
    pages: list[Opened] = []

    def open_(*args: Any, **kwargs: Any) -> Opened:
        pages.append(opener(*args, **kwargs))
        return pages[-1]

    yield open_
    for one in pages:
        asked = [url for url in one.asked if not url.startswith(("data:", "file:"))]
        one.page.close()
        assert (one.said, asked) == ([], [])


ARMS = "#scatter [data-view] .facts-line"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_verdict_is_above_the_fold_and_nothing_is_wider_than_the_page(
    opened: Opener, width: int
) -> None:
    one = opened("arms", width=width)
    box = one.page.locator(".headline").bounding_box()
    assert box["y"] + box["height"] < (900 if width > 500 else 844)
    assert one.count("h1") == 1
    assert one.text(".headline strong") in ("Yes.", "No.", "Unclear.")
    assert len(one.text(".headline").split()) <= 25
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_control_changes_every_linked_plot_and_table_without_a_reload(opened: Opener) -> None:
    one = opened("arms")
    one.page.evaluate("window.same = true")
    parts = (
        "#scatter .plot svg", "#ladder .plot svg", "#curves .plot svg", "#filters .plot svg",
        "#arms .plot svg", "#candidate-table", "#numbers",
    )  # fmt: skip

    def pictures() -> list[str]:
        return [str(one.page.locator(part).first.inner_html()) for part in parts]

    before = pictures()
    one.choose("outcome", "test_loss")
    after = pictures()
    assert [a != b for a, b in zip(before[:6], after[:6], strict=True)] == [True] * 6
    assert one.page.locator('[data-outcome="test_loss"]').is_visible()
    assert not one.page.locator('[data-outcome="test_accuracy"]').is_visible()
    facts = one.text(ARMS)
    one.choose("criterion", "l1")
    assert one.text(ARMS) != facts
    assert one.count("tr.current") > 0
    facts = one.text(ARMS)
    one.choose("seed", "1")
    assert one.text(ARMS) != facts
    one.choose("study", "1")
    assert "retraining.epochs 2, not 3" in one.text("#scatter h3.what .badge")
    assert one.page.evaluate("window.same")


def test_what_is_chosen_is_in_the_fragment_and_comes_back(opened: Opener) -> None:
    one = opened("arms")
    one.choose("criterion", "random")
    one.choose("seed", "2")
    one.page.fill("#filter", "conv1 3")
    one.page.click('[data-sort="score"]')
    one.page.locator("#candidate-table input").first.check()
    fragment = str(one.page.evaluate("location.hash"))
    for words in ("criterion=random", "seed=2", "filter=conv1", "sort=score", "picked="):
        assert words in fragment
    rows = one.texts("#candidate-table tbody tr")
    other = opened("arms", fragment)
    assert other.texts("#candidate-table tbody tr") == rows
    assert other.page.input_value("#control-criterion") == "random"
    assert other.count("#candidate-table tr.picked") == 1
    assert other.page.evaluate("location.hash") == fragment
    # A link to a section keeps it; what does not exist is as if it were not there.
    other.page.click('nav a[href="#glossary"]')
    assert other.page.evaluate("location.hash") == fragment
    wrong = opened("arms", "#criterion=nothing&seed=9&picked=1,x,99999,-1&sort=none&outcome=%00")
    assert wrong.page.input_value("#control-criterion") == "oracle"
    assert wrong.count("#candidate-table tr.picked") == 1


def test_every_point_is_reached_by_keyboard_and_lights_up_everywhere(opened: Opener) -> None:
    one = opened("arms")
    marks = one.page.locator("#scatter .mark")
    assert marks.count() == 45
    assert one.count('#scatter .mark[tabindex="0"]') == 1
    one.page.locator('#scatter .mark[tabindex="0"]').focus()
    reached = set()
    for _ in range(45):
        said = one.page.evaluate(
            "((now) => [now.getAttribute('aria-label'), now.dataset.candidate])"
            "(document.activeElement)"
        )
        reached.add(said[1])
        assert re.match(
            r"candidate \d+: prunes conv1 \d+, \d+; oracle .+; "
            r"final test accuracy 0\.\d+; seed 0 .+, seed 1 .+, seed 2 ",
            said[0],
        )
        one.page.keyboard.press("ArrowRight")
    assert len(reached) == 45
    now = one.page.evaluate("document.activeElement.dataset.candidate")
    # In the scatter, both arms, the short retraining, twice among the pairs of filters; the table.
    assert one.count(f'.mark.lit[data-candidate="{now}"]') == 6
    assert one.count(f'#candidate-table tr.lit[data-candidate="{now}"]') == 1
    assert one.page.locator(".tip").is_visible()
    assert one.text(".tip").startswith(f"candidate {now}: prunes conv1")
    one.page.keyboard.press("Space")
    assert one.page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    one.page.keyboard.press("Home")
    one.page.keyboard.press("Enter")
    assert one.count("#picked tbody tr") == 2
    assert "pruned" in one.text("#picked tbody")
    assert one.count("#candidate-table tr.picked") == 2
    one.page.keyboard.press("Escape")
    assert one.count("#picked tbody tr") == 0


def test_every_point_answers_the_pointer(opened: Opener) -> None:
    one = opened("arms")
    mark = one.page.locator("#scatter .mark").nth(7)
    mark.hover(force=True)
    assert one.page.locator(".tip").is_visible()
    curves = one.page.locator("#curves-plot svg path").count()
    mark.click(force=True)
    assert one.count("#picked tbody tr") == 1
    assert one.count("#candidate-table tr.picked") == 1
    one.page.mouse.move(0, 0)
    assert not one.page.locator(".tip").is_visible()
    assert one.page.locator("#curves-plot svg path").count() >= curves


def test_other_points_choose_or_light_up_what_they_stand_for(opened: Opener) -> None:
    one = opened("arms")
    one.page.locator("#ladder .mark").nth(1).focus()
    one.page.keyboard.press("Enter")
    assert one.page.input_value("#control-criterion") != "oracle"
    one.page.locator("#filters .mark").first.focus()
    assert one.count("#candidate-table tr.lit") == 9  # the pairs with one of ten filters
    one.page.locator("#filters rect.mark").first.focus()
    assert one.count("#candidate-table tr.lit") == 1


def test_the_table_sorts_and_says_so(opened: Opener) -> None:
    one = opened("arms")

    def column(place: int) -> list[float]:
        cells = one.texts(f"#candidate-table tbody td:nth-child({place})")
        return [float(cell.replace("−", "-")) for cell in cells]

    assert column(5) == sorted(column(5), reverse=True)
    assert one.texts('#candidate-table th[aria-sort="descending"]') == ["final test accuracy ▼"]
    one.page.click('[data-sort="score"]')
    assert column(4) == sorted(column(4))
    assert one.count('#candidate-table th[aria-sort="ascending"]') == 1
    one.page.click('[data-sort="score"]')
    assert column(4) == sorted(column(4), reverse=True)
    one.page.fill("#filter", "conv1 3")
    assert one.text("[data-count]") == "9 of 45 candidates"
    assert all("3" in cell for cell in one.texts("#candidate-table tbody td:nth-child(3)"))
    for typed in ("conv1 3, 7", "3, 7", "CONV1 7,3"):  # as rows read, and as one types
        one.page.fill("#filter", typed)
        assert one.texts("#candidate-table tbody td:nth-child(3)") == ["conv1 3, 7"]
    layers = "conv1 2, 7; conv2 0, 3"
    asked = {
        "": True, layers: True, "conv1 2, 7": True, "conv2 3": True, "conv1 2 conv2 0": True,
        "conv1 3": False, "conv1 2 3": False, "conv2 0; conv1 7": True, "conv2 2": False,
    }  # fmt: skip
    for typed, expected in asked.items():
        assert one.of_table(f"fits({json.dumps(layers)}, {json.dumps(typed)})") is expected
    one.page.evaluate("location.hash = 'filter=conv1+7'")
    one.page.locator("[data-count]", has_text="9 of 45").wait_for()
    assert one.page.input_value("#filter") == "conv1 7"


def test_the_table_is_copied_as_csv_markdown_and_latex(opened: Opener) -> None:
    one = opened("arms")
    one.page.fill("#filter", "conv1 3 7")
    clipboard = "navigator.clipboard.readText()"
    copied = {}
    for form in ("CSV", "Markdown", "LaTeX"):
        one.page.click(f'[data-copy="{form}"]')
        # A locator, since the page's policy lets no text be evaluated while it is waited for.
        one.page.locator("[data-copied]", has_text=form).wait_for(state="attached")
        copied[form] = str(one.page.evaluate(clipboard))
    head, row = csv.reader(io.StringIO(copied["CSV"]))
    assert head == [
        "candidate",
        "prunes",
        "score: oracle",
        "final test accuracy",
        "seed 0",
        "seed 1",
        "seed 2",
    ]
    assert row[1] == "conv1 3, 7"
    assert float(row[3]) == pytest.approx(sum(map(float, row[4:])) / 3, rel=1e-5)
    lines = copied["Markdown"].splitlines()
    assert [line.count("|") for line in lines] == [8, 8, 8]
    assert lines[2].split("|")[2].strip() == "conv1 3, 7"
    assert "conv1 3, 7 & " in copied["LaTeX"]
    cells = ["=1+1", "@a", "'-x", "-1.5", "−1", "conv1 3", -2]
    said = one.of_table(f"{json.dumps(cells)}.map(harmless)")
    assert said == ["'=1+1", "'@a", "''-x", "-1.5", "−1", "conv1 3", -2]
    assert copied["LaTeX"].startswith("\\begin{tabular}{lllllll}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["arms", "grid", "networks", "several"])
def test_axe_finds_nothing(opened: Opener, name: str, width: int, scheme: str) -> None:
    one = opened(name, "#picked=3,4", width=width, scheme=scheme)
    one.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    found = axe.Axe().run(one.page).response["violations"]
    assert [(rule["id"], rule["nodes"][0]["html"][:200]) for rule in found] == []


def test_it_prints_on_five_pages_with_all_details(opened: Opener) -> None:
    for name in ("arms", "many", "grid", "networks", "several"):
        one = opened(name)
        pages = len(re.findall(rb"/Type /Page\b", one.page.pdf(format="A4")))
        assert 0 < pages <= 5, name
        one.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert one.count("details:not([open])") == 0
        one.page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert one.count("details:not([open])") > 0


STILLS = {
    "arms": {"ladder": 2, "curves": 2, "filters": 2, "short": 1, "arms": 1, "alike": 2},
    "networks": {"ladder": 1, "curves": 1, "filters": 1, "arms": 1, "alike": 1},
    "several": {"ladder": 2, "curves": 2, "filters": 2, "arms": 1, "alike": 1},
    "grid": {"trend": 1, "forest": 1, "ladder": 2, "curves": 2, "filters": 2, "arms": 1},
}
"""How many pictures each view has without the script; a scatter, and no more, is in all pages."""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", STILLS)
def test_without_its_script_it_has_verdict_tables_and_pictures(
    opened: Opener, name: str, width: int
) -> None:
    one = opened(name, script=False, width=width)
    assert one.text(".headline strong") in ("Yes.", "No.", "Unclear.")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    assert not one.page.locator("#controls").is_visible()
    views = set(one.page.evaluate("[...document.querySelectorAll('.view')].map((v) => v.id)"))
    assert views == {*STILLS[name], "scatter", "candidates", "picked"}
    for view, count in (STILLS[name] | {"scatter": 2 if name == "grid" else 1}).items():
        assert one.count(f"#{view} .still img") == count, view
        for picture in one.page.locator(f"#{view} .still img").all():
            assert picture.is_visible()
            assert picture.evaluate("(one) => one.naturalWidth") > 100
            assert len(picture.get_attribute("alt")) > 20
        assert not one.page.locator(f"#{view} .live").is_visible()
    assert "script draws this" in one.text("#picked")
    assert one.count("#candidates .still tbody tr") == 12
    assert one.page.locator('[data-outcome="test_loss"]').is_visible()


def test_pages_are_small_and_hold_all(opened: Opener, written: Pages) -> None:
    for name in ("many", *STILLS):
        assert written[name].stat().st_size < 1_500_000, name
    assert written["large"].stat().st_size < 8_000_000
    one = opened("large")
    assert one.count("#scatter .mark") == 1000
    assert one.count("#candidate-table tbody tr") == 1000


def test_the_largest_page_is_drawn_in_three_seconds_of_processor_time(
    browser: Any, written: Pages
) -> None:
    # The main thread's own time: parsing, the script, layout; a busy machine makes it no longer.
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(written["large"].as_uri(), wait_until="load")
    page.locator("#candidate-table tbody tr").nth(999).wait_for(state="attached")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    known = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    page.close()
    assert 0 < known["ScriptDuration"] < known["TaskDuration"] < 3


@pytest.mark.parametrize("name", ["arms", "networks", "several", "grid"])
def test_tables_of_numbers_fit_a_wide_page(opened: Opener, name: str) -> None:
    one = opened(name)
    one.page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    tables = one.page.locator("#numbers .scroll:visible, #costs .scroll:visible").all()
    assert len(tables) >= 3
    for table in tables:
        wide, room = table.evaluate("(one) => [one.scrollWidth, one.clientWidth]")
        assert wide <= room, table.get_attribute("aria-label")


def test_equal_axes_lie_side_by_side_however_long_a_badge_is(opened: Opener) -> None:
    one = opened("arms")
    one.page.evaluate(
        "document.querySelector('#arms .badge').textContent = 'retraining.epochs 2 '.repeat(9)"
    )
    plots = [plot.bounding_box() for plot in one.page.locator("#arms .plot").all()]
    assert len(plots) == 2
    assert plots[0]["x"] < plots[1]["x"]
    assert (plots[0]["y"], plots[0]["height"]) == (plots[1]["y"], plots[1]["height"])


def test_the_sum_over_filters_is_drawn_beside_the_means(opened: Opener) -> None:
    one = opened("arms")
    assert one.count("#filters .fitted path") == 10
    assert "a sum over filters" in one.text("#filters [data-view] .legend")


def test_names_are_text_wherever_they_stand(opened: Opener) -> None:
    one = opened("nasty")
    assert one.count("img[src=x]") == 0
    assert NASTY in one.text("#scatter h3 + .plot + .legend + .facts-line + p")
    assert NASTY in one.page.locator("#control-outcome").inner_text()
    one.page.click('[data-copy="Markdown"]')
    one.page.locator("[data-copied]", has_text="Markdown").wait_for(state="attached")
    assert "<img" not in str(one.page.evaluate("navigator.clipboard.readText()"))


def test_a_page_runs_no_script_but_its_own(opened: Opener) -> None:
    one = opened("arms")
    one.page.evaluate(
        "document.body.insertAdjacentHTML("
        "'beforeend', '<img src=\"data:,\" onerror=\"window.ran = true\">')"
    )
    one.page.wait_for_timeout(100)
    assert one.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for text in one.said)
    one.said.clear()


def test_a_grid_is_linked_too(opened: Opener) -> None:
    one = opened("grid")
    assert one.count("#trend .mark") == 2
    one.page.locator("#trend .mark").nth(1).focus()
    one.page.keyboard.press("Enter")
    assert one.page.input_value("#control-study") == "1"
    assert one.text("#scatter h3.what") == "ratio-0.3"
    before = one.text("#forest")
    one.choose("criterion", "l1")
    assert one.text("#forest") != before


def test_every_statistic_leads_to_its_line_of_the_glossary(opened: Opener) -> None:
    one = opened("arms")
    headings = one.page.evaluate(
        "[...document.querySelectorAll('#numbers th')]"
        ".map((one) => [one.textContent, one.querySelector('a')?.getAttribute('href')])"
    )
    assert len(headings) > 20
    for heading, link in headings:
        assert link, heading
        assert one.count(link) == 1
    assert one.page.evaluate("[...document.querySelectorAll('h2')].every((one) => one.id)")
    links = one.page.evaluate("[...document.querySelectorAll('nav a')].map((one) => one.hash)")
    assert all(one.count(link) == 1 for link in links)
    one.page.click("#numbers [data-outcome=test_accuracy] a[href='#term-ceiling']")
    assert one.page.evaluate("document.activeElement.id") == "term-ceiling"
