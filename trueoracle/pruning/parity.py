"""Trying the surgery on a few candidates, before a study rests on it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trueoracle.errors import InputError, first_line
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.surgery import prune

__all__ = ["check_parity"]

TOLERANCE = 1e-3
"""Of the largest output; float32 rounding stays far below, a channel wired wrongly far above."""


def check_parity(dense: nn.Module, candidates: Candidates, example: Tensor) -> None:
    """Check that exact surgery equals masking, and that the pruned networks train.

    ``example`` is a batch ``[N, C, H, W]``, N at least 2. The first, middle and last candidate are
    tried. Raises :class:`InputError` naming the layers: a network that computes with its channels
    in a way that tracing does not show is noticed here, and not after hours.
    """
    layers = ", ".join(group.name for group in candidates.groups)
    network = copy.deepcopy(dense).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():  # so that no layer is zero and hides what it reads
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        if not torch.equal(network(example), network(example)):
            raise InputError(
                "the network gives different answers to the same images in evaluation mode "
                "(a dropout without training=self.training?)"
            )
    for index in sorted({0, len(candidates) // 2, len(candidates) - 1}):
        kept = candidates.kept(index)
        try:
            with torch.no_grad():
                found = prune(network, candidates.groups, kept)(example)
                with masked(network, candidates.groups, kept) as zeroed:
                    expected = zeroed(example)
            candidates.prune(dense, index).train()(example).sum().backward()
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"the network does not run once {layers} are pruned: {first_line(error)}"
            ) from error
        difference = float((found - expected).abs().max())
        if not difference <= TOLERANCE * (1e-6 + float(expected.abs().max())):
            raise InputError(
                f"removing filters of {layers} is not the same as zeroing them (outputs differ by "
                f"{difference:.2g}): the network uses these channels elsewhere, so they cannot be "
                "pruned"
            )
