"""What the documents say is so."""

from __future__ import annotations

import inspect
import re
import shlex
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

import trueoracle
from tests.criteria.tiny import chain, every_way, images, masks
from tests.spec.test_spec import fields_of
from trueoracle.analysis.relation import relate
from trueoracle.criteria.base import CRITERIA, criterion
from trueoracle.errors import NotApplicableError
from trueoracle.record.results import Results
from trueoracle.spec.file import shipped_grids, shipped_studies, spec_from
from trueoracle.spec.grid import load_spec
from trueoracle.spec.spec import StudySpec
from trueoracle.study import Study
from trueoracle.tasks.registry import TASKS
from trueoracle.training.recipe import Recipe

ROOT = Path(__file__).parents[1]


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def fences(path: Path, language: str) -> list[str]:
    """The blocks of a language; "" for those that name none."""
    found = re.findall(r"^```(.*)\n((?s:.*?))^```$", path.read_text(encoding="utf-8"), re.M)
    return [text for named, text in found if named == language]


def test_every_field_of_a_study_is_documented() -> None:
    text = (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8")
    recipe = set(Recipe.model_fields)
    for field in fields_of(StudySpec):
        stage, _, name = field.partition(".")
        shown = name if stage in ("dense", "retraining") and name in recipe else field
        assert f"| `{shown}` |" in text, field


def test_every_field_of_a_relation_is_documented() -> None:
    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    fields = relate(np.arange(3.0), np.arange(3.0), higher_is_better=True).as_dict()
    for field in [*fields, "verdict"]:
        assert f"`{field}`" in text, field


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    (block,) = fences(ROOT / "README.md", "python")
    exec(compile(block, "README.md", "exec"), names)  # noqa: S102
    results = names["results"]
    assert isinstance(results, Results)
    assert results.finished
    assert (tmp_path / "scatter.png").is_file()


def test_the_criteria_are_documented() -> None:
    path = ROOT / "docs" / "criteria.md"
    text = path.read_text(encoding="utf-8")
    table, options = text.split("## A criterion of your own")
    (table, *_) = re.findall(r"^\| name \|.*\n\|[-|]+\n((?:\|.*\n)+)", table, re.M)
    cells = [re.split(r"(?<!\\) \| ", row.strip("| ")) for row in table.splitlines()]
    rows = {name.strip("`"): (of, basis) for name, _, of, basis, _ in cells}
    shipped = {name: one for name, one in CRITERIA.items() if one.is_shipped}
    assert rows == {n: (", ".join(one.applies_to), one.basis) for n, one in shipped.items()}
    parameters = dict(re.findall(r"^- `([a-z0-9-]+)`: (`[a-z]+=.*`)$", text, re.M))
    assert {n: re.findall(r"`([a-z]+)=", said) for n, said in parameters.items()} == {
        n: list(one.parameters) for n, one in shipped.items() if one.parameters
    }
    flags = set(re.findall(r"^\| `([^`]+)` \|", options, re.M))
    assert flags == set(inspect.signature(criterion).parameters) - {"name"}


def test_the_documented_criterion_runs() -> None:
    (code,) = fences(ROOT / "docs" / "criteria.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "criteria.md", "exec"), names)  # noqa: S102
    network = chain()
    scores = names["last_filters"](network, every_way(network, {"0": 0.5}), images())
    assert scores.tolist() == [1, 2, 3, 3, 4, 5]
    with pytest.raises(NotApplicableError, match="have no filters"):
        names["last_filters"](network, masks(network, {"0": 0.5}), images())


def test_the_criterion_of_the_page_on_the_bench_runs() -> None:
    (code,) = fences(ROOT / "docs" / "bench.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "bench.md", "exec"), names)  # noqa: S102
    network = chain()
    scores = names["spread"](network, every_way(network, {"0": 0.5}), images())
    weight = network.get_parameter("0.weight").flatten(1)
    spread = weight.var(dim=1)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    expected = torch.stack([spread[list(pair)].sum() for pair in pairs])
    found = torch.as_tensor(scores, dtype=expected.dtype)
    torch.testing.assert_close(found.sort().values, expected.sort().values)


SHORT_STUDY = """extends = "digits-conv1-0.2"
[dense]
epochs = 1
[retraining]
epochs = 2
milestones = []
[data]
train_images = 128
validation_images = 20
test_images = 32
"""
"""The study of several pages, in a second instead of minutes."""


@pytest.mark.slow
def test_the_python_of_the_page_on_study_files_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(SHORT_STUDY, encoding="utf-8")
    (code,) = fences(ROOT / "docs" / "study-file.md", "python")
    names: dict[str, Any] = {"trueoracle": trueoracle}
    code = code.replace("digits-conv1-0.2", "small.toml")
    exec(compile(code, "study-file.md", "exec"), names)  # noqa: S102
    assert set(names["results"].networks) == {0, 1, 2}
    assert names["results"].finished


@pytest.mark.slow
def test_the_search_pages_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    load, run, study = fences(ROOT / "docs" / "search.md", "python")
    short = "small.toml"
    (tmp_path / short).write_text(SHORT_STUDY, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(study.replace("digits-conv1-0.2", short), "search.md", "exec"), names)  # noqa: S102
    for name in ("model.pt2", "model.safetensors"):
        names["found"].export(name)
    exec(compile(load + run, "search.md", "exec"), names)  # noqa: S102
    expected = names["network"](names["images"])
    torch.testing.assert_close(names["logits"], expected)
    torch.testing.assert_close(torch.from_numpy(names["same"]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_the_studies_in_the_documents_are_valid(path: Path) -> None:
    for text in fences(path, "toml"):
        fields = tomllib.loads(text)
        base = load_spec(fields.pop("extends")).model_dump(exclude_unset=True)
        for of_the_file in ("arms", "grid", "published"):
            fields.pop(of_the_file, None)
        spec_from(base | fields | {"name": "documented"})


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_and_studies_that_documents_name_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        page = re.fullmatch(r"reports/(.+)\.html", link)  # made from a record: tests/test_site.py
        kept = ROOT / "examples" / "reports" / f"{page[1]}.tar.gz" if page else path.parent / link
        assert kept.exists(), link
    for study in re.findall(
        r"trueoracle (?:run|report|export|score) ([a-z0-9][a-z0-9.+-]*)(?=[\s@`])", text
    ):
        shipped = shipped_studies() | shipped_grids()
        assert study.endswith(".toml") or study.partition("+width-")[0] in shipped, study


def test_the_tasks_pages_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = fences(ROOT / "docs" / "tasks.md", "python")
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "tasks.md", "exec"), names)  # noqa: S102
    assert names["results"].finished
    x, y = names["x"], names["y"]
    study = Study(
        name="huber",
        network=names["network"],
        data=((x[:200], y[:200]), (x[200:], y[200:])),
        task=names["Huber"],
        pruning={"layers": {"0": 0.25}},
        criteria=["oracle"],
        retraining={"epochs": 1, "seeds": [0]},
    )
    assert study.run(progress=False).default_outcomes == ("test_near", "test_loss")


def test_the_python_of_the_page_on_training_scripts_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    module, study = fences(ROOT / "docs" / "procedure.md", "python")
    name = module.split()[1]
    assert (name, module.splitlines()[0]) == ("my_training.py", f"# {name}")
    (tmp_path / name).write_text(module, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(study, "procedure.md", "exec"), names)  # noqa: S102
    assert names["results"].finished
    assert set(names["results"].outcomes["epoch"]) == {0, 1}


def test_every_task_is_documented() -> None:
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    for name in TASKS:
        assert f"| `{name}` |" in text, name


def commands() -> list[tuple[str, str]]:
    """Every command line of the documents' fences: the document, and what is typed."""
    found = []
    for path in documents():
        for block in [*fences(path, ""), *fences(path, "bash")]:
            for line in block.replace("\\\n", " ").splitlines():
                typed = re.sub(r"\s#.*", "", line).strip().removeprefix(".venv/bin/")
                if typed.startswith("trueoracle "):
                    found.append((path.name, typed))
    return found


@pytest.mark.parametrize(("page", "typed"), commands())
def test_the_commands_in_the_documents_are_understood(page: str, typed: str) -> None:
    # All that can be known of a command line without hours of retraining.
    from trueoracle.cli.app import app

    group: Any = typer.main.get_command(app)
    args = shlex.split(re.split(r" [>|] ", typed)[0])[1:]
    if args == ["--help"]:
        return
    name, command, rest = group.resolve_command(group.context_class(group), args)
    command.make_context(name, rest)


OF_RECORDS = ("status", "report", "export", "figures", "verify")
OF_TABLES = ("studies", "criteria", "power", "analyse", "reproduce")
KEPT = ("glyphs-fc1-0.2", "examples/reports/two-wirings.toml")
"""The studies whose records lie in examples/reports."""


def run_here() -> list[str]:
    """The documented commands that need no training: on the kept records, tables or nothing.

    Others train networks for minutes to days, time them, or need a cluster or a data set; what
    these do has tests of its own.
    """
    found = []
    for _, typed in commands():
        _, command, *rest = shlex.split(typed)
        study = rest[0] if rest and not rest[0].startswith("--") else None
        is_read = command in OF_RECORDS and (study is None or study in KEPT)
        trains = command == "reproduce" and "--no-times" not in rest
        if is_read or (command in OF_TABLES and not trains):
            found.append(typed)
    return list(dict.fromkeys(found))


@pytest.fixture(scope="module")
def reading_room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the kept records in ``runs``, and the tables that commands name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "examples").symlink_to(ROOT / "examples")
    for kept in (ROOT / "examples" / "reports").glob("*.tar.gz"):
        with tarfile.open(kept) as archive:
            archive.extractall(folder / "runs", filter="data")
            if kept.name.startswith("two-wirings"):  # of the other, weights are not kept
                archive.extractall(folder / "whole", filter="data")
    draw = np.random.default_rng(0)
    ways = [f"{i} {j}" for i in range(6) for j in range(i)]
    for name in ("points", "all", "conv1", "conv2", "conv3"):
        columns = ("pruned_loss", "accuracy", "l1", "taylor", "loss", "x", "y")
        table = pd.DataFrame(draw.random((15, len(columns))), columns=list(columns))
        table = table.assign(filters=ways, **{f"seed{i}": draw.random(15) for i in range(3)})
        table.to_csv(folder / f"{name}.csv", index=False)
    long = pd.MultiIndex.from_product([ways, range(2), range(3)], names=["id", "seed", "dense"])
    rows = pd.DataFrame(index=long).reset_index()
    scores = rows.groupby(["id", "dense"]).ngroup().map(lambda one: (7 * one) % 31)
    rows.assign(l1=scores, accuracy=draw.random(len(rows))).to_csv(folder / "long.csv", index=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("typed", run_here())
def test_the_commands_in_the_documents_run(
    typed: str, reading_room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trueoracle.cli.app import app

    monkeypatch.chdir(reading_room)
    if " verify" in typed:
        monkeypatch.setenv("TRUEORACLE_RUNS", "whole")
    result = CliRunner().invoke(app, shlex.split(re.split(r" [>|] ", typed)[0])[1:])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip()


def test_enough_of_the_documented_commands_run() -> None:
    assert {typed.split()[1] for typed in run_here()} == {*OF_RECORDS, *OF_TABLES}


@pytest.mark.parametrize("page", ["first-study.md", "network.md"])
def test_the_python_of_the_pages_for_beginners_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    blocks = fences(ROOT / "docs" / page, "python")
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)  # noqa: S102
    if "results" in names:
        assert names["results"].finished


def test_the_python_page_lists_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = {place.rpartition(".")[2] for place in re.findall(r"^::: (\S+)$", text, re.M)}
    assert listed == set(trueoracle.__all__) - {"__version__"}


def test_every_page_can_be_reached() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert set(re.findall(r"[a-z-]+\.md", nav)) == {p.name for p in (ROOT / "docs").glob("*.md")}
