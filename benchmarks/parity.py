"""Surgery against masking, family by family: the largest difference over sampled candidates.

Every network has random weights and batch-norm statistics and computes in double precision; all its
groups are pruned at once. ``python benchmarks/parity.py [candidates]``
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import nn

from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.walk import find_groups

FAMILIES: list[tuple[str, dict[str, object], tuple[int, int, int]]] = [
    ("lenet5-mini", {}, (1, 32, 32)),
    ("lenet5-mini", {"depth": 9}, (1, 32, 32)),
    ("lenet5-mini", {"activation": "identity"}, (1, 32, 32)),
    ("lenet5", {}, (1, 32, 32)),
    ("mlp", {"batch_norm": True}, (1, 32, 32)),
    ("vgg11", {"width": 0.25}, (3, 32, 32)),
    ("vgg19", {"width": 0.25}, (3, 32, 32)),
    ("resnet20", {}, (3, 32, 32)),
    ("resnet20", {"shortcut": "B"}, (3, 32, 32)),
    ("resnet56", {}, (3, 32, 32)),
    ("resnet18", {"width": 16}, (3, 64, 64)),
    ("resnet34", {"width": 16}, (3, 64, 64)),
    ("resnet50", {"width": 16}, (3, 64, 64)),
    ("vit-b-16", {"layers": 3, "heads": 4, "width": 48, "mlp": 96}, (3, 64, 64)),
]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    print(f"{count} candidates each, all groups at 0.5, batches of 4, float64")
    print(f"{'network':46} {'groups':>6} {'refused':>7} {'evaluation':>11} {'training':>11}")
    for name, arguments, shape in FAMILIES:
        torch.manual_seed(0)
        network = build(name, arguments, input_shape=shape, classes=10).double()
        shuffle(network)
        images = torch.randn(4, *shape, dtype=torch.float64)
        found = find_groups(network, images)
        candidates = list_candidates(found, {"*": 0.5}, count=count)
        worst = []
        for training in (False, True):
            network.train(training)
            differences = [
                largest_difference(network, candidates, index, images)
                for index in range(len(candidates))
            ]
            worst.append(max(differences))
        shown = f"{name} {arguments or ''}"
        print(
            f"{shown:46} {len(found.groups):6} {len(found.refused):7} "
            f"{worst[0]:11.1e} {worst[1]:11.1e}",
            flush=True,
        )


def largest_difference(network: nn.Module, candidates, index: int, images) -> float:  # type: ignore[no-untyped-def]
    """Of the logits, relative to the largest one."""
    pruned = candidates.prune(network, index)
    dense = copy.deepcopy(network)  # batch norms in training mode change
    with torch.no_grad(), masked(dense, candidates.groups, candidates.kept(index)) as zeroed:
        expected = zeroed(images)
        return float((pruned(images) - expected).abs().max() / expected.abs().max())


def shuffle(network: nn.Module) -> None:
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm):
                module.weight.uniform_(0.5, 2)
                module.bias.normal_(std=0.5)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        for parameter in network.parameters():  # a vision transformer's head begins at zero
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


if __name__ == "__main__":
    main()
