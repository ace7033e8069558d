from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tests.conftest import Writer
from trueoracle.data.datasets import DATASETS
from trueoracle.errors import InputError
from trueoracle.networks.registry import NETWORKS
from trueoracle.run.material import list_study
from trueoracle.spec.file import (
    Reference,
    arms_of,
    is_reference,
    parse_overrides,
    parse_reference,
    shipped_grids,
    shipped_studies,
    spec_from,
)
from trueoracle.spec.grid import load_spec, variants
from trueoracle.spec.published import all_settings
from trueoracle.spec.spec import Role, StudySpec

MINIMAL = {
    "name": "mine",
    "network": {"name": "lenet5-mini"},
    "pruning": {"layers": {"conv1": 0.5}},
}


def test_digests_are_pinned() -> None:
    # Recorded studies are found by these. A change that is meant changes what is recorded, or
    # raises DIGEST_FORMAT; one that is not meant stops here.
    assert spec_from(MINIMAL).digest == "13e35868a979"
    assert load_spec("digits-conv1-0.2").digest == "ec6808818073"
    assert load_spec("lenet5-mini-conv1-0.5").digest == "ec7c142639c4"
    assert load_spec("lenet5-mini-conv1+2+3-0.5@short").digest == "b503b46d645a"


CHANGES: dict[str, Any] = {
    "task": "regression",
    "data.uint8": "scale",
    "retraining.distil": {"weight": 0.5, "temperature": 4.0},
    "retraining.procedure": "mine:train",
    "retraining.lora": {"rank": 7},
    "network.name": "lenet5",
    "network.arguments": {"width": 20},
    "network.weights": "dense.safetensors",
    "network.fingerprint": "f",
    "data.name": "mnist",
    "data.validation_images": 100,
    "data.path": "images",
    "data.image_size": 24,
    "data.train_images": 100,
    "data.test_images": 100,
    "data.measured_fraction": 0.1,
    "data.split_seed": 1,
    "data.blocks": 10,
    "data.fingerprint": "f",
    "data.tokenizer": "bpe:1024",
    "data.context": 64,
    "data.stretches": 40,
    "data.stride": 32,
    "data.bos": "one",
    "data.held_out": [0.1, 0.1],
    "data.columns": {"text": "body"},
    "data.image_folder": "images",
    "data.image_tokens": 16,
    "data.arguments": {"classes": 36},
    "data.test": "pope:questions.json",
    "pruning.layers": {"conv1": 0.4},
    "pruning.candidates": 10,
    "pruning.surgery": "as-released",
    "criteria": ["l2"],
    **{
        f"{stage}.{field}": value
        for stage in ("dense", "retraining")
        for field, value in {
            "epochs": 7,
            "batch_size": 7,
            "optimizer": "adam",
            "learning_rate": 0.7,
            "momentum": 0.7,
            "weight_decay": 0.7,
            "schedule": "cosine",
            "milestones": [7],
            "gamma": 0.7,
            "final_learning_rate": 0.7,
            "label_smoothing": 0.7,
            "gradient_clip": 0.7,
            "precision": "autocast",
            "steps_per_epoch": 7,
            "accumulate": 7,
            "schedule_per": "step",
            "warmup": 0.7,
            "gradient_checkpointing": True,
            "shift": 7,
            "flip": True,
            "resized_crop": 0.7,
            "mixup": 0.7,
            "cutmix": 0.7,
        }.items()
    },
    "dense.seed": 7,
    "dense.seeds": [7, 8],
    "retraining.seeds": [7],
    "retraining.common_random_numbers": False,
}


SCOPES = ("layer", "row", "global")


def fields_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= fields_of(field.annotation, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def test_the_digest_covers_every_field() -> None:
    # A new field must be listed above, or this fails: nothing slips past the digest.
    assert fields_of(StudySpec) - {
        "name",
        "purpose",
        "roles",
        "changed",
        "pruning.seed",
        "pruning.kind",
        "pruning.scope",
        "network.files",  # of hf:… alone: tests/networks/test_pretrained.py
        "pruning.count",
        "pruning.share",
    } == set(CHANGES)
    plain = spec_from(MINIMAL)
    digests = {plain.digest}
    for field, value in CHANGES.items():
        changed = spec_from(MINIMAL, {field: value}).digest
        assert changed not in digests, field
        digests.add(changed)
    sampled = {
        spec_from(MINIMAL, {"pruning.candidates": 9, "pruning.seed": s}).digest for s in (0, 1)
    }
    assert len(sampled) == 2
    unstructured = {"pruning.kind": "unstructured", "pruning.candidates": 9}
    scopes = {spec_from(MINIMAL, unstructured | {"pruning.scope": s}).digest for s in SCOPES}
    assert len(scopes | sampled) == 5
    around = {"pruning.candidates": "around:l1"}
    drawn: list[dict[str, Any]] = [
        {},
        {"pruning.count": 9},
        {"pruning.share": 0.2},
        {"pruning.seed": 1},
    ]
    assert len({spec_from(MINIMAL, around | one).digest for one in drawn} | scopes) == 7
    depth = spec_from(MINIMAL, {"pruning.kind": "depth"}).digest
    n_of_m = spec_from(
        {**MINIMAL, "pruning": {"kind": "n:m", "layers": {"conv1": "2:4"}, "candidates": 9}}
    )
    assert len({depth, n_of_m.digest, plain.digest} | scopes) == 6


def test_descriptive_fields_change_no_number_and_no_digest() -> None:
    renamed = spec_from(MINIMAL, {"name": "other", "purpose": "something", "roles.a": "small"})
    renamed = renamed.model_copy(update={"changed": ("retraining.epochs",)})
    assert renamed.digest == spec_from(MINIMAL).digest
    assert renamed.folder_name == f"other-{renamed.digest}"


def test_defaults_are_part_of_the_digest() -> None:
    assert spec_from(MINIMAL, {"retraining.epochs": 30}).digest == spec_from(MINIMAL).digest


def test_stage_digests_change_with_what_the_stage_depends_on() -> None:
    plain = spec_from(MINIMAL)
    seeds = spec_from(MINIMAL, {"retraining.seeds": [0], "criteria": ["l2"]})
    assert seeds.outcome_digest == plain.outcome_digest
    assert seeds.digest != plain.digest
    short = spec_from(MINIMAL, {"retraining.epochs": 3})
    assert short.score_digest == plain.score_digest
    assert short.outcome_digest != plain.outcome_digest
    released = spec_from(MINIMAL, {"pruning.surgery": "as-released"})
    for field, value in (("task", "regression"), ("data.uint8", "keep")):
        other = spec_from(MINIMAL, {field: value})
        assert other.dense_digest != plain.dense_digest
        assert other.score_digest != plain.score_digest
        assert other.outcome_digest != plain.outcome_digest
    of_retraining: dict[str, Any] = {"distil": {}, "procedure": "mine:train"}
    for field, value in of_retraining.items():
        other = spec_from(MINIMAL, {f"retraining.{field}": value})
        assert other.score_digest == plain.score_digest
        assert other.outcome_digest != plain.outcome_digest
    assert released.dense_digest == plain.dense_digest
    assert released.score_digest != plain.score_digest
    assert released.outcome_digest != plain.outcome_digest


SHIPPED_NAMES = [
    "digits-conv1-0.2",
    *(f"lenet5-mini-conv{layer}-0.{pruned}" for layer in (1, 2, 3) for pruned in range(2, 9)),
    *(f"lenet5-mini-conv{layers}-0.5" for layers in ("1+2", "1+3", "2+3", "1+2+3")),
    *(f"lenet5-mini-{data}-conv1-0.5" for data in ("fashion-mnist", "kmnist")),
    *(f"lenet5-mini-w{width}-conv1-0.5" for width in (20, 30, 40)),
    *(f"lenet5-mini-d{depth}-conv1-0.5" for depth in (6, 7, 8)),
    "resnet56-cifar10-0.5",
    "vgg19-cifar100-0.5",
    "resnet18-imagenet-0.5",
    "resnet18-imagenet-unstructured-0.5",
    "resnet50-imagenet-0.43",
    "vit-b-16-imagenet-heads-0.5",
    "vit-b-16-imagenet-mlp-0.5",
    "vit-b-16-imagenet-width-0.25",
    *(f"bible-llama-{part}" for part in ("kv", "heads", "mlp", "depth", "2-4", "2-4-lora")),
    "easy-vqa-llava",
    "glyphs-fc1-0.2",
    "tinyllava-3.1b",
    "tinyllava-3.1b-depth",
    "tinyllava-3.1b-mlp",
    "vit-glyphs-heads-0.5",
    "vit-glyphs-mlp-0.5",
]


PINNED = {
    "bible-llama-2-4": "bff112f24926",
    "bible-llama-2-4-lora": "40511c0bc132",
    "bible-llama-depth": "b0a2b9f7c236",
    "bible-llama-heads": "66b5e2620d36",
    "bible-llama-kv": "88b12832d749",
    "bible-llama-mlp": "d8c6966fbd2f",
    "easy-vqa-llava": "3bbe61f463ea",
    "tinyllava-3.1b": "2c0e09e8c605",
    "tinyllava-3.1b-depth": "f17140fbc0d3",
    "tinyllava-3.1b-mlp": "60b669808327",
    "vit-glyphs-heads-0.5": "d52145b321cf",
    "vit-glyphs-mlp-0.5": "fd6f360821f8",
    "digits-conv1-0.2": "e2553364470e",
    "glyphs-fc1-0.2": "ff4a87d9098c",
    "lenet5-mini-conv1+2+3-0.5": "8c66ca9ed269",
    "lenet5-mini-conv1+2-0.5": "c0973abe8725",
    "lenet5-mini-conv1+3-0.5": "3eca7b433437",
    "lenet5-mini-conv1-0.2": "462a14d02f47",
    "lenet5-mini-conv1-0.3": "f3d98dd5cdd5",
    "lenet5-mini-conv1-0.4": "01ef5c6fb012",
    "lenet5-mini-conv1-0.5": "eb6a720a7862",
    "lenet5-mini-conv1-0.6": "710bf1a9c5a9",
    "lenet5-mini-conv1-0.7": "33ff0833941b",
    "lenet5-mini-conv1-0.8": "80886e1fa231",
    "lenet5-mini-conv2+3-0.5": "ff5152ae130e",
    "lenet5-mini-conv2-0.2": "fda6c39f7ede",
    "lenet5-mini-conv2-0.3": "7a69c97ff62a",
    "lenet5-mini-conv2-0.4": "91cc1c30c322",
    "lenet5-mini-conv2-0.5": "9271f72515cf",
    "lenet5-mini-conv2-0.6": "c1059498103b",
    "lenet5-mini-conv2-0.7": "dde1c24c60fd",
    "lenet5-mini-conv2-0.8": "77d4058380de",
    "lenet5-mini-conv3-0.2": "78b9553cabfd",
    "lenet5-mini-conv3-0.3": "7082263fbdf9",
    "lenet5-mini-conv3-0.4": "54f3828b540d",
    "lenet5-mini-conv3-0.5": "f33f099221a6",
    "lenet5-mini-conv3-0.6": "9b3db3408cbb",
    "lenet5-mini-conv3-0.7": "8a855cd12e71",
    "lenet5-mini-conv3-0.8": "ec5fda201929",
    "lenet5-mini-d6-conv1-0.5": "965460132a80",
    "lenet5-mini-d7-conv1-0.5": "11de11928c95",
    "lenet5-mini-d8-conv1-0.5": "362aff41507f",
    "lenet5-mini-fashion-mnist-conv1-0.5": "24d0f0663def",
    "lenet5-mini-kmnist-conv1-0.5": "0b2e6126250f",
    "lenet5-mini-w20-conv1-0.5": "7cb3aa9e1b4b",
    "lenet5-mini-w30-conv1-0.5": "8892f8c3ab38",
    "lenet5-mini-w40-conv1-0.5": "c08b356358fc",
    "resnet18-imagenet-0.5": "cbb7111e02f4",
    "resnet18-imagenet-unstructured-0.5": "6202912b1354",
    "resnet50-imagenet-0.43": "be1e8cd43277",
    "resnet56-cifar10-0.5": "8cb7e9887ed0",
    "vgg19-cifar100-0.5": "1764a001208a",
    "vit-b-16-imagenet-heads-0.5": "53abcb6af5e4",
    "vit-b-16-imagenet-mlp-0.5": "12100855e3ea",
    "vit-b-16-imagenet-width-0.25": "9a00298207ce",
    "bench-digits": "edab98765ed5",
    "bench-glyphs-10": "9ff89eb18416",
    "bench-glyphs-62": "2e0c3c7a2074",
    "bench-glyphs-62-underfit": "97f7f53f1309",
    "bench-glyphs-mlp": "b9cfbcdbb08b",
    "lenet5-mini-bench": "2cb57f5be132",
    "lenet5-mini-dataset": "f9c525c24f0c",
    "lenet5-mini-depth": "44a488c9261a",
    "lenet5-mini-ratio": "a534d244cdd4",
    "lenet5-mini-width": "2f832f4097a8",
}
"""A hash of what each shipped file sets in its studies, with and without each of its arms."""


def test_what_the_shipped_files_set_is_pinned() -> None:
    # Recorded runs and published comparisons rest on these values: change them on purpose only.
    found = {}
    for name in (*shipped_studies(), *shipped_grids()):
        said = [
            one.spec.model_dump(mode="json", exclude_unset=True, exclude={"name", "roles"})
            for arm in ("", *(f"@{arm}" for arm in sorted(arms_of(name))))
            for one in variants(f"{name}{arm}")
        ]
        text = json.dumps(said, sort_keys=True)
        found[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert found == PINNED


# What the first study of that network has built at full size is not built again.
SAME_LARGE_NETWORK = (
    "resnet18-imagenet-unstructured-0.5",
    "vit-b-16-imagenet-mlp-0.5",
    "vit-b-16-imagenet-width-0.25",
)


def resolvable(name: str) -> bool:
    """Whether the network and the data set of a study are registered."""
    spec = load_spec(name)
    return spec.network.name in NETWORKS and spec.data.name in DATASETS


def test_these_studies_are_shipped() -> None:
    assert sorted(shipped_studies()) == sorted(SHIPPED_NAMES)


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_every_shipped_study_and_arm_is_a_study_of_its_own(name: str) -> None:
    spec = load_spec(name)
    assert spec.name == name
    assert spec.purpose
    digests = {spec.digest}
    for arm in arms_of(name):
        armed = load_spec(f"{name}@{arm}")
        assert armed.name == f"{name}@{arm}"
        assert armed.digest not in digests
        digests.add(armed.digest)
        # The same dense network, but at small scale.
        assert (armed.dense_digest == spec.dense_digest) == (arm != "small")
    if "small" in arms_of(name):
        small, short = load_spec(f"{name}@small"), load_spec(f"{name}@small@short")
        assert short.dense_digest == small.dense_digest
        assert short.retraining.epochs < small.retraining.epochs <= spec.retraining.epochs
        assert small.network.weights is None


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if "imagenet" in name or "vgg" in name else name
        for name in SHIPPED_NAMES
        if resolvable(name)
    ],
)
def test_every_shipped_study_resolves(name: str) -> None:
    references = [f"{name}@small"] if "small" in arms_of(name) else []
    if name not in SAME_LARGE_NETWORK:
        references.append(name)
    for reference in references:
        spec = load_spec(reference)
        candidates = list_study(spec)
        wanted = spec.pruning.candidates
        assert len(candidates) == (candidates.space if wanted == "all" else wanted)


@pytest.mark.parametrize("name", [name for name in SHIPPED_NAMES if name.startswith("lenet5-mini")])
def test_the_lenet_studies_have_the_papers_recipe(name: str) -> None:
    spec = load_spec(name)
    for recipe, rate in ((spec.dense, 0.01), (spec.retraining, 0.001)):
        rates = [recipe.learning_rate_at(epoch) for epoch in range(recipe.epochs)]
        assert rates == pytest.approx([rate] * 20 + [rate / 10] * 10)
        assert (recipe.optimizer, recipe.momentum, recipe.weight_decay) == ("sgd", 0.9, 1e-4)
        assert recipe.batch_size == 256
    assert len(spec.retraining.seeds) == 3
    short = load_spec(f"{name}@short").retraining
    rates = [short.learning_rate_at(epoch) for epoch in range(short.epochs)]
    assert rates == pytest.approx([0.001, 0.001, 0.0001])


def test_the_lenet_studies_list_as_many_candidates_as_the_paper() -> None:
    counts = {name: len(list_study(load_spec(name))) for name in SHIPPED_NAMES[:26]}
    for layer in (1, 2, 3):
        singles = [counts[f"lenet5-mini-conv{layer}-0.{pruned}"] for pruned in range(2, 9)]
        assert singles == [45, 120, 210, 252, 210, 120, 45]
    for layers in ("1+2", "1+3", "2+3", "1+2+3"):
        assert counts[f"lenet5-mini-conv{layers}-0.5"] == 1000
    assert counts["digits-conv1-0.2"] == 45


def test_the_larger_studies_have_the_papers_recipes() -> None:
    for name in ("resnet56-cifar10-0.5", "vgg19-cifar100-0.5"):
        recipe = load_spec(name).retraining
        rates = [recipe.learning_rate_at(epoch) for epoch in range(recipe.epochs)]
        assert rates == pytest.approx([0.01] * 60 + [0.001] * 30 + [1e-4] * 30)
        assert (recipe.weight_decay, recipe.shift, recipe.flip) == (5e-4, 4, True)
        assert load_spec(f"{name}@short").retraining.epochs == 12
        assert load_spec(name).pruning.candidates == 1000
    for name in ("resnet18-imagenet-0.5", "resnet18-imagenet-unstructured-0.5"):
        spec = load_spec(name)
        rates = [spec.retraining.learning_rate_at(epoch) for epoch in range(30)]
        assert rates == pytest.approx([0.01] * 10 + [0.001] * 10 + [1e-4] * 10)
        assert (spec.retraining.epochs, spec.retraining.weight_decay) == (30, 1e-4)
        assert (spec.pruning.candidates, spec.data.measured_fraction) == (160, 0.1)
    resnet50 = load_spec("resnet50-imagenet-0.43")
    assert (resnet50.retraining.epochs, resnet50.pruning.candidates) == (9, 20)
    for part in ("heads-0.5", "mlp-0.5", "width-0.25"):
        recipe = load_spec(f"vit-b-16-imagenet-{part}").retraining
        assert (recipe.epochs, recipe.optimizer, recipe.schedule) == (300, "adamw", "cosine")
        assert (recipe.learning_rate, recipe.weight_decay) == (1.5e-4, 0.3)
        assert (recipe.label_smoothing, recipe.mixup, recipe.cutmix) == (0.11, 0.2, 1.0)


def test_an_arm_may_change_the_arms_that_are_laid_on_it(write_study: Writer) -> None:
    path = write_study(
        'extends = "digits-conv1-0.2"\n[arms.less.retraining]\nepochs = 8\nmilestones = [4]\n'
        "[arms.less.arms.short.retraining]\nepochs = 2\nmilestones = [1]\n"
    )
    assert load_spec(f"{path}@less").retraining.epochs == 8
    assert load_spec(f"{path}@less@short").retraining.epochs == 2
    assert load_spec(f"{path}@short").retraining.epochs == 3
    assert load_spec(f"{path}@short@less").retraining.epochs == 8


def test_an_arm_may_take_weights_away(write_study: Writer) -> None:
    path = write_study(
        'extends = "digits-conv1-0.2"\nnetwork.weights = "dense.pt"\n'
        '[arms.small.network]\nweights = "none"\n'
    )
    assert load_spec(str(path)).network.arrives_trained
    assert not load_spec(f"{path}@small").network.arrives_trained
    assert load_spec(f"{path}@small").digest == load_spec("digits-conv1-0.2").digest


def test_small_is_laid_before_short(write_study: Writer) -> None:
    with pytest.raises(InputError) as caught:
        load_spec("lenet5-mini-conv1-0.5@short@small")
    assert "lay small first: 'lenet5-mini-conv1-0.5@small@short'" in str(caught.value)
    path = write_study(
        'extends = "digits-conv1-0.2"\n[arms.tiny]\nrole = "small"\n[arms.brief]\nrole = "short"\n'
    )
    with pytest.raises(InputError, match=r"lay tiny first: '.*mine\.toml@tiny@brief'"):
        load_spec(f"{path}@brief@tiny")


def test_a_role_is_declared_in_the_file(write_study: Writer) -> None:
    path = write_study(
        'extends = "digits-conv1-0.2"\n[arms.brief]\nrole = "short"\n[arms.plain]\ndense.seed = 2\n'
        '[arms.small]\ndense.seed = 3\n[arms.wrong]\nrole = "shrt"\n'
    )
    spec = load_spec(f"{path}@small@plain@brief")
    assert [spec.role(arm) for arm in spec.arms] == ["small", "plain", "short"]
    assert spec.has_role("short")
    assert not spec.has_role("as-released")
    assert spec.without("short") == "mine@small@plain"
    extended = 'extends = "digits-conv1-0.2"\n[arms.b]\ndense.seed = 3\n'
    wrong = write_study(f"roles = 3\n{extended}", "wrong.toml")
    with pytest.raises(InputError, match="roles: input should be a valid dict"):
        load_spec(f"{wrong}@b")
    assert load_spec(f"{write_study(f'name = 3{chr(10)}{extended}', 'n.toml')}@b").name == "3@b"
    with pytest.raises(
        InputError, match="unknown role of the arm 'wrong' 'shrt': did you mean 'short"
    ):
        load_spec(f"{path}@wrong")


def test_every_shipped_arm_says_what_it_is_for() -> None:
    for name in (*shipped_studies(), *shipped_grids()):
        for arm in arms_of(name):
            # One that is for nothing that reports ask for has no role.
            known = {arm: arm} if arm in get_args(Role) else {}
            assert variants(f"{name}@{arm}")[0].spec.roles == known


def test_a_base_holds_studies_only_where_they_are_shipped(write_study: Writer) -> None:
    path = write_study('extends = "digits-conv1-0.2"\n[studies.a]\ndense.seed = 2\n')
    with pytest.raises(InputError, match="unknown field 'studies"):
        load_spec(str(path))


def test_a_reference_is_told_from_other_texts(write_study: Writer) -> None:
    for text in ("digits-conv1-0.2@short", "lenet5-mini-conv1+2-0.5", "a/b.toml@x", "b.toml+w-1"):
        assert is_reference(text)
    for text in ("resnet56", "runs/digits-conv1-0.2-ded2abdad34d", "lenet5/conv105", ""):
        assert not is_reference(text)
    assert parse_reference("lenet5-mini-width+width-20@small@short") == Reference(
        "lenet5-mini-width", "width-20", ("small", "short")
    )
    assert parse_reference("lenet5-mini-conv1+2-0.5@small").point == ""
    for text in ("a@b/c.toml+p-1@x", "lenet5-mini-width@small", "x.toml"):
        assert str(parse_reference(text)) == text


@pytest.mark.parametrize("stem", ["my study", "étude", "_x", "a@b", "x" * 101])
def test_a_file_whose_name_is_no_studys_says_so(write_study: Writer, stem: str) -> None:
    base = 'extends = "digits-conv1-0.2"\n'
    path = write_study(base, f"{stem}.toml")
    with pytest.raises(InputError, match=r'is no name of a study.*: set name = "…" in the study'):
        load_spec(str(path))
    write_study(f'{base}name = "mine"\n', f"{stem}.toml")
    assert load_spec(str(path)).name == "mine"
    assert load_spec(f"{path}@short").name == "mine@short"
    above = write_study(f'extends = "{stem}.toml"\n', "above.toml")
    assert load_spec(str(above)).name == "above"


def test_an_existing_file_may_have_an_at_in_its_name(write_study: Writer) -> None:
    text = 'extends = "digits-conv1-0.2"\nname = "mine"\n'
    path = write_study(f'{text}[grid]\n"dense.epochs" = [1, 2]\n', "a@b.toml")
    assert load_spec(f"{path}+epochs-2@short").name == "mine+epochs-2@short"
    for ending in ("", "@short", "+epochs-2", "+epochs-2@short@small"):
        assert parse_reference(f"{path}{ending}").base == str(path)
        assert str(parse_reference(f"{path}{ending}")) == f"{path}{ending}"
    assert parse_reference(str(path.parent / "c@b.toml")).arms == ("b.toml",)


def test_a_purpose_is_of_its_own_file(write_study: Writer) -> None:
    path = write_study('extends = "digits-conv1-0.2"\npruning.candidates = 5\n')
    assert load_spec("digits-conv1-0.2").purpose
    assert load_spec(str(path)).purpose == ""


@pytest.mark.parametrize("arms", ["", "@small"])
def test_short_is_the_fraction_that_the_list_states(arms: str) -> None:
    for one in (one for one in all_settings() if one.needs_short):
        full, short = (load_spec(f"{one.study}{arms}{end}") for end in ("", "@short"))
        times = 5 if arms else 10
        assert full.retraining.epochs == times * short.retraining.epochs


def test_what_is_ours_is_not_said_to_be_the_papers() -> None:
    published = {one.study for one in all_settings() if one.has_values}
    for name in shipped_studies():
        assert load_spec(name).purpose.startswith("Paper, ") == (name in published)


def test_a_study_file_extends_another(write_study: Writer) -> None:
    path = write_study(
        'extends = "digits-conv1-0.2"\npruning.layers = { conv2 = 0.3 }\nretraining.epochs = 2\n'
    )
    spec = load_spec(str(path))
    base = load_spec("digits-conv1-0.2")
    assert spec.name == "mine"
    assert dict(spec.pruning.layers) == {"conv2": 0.3}
    assert spec.retraining == base.retraining.model_copy(update={"epochs": 2})
    assert spec.dense == base.dense
    write_study('extends = "mine.toml"\nname = "grandchild"\n', "next.toml")
    assert load_spec(str(path.parent / "next.toml")).retraining.epochs == 2
    write_study('extends = "loop.toml"\n', "loop.toml")
    with pytest.raises(InputError, match="extends itself"):
        load_spec(str(path.parent / "loop.toml"))


def test_overrides_have_the_last_word() -> None:
    settings = ["retraining.epochs=3", "data.name=mnist-5k", 'pruning.layers."conv1"=0.3']
    spec = load_spec("lenet5-mini-conv1-0.5@short", parse_overrides([*settings, "criteria=['l2']"]))
    assert spec.retraining.epochs == 3
    assert spec.retraining.milestones == (2,)
    assert spec.data.name == "mnist-5k"
    assert dict(spec.pruning.layers) == {"conv1": 0.3}
    assert spec.criteria == ("l2",)


def test_arguments_are_merged_and_ratios_replaced() -> None:
    spec = spec_from(
        MINIMAL | {"network": {"name": "lenet5-mini", "arguments": {"depth": 6}}},
        {"network.arguments.width": 20, "pruning.layers.conv2": 0.3},
    )
    assert spec.network.arguments == {"depth": 6, "width": 20}
    assert dict(spec.pruning.layers) == {"conv2": 0.3}


@pytest.mark.parametrize(
    "settings",
    [
        ["pruning.layers.conv1=0.2", "pruning.layers.conv2=0.3"],
        ["pruning.layers={conv1=0.2}", 'pruning."layers".conv2=0.3'],
        ["pruning.layers.conv2=0.5", "pruning={layers={conv1=0.2, conv2=0.3}}"],
    ],
)
def test_overrides_of_several_layers_add_up(settings: list[str]) -> None:
    spec = load_spec("digits-conv1-0.2", parse_overrides([*settings, "dense.epochs=1"]))
    assert dict(spec.pruning.layers) == {"conv1": 0.2, "conv2": 0.3}
    spec = load_spec("lenet5-mini-conv3-0.5", parse_overrides(settings))
    assert dict(spec.pruning.layers) == {"conv1": 0.2, "conv2": 0.3}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"retraining.epoch": 3}, "'retraining.epoch': did you mean 'retraining.epochs'"),
        ({"retrain.epochs": 3}, "'retrain.epochs': did you mean 'retraining.epochs'"),
        ({"epochs": 3}, "unknown field 'epochs': did you mean 'retraining.epochs' or 'dense.epo"),
        ({"surgery": "x"}, "unknown field 'surgery': did you mean 'pruning.surgery'? available: "),
        ({"retraining.lora.ran": 2}, "did you mean 'retraining.lora.rank'"),
        ({"qqqq": 2}, "unknown field 'qqqq': available: changed, criteria, data.…, dense.…, "),
        (
            {"pruning.layers.conv1": 1.5},
            "pruning.layers: conv1 takes a ratio between 0 and 1, or in kind 'n:m' a pattern "
            "such as '2:4', got 1.5",
        ),
        ({"pruning.layers": {}}, "pruning.layers: "),
        ({"pruning.candidates": "some"}, "pruning.candidates: expected 'all', a whole number"),
        ({"pruning.candidates": 0}, "a .json or .pkl file, got 0"),
        ({"pruning.candidates": "mine.pickle"}, "a .json or .pkl file, got 'mine.pickle'"),
        ({"pruning.candidates": "mine.pkl", "pruning.seed": 1}, "seed does nothing while"),
        (
            {"pruning.candidates": "mine.pkl", "pruning.kind": "unstructured"},
            "mine.pkl lists filters, which kind = 'structured' prunes",
        ),
        ({"pruning.surgery": "inexact"}, "'exact' or 'as-released', got 'inexact'"),
        ({"pruning.seed": 1}, "pruning: seed does nothing"),
        ({"retraining.seeds": [1, 1]}, "retraining: seeds must differ"),
        ({"retraining.seeds": [-1]}, "retraining.seeds.0: "),
        ({"criteria": ["l1", "l1"]}, "criteria: criteria must differ"),
        ({"name": "../elsewhere"}, "name: "),
        ({"dense.learning_rate": "fast"}, "dense.learning_rate: "),
        (
            {"dense.batch_size": 10**22},
            "less than or equal to 10000000, got 10000000000000000000000",
        ),
        ({"retraining.epochs": True}, "retraining.epochs: true is no number"),
        ({"retraining.gradient_clip": False}, "retraining.gradient_clip: false is no number"),
        ({"dense.warmup": True}, "dense.warmup: true is no number"),
        ({"retraining.seeds": [0, True]}, "retraining.seeds: true is no number"),
        ({"data.validation_images": True}, "data.validation_images: true is no number"),
        ({"data.arguments": {"classes": True}}, "data.arguments: true is no number"),
        ({"retraining.lora": {"rank": True}}, "retraining.lora.rank: true is no number"),
        ({"pruning.candidates": True}, "pruning.candidates: expected 'all', a whole number"),
        ({"dense.shift": 10**8}, "less than or equal to 10000, got 100000000"),
        ({"dense.weight_decay": 1e300}, "less than or equal to 100, got 1e+300"),
    ],
)
def test_a_wrong_field_is_one_clear_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        spec_from(MINIMAL, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match="the study lacks the field network"):
        spec_from({"name": "mine", "pruning": {"layers": {"conv1": 0.5}}})


def test_what_is_no_study_file_is_one_clear_line(write_study: Writer, tmp_path: Path) -> None:
    cases = {
        str(tmp_path / "none.toml"): "no study file",
        str(write_study("name = ", "broken.toml")): "is not TOML",
        str(tmp_path): "unknown study",
        "digits-conv1-0.2@shrt": "unknown arm of 'digits-conv1-0.2' 'shrt': did you mean 'short'",
        "digits-conv1": "did you mean 'digits-conv1-0.2'",
    }
    for reference, message in cases.items():
        with pytest.raises(InputError) as caught:
            load_spec(reference)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value).replace("\\n", "")
    files = {
        'extends = "digits-conv1-02"': "unknown study to extend .*did you mean 'digits-conv1-0.2'",
        "extends = 3": "extends takes a shipped study or a .toml, got 3",
        "arms = 3": "arms are tables of fields",
        "grid = 3": "is a table of fields, each with a list",
        "published = 3": "each published value is a table",
        "[arms]\nshort = 3": "arms are tables of fields",
    }
    for text, message in files.items():
        with pytest.raises(InputError, match=message):
            load_spec(str(write_study(text, "wrong.toml")))
    for setting in ("retraining.epochs", "=3"):
        with pytest.raises(InputError, match="--set takes field=value"):
            parse_overrides([setting])
    with pytest.raises(InputError, match="is not a field"):
        spec_from(MINIMAL, {"a..b": 1})


def test_a_spec_survives_json() -> None:
    spec = load_spec("digits-conv1-0.2")
    again = StudySpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json"))))
    assert again == spec
    assert again.digest == spec.digest


def numbers_of(annotation: Any, bounds: tuple[Any, ...] = ()) -> Iterator[tuple[type, list[Any]]]:
    """Every number within a field's type, with the bounds that hold for it."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        for one in more:
            bounds = (*bounds, *(one.metadata if isinstance(one, FieldInfo) else [one]))
        yield from numbers_of(inner, bounds)
    elif annotation in (int, float):
        yield annotation, list(bounds)
    else:
        for part in get_args(annotation):
            yield from numbers_of(part, bounds)


def number_fields(model: type[BaseModel] = StudySpec) -> Iterator[tuple[str, type, list[Any]]]:
    """Every number of a study: its dotted field, its type and its bounds."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner, kind, bounds in number_fields(field.annotation):
                yield f"{name}.{inner}", kind, bounds
        else:
            for kind, bounds in numbers_of(field.annotation, tuple(field.metadata)):
                yield name, kind, bounds


NUMBERS = list(number_fields())
IN_A_TABLE = {"pruning.layers": "conv1", "network.arguments": "width"}
IN_A_LIST = ("retraining.seeds", "retraining.milestones", "dense.milestones")
BEYOND_USE = (1e300, -1e300, 10**31, -(10**31), 10**5000, math.inf, -math.inf, math.nan)


def with_number(field: str, value: object) -> dict[str, Any]:
    """Overrides that set one number of a study."""
    if field in IN_A_TABLE:
        return {f"{field}.{IN_A_TABLE[field]}": value}
    return {field: [value] if field in IN_A_LIST else value}


def test_every_number_of_a_study_is_found() -> None:
    names = {field for field, _, _ in NUMBERS}
    assert len(names) >= 40
    assert {"pruning.candidates", "data.image_size", "dense.seed", *IN_A_TABLE, *IN_A_LIST} <= names


@pytest.mark.parametrize(("field", "kind", "bounds"), NUMBERS)
def test_every_number_has_a_range(field: str, kind: type, bounds: list[Any]) -> None:
    low = [getattr(b, name) for b in bounds for name in ("ge", "gt") if hasattr(b, name)]
    high = [getattr(b, name) for b in bounds for name in ("le", "lt") if hasattr(b, name)]
    assert low, f"{field} ({kind.__name__}) has no least value"
    assert high, f"{field} ({kind.__name__}) has no largest value"
    assert low[0] < high[0] <= 1e30


@pytest.mark.parametrize("field", sorted({field for field, _, _ in NUMBERS}))
def test_a_number_beyond_use_is_one_clear_line(field: str) -> None:
    for value in BEYOND_USE:
        with pytest.raises(InputError) as caught:
            spec_from(MINIMAL, with_number(field, value))
        message = str(caught.value)
        assert message.startswith(field)
        assert "\n" not in message
        assert len(message) < 300
        text = "a number of thousands of digits" if value == 10**5000 else repr(value)
        assert f"got {text}" in message or f"got [{text}]" in message


def test_a_networks_arguments_are_plain() -> None:
    for value in ({"a": 1}, [[1]], None, [1, math.nan]):
        with pytest.raises(InputError, match=r"network\.arguments: width takes text, true or fal"):
            spec_from(MINIMAL, {"network.arguments.width": value})
    kinds = {"a": 1, "b": 1.5, "c": True, "d": "text", "e": (1, 2.5, "x")}
    arguments = spec_from(MINIMAL, {"network.arguments": kinds}).network.arguments
    assert arguments == kinds
    assert [type(value) for value in arguments.values()] == [int, float, bool, str, tuple]


def test_a_name_is_short_for_a_network_and_for_data() -> None:
    short = spec_from({**MINIMAL, "network": "lenet5-mini", "data": "mnist-5k"})
    assert short.digest == spec_from({**MINIMAL, "network": {"name": "lenet5-mini"}}).digest
    wider = spec_from({**MINIMAL, "network": "lenet5-mini"}, {"network.arguments.width": 8})
    assert (wider.network.name, wider.network.arguments) == ("lenet5-mini", {"width": 8})
    # Another network, of which what its base says does not hold.
    other = spec_from({**MINIMAL, "network": {"name": "mlp", "weights": "a"}}, {"network": "vgg11"})
    assert (other.network.name, other.network.weights) == ("vgg11", None)


def test_a_study_over_several_dense_networks_is_a_study_of_each() -> None:
    several = spec_from(MINIMAL, {"dense.seeds": [4, 0, 2]})
    assert [one.dense.seed for one in several.networks] == [4, 0, 2]
    for one in several.networks:
        alone = spec_from(MINIMAL, {"dense.seed": one.dense.seed})
        assert (one.digest, one.folder_name) == (alone.digest, alone.folder_name)
        assert one.networks == (one,)
    assert len({several.digest, *(one.digest for one in several.networks)}) == 4
    # A list of one is that one, and none is the seed's.
    assert spec_from(MINIMAL, {"dense.seeds": [4]}).digest == several.networks[0].digest
    plain = spec_from(MINIMAL)
    assert (plain.dense.seeds, plain.networks) == (None, (plain,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense.seeds": []}, "dense.seeds: .* at least 1"),
        ({"dense.seeds": [1, 2, 1]}, r"dense: seeds must differ, got \[1, 2, 1\]"),
        ({"dense.seeds": [0.5]}, "dense.seeds.0: .* a fractional part, got 0.5"),
        ({"dense.seeds": [-1]}, "dense.seeds.0: .* got -1"),
        ({"dense.seeds": 3}, "dense.seeds: .* got 3"),
        (
            {"dense.seeds": [0, 1], "dense.seed": 0},
            r"dense: seed = 0 and seeds = \[0, 1\] are both given: leave one out",
        ),
        (
            {"dense.seeds": [0, 1], "network.weights": "dense.safetensors"},
            r"dense.seeds = \[0, 1\] trains a dense network for each, and network 'lenet5-mini' "
            "arrives trained: leave dense.seeds out",
        ),
    ],
)
def test_dense_seeds_that_make_no_study_are_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}") as caught:
        spec_from(MINIMAL, fields)
    assert "\n" not in str(caught.value)
