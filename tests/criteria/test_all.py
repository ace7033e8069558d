"""What holds of every shipped criterion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.criteria.tiny import chain, every_way, images, masks, residual
from tests.data.formats import colours, write_folder
from trueoracle.criteria import curvature, retrained
from trueoracle.criteria.base import BASES, CRITERIA
from trueoracle.criteria.samples import sample
from trueoracle.data import datasets
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import NotApplicableError
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import list_candidates
from trueoracle.pruning.depth import list_depth_candidates
from trueoracle.pruning.stacks import find_stacks
from trueoracle.pruning.walk import find_groups
from trueoracle.tasks.classification import Classification
from trueoracle.training.recipe import Retraining

SHIPPED = sorted(name for name, one in CRITERIA.items() if one.is_shipped)
OF_BATCH_NORM = {"bn-scale", "oracle-bn", "eagleeye"}
OF_ACCURACY = {"eagleeye"}
"""Of a dozen images, many candidates have the same one."""
OF_ALL = {
    *("oracle", "oracle-subset", "oracle-validation", "oracle-bn", "eagleeye", "loss-after-steps"),
    *("gradient-flow", "gradient-norm", "taylor", "gradient", "snip", "grasp", "synflow", "obd"),
    *("synflow-iterative", "quadratic", "fisher", "l1", "l2", "random"),
}
OF_WEIGHTS = OF_ALL | {"lamp", "wanda", "sparsegpt", "sparsegpt-error", "woodfisher"}
OF_LAYERS = OF_ALL | {"obd-diagonal", "activation-mean", "block-influence"}
OF_FILTERS = sorted(
    {
        *(OF_ALL | {"lamp", "wanda", "obd-diagonal", "activation-mean", "apoz", "hrank", "chip"}),
        *("fpgm", "bn-scale", "depgraph", "thinet", "thinet-ls", "channel-pruning", "tpp"),
        *("taylor-2017", "obd-c", "group-hessian", "redundancy"),
    }
)
RECIPE = Retraining(epochs=3, batch_size=8, learning_rate=0.05, seeds=(3,))


def test_these_are_shipped() -> None:
    assert {*OF_FILTERS, *OF_WEIGHTS, *OF_LAYERS} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_each_says_what_it_scores(name: str) -> None:
    of = {"filters": OF_FILTERS, "weights": OF_WEIGHTS, "layers": OF_LAYERS}
    assert set(CRITERIA[name].applies_to) == {units for units, names in of.items() if name in names}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curvature, "HESSIAN_DRAWS", 6)
    monkeypatch.setattr(retrained, "STEPS", 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FILTERS)
def test_scores_of_filters(name: str) -> None:
    network = residual()
    candidates, data = (
        every_way(network, {"stem": 0.5, "first": 0.4}).take(range(0, 60, 7)),
        images(),
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trains = [p.requires_grad for p in network.parameters()]
    made = CRITERIA[name]
    scores = made(network, candidates, data, RECIPE)
    assert scores.shape == (9,)
    assert np.isfinite(scores).all()
    if name not in OF_ACCURACY:
        assert len(set(np.round(scores, 9))) > 4
    parts = made(network, candidates.take([5, 0]), data, RECIPE)
    assert parts == pytest.approx(scores[[5, 0]], rel=1e-4, abs=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == trains
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in network.modules())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*OF_FILTERS} - {"random"}))
def test_filters_in_another_order_have_scores_in_that_order(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature, "HESSIAN_DRAWS", 180)  # as many as weights: exact
    network, moved = residual(), residual()
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        for tensor in (moved.first.weight, *moved.bn1.state_dict(keep_vars=True).values()):
            if tensor.ndim:
                tensor.copy_(tensor[order])
        moved.last.weight.copy_(moved.last.weight[:, order])
    candidates, data = every_way(network, {"first": 0.2}), images()
    found = CRITERIA[name](moved, candidates, data, RECIPE)
    expected = CRITERIA[name](network, candidates, data, RECIPE)[order]
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_scores_of_single_weights(name: str) -> None:
    network = chain()
    candidates = masks(network, {"0": 0.5, "3": 0.5})
    made = CRITERIA[name]
    if name not in OF_WEIGHTS:
        with pytest.raises(NotApplicableError, match="single weights are pruned"):
            made(network, candidates, images(), RECIPE)
    elif name not in OF_BATCH_NORM:
        scores = made(network, candidates, images(), RECIPE)
        assert np.isfinite(scores).all()
        assert len(set(scores)) == 5


@pytest.mark.parametrize("name", SHIPPED)
def test_scores_of_whole_layers(name: str) -> None:
    torch.manual_seed(0)
    network = build("resnet20", {"width": 2}, input_shape=(1, 8, 8), classes=3)
    candidates = list_depth_candidates(
        find_stacks(network, torch.rand(3, 1, 8, 8)), {"layer1.*": 0.34}
    )
    made = CRITERIA[name]
    if name not in OF_LAYERS:
        with pytest.raises(NotApplicableError, match="whole layers are pruned"):
            made(network, candidates, images(), RECIPE)
        return
    scores = made(network, candidates, images(), RECIPE)
    assert np.isfinite(scores).all()
    if name not in OF_ACCURACY:
        assert len(set(scores)) == 3
    assert "filters" not in (made.label_of(candidates) or "")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_criterion_says_what_it_is(name: str) -> None:
    made = CRITERIA[name]
    first, blank, *_ = [*made.documentation.split("\n"), ""]
    assert first.endswith(".")
    assert not blank
    assert "[P]" in made.documentation
    assert made.source
    assert made.label
    assert made.basis.startswith(BASES)


@pytest.mark.parametrize("name", sorted(OF_BATCH_NORM))
def test_without_batch_norm_some_do_not_apply(name: str) -> None:
    network = chain()
    with pytest.raises(NotApplicableError, match="no batch norm"):
        CRITERIA[name](network, every_way(network, {"0": 0.5}), images())
    assert CRITERIA[name].conditional


def test_without_a_validation_split_the_validation_loss_does_not_apply() -> None:
    network, data = chain(), images()
    without = Splits(data.train, None, data.test, data.task)
    with pytest.raises(NotApplicableError, match="no validation split"):
        CRITERIA["oracle-validation"](network, every_way(network, {"0": 0.5}), without)


def test_without_zeros_or_maps_some_do_not_apply() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Sigmoid(), nn.Linear(4, 3))
    candidates = every_way(network, {"1": 0.5})
    with pytest.raises(NotApplicableError, match="no ReLU"):
        CRITERIA["apoz"](network, candidates, images())
    with pytest.raises(NotApplicableError, match="no feature maps"):
        CRITERIA["hrank"](network, candidates, images())


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_FILTERS)
def test_transformers(name: str) -> None:
    """Heads and hidden units: a score, or a reason; never another error."""
    torch.manual_seed(0)
    size = {"patch": 4, "layers": 1, "heads": 2, "width": 8, "mlp": 6}
    network = build("vit-b-16", size, input_shape=(1, 8, 8), classes=3)
    available = find_groups(network, torch.rand(3, 1, 8, 8))
    assert len(available.groups) == 3
    for group in available.groups:
        candidates = list_candidates(available, {group: 0.5}, count=2)
        applies = not CRITERIA[name].conditional
        try:
            scores = CRITERIA[name](network, candidates, images(), RECIPE)
            applies = bool(np.isfinite(scores).all())
        except NotApplicableError:
            applies = not applies
        assert applies


def test_the_sample_is_fixed_and_stratified() -> None:
    labels = torch.arange(1200) % 3
    split = Split.of(torch.randn(1200, 2), labels)
    few = sample(split, Classification(3))
    assert len(few) == 512
    assert few.targets.bincount().tolist() == [171, 171, 170]
    assert torch.equal(few.inputs, sample(split, Classification(3)).inputs)
    assert len(sample(split, Classification(3), 5000)) == 1200


@pytest.mark.parametrize("name", sorted({*OF_FILTERS} - OF_BATCH_NORM))
def test_streamed_images_give_what_those_in_memory_give(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", {"train": colours(18), "val": colours(9)})
    data = datasets.load(
        "folder", path=str(folder), validation_images=3, split_seed=0, image_size=14
    )
    validation = data.validation
    assert data.train.is_streamed
    assert validation is not None
    train, held_out, test = (
        split.take(torch.arange(len(split))) for split in (data.train, validation, data.test)
    )
    memory = Splits(train, held_out, test, data.task, data.fill)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, data.task.outputs(data.train)),
    )
    groups = find_groups(network, torch.rand(2, 3, 14, 14))
    candidates = list_candidates(groups, {"0": 0.5}).take([0, 3])
    found = CRITERIA[name](network, candidates, data, RECIPE)
    assert found == pytest.approx(CRITERIA[name](network, candidates, memory, RECIPE), rel=1e-4)
