"""The scores of a study in order, before anything is retrained."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueoracle.record.results import Results

__all__ = ["summarise_scores"]


def summarise_scores(results: Results, sample: int, seed: int) -> dict[str, Any]:
    """The status of a scored study and one ranking per criterion, as plain values for JSON.

    ``sample`` and ``seed`` are those of :meth:`Results.ranking`. A criterion without any finite
    score has no ranking.
    """
    rankings = []
    for criterion in results.criteria:
        if not np.isfinite(results.scores[criterion]).any():
            continue  # nothing can be ranked
        ranking = results.ranking(criterion, sample, seed)
        label = results.score(criterion).label
        candidate, pruned = None, None
        if ranking.oracle is not None:
            candidate, pruned = (
                results.candidates[name].iloc[ranking.oracle] for name in ("candidate", "pruned")
            )
        rankings.append(
            {
                "criterion": criterion,
                "score_name": label,
                "oracle_candidate": candidate,
                "oracle_pruned": pruned,
                **ranking.as_dict(),
                "verdict": ranking.sentence(label),
            }
        )
    spec = results.spec
    return {
        **results.status(),
        "dense_seeds": [spec.dense.seed],
        "title": spec.title,
        "surgery": spec.pruning.surgery,
        "layers": dict(spec.pruning.layers),
        "exhaustive": spec.pruning.candidates == "all",
        "rankings": rankings,
    }
