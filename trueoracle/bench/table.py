"""The shipped bench: networks of several families, pruned and retrained once and for all. No torch.

The idea is that of NAS-Bench-101 for architectures (Ying et al. 2019, arXiv 1902.09635): retrain
once, and look up results from then on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trueoracle.analysis.outcomes import default_outcomes, find_outcome
from trueoracle.analysis.table import Blocks, CandidateTable
from trueoracle.errors import StoreError, first_line
from trueoracle.files import parse_json
from trueoracle.tasks.metric import CLASSIFICATION, columns_of
from trueoracle.trust import note_code

__all__ = [
    "DATA",
    "FAMILIES",
    "METRICS",
    "Bench",
    "BenchStudy",
    "dense_file",
    "grid_of",
    "read_bench",
    "ways_of",
]

FAMILIES = ("digits", "glyphs-10", "glyphs-62", "glyphs-62-underfit", "glyphs-mlp")
"""Networks that differ in nothing but the seed that they were trained with, by name."""

DATA = Path(__file__).parent / "data"
METRICS = CLASSIFICATION
"""The metrics that the bench's studies measure."""

KEYS = ["family", "network", "layer", "pruned"]
OUTCOMES, BLOCKS, SCORES, CARD = "outcomes.parquet", "blocks.parquet", "scores.parquet", "card.json"


def grid_of(family: str) -> str:
    """The grid of studies that a family is made of."""
    return f"bench-{family}"


def dense_file(family: str, network: int, folder: Path = DATA) -> Path:
    """The file of a dense network's weights, by the seed that the network was trained with."""
    return folder / f"dense-{family}-seed-{network}.safetensors"


def ways_of(pruned: np.ndarray) -> list[tuple[int, ...]]:
    """The pruned filters, ascending, of each bit mask, in which bit i stands for filter i."""
    return [
        tuple(i for i in range(mask.bit_length()) if mask >> i & 1) for mask in map(int, pruned)
    ]


@dataclass(frozen=True, eq=False)
class BenchStudy:
    """One study of a grid: sampled ways to prune so many filters of a layer of one dense network.

    ``rows`` are the study's rows of the bench; ``ratio`` is the pruned share of the ``filters``.
    """

    family: str
    network: int
    layer: str
    ratio: float
    filters: int
    rows: np.ndarray

    @property
    def name(self) -> str:
        """The name under which the study was recorded."""
        point = f"seed-{self.network}+layers-{self.layer}-{self.ratio:g}"
        return f"{grid_of(self.family)}+{point}"

    @property
    def dense(self) -> tuple[str, int]:
        """The dense network: its family, and its seed there."""
        return self.family, self.network


@dataclass(frozen=True, eq=False)
class Bench:
    """R pruned networks and what became of them.

    - ``keys``: one row per pruned network: ``family``, ``network`` (the seed of the dense one),
      ``layer`` and ``pruned`` (a bit mask);
    - ``outcomes``: those of the last epoch, ``[R, S]`` for each column of a metric;
    - ``blocks``: their sums ``[R, S, B]`` over blocks of the test examples, by column; ``counts``
      has the numbers of examples ``[B]`` of each family's blocks;
    - ``scores``: those of the shipped criteria, ``[R]`` each;
    - ``card``: how the bench was made.
    """

    keys: pd.DataFrame
    outcomes: Mapping[str, np.ndarray]
    blocks: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]
    scores: Mapping[str, np.ndarray]
    card: dict[str, Any]

    @cached_property
    def studies(self) -> list[BenchStudy]:
        """The studies, by family, network, layer and number of pruned filters."""
        counts = self.keys["pruned"].map(int.bit_count)
        places = self.keys.assign(count=counts, row=np.arange(len(self.keys)))
        made = []
        for _, some in places.groupby([*KEYS[:3], "count"], sort=True):
            family, network, layer, _, count, _ = some.iloc[0]
            size = int(self.card["families"][family]["filters"][layer])
            rows = some["row"].to_numpy()
            made.append(BenchStudy(family, int(network), layer, int(count) / size, size, rows))
        return made

    def table(self, study: BenchStudy, column: str) -> CandidateTable:
        """One study in the form that the statistics read, with all scores."""
        rows = study.rows
        masks = self.keys["pruned"].to_numpy()[rows]
        bits = masks[:, None] >> np.arange(study.filters) & 1
        blocks = self.blocks.get(column)
        return CandidateTable(
            outcomes=self.outcomes[column][rows],
            scores={name: column[rows] for name, column in self.scores.items()},
            higher_is_better=find_outcome(METRICS, column).higher_is_better,
            sampled=True,
            pruned=bits.astype(bool),
            groups=(study.filters,),
            blocks=None if blocks is None else Blocks(blocks[rows], self.counts[study.family]),
        )


def read_bench(folder: Path = DATA) -> Bench:
    """Read the bench; raises :class:`StoreError` where it cannot be read."""
    try:
        outcomes = pd.read_parquet(folder / OUTCOMES)
        blocks = pd.read_parquet(folder / BLOCKS)
        scores = pd.read_parquet(folder / SCORES)
        card = parse_json((folder / CARD).read_bytes())
        seeds, own = int(card["seeds"]), default_outcomes(METRICS)
        keys = scores[KEYS].reset_index(drop=True)
        if not outcomes[KEYS].iloc[::seeds].reset_index(drop=True).equals(keys):
            raise ValueError("its outcomes and scores are of other networks")
        names = [name for name in scores.columns if name not in KEYS]
        if folder != DATA:
            note_code(folder, {"criteria": names})
        return Bench(
            keys,
            {name: _by_seed(outcomes[name], seeds) for name in columns_of(METRICS)},
            {
                name: blocks[_block_columns(blocks, name)]
                .to_numpy(dtype=np.float64)
                .reshape(len(keys), seeds, -1)
                for name in own
            },
            {name: np.array(one["blocks"]) for name, one in card["families"].items()},
            {name: scores[name].to_numpy(dtype=np.float64) for name in names},
            card,
        )
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(f"the bench in {folder} cannot be read: {first_line(error)}") from error


def _by_seed(column: pd.Series, seeds: int) -> np.ndarray:
    values: np.ndarray = column.to_numpy(dtype=np.float64).reshape(-1, seeds)
    return values


def _block_columns(blocks: pd.DataFrame, name: str) -> list[str]:
    return [one for one in blocks.columns if one.startswith(f"{name} ")]
