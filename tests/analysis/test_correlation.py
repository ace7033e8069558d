from __future__ import annotations

import numpy as np
import pytest

from trueoracle.analysis.correlation import FEW_PAIRS, kendall_of_finite, kendalls_of_each
from trueoracle.analysis.table import Blocks, CandidateTable


@pytest.mark.parametrize("rows", [9, FEW_PAIRS + 1])
@pytest.mark.parametrize("missing", [False, True])
def test_taus_with_several_outcomes_are_those_with_each(rows: int, missing: bool) -> None:
    generator = np.random.default_rng(0)
    columns = generator.integers(6, size=(3, rows)).astype(float)  # with ties
    outcomes = generator.normal(size=(4, rows))
    if missing:
        columns[1, 2], outcomes[2, 3] = np.nan, np.nan
    found = kendalls_of_each(columns, outcomes)
    expected = [[kendall_of_finite(x, y) for x in columns] for y in outcomes]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_outcomes_without_each_block_are_means_over_the_other_examples() -> None:
    generator = np.random.default_rng(1)
    sums, counts = generator.normal(size=(5, 2, 3)), np.array([4, 5, 6])
    outcomes = sums.sum(axis=2) / counts.sum()
    table = CandidateTable(outcomes, {}, False, blocks=Blocks(sums, counts))
    found = table.without_blocks
    assert found.shape == (4, 5)
    assert np.allclose(found[0], outcomes.mean(axis=1))
    assert np.allclose(found[2], (sums[:, :, [0, 2]].sum(axis=2) / 10).mean(axis=1))
    bare = CandidateTable(outcomes, {}, False)
    assert np.array_equal(bare.without_blocks, bare.outcome[None])
