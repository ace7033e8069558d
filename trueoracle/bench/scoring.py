"""A criterion's scores on the shipped bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from trueoracle.bench.table import DATA, Bench, BenchStudy, dense_file, ways_of
from trueoracle.criteria.base import Criterion
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import load_weights
from trueoracle.pruning.candidates import Candidates
from trueoracle.pruning.walk import find_groups
from trueoracle.pruning.ways import space_size
from trueoracle.run.material import build_study, load_data
from trueoracle.run.progress import Progress
from trueoracle.spec.grid import load_spec
from trueoracle.spec.spec import StudySpec

__all__ = ["score_bench", "spec_of"]


def spec_of(study: BenchStudy) -> StudySpec:
    """All fields of the study."""
    return load_spec(study.name)


Material = dict[str, tuple[StudySpec, Candidates, torch.nn.Module, Splits]]
"""The fields, candidates, dense network and data of studies by name, for several criteria."""


def score_bench(
    criterion: Criterion,
    bench: Bench,
    progress: Progress,
    studies: Sequence[BenchStudy] | None = None,
    folder: Path = DATA,
    material: Material | None = None,
) -> np.ndarray:
    """Scores ``[R]`` of a criterion; NaN outside of ``studies``, and where it does not apply.

    ``folder`` has the dense weights. ``material`` is filled with what other criteria need as well.
    Raises :class:`InputError` where the criterion fails or returns another shape.
    """
    chosen = bench.studies if studies is None else list(studies)
    shared: Material = {} if material is None else material
    shared |= _prepared(bench, [one for one in chosen if one.name not in shared], folder)
    scores = np.full(len(bench.keys), np.nan)
    progress.stage(f"score by {criterion.name}", sum(len(s.rows) for s in chosen), 0, "candidates")
    for study in chosen:
        spec, candidates, dense, data = shared[study.name]
        try:
            values = criterion(copied(dense).eval(), candidates, data, spec.retraining)
        except NotApplicableError as reason:
            progress.message(f"{study.name}: {reason}")
        else:
            scores[study.rows] = values
        progress.advance(len(study.rows))
    return scores


def _prepared(bench: Bench, studies: Sequence[BenchStudy], folder: Path) -> Material:
    made: Material = {}
    data: dict[str, Splits] = {}
    networks = {}
    for study in studies:
        spec = spec_of(study)
        if study.family not in data:
            data[study.family] = load_data(spec)
        if study.dense not in networks:
            dense, shape = build_study(spec)
            load_weights(dense, dense_file(*study.dense, folder))
            example = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
            networks[study.dense] = dense, find_groups(dense, example)
        dense, groups = networks[study.dense]
        ways = ways_of(bench.keys["pruned"].to_numpy()[study.rows])
        group = groups.groups[study.layer]
        candidates = Candidates(
            groups=(group,),
            ways=tuple((way,) for way in ways),
            surgery=spec.pruning.surgery,
            space=space_size([group.filters], [len(ways[0])]),
        )
        made[study.name] = spec, candidates, dense, data[study.family]
    return made
