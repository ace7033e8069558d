from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trueoracle.errors import InputError
from trueoracle.networks.examples import made_up, read_inputs


def test_inputs_are_made_by_kind_and_shape(tmp_path: Path) -> None:
    path = tmp_path / "more.safetensors"
    save_file({"given": torch.arange(4.0)}, path)
    batch = read_inputs(["ids=int50:3x7", "x=float:3x2", "mask=ones:3x7", str(path)])
    assert {name: tuple(one.shape) for name, one in batch.items()} == {
        "ids": (3, 7),
        "x": (3, 2),
        "mask": (3, 7),
        "given": (4,),
    }
    assert batch["ids"].dtype == torch.int64
    assert 10 <= batch["ids"].max() < 50
    assert 0 <= batch["x"].min() <= batch["x"].max() < 1
    assert batch["given"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("text", ["ids=int", "ids=whole:2x3", "ids=int:0x3", "ids=int:2x-3", "="])
def test_inputs_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="--input takes NAME=KIND:SHAPE"):
        read_inputs([text])


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read a batch from"):
        read_inputs([str(tmp_path / "none.safetensors")])


def test_other_networks_say_nothing_of_their_inputs() -> None:
    assert made_up(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama", {"input_ids": (2, 9), "attention_mask": (2, 9)}),
        ("vit", {"pixel_values": (2, 3, 16, 16)}),
        ("t5", {"input_ids": (2, 9), "attention_mask": (2, 9), "decoder_input_ids": (2, 9)}),
        (
            "llava clip",  # 16 patches
            {"input_ids": (2, 25), "attention_mask": (2, 25), "pixel_values": (2, 3, 16, 16)},
        ),
        (
            "smolvlm",  # four of them to a token
            {"input_ids": (2, 13), "attention_mask": (2, 13), "pixel_values": (2, 1, 3, 16, 16)},
        ),
    ],
)
def test_a_batch_for_transformers_is_found(name: str, sizes: dict[str, tuple[int, ...]]) -> None:
    pytest.importorskip("transformers")
    from tests.pruning.transformers_families import FAMILIES

    network = FAMILIES[name].build()
    batch = made_up(network, 9)
    assert batch is not None
    assert {field: tuple(one.shape) for field, one in batch.items()} == sizes
    network(**batch)
    if "attention_mask" in batch:
        assert batch["attention_mask"][:, -2:].tolist() == [[1, 1], [0, 0]]


def test_images_that_cannot_be_put_among_tokens_are_said() -> None:
    pytest.importorskip("transformers")
    from tests.pruning.transformers_families import FAMILIES

    with pytest.raises(InputError, match=r"no batch can be made up for Qwen2VL.* --input FILE"):
        made_up(FAMILIES["qwen2-vl"].build())
