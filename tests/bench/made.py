"""A bench of imaginary networks of which all is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from trueoracle.bench.table import Bench

FAMILY, FILTERS, BLOCKS, CANDIDATES = "glyphs-10", 12, 4, 24


def made_bench(
    families: Mapping[str, float] | None = None, *, networks: int = 4, good: float = 0.5
) -> Bench:
    """Dense networks whose candidates are worth what their filters are.

    ``families`` has for each the noise that is added to the score ``good``, beside filters' worths
    of variance 1. ``oracle`` is half noise, ``random`` knows nothing.
    """
    given = {FAMILY: good} if families is None else families
    generator = np.random.default_rng(0)
    keys, values, sums, scores = [], [], [], []
    for family, noise in given.items():
        for network in range(networks):
            for layer in ("fc1", "fc2"):
                worth = generator.normal(size=FILTERS)
                seen = worth + noise * generator.normal(size=FILTERS)
                for count in (3, 6):
                    drawn = generator.random((10 * CANDIDATES, FILTERS)).argsort(axis=1) < count
                    known = np.unique(drawn, axis=0) @ (1 << np.arange(FILTERS))
                    masks = np.sort(generator.permutation(known)[:CANDIDATES])
                    ways = masks[:, None] >> np.arange(FILTERS) & 1
                    keys += [(family, network, layer, mask) for mask in masks]
                    shape = (CANDIDATES, 2, BLOCKS)
                    blocks = ways @ worth + 0.3 * generator.normal(size=shape).transpose(1, 2, 0)
                    sums.append(10 * blocks.transpose(2, 0, 1))
                    values.append(sums[-1].sum(axis=2) / (10 * BLOCKS))
                    noisy = ways @ (worth + generator.normal(size=FILTERS))
                    scores.append(
                        np.stack([noisy, ways @ seen, generator.random(CANDIDATES)], axis=1)
                    )
    loss, by_block, columns = (np.concatenate(one) for one in (values, sums, scores))
    card = {
        "seeds": 2,
        "families": {family: {"filters": {"fc1": FILTERS, "fc2": FILTERS}} for family in given},
    }
    return Bench(
        pd.DataFrame(keys, columns=["family", "network", "layer", "pruned"]),
        {"test_loss": loss, "test_accuracy": -loss},
        {"test_loss": by_block, "test_accuracy": -by_block},
        {family: np.full(BLOCKS, 10) for family in given},
        dict(zip(["oracle", "good", "random"], columns.T, strict=True)),
        card,
    )
