"""The docs as a site: it builds without a warning, asks nobody, and can be read by all."""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("mkdocs")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("site"),  # which is built once
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, list[str]]]:
    """Where the site is served, and its pages."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-2000:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = [*folder.glob("*.html"), *folder.glob("reports/*.html")]
    assert all(one.stat().st_size < 1_000_000 for one in folder.glob("reports/*.html"))
    address = f"http://127.0.0.1:{server.server_port}"
    yield address, sorted(str(one.relative_to(folder)) for one in found)
    server.shutdown()
    server.server_close()


def looked_at(
    browser: Any, scheme: str, width: int, address: str, pages: list[str]
) -> list[tuple[str, ...]]:
    """What is wrong with the pages: of what rule, or what else they ask for."""
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    wrong: list[tuple[str, ...]] = []
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.on("pageerror", lambda error: wrong.append((page.url, str(error))))
    for name in pages:
        page.goto(f"{address}/{name}", wait_until="load")
        wrong += [
            (name, f"{scheme} at {width}", one["id"], one["nodes"][0]["html"][:200])
            for one in axe.Axe().run(page).response["violations"]
        ]
    return wrong + [("asks", url) for url in asked if not url.startswith((address, "data:"))]


def test_the_example_reports_are_real_and_open(site: tuple[str, list[str]]) -> None:
    address, pages = site
    names = [name for name in pages if name.startswith("reports/")]
    assert len(names) >= 2
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        for name in names:
            page.goto(f"{address}/examples.html")
            page.click(f'main a[href="{name}"]')
            page.locator("#scatter .mark").first.wait_for()
            assert page.inner_text(".headline strong") in ("Yes.", "No.", "Unclear.")
            assert page.locator("#candidate-table tbody tr").count() > 40
            said = page.inner_text("#provenance")
            assert re.search(r"trueoracle \S+, torch 2\.\d+.*Python 3\.\d+", said)
            assert "/tmp/" not in page.content()  # noqa: S108 - no place of the run
        browser.close()


def test_every_page_is_accessible_and_asks_nobody(site: tuple[str, list[str]]) -> None:
    address, pages = site
    assert {"index.html", "pictures.html", "api.html", "examples.html"} <= set(pages)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for scheme, width in itertools.product(("light", "dark"), (1280, 390)):
            assert looked_at(browser, scheme, width, address, pages) == []
        browser.close()
