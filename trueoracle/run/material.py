"""What a study works with: its data, its network and its candidates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from trueoracle.data import datasets
from trueoracle.data.language import load_language
from trueoracle.data.splits import Split, Splits
from trueoracle.errors import InputError
from trueoracle.networks.copying import copied
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import CandidateList, list_candidates
from trueoracle.pruning.depth import list_depth_candidates
from trueoracle.pruning.groups import GroupMap
from trueoracle.pruning.stacks import find_stacks
from trueoracle.pruning.unstructured import list_weight_candidates
from trueoracle.pruning.walk import find_groups, follow_groups
from trueoracle.run.footprint import (
    check_weights,
)
from trueoracle.spec.hub import HF, commit_of, folder_of, is_of_library
from trueoracle.spec.spec import (
    AROUND_COUNT,
    LANGUAGE_FIELDS,
    TEXTS,
    DataSpec,
    PruningSpec,
    StudySpec,
)
from trueoracle.tasks.base import (
    INPUT,
    TARGET,
    Batch,
    Task,
    as_input,
    inputs_of,
    read_part,
    run_network,
)
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.language import Answers
from trueoracle.tasks.registry import find_task
from trueoracle.training.loop import stream_seed

__all__ = [
    "EXAMPLES",
    "as_given",
    "build_study",
    "built",
    "candidates_of",
    "check_fields",
    "hub_commit",
    "images_task",
    "info_of",
    "list_study",
    "load_data",
    "load_study",
    "noise_images",
    "noise_of",
]

EXAMPLES = 3
"""The number of examples that a network is first tried on."""
_CPU = torch.device("cpu")


def hub_commit(spec: StudySpec) -> str | None:
    """The commit of the hub that a study's network is taken from; None for any other network."""
    if not spec.network.name.startswith(HF):
        return None
    revision = spec.network.arguments.get("revision")
    wanted = None if revision is None else str(revision)
    return commit_of(folder_of(spec.network.name.removeprefix(HF), wanted))


def list_study(spec: StudySpec) -> CandidateList:
    """The candidates of a study of registered network and data, without loading images.

    For the data set ``folder``, the names of the classes are read; text and questions are loaded.
    Nothing is downloaded: raises :class:`InputError` for a network of the hub that is not at hand.
    """
    if spec.network.name.startswith(HF) and spec.network.files is None:
        raise InputError(f"{spec.network.name} is not here, and a list downloads nothing")
    if spec.data.is_language:
        return load_study(spec)[2]
    info = info_of(spec.data)
    network, task = built(spec, None), images_task(spec.task, info)
    return candidates_of(network, task, noise_images(info), spec, find=follow_groups)[0]


def load_study(spec: StudySpec) -> tuple[Splits, nn.Module, CandidateList]:
    """The data of a study by name, its network before training, and its candidates."""
    data = load_data(spec)
    network = built(spec, data)
    return (
        data,
        network,
        candidates_of(network, data.task, noise_of(data), spec, find=find_groups)[0],
    )


def build_study(spec: StudySpec) -> tuple[nn.Module, tuple[int, ...]]:
    """The untrained network of a study, and the shape of its inputs."""
    if spec.data.is_language:
        data = load_data(spec)
        return built(spec, data), data.network_shape
    return built(spec, None), info_of(spec.data).shape


def load_data(spec: StudySpec, task: Task | type[Task] | None = None) -> Splits:
    """The data set of a study by name, for another ``task`` than the study's where one is given."""
    if spec.data.is_language:
        if spec.data.name in TEXTS and (task or spec.task) == Answers.name:
            raise InputError(
                f"task 'answers' is of questions, and data set {spec.data.name!r} is text: "
                "expected task 'next-token'"
            )
        revision = spec.network.arguments.get("revision")
        data = load_language(
            spec.data,
            spec.network.name,
            datasets.data_folder(),
            None if revision is None else str(revision),
        )
        if (task or spec.task) != data.task.label:
            data = replace(data, task=find_task(task or spec.task, data.train))
        return data
    data = datasets.load(
        spec.data.name,
        validation_images=spec.data.validation_images,
        split_seed=spec.data.split_seed,
        path=spec.data.path,
        image_size=spec.data.image_size,
        train_images=spec.data.train_images,
        test_images=spec.data.test_images,
        measured_fraction=spec.data.measured_fraction,
        arguments=spec.data.arguments,
    )
    if task is not None or spec.task not in (Classification.name, data.task.name):
        data = replace(data, task=find_task(task or spec.task, data.train))
    return data


def info_of(data: DataSpec) -> datasets.DatasetInfo:
    """What is known of a data set of images before it is loaded."""
    return datasets.dataset_info(
        data.name, path=data.path, image_size=data.image_size, arguments=data.arguments
    )


def check_fields(spec: DataSpec, of: str = "images of classes") -> None:
    """Refuse fields of text and questions for other data."""
    for name, known in DataSpec.model_fields.items():
        value = getattr(spec, name)
        if f"data.{name}" in LANGUAGE_FIELDS and value != known.default:
            raise InputError(f"data.{name} = {value!r} does nothing for {of}")


def as_given(data: Splits, spec: DataSpec) -> Splits:
    """Data given in Python, measured on the share of examples that the spec sets."""
    check_fields(spec, "data given in Python")
    for name in ("path", "arguments", "image_size", "train_images", "test_images"):
        if (value := getattr(spec, name)) not in (None, {}):
            raise InputError(f"data.{name} = {value!r} does nothing for data given in Python")
    if spec.validation_images != len(data.validation or ()):
        raise InputError(
            f"data.validation_images = {spec.validation_images} does nothing for data given in "
            f"Python, which has {len(data.validation or ())}"
        )
    if data.measured is not None:
        if spec.measured_fraction != 1:
            raise InputError(
                f"data.measured_fraction = {spec.measured_fraction} does nothing for data that "
                "says itself what train loss is measured on"
            )
        return data
    return data.measured_in_part(spec.measured_fraction, spec.split_seed)


def images_task(task: str | Task | type[Task], info: datasets.DatasetInfo) -> Task:
    """The task of a data set that is not loaded yet."""
    if task == Classification.name:
        return Classification(info.classes)
    # One image of each class: a task reads no more from targets.
    labels = torch.arange(info.classes)
    return find_task(task, Split.of(torch.zeros(()).expand(info.classes, *info.shape), labels))


def built(spec: StudySpec, data: Splits | None) -> nn.Module:
    """The network by name, for the images of the spec's data set or for the given ``data``."""
    name, arguments = spec.network.name, dict(spec.network.arguments)
    if is_of_library(name) and spec.network.weights is not None:
        arguments["pretrained"] = False
    shape, outputs = _wanted(spec, data)
    check_weights(spec, shape, outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(spec.dense.seed, 0, "initial weights"))
        return build(name, arguments, input_shape=shape, classes=outputs)


def _wanted(spec: StudySpec, data: Splits | None) -> tuple[tuple[int, ...], int]:
    """An image's shape (empty without images) and the outputs that a network is built for."""
    if spec.network.is_fixed:
        return (), 0
    if data is None:
        info = info_of(spec.data)
        return info.shape, info.classes
    return data.network_shape, data.task.outputs(data.train)


def _noise(*shape: int) -> torch.Tensor:
    # Several examples, none of them constant, so that batch norms can normalise them.
    return torch.rand(EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def noise_images(info: datasets.DatasetInfo) -> Batch:
    """A few images of noise, in the shape of a data set's, with classes."""
    return {INPUT: _noise(*info.shape), TARGET: torch.arange(EXAMPLES) % info.classes}


def noise_of(data: Splits) -> Batch:
    """A few examples of data given in Python, with noise in the place of images."""
    index = torch.arange(EXAMPLES) % len(data.train)
    fields = dict(data.train.take(index).to(_CPU).fields)
    if INPUT in fields and fields[INPUT].is_floating_point():
        fields[INPUT] = _noise(*data.image_shape)
    return fields


def candidates_of(
    network: nn.Module,
    task: Task,
    example: Batch,
    spec: StudySpec,
    *,
    find: Callable[[nn.Module, Any], GroupMap],
) -> tuple[CandidateList, list[str]]:
    """The candidates and notes for the user, after checking that the network fits the task."""
    pruning, given = spec.pruning, as_input(network, example)
    count, seed = _count(pruning), pruning.seed
    listed: CandidateList
    # Finding the groups comes first: its error best explains why a network does not run.
    if pruning.kind == "structured":
        groups = find(network, given)
        remarks = _check_answer(network, task, example, spec)
        listed = list_candidates(
            groups, pruning.layers, count=count, seed=seed, surgery=pruning.surgery
        )
    elif pruning.kind == "depth":
        stacks = find_stacks(network, given)
        remarks = _check_answer(network, task, example, spec)
        listed = list_depth_candidates(stacks, pruning.layers, count=count, seed=seed)
    else:
        remarks = _check_answer(network, task, example, spec)
        listed = list_weight_candidates(
            network,
            pruning.layers,
            count=cast(int | Path, count),
            seed=seed,
            scope=pruning.scope,
        )
    return listed, remarks


def _count(pruning: PruningSpec) -> int | Literal["all"] | Path:
    """How many candidates, or the file that lists them.

    Candidates around a criterion's choice depend on the dense network; as many sampled candidates
    stand in for them.
    """
    given = pruning.candidates
    if isinstance(given, int):
        return given
    if pruning.around is not None:
        return pruning.count or AROUND_COUNT
    return "all" if given == "all" else Path(given)


def _check_answer(network: nn.Module, task: Task, example: Batch, spec: StudySpec) -> list[str]:
    """Refuse a network whose outputs do not fit the task; returns notes on one that fits."""
    outputs = run_network(network, example, task)
    try:
        said = list(task.check(outputs, example))
    except InputError as error:
        raise InputError(f"network {spec.network.name!r}: {error}") from error
    read = ""
    if type(task).forward is Task.forward:
        args, kwargs = inputs_of(network, example)
        with torch.no_grad():
            read = read_part(copied(network).eval()(*args, **kwargs))[1]
    return [f"network: {note}" for note in filter(None, [read, *said])]
