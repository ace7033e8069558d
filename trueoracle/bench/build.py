"""Makes the shipped table from recorded runs: ``python -m trueoracle.bench.build RUNS``.

The runs are those of ``trueoracle run lenet5-mini-bench --runs RUNS``; points that are not finished
are left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trueoracle.analysis.numbers import many
from trueoracle.analysis.outcomes import METRICS
from trueoracle.bench.scoring import score_bench
from trueoracle.bench.table import DATA, GRID, KEYS, Bench, dense_file, read_bench
from trueoracle.criteria.base import CRITERIA
from trueoracle.errors import InputError
from trueoracle.study.grid import GridPoint, expand
from trueoracle.study.progress import PlainProgress, Progress
from trueoracle.study.results import Results
from trueoracle.study.runner import DENSE
from trueoracle.study.store import DATABASE

__all__ = ["build", "recorded"]


def recorded(runs: Path) -> list[tuple[GridPoint, Results]]:
    """The finished points of the grid below ``runs``."""
    found = []
    for point in expand(GRID):
        folder = runs / point.spec.folder_name
        if (folder / DATABASE).is_file() and (results := Results(folder)).finished:
            found.append((point, results))
    return found


def build(
    points: Sequence[tuple[GridPoint, Results]],
    out: Path,
    progress: Progress,
    criteria: Sequence[str] | None = None,
    *,
    scored: Bench | None = None,
) -> None:
    """Write the table's files to ``out``: outcomes, scores, dense weights and card.

    ``criteria`` are all registered ones by default; those that do not apply to the network are left
    out. What a smaller table has ``scored`` already is taken from it. Raises :class:`InputError`
    where no point is finished.
    """
    if not points:
        raise InputError(f"no point of {GRID} is finished: trueoracle run {GRID} records them")
    out.mkdir(parents=True, exist_ok=True)
    for point, results in points:
        shutil.copyfile(results.folder / DENSE, dense_file(point.spec.dense.seed, out))
    epochs = pd.concat([_epochs(*one) for one in points], ignore_index=True)
    keys = epochs[KEYS].drop_duplicates().reset_index(drop=True)
    epochs.to_parquet(out / "outcomes.parquet", index=False, compression="zstd")
    bench = Bench(keys, epochs, {}, {})
    scores, seconds = keys.copy(), {}
    for name in criteria or list(CRITERIA):
        started = time.perf_counter()
        column = _known(bench, name, scored)
        left = [one for one in bench.settings if np.isnan(column[one.rows]).any()]
        if left:
            fresh = score_bench(CRITERIA[name], bench, progress, left, folder=out)
            column = np.where(np.isnan(column), fresh, column)
        spent = 0.0 if scored is None else scored.card["seconds_to_score"].get(name, 0.0)
        seconds[name] = round(spent + time.perf_counter() - started, 1)
        if np.isfinite(column).any():
            scores[name] = column
    scores.to_parquet(out / "scores.parquet", index=False, compression="zstd")
    card = _card(points, keys, seconds)
    (out / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def _known(bench: Bench, name: str, scored: Bench | None) -> np.ndarray:
    """The scores ``[R]`` that another table has of the same networks; NaN elsewhere."""
    if scored is None or name not in scored.scores:
        return np.full(len(bench.keys), np.nan)
    before = scored.keys.assign(score=scored.scores[name])
    merged = bench.keys.merge(before, on=KEYS, how="left")
    known: np.ndarray = merged["score"].to_numpy(dtype=np.float64)
    return known


def _epochs(point: GridPoint, results: Results) -> pd.DataFrame:
    """One row a candidate, seed and epoch; float32 holds losses to seven digits."""
    ((layer, _),) = point.spec.pruning.layers.items()
    masks = {
        candidate: sum(1 << filter_ for filter_ in pruned[layer])
        for candidate, pruned in zip(
            results.candidates["candidate"], results.candidates["pruned"], strict=True
        )
    }
    order = {candidate: place for place, candidate in enumerate(masks)}
    frame = results.outcomes.assign(place=results.outcomes["candidate"].map(order))
    frame = frame.sort_values(["place", "seed", "epoch"], kind="stable")
    return pd.DataFrame(
        {
            "network": np.full(len(frame), point.spec.dense.seed, dtype=np.int16),
            "layer": layer,
            "pruned": frame["candidate"].map(masks).to_numpy(dtype=np.int16),
            "seed": frame["seed"].to_numpy(dtype=np.int16),
            "epoch": frame["epoch"].to_numpy(dtype=np.int16),
            **{metric: frame[metric].to_numpy(dtype=np.float32) for metric in METRICS},
        }
    )


def _card(
    points: Sequence[tuple[GridPoint, Results]], keys: pd.DataFrame, seconds: dict[str, float]
) -> dict[str, Any]:
    first = points[0][0].spec
    sittings = [sitting for _, results in points for sitting in results.provenance]
    networks = sorted({point.spec.dense.seed for point, _ in points})
    dense = {
        point.spec.dense.seed: {
            name: results.dense[name] for name in ("sha256", *METRICS) if name in results.dense
        }
        for point, results in points
        if results.dense is not None
    }
    return {
        "grid": GRID,
        "command": f"trueoracle run {GRID}",
        "network": f"LeNet5-Mini ({many(len(networks), 'dense network')})",
        "data": "5,000 embedded MNIST digits",
        "layers": sorted(set(keys["layer"])),
        "seeds": len(first.retraining.seeds),
        "pruned_networks": len(keys),
        "retrained_networks": len(keys) * len(first.retraining.seeds),
        "retraining_seconds": round(
            sum(float(results.retrainings["seconds"].sum()) for _, results in points)
        ),
        "started": min(sitting["started"] for sitting in sittings),
        "ended": max(sitting["ended"] or sitting["started"] for sitting in sittings),
        "engines": sorted({str(s["engine"]) for s in sittings if "engine" in s}),
        "versions": sorted(
            {
                f"trueoracle {s['trueoracle']}, torch {s['torch']}, Python {s['python']}"
                for s in sittings
            }
        ),
        "dense": dense,
        "seconds_to_score": seconds,
    }


def main() -> None:
    """Build the table from the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument(
        "--scored", type=Path, help="folder of a smaller table, whose scores are taken over"
    )
    given = parser.parse_args()
    scored = None if given.scored is None else read_bench(given.scored)
    build(recorded(given.runs), given.out, PlainProgress(), scored=scored)


if __name__ == "__main__":
    main()
