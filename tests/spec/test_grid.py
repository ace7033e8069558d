from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Writer
from trueoracle.errors import InputError
from trueoracle.record.paths import DATABASE
from trueoracle.record.runs import find_run
from trueoracle.run.material import list_study
from trueoracle.spec.file import arms_of, parse_overrides, shipped_grids, shipped_studies
from trueoracle.spec.grid import grid_digest, load_spec, load_variant, variants

BASE = 'extends = "digits-conv1-0.2"\n'


def test_a_grid_is_the_product_of_its_fields(write_study: Writer) -> None:
    path = write_study(
        BASE + '[grid]\n"network.arguments.width" = [10, 20]\n"retraining.epochs" = [1, 2, 3]\n'
    )
    points = variants(str(path))
    assert [point.label for point in points] == [
        f"width-{width}+epochs-{epochs}" for width in (10, 20) for epochs in (1, 2, 3)
    ]
    last = points[-1]
    assert last.values == {"width": 20, "epochs": 3}
    assert last.spec.name == "mine+width-20+epochs-3"
    assert last.spec.network.arguments == {"width": 20}
    assert last.spec.retraining.epochs == 3
    assert last.spec.dense == load_spec("digits-conv1-0.2").dense
    assert {point.grid for point in points} == {"mine"}


def test_a_plain_study_is_a_grid_of_one() -> None:
    (only,) = variants("digits-conv1-0.2@short", {"dense.seed": 3})
    assert (only.grid, only.label, only.values) == ("", "", {})
    assert only.spec == load_spec("digits-conv1-0.2@short", {"dense.seed": 3})
    assert (only.spec.name, only.spec.dense.seed) == ("digits-conv1-0.2@short", 3)


def test_fields_with_one_last_word_stay_two_axes(write_study: Writer) -> None:
    path = write_study(
        BASE + '[grid]\n"dense.learning_rate" = [0.1, 0.2]\n"retraining.learning_rate" = [0.3]\n'
        'epochs = [{ dense.epochs = 2 }]\n"retraining.epochs" = [3]\n'
    )
    first, second = variants(str(path))
    assert first.values == {
        "dense.learning_rate": 0.1,
        "retraining.learning_rate": 0.3,
        "epochs": 2,
        "retraining.epochs": 3,
    }
    assert second.label == (
        "dense.learning_rate-0.2+retraining.learning_rate-0.3+epochs-2+retraining.epochs-3"
    )
    path = write_study(
        f"{BASE}[grid]\n'pruning.layers.\"a.conv\"' = [0.1]\n'pruning.layers.\"b.conv\"' = [0.2]\n"
    )
    (point,) = variants(str(path))
    assert point.values == {"pruning ratio of a.conv": 0.1, "pruning ratio of b.conv": 0.2}
    assert point.label == "a.conv-0.1+b.conv-0.2"


def test_named_points_change_several_fields(write_study: Writer) -> None:
    path = write_study(
        BASE + "[grid]\nratio = [{ pruning.layers.conv1 = 0.3, pruning.candidates = 9 },"
        ' { pruning.layers = { conv2 = 0.5 }, dense.epochs = 2 }]\n"data.name" = ["mnist-5k"]\n'
    )
    first, second = (point.spec for point in variants(str(path)))
    assert (dict(first.pruning.layers), first.pruning.candidates) == ({"conv1": 0.3}, 9)
    assert (dict(second.pruning.layers), second.dense.epochs) == ({"conv2": 0.5}, 2)
    assert first.name == "mine+ratio-0.3+data-mnist-5k"
    assert variants(str(path))[1].values == {"ratio": 0.5, "data": "mnist-5k"}


def test_arms_and_overrides_reach_every_point(write_study: Writer) -> None:
    path = write_study(
        BASE
        + '[grid]\n"pruning.layers" = [{ conv1 = 0.2 }, { conv1 = 0.2, conv2 = 0.2 }]\n'
        'pruning.candidates = ["all"]\n[arms.tiny]\ndense.epochs = 1\n'
        '[arms.tiny.grid]\n"pruning.layers" = [{ conv3 = 0.1 }]\n'.replace(
            "pruning.candidates =", '"pruning.candidates" ='
        )
    )
    (point,) = variants(f"{path}@tiny@short", {"retraining.seeds": [7]})
    assert point.spec.name == "mine+layers-conv3-0.1+candidates-all@tiny@short"
    assert (point.spec.dense.epochs, point.spec.retraining.seeds) == (1, (7,))
    assert point.spec.retraining.epochs == 3
    assert point.grid == "mine@tiny@short"
    assert len(variants(str(path))) == 2
    assert grid_digest(variants(str(path))) != grid_digest([point])


def test_a_named_point_may_change_nothing(write_study: Writer) -> None:
    path = write_study(
        f"{BASE}[grid]\ndepth = [{{ value = 5 }}, {{ value = 6, network.arguments.depth = 6 }}]\n"
    )
    plain, deeper = variants(str(path))
    assert plain.spec.digest == load_spec("digits-conv1-0.2").digest
    assert (plain.label, plain.values, deeper.label) == ("depth-5", {"depth": 5}, "depth-6")


@pytest.mark.parametrize(
    ("grid", "overrides", "message"),
    [
        ('"retraining.epochs" = 3', {}, "grid.retraining.epochs takes a list of values, got 3"),
        ('"retraining.epochs" = []', {}, "takes a list of values"),
        ('"retraining.epochs" = [1, 1]', {}, "two points of the grid are called 'epochs-1'"),
        ('"retraining.epochs" = [0]', {}, "retraining.epochs: input should be"),
        ('"retraining.epoch" = [1]', {}, "did you mean 'retraining.epochs'"),
        ('"name" = ["a", "b"]', {}, "grid.name changes no number"),
        ("width = [10, 20]", {}, "grid.width is no field of a study"),
        ('"retraining.epochs" = [1, 2]', {"retraining.epochs": 3}, "spans it by 'epochs'"),
        ('"retraining.epochs" = [1, 2]', {"retraining": {}}, "spans it by 'epochs'"),
        (
            "w = [{ dense.epochs = 1, dense.seed = 1 }, { dense.seed = 1, dense.epochs = 1 }]",
            {"dense.seed": 4},
            "spans it by 'w'",
        ),
        (
            "w = [{ dense.epochs = 1, dense.seed = 2 }, { dense.seed = 2, dense.epochs = 1 }]",
            {},
            "the points 'w-1' and 'w-2' are the same study",
        ),
        (f'"dense.seed" = {list(range(201))}', {}, "has 201 points"),
    ],
)
def test_what_is_no_grid_is_one_clear_line(
    write_study: Writer, grid: str, overrides: dict[str, object], message: str
) -> None:
    path = write_study(f"{BASE}[grid]\n{grid}\n")
    with pytest.raises(InputError) as caught:
        variants(str(path), overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_grid_is_not_run_as_one_study_but_its_points_are() -> None:
    with pytest.raises(InputError, match="'lenet5-mini-width' is a grid of studies"):
        load_spec("lenet5-mini-width")
    point = load_spec("lenet5-mini-width+width-20@small", {"dense.seed": 3})
    assert point.name == "lenet5-mini-width+width-20@small"
    assert (point.network.arguments, point.dense.seed) == ({"width": 20}, 3)
    with pytest.raises(InputError, match=r"unknown point .*did you mean 'width-20'"):
        load_spec("lenet5-mini-width+width-2")
    (one,) = variants("lenet5-mini-width+width-20")
    assert (one.grid, one.label, one.values) == ("", "width-20", {"width": 20})


def test_what_is_no_grid_has_no_points(write_study: Writer) -> None:
    with pytest.raises(InputError, match=r"mine\.toml' is no grid: its file has no table"):
        load_spec(f"{write_study(BASE)}+epochs-2")


def test_the_run_of_a_point_is_found_by_its_name_and_settings(
    write_study: Writer, tmp_path: Path
) -> None:
    own = write_study(f'{BASE}[grid]\n"network.arguments.width" = [10, 20]\n')
    runs = tmp_path / "runs"
    for name in ("lenet5-mini-width+width-20@small", f"{own}+width-20"):
        changes = {"dense.seed": 3}
        folder = runs / load_spec(name, changes).folder_name
        folder.mkdir(parents=True)
        (folder / DATABASE).touch()
        assert find_run(name, runs, changes) == folder
        with pytest.raises(InputError, match="is not recorded with these settings; there is"):
            find_run(name, runs)
    with pytest.raises(InputError, match=r"did you mean 'width-20'"):
        find_run(f"{own}+width-2", runs)


def test_where_one_study_is_meant_a_grid_names_its_points(write_study: Writer) -> None:
    own = write_study(f'{BASE}[grid]\n"retraining.epochs" = {list(range(1, 15))}\n')
    with pytest.raises(InputError, match=r"mine.toml\+epochs-12, …$"):
        load_variant(str(own))
    with pytest.raises(InputError, match=r"here: lenet5-mini-width\+width-10@small, "):
        load_variant("lenet5-mini-width@small")
    load_variant(f"{own}+epochs-3")
    load_variant("digits-conv1-0.2")


def test_the_shipped_grids_hold_the_shipped_studies() -> None:
    published = [f"lenet5-mini-{varied}" for varied in ("dataset", "depth", "ratio", "width")]
    others = [name for name in shipped_grids() if name not in published]
    assert sorted(others) == [
        "bench-digits",
        "bench-glyphs-10",
        "bench-glyphs-62",
        "bench-glyphs-62-underfit",
        "bench-glyphs-mlp",
        "lenet5-mini-bench",
    ]
    digests = {load_spec(name).digest for name in shipped_studies()}
    for name in published:
        assert "small" in arms_of(name)
        for point in variants(name):
            # So that what one has retrained, the other takes over.
            assert point.spec.digest in digests, point.label
        for point in variants(f"{name}@small"):
            assert 0 < len(list_study(point.spec)) <= 60


@given(st.lists(st.integers(1, 99), min_size=1, max_size=5, unique=True))
def test_every_value_is_a_point(values: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.toml"
        path.write_text(f'{BASE}[grid]\n"retraining.epochs" = {values}\n')
        points = variants(str(path))
    assert [point.spec.retraining.epochs for point in points] == values
    assert len({point.spec.folder_name for point in points}) == len(values)


def test_axes_of_several_layers_add_up(write_study: Writer) -> None:
    path = write_study(
        BASE + '[grid]\n"pruning.layers.conv2" = [0.2, 0.3]\n"pruning.layers.conv3" = [0.4]\n'
        "more = [{ value = 1, pruning.layers.fc1 = 0.5 }]\n"
    )
    assert [dict(point.spec.pruning.layers) for point in variants(str(path))] == [
        {"conv2": 0.2, "conv3": 0.4, "fc1": 0.5},
        {"conv2": 0.3, "conv3": 0.4, "fc1": 0.5},
    ]


@pytest.mark.parametrize(
    "setting",
    [
        'pruning.layers."conv1"=0.3',
        "pruning . layers={conv2=0.3}",
        "pruning.layers.conv2=0.3",
        "pruning={layers={conv2=0.3}}",
    ],
)
def test_overrides_do_not_replace_the_ratios_that_a_grid_spans(
    write_study: Writer, setting: str
) -> None:
    for axis in ('"pruning.layers.conv1" = [0.1]', "r = [{ pruning.layers.conv1 = 0.1 }]"):
        path = write_study(f"{BASE}[grid]\n{axis}\n")
        with pytest.raises(InputError, match="the grid 'mine' spans it"):
            variants(str(path), parse_overrides([setting]))
    with pytest.raises(InputError, match="is not a field"):
        variants(str(path), {"pruning .. kind": "depth"})
