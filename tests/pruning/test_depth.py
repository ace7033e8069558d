from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.criteria.test_influence import Block, Stream
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.pruning.cost import cost
from trueoracle.pruning.depth import check_depth, list_depth_candidates
from trueoracle.pruning.listing import write_listing
from trueoracle.pruning.stacks import cut_layers, find_stacks, without_layers

TOKENS = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(0))


class Indexed(Stream):
    """Counts on each block's place: none can leave the list."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed(input_ids)
        for index in range(3):
            x, _ = self.blocks[index](x)
        logits: Tensor = self.head(x)
        return logits


class Scaled(Stream):
    """Multiplies by the number of blocks: another network without one of them."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return super().forward(input_ids) * len(self.blocks)


def test_blocks_of_a_stream_are_found_and_others_say_why_not() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Stream().embed, nn.Linear(4, 4))
    residual = build("resnet20", {"width": 2}, input_shape=(1, 8, 8), classes=3)
    found = find_stacks(residual, torch.rand(2, 1, 8, 8))
    assert {name: stack.places for name, stack in found.stacks.items()} == {
        "layer1": (0, 1, 2),
        "layer2": (1, 2),
        "layer3": (1, 2),
    }
    assert found.refused["layer2.0"] == "it makes [4, 4, 4] of [2, 8, 8]"
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    refused = find_stacks(chain, torch.rand(2, 4)).refused
    assert refused == dict.fromkeys("012", "no sum carries what it is given past it")
    assert len(network) == 4


def test_surgery_equals_passing_layers_by_whatever_is_taken_out() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    for network, example in (
        (Stream(), TOKENS),
        (build("resnet20", {"width": 2}, input_shape=(1, 8, 8), classes=3), torch.rand(3, 1, 8, 8)),
        (encoder, torch.rand(3, 5, 8)),
    ):
        network.eval()
        found = find_stacks(network, example)
        listed = list_depth_candidates(found, {"*": 0.4})
        check_depth(network, listed, example)
        for index in range(len(listed)):
            with without_layers(network, listed.gone(index)):
                expected = network(example)
            assert torch.equal(listed.prune(network, index)(example), expected)
        assert not torch.allclose(network(example), expected)


def test_what_cannot_leave_its_list_has_an_identity_in_its_place() -> None:
    network: Any = Indexed()
    stack = find_stacks(network, TOKENS).stacks["blocks"]
    assert stack.in_place
    cut: Any = cut_layers(network, {"blocks": (stack, [1])})
    assert len(cut.blocks) == 3
    assert sum(p.numel() for p in cut.blocks[1].parameters()) == 0
    with without_layers(network, {"blocks": (stack, [1])}):
        assert torch.equal(cut(TOKENS), network(TOKENS))


def test_a_network_that_counts_its_layers_is_refused_with_the_reason() -> None:
    found = find_stacks(Scaled(), TOKENS)
    # With identities in their places their number stays.
    assert found.stacks["blocks"].in_place
    shared = Stream()
    shared.blocks[1] = shared.blocks[0]
    assert "it is used 2 times" in find_stacks(shared, TOKENS).refused["blocks.0"]


def test_ratios_patterns_and_names() -> None:
    found = find_stacks(Stream(6), TOKENS)
    whole = list_depth_candidates(found, {"blocks.*": 0.5})
    assert (len(whole), whole.space, whole.units) == (20, 20, "layers")
    assert whole.ids == list_depth_candidates(found, {"blocks": 0.5}).ids
    assert len(set(whole.ids)) == 20
    some = list_depth_candidates(found, {"blocks.[2-4]": 0.34})
    assert [some.pruned(i) for i in range(3)] == [{"blocks": (i,)} for i in (2, 3, 4)]
    sampled = list_depth_candidates(found, {"blocks": 0.5}, count=5, seed=1)
    assert set(sampled.ids) < set(whole.ids)
    for ratios, message in (
        ({"blocks.*": 0.05}, "blocks: a pruning ratio of 0.05 would remove nothing of 6 layers"),
        ({"block*": 0.5, "blocks.0": 0.5}, "'blocks.0' is named by more than one pattern"),
        ({"blocks.0": 0.5, "blocks.1": 0.4}, "are given different ratios, 0.5 and 0.4"),
        ({"head": 0.5}, "unknown layer in pruning.layers 'head'"),
    ):
        with pytest.raises(InputError, match=message):
            list_depth_candidates(found, ratios)


def test_a_listing_gives_the_same_candidates(tmp_path: Path) -> None:
    found, path = find_stacks(Stream(4), TOKENS), tmp_path / "candidates.json"
    listed = list_depth_candidates(found, {"blocks": 0.5}).take([3, 1])
    write_listing(listed.listing(), path)
    assert list_depth_candidates(found, {"blocks": 0.5}, count=path).ids == listed.ids
    with pytest.raises(InputError, match="prunes 2 layers of blocks, and"):
        list_depth_candidates(found, {"blocks": 0.25}, count=path)


def test_costs_are_those_of_the_pruned_networks() -> None:
    network = Stream(3)
    network.blocks[1] = wide = Block()
    wide.up, wide.down = nn.Linear(4, 9), nn.Linear(9, 4)
    listed = list_depth_candidates(find_stacks(network, TOKENS), {"blocks": 0.67})
    found = listed.costs(network, TOKENS)
    assert found == [cost(listed.prune(network, i), TOKENS) for i in range(3)]
    assert found[0] == found[2] != found[1]


@pytest.fixture(scope="module")
def families() -> dict[str, nn.Module]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    sliding = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 2}
    gpt2 = {"vocab_size": 30, "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32}
    made = {
        "llama": transformers.LlamaForCausalLM(transformers.LlamaConfig(**size)),
        "qwen2": transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**size, **sliding)),
        "gemma3": transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**size, head_dim=8, sliding_window=3)
        ),
        "gpt2": transformers.GPT2LMHeadModel(
            transformers.GPT2Config(**gpt2, bos_token_id=0, eos_token_id=1)
        ),
    }
    return {name: network.eval() for name, network in made.items()}


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma3", "gpt2"])
def test_generation_with_a_cache_equals_that_without(
    families: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """Layers' own numbers, and the lists and numbers of the configuration, follow a cut."""
    network = families[name]
    tokens = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    example = {"input_ids": tokens, "attention_mask": mask}
    listed = list_depth_candidates(find_stacks(network, example), {"*": 0.5})
    for index in range(len(listed)):
        (gone,) = listed.pruned(index).values()
        pruned: Any = listed.prune(network, index)
        config = pruned.config
        assert config.num_hidden_layers == 2
        assert network.config.num_hidden_layers == 4
        numbers = [m.layer_idx for m in pruned.modules() if hasattr(m, "layer_idx")]
        assert set(numbers) == {0, 1}
        if (types := getattr(network.config, "layer_types", None)) is not None:
            kept = [one for place, one in enumerate(types) if place not in gone]
            assert config.layer_types == kept
        with torch.no_grad(), without_layers(network, listed.gone(index)):
            expected = network(**example).logits
        with torch.no_grad():
            torch.testing.assert_close(pruned(**example).logits, expected, rtol=0, atol=1e-6)
            fast, slow = (
                pruned.generate(**example, max_new_tokens=6, do_sample=False, use_cache=cached)
                for cached in (True, False)
            )
        assert torch.equal(fast, slow)
    # A plain loader reads it: the configuration says what is left.
    pruned.save_pretrained(tmp_path)
    loaded = type(pruned).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**example).logits, pruned(**example).logits)


def test_the_configuration_of_one_half_is_not_that_of_the_other() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    config = transformers.LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=29,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    network = transformers.LlavaForConditionalGeneration(config).eval()
    tokens = torch.tensor([[5, 29, 29, 29, 29, 7], [6, 29, 29, 29, 29, 8]])
    example = {"input_ids": tokens, "pixel_values": torch.randn(2, 3, 8, 8)}
    found = find_stacks(network, example)
    language = next(name for name in found.stacks if "language" in name)
    stack = found.stacks[language]
    cut: Any = cut_layers(network, {language: (stack, [1])})
    assert cut.config.text_config.num_hidden_layers == 2
    assert cut.config.vision_config.num_hidden_layers == 3
    assert cut.model.language_model.config.num_hidden_layers == 2
    with torch.no_grad():
        with without_layers(network, {language: (stack, [1])}):
            expected = network(**example).logits
        torch.testing.assert_close(cut(**example).logits, expected)


def test_an_id_is_pinned() -> None:
    """Records name candidates by their ids."""
    listed = list_depth_candidates(find_stacks(Stream(4), TOKENS), {"blocks": 0.5})
    assert listed.ids[0] == "42ae89ef61d52601"
