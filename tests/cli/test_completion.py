from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path

import pytest

from trueoracle.cli.app import app
from trueoracle.cli.completion import in_whole_words, shipped_criteria
from trueoracle.criteria.base import CRITERIA
from trueoracle.record.results import Results

Complete = Callable[..., list[str]]


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Complete:
    """The completions that bash is given for the last of some words."""
    monkeypatch.chdir(tmp_path)

    def completions(*words: str) -> list[str]:
        monkeypatch.setenv("_TRUEORACLE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", "\n".join(["trueoracle", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit), in_whole_words():
            app(prog_name="trueoracle")
        return shown.getvalue().split()

    return completions


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["ru"], ["run"]),
        (["run", "digits-conv1-"], ["digits-conv1-0.2"]),
        (["score", "lenet5-mini-wid"], ["lenet5-mini-width"]),
        (["run", "lenet5-mini-width+width-2"], ["lenet5-mini-width+width-20"]),
        # As bash splits them: it replaces what follows the last @.
        (["run", "digits-conv1-0.2", "@", "as"], ["as-released"]),
        (["run", "digits-conv1-0.2", "@"], ["as-released", "short"]),
        (["run", "digits-conv1-0.2", "@", "short", "@", ""], ["as-released"]),
        (["search", "digits-conv1-0.2", "--criterion", ""], ["l1", "oracle"]),
        (["bench", "taylor-"], ["taylor-2017"]),
        (["criteria", "wand"], ["wanda"]),
        (["run", "x", "--set", "retraining.ep"], ["retraining.epochs="]),
        (["run", "no-such", "@", ""], []),
        (["report", "x"], []),
    ],
)
def test_a_word_is_completed(complete: Complete, line: list[str], expected: list[str]) -> None:
    assert complete(*line) == expected


def test_recorded_studies_are_completed(complete: Complete, finished: Results) -> None:
    runs, name = str(finished.folder.parent), finished.folder.name
    for command in ("report", "export", "verify"):
        assert complete(command, "--runs", runs, "ti") == ["tiny", name]


def test_other_shells_get_the_whole_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_TRUEORACLE_COMPLETE", "complete_zsh")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "trueoracle run digits-conv1-0.2@as")
    with redirect_stdout(io.StringIO()) as shown, suppress(SystemExit), in_whole_words():
        app(prog_name="trueoracle")
    assert "digits-conv1-0.2@as-released" in shown.getvalue()


def test_criteria_are_found_without_running_their_code() -> None:
    shipped = {name for name, one in CRITERIA.items() if one.is_shipped}
    assert set(shipped_criteria()) == shipped
