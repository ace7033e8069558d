"""TinyLLaVA's own checkpoints, against a plain forward written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

import trueoracle
from trueoracle.errors import InputError
from trueoracle.networks.fitting import plain_config
from trueoracle.networks.pretrained import processor_of
from trueoracle.networks.registry import build
from trueoracle.pruning.surgery import prune
from trueoracle.pruning.walk import find_groups
from trueoracle.search.export import Origin, export
from trueoracle.search.folder import is_plain

transformers: Any = pytest.importorskip("transformers")

WORDS, HIDDEN, HEADS, MLP, LAYERS = 32, 40, 4, 48, 2
ROTARY = 4  # of the 10 values of each head
SIGHT, EYES, SIGHT_MLP, SIGHT_LAYERS = 12, 2, 20, 3
SIDE, PATCH = 20, 4  # 25 patches, of which the first is dropped
PLACES = 24

CONFIG: dict[str, Any] = {
    "model_type": "tinyllava",
    "architectures": ["TinyLlavaForConditionalGeneration"],
    "llm_model_name_or_path": "microsoft/phi-2",
    "vision_model_name_or_path": "google/siglip-so400m-patch14-384",
    "connector_type": "mlp2x_gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "patch",
    "tokenizer_padding_side": "right",
    "text_config": {
        "model_type": "phi",
        "vocab_size": WORDS,
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "partial_rotary_factor": 0.4,
        "rope_theta": 10000.0,
        "hidden_act": "gelu_new",
    },
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": SIGHT,
        "intermediate_size": SIGHT_MLP,
        "num_hidden_layers": SIGHT_LAYERS,
        "num_attention_heads": EYES,
        "image_size": SIDE,
        "patch_size": PATCH,
    },
}

TOWER = "vision_tower._vision_tower.vision_model."
TEXT = "language_model.model."


def checkpoint() -> dict[str, Tensor]:
    """Random tensors by TinyLLaVA's names."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{TEXT}embed_tokens.weight": (WORDS, HIDDEN),
        "language_model.lm_head.weight": (WORDS, HIDDEN),
        "language_model.lm_head.bias": (WORDS,),
        f"{TOWER}embeddings.patch_embedding.weight": (SIGHT, 3, PATCH, PATCH),
        f"{TOWER}embeddings.patch_embedding.bias": (SIGHT,),
        f"{TOWER}embeddings.position_embedding.weight": (25, SIGHT),
        f"{TOWER}head.probe": (1, 1, SIGHT),
        f"{TOWER}head.attention.in_proj_weight": (3 * SIGHT, SIGHT),
        f"{TOWER}head.attention.in_proj_bias": (3 * SIGHT,),
    }

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    linear("connector._connector.0", HIDDEN, SIGHT)
    linear("connector._connector.2", HIDDEN, HIDDEN)
    norm(f"{TEXT}final_layernorm", HIDDEN)
    for layer in range(LAYERS):
        at = f"{TEXT}layers.{layer}."
        norm(f"{at}input_layernorm", HIDDEN)
        for name in ("q_proj", "k_proj", "v_proj", "dense"):
            linear(f"{at}self_attn.{name}", HIDDEN, HIDDEN)
        linear(f"{at}mlp.fc1", MLP, HIDDEN)
        linear(f"{at}mlp.fc2", HIDDEN, MLP)
    linear(f"{TOWER}head.attention.out_proj", SIGHT, SIGHT)
    for at in (f"{TOWER}head.", *(f"{TOWER}encoder.layers.{i}." for i in range(SIGHT_LAYERS))):
        linear(f"{at}mlp.fc1", SIGHT_MLP, SIGHT)
        linear(f"{at}mlp.fc2", SIGHT, SIGHT_MLP)
    norm(f"{TOWER}head.layernorm", SIGHT)
    norm(f"{TOWER}post_layernorm", SIGHT)
    for layer in range(SIGHT_LAYERS):
        at = f"{TOWER}encoder.layers.{layer}."
        norm(f"{at}layer_norm1", SIGHT)
        norm(f"{at}layer_norm2", SIGHT)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{at}self_attn.{name}", SIGHT, SIGHT)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(s, generator=generator) * 0.3 for name, s in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    tensors = checkpoint()
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):  # in shards, as it is released
        save_file({n: tensors[n] for n in part}, path / f"model-0000{number + 1}.safetensors")
    return path


# A forward of its own


def plain_forward(w: dict[str, Tensor], before: Tensor, image: Tensor, after: Tensor) -> Tensor:
    """Logits of words ``before [n]``, an ``image [3, 20, 20]`` and words ``after [m]``."""
    seen = functional.conv2d(
        image[None],
        w[f"{TOWER}embeddings.patch_embedding.weight"],
        w[f"{TOWER}embeddings.patch_embedding.bias"],
        stride=PATCH,
    )
    x = seen[0].flatten(1).T + w[f"{TOWER}embeddings.position_embedding.weight"]
    for layer in range(SIGHT_LAYERS - 1):  # the second to last layer is the last one read
        at = f"{TOWER}encoder.layers.{layer}."
        y = layer_norm(w, f"{at}layer_norm1", x, 1e-6)
        x = x + attention(w, f"{at}self_attn", y, EYES, "out_proj", words=False)
        y = layer_norm(w, f"{at}layer_norm2", x, 1e-6)
        x = x + mlp(w, f"{at}mlp", y)
    x = x[1:]  # the first token goes, as of a tower with a class token
    x = linear(w, "connector._connector.0", x)
    x = linear(w, "connector._connector.2", functional.gelu(x))
    table = w[f"{TEXT}embed_tokens.weight"]
    x = torch.cat([table[before], x, table[after]])
    for layer in range(LAYERS):
        at = f"{TEXT}layers.{layer}."
        y = layer_norm(w, f"{at}input_layernorm", x, 1e-5)
        # Attention and MLP stand side by side.
        x = x + attention(w, f"{at}self_attn", y, HEADS, "dense", words=True)
        x = x + mlp(w, f"{at}mlp", y)
    x = layer_norm(w, f"{TEXT}final_layernorm", x, 1e-5)
    return linear(w, "language_model.lm_head", x)


def linear(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]


def layer_norm(w: dict[str, Tensor], at: str, x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed * w[f"{at}.weight"] + w[f"{at}.bias"]


def mlp(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    inner = functional.gelu(linear(w, f"{at}.fc1", x), approximate="tanh")
    return linear(w, f"{at}.fc2", inner)


def attention(
    w: dict[str, Tensor], at: str, x: Tensor, heads: int, out: str, *, words: bool
) -> Tensor:
    q, k, v = (
        linear(w, f"{at}.{name}_proj", x).unflatten(1, (heads, -1)).transpose(0, 1)
        for name in "qkv"
    )
    if words:
        q, k = turned(q), turned(k)
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    if words:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1) == 1, -torch.inf)
    return linear(w, f"{at}.{out}", (scores.softmax(2) @ v).transpose(0, 1).flatten(1))


def turned(x: Tensor) -> Tensor:
    """Rotary positions of the first values of each head ``[heads, length, width]``."""
    speeds = 10000.0 ** (-torch.arange(0, ROTARY, 2) / ROTARY)
    angles = torch.arange(x.shape[1])[:, None] * speeds
    first, second, rest = x[..., : ROTARY // 2], x[..., ROTARY // 2 : ROTARY], x[..., ROTARY:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], 2)


BEFORE, AFTER = torch.tensor([3, 7, 1]), torch.tensor([5, 2, 9, 4])


def batch(token: int) -> dict[str, Tensor]:
    ids = torch.cat([BEFORE, torch.full((PLACES,), token), AFTER])[None].expand(3, -1).clone()
    ids[1:, -3:] = torch.tensor([8, 11, 6])
    images = torch.rand(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": images * 2 - 1,
    }


def loaded(folder: Path, **arguments: Any) -> Any:
    return build(f"hf:{folder}", arguments, input_shape=(), classes=0)


def test_it_computes_what_a_plain_forward_does(folder: Path) -> None:
    network = loaded(folder).eval()
    given = batch(network.config.image_token_id)
    with torch.no_grad():
        found = network(**given).logits
    expected = plain_forward(checkpoint(), BEFORE, given["pixel_values"][0], AFTER)
    assert found.shape == (3, 3 + 24 + 4, WORDS)
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)
    assert network.dtype == torch.float32
    assert network.config.vision_feature_layer == -2
    assert loaded(folder, dtype="bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"connector_type": "resampler"}, "connector_type is 'resampler', expected 'mlp2x_gelu'"),
        ({"vision_feature_select_strategy": "x"}, "is 'x', expected 'patch' or 'cls_patch'"),
        ({"text_config": {"model_type": "nothing"}}, "TinyLLaVA's text_config cannot be read"),
        (
            {"text_config": {**CONFIG["text_config"], "intermediate_size": 40}},
            "do not fit: size mismatch for model.language_model",
        ),
    ],
)
def test_what_is_not_read_is_one_line(folder: Path, changes: dict[str, Any], said: str) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(InputError, match=said) as caught:
        loaded(folder)
    assert "\n" not in str(caught.value)


def test_a_part_of_it_is_refused(folder: Path) -> None:
    (folder / "model-00001.safetensors").unlink()
    with pytest.raises(InputError, match="do not fit: Missing key"):
        loaded(folder)
    (folder / "model-00002.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights in safetensors"):
        loaded(folder)


def test_its_processor_gives_what_it_takes(folder: Path) -> None:
    import tokenizers
    from PIL import Image

    words = tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, "?")
    read = tokenizers.Tokenizer(words)
    read.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=read)
    tokenizer.add_special_tokens({"pad_token": "?"})
    tokenizer.save_pretrained(folder)
    processor, network = processor_of(f"hf:{folder}"), loaded(folder).eval()
    assert network.config.image_token_id == 3  # the first that the tokenizer does not use
    given = processor(
        images=[Image.new("RGB", (30, 24))], text=["a <image> b"], return_tensors="pt"
    )
    assert (given["input_ids"] == 3).sum() == PLACES
    assert given["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert network(**given).logits.shape == (1, 2 + PLACES, WORDS)


def test_it_is_pruned_and_exported(folder: Path, tmp_path: Path) -> None:
    network = loaded(folder).eval()
    given = batch(network.config.image_token_id)
    groups = find_groups(network, given).groups
    fc1 = [g for n, g in groups.items() if n.endswith("fc1") and "language_model" in n]
    assert len(fc1) == LAYERS
    made: Any = prune(network, fc1, {g.name: range(30) for g in fc1}).eval()
    about = Origin(
        name=f"hf:{folder}",
        arguments={},
        inputs={
            n: (tuple(v.shape[1:]), str(v.dtype).removeprefix("torch.")) for n, v in given.items()
        },
        outputs=None,
        pruned={g.name: tuple(range(30, MLP)) for g in fc1},
        values={n: v.tolist() for n, v in given.items() if not v.is_floating_point()},
        config=plain_config(network),
    )
    path = export(made, tmp_path / "model", about)
    assert not is_plain(path)  # transformers' LLaVA has no bias in its output layer
    with torch.no_grad():
        again = trueoracle.load(path)(**given).logits
        assert torch.equal(again, made(**given).logits)
