"""What the documents say is so."""

from __future__ import annotations

import inspect
import itertools
import pickle
import re
import shlex
import tarfile
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

import trueoracle
from tests.criteria.tiny import chain, every_way, images, masks
from tests.spec.test_spec import fields_of
from trueoracle.analysis.numbers import number, p_value
from trueoracle.analysis.relation import relate
from trueoracle.bench.places import choose_studies
from trueoracle.criteria.base import CRITERIA, criterion
from trueoracle.data import datasets
from trueoracle.errors import NotApplicableError
from trueoracle.executors.slurm import SlurmExecutor
from trueoracle.networks.registry import build
from trueoracle.record.pooled import open_results
from trueoracle.record.results import Results
from trueoracle.record.runs import find_run
from trueoracle.spec import grid
from trueoracle.spec.file import shipped_grids, shipped_studies, spec_from
from trueoracle.spec.grid import load_spec
from trueoracle.spec.spec import StudySpec
from trueoracle.study import Study
from trueoracle.tasks.registry import TASKS
from trueoracle.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
Arrays = tuple[np.ndarray, np.ndarray]


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
        extends = fields.pop("extends", None)
        base = {} if extends is None else load_spec(extends).model_dump(exclude_unset=True)
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
        trains = command == "reproduce" and (study is not None or "--times" in rest)
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


@pytest.mark.slow
def test_every_field_of_a_summary_is_documented(reading_room: Path) -> None:
    text = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
    results = open_results(find_run("glyphs-fc1-0.2", reading_room / "runs"))
    summary = results.summary()
    of_sittings = {key for sitting in summary["provenance"] for key in sitting}
    for field in [*summary, *of_sittings]:
        assert f"`{field}`" in text, field


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_lists_tables_and_fences_begin_after_an_empty_line(path: Path) -> None:
    # Else the site's Markdown takes them for the paragraph before.
    text = re.sub(r"^```(?s:.*?)^```$", "```", path.read_text(encoding="utf-8"), flags=re.M)
    for before, line in itertools.pairwise(text.splitlines()):
        if mark := re.match(r"\||- |\d+\. |```|#+ ", line):
            assert (
                not before
                or before.startswith((mark[0][0], " ", "#", "```"))
                or (before[0].isdigit() and line[0].isdigit())
            ), line


@pytest.mark.slow
def test_the_figures_of_the_pages_for_beginners_are_those_of_the_kept_record(
    reading_room: Path,
) -> None:
    results = open_results(find_run("glyphs-fc1-0.2", reading_room / "runs"))
    study, pictures = (
        (ROOT / "docs" / f"{n}.md").read_text("utf-8") for n in ("first-study", "pictures")
    )
    table = re.findall(
        r"^\| (?:pruned train loss|L1 norm) \|.*\|(.*)\|(.*)\|(.*)\|(.*)\|(.*)\|$", study, re.M
    )
    for said, row in zip(table, results.correlate().to_dict("records"), strict=True):
        low, high = number(row["kendall_low"], 2), number(row["kendall_high"], 2)
        tau, ceiling = number(row["kendall_tau"], 2), number(row["ceiling"], 2)
        found = [tau, f"{low} to {high}", p_value(row["adjusted_p_value"]), row["answer"], ceiling]
        assert [one.strip() for one in said] == found
    networks = results.networks.values()
    of_each = [one.relation("oracle", "test_loss").kendall.value for one in networks]
    least, most, first = (number(one, 2) for one in (min(of_each), max(of_each), of_each[0]))
    text = pictures.replace("\n", " ")
    assert f"In this network τ is {first}, " in text
    assert f"whose τ lies between {least} and {most}" in text
    tau, interval, *_ = (one.strip() for one in table[1])
    assert f"over all: {tau}, with 95 % between {interval.replace(' to ', ' and ')}." in text


PARSED = {
    "bench --findings": "tests/bench/test_claims.py runs it, for half a minute",
    "reproduce --times": "a minute; tests/cli/test_reproduce.py and tests/run/test_estimate.py do",
    "run tinyllava-3.1b ": "downloads a network of 3.1 billion parameters",
    "--executor ray --gpus": "needs a GPU",
    "--executor ray --address": "needs a Ray cluster",
    "--slurm partition=": "needs a Slurm cluster",
}
"""The documented commands that are parsed alone: a pattern, and why they do not run."""


def parsed_alone() -> list[str]:
    """The documented commands that no test runs."""
    every = dict.fromkeys(typed for _, typed in commands())
    return [typed for typed in every if any(re.search(part, typed) for part in PARSED)]


def run_in_short() -> list[str]:
    """The documented commands that run on what stands in for their studies."""
    left_out = {*run_here(), *parsed_alone()}
    return [
        typed for typed in dict.fromkeys(typed for _, typed in commands()) if typed not in left_out
    ]


def test_every_documented_command_runs_or_has_a_reason_not_to() -> None:
    parts = [run_here(), run_in_short(), parsed_alone()]
    assert sorted(itertools.chain(*parts)) == sorted({typed for _, typed in commands()})
    assert {typed.split()[1] for typed in run_here()} == {*OF_RECORDS, *OF_TABLES}
    for part in PARSED:  # no reason outlives its command
        assert any(re.search(part, typed) for typed in parsed_alone()), part
    assert len(parsed_alone()) < 8


MLP = "glyphs-mlp"
"""The family of the bench that is the fastest to score."""

NARROW: dict[str, dict[str, object]] = {"vgg19": {"width": 0.0625}, "resnet56": {"width": 4}}
"""Arguments that make large networks small."""


def shortened(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A study with few images, epochs, candidates and seeds; all else is as it was."""
    short = {key: dict(one) if isinstance(one, Mapping) else one for key, one in fields.items()}
    short.setdefault("criteria", ["oracle", "l1"])
    data, pruning = short.setdefault("data", {}), short.setdefault("pruning", {})
    network = short.get("network", {})
    if is_large := network.get("name") in NARROW:
        short["network"] = network | {"arguments": NARROW[network["name"]]}
    data |= {"train_images": 180, "test_images": 72}
    data["validation_images"] = 36 if data.get("validation_images") else 0
    if not str(pruning.get("candidates")).endswith((".json", ".pkl")):
        pruning["candidates"] = 3 if is_large else 12
    for name in ("dense", "retraining"):
        recipe = short.setdefault(name, {})
        recipe["epochs"] = 1 if recipe.get("epochs", 1) <= 3 or is_large else 2
        recipe["milestones"] = []
        if "steps_per_epoch" in recipe:
            recipe["steps_per_epoch"] = 3
        if "seeds" in recipe:
            recipe["seeds"] = recipe["seeds"][: 1 if is_large else 2]
    return short


def noise(classes: int, *shape: int) -> Callable[..., tuple[Arrays, ...]]:
    """Reads what stands in for a data set that is downloaded."""
    draw = np.random.default_rng(0)

    def part(count: int) -> Arrays:
        images = draw.integers(0, 256, (count, *shape), dtype=np.uint8)
        return images, np.arange(count, dtype=np.int64) % classes

    return lambda *_, **__: (part(max(classes, 40)), part(max(classes, 20)))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that commands name, as the pages give them."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "examples").symlink_to(ROOT / "examples")
    (own,) = fences(ROOT / "docs" / "bench.md", "python")
    (folder / "my_criterion.py").write_text(own, encoding="utf-8")
    (folder / "my_module.py").write_text(f"{own}\n\nmy_criterion = spread\n", encoding="utf-8")
    (study, *_) = fences(ROOT / "docs" / "study-file.md", "toml")
    (folder / "my-study.toml").write_text(study, encoding="utf-8")
    draw = np.random.default_rng(0)
    for part, kind, i in itertools.product(("train", "val"), ("cat", "dog"), range(24)):
        image = folder / "photos" / part / kind / f"{i}.jpeg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (80, 96, 3), dtype=np.uint8)).save(image)
    vgg = build("vgg19", NARROW["vgg19"], input_shape=(3, 32, 32), classes=100)
    torch.save(vgg.state_dict(), folder / "ckpt_best.pth")
    sizes = [one.out_channels for one in vgg.modules() if isinstance(one, torch.nn.Conv2d)]
    ways = [tuple(tuple(range(i, i + n // 2)) for n in sizes) for i in range(3)]
    (folder / "vgg19_C-cifar100-0.01-combination.pkl").write_bytes(pickle.dumps(ways))
    return folder


@pytest.fixture
def in_short(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Runs a command in the workshop, where small things stand in for large ones.

    Every study is shortened when it is read, of a grid there are two points, and data sets that
    are downloaded hold a few noisy images. A server answers once.
    """
    from trueoracle.cli import bench
    from trueoracle.cli.app import app

    def once(server: ThreadingHTTPServer, **_: Any) -> None:
        address = f"http://127.0.0.1:{server.server_port}/"
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: urlopen(address, timeout=60).read())
            server.handle_request()
            assert b"<html" in asked.result()

    monkeypatch.chdir(workshop)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", once)
    points = grid._points
    monkeypatch.setattr(
        grid, "spec_from", lambda fields, *overrides: spec_from(shortened(fields), *overrides)
    )
    monkeypatch.setattr(grid, "_points", lambda *args, **given: points(*args, **given)[:2])
    monkeypatch.setattr(
        bench,
        "choose_studies",
        lambda shipped, family, *of: choose_studies(shipped, family or MLP, *of),
    )
    for name in ("mnist", "cifar10", "cifar100"):
        info = datasets.DATASETS[name]
        shape = (28, 28) if name == "mnist" else (32, 32, 3)
        small = replace(info, read=noise(info.classes, *shape), reader=None, files=(), images=None)
        monkeypatch.setitem(datasets.DATASETS, name, small)

    def run(typed: str) -> Any:
        if typed.startswith("trueoracle bench"):  # its studies are those of its table
            monkeypatch.setattr(grid, "spec_from", spec_from)
            monkeypatch.setattr(grid, "_points", points)
        result = CliRunner().invoke(app, shlex.split(re.split(r" [>|] ", typed)[0])[1:])
        assert result.exit_code == 0, result.output
        return result

    return run


def before(typed: str) -> list[str]:
    """What has to be run before a command can read a record of it."""
    _, command, *rest = shlex.split(typed)
    if command not in ("report", "watch", "figures") and "--replay" not in rest:
        return []
    studies = itertools.takewhile(lambda word: not word.startswith("--"), rest)
    return [f"trueoracle run {study}" for study in studies]


@pytest.mark.slow
@pytest.mark.parametrize("typed", run_in_short())
def test_the_commands_in_the_documents_run_in_short(
    typed: str, in_short: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--track" in typed:
        pytest.importorskip("tensorboard")
    if "--executor" in typed:
        pytest.importorskip({"ray": "ray", "slurm": "submitit"}[typed.split()[4]])
    if "bible-llama" in typed:
        pytest.importorskip("transformers")
    if "--track" in typed or "--executor" in typed:  # what is recorded would not be run again
        monkeypatch.setenv("TRUEORACLE_RUNS", str(tmp_path))
    for one in before(typed):
        in_short(one)
    assert in_short(typed).stdout.strip()


@pytest.mark.slow
def test_the_python_of_the_page_on_scaling_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neither four free CPUs nor a Ray cluster with a GPU: two processes, and submitit's local jobs.
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    for name in ("small.toml", "my-study.toml"):
        (tmp_path / name).write_text(SHORT_STUDY, encoding="utf-8")
    (code,) = fences(ROOT / "docs" / "scaling.md", "python")
    code = code.replace("digits-conv1-0.2", "small.toml").replace("Executor(4,", "Executor(2,")
    jobs = partial(SlurmExecutor, tmp_path / "jobs", options={"cluster": "local"}, at_once=1)
    monkeypatch.setattr(trueoracle, "RayExecutor", lambda address, gpus: jobs())
    exec(compile(code, "scaling.md", "exec"), {"__name__": "__main__"})  # noqa: S102
    for name in ("small.toml", "my-study.toml"):
        assert Study(name).results().finished


def test_the_python_of_the_page_on_data_runs(
    workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workshop)
    (code,) = fences(ROOT / "docs" / "data.md", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "data.md", "exec"), names)  # noqa: S102
    assert names["data"].train.take(torch.arange(8)).inputs.shape == (8, 3, 64, 64)
    assert len(names["data"].measured_train) > 0


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
