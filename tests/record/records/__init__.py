"""Records that tests begin with: of earlier versions, kept so that they are still read."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trueoracle.record.networks import write_networks
from trueoracle.record.store import Retrained, Store
from trueoracle.spec.spec import StudySpec
from trueoracle.tasks.metric import SPLITS, Metric

__all__ = [
    "NOISES",
    "older_record",
    "stopped_early",
    "synthetic",
    "synthetic_networks",
    "with_diverged",
    "with_few",
    "without_seed",
]

NOISES = {"oracle": 0.05, "l1": 5.0, "random": 9.0}
"""How much noise each criterion of :func:`synthetic` adds to what it scores by."""


def older_record(runs: Path, version: int = 2) -> Path:
    """A copy below ``runs`` of a run of an earlier format.

    The second kept no checksums, the third named no metrics, the fourth had no blocks of examples,
    the fifth no failures. All are of the study of the fixture ``tiny_fields``. The second and the
    third were stopped while they retrained with the second seed, and have been searched with 50 %
    of the budget; the fourth and the fifth were stopped before the second seed. The folder has the
    name that the study has today.
    """
    (source,) = (Path(__file__).parent / f"format-{version}").iterdir()
    draft = runs / source.name
    shutil.copytree(source, draft)
    with Store(draft, read_only=True) as store:
        spec = StudySpec.model_validate(store.spec())
    return draft.rename(runs / spec.folder_name)


def stopped_early(folder: Path) -> None:
    """Make a run one that has retrained a single network: its first candidate."""
    _keep(folder, "candidate == candidate.iloc[0] and seed == seed.min()")


def without_seed(folder: Path, seed: int) -> None:
    """Make a run one that has retrained no network with one of its seeds."""
    _keep(folder, f"seed != {seed}")


def with_diverged(folder: Path, went: Callable[[int, int], bool]) -> None:
    """Make the networks diverge of which ``went(candidate's position, seed)`` is true."""
    with Store(folder) as store:
        ids = store.candidate_ids()
    gone = {(one, seed) for i, one in enumerate(ids) for seed in range(3) if went(i, seed)}
    _keep(folder, "epoch >= 0", gone)


def with_few(folder: Path, candidates: int, seeds: int = 3) -> None:
    """Make a run one that has retrained its first candidates with its first seeds."""
    with Store(folder) as store:
        known = store.candidate_ids()[:candidates]
    _keep(folder, f"candidate in {known} and seed < {seeds}")


def _keep(folder: Path, chosen: str, diverged: Collection[tuple[str, int]] = ()) -> None:
    """Drop all retrainings but those that a query chooses; of these, some may have diverged."""
    with Store(folder) as store:
        own = store.frame("outcomes").query(chosen)
        with store._transaction():
            store._drop("retrainings")
            store._drop("outcomes")
        for _, epochs in own.groupby(["candidate", "seed"], sort=False):
            rows = [{str(k): v for k, v in row.items()} for row in epochs.to_dict("records")]
            which = str(rows[0]["candidate"]), int(rows[0]["seed"])
            if which in diverged:
                rows = [row | {"train_loss": np.nan} for row in rows]
            store.record_retrained([Retrained(*which, which in diverged, 1.0, rows)])


def synthetic_networks(
    runs: Path, task: str, metrics: Sequence[Metric], seeds: Sequence[int] = (0, 1, 2), **how: Any
) -> Path:
    """A finished run over several dense networks, each of them one of :func:`synthetic`."""
    for seed in seeds:
        made = synthetic(runs, task, metrics, dense_seed=seed, **how)
        with Store(made, read_only=True) as store:
            spec = StudySpec.model_validate(store.spec())
        made.rename(runs / spec.folder_name)
    whole = spec.model_copy(
        update={"dense": spec.dense.model_copy(update={"seed": 0, "seeds": tuple(seeds)})}
    )
    folder = runs / whole.folder_name
    folder.mkdir()
    write_networks(folder, whole)
    return folder


def synthetic(
    runs: Path,
    task: str,
    metrics: Sequence[Metric],
    *,
    name: str = "made-up",
    epochs: int = 3,
    validation: bool = True,
    chance: float | None = None,
    pruned: tuple[int, int] = (2, 10),
    most: int | None = None,
    noises: Mapping[str, float] = NOISES,
    dense_seed: int = 0,
) -> Path:
    """A finished run of any task, in numbers of its own: all 45 ways to prune 2 of 10 filters.

    A filter has a worth, which all metrics follow in their direction; a criterion scores by it up
    to noise, of which ``noises`` says how much. Every run of as many ``epochs`` is the same; the
    dense network is the same in all of them. ``pruned`` is how many filters go, of how many;
    ``most`` is the size of a sample of the ways. Another ``dense_seed`` is another dense network,
    with other worths.
    """
    draw = np.random.default_rng(dense_seed)
    worth = draw.normal(size=pruned[1])
    ways = list(itertools.combinations(range(pruned[1]), pruned[0]))
    if most is not None:
        ways = [ways[row] for row in np.random.default_rng(1).permutation(len(ways))[:most]]
    ids = [hashlib.sha256(str(way).encode()).hexdigest()[:16] for way in ways]
    fields: dict[str, Any] = {
        "name": name,
        "network": {"name": "lenet5-mini"},
        "data": {"name": "mnist-5k"},
        "pruning": {"layers": {"conv1": pruned[0] / pruned[1]}, "candidates": most or "all"},
        "criteria": list(noises),
        "retraining": {"epochs": epochs, "seeds": [0, 1, 2]},
        "dense": {"seed": dense_seed},
    }
    folder = runs / f"{name}-{epochs:012x}"
    folder.mkdir(parents=True)

    def measured(quality: float) -> dict[str, float]:
        """All metrics of a network: the better, the higher its quality from 0 to 1."""
        values = {}
        for split, metric in itertools.product(SPLITS, metrics):
            low = metric.low if np.isfinite(metric.low) else 0.0
            high = metric.high if np.isfinite(metric.high) else low + 4.0
            share = quality if metric.higher_is_better else 1 - quality
            known = validation or split != "validation"
            values[f"{split}_{metric.name}"] = low + share * (high - low) if known else np.nan
        return values

    def course(final: float) -> list[dict[str, Any]]:
        return [
            {"epoch": e, "learning_rate": 0.1, **measured(final * (e + 2) / (epochs + 1))}
            for e in range(epochs)
        ]

    with Store(folder) as store:
        store.record_task(task, metrics)
        facts: dict[str, Any] = {
            "trueoracle": "0", "torch": "0", "python": "3", "device": "cpu", "threads": 1,
            "git_commit": None, "pid": 1, "engine": "loop",
        }  # fmt: skip
        facts |= {} if chance is None else {"chance": chance}
        sitting = store.begin("2026-01-01T00:00:00+00:00", fields, facts)
        store.record_dense(f"{5 + dense_seed}" * 64, "", "trained", 1.0, measured(0.9), course(0.9))
        store.record_candidates(
            (one, {"conv1": list(way)}) for one, way in zip(ids, ways, strict=True)
        )
        store.record_costs((5500, 9000), [(one, 5000, 8000) for one in ids])
        quality = [1 / (1 + np.exp(worth[list(way)].sum() / 2)) for way in ways]
        labels = {"oracle": "pruned train loss", "l1": "L1 norm of the pruned filters"}
        for criterion, noise in noises.items():
            store.record_criterion(criterion, "a paper", "shipped", labels.get(criterion))
            scores = [-q + noise * draw.normal() for q in quality]
            store.record_scores(criterion, zip(ids, scores, strict=True))
        for seed in (0, 1, 2):
            store.record_retrained(
                Retrained(one, seed, False, 0.5, course(float(np.clip(q + n, 0.02, 0.98))))
                for one, q, n in zip(ids, quality, 0.03 * draw.normal(size=len(ids)), strict=True)
            )
        store.end(sitting, "2026-01-01T00:01:00+00:00")
    return folder
