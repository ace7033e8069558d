from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from tests.conftest import Writer
from trueoracle.cli.app import COMMANDS, app
from trueoracle.cli.console import guarded
from trueoracle.cli.options import Output
from trueoracle.record.lock import locked
from trueoracle.record.results import Results
from trueoracle.study import Study

TINY = """
[network]
name = "lenet5-mini"
[data]
name = "tiny"
validation_images = 100
[dense]
epochs = 3
batch_size = 32
learning_rate = 0.05
[pruning]
layers = { conv1 = 0.1 }
[retraining]
epochs = 1
seeds = [0]
[arms.as-released.pruning]
surgery = "as-released"
"""


class Called:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def call(*arguments: object) -> Called:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Called(result.exit_code, result.stdout, result.stderr)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def study(write_study: Writer, tiny_dataset: str) -> Path:
    return write_study(TINY)


def test_run_records_and_says_the_verdict(study: Path, runs: Path) -> None:
    called = call("run", study, "--runs", runs)
    assert called.code == 0
    assert "retrain: 10/10 networks" in called.err
    assert called.err.startswith("the study: 10 networks of 0.404 M MACs, 1 epoch of ")
    assert "retraining (about " in called.err
    assert "power: a |τ| of " in called.err
    assert "100 examples" in called.err.partition("power: ")[2].partition(")")[0]
    assert re.search("(Yes|No|Unclear): pruned train loss .* after retraining", called.out)
    assert (
        "each candidate: 5,224 of 5,500 parameters (compression 1.05x), 0.404 of 0.449 M MACs "
        "(theoretical speed-up 1.11x)\n"
    ) in called.out
    assert re.search(
        r"\nLatency of a pruned network, of the dense one's: 1 example [\d.]+ of [\d.]+ ms, "
        r"[\d.]+×; 256 examples [\d.]+ of [\d.]+ ms, [\d.]+× \(medians of \d+( and \d+)? forwards "
        r"on \S+, \d+ threads?\)\n",
        called.out,
    )
    assert "oracle" in called.out
    assert str(runs / "mine-") in called.out
    again = call("run", study, "--runs", runs, "--json", "--quiet")
    assert again.err == ""
    summary = json.loads(again.out)
    assert summary["state"] == "finished"
    assert summary["retrained"] == summary["to_retrain"] == 10
    assert len(summary["relations"]) == 4


def test_a_grids_point_is_reported_by_the_name_of_its_folder(finished: Results) -> None:
    point = finished.folder.with_name("lenet5-mini-width+width-20-0123456789ab")
    finished.folder.rename(point)
    called = call("report", point.name, "--runs", point.parent)
    assert (called.code, called.err) == (0, "")
    assert str(point / "report" / "report.html") in called.out


def test_quiet_is_quiet(study: Path, runs: Path) -> None:
    called = call("run", study, "--runs", runs, "--quiet")
    assert (called.code, called.out, called.err) == (0, "", "")


@pytest.mark.slow
def test_settings_override_fields(study: Path, runs: Path) -> None:
    called = call(
        "run", study, "--runs", runs, "--json",
        "--set", "retraining.epochs=2", "--set", "criteria=['random']",
    )  # fmt: skip
    summary = json.loads(called.out)
    assert summary["epochs"] == 2
    assert {relation["criterion"] for relation in summary["relations"]} == {"random"}


@pytest.mark.slow
def test_score_ranks_without_retraining(study: Path, runs: Path) -> None:
    called = call("score", study, "--runs", runs, "--sample", 4)
    assert called.code == 0
    assert "score by oracle: 10/10 candidates" in called.err
    assert "retrained" not in called.err
    assert "retraining:" not in called.err
    assert "for one of all 10 ways to prune" in called.out
    assert "the lowest of 4 sampled" in called.out
    assert f"trueoracle run {study} --runs {runs}" in called.out
    again = call("score", study, "--runs", runs, "--sample", 4, "--seed", 2, "--json", "-q")
    assert again.err == ""
    summary = json.loads(again.out)
    assert (summary["state"], summary["scored"], summary["retrained"]) == ("scored", 20, 0)
    oracle, l1 = summary["rankings"]
    assert (oracle["criterion"], l1["criterion"]) == ("oracle", "l1")
    assert oracle["sampled"]["mean_rank"] == pytest.approx(11 / 5)
    assert oracle["oracle_pruned"] == {"conv1": [oracle["oracle"]]}
    assert oracle["margin"] == oracle["runner_up_score"] - oracle["oracle_score"] > 0
    assert oracle["verdict"].startswith("Pruned train loss is lowest")
    rows = json.loads(call("status", "--runs", runs, "--json").out)
    assert rows[0]["state"] == "scored"
    # A study without outcomes is reported as far as it has come, and a run goes on from it.
    report = call("report", study, "--runs", runs)
    assert report.code == 0
    assert "No network has been retrained yet" in (
        next(runs.glob("mine-*/report/report.html")).read_text()
    )
    run = call("run", study, "--runs", runs)
    assert "score by" not in run.err
    assert "retrain: 10/10 networks" in run.err
    assert json.loads(call("status", "--runs", runs, "--json").out)[0]["state"] == "finished"
    scored = call("score", study, "--runs", runs)
    assert f"all are retrained; the figures: trueoracle report {study} --runs {runs}" in scored.out
    assert "to retrain them" not in scored.out


def test_score_says_what_a_sampled_list_cannot(study: Path, runs: Path) -> None:
    settings = ["--set", "pruning.candidates=5", "--set", "criteria=['random']"]
    called = call("score", study, "--runs", runs, *settings)
    assert called.code == 0
    assert "not all ways to prune" in called.out
    again = shlex.split(called.out.partition("to retrain them: ")[2])
    assert again == ["trueoracle", "run", str(study), *settings, "--runs", str(runs)]
    assert call("score", study, "--runs", runs, *settings, "--quiet").out == ""
    assert call("score", study, "--runs", runs, "--sample", 0).code == 2


def test_status_tells_how_far_every_study_is(study: Path, runs: Path) -> None:
    assert "no study is recorded" in call("status", "--runs", runs).out
    assert json.loads(call("status", "--runs", runs, "--json").out) == []
    call("run", study, "--runs", runs, "-q")
    call("run", f"{study}@as-released", "--runs", runs, "-q")
    rows = json.loads(call("status", "--runs", runs, "--json").out)
    assert [row["study"] for row in rows] == ["mine@as-released", "mine"]
    assert all(row["state"] == "finished" for row in rows)
    assert all((row["retrained"], row["to_retrain"]) == (10, 10) for row in rows)
    with locked(Path(rows[0]["folder"])):
        rows = json.loads(call("status", "--runs", runs, "--json").out)
        assert rows[0]["state"] == "running"
    database = Path(rows[1]["folder"]) / "study.sqlite"
    database.write_bytes(database.read_bytes()[:6000])
    rows = json.loads(call("status", "--runs", runs, "--json").out)
    damaged = next(row for row in rows if row["study"] == "mine")
    assert damaged["state"] == "unreadable"
    assert "is damaged" in damaged["error"]
    assert "unreadable" in call("status", "--runs", runs).out


@pytest.mark.slow
def test_report_writes_figures_summary_and_page(study: Path, runs: Path, tmp_path: Path) -> None:
    call("run", study, "--runs", runs, "-q")
    call("run", f"{study}@as-released", "--runs", runs, "-q")
    out = tmp_path / "out"
    called = call("report", study, "--runs", runs, "--out", out)
    assert called.code == 0
    assert str(out / "report.html") in called.out
    assert (out / "report.html").is_file()
    # Of each arm the ladder, four scatters, learning curves and filters; and the arms side by side:
    # in three forms.
    assert len(list((out / "figures").iterdir())) == (2 * (5 + 2) + 1) * 3
    assert "as-released" in called.out
    by_name = json.loads(call("report", "mine", "--runs", runs, "--json").out)
    assert [summary["study"] for summary in by_name] == ["mine", "mine@as-released"]
    (folder,) = runs.glob("mine-*")
    last = json.loads(call("report", "--runs", runs, "--json").out)
    assert last[0]["study"] == "mine@as-released"
    assert (folder / "report" / "report.html").is_file()
    assert call("report", folder.name, "--runs", runs, "--json").out
    best = json.loads(
        call("report", "mine", "--runs", runs, "--outcome", "best-on-test", "--json").out
    )
    assert best[0]["outcome"] == "best-on-test"


def test_export_writes_the_tables(study: Path, runs: Path, tmp_path: Path) -> None:
    call("run", study, "--runs", runs, "-q")
    frames = {}
    names = {"candidates", "scores", "outcomes", "retrainings", "dense_epochs", "metrics", "blocks"}
    names |= {"failures"}
    for form, reader in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        called = call("export", "mine", "--runs", runs, "--format", form, "--out", tmp_path / form)
        assert called.code == 0
        assert {path.stem for path in (tmp_path / form).iterdir()} == names
        frames[form] = {name: reader(tmp_path / form / f"{name}.{form}") for name in names}
    assert len(frames["csv"]["outcomes"]) == 10
    assert json.loads(frames["csv"]["candidates"]["pruned"][3]) == {"conv1": [3]}
    tables = [frames[form].pop("metrics").astype(object) for form in frames]
    metrics = [table.where(table.notna(), "").to_dict("records") for table in tables]
    assert metrics[0] == metrics[1]
    assert [one["name"] for one in metrics[0]] == ["loss", "accuracy"]
    for name, frame in frames["csv"].items():
        same = frames["parquet"][name].replace("", float("nan"))  # as CSV has an empty text
        pd.testing.assert_frame_equal(frame, same, check_dtype=False)


def test_analyse_a_table_of_ones_own(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("loss,accuracy,name\n1,8,a\n2,9,b\n3,7,c\n4,5,d\n,6,e\n")
    figure = tmp_path / "figure.svg"
    called = call("analyse", points, "--x", "loss", "--y", "accuracy", "--figure", figure)
    assert called.code == 0
    assert "higher accuracy is better; a perfect score has tau -1" in called.out
    assert "1 rows without" in called.out
    assert "−0.67" in called.out
    assert "Unclear: the score loss says nothing certain about the outcome accuracy" in called.out
    assert figure.is_file()
    fields = json.loads(call("analyse", points, "--x", "loss", "--y", "accuracy", "--json").out)
    assert fields["kendall_tau"] == pytest.approx(-2 / 3)
    assert (fields["n"], fields["dropped"], fields["rank"]) == (4, 1, 2)
    lower = call("analyse", points, "--x", "loss", "--y", "accuracy", "--lower-is-better", "--json")
    assert json.loads(lower.out)["rank"] == 3


@pytest.mark.parametrize(
    ("column", "options", "better"),
    [
        ("test_loss", (), "lower"),
        ("loss", (), "lower"),
        ("test_accuracy", (), "higher"),
        ("test_loss", ("--higher-is-better",), "higher"),
        ("my_test_loss", (), "higher"),  # a name that ends like one says nothing
        ("inaccuracy", (), "higher"),
        ("inaccuracy", ("--lower-is-better",), "lower"),
    ],
)
def test_analyse_takes_a_direction_from_options_and_from_names_of_a_studys_own(
    column: str, options: tuple[str, ...], better: str, tmp_path: Path
) -> None:
    points = tmp_path / "points.csv"
    points.write_text(f"x,{column}\n1,8\n2,9\n3,7\n4,5\n")
    called = call("analyse", points, "--x", "x", "--y", column, *options)
    assert called.out.startswith(f"{better} {column} is better; ")


@pytest.mark.slow
def test_analyse_several_scores_and_seeds(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    rows = [f"{i},{i % 3},{-i + i % 2},{-i + i % 5},{i}" for i in range(30)]
    points.write_text("\n".join(["good,bad,s0,s1,pruned", *rows]) + "\n")
    columns = ("--x", "good", "--x", "bad", "--y", "s0", "--y", "s1")
    called = call("analyse", points, *columns)
    assert called.code == 0
    assert "95%: over 2 retraining seeds and 30 sampled candidates" in called.out
    assert "bad against good: −" in called.out
    assert "cross-validated" in called.out
    fields = json.loads(call("analyse", points, *columns, "--json").out)
    good, bad = fields["studies"]
    assert good["kendall_tau"] < -0.9 < bad["kendall_tau"]
    assert good["kendall_low"] < good["kendall_tau"] < good["kendall_high"]
    assert 0.9 < good["ceiling"] <= 1
    assert good["permutation_p_value"] is None
    ((difference,),) = [one["differences"] for one in fields["comparison"].values()]
    assert (difference["first"], difference["second"]) == ("bad", "good")
    assert fields["meta"] == fields["pooled"] == []
    whole = call("analyse", points, *columns, "--exhaustive", "--pruned", "pruned", "--json")
    # Each row prunes another of 30 filters: any order of them is a relabelling.
    assert json.loads(whole.out)["studies"][0]["permutation_p_value"] < 0.01


@pytest.mark.slow
def test_analyse_several_studies_and_networks(tmp_path: Path) -> None:
    figure = tmp_path / "forest.svg"
    paths = []
    for place, noise in enumerate((1, 4, 9)):
        path = tmp_path / f"study{place}.csv"
        rows = [f"{i},{i + (i * 7) % (1 + 5 * noise)},{i % 2}" for i in range(40)]
        path.write_text("\n".join(["x,y,net", *rows]) + "\n")
        paths.append(path)
    columns = ("--x", "x", "--y", "y", "--lower-is-better")
    called = call("analyse", *paths, *columns, "--figure", figure)
    assert called.code == 0
    assert "over 3 studies (random effects; I² " in called.out
    assert "one more like these" in called.out
    assert "<svg" in figure.read_text()
    (meta,) = json.loads(call("analyse", *paths, *columns, "--json").out)["meta"]
    assert [one["label"] for one in meta["studies"]] == ["study0", "study1", "study2"]
    assert meta["low"] < meta["tau"] < meta["high"]
    pooled = call("analyse", paths[1], *columns, "--network", "net")
    assert "mean tau" in pooled.out
    assert "over 2 dense networks" in pooled.out


def test_names_in_square_brackets_are_no_markup(tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("a[/b],c\n1,2\n2,3\n,4\n")
    called = call("analyse", points, "--x", "a[/b]", "--y", "c")
    assert called.code == 0
    assert "1 rows without a finite a[/b] and c" in called.out


@pytest.mark.slow
def test_studies_lists_what_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["name"]: row for row in json.loads(call("studies", "--json").out)}
    assert rows["digits-conv1-0.2"]["networks"] == 90
    assert rows["lenet5-mini-conv1+2-0.5"]["networks"] == 3000
    assert rows["lenet5-mini-conv1-0.5"]["arms"] == ["short", "as-released", "small"]
    assert rows["lenet5-mini-conv1+2-0.5"]["space"] == 252**2
    grid = rows["lenet5-mini-ratio"]
    assert grid["networks"] == 3 * (2 * 45 + 2 * 120 + 2 * 210 + 252)
    assert grid["grid"] == {"pruning ratio of conv1": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}
    assert grid["points"][0] == "lenet5-mini-ratio+conv1-0.2"
    # The table is of the same rows, which take long to count.
    monkeypatch.setattr("trueoracle.cli.studies._rows", lambda: list(rows.values()))
    listed = call("studies").out
    assert all(name in listed and row["purpose"] in listed for name, row in rows.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digits-conv1-0.3"], "unknown study 'digits-conv1-0.3': did you mean"),
        (["run", "none.toml"], "no study file none.toml"),
        (["run", "digits-conv1-0.2", "--set", "retraining.epoch=3"], "mean 'retraining.epochs' or"),
        (["run", "digits-conv1-0.2", "--set", "retraining"], "--set takes field=value"),
        (["run", "digits-conv1-0.2", "--set", "network.name=lenet"], "unknown network 'lenet'"),
        (["run", "digits-conv1-0.2", "--set", "data.name=mnist5k"], "did you mean 'mnist-5k'"),
        (["run", "digits-conv1-0.2", "--set", "criteria=['orcale']"], "did you mean 'oracle'"),
        (["run", "digits-conv1-0.2", "--set", "pruning.layers.con=0.5"], "did you mean 'conv3'"),
        (["run", "digits-conv1-0.2", "--set", "pruning.layers.conv1=1.5"], "between 0 and 1"),
        (["run", "digits-conv1-0.2", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["run", "digits-conv1-0.2", "--device", "meta"], "device 'meta' cannot be used"),
        (["run", "digits-conv1-0.2", "--set", "#=3"], "'#' is not a field"),
        (["report"], "no study is recorded"),
        (["report", "digits-conv1-0.2"], "no study is recorded"),
        (["export", "nothing", "--out", "x"], "no study is recorded"),
        (["analyse", "none.csv", "--x", "a", "--y", "b"], "no file none.csv"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    called = call(*arguments)
    assert called.code == 2
    assert called.out == ""
    assert called.err.startswith("error: ")
    assert called.err.count("\n") == 1
    assert message in called.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "x", "message"),
    [
        ("a,b\n1,2\n", "aa", "unknown column of .*did you mean 'a'"),
        ("a,b\nred,2\n", "a", "column 'a' of .* is not numeric"),
        ("a,b\n,2\n", "a", "no row has both"),
        ("", "a", "is not a CSV table"),
        ('a,b\n"1,2\n', "a", "is not a CSV table"),
        ("a,b\n7,1,2\n", "a", "more fields than its header"),
    ],
)
def test_tables_that_cannot_be_analysed(tmp_path: Path, content: str, x: str, message: str) -> None:
    (tmp_path / "points.csv").write_text(content)
    called = call("analyse", tmp_path / "points.csv", "--x", x, "--y", "b")
    assert called.code == 2
    assert re.search(message, called.err)
    assert called.err.count("\n") == 1


def test_an_unknown_recorded_study_and_other_settings_are_refused(study: Path, runs: Path) -> None:
    call("run", study, "--runs", runs, "-q")
    assert "did you mean 'mine'" in call("report", "min", "--runs", runs).err
    called = call("report", study, "--runs", runs, "--set", "retraining.epochs=9")
    assert called.code == 2
    assert "'mine' is not recorded with these settings; there is" in called.err
    study.write_text(TINY.replace("epochs = 1", "epochs = 2"))
    assert "not recorded with these settings" in call("report", study, "--runs", runs).err
    assert "name the study too" in call("report", "--set", "a=1", "--runs", runs).err
    assert "did you mean 'last" in call("report", "mine", "--runs", runs, "--outcome", "lst").err


def test_a_path_may_hold_an_at_sign(tmp_path: Path, tiny_dataset: str) -> None:
    folder = tmp_path / "me@corp"
    folder.mkdir()
    (folder / "mine.toml").write_text(TINY)
    called = call("run", folder / "mine.toml@as-released", "--runs", tmp_path / "runs", "--json")
    assert json.loads(called.out)["surgery"] == "as-released"


COLOUR = """
from torch import nn
def three():
    return nn.Sequential(nn.Conv2d(3, 4, 32), nn.Flatten(), nn.Linear(4, 10))
"""


@pytest.mark.slow
def test_wrong_images_print_one_line_and_no_traceback(
    write_study: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "colour.py").write_text(COLOUR)
    study = write_study(
        'network.name = "colour:three"\npruning.layers = { "0" = 0.5 }\n', "colour.toml"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "trueoracle", "run", str(study), "--runs", str(runs)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "does not run on images of shape [1, 32, 32]" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_busy_study_exits_with_3(study: Path, runs: Path) -> None:
    from trueoracle.spec.grid import load_spec

    folder = runs / load_spec(str(study)).folder_name
    folder.mkdir(parents=True)
    with locked(folder):
        called = call("run", study, "--runs", runs)
    assert called.code == 3
    assert "another process is working on mine-" in called.err


def test_a_damaged_record_exits_with_4(study: Path, runs: Path) -> None:
    call("run", study, "--runs", runs, "-q")
    (database,) = runs.glob("*/study.sqlite")
    database.write_bytes(database.read_bytes()[:6000])
    for command in (["run", study], ["report", "mine"], ["export", "mine", "--out", runs / "x"]):
        called = call(*command, "--runs", runs)
        assert called.code == 4
        assert "is damaged" in called.err


def test_an_interrupt_exits_with_130(
    study: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "run", interrupted)
    called = call("run", study, "--runs", runs)
    assert called.code == 130
    assert "the same command goes on" in called.err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from trueoracle.errors import InputError

    with pytest.raises(InputError):
        call("run", "digits-conv1-0.3", "--debug")

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("trueoracle.spec.file.shipped_studies", broken)
    called = call("run", "digits-conv1-0.2")
    assert called.code == 1
    assert called.err == "unexpected error: ZeroDivisionError: a bug (--debug shows where)\n"


def test_debug_and_warnings_show_escape_sequences_escaped(tmp_path: Path) -> None:
    """They come from names in files of others, and a terminal would obey them."""
    (tmp_path / "it.toml").write_text('name = "a\\u001b]0;title\\u0007b"\n', encoding="utf-8")
    (tmp_path / "evil.py").write_text(
        "import warnings\nwarnings.warn('a \\x1b[2J b')\nraise RuntimeError('x\\x1b[31my')\n"
    )
    said = []
    for words in (
        ["run", "it.toml", "--debug"],
        ["run", "digits-conv1-0.2", "--set", "network.name='evil:x'", "--debug"],
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "trueoracle", *words],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 1
        assert "Traceback (most recent call last):" in ended.stderr
        assert "\x1b" not in ended.stderr
        assert "\x07" not in ended.stderr
        said.append(ended.stderr)
    assert "a\\x1b]0;title\\x07b" in said[0]
    assert "warning: a \\x1b[2J b\n" in said[1]
    assert "x\\x1b[31my" in said[1]


def test_help_teaches_by_example() -> None:
    commands = ("run", "score", "studies", "reproduce", "status", "report", "export", "analyse")
    for command in commands:
        text = call(command, "--help").out
        assert "Examples" in text
        assert f"trueoracle {command}" in text
    assert "130 interrupted" in " ".join(call("--help").out.split())
    assert re.match(r"trueoracle \d+\.\d+", call("--version").out)


def test_reading_commands_do_not_import_torch() -> None:
    # Its import takes longer than all that they do.
    code = (
        "import sys, trueoracle.cli.status, trueoracle.cli.report, trueoracle.cli.export,"
        " trueoracle.cli.verify, trueoracle.cli.analyse, trueoracle.report.page,"
        " trueoracle.figures.scatter; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def loaded(*arguments: str) -> set[str]:
    """The modules that a command line imports."""
    code = (
        "import sys\nfrom trueoracle.cli.app import app\n"
        f"try:\n    app({list(arguments)!r})\nfinally:\n"
        "    print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return set(ended.stderr.split())


def test_help_imports_nothing_that_takes_long() -> None:
    assert not loaded("--help") & {"torch", "pandas", "numpy", "scipy", "pydantic", "matplotlib"}
    for command in ("run", "score", "search", "studies", "inspect", "reproduce", "report"):
        assert not loaded(command, "--help") & {"torch", "pandas", "matplotlib"}, command


def test_the_list_of_commands_says_what_each_help_says() -> None:
    for name, line in COMMANDS.items():
        command = getattr(import_module(f"trueoracle.cli.{name}"), name)
        assert command.__doc__.splitlines()[0] == line


def test_a_command_that_cannot_be_imported_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "trueoracle.cli.status", None)
    called = call("status")
    assert called.code == 1
    assert called.err.startswith("unexpected error: ModuleNotFoundError: ")
    assert called.err.count("\n") == 1
    with pytest.raises(ModuleNotFoundError):
        call("status", "--debug")
    assert call("stats").code == 2
    assert "Did you mean 'status'" in call("stats").err.replace("\n", " ")


@dataclass(frozen=True)
class Options:
    plain: str | None = field(default=None, metadata={"help": "Told by its metadata."})
    own: Annotated[int, typer.Option("--other")] = 3


def test_options_may_be_fields_of_a_dataclass() -> None:
    got: list[Any] = []

    @guarded
    def command(name: Annotated[str, typer.Argument()], options: Options, output: Output) -> None:
        got.extend([name, options, output])

    alone = typer.Typer()
    alone.command()(command)
    result = CliRunner().invoke(alone, ["a", "--other", "4", "--json"])
    assert result.exit_code == 0, result.output
    assert got == ["a", Options(None, 4), Output(as_json=True)]
    shown = CliRunner().invoke(alone, ["--help"]).output
    assert "--plain" in shown
    assert "Told by its metadata." in shown
