from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import Writer
from trueoracle.cli.app import app

runner = CliRunner()


def test_the_groups_of_a_network_are_shown() -> None:
    shown = runner.invoke(app, ["inspect", "resnet20", "--set", "width=4", "--set", "shortcut=B"])
    assert shown.exit_code == 0
    assert "resnet20 on images 3x32x32" in shown.output
    assert "layer2.0.conv1" in shown.output
    assert "fc cannot be pruned: its output is the network's output" in shown.output


def test_inspection_as_json_names_all_that_goes_with_a_filter() -> None:
    shown = runner.invoke(
        app, ["inspect", "resnet20", "--set", "shortcut=B", "--images", "1x32x32", "--json"]
    )
    found = json.loads(shown.output)
    assert found["images"] == [1, 32, 32]
    stem = found["groups"][0]
    assert stem["name"] == "conv1"
    assert stem["filters"] == 16
    assert stem["layers"] == ["conv1", *(f"layer1.{i}.conv2" for i in range(3))]
    assert {"layer1.0.conv1", "layer2.0.conv1"} < set(stem["consumers"])
    assert not {"fc"} & set(stem["consumers"])


def test_a_study_and_its_arm_name_their_network(write_study: Writer) -> None:
    path = write_study(
        'extends = "digits-conv1-0.2"\n[arms.wide.network]\narguments = { width = 12 }\n'
    )
    shown = runner.invoke(app, ["inspect", f"{path}@wide", "--json"])
    assert json.loads(shown.output)["groups"][0]["filters"] == 12


def test_a_point_of_a_grid_names_its_network() -> None:
    shown = runner.invoke(app, ["inspect", "lenet5-mini-width+width-20", "--json"])
    assert json.loads(shown.output)["groups"][0]["filters"] == 20


def test_a_network_of_ones_own_is_inspected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("their_network.py").write_text(
        "from torch import nn\n"
        "def make(classes=4):\n"
        "    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.GroupNorm(2, 6), nn.Conv2d(6, 5, 3),\n"
        "                         nn.Flatten(), nn.Linear(5 * 16, classes))\n"
    )
    shown = runner.invoke(app, ["inspect", "their_network:make", "--images", "1x8x8"])
    assert shown.exit_code == 0
    assert "0 cannot be pruned: its output meets GroupNorm (1)" in shown.output


def test_groups_that_are_alike_are_one_row() -> None:
    shown = runner.invoke(app, ["inspect", "vit-b-16", "--set", "layers=3", "--images", "3x32x32"])
    assert shown.exit_code == 0, shown.output
    assert "encoder.layers.encoder_layer_*." in shown.output
    row = next(line.split() for line in shown.output.splitlines() if " heads " in line)
    # A head of 64: queries, keys, values and what is read of it, of 768 each, and three biases;
    # five tokens, of which each attends to each, in two products.
    parameters, macs = 4 * 64 * 768 + 3 * 64, 5 * 4 * 64 * 768 + 2 * 5 * 5 * 64
    assert row[-5:] == ["3", "12", "heads", f"{parameters:,}", f"{macs:,}"]


def test_tokens_are_inspected_at_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    Path("their_model.py").write_text(
        "from tests.pruning.transformers_families import FAMILIES\n"
        "def make():\n"
        "    return FAMILIES['llama'].build()\n"
    )
    arguments = ["inspect", "their_model:make", "--json"]
    found = json.loads(runner.invoke(app, [*arguments, "--context", "8"]).output)
    assert found["inputs"] == {"input_ids": [2, 8], "attention_mask": [2, 8]}
    units = {one["name"].removeprefix("model."): one for one in found["groups"]}
    assert units["layers.0.self_attn.q_proj:heads"]["kind"] == "query heads"
    # An MLP's unit: gate, up and down, of a width of 32.
    unit = units["layers.1.mlp.gate_proj"]
    assert (unit["parameters_a_filter"], unit["macs_a_filter"]) == (3 * 32, 8 * 3 * 32)
    # A key/value group: two heads of queries, one of keys and of values, of a width of 8.
    group = units["layers.0.self_attn.q_proj"]
    assert group["parameters_a_filter"] == (2 + 1 + 1 + 2) * 8 * 32
    assert group["macs_a_filter"] == 8 * (2 + 1 + 1 + 2) * 8 * 32 + 2 * 2 * 8 * 8 * 8
    given = ["--input", "input_ids=int40:2x8"]
    again = json.loads(runner.invoke(app, [*arguments, *given]).output)
    assert again["macs"] == found["macs"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lenet5-mini", "--input", "x=int"], "--input takes NAME=KIND:SHAPE"),
        (["lenet6"], "unknown network 'lenet6': did you mean 'lenet5'"),
        (["lenet5-mini", "--images", "big"], "--images takes a shape such as 3x224x224, got 'big'"),
        (["lenet5-mini", "--images", "1x8x8"], "images must be at least 32x32"),
        (["lenet5-mini", "--set", "wide=3"], "unknown argument of network 'lenet5-mini' 'wide'"),
        (["digits-conv1-0.2", "--images", "1x8x8"], "--images and --classes are of a network"),
        (["digits-conv1-0.2", "--classes", "3"], "'digits-conv1-0.2' is a study"),
        (["lenet5-mini-width"], "points is meant here: lenet5-mini-width+width-10, "),
        (["lenet5-mini-width+width-2"], "did you mean 'width-20'"),
        (["lenet5-mini", "--weights", "none.safetensors"], "no weights file none.safetensors"),
    ],
)
def test_what_cannot_be_inspected_is_one_line(arguments: list[str], message: str) -> None:
    shown = runner.invoke(app, ["inspect", *arguments])
    assert shown.exit_code == 2
    assert message in shown.output
    assert shown.output.count("\n") == 1


def test_weights_are_a_setting_of_the_study(tmp_path: Path) -> None:
    for command in ("run", "score"):
        shown = runner.invoke(
            app,
            [command, "digits-conv1-0.2", "--weights", "my weights.pt", "--runs", str(tmp_path)],
        )
        assert shown.exit_code == 2
        assert "no weights file my weights.pt" in shown.output


@pytest.mark.slow
def test_whole_layers_are_rows_of_their_own() -> None:
    shown = runner.invoke(app, ["inspect", "resnet20"])
    rows = [line.split() for line in shown.output.splitlines()]
    assert ["layer2.*", "1", "2", "layers", "18,560", "4,718,592"] in rows
    found = json.loads(runner.invoke(app, ["inspect", "resnet20", "--json"]).output)
    assert found["stacks"][1]["layers"] == ["layer2.1", "layer2.2"]
    assert found["needed"]["layer2.0"] == "it makes [32, 16, 16] of [16, 32, 32]"
