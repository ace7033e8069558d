"""The shipped studies of images with questions and of vision transformers, cut short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.networks.test_tinyllava import CONFIG, checkpoint
from trueoracle import Study
from trueoracle.errors import InputError
from trueoracle.run.material import list_study
from trueoracle.spec.grid import load_spec
from trueoracle.spec.scale import scale_in_words

transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("peft")


# TinyLLaVA-3.1B: a tiny checkpoint in its place

WORDS = ("what", "colour", "is", "it", "?", "red", "green", "blue", "yes", "no")


@pytest.fixture
def tiny_llava(tmp_path: Path) -> Path:
    """A checkpoint in TinyLLaVA's own layout, and a tokenizer."""
    import tokenizers

    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(checkpoint(), folder / "model.safetensors")
    vocabulary = {word: place for place, word in enumerate(("<end>", "<unk>", *WORDS))}
    read = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<unk>"))
    read.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=read)
    made.add_special_tokens({"eos_token": "<end>", "unk_token": "<unk>"})
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def instructions(tmp_path: Path) -> Path:
    """Questions about 24 images in LLaVA's format."""
    folder = tmp_path / "images"
    folder.mkdir()
    told = []
    for number in range(24):
        colour = ("red", "green", "blue")[number % 3]
        Image.new("RGB", (26, 20), colour).save(folder / f"{number}.png")
        talk = [
            {"from": "human", "value": "<image>\nwhat colour is it ?"},
            {"from": "gpt", "value": colour},
        ]
        told.append({"id": str(number), "image": f"{number}.png", "conversations": talk})
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(told))
    return file


def cut_short(folder: Path, questions: Path) -> dict[str, Any]:
    """What a test changes in the shipped study, and nothing else."""
    return {
        "network.name": f"hf:{folder}",
        "network.arguments.dtype": "float32",
        "data.path": str(questions),
        "data.held_out": [0.1, 0.25],
        "data.context": 64,
        "data.measured_fraction": 1.0,
        "pruning.candidates": 4,
        "retraining.batch_size": 4,
        "retraining.accumulate": 2,
        "retraining.steps_per_epoch": 2,
        "retraining.lora.rank": 2,
    }


@pytest.mark.slow
@pytest.mark.parametrize("part", ["", "-mlp", "-depth"])
def test_tinyllava_runs_to_its_report(
    tiny_llava: Path, instructions: Path, tmp_path: Path, part: str
) -> None:
    changes = cut_short(tiny_llava, instructions)
    if part == "-depth":  # of two layers one goes
        changes |= {"pruning.layers": {"model.language_model.layers.*": 0.5}}
        changes |= {"pruning.candidates": 2}
    study = Study(load_spec(f"tinyllava-3.1b{part}", changes), runs=tmp_path / "runs")
    results = study.run(progress=False)
    assert results.finished
    assert results.default_outcomes == ("test_answer_accuracy", "test_loss")
    assert set(results.criteria) == {"oracle", "l1"}
    labels = [one["label"] for one in results.data_facts["baselines"]]
    assert labels == ["from the question alone", "by the most usual answer"]
    assert "from the question alone" in study.report().page.read_text(encoding="utf-8")


def test_without_its_weights_it_is_one_line(
    instructions: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    spec = load_spec("tinyllava-3.1b")
    assert spec.task == "answers"
    assert spec.network.arrives_trained
    given = load_spec("tinyllava-3.1b", {"data.path": str(instructions)})
    for run in (list_study, lambda one: Study(one, runs=tmp_path).prepare()):
        with pytest.raises(InputError) as caught:
            run(given)
        assert "\n" not in str(caught.value)
        assert str(caught.value).startswith("hf:tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B is n")


def test_at_small_scale_it_is_easy_vqas_network_with_adapters() -> None:
    small, easy = load_spec("tinyllava-3.1b@small"), load_spec("easy-vqa-llava")
    assert small.scale == "small"
    assert (small.network, small.dense) == (easy.network, easy.dense)
    assert small.data == easy.data.model_copy(update={"context": small.data.context})
    assert small.retraining.lora is not None
    said = scale_in_words(small)
    assert "llava in place of hf:tinyllava/TinyLLaVA-Phi-2-SigLIP-3.1B" in said


# easy-VQA

SHORT = {
    "data.train_images": 600,
    "data.validation_images": 20,
    "data.test_images": 60,
    "data.measured_fraction": 0.1,
    "dense.epochs": 1,
    "dense.steps_per_epoch": 20,
    "dense.batch_size": 16,
    "pruning.candidates": 4,
    "retraining.epochs": 1,
    "retraining.steps_per_epoch": 2,
    "retraining.batch_size": 8,
}


@pytest.fixture
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUEORACLE_DATA", str(tmp_path / "data"))


@pytest.mark.slow
@pytest.mark.usefixtures("_own_data_folder")
def test_easy_vqa_from_start_to_report(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    spec = load_spec("easy-vqa-llava", SHORT)
    study = Study(spec, runs=tmp_path / "runs")
    results = study.run(progress=False)
    assert results.finished
    assert results.candidates.shape[0] == 4
    assert set(results.criteria) == set(spec.criteria) - set(results.skipped)
    assert {"oracle", "l1", "taylor", "activation-mean"} <= set(results.criteria)
    assert results.default_outcomes == ("test_answer_accuracy", "test_loss")
    page = study.report().page.read_text(encoding="utf-8")
    assert "from the question alone" in page


@pytest.mark.slow
@pytest.mark.usefixtures("_own_data_folder")
def test_easy_vqa_prunes_heads_of_both_towers() -> None:
    pytest.importorskip("easy_vqa")
    listed = list_study(load_spec("easy-vqa-llava"))
    assert (len(listed), listed.space) == (20, 6 * 6 * 2 * 2)
    assert [group.filters for group in listed.groups] == [4, 4, 2, 2]


# A vision transformer


@pytest.mark.slow
@pytest.mark.parametrize(("part", "engine"), [("heads", "wide"), ("mlp", "auto")])
def test_glyphs_from_start_to_report(tmp_path: Path, part: str, engine: str) -> None:
    changes: dict[str, Any] = {
        "data.arguments": {"classes": 10, "fonts": 20},
        "data.validation_images": 20,
        "data.test_images": 60,
        "dense.epochs": 2,
        "pruning.candidates": 6,
        "retraining.epochs": 1,
        "retraining.batch_size": 32,
    }
    spec = load_spec(f"vit-glyphs-{part}-0.5", changes)
    study = Study(spec, runs=tmp_path / "runs")
    results = study.run(progress=False, engine=engine)
    assert results.finished
    assert set(results.criteria) == set(spec.criteria)
    engines = {sitting["engine"] for sitting in results.provenance if "engine" in sitting}
    assert engines <= ({"wide"} if engine == "wide" else {"wide", "loop"})
    assert study.report().page.is_file()
