"""A criterion's scores on the shipped table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from trueoracle.bench.table import DATA, Bench, Setting, dense_file, ways_of
from trueoracle.criteria.base import Criterion
from trueoracle.data import datasets
from trueoracle.data.splits import Splits
from trueoracle.errors import NotApplicableError
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import load_weights
from trueoracle.pruning.candidates import Candidates, space_size
from trueoracle.pruning.walk import find_groups
from trueoracle.run.prepare import build_study
from trueoracle.run.progress import Progress
from trueoracle.spec.grid import load_spec
from trueoracle.spec.spec import StudySpec

__all__ = ["score_bench", "study_of"]


def study_of(setting: Setting) -> StudySpec:
    """The study that recorded a setting."""
    return load_spec(setting.study)


def score_bench(
    criterion: Criterion,
    bench: Bench,
    progress: Progress,
    settings: Sequence[Setting] | None = None,
    folder: Path = DATA,
) -> np.ndarray:
    """Scores ``[R]`` of a criterion; NaN outside of ``settings``, and where it does not apply.

    ``folder`` is where the dense weights lie. Raises :class:`InputError` where it fails or its
    answer has another shape.
    """
    chosen = bench.settings if settings is None else list(settings)
    scores = np.full(len(bench.keys), np.nan)
    progress.stage(f"score by {criterion.name}", sum(len(s.rows) for s in chosen), 0, "candidates")
    for setting, spec, candidates, dense, data in _prepared(bench, chosen, folder):
        try:
            values = criterion(copied(dense).eval(), candidates, data, spec.retraining)
        except NotApplicableError as reason:
            progress.message(f"{setting.study}: {reason}")
        else:
            scores[setting.rows] = values
        progress.advance(len(setting.rows))
    return scores


def _prepared(
    bench: Bench, settings: Sequence[Setting], folder: Path
) -> Iterator[tuple[Setting, StudySpec, Candidates, torch.nn.Module, Splits]]:
    """Each setting with its study, candidates, dense network and data."""
    data = None
    networks = {}
    for setting in settings:
        spec = study_of(setting)
        if data is None:  # the same for all of the grid
            data = datasets.load(
                spec.data.name,
                validation_images=spec.data.validation_images,
                split_seed=spec.data.split_seed,
            )
        if setting.network not in networks:
            dense, shape = build_study(spec)
            load_weights(dense, dense_file(setting.network, folder))
            example = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
            networks[setting.network] = dense, find_groups(dense, example)
        dense, groups = networks[setting.network]
        ways = ways_of(bench.keys["pruned"].to_numpy()[setting.rows])
        group = groups.groups[setting.layer]
        candidates = Candidates(
            groups=(group,),
            ways=tuple((way,) for way in ways),
            surgery=spec.pruning.surgery,
            space=space_size([group.filters], [len(ways[0])]),
        )
        yield setting, spec, candidates, dense, data
