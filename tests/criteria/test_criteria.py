from __future__ import annotations

import copy
import functools
import importlib
import re
import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional

import trueoracle
from tests.criteria.tiny import chain, every_way, masks
from trueoracle.criteria.base import CRITERIA, Criterion, as_criterion, find_criterion
from trueoracle.data.splits import Splits
from trueoracle.errors import InputError, TrueOracleError
from trueoracle.pruning.candidates import Candidates, list_candidates
from trueoracle.pruning.masks import masked
from trueoracle.pruning.walk import find_groups

SHIPPED = ("oracle", "l1", "l2", "random")


@pytest.fixture(scope="module")
def candidates(dense: nn.Module) -> Candidates:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    return list_candidates(available, {"conv1": 0.2, "conv3": 0.1}, count=12)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_criterion_gives_one_finite_score_a_candidate(
    name: str, dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    before = {key: value.clone() for key, value in dense.state_dict().items()}
    made = find_criterion(name)
    scores = made(dense, candidates, few_digits)
    assert scores.shape == (12,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    assert len(set(scores.tolist())) == 12
    assert made.source
    assert all(torch.equal(value, before[key]) for key, value in dense.state_dict().items())


@pytest.mark.parametrize("name", SHIPPED)
def test_separable_criteria_score_alike_in_parts(
    name: str, dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    made = find_criterion(name)
    assert made.separable
    whole = made(dense, candidates, few_digits)
    parts = [made(dense, candidates.take([i]), few_digits)[0] for i in (5, 0, 11)]
    # A matrix product may round a row otherwise in another place of a block.
    assert parts == pytest.approx(whole[[5, 0, 11]].tolist(), abs=1e-7)


def test_the_oracle_is_the_masked_networks_train_loss(
    dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    scores = find_criterion("oracle")(dense, candidates, few_digits)
    train = few_digits.train
    for index, score in enumerate(scores):
        with masked(dense, candidates.groups, candidates.kept(index)) as zeroed, torch.no_grad():
            loss = functional.cross_entropy(zeroed.eval()(train.inputs), train.targets)
        assert score == pytest.approx(float(loss), abs=1e-6)


def test_magnitudes_by_hand(dense: nn.Module, candidates: Candidates, few_digits: Splits) -> None:
    for index in range(len(candidates)):
        pruned = candidates.pruned(index)
        filters = [
            dense.get_parameter(f"{layer}.weight").detach()[which]
            for layer, indices in pruned.items()
            for which in indices
        ]
        one = candidates.take([index])
        l1 = find_criterion("l1:raw=true")(dense, one, few_digits)[0]
        l2 = find_criterion("l2:raw=true")(dense, one, few_digits)[0]
        assert l1 == pytest.approx(sum(float(w.abs().sum()) for w in filters), rel=1e-6)
        assert l2 == pytest.approx(sum(float(w.square().sum().sqrt()) for w in filters), rel=1e-6)


def test_random_is_uniform_and_fixed(dense: nn.Module, few_digits: Splits) -> None:
    available = find_groups(dense, torch.zeros(2, 1, 32, 32))
    many = list_candidates(available, {"conv1": 0.5, "conv2": 0.5}, count=2000)
    scores = find_criterion("random")(dense, many, few_digits)
    histogram, _ = np.histogram(scores, bins=10, range=(0, 1))
    assert histogram.min() > 150
    assert scores.max() < 1
    assert np.array_equal(scores, find_criterion("random")(dense, many, few_digits))
    # In pieces as at once, and of another dense network other numbers, which know nothing of these.
    piece = find_criterion("random")(dense, many.take(range(7, 40)), few_digits)
    assert np.array_equal(piece, scores[7:40])
    other = copy.deepcopy(dense)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 1e-3
    others = find_criterion("random")(other, many, few_digits)
    assert abs(np.corrcoef(scores, others)[0, 1]) < 0.08  # 3.6 standard errors of 2,000


def test_a_criterion_is_registered_in_three_lines(
    dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    @trueoracle.criterion("first-filter", source="this test")
    def first_filter(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        return [float(way[0][0]) for way in candidates]

    found = find_criterion("first-filter")
    assert found.source == "this test"
    assert found(dense, candidates, few_digits).tolist() == [w[0][0] for w in candidates.ways]
    with pytest.raises(InputError, match="named 'first-filter' already"):
        trueoracle.criterion("first-filter")(lambda *_: [0.0])
    assert "first-filter" in CRITERIA


def test_a_criterion_is_named_by_its_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: nn.Module, candidates: Candidates,
    few_digits: Splits,
) -> None:  # fmt: skip
    (tmp_path / "their_criterion.py").write_text(
        'def spread(dense, candidates, data):\n    "Theirs."\n'
        "    return [max(way[0]) - min(way[0]) for way in candidates]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    found = find_criterion("their_criterion:spread")
    assert found.source == "Theirs."
    expected = [w[0][-1] - w[0][0] for w in candidates.ways]
    assert found(dense, candidates, few_digits).tolist() == expected
    with pytest.raises(InputError, match="cannot import the criterion 'their_criterion:sprad'"):
        find_criterion("their_criterion:sprad")
    with pytest.raises(InputError, match="cannot be called"):
        find_criterion("numpy:pi")


def test_what_a_criterion_gives_is_taken_in_any_usual_form(
    dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    forms: list[Any] = [
        torch.arange(12, dtype=torch.bfloat16),
        [torch.tensor(float(i)) for i in range(12)],
        np.arange(12),
        range(12),
    ]
    for form in forms:
        made = Criterion("any", "", lambda *_, form=form: form)
        assert made(dense, candidates, few_digits).tolist() == list(range(12))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({i: 12.0 - i for i in range(12)}, "it gave a dict, expected numbers in the order of"),
        (set(range(12)), "it gave a set"),
        ("123456789012", "it gave a str"),
        (np.arange(12) * 1j, "complex numbers"),
        (torch.arange(12) * 1j, "complex numbers"),
        ([1j] * 12, "complex numbers"),
        ([np.complex64(1j)] * 12, "complex numbers"),
        ([torch.tensor(1j)] * 12, "complex numbers"),
        (np.arange(12) > 5, "it gave true and false, expected numbers"),
        (torch.arange(12) > 5, "it gave true and false"),
        ([True] * 12, "it gave true and false"),
        ([np.True_] * 12, "it gave true and false"),
        (["1"] * 12, "it gave a str for a candidate"),
        (np.array(["1"] * 12), "it gave type <U1"),
        (np.array(["1"] * 12, dtype=object), "it gave a str for a candidate"),
        ([Decimal(1)] * 12, "it gave a Decimal for a candidate"),
        ([None] * 12, r"it gave nothing \(None\) for a candidate"),
        ([[1.0, 2.0]] * 12, "it gave a list for a candidate"),
        ([torch.ones(2)] * 12, "it gave 2 numbers for one candidate"),
        (pd.DataFrame({"score": range(12)}), "it gave a str for a candidate"),
        (np.ma.masked_array(range(12), [True] * 12), "whose mask would be lost"),
        (np.arange(12) + 2**53, "that float64 does not tell apart"),
        (torch.arange(12) + 2**53, "that float64 does not tell apart"),
        ([2**53 + i for i in range(12)], "that float64 does not tell apart"),
        ([2**80 + i for i in range(12)], "that float64 does not tell apart"),
        ([10**400] * 12, "that float64 does not tell apart"),
        (np.array(["2026-01-01"] * 12, dtype="datetime64[D]"), "it gave type datetime64"),
    ],
)
def test_what_has_no_order_is_refused(
    form: Any, message: str, dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    made = Criterion("any", "", lambda *_: form)
    with pytest.raises(InputError, match=f"criterion 'any': .*{message}"):
        made(dense, candidates, few_digits)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda dense, candidates: None, "is called with (dense, candidates, data) "),
        (lambda dense, candidates, data, recipe: None, "uses_recipe=True"),
        (lambda *_: None, "it gave nothing (None), expected numbers"),
        (lambda *_: np.zeros((12, 2)), "scores of shape [12, 2], expected [12]: one per candidate"),
        (lambda *_: sys.exit(3), "failed: SystemExit: 3"),
    ],
)
def test_usual_mistakes_are_said(
    function: Any, message: str, dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Criterion("any", "", function)(dense, candidates, few_digits)


def test_memory_that_is_gone_is_no_reason_to_skip(
    dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    def large(*_: object) -> list[float]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(
        TrueOracleError, match="criterion 'any' ran out of memory: no room"
    ) as error:
        Criterion("any", "", large)(dense, candidates, few_digits)
    assert not isinstance(error.value, InputError)


def test_images_are_not_to_be_changed(
    dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    data = replace(few_digits, train=few_digits.train.take(torch.arange(20)))

    def brighter(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
        torch.set_grad_enabled(False)
        data.train.inputs.add_(1)
        return [0.0] * len(candidates)

    with pytest.raises(InputError, match="criterion 'brighter' changed the images or labels"):
        Criterion("brighter", "", brighter)(dense, candidates, data)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("importance", "found"),
    [
        ({"conv1": torch.arange(11.0)}, r"\[11\]"),
        ({"conv1": np.ones((10, 3))}, r"\[10, 3\]"),
        ({"conv2": [1.0] * 10}, "none"),
    ],
)
def test_importance_is_one_number_a_filter(
    importance: Any, found: str, dense: nn.Module, few_digits: Splits
) -> None:
    groups = find_groups(dense, few_digits.train.inputs[:3])
    candidates = list_candidates(groups, {"conv1": 0.2})
    wanted = f"importance of conv1 is one number for each of its 10 filters, got {found}"
    with pytest.raises(InputError, match=wanted):
        candidates.sum_pruned(importance)
    half = candidates.sum_pruned({"conv1": torch.ones(10, dtype=torch.bfloat16)})
    assert half.tolist() == [2.0] * 45


def module_function(dense: nn.Module, candidates: Candidates, data: Splits) -> list[float]:
    return [0.0] * len(candidates)


def test_a_fingerprint_is_empty_where_the_code_does_not_say_all() -> None:
    def within(sign: Any) -> Criterion:
        return Criterion("within", "", lambda *_: [sign])

    assert Criterion("plain", "", module_function).fingerprint
    assert within(1).fingerprint != within(-1).fingerprint != ""
    assert within(torch.zeros(3)).fingerprint == ""
    assert Criterion("partial", "", functools.partial(module_function)).fingerprint == ""
    assert find_criterion("oracle").fingerprint == "shipped"


def test_a_fingerprint_knows_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fingerprint(helper: str) -> str:
        for name in ("own_score", "own_helper", "own_inner"):
            sys.modules.pop(name, None)
        (tmp_path / "own_inner.py").write_text(helper, encoding="utf-8")
        importlib.invalidate_caches()
        return find_criterion("own_score:score").fingerprint

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_score.py").write_text(
        "import math\nimport numpy as np\nfrom own_helper import scaled\n\n\n"
        "def score(dense, candidates, data):\n    return [scaled(i) for i in candidates]\n",
        encoding="utf-8",
    )
    (tmp_path / "own_helper.py").write_text(
        "import own_inner\n\n\ndef scaled(x):\n    return own_inner.FACTOR * x\n",
        encoding="utf-8",
    )
    assert fingerprint("") not in ("", fingerprint("# a comment\n"))
    first = fingerprint("FACTOR = 1\n")
    assert first == fingerprint("FACTOR = 1\n")
    assert first != fingerprint("FACTOR = 100\n")


def test_an_unknown_criterion_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="did you mean 'oracle'"):
        find_criterion("orcale")


def test_scores_of_the_wrong_shape_are_refused(
    dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    made = trueoracle.criterion("one-for-all")(lambda *_: [1.0])
    with pytest.raises(InputError, match=r"scores of shape \[1\], expected \[12\]"):
        made(dense, candidates, few_digits)


def test_scores_are_called_by_a_label_that_says_what_is_pruned() -> None:
    filters, weights = every_way(chain(), {"0": 0.5}), masks(chain(), {"0": 0.5})
    l1, l2 = CRITERIA["l1"], CRITERIA["l2"]
    assert l1.label_of(filters) == "L1 norm of the pruned filters"
    assert l1.label_of(weights) == "L1 norm of the pruned weights"
    assert l2.label_of(filters) == "L2 norm of the pruned filters"
    assert l2.label_of(weights) == "squared L2 norm of the pruned weights"
    assert CRITERIA["oracle"].label_of(filters) == "pruned train loss"
    assert as_criterion("mine", lambda *_: [0.0]).label_of(filters) is None


@trueoracle.criterion("scaled-filters", basis="ours", source="this test")
def scaled(
    dense: nn.Module,
    candidates: Candidates,
    data: Splits,
    *,
    scale: float = 1.0,
    power: int = 1,
    minus: bool = False,
    word: str = "a",
) -> np.ndarray:
    """A number that its parameters decide."""
    number = scale**power * len(word) * (-1 if minus else 1)
    return np.full(len(candidates), number)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scaled-filters", 1.0),
        ("scaled-filters:scale=3", 3.0),
        ("scaled-filters:scale=3,power=2", 9.0),
        ("scaled-filters:minus=true", -1.0),
        ("scaled-filters:word=abc,minus=false", 3.0),
        (f"{__name__}:scaled:scale=0.5", 0.5),
    ],
)
def test_a_study_names_a_criterions_parameters(
    name: str, value: float, dense: nn.Module, candidates: Candidates, few_digits: Splits
) -> None:
    found = find_criterion(name)
    assert (found(dense, candidates, few_digits) == value).all()
    assert found.fingerprint == find_criterion("scaled-filters").fingerprint


def test_a_criterion_with_parameters_says_so() -> None:
    found = find_criterion("scaled-filters:scale=3,minus=true")
    assert found.name == "scaled-filters:scale=3,minus=true"
    assert found.parameters == {"scale": 3.0, "power": 1, "minus": True, "word": "a"}
    labelled = replace(find_criterion("taylor:batch=64"))
    assert labelled.label_of(every_way(chain(), {"0": 0.5})) == (
        "squared first-order loss change of the pruned filters (batch 64)"
    )
    assert find_criterion("oracle").parameters == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("scaled-filters:size=3", "no parameter 'size' (its parameters: scale=1.0, power=1, "),
        ("oracle:batch=3", "criterion 'oracle:batch=3': no parameter 'batch' (it has none)"),
        (
            "scaled-filters:power=x",
            "criterion 'scaled-filters:power=x': power is 'x', expected a whole number",
        ),
        ("scaled-filters:scale=", "scale is '', expected a number"),
        ("scaled-filters:minus=1", "minus is '1', expected true or false"),
        ("scaled-filters:minus=true,power", "power is '', expected a whole number"),
    ],
)
def test_parameters_that_cannot_be_are_refused(name: str, reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        find_criterion(name)


def test_a_basis_begins_with_one_of_four() -> None:
    with pytest.raises(
        InputError, match="basis is 'mine', expected it to begin with 'as published'"
    ):
        Criterion("mine", "", lambda *_: [0.0], basis="mine")


def test_another_version_of_a_shipped_criterion_is_another_fingerprint() -> None:
    plain = find_criterion("oracle")
    assert plain.fingerprint == "shipped"
    assert replace(plain, version=3).fingerprint == "shipped, version 3"
    changed = ("taylor", "obd", "grasp", "synflow", "l1", "l2", "fpgm", "hrank", "gradient")
    assert all(CRITERIA[name].version > 1 for name in (*changed, "activation-mean"))
