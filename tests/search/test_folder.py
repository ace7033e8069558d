"""Pruned networks of transformers as folders, on several families of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import trueoracle
from tests.networks.families import IN_TIME, made
from trueoracle.data.splits import Split, Splits
from trueoracle.data.tokens import find_tokenizer
from trueoracle.errors import InputError
from trueoracle.networks.fitting import fitted_config, plain_config
from trueoracle.networks.registry import build
from trueoracle.pruning.stacks import cut_layers, find_stacks
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups
from trueoracle.search.export import Origin, check_export, export
from trueoracle.search.folder import FACTS, is_plain
from trueoracle.tasks.base import inputs_of
from trueoracle.tasks.language import NextToken
from trueoracle.training.loop import train
from trueoracle.training.recipe import Recipe, Retraining

transformers: Any = pytest.importorskip("transformers")

MLP = ("gate_proj", "fc1", "c_fc")
HEADS = ("q_proj", "c_attn")


def cut(
    network: nn.Module,
    batch: dict[str, Tensor],
    units: tuple[str, ...],
    left: Callable[[int, int], int],
) -> tuple[nn.Module, Origin]:
    """Leave ``left(place, number)`` of the units of each layer (in LLaVA: of the text's)."""
    found = find_groups(network, batch).groups
    groups = [
        group
        for name, group in found.items()
        if name.rpartition(".")[2] in units and "vision_tower" not in name
    ]
    assert len(groups) == 3
    kept = {g.name: list(range(left(i, g.filters))) for i, g in enumerate(groups)}
    gone = {g.name: tuple(range(left(i, g.filters), g.filters)) for i, g in enumerate(groups)}
    return prune(network, groups, kept).eval(), origin(network, batch, gone)


def origin(
    network: nn.Module, batch: dict[str, Tensor], pruned: dict[str, tuple[int, ...]]
) -> Origin:
    return Origin(
        name=None,
        arguments={},
        inputs={
            name: (tuple(value.shape[1:]), str(value.dtype).removeprefix("torch."))
            for name, value in batch.items()
        },
        outputs=None,
        pruned=pruned,
        values={n: v.tolist() for n, v in batch.items() if not v.is_floating_point()},
        config=plain_config(network),
    )


def logits(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(**batch).logits
    return found


def half(place: int, number: int) -> int:
    return number // 2


def uneven(place: int, number: int) -> int:
    return number // 2 + (place == 1)


def from_pretrained(network: nn.Module, path: Path) -> Any:
    kind: Any = type(network)
    return kind.from_pretrained(path, local_files_only=True).eval()


@pytest.mark.parametrize("family", IN_TIME)
def test_a_uniform_cut_loads_by_from_pretrained_alone(family: str, tmp_path: Path) -> None:
    dense, batch = made(family)
    network, about = cut(dense, batch, MLP, half)
    path = export(network, tmp_path / "model", about, {"study": "mine"})
    assert is_plain(path)
    again = from_pretrained(dense, path)
    assert torch.equal(logits(again, batch), logits(network, batch))
    assert not torch.equal(logits(again, batch), logits(dense, batch))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in dense.parameters())
    loaded = trueoracle.load(path)
    assert not loaded.training
    assert torch.equal(logits(loaded, batch), logits(network, batch))
    facts = json.loads((path / FACTS).read_text())
    assert (facts["study"], facts["trueoracle"]) == ("mine", trueoracle.__version__)
    if hasattr(dense, "generation_config"):
        assert (path / "generation_config.json").is_file()


@pytest.mark.parametrize("family", IN_TIME)
def test_another_cut_loads_by_ours(family: str, tmp_path: Path) -> None:
    dense, batch = made(family)
    network, about = cut(dense, batch, MLP, uneven)
    for path in (tmp_path / "model", tmp_path / "model.safetensors"):
        export(network, path, about)
        loaded = trueoracle.load(path)
        assert type(loaded) is type(dense)
        assert torch.equal(logits(loaded, batch), logits(network, batch))
        given = trueoracle.load(path, network=dense)
        assert torch.equal(logits(given, batch), logits(network, batch))
    assert not is_plain(tmp_path / "model")
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        from_pretrained(dense, tmp_path / "model")


# Of the others a config says no other number of heads than width / head_dim.
@pytest.mark.parametrize("family", IN_TIME)
def test_heads_load_by_what_the_export_says(family: str, tmp_path: Path) -> None:
    dense, batch = made(family)
    network, about = cut(dense, batch, HEADS, half)
    path = export(network, tmp_path / "model", about)
    assert torch.equal(logits(trueoracle.load(path), batch), logits(network, batch))
    assert is_plain(path) is (family != "gpt2")
    if is_plain(path):
        config = json.loads((path / "config.json").read_text())
        config = config.get("text_config", config)
        assert config["num_attention_heads"] == 2
        assert torch.equal(logits(from_pretrained(dense, path), batch), logits(network, batch))


def test_the_config_is_the_networks_own_but_for_the_cut() -> None:
    dense, batch = made("llama")
    network, _ = cut(dense, batch, MLP, half)
    before, after = (c.to_dict() for c in (dense.config, fitted_config(network)))  # type: ignore[union-attr, operator]
    assert {key for key in after if after[key] != before[key]} == {"intermediate_size"}
    assert after["intermediate_size"] == 12
    assert fitted_config(dense).to_dict() == before
    assert fitted_config(cut(dense, batch, MLP, uneven)[0]) is None


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_tied_weights_stay_one_tensor(family: str, tmp_path: Path) -> None:
    dense, batch = made(family)
    network: Any
    network, about = cut(dense, batch, MLP, uneven)

    def is_tied(one: Any) -> bool:
        return one.get_input_embeddings().weight is one.get_output_embeddings().weight

    before = network.get_output_embeddings().weight.detach().clone()
    assert is_tied(network)
    split = Split(batch)
    recipe = Recipe(epochs=1, batch_size=2, learning_rate=0.1, optimizer="sgd")
    train(network, Splits(split, None, split, NextToken()), recipe, seed=0)
    assert is_tied(network)
    assert not torch.equal(network.get_input_embeddings().weight, before)
    for path in (tmp_path / "model", tmp_path / "model.safetensors"):
        export(network, path, about)
        loaded: Any = trueoracle.load(path)
        assert is_tied(loaded)
        assert torch.equal(logits(loaded, batch), logits(network.eval(), batch))
        file = path / "model.safetensors" if path.is_dir() else path
        names = [n for n in trueoracle_names(file) if n.endswith(("lm_head.weight", "wte.weight"))]
        assert len(names) <= 1  # once in the file too


def trueoracle_names(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma2"])
def test_without_a_layer_it_generates_with_a_cache_as_without(family: str, tmp_path: Path) -> None:
    dense, batch = made(family)
    (stack,) = find_stacks(dense, batch).stacks.values()
    network: Any = cut_layers(dense, {stack.name: (stack, (0,))})
    batch["attention_mask"] = batch["attention_mask"].flip(1)  # padded on the left
    about = replace(origin(dense, batch, {stack.name: (0,)}), units="layers")
    path = export(network, tmp_path / "model", about)
    assert is_plain(path)
    loaded = from_pretrained(dense, path)
    single = trueoracle.load(export(network, tmp_path / "model.safetensors", about))
    for one in (loaded, single, trueoracle.load(path)):
        assert torch.equal(logits(one, batch), logits(network, batch))
    assert loaded.config.num_hidden_layers == 2
    said = {m.layer_idx for m in loaded.modules() if getattr(m, "layer_idx", None) is not None}
    assert said == {0, 1}
    if family == "gemma2":
        assert loaded.config.layer_types == dense.config.layer_types[1:]  # type: ignore[union-attr, index]
    texts = [
        cast(Any, one).generate(
            **batch, max_new_tokens=8, do_sample=False, use_cache=cache, pad_token_id=0
        )
        for one in (network, loaded, single)
        for cache in (True, False)
    ]
    assert texts[0].shape == (3, 18)
    assert all(torch.equal(text, texts[0]) for text in texts[1:])


@pytest.mark.slow
def test_the_tokenizer_comes_along_and_code_does_not(tmp_path: Path) -> None:
    dense: Any
    dense, batch = made("llama")
    source = tmp_path / "source"
    dense.generation_config.max_new_tokens = 7
    dense.save_pretrained(source)
    for name in ("tokenizer.json", "merges.txt", "chat_template.jinja", "own.py", "README.md"):
        (source / name).write_text("{}")
    network, about = cut(dense, batch, MLP, half)
    named = Origin(**{**vars(about), "name": f"hf:{source}"})
    path = export(network, tmp_path / "model", named)
    left = {"config.json", "generation_config.json", "model.safetensors", FACTS}
    left |= {"tokenizer.json", "merges.txt", "chat_template.jinja"}
    assert {one.name for one in path.iterdir()} == left
    assert from_pretrained(dense, path).generation_config.max_new_tokens == 7
    # Written again, it takes the place of the one before.
    network, about = cut(dense, batch, MLP, uneven)
    export(network, path, about)
    assert not is_plain(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model", "source"]


@pytest.mark.slow
def test_no_link_that_leads_out_of_the_folder_is_exported(tmp_path: Path) -> None:
    """A link in a folder of somebody else's may lead to any file of the user's."""
    dense: Any
    dense, batch = made("llama")
    (tmp_path / "secret.json").write_text("{}")
    cached = tmp_path / "models--x--y"  # as the hub's cache keeps a repository
    for source in (tmp_path / "source", cached / "snapshots" / "abc"):
        dense.save_pretrained(source)
        (source / "merges.txt").write_text("")
        (source / "vocab.txt").symlink_to("merges.txt")
        (source / "tokenizer_config.json").symlink_to(tmp_path / "secret.json")
    (cached / "blobs").mkdir()
    (cached / "blobs" / "123").write_text("{}")
    snapshot = cached / "snapshots" / "abc"
    (snapshot / "tokenizer.json").symlink_to("../../blobs/123")
    for source, more in ((tmp_path / "source", set()), (snapshot, {"tokenizer.json"})):
        network, about = cut(dense, batch, MLP, half)
        named = Origin(**{**vars(about), "name": f"hf:{source}"})
        with pytest.warns(
            UserWarning, match=r"tokenizer_config\.json is not exported: .* to .*secret"
        ):
            path = export(network, tmp_path / "model", named)
        copied = {one.name for one in path.iterdir()} - {"config.json", "generation_config.json"}
        assert copied == {"model.safetensors", FACTS, "merges.txt", "vocab.txt", *more}
        assert not any(one.is_symlink() for one in path.iterdir())


@pytest.mark.parametrize("name", ["bpe:300", "words"])
def test_a_tokenizer_that_was_trained_here_comes_along(name: str, tmp_path: Path) -> None:
    texts = ["In the beginning\n", "was the word\n"]
    ours = find_tokenizer(name, "llama", lambda: iter(texts), "", tmp_path / "cache")
    dense, batch = made("llama")
    network, about = cut(dense, batch, MLP, half)
    path = export(network, tmp_path / "model", about, {}, ours.files)
    read = transformers.AutoTokenizer.from_pretrained(path)
    assert read(texts).input_ids == ours.encode(texts)
    assert (read.pad_token_id, read.bos_token_id, read.eos_token_id) == (ours.pad, 1, 2)
    assert read(texts[:1], padding="max_length", max_length=40).input_ids[0][-1] == ours.pad


def test_a_network_written_by_its_name_is_built_without_its_files(tmp_path: Path) -> None:
    dense: Any
    dense, batch = made("qwen2")
    network, about = cut(dense, batch, MLP, uneven)
    named = Origin(**{**vars(about), "name": "hf:nobody/nothing"})
    path = export(network, tmp_path / "model.safetensors", named)
    assert torch.equal(logits(trueoracle.load(path), batch), logits(network, batch))


def test_what_cannot_be_written_is_refused_before_long_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="network 'lenet5' is none of transformers"):
        check_export(tmp_path / "model", "lenet5")
    for name in ("llama", "hf:a/b", "mine:factory"):
        check_export(tmp_path / "model", name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: an export without an ending"):
        check_export(tmp_path / "file", "llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(InputError, match="full holds other files"):
        check_export(tmp_path / "full", "llama")
    network = build("lenet5-mini", input_shape=(1, 32, 32), classes=10)
    about = Origin(None, {}, {"input": ((1, 32, 32), "float32")}, 10, {})
    with pytest.raises(InputError, match="a folder is written of a network of transformers"):
        export(network, tmp_path / "model", about)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "full"]


def test_damaged_folders_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not written by 'trueoracle search --export'"):
        trueoracle.load(tmp_path)
    dense, batch = made("llama")
    network, about = cut(dense, batch, MLP, uneven)
    path = export(network, tmp_path / "model", about)
    facts = json.loads((path / FACTS).read_text())
    for changed, said in (
        ("{", "is damaged"),
        ("[]", "does not say how to load"),
        (json.dumps({"from_pretrained": False}), "was not written by"),
        (json.dumps(facts | {"from_pretrained": True}), "cannot be built"),
    ):
        (path / FACTS).write_text(changed)
        with pytest.raises(InputError, match=said) as caught:
            trueoracle.load(path)
        assert "\n" not in str(caught.value)
    (path / FACTS).write_text(json.dumps(facts))
    (path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="is no safetensors file"):
        trueoracle.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_the_computation_is_exported(family: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    dense, batch = made(family)
    network, about = cut(dense, batch, MLP, uneven)
    one = {name: value[1:2] for name, value in batch.items()}
    program = torch.export.load(export(network, tmp_path / "model.pt2", about)).module()
    session = onnxruntime.InferenceSession(
        str(export(network, tmp_path / "model.onnx", about)), providers=["CPUExecutionProvider"]
    )
    for given in (batch, one):
        named = inputs_of(network, given)[1]  # the positions of padded texts among them
        expected = logits(network, named)
        torch.testing.assert_close(program(**named).logits, expected)
        (found,) = session.run(["logits"], {n: v.numpy() for n, v in named.items()})
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-3, atol=1e-5)
    assert getattr(network.config, "use_cache", True)  # the network itself stays as it was


@pytest.mark.slow
def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    dense, batch = made("llava")
    network, about = cut(dense, batch, MLP, half)
    with pytest.raises(InputError, match=r"cannot be exported to torch.export: .*\.safetensors ca"):
        export(network, tmp_path / "model.pt2", about)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_projector_that_is_trained_beside_adapters_is_saved_with_them(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    dense, batch = made("llava")
    network, about = cut(dense, batch, MLP, uneven)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    lora = {"rank": 2, "targets": ["*language_model*q_proj"], "train": ["*multi_modal_projector*"]}
    recipe = Retraining.model_validate(
        {"epochs": 1, "batch_size": 2, "learning_rate": 0.05, "lora": lora}
    )
    split = Split(batch)
    train(network, Splits(split, None, split, NextToken()), recipe, seed=0)
    export(network, tmp_path / "model", about)
    loaded = trueoracle.load(tmp_path / "model").state_dict()
    moved = {name for name, value in loaded.items() if not torch.equal(value, before[name])}
    projector = {name for name in before if "multi_modal_projector" in name}
    adapted = {name for name in before if re.fullmatch(r".*language_model.*q_proj.weight", name)}
    assert len(projector) == 4
    assert len(adapted) == 3
    assert moved == projector | adapted
    assert torch.equal(logits(trueoracle.load(tmp_path / "model"), batch), logits(network, batch))
