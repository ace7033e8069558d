from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks.costs import count
from trueoracle.errors import InputError
from trueoracle.networks.registry import build
from trueoracle.networks.tracing import trace

TINY = {"patch": 8, "layers": 3, "heads": 4, "width": 52, "mlp": 71}


def test_vit_b_16_has_its_known_size() -> None:
    tokens, width, mlp, layers = 14 * 14 + 1, 768, 3072, 12
    patches = 196 * 3 * 16**2 * width
    linear = tokens * (3 * width**2 + width**2 + 2 * width * mlp)
    products = 2 * tokens**2 * width  # queries with keys, and what they find with values
    macs = patches + layers * (linear + products) + width * 1000
    assert macs == 17_563_828_224
    assert macs - layers * products == 16_848_500_736  # what counters see that miss attention's
    assert count("vit-b-16", (3, 224, 224), 1000) == (86_567_656, macs)


def test_nothing_computes_with_a_fixed_width_or_number_of_heads() -> None:
    network = build("vit-b-16", TINY, input_shape=(3, 32, 32), classes=10)
    code = trace(network).code
    assert "self_attention" in code
    for number in (52, 4, 13, 71, 17):  # width, heads, a head's width, hidden units, tokens
        assert f" {number}" not in code
        assert f"({number}" not in code


def test_it_takes_images_that_are_no_squares() -> None:
    network = build("vit-b-16", TINY, input_shape=(1, 16, 40), classes=3)
    assert network.get_parameter("encoder.pos_embedding").shape == (1, 2 * 5 + 1, 52)
    assert network(torch.zeros(2, 1, 16, 40)).shape == (2, 3)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    network = build("vit-b-16", TINY | {"dropout": 0.5}, input_shape=(1, 32, 32), classes=3)
    nn.init.normal_(network.get_parameter("heads.head.weight"))
    images = torch.randn(2, 1, 32, 32)
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": 5}, "images of 32x32 do not divide into patches of 5"),
        ({"width": 50}, "4 heads do not divide a width of 50"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"depth": 3}, "unknown argument of network 'vit-b-16' 'depth'"),
    ],
)
def test_what_cannot_be_built_is_said(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("vit-b-16", TINY | arguments, input_shape=(3, 32, 32), classes=10)


def test_it_is_torchvisions() -> None:
    """The same first weights from a seed, and with them the same answers."""
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs = models.VisionTransformer(
        image_size=32,
        patch_size=8,
        num_layers=3,
        num_heads=4,
        hidden_dim=52,
        mlp_dim=71,
        num_classes=10,
    )
    torch.manual_seed(0)
    ours = build("vit-b-16", TINY, input_shape=(3, 32, 32), classes=10)
    expected = theirs.state_dict()
    assert sorted(ours.state_dict()) == sorted(expected)
    assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 32, 32)
    for training in (False, True):
        with torch.no_grad():
            found, wanted = ours.train(training)(images), theirs.train(training)(images)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_torchvisions_vit_b_16_has_these_tensors_and_dropouts() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        theirs = models.vit_b_16(dropout=0.1)
        ours = build("vit-b-16", {"dropout": 0.1}, input_shape=(3, 224, 224), classes=1000)
    assert {n: v.shape for n, v in ours.state_dict().items()} == {
        n: v.shape for n, v in theirs.state_dict().items()
    }
    drops = [
        {name: m.p for name, m in network.named_modules() if isinstance(m, nn.Dropout)}
        for network in (ours, theirs)
    ]
    assert drops[0] == drops[1]
