"""The shipped bench: every proper subset of a layer's filters, pruned and retrained. No torch.

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

from trueoracle.analysis.outcomes import default_outcomes, find_outcome, shared_outcomes
from trueoracle.analysis.table import CandidateTable
from trueoracle.errors import StoreError, first_line
from trueoracle.files import parse_json
from trueoracle.tasks.metric import CLASSIFICATION
from trueoracle.trust import note_code

__all__ = ["DATA", "GRID", "METRICS", "Bench", "BenchStudy", "dense_file", "read_bench", "ways_of"]

GRID = "lenet5-mini-bench"
"""The grid of studies that the bench is made of."""

DATA = Path(__file__).parent / "data"
METRICS = CLASSIFICATION
"""The metrics that the bench's studies measure."""

KEYS = ["network", "layer", "pruned"]


def dense_file(network: int, folder: Path = DATA) -> Path:
    """The file of a dense network's weights, by the seed that the network was trained with."""
    return folder / f"dense-seed-{network}.safetensors"


def ways_of(pruned: np.ndarray) -> list[tuple[int, ...]]:
    """The pruned filters, ascending, of each bit mask, in which bit i stands for filter i."""
    return [
        tuple(i for i in range(mask.bit_length()) if mask >> i & 1) for mask in map(int, pruned)
    ]


@dataclass(frozen=True, eq=False)
class BenchStudy:
    """One study of the grid: all ways to prune so many filters of a layer of one dense network.

    ``rows`` are the study's rows of the bench; ``ratio`` is the pruned share of the ``filters``.
    """

    network: int
    layer: str
    ratio: float
    filters: int
    rows: np.ndarray

    @property
    def name(self) -> str:
        """The name under which the study was recorded."""
        return f"{GRID}+seed-{self.network}+layers-{self.layer}-{self.ratio:g}"


@dataclass(frozen=True, eq=False)
class Bench:
    """R pruned networks and what became of them.

    - ``keys``: one row per pruned network: ``network`` (the seed of the dense one), ``layer`` and
      ``pruned`` (a bit mask);
    - ``epochs``: one row per pruned network, retraining seed and epoch, with the metrics;
    - ``scores``: those of the shipped criteria, ``[R]`` each;
    - ``card``: how the bench was made.
    """

    keys: pd.DataFrame
    epochs: pd.DataFrame
    scores: Mapping[str, np.ndarray]
    card: dict[str, Any]

    @cached_property
    def studies(self) -> list[BenchStudy]:
        """The studies, by network, layer and number of pruned filters."""
        counts = self.keys["pruned"].map(int.bit_count)
        filters = self.keys.groupby("layer")["pruned"].max().map(int.bit_length)
        places = self.keys.assign(count=counts, row=np.arange(len(self.keys)))
        made = []
        for _, some in places.groupby(["network", "layer", "count"], sort=True):
            first = some.iloc[0]
            size = int(filters[first["layer"]])
            made.append(
                BenchStudy(
                    network=int(first["network"]),
                    layer=str(first["layer"]),
                    ratio=int(first["count"]) / size,
                    filters=size,
                    rows=some["row"].to_numpy(),
                )
            )
        return made

    @property
    def networks(self) -> list[int]:
        """The seeds of the dense networks."""
        return sorted(map(int, self.keys["network"].unique()))

    def outcomes(self, column: str) -> np.ndarray:
        """The last epoch's value ``[R, S]`` of a metric's column, by seed."""
        wide = shared_outcomes(self.epochs, find_outcome(METRICS, column))
        outcomes: np.ndarray = wide.reindex(range(len(self.keys))).to_numpy(dtype=np.float64)
        return outcomes

    def table(self, study: BenchStudy, column: str) -> CandidateTable:
        """One study in the form that the statistics read, with all scores."""
        rows = study.rows
        masks = self.keys["pruned"].to_numpy()[rows]
        bits = masks[:, None] >> np.arange(study.filters) & 1
        return CandidateTable(
            outcomes=self._outcomes[column][rows],
            scores={name: column[rows] for name, column in self.scores.items()},
            higher_is_better=find_outcome(METRICS, column).higher_is_better,
            pruned=bits.astype(bool),
            groups=(study.filters,),
        )

    @cached_property
    def _outcomes(self) -> dict[str, np.ndarray]:
        return {column: self.outcomes(column) for column in default_outcomes(METRICS)}


def read_bench(folder: Path = DATA) -> Bench:
    """Read the bench; raises :class:`StoreError` where it cannot be read."""
    try:
        epochs = pd.read_parquet(folder / "outcomes.parquet")
        scores = pd.read_parquet(folder / "scores.parquet")
        card = parse_json((folder / "card.json").read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"the bench of {GRID} cannot be read: {first_line(error)}") from error
    keys = scores[KEYS].reset_index(drop=True)
    names = [name for name in scores.columns if name not in KEYS]
    if folder != DATA:
        note_code(folder, {"criteria": names})
    numbered = keys.assign(candidate=np.arange(len(keys)))
    epochs = epochs.merge(numbered, on=KEYS).drop(columns=KEYS)
    columns = {name: scores[name].to_numpy(dtype=np.float64) for name in names}
    return Bench(keys, epochs, columns, card)
