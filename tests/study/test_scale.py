from __future__ import annotations

from tests.conftest import Writer
from trueoracle.study.scale import scale_in_words, scale_of, titled
from trueoracle.study.spec import load_spec


def test_the_scale_is_that_of_the_arms() -> None:
    assert scale_of("lenet5-mini-conv1-0.5@small@as-released") == "small"
    assert scale_of("small-study@short") == "full"
    assert titled("a@small") == "a@small (small scale)"
    assert titled("a@short") == "a@short"


def test_what_a_small_study_has_in_place_of_the_full_one() -> None:
    spec = load_spec("resnet56-cifar10-0.5@small", {"data.name": "mnist-5k"})
    assert scale_in_words(spec) == (
        "small scale: resnet20 (width 8) in place of resnet56, mnist-5k in place of cifar10, "
        "2,000 training images in place of all, 24 candidates in place of 1,000 candidates, "
        "5 epochs in place of 120 epochs, 2 seeds in place of 3 seeds"
    )
    assert scale_in_words(load_spec("resnet56-cifar10-0.5")) == ""
    assert scale_in_words(load_spec("resnet56-cifar10-0.5@short")) == ""
    short = scale_in_words(load_spec("resnet56-cifar10-0.5@small@short"))
    assert "1 epoch in place of 12 epochs" in short


def test_a_small_study_of_a_users_own_says_so(write_study: Writer) -> None:
    path = write_study('extends = "digits-conv1-0.2"\n[arms.small.retraining]\nepochs = 11\n')
    assert scale_in_words(load_spec(f"{path}@small")) == "small scale"
