"""Letters and digits of open fonts."""

from __future__ import annotations

import csv
from importlib.resources import files

import numpy as np
import pytest
import torch

from trueoracle.data import datasets
from trueoracle.data.glyphs import CHARACTERS, read_glyphs
from trueoracle.errors import InputError
from trueoracle.run.material import list_study
from trueoracle.spec.file import spec_from


def test_there_are_enough_to_test_on_and_parts_share_no_font_family() -> None:
    parts = read_glyphs()
    assert [len(labels) for _, labels in parts] == [286 * 62, 40 * 62, 140 * 62]
    assert all(np.bincount(labels).tolist() == [len(labels) // 62] * 62 for _, labels in parts)
    with (files("trueoracle.data") / "rendered/fonts.csv").open() as listed:
        rows = list(csv.DictReader(listed))
    families: dict[str, set[str]] = {}
    for row in rows:
        assert row["licence"]
        families.setdefault(row["font"].split()[0].lower(), set()).add(row["split"])
    assert all(len(splits) == 1 for splits in families.values())


def test_a_label_is_the_character_that_is_drawn() -> None:
    # The mean picture of a class is nearest to the mean of the same class in fonts never seen.
    train, _, test = read_glyphs()
    of_train, of_test = (
        np.stack([images[labels == one].mean(axis=0) for one in range(62)])
        for images, labels in (train, test)
    )
    distances = ((of_train[:, None] - of_test[None]) ** 2).sum(axis=(2, 3))
    assert distances.argmin(axis=1).tolist() == list(range(62))
    # A full stop of ink: "1" has less of it than "8", "l" less than "W".
    ink = of_test.sum(axis=(1, 2))
    assert ink[CHARACTERS.index("l")] < ink[CHARACTERS.index("1")] < ink[CHARACTERS.index("W")]


def test_they_are_normalised_and_validated_on_fonts_of_their_own() -> None:
    data = datasets.load("glyphs", validation_images=620, split_seed=0)
    assert data.train.inputs.shape == (17_732, 1, 32, 32)
    assert data.train.inputs.mean().item() == pytest.approx(0, abs=2e-3)
    assert data.train.inputs.std().item() == pytest.approx(1, abs=2e-3)
    assert data.validation is not None
    assert data.validation.targets.bincount().tolist() == [10] * 62
    none = datasets.load("glyphs", validation_images=0, split_seed=0)
    assert none.validation is None
    assert len(none.train) == 17_732


def test_they_can_be_made_easier_and_harder() -> None:
    plain, _, test = read_glyphs(classes=10, fonts=50)
    assert len(plain[1]) == 500
    assert len(test[1]) == 1400
    assert plain[1].max() == 9
    noisy, _, noisy_test = read_glyphs(classes=10, fonts=50, noise=0.3)
    again, _, _ = read_glyphs(classes=10, fonts=50, noise=0.3)
    assert (noisy[0] == again[0]).all()
    apart = noisy[0].astype(float) - plain[0]
    middle = (plain[0] > 100) & (plain[0] < 150)  # where little is cut off at black and white
    assert 40 < apart[middle].std() < 0.3 * 255
    assert (noisy_test[0] != test[0]).any()
    info = datasets.dataset_info("glyphs", arguments={"classes": 36})
    assert (info.classes, info.images) == (36, (286 * 36, 140 * 36))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 63}, "classes of 'glyphs' lies between 2 and 62, got 63"),
        ({"classes": 10.5}, "classes of 'glyphs' lies between 2 and 62, got 10.5"),
        ({"fonts": 1}, "fonts of 'glyphs' lies between 2 and 286, got 1"),
        ({"noise": -0.1}, "noise of 'glyphs' lies between 0 and 1, got -0.1"),
        ({"nose": 0.1}, "did you mean 'noise'"),
    ],
)
def test_what_there_is_not_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        datasets.dataset_info("glyphs", arguments=arguments)


def test_other_data_takes_none() -> None:
    with pytest.raises(InputError, match="argument of data set 'mnist-5k'"):
        datasets.dataset_info("mnist-5k", arguments={"classes": 5})


def test_a_study_is_of_as_many_classes() -> None:
    spec = spec_from(
        {
            "name": "letters",
            "network": {"name": "lenet5-mini"},
            "data": {"name": "glyphs", "arguments": {"classes": 36}},
            "pruning": {"layers": {"conv1": 0.5}},
        }
    )
    assert len(list_study(spec)) == 252
    from trueoracle.run.material import build_study

    network, shape = build_study(spec)
    assert shape == (1, 32, 32)
    assert network.eval()(torch.zeros(1, *shape)).shape == (1, 36)
