"""Networks of the hub: what is downloaded, what is pinned, and what is said where it cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.spec.hub_server import COMMITS, Hub, serving
from trueoracle import Grid, Study
from trueoracle.errors import InputError
from trueoracle.networks.pretrained import processor_of
from trueoracle.networks.registry import build
from trueoracle.run.material import list_study
from trueoracle.spec.file import spec_from, with_files
from trueoracle.spec.grid import Variant
from trueoracle.spec.hub import commit_of, files_sha256, folder_of, snapshot_of

transformers: Any = pytest.importorskip("transformers")

NAME = "org/tiny"


def llama(folder: Path, seed: int = 0) -> Path:
    """A tiny Llama with a tokenizer of three words."""
    import tokenizers

    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?")
    read = tokenizers.Tokenizer(words)
    read.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    config = transformers.LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    torch.manual_seed(seed)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=read).save_pretrained(folder)
    return folder


def ask(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment's ``HF_ENDPOINT`` does when huggingface_hub is imported."""
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", template.replace(constants.ENDPOINT, url)
    )
    monkeypatch.setattr(constants, "ENDPOINT", url)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that is asked."""
    from huggingface_hub import constants

    path = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return path


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a Llama in two revisions, a gated one, and one that has pickled weights alone."""
    first, second = llama(tmp_path / "first", seed=1), llama(tmp_path / "second", seed=2)
    (first / "pytorch_model.bin").write_bytes(b"a pickle")
    (first / "modeling_tiny.py").write_text("raise SystemExit('code of a repository has run')")
    (first / "onnx").mkdir()
    (first / "onnx" / "config.json").write_text("{}")
    pickled = shutil.copytree(second, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    revisions = {COMMITS["main"]: first, COMMITS["v1"]: second}
    made = Hub(
        {NAME: revisions, "org/gated": revisions, "org/old": {COMMITS["main"]: pickled}},
        gated={"org/gated"},
    )
    with serving(made):
        ask(made.url, monkeypatch)
        yield made


def weights(folder: Path) -> dict[str, Any]:
    return dict(transformers.LlamaForCausalLM.from_pretrained(folder).state_dict())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_network_is_downloaded_and_read(hub: Hub, tmp_path: Path) -> None:
    network = build(f"hf:{NAME}", {}, input_shape=(), classes=0)
    assert same(dict(network.state_dict()), weights(tmp_path / "first"))
    tagged = build(f"hf:{NAME}", {"revision": "v1"}, input_shape=(), classes=0)
    assert same(dict(tagged.state_dict()), weights(tmp_path / "second"))
    assert processor_of(f"hf:{NAME}")("a b a").input_ids == [0, 1, 0]


def test_neither_pickles_nor_code_nor_other_programs_files_are_fetched(hub: Hub) -> None:
    said: list[str] = []
    folder = folder_of(NAME, download=said.append)
    names = {path.name for path in folder.rglob("*")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert hub.fetched() == names
    assert not names & {"pytorch_model.bin", "modeling_tiny.py", "onnx"}
    (line,) = said
    assert line.startswith(f"downloading hf:{NAME} at {'a' * 12}: {len(names)} files, 0.0 MB")


def test_pickled_weights_alone_are_no_network(hub: Hub) -> None:
    with pytest.raises(InputError, match="hf:org/old holds no safetensors, and weights in pickles"):
        folder_of("org/old", download=print)
    assert not hub.fetched()


def test_what_is_cached_stays_when_the_hub_moves_on_or_is_gone(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = folder_of(NAME, download=print)
    assert commit_of(folder) == COMMITS["main"]
    monkeypatch.setitem(COMMITS, "main", COMMITS["v1"])
    assert folder_of(NAME, download=print) == folder_of(NAME) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert folder_of(NAME, download=print) == folder


def test_offline_nothing_is_asked(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=f"hf:{NAME} is neither .* 'hf download {NAME}' puts it"):
        folder_of(NAME, download=print)
    assert not hub.asked


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("org/nothing", None, r"hf:org/nothing is neither a folder nor a name that http://127\S*"),
        ("org/gated", None, r"hf:org/gated is gated: accept its conditions at http://127\S*/org/g"),
        (NAME, "v9", "hf:org/tiny has no revision 'v9' on the hub"),
    ],
)
def test_why_the_hub_gives_nothing_is_said_in_one_line(
    hub: Hub, name: str, revision: str | None, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        folder_of(name, revision, print)
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask("http://127.0.0.1:1", monkeypatch)
    said = f"hf:{NAME} is not here, and cannot be downloaded from http://127.0.0.1:1: "
    with pytest.raises(InputError, match=said) as caught:
        folder_of(NAME, download=print)
    assert "\n" not in str(caught.value)


def test_what_others_left_half_in_the_cache_is_made_whole(hub: Hub) -> None:
    folder = folder_of(NAME, download=print)
    shutil.rmtree(folder.parents[1] / "trees", ignore_errors=True)  # as others leave it
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="nor whole in the hub's cache"):
        folder_of(NAME)
    assert (folder_of(NAME, download=print) / "model.safetensors").is_file()


def test_a_tokenizer_is_had_without_the_weights(hub: Hub) -> None:
    folder = snapshot_of(NAME, download=print, weights=False)
    assert (folder / "tokenizer.json").is_file()
    assert "model.safetensors" not in hub.fetched()


def fields(name: str) -> dict[str, Any]:
    return {
        "name": "mine",
        "network": name,
        "data": {"name": "kjv"},
        "pruning": {"layers": {"model.layers.0.mlp.gate_proj": 0.25}},
    }


def test_a_study_is_known_by_the_files_wherever_they_come_from(hub: Hub, tmp_path: Path) -> None:
    at_hand = spec_from(fields(f"hf:{tmp_path / 'first'}"))
    before = spec_from(fields(f"hf:{NAME}"))
    assert before.network.files is None  # listing a study downloads nothing
    assert not hub.asked
    with pytest.raises(InputError, match=f"hf:{NAME} is not here, and a list downloads nothing"):
        list_study(before)
    assert not hub.asked
    after = with_files(before, print)
    assert after.network.files == files_sha256(tmp_path / "first")
    assert after.digest == at_hand.digest
    assert with_files(after, print) is after


@pytest.mark.slow
def test_a_study_downloads_pins_and_records_its_network(hub: Hub, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a b b a\n" * 200)
    spec = spec_from(
        {
            **fields(f"hf:{NAME}"),
            "task": "next-token",
            "data": {"name": "text", "path": str(words), "context": 8, "validation_images": 0},
            "pruning": {"layers": {"model.layers.0.mlp.gate_proj": 0.25}, "candidates": 3},
            "criteria": ["oracle"],
            "retraining": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "seeds": [0]},
        }
    )
    grid = Grid([Variant(spec)], runs=tmp_path / "runs")
    results = grid.run(progress=False)["mine"]
    assert results.provenance[-1]["network_commit"] == COMMITS["main"]
    assert results.spec.network.files == files_sha256(tmp_path / "first")
    assert len(results.outcomes) == 3
    assert grid.summary()["folder"] == str(results.folder)  # found by what its files are
    again = Study(spec, runs=tmp_path / "runs")  # now its files are at hand
    assert again.folder == results.folder


@pytest.mark.slow
def test_the_environment_says_which_hub(hub: Hub, cache: Path) -> None:
    asked = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    found = subprocess.run(
        [sys.executable, "-m", "trueoracle", "inspect", f"hf:{NAME}"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr.startswith(f"downloading hf:{NAME} at {'a' * 12}: ")
    assert "model.layers.0.mlp.gate_proj" in found.stdout
