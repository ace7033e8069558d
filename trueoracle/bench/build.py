"""Makes the shipped bench, or adds to it, from recorded runs.

    python -m trueoracle.bench.build --start RUNS     # the bench's dense networks, to go on from
    trueoracle run bench-digits --runs RUNS           # any of its grids, or single points
    python -m trueoracle.bench.build RUNS             # what is finished joins the bench

A dense network joins when all of its points are finished, if its family then has three or more.
Scores are written after each criterion, those first that took least before: the same command goes
on from what was killed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open
from safetensors.torch import load_file

from trueoracle.analysis.jackknife import LEAST_NETWORKS
from trueoracle.analysis.outcomes import default_outcomes
from trueoracle.bench.scoring import Material, score_bench
from trueoracle.bench.table import (
    BLOCKS,
    CARD,
    DATA,
    FAMILIES,
    KEYS,
    METRICS,
    OUTCOMES,
    SCORES,
    Bench,
    dense_file,
    grid_of,
    read_bench,
)
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
from trueoracle.tasks.metric import columns_of

_COLUMNS = columns_of(METRICS)

__all__ = ["build", "recorded", "start"]

Point = tuple[str, Variant, Results]
"""A study of a family, and what is recorded of it."""


def recorded(runs: Path, onto: Path | None = None) -> list[Point]:
    """The points below ``runs`` of dense networks with all points finished, family by family.

    A family that with them has fewer networks, those of the bench in ``onto`` included, than
    :data:`~trueoracle.analysis.jackknife.LEAST_NETWORKS` says nothing of other networks and is
    left out.
    """
    held = {} if onto is None else read_bench(onto).card["families"]
    found: list[Point] = []
    for family in FAMILIES:
        networks: dict[int, list[Variant]] = {}
        for point in variants(grid_of(family)):
            networks.setdefault(point.spec.dense.seed, []).append(point)
        whole = {seed: made for seed, one in networks.items() if (made := _finished(one, runs))}
        had = map(int, held[family]["dense"]) if family in held else ()
        if len({*whole, *had}) >= LEAST_NETWORKS:
            found += [(family, *one) for made in whole.values() for one in made]
    return found


def _finished(points: Sequence[Variant], runs: Path) -> list[tuple[Variant, Results]]:
    """The points with what is recorded of them; empty where one is not finished."""
    folders = [runs / point.spec.folder_name for point in points]
    if not all((folder / DATABASE).is_file() for folder in folders):
        return []
    results = [Results(folder) for folder in folders]
    return list(zip(points, results, strict=True)) if all(r.finished for r in results) else []


def start(runs: Path, progress: Progress, source: Path = DATA) -> None:
    """Begin the grids in ``runs`` with the dense networks of the bench in ``source``.

    The same seed can give another dense network on another machine, since training is not the same
    there to the bit. Raises :class:`InputError` where ``runs`` holds another one already.
    """
    for family, about in read_bench(source).card["families"].items():
        for network, facts in about["dense"].items():
            points = variants(grid_of(family))
            spec = next(one.spec for one in points if one.spec.dense.seed == int(network))
            folder = runs / spec.folder_name
            with locked(folder, patience=1.0), Store(folder) as store:
                before = store.dense()
                if before is not None and before["sha256"] != facts["sha256"]:
                    raise InputError(f"{folder} holds another dense network than the bench's")
                if before is None:
                    file = dense_file(family, int(network), source)
                    metadata: Any = read_metadata(file)
                    # The digest is of fields and format, and the file may be older than these.
                    said = metadata | {"dense_digest": spec.dense_digest}
                    told = {name: json.dumps(value) for name, value in said.items()}
                    sha256 = write_tensors(load_file(file), folder / DENSE, told)
                    store.record_task("classification", METRICS)
                    store.record_dense(
                        facts["sha256"],
                        metadata["architecture"],
                        "adopted",
                        0.0,
                        {name: facts[name] for name in _COLUMNS},
                        metadata["epochs"],
                        sha256,
                    )
            score(prepare(spec, device="cpu"), folder, progress, criteria=())


def build(
    points: Sequence[Point],
    out: Path,
    progress: Progress,
    criteria: Sequence[str] | None = None,
    *,
    onto: Path | None = None,
    rescore: Collection[str] = (),
) -> None:
    """Write the bench's files to ``out``: outcomes, blocks, scores, dense weights and card.

    ``criteria`` are by default all registered ones, and those with parameters that the bench had
    before; those that apply to no network are left out. ``onto`` is the folder of a smaller bench
    (possibly ``out``), which the points join. Studies of that bench are not taken again, and
    they are scored again only by criteria whose version has changed and by those in ``rescore``.
    Raises :class:`InputError` where there is nothing to do, where a point was pruned from another
    dense network than the bench's of the same seed, and where one has no blocks of examples.
    """
    for name in rescore:
        if name not in CRITERIA:
            raise unknown("criterion", name, CRITERIA)
    before = None if onto is None else read_bench(onto)
    if before is None and rescore:
        raise InputError("a bench made anew is scored anew: leave --rescore out")
    told: dict[str, Any] = {} if before is None else before.card
    if before is not None:
        points = _new_points(points, before)
        rescore = {*rescore, *_outdated(before)}
    if not points and not rescore and not told.get("unscored"):
        which = "finished" if before is None else "finished and not in the bench yet"
        grids = ", ".join(map(grid_of, FAMILIES))
        raise InputError(f"no point of the bench is {which}: trueoracle run records them ({grids})")
    for _, _, results in points:
        check_dense_file(results.folder, results.dense or {})
    parts = [_rows(*point) for point in points]
    files = {(f, point.spec.dense.seed): results.folder / DENSE for f, point, results in points}
    if onto is not None and before is not None:
        files |= {one.dense: dense_file(*one.dense, onto) for one in before.studies}
        parts.append((pd.read_parquet(onto / OUTCOMES), pd.read_parquet(onto / BLOCKS)))
    out.mkdir(parents=True, exist_ok=True)
    for dense, file in files.items():
        if file != dense_file(*dense, out):
            write_bytes(dense_file(*dense, out), file.read_bytes())
    outcomes = pd.concat([one for one, _ in parts], ignore_index=True)
    blocks = pd.concat([one for _, one in parts], ignore_index=True)
    order = outcomes.sort_values([*KEYS, "seed"], kind="stable").index
    outcomes, blocks = outcomes.loc[order], blocks.loc[order]
    keys = outcomes[KEYS].drop_duplicates().reset_index(drop=True)
    had = [] if before is None else [name for name in before.scores if name not in CRITERIA]
    seconds: dict[str, float] = dict(told.get("seconds_to_score", {}))
    shipped = read_bench()
    took = {name: shipped.card["seconds_to_score"][name] for name in shipped.scores}
    names = sorted(criteria or [*CRITERIA, *had], key=lambda name: took.get(name, math.inf))
    bench = Bench(keys, {}, {}, {}, {}, _card(points, outcomes, told))
    columns = {name: _known(bench, name, None if name in rescore else before) for name in names}
    _write(outcomes, out / OUTCOMES)
    _write(blocks, out / BLOCKS)
    _write_scores(bench, columns, out, seconds, names)
    material: Material = {}
    for number, name in enumerate(names, start=1):
        started = time.perf_counter()
        left = [one for one in bench.studies if np.isnan(columns[name][one.rows]).any()]
        if left:
            fresh = score_bench(find_criterion(name), bench, progress, left, out, material)
            columns[name] = np.where(np.isnan(columns[name]), fresh, columns[name])
        seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - started, 1)
        _write_scores(bench, columns, out, seconds, names[number:])


def _write_scores(
    bench: Bench,
    columns: Mapping[str, np.ndarray],
    out: Path,
    seconds: Mapping[str, float],
    unscored: Sequence[str],
) -> None:
    known = {name: column for name, column in columns.items() if np.isfinite(column).any()}
    _write(bench.keys.assign(**known), out / SCORES)
    card = bench.card | {
        "seconds_to_score": seconds,
        "criteria": {name: find_criterion(name).fingerprint for name in known},
        "unscored": list(unscored),
    }
    write_text(out / CARD, json.dumps(card, indent=2) + "\n")


def _write(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as Parquet; splitting floats into bytes makes the bench smaller by a third."""
    # Columns of few different values (keys, shares of examples) are smaller as dictionaries.
    split = [
        name
        for name in frame
        if name not in KEYS and frame[name].dtype.kind == "f" and "accuracy" not in str(name)
    ]
    with replacing(path) as draft:
        frame.to_parquet(
            draft,
            index=False,
            compression="zstd",
            compression_level=19,
            use_dictionary=[name for name in frame if name not in split],
            use_byte_stream_split=split,
        )


def _new_points(points: Sequence[Point], before: Bench) -> list[Point]:
    """The points that a bench lacks; all points must prune the bench's dense networks."""
    held = {study.name for study in before.studies}
    for family, point, results in points:
        seed = point.spec.dense.seed
        dense = before.card["families"].get(family, {"dense": {}})["dense"]
        known = dense.get(str(seed), {}).get("sha256")
        if results.dense is not None and known not in (None, results.dense["sha256"]):
            raise InputError(
                f"{results.folder.name} prunes another dense network of seed {seed} than the "
                "bench does: begin with --start, or make the bench --anew"
            )
    return [one for one in points if one[1].spec.name not in held]


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


def _rows(family: str, point: Variant, results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Outcomes and their sums by block: one row per candidate and seed.

    float32 holds losses to seven digits.
    """
    ((layer, _),) = point.spec.pruning.layers.items()
    masks = [sum(1 << one for one in way[layer]) for way in results.candidates["pruned"]]
    tables = {name: results.table(name, criteria=()) for name in _COLUMNS}
    size, seeds = len(masks), next(iter(tables.values())).seeds
    outcomes = pd.DataFrame(
        {
            "family": family,
            "network": np.full(size * seeds, point.spec.dense.seed, dtype=np.int16),
            "layer": layer,
            "pruned": np.repeat(np.array(masks, dtype=np.int16), seeds),
            "seed": np.tile(np.array(point.spec.retraining.seeds, dtype=np.int16), size),
            **{name: one.outcomes.ravel().astype(np.float32) for name, one in tables.items()},
        }
    )
    by_block: dict[str, np.ndarray] = {}
    for name in default_outcomes(METRICS):
        blocks = tables[name].blocks
        if blocks is None:
            raise InputError(f"{results.folder.name} has no outcomes by blocks of examples")
        sums = blocks.sums.reshape(size * seeds, -1).astype(np.float32)
        by_block |= {f"{name} {number}": sums[:, number] for number in range(len(blocks))}
    return outcomes, pd.DataFrame(by_block)


def _card(
    points: Sequence[Point], outcomes: pd.DataFrame, before: Mapping[str, Any]
) -> dict[str, Any]:
    sittings = [sitting for _, _, results in points for sitting in results.provenance]
    trained = sum(float(results.retrainings["seconds"].sum()) for _, _, results in points)
    families = {name: dict(about) for name, about in before.get("families", {}).items()}
    for family, point, results in points:
        about = families.setdefault(
            family,
            {
                "grid": grid_of(family),
                "purpose": point.spec.purpose,
                "filters": {},
                "blocks": _counts(results),
                "dense": {},
            },
        )
        ((layer, _),) = point.spec.pruning.layers.items()
        about["filters"] |= {layer: _width(results.folder / DENSE, layer)}
        dense = results.dense or {}
        facts = {name: dense[name] for name in ("sha256", *_COLUMNS) if name in dense}
        about["dense"] |= {str(point.spec.dense.seed): facts}
    began = [one["started"] for one in (*sittings, before) if one]
    ended = [one["ended"] or one["started"] for one in (*sittings, before) if one]
    versions = {
        f"trueoracle {s['trueoracle']}, torch {s['torch']}, Python {s['python']}" for s in sittings
    }
    engines = {str(s["engine"]) for s in sittings if "engine" in s}
    return {
        "version": 2,
        "families": families,
        "seeds": int(outcomes["seed"].nunique()),
        "pruned_networks": len(outcomes[KEYS].drop_duplicates()),
        "retrained_networks": len(outcomes),
        "retraining_seconds": round(before.get("retraining_seconds", 0) + trained),
        "started": min(began),
        "ended": max(ended),
        "engines": sorted(engines | set(before.get("engines", ()))),
        "versions": sorted(versions | set(before.get("versions", ()))),
    }


def _width(dense: Path, layer: str) -> int:
    """The number of a layer's filters; some may be pruned by no candidate."""
    with safe_open(dense, framework="np") as file:
        return int(file.get_slice(f"{layer}.weight").get_shape()[0])


def _counts(results: Results) -> list[int]:
    """The examples of each block of the test split."""
    blocks = results.table(default_outcomes(METRICS)[0], criteria=()).blocks
    return [] if blocks is None else [int(one) for one in blocks.counts]


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
        points = recorded(given.runs, onto)
        build(points, given.out, PlainProgress(), onto=onto, rescore=given.rescore)
    except TrueOracleError as error:
        parser.exit(error.exit_code, f"error: {error}\n")


if __name__ == "__main__":
    main()
