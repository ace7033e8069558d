from __future__ import annotations

from tests.conftest import Writer
from trueoracle.spec.grid import load_spec, variants
from trueoracle.spec.scale import (
    badge_of,
    changes_from_file,
    changes_in_words,
    scale_in_words,
    scale_of,
    titled,
)
from trueoracle.spec.spec import StudySpec
from trueoracle.study import Study


def test_the_scale_is_that_of_the_arms() -> None:
    small = load_spec("lenet5-mini-conv1-0.5@small@as-released")
    assert (small.scale, small.title) == ("small", f"{small.name} (small scale)")
    short = load_spec("lenet5-mini-conv1-0.5@short")
    assert (short.scale, short.title) == ("full", short.name)


def test_an_arm_of_any_name_may_be_the_small_scale(write_study: Writer) -> None:
    path = write_study(
        'extends = "digits-conv1-0.2"\n[arms.tiny]\nrole = "small"\nretraining.epochs = 11\n'
    )
    spec = load_spec(f"{path}@tiny@short")
    assert (spec.scale, spec.roles) == ("small", {"tiny": "small", "short": "short"})
    assert spec.without("small") == "mine@short"
    assert scale_in_words(spec) == "small scale"
    assert spec.digest == load_spec("digits-conv1-0.2@short").digest


def test_what_a_small_study_has_in_place_of_the_full_one() -> None:
    spec = load_spec("resnet56-cifar10-0.5@small", {"data.name": "mnist-5k"})
    assert scale_in_words(spec) == (
        "small scale: resnet20 (width 8) in place of resnet56, mnist-5k in place of cifar10, "
        "2,000 training images in place of all, 24 candidates in place of 1,000 candidates, "
        "5 epochs in place of 120 epochs, 2 seeds in place of 3 seeds, "
        "data test images 1,000 in place of all, dense epochs 30 in place of 200, "
        "dense batch size 64 in place of 128, dense learning rate 0.05 in place of 0.1, "
        "dense schedule cosine in place of step, dense milestones none in place of 100 and 150, "
        "retraining batch size 64 in place of 128, retraining milestones 3 and 4 in place of 60 "
        "and 90"
    )
    assert scale_in_words(load_spec("resnet56-cifar10-0.5")) == ""
    assert scale_in_words(load_spec("resnet56-cifar10-0.5@short")) == ""
    short = scale_in_words(load_spec("resnet56-cifar10-0.5@small@short"))
    assert "1 epoch in place of 12 epochs" in short


def test_a_network_that_arrives_trained_has_no_recipe() -> None:
    told = scale_in_words(load_spec("vit-b-16-imagenet-mlp-0.5@small"))
    assert "a dense network trained here in place of torchvision:ViT_B_16_Weights" in told
    assert "retraining mixup 0.0 in place of 0.2, retraining cutmix 0.0 in place of 1.0" in told
    assert "dense epochs" not in told


def test_several_studies_say_what_any_of_them_has() -> None:
    names = ("lenet5-mini-conv1-0.5@small", "lenet5-mini-w20-conv1-0.5@small")
    one, other = (load_spec(name, {"pruning.candidates": 60}) for name in names)
    told = scale_in_words(one, other)
    assert told.startswith(scale_in_words(one))
    assert "60 candidates in place of every way to prune" in told
    assert "60 candidates in place of 1,000 candidates" in told
    assert told.count("retraining learning rate 0.01 in place of 0.001") == 1


def test_changes_are_those_from_the_file() -> None:
    changes = {"retraining.epochs": 3, "retraining.milestones": [], "data.test_images": 1000}
    found = changes_from_file(load_spec("lenet5-mini-conv1-0.5@small", changes))
    assert found == {**changes, "retraining.milestones": ()}
    assert changes_in_words(found) == (
        "changed: data.test_images 1,000, retraining.epochs 3, retraining.milestones none"
    )
    for same in ("lenet5-mini-conv1-0.5@small@short", "lenet5-mini-width+width-20@small"):
        assert changes_from_file(load_spec(same)) == {}
    assert changes_in_words({}) == ""


def test_a_study_of_ones_own_remembers_what_was_changed_in_its_file(write_study: Writer) -> None:
    path = str(write_study('extends = "digits-conv1-0.2"\nretraining.epochs = 11\n'))
    plain, same = load_spec(path), {"retraining.epochs": 11}
    assert changes_from_file(plain) == changes_from_file(load_spec(path, same)) == {}
    changes = {"retraining.epochs": 3, "retraining.milestones": [1]}
    words = "changed: retraining.epochs 3, retraining.milestones 1"
    cut = load_spec(path, changes)
    assert badge_of(cut) == words
    assert titled(cut) == f"{cut.name}\n{words}"
    assert (scale_of(plain), scale_of(cut)) == ("full", "changed")
    assert titled(plain) == plain.name
    # Whichever way it was changed: an arm is not a change, and the digest is of the fields alone.
    assert Study(path, overrides=changes).spec == cut
    assert Study(path, retraining={"epochs": 3, "milestones": [1]}).spec == cut
    assert changes_from_file(load_spec(f"{path}@short")) == {}
    assert cut.digest == load_spec("digits-conv1-0.2", changes).digest
    assert badge_of(StudySpec.model_validate(cut.model_dump(mode="json"))) == words


def test_a_file_that_alone_makes_no_study_is_changed_by_all_that_completes_it(
    write_study: Writer,
) -> None:
    path = str(write_study('network = "lenet5-mini"\n'))
    assert badge_of(load_spec(path, {"pruning.layers": {"conv1": 0.2}})) == (
        "changed: pruning.layers conv1 0.2"
    )


def test_the_points_of_a_grid_of_ones_own_remember_it_too(write_study: Writer) -> None:
    path = str(write_study('extends = "digits-conv1-0.2"\n[grid]\n"data.split_seed" = [1, 2]\n'))
    points = variants(path, {"retraining.epochs": 12})
    assert [badge_of(one.spec) for one in points] == ["changed: retraining.epochs 12"] * 2
    assert [badge_of(one.spec) for one in variants(path)] == ["", ""]


def test_a_small_study_of_a_users_own_says_so(write_study: Writer) -> None:
    path = write_study('extends = "digits-conv1-0.2"\n[arms.small.retraining]\nepochs = 11\n')
    assert scale_in_words(load_spec(f"{path}@small")) == "small scale"


def test_candidates_of_a_file_are_not_every_way() -> None:
    spec = load_spec("resnet56-cifar10-0.5@small", {"pruning.candidates": "mine.pkl"})
    told = scale_in_words(spec)
    assert "the candidates of mine.pkl in place of 1,000 candidates" in told
