"""What a study file of somebody else's names is not run, and nothing beside the user is either."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_cli import TINY, call
from tests.record.records import older_record
from trueoracle import trust
from trueoracle.criteria.base import find_criterion
from trueoracle.errors import InputError
from trueoracle.networks.registry import NETWORKS
from trueoracle.record.networks import read_networks, write_networks
from trueoracle.record.paths import DATABASE
from trueoracle.record.results import Results
from trueoracle.spec.grid import load_spec
from trueoracle.study import Study

OWN = """
from pathlib import Path
from torch import nn

def network(classes=3):
    Path("was-run").touch()
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, classes))
"""
NAMES = {
    "network": 'network = "theirs:network"',
    "network with arguments": '[network]\nname = "theirs:network"',
    "criterion": 'criteria = ["oracle", "theirs:network"]',
    "criterion with parameters": 'criteria = ["theirs:network:scale=2,raw=true"]',
    "around a criterion with parameters": '[pruning]\ncandidates = "around:theirs:network:scale=2"',
    "around a criterion": '[pruning]\nkind = "unstructured"\ncandidates = "around:theirs:network"',
    "task": 'task = "theirs:network"',
    "procedure": '[retraining]\nprocedure = "theirs:network"',
    "criterion that is named as one to draw around": 'criteria = ["around:theirs:network"]',
    "table of a grid": '[grid]\nwidth = [{ network.name = "theirs:network" }]',
    "arm": 'arms.mine.network = "theirs:network"',
    "grid": '[grid]\n"network.name" = ["theirs:network"]',
}


@pytest.fixture(autouse=True)
def _anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A project with a module in it, a folder beside it, and nothing believed yet."""
    monkeypatch.setattr(trust, "_doubted", {})
    monkeypatch.setattr(trust, "_vouched", set())
    monkeypatch.setattr(trust, "_allowed", False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for folder in ("project", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "project" / "theirs.py").write_text(OWN)
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.delitem(sys.modules, "theirs", raising=False)


def study(folder: str, text: str) -> Path:
    path = Path("..", folder, "study.toml")
    path.write_text(f'extends = "digits-conv1-0.2"\n{text}\n')
    return path


@pytest.mark.parametrize("text", NAMES.values(), ids=NAMES.keys())
def test_code_that_a_file_from_elsewhere_names_is_not_imported(text: str) -> None:
    path = study("elsewhere", text)
    trust.note_code(path, __import__("tomllib").loads(path.read_text()))
    with pytest.raises(InputError, match="--allow-code") as refused:
        NETWORKS.find("theirs:network")
    assert str(path) in str(refused.value)
    assert not Path("was-run").exists()
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("name", ["theirs:net work", "theirs:", "theirs:network:scale=2:raw=true"])
def test_a_name_that_finds_nothing_would_import_the_module_all_the_same(name: str) -> None:
    path = study("elsewhere", f'criteria = ["{name}"]')
    trust.note_code(path, {"criteria": [name]})
    with pytest.raises(InputError, match="--allow-code"):
        find_criterion(name)
    assert not Path("was-run").exists()
    assert "theirs" not in sys.modules


@pytest.mark.parametrize("command", ["run", "score", "search", "inspect", "plan", "reproduce"])
def test_every_command_refuses_it_and_takes_it_with_a_word(command: str) -> None:
    path = study("elsewhere", 'network = "theirs:network"')
    called = call(command, str(path))
    assert called.code == 2, called.err
    assert "would run 'theirs:network'" in called.err
    assert not Path("was-run").exists()
    if command == "inspect":
        call(command, str(path), "--allow-code")
        assert Path("was-run").exists()


def test_a_printed_command_has_the_word_too(tiny_dataset: str) -> None:
    path = Path("..", "elsewhere", "study.toml")
    path.write_text(f'criteria = ["l1"]\n{TINY}')
    called = call("score", path, "--allow-code")
    assert called.code == 0, called.err
    assert f"to retrain them: trueoracle run {path} --allow-code --runs runs\n" in called.out


def test_an_extended_file_from_elsewhere_is_not_believed_either() -> None:
    study("elsewhere", 'network = "theirs:network"')
    Path("mine.toml").write_text('extends = "../elsewhere/study.toml"\n')
    load_spec("mine.toml")
    with pytest.raises(InputError, match="elsewhere"):
        NETWORKS.find("theirs:network")


def test_a_file_from_elsewhere_extends_only_what_came_with_it(tmp_path: Path) -> None:
    study("elsewhere", "")
    (tmp_path / "elsewhere" / "inner").mkdir()
    inner = study("elsewhere/inner", "")
    for named in ("../study.toml", str(tmp_path / "elsewhere" / "study.toml")):
        inner.write_text(f'extends = "{named}"\n')
        with pytest.raises(InputError, match="which lies outside of its folder"):
            load_spec(str(inner))
    Path("../elsewhere/above.toml").write_text('extends = "inner/base.toml"\n')
    inner.with_name("base.toml").write_text('extends = "digits-conv1-0.2"\n')
    assert load_spec("../elsewhere/above.toml").name == "above"
    Path("mine.toml").write_text('extends = "../elsewhere/study.toml"\n')
    assert load_spec("mine.toml").name == "mine"


def test_a_repository_within_the_project_is_not_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "project" / "theirs" / ".git").mkdir(parents=True)
    load_spec(str(study("project/theirs", 'network = "theirs:network"')))
    with pytest.raises(InputError, match="--allow-code"):
        NETWORKS.find("theirs:network")


def test_what_lies_below_the_home_folder_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    assert trust.is_own(Path("mine.toml"))
    assert not trust.is_own(Path("elsewhere/study.toml"))
    monkeypatch.chdir(tmp_path / "project")
    assert trust.project() == (tmp_path / "project").resolve()
    assert not trust.is_own(tmp_path / "elsewhere" / "study.toml")


def test_what_lies_below_a_folder_that_all_users_share_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /tmp, where somebody's study was unpacked."""
    shared = tmp_path / "shared"
    (shared / "elsewhere").mkdir(parents=True)
    (shared / ".git").mkdir()
    shared.chmod(0o1777)
    monkeypatch.chdir(shared)
    assert trust.is_own(Path("mine.toml"))
    assert not trust.is_own(Path("elsewhere/study.toml"))
    monkeypatch.chdir(shared / "elsewhere")
    assert trust.project() == (shared / "elsewhere").resolve()
    assert trust.is_own(Path("study.toml"))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files belong to nobody on Windows")
@pytest.mark.parametrize(("owner", "own"), [(54321, True), (0, True), (54322, False)])
def test_what_belongs_to_another_user_is_not_ones_own(
    monkeypatch: pytest.MonkeyPatch, owner: int, own: bool
) -> None:
    path = study("project", 'network = "theirs:network"').resolve()
    stat = Path.stat

    def owned(self: Path, **options: Any) -> os.stat_result:
        found = stat(self, **options)
        return os.stat_result((*found[:4], owner, *found[5:])) if self == path else found

    monkeypatch.setattr(Path, "stat", owned)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    load_spec(str(path))
    if own:
        assert callable(NETWORKS.find("theirs:network"))
        return
    with pytest.raises(InputError, match="and belongs to another user: --allow-code runs it"):
        NETWORKS.find("theirs:network")
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # all is root's own
    assert trust.is_own(path)


def test_what_the_user_types_is_the_users_own() -> None:
    path = study("elsewhere", 'network = "theirs:network"')
    load_spec(str(path), {"network.name": "theirs:network", "criteria": ["theirs:ne"]})
    assert callable(NETWORKS.find("theirs:network"))
    trust.note_code(path, {"task": "heirs:network"})  # which is within what was typed
    with pytest.raises(InputError, match="--allow-code"):
        NETWORKS.find("heirs:network")


def test_a_record_from_elsewhere_is_not_believed_either(tmp_path: Path) -> None:
    folder = older_record(tmp_path / "elsewhere")  # whose rows have no checksums
    spec = {**Results(folder).spec.model_dump(mode="json"), "network": {"name": "theirs:network"}}
    with closing(sqlite3.connect(folder / DATABASE)) as database, database:
        database.execute("UPDATE provenance SET spec = ?", (json.dumps(spec),))
    recorded = Results(folder).spec
    assert recorded.network.name == "theirs:network"
    Study(recorded)
    with pytest.raises(InputError, match=f"{folder} would run"):
        NETWORKS.find("theirs:network")
    write_networks(folder, recorded)
    trust._doubted.clear()
    Study(read_networks(folder))
    with pytest.raises(InputError, match=f"{folder} would run"):
        NETWORKS.find("theirs:network")
    assert not Path("was-run").exists()


def test_a_study_of_the_project_is_the_users_own(tmp_path: Path) -> None:
    load_spec(str(study("project", 'network = "theirs:network"')))
    assert callable(NETWORKS.find("theirs:network"))
    (tmp_path / "project" / ".git").mkdir()
    (tmp_path / "project" / "inner").mkdir()
    os.chdir(tmp_path / "project" / "inner")
    assert trust.project() == (tmp_path / "project").resolve()


def test_a_folder_can_be_believed_once_and_for_all(tmp_path: Path) -> None:
    path = study("elsewhere", 'network = "theirs:network"')
    trust.configuration().parent.mkdir(parents=True)
    trust.configuration().write_text(f'allow_code = ["{tmp_path / "elsewhere"}"]\n')
    load_spec(str(path))
    assert callable(NETWORKS.find("theirs:network"))
    trust.configuration().write_text('allow_code = "all"\n')
    with pytest.raises(InputError, match="allow_code is a list of folders"):
        load_spec(str(path))


def test_python_says_so_where_it_means_it() -> None:
    path = study("elsewhere", 'network = "theirs:network"')
    Study(path)
    with pytest.raises(InputError, match="allow_code"):
        NETWORKS.find("theirs:network")
    Study(path, allow_code=True)
    assert callable(NETWORKS.find("theirs:network"))


@pytest.mark.parametrize("name", ["os:system", "subprocess:run", "builtins:eval", "pickle:loads"])
def test_pythons_own_library_is_never_called(name: str) -> None:
    with pytest.raises(InputError, match="standard library"):
        NETWORKS.find(name)


def test_what_is_installed_comes_before_what_lies_here() -> None:
    Path("torch_pruning.py").write_text("raise SystemExit('run')\n")
    with pytest.warns(UserWarning, match="needs another name"):
        found = NETWORKS.find("torch_pruning.pruner:BasePruningFunc")
    assert found.__module__.startswith("torch_pruning")


def test_another_librarys_name_does_not_stand_for_a_folder_here() -> None:
    """Whether the library is installed or not."""
    Path("torchvision").mkdir()
    Path("torchvision", "__init__.py").touch()
    Path("torchvision", "models.py").write_text(
        "from pathlib import Path\nPath('was-run').touch()\nresnet18 = 1\n"
    )
    code = "from trueoracle.networks.registry import NETWORKS as N; N.find('torchvision.models:x')"
    clean = f"import sys; sys.path.remove(''); {code}"
    ended = subprocess.run([sys.executable, "-c", clean], capture_output=True, text=True)
    assert ended.returncode
    assert not Path("was-run").exists()


def test_the_module_door_does_not_put_the_working_folder_first() -> None:
    Path("statsmodels.py").write_text("")
    Path("typer.py").write_text("raise SystemExit('run')\n")
    command = [sys.executable, "-m", "trueoracle", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
