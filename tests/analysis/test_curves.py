from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from trueoracle.analysis.curves import learning_curves, spread

EPOCHS = pd.DataFrame(
    [
        {"candidate": name, "seed": seed, "epoch": epoch, "test_loss": base + seed + epoch / 10}
        for name, base in (("a", 1.0), ("b", 5.0))
        for seed in (3, 1)
        for epoch in (0, 1, 2)
    ]
)


def test_curves_have_the_order_of_the_candidates_whatever_that_of_the_rows() -> None:
    shuffled = EPOCHS.sample(frac=1, random_state=0)
    for frame in (EPOCHS, shuffled):
        found = learning_curves(frame, pd.Series(["b", "c", "a"]), "test_loss")
        assert (found.seeds, found.epochs) == ((1, 3), (0, 1, 2))
        assert found.values.shape == (3, 2, 3)
        assert found.values[0, 0].tolist() == pytest.approx([6.0, 6.1, 6.2])
        assert np.isnan(found.values[1]).all()
        assert found.mean[2].tolist() == pytest.approx([3.0, 3.1, 3.2])
        assert np.isnan(found.mean[1]).all()


def test_fewer_epochs_keep_the_last() -> None:
    assert learning_curves(EPOCHS, pd.Series(["a"]), "test_loss", 2).epochs == (0, 2)
    assert learning_curves(EPOCHS, pd.Series(["a"]), "test_loss", 9).epochs == (2,)


def test_the_spread_is_over_what_is_known() -> None:
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [np.inf, np.nan]])
    found = spread(values)
    assert found[:, 0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert np.isnan(found[:, 1]).all()
