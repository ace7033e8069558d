"""Makes the shipped bench, or adds to it, from recorded runs.

    python -m trueoracle.bench.build --start RUNS     # the bench's dense networks, to go on from
    trueoracle run lenet5-mini-bench --runs RUNS      # or single points of it
    python -m trueoracle.bench.build RUNS             # what is finished joins the bench

Points that are not finished are left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from trueoracle.bench.scoring import score_bench
from trueoracle.bench.table import DATA, GRID, KEYS, METRICS, Bench, dense_file, read_bench
from trueoracle.criteria.base import CRITERIA, find_criterion
from trueoracle.errors import InputError, TrueOracleError, unknown
from trueoracle.files import replacing, write_bytes, write_text
from trueoracle.networks.weights import read_metadata, write_tensors
from trueoracle.record.lock import locked
from trueoracle.record.paths import DATABASE, DENSE
from trueoracle.record.results import Results
from trueoracle.record.store import Store
from trueoracle.run.dense import check_dense_file
from trueoracle.run.prepare import prepare
from trueoracle.run.progress import PlainProgress, Progress
from trueoracle.run.runner import score
from trueoracle.spec.grid import Variant, variants
from trueoracle.tasks.metric import SPLITS, columns_of

_COLUMNS = columns_of(METRICS)

__all__ = ["build", "recorded", "start"]


def recorded(runs: Path) -> list[tuple[Variant, Results]]:
    """The finished points of the grid below ``runs``."""
    found = []
    for point in variants(GRID):
        folder = runs / point.spec.folder_name
        if (folder / DATABASE).is_file() and (results := Results(folder)).finished:
            found.append((point, results))
    return found


def start(runs: Path, progress: Progress, source: Path = DATA) -> None:
    """Begin the grid in ``runs`` with the dense networks of the bench in ``source``.

    The same seed can give another dense network on another machine, since training is not the same
    there to the bit. Raises :class:`InputError` where ``runs`` holds another one already.
    """
    for network, facts in read_bench(source).card["dense"].items():
        spec = next(one.spec for one in variants(GRID) if one.spec.dense.seed == int(network))
        folder = runs / spec.folder_name
        with locked(folder, patience=1.0), Store(folder) as store:
            recorded = store.dense()
            if recorded is not None and recorded["sha256"] != facts["sha256"]:
                raise InputError(f"{folder} holds another dense network than the bench's")
            if recorded is None:
                file = dense_file(int(network), source)
                metadata: Any = read_metadata(file)
                # The digest covers fields and format, and the file may be older than these.
                said = metadata | {"dense_digest": spec.dense_digest}
                told = {name: json.dumps(value) for name, value in said.items()}
                sha256 = write_tensors(load_file(file), folder / DENSE, told)
                store.record_task("classification", METRICS)
                metrics = {name: facts[name] for name in _COLUMNS}
                store.record_dense(
                    facts["sha256"],
                    metadata["architecture"],
                    "adopted",
                    0.0,
                    metrics,
                    metadata["epochs"],
                    sha256,
                )
        score(prepare(spec, device="cpu"), folder, progress, criteria=())


def build(
    points: Sequence[tuple[Variant, Results]],
    out: Path,
    progress: Progress,
    criteria: Sequence[str] | None = None,
    *,
    onto: Path | None = None,
    rescore: Collection[str] = (),
) -> None:
    """Write the bench's files to ``out``: outcomes, scores, dense weights and card.

    ``criteria`` are by default all registered ones, and those with parameters that the bench had
    before; those that do not apply to the network are left out. ``onto`` is the folder of a smaller
    bench (possibly ``out``), which the points join. Networks of that bench are not taken again, and
    they are scored again only by criteria whose version has changed and by those in ``rescore``.
    Raises :class:`InputError` where there is nothing to do, and where a point was pruned from
    another dense network than the bench's of the same seed.
    """
    for name in rescore:
        if name not in CRITERIA:
            raise unknown("criterion", name, CRITERIA)
    before = None if onto is None else read_bench(onto)
    if before is None and rescore:
        raise InputError("a bench made anew is scored anew: leave --rescore out")
    if before is not None:
        points = _new_points(points, before)
        rescore = {*rescore, *_outdated(before)}
    if not points and not (before and rescore):
        which = "finished" if before is None else "finished and not in the bench yet"
        raise InputError(f"no point of {GRID} is {which}: trueoracle run {GRID} records them")
    out.mkdir(parents=True, exist_ok=True)
    files = {point.spec.dense.seed: results.folder / DENSE for point, results in points}
    if onto is not None and before is not None:
        files |= {network: dense_file(network, onto) for network in before.networks}
    for _, results in points:
        check_dense_file(results.folder, results.dense or {})
    for network, file in files.items():
        if file != dense_file(network, out):
            write_bytes(dense_file(network, out), file.read_bytes())
    known = [] if before is None else [before.epochs.join(before.keys, on="candidate")]
    epochs = pd.concat([*known, *(_epochs(*one) for one in points)], ignore_index=True)
    epochs = epochs[[*KEYS, "seed", "epoch", *_COLUMNS]]
    epochs = epochs.sort_values(["network", "layer"], kind="stable", ignore_index=True)
    keys = epochs[KEYS].drop_duplicates().reset_index(drop=True)
    bench = Bench(keys, epochs, {}, {})
    scores, seconds = keys.copy(), {}
    had = [] if before is None else [name for name in before.scores if name not in CRITERIA]
    for name in criteria or [*CRITERIA, *had]:
        started = time.perf_counter()
        column = _known(bench, name, None if name in rescore else before)
        left = [one for one in bench.studies if np.isnan(column[one.rows]).any()]
        if left:
            fresh = score_bench(find_criterion(name), bench, progress, left, folder=out)
            column = np.where(np.isnan(column), fresh, column)
        spent = time.perf_counter() - started
        if before is not None and name not in rescore:
            spent += before.card["seconds_to_score"].get(name, 0.0)
        seconds[name] = round(spent, 1)
        if np.isfinite(column).any():
            scores[name] = column
    # Files are written once all is scored; until then an earlier bench stays as it was.
    _write(epochs, out / "outcomes.parquet")
    _write(scores, out / "scores.parquet")
    seeds = int(epochs["seed"].nunique())
    card = _card(points, keys, seeds, seconds, {} if before is None else before.card)
    named = [str(name) for name in scores if name not in KEYS]
    card["criteria"] = {name: find_criterion(name).fingerprint for name in named}
    write_text(out / "card.json", json.dumps(card, indent=2) + "\n")


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet; splitting floats into bytes makes the bench smaller by a third."""
    # Columns of few different values (keys, shares of examples) are smaller as dictionaries.
    shares = {f"{split}_{m.name}" for split in SPLITS for m in METRICS if m.is_share}
    split = [name for name in frame if name not in KEYS and name not in shares]
    split = [name for name in split if frame[name].dtype.kind == "f"]
    with replacing(path) as draft:
        frame.to_parquet(
            draft,
            index=False,
            compression="zstd",
            compression_level=19,
            use_dictionary=[name for name in frame if name not in split],
            use_byte_stream_split=split,
        )


def _new_points(
    points: Sequence[tuple[Variant, Results]], before: Bench
) -> list[tuple[Variant, Results]]:
    """The points that a bench lacks; all points must prune the bench's dense networks."""
    held = {study.name for study in before.studies}
    for point, results in points:
        network = str(point.spec.dense.seed)
        known = before.card["dense"].get(network, {}).get("sha256")
        if results.dense is not None and known not in (None, results.dense["sha256"]):
            raise InputError(
                f"{results.folder.name} prunes another dense network of seed {network} than the "
                "bench does: begin with --start, or make the bench --anew"
            )
    return [(point, results) for point, results in points if point.spec.name not in held]


def _outdated(before: Bench) -> list[str]:
    """The criteria whose scores in a bench are of another version."""
    versions = before.card.get("criteria", {})
    return [
        name for name in before.scores if versions.get(name) != find_criterion(name).fingerprint
    ]


def _known(bench: Bench, name: str, before: Bench | None) -> np.ndarray:
    """The scores ``[R]`` that another bench has for the same networks; NaN for other networks."""
    if before is None or name not in before.scores:
        return np.full(len(bench.keys), np.nan)
    scored = before.keys.assign(score=before.scores[name])
    merged = bench.keys.merge(scored, on=KEYS, how="left")
    known: np.ndarray = merged["score"].to_numpy(dtype=np.float64)
    return known


def _epochs(point: Variant, results: Results) -> pd.DataFrame:
    """One row per candidate, seed and epoch; float32 holds losses to seven digits."""
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
            **{metric: frame[metric].to_numpy(dtype=np.float32) for metric in _COLUMNS},
        }
    )


def _card(
    points: Sequence[tuple[Variant, Results]],
    keys: pd.DataFrame,
    seeds: int,
    seconds: dict[str, float],
    before: dict[str, Any],
) -> dict[str, Any]:
    sittings = [sitting for _, results in points for sitting in results.provenance]
    trained = sum(float(results.retrainings["seconds"].sum()) for _, results in points)
    dense = {
        str(point.spec.dense.seed): {
            name: results.dense[name] for name in ("sha256", *_COLUMNS) if name in results.dense
        }
        for point, results in points
        if results.dense is not None
    }
    networks = sorted(map(int, keys["network"].unique()))
    began = [one["started"] for one in (*sittings, before) if one]
    ended = [one["ended"] or one["started"] for one in (*sittings, before) if one]
    versions = {
        f"trueoracle {s['trueoracle']}, torch {s['torch']}, Python {s['python']}" for s in sittings
    }
    engines = {str(s["engine"]) for s in sittings if "engine" in s}
    return {
        "grid": GRID,
        "command": f"trueoracle run {GRID}+seed-NETWORK+layers-LAYER-RATIO",
        "points": sorted({one.name for one in Bench(keys, keys, {}, {}).studies}),
        "network": "LeNet5-Mini",
        "data": "5,000 embedded MNIST digits",
        "layers": {
            str(network): sorted(set(keys["layer"][keys["network"] == network]))
            for network in networks
        },
        "seeds": seeds,
        "pruned_networks": len(keys),
        "retrained_networks": len(keys) * seeds,
        "retraining_seconds": round(before.get("retraining_seconds", 0) + trained),
        "started": min(began),
        "ended": max(ended),
        "engines": sorted(engines | set(before.get("engines", ()))),
        "versions": sorted(versions | set(before.get("versions", ()))),
        "dense": before.get("dense", {}) | dense,
        "seconds_to_score": seconds,
    }


def main() -> None:
    """Build the bench from the runs named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the bench")
    parser.add_argument(
        "--start", action="store_true", help="only lay the bench's dense networks down in RUNS"
    )
    parser.add_argument(
        "--anew", action="store_true", help="leave out what the bench in --out holds already"
    )
    parser.add_argument(
        "--rescore", action="append", default=[], help="a criterion whose code has changed"
    )
    given = parser.parse_args()
    try:
        if given.start:
            start(given.runs, PlainProgress(), given.out)
            return
        onto = None if given.anew or not (given.out / "card.json").is_file() else given.out
        points = recorded(given.runs)
        build(points, given.out, PlainProgress(), onto=onto, rescore=given.rescore)
    except TrueOracleError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
