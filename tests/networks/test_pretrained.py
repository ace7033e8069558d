"""Networks by the names of others: transformers, timm, torchvision."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trueoracle import Study
from trueoracle.errors import InputError
from trueoracle.networks.pretrained import build_from_config, processor_of
from trueoracle.networks.registry import build
from trueoracle.spec.file import spec_from
from trueoracle.spec.hub import files_sha256, folder_of
from trueoracle.spec.spec import StudySpec

transformers: Any = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a tokenizer of three words."""
    import tokenizers

    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?")
    read = tokenizers.Tokenizer(words)
    read.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=read)
    config = transformers.LlamaConfig(
        vocab_size=3,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    path = tmp_path / "llama"
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_language_models_tokenizer_comes_with_it(folder: Path) -> None:
    for name in (f"hf:{folder}", str(folder)):
        assert processor_of(name)("a b a").input_ids == [0, 1, 0]


def test_an_image_classifiers_processor_comes_with_it(tmp_path: Path) -> None:
    from PIL import Image

    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    size = {"height": 16, "width": 16}
    transformers.SiglipImageProcessorPil(size=size).save_pretrained(tmp_path)
    made = processor_of(f"hf:{tmp_path}")(Image.new("RGB", (9, 7)), return_tensors="pt")
    assert made["pixel_values"].shape == (1, 3, 16, 16)


def test_without_a_tokenizer_it_is_said(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(InputError, match=rf"hf:{folder} has no tokenizer or processor"):
        processor_of(f"hf:{folder}")


def test_what_cannot_be_had_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"hf:nobody/nothing is neither .* 'hf download nobody/no"):
        folder_of("nobody/nothing")
    with pytest.raises(InputError, match="'hf download nobody/nothing --revision v1' puts it"):
        folder_of("nobody/nothing", "v1")
    with pytest.raises(InputError, match="hf:a b/c/d is neither a folder nor a name of the hub"):
        folder_of("a b/c/d")
    with pytest.raises(InputError, match=r"is no network: .* has no config.json"):
        folder_of(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"'v1' is of the hub, and .* is a folder here"):
        folder_of(str(tmp_path), "v1")


def test_the_hash_is_of_the_files_not_of_the_path(folder: Path, tmp_path: Path) -> None:
    before = files_sha256(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert files_sha256(moved) == before
    (moved / "tokenizer.json").write_text("{}")  # which is the data's
    assert files_sha256(moved) == before
    config = moved / "config.json"
    config.write_text(config.read_text() + " ")
    assert files_sha256(moved) != before


KINDS = {
    "AutoModelForCausalLM": ("LlamaConfig", {}),
    "AutoModelForSequenceClassification": ("LlamaConfig", {}),
    "AutoModelForImageClassification": ("ViTConfig", {"image_size": 8, "patch_size": 4}),
}


def built(name: str, **arguments: Any) -> Any:
    return build(name, arguments, input_shape=(), classes=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_class_is_what_the_config_says(kind: str, tmp_path: Path) -> None:
    config_kind, fields = KINDS[kind]
    small = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_labels": 2}
    config = getattr(transformers, config_kind)(**small, num_attention_heads=2, **fields)
    config.vocab_size = 5
    made = getattr(transformers, kind).from_config(config)
    made.save_pretrained(tmp_path)
    found = built(f"hf:{tmp_path}")
    assert type(found) is type(made)
    assert found.training
    state = made.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in found.state_dict().items())


def test_arguments_are_told_to_transformers(folder: Path) -> None:
    found = built(f"hf:{folder}", dtype="bfloat16", attn_implementation="eager")
    assert found.dtype == torch.bfloat16
    assert found.config._attn_implementation == "eager"
    assert built(f"hf:{folder}").dtype == torch.float32


def test_without_weights_it_begins_at_random(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    one = built(f"hf:{folder}", pretrained=False).lm_head.weight
    assert not torch.equal(one, built(f"hf:{folder}", pretrained=False).lm_head.weight)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"trust_remote_code": True}, "unknown argument of network .*'trust_remote_code'"),
        ({"dtype": "float31"}, "unknown dtype .* did you mean 'float32'"),
        ({"attn_implementation": "none"}, "cannot be built: .*attn_implementation"),
        ({"pretrained": "no"}, "pretrained .* takes true or false, got 'no'"),
        ({"revision": "main"}, "revision = 'main' is of the hub"),
    ],
)
def test_wrong_arguments_are_one_line(folder: Path, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        built(f"hf:{folder}", **arguments)
    assert "\n" not in str(caught.value)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_cannot_be_built_is_one_line(folder: Path) -> None:
    name = f"hf:{folder}"
    change_config(folder, architectures=["LlamaModel"])
    with pytest.raises(InputError, match=r"is of architecture 'LlamaModel' .* none of transformer"):
        built(name)
    change_config(folder, architectures=None)
    with pytest.raises(InputError, match="is of architecture None"):
        built(name)
    change_config(folder, architectures=["LlamaForCausalLM"], quantization_config={"bits": 4})
    with pytest.raises(InputError, match="holds quantised weights"):
        built(name)
    (folder / "config.json").write_text("[")
    with pytest.raises(InputError, match=r"cannot read .*config.json"):
        built(name)


def test_a_part_of_the_weights_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"lacks the weights model.layers.0.mlp.up_proj.weight: "):
        built(f"hf:{folder}")


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no file named model.safetensors"):
        built(f"hf:{folder}")


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    written = tmp_path / "written"
    (folder / "own.py").write_text(f"open({str(written)!r}, 'w').close()")
    change_config(
        folder,
        model_type="own",
        architectures=["Own"],
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    )
    with pytest.raises(InputError, match="is of architecture 'Own'"):
        built(f"hf:{folder}")
    change_config(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    assert type(built(f"hf:{folder}")).__name__ == "LlamaForCausalLM"
    assert not written.exists()


# Studies of them


def fields(name: str) -> dict[str, Any]:
    return {"name": "s", "network": name, "pruning": {"layers": {"*": 0.5}}}


def test_a_study_knows_the_files_not_where_they_are(folder: Path, tmp_path: Path) -> None:
    one = spec_from(fields(f"hf:{folder}"))
    assert one.network.files == files_sha256(folder)
    assert one.network.arrives_trained
    moved = folder.rename(tmp_path / "elsewhere")
    assert spec_from(fields(f"hf:{moved}")).digest == one.digest
    assert spec_from(fields(f"hf:{moved}"), {"network.arguments.dtype": "bfloat16"}).digest != (
        one.digest
    )
    change_config(moved, rms_norm_eps=1e-5)
    changed = spec_from(fields(f"hf:{moved}"))
    assert len({changed.digest, one.digest}) == 2
    assert len({changed.dense_digest, one.dense_digest}) == 2
    # A record opens where its network is no more.
    gone = StudySpec.model_validate(one.model_dump(mode="json"))
    assert gone.digest == one.digest
    # What is not at hand is known by its name.
    assert spec_from(fields("hf:nobody/nothing")).network.files is None
    assert spec_from(one.model_dump(), {"network": "lenet5-mini"}).network.files is None


def test_a_network_of_a_library_arrives_trained() -> None:
    for name in ("hf:a/b", "timm:resnet18", "torchvision:resnet18"):
        assert spec_from(fields(name)).network.arrives_trained
        fresh = {"network.arguments.pretrained": False}
        assert not spec_from(fields(name), fresh).network.arrives_trained


def tokens(count: int) -> dict[str, Tensor]:
    made = torch.randint(3, (count, 6), generator=torch.Generator().manual_seed(count))
    return {"input_ids": made, "attention_mask": torch.ones_like(made)}


@pytest.mark.slow
def test_a_study_of_one_runs(folder: Path, tmp_path: Path) -> None:
    study = Study(
        f"hf:{folder}",
        data=(tokens(12), tokens(6)),
        task="next-token",
        pruning={"layers": {"model.layers.0.mlp.gate_proj": 0.25}, "candidates": 3},
        criteria=["oracle"],
        retraining={"epochs": 1, "batch_size": 6, "seeds": [0]},
        runs=tmp_path / "runs",
    )
    assert study.folder.name == f"llama-{study.spec.digest}"
    results = study.run(progress=False)
    assert len(results.outcomes) == 3
    with pytest.raises(InputError, match="two networks are given: llama and network=…"):
        Study(f"hf:{folder}", network="lenet5-mini")


@pytest.mark.parametrize(("name", "extra"), [("timm:x", "timm"), ("torchvision:x", "torchvision")])
def test_a_library_that_is_not_there_is_named(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(InputError, match=rf"{name} needs {extra}, .* '\.\[vision\]'"):
        built(name)


def test_without_transformers_the_extra_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs transformers: pip install '\.\[transf"):
        built(f"hf:{folder}")


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "someone/kernels"},
        {"vision_config": {"_attn_implementation": {"": "someone/kernels@main:flash"}}},
        {"model_args": {"checkpoint_path": "weights.pth"}},
        {"vision_config": {"model_args": {"pretrained_cfg": {"file": "weights.pth"}}}},
        {"layers": [{"checkpoint_path": "weights.pth"}]},
    ],
)
def test_a_config_by_which_code_of_others_runs_is_refused(
    folder: Path, fields: dict[str, Any]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    reads: tuple[Callable[[], object], ...] = (
        lambda: build(f"hf:{folder}", {}, input_shape=(), classes=0),
        lambda: build_from_config(config | fields, "an export"),
    )
    for read in reads:
        with pytest.raises(InputError, match="which could run code of others") as error:
            read()
        assert "\n" not in str(error.value)


def test_attention_of_others_is_refused_as_an_argument(folder: Path) -> None:
    given = {"attn_implementation": "someone/kernels"}
    with pytest.raises(InputError, match="code of others is not run"):
        build(f"hf:{folder}", given, input_shape=(), classes=0)
