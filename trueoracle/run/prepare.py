"""From a spec to all that its stages need: found, checked, and not yet worked on."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from trueoracle.analysis.numbers import many
from trueoracle.criteria.base import Criterion, find_criterion
from trueoracle.criteria.importance import importance_of
from trueoracle.data import datasets
from trueoracle.data.language import load_language
from trueoracle.data.splits import Split, Splits
from trueoracle.engines.base import what_only_the_loop_does
from trueoracle.engines.procedure import find_procedure
from trueoracle.errors import InputError, NotApplicableError, first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.registry import build, is_shipped
from trueoracle.networks.weights import architecture_sha256, load_weights, weights_sha256
from trueoracle.pruning.candidates import CandidateList, Candidates, list_candidates
from trueoracle.pruning.depth import DepthCandidates, check_depth, list_depth_candidates
from trueoracle.pruning.groups import GroupMap
from trueoracle.pruning.parity import check_parity
from trueoracle.pruning.stacks import find_stacks
from trueoracle.pruning.unstructured import WeightCandidates, check_masks, list_weight_candidates
from trueoracle.pruning.walk import find_groups, follow_groups
from trueoracle.run.footprint import (
    check_images,
    check_reading,
    check_training,
    check_weights,
    part_sizes,
)
from trueoracle.run.progress import about
from trueoracle.run.taking import check_taking
from trueoracle.sources import code_fingerprint
from trueoracle.spec.hub import is_of_library
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
    in_words,
    inputs_of,
    is_by_example,
    read_part,
    run_network,
)
from trueoracle.tasks.classification import Classification
from trueoracle.tasks.language import Answers
from trueoracle.tasks.registry import find_task
from trueoracle.training.loop import Training, stream_seed
from trueoracle.training.recipe import Recipe

__all__ = ["Prepared", "build_study", "find_device", "list_study", "load_data", "prepare"]

_SLOW_SECONDS = 1.0
_EXAMPLES = 3
"""Examples that a network is first tried on."""
_CPU = torch.device("cpu")
TOKENS, PIXELS = "input_ids", "pixel_values"
"""The fields of text, and of images beside text, as transformers names them."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A study whose every part has been found and checked; no long work is done yet.

    ``network`` has its initial weights, or its trained ones where the study brings them.
    ``architecture`` tells networks of a user's own apart, whose name does not say all, and folders
    of images. ``skipped`` says of the criteria that do not apply why. ``notes`` say what else is to
    be known before the work begins: how data and weights are read, where there was a choice.
    ``reading_seconds`` is what reading an image from a file takes. ``code`` has hashes of the code
    that task and training procedure of a user's own are made by. ``place`` says which dense network
    of how many this is.
    """

    spec: StudySpec
    data: Splits
    network: nn.Module
    architecture: str
    candidates: CandidateList
    criteria: tuple[Criterion, ...]
    device: torch.device
    skipped: Mapping[str, str]
    notes: tuple[str, ...] = ()
    reading_seconds: float = 0.0
    code: Mapping[str, str] = field(default_factory=dict)
    place: tuple[int, int] = (1, 1)

    @property
    def retrainings(self) -> int:
        """How many networks the study retrains in all."""
        return len(self.candidates) * len(self.spec.retraining.seeds)


def prepare(
    spec: StudySpec,
    *,
    network: nn.Module | None = None,
    data: Splits | None = None,
    task: Task | type[Task] | None = None,
    device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> Prepared:
    """Build the network, list the candidates, load the data; refuse what cannot work.

    ``network``, ``data`` and ``task`` stand in for the spec's where they are given. ``say`` is told
    where the network is so slow that these checks take long themselves. Raises
    :class:`InputError`, in one line, before any long work.
    """
    criteria = tuple(find_criterion(name) for name in spec.criteria)
    if spec.pruning.around is not None:
        find_criterion(spec.pruning.around)
    if spec.retraining.procedure is not None:
        find_procedure(spec.retraining.procedure)
    where = find_device(device)
    if data is not None:
        data = _given(data, spec.data)
    elif spec.data.is_language:  # whose tokenizer says what network there can be
        data = load_data(spec, task)
    if data is None:
        _check_fields(spec.data)
        info = _info(spec.data)
        check_images(spec.data, info.shape)
        of_images = _of_images(task or spec.task, info)
        example, known = _images(info), part_sizes(spec.data)
        count = known.train if known is not None else None
    else:
        of_images, example, count = data.task, _example(data), len(data.train)
    made = copied(network).cpu() if network is not None else _built(spec, data)
    if data is not None:
        check_taking(made, data, example)
    check_training(spec, made, of_images, example, count or _EXAMPLES, where)
    if say is not None and (slow := _slow_in_words(made, of_images, example, spec)):
        say(slow)
    shipped = network is None and is_shipped(spec.network.name)
    # The tests try the groups of all shipped networks of images; those pruned are tried below.
    find = follow_groups if shipped and INPUT in example else find_groups
    candidates, remarks = _list(made, of_images, example, spec, find=find)
    _check_recipes(made, of_images, example, spec)
    _check_training(made, candidates, of_images, example, spec)
    if spec.network.weights is not None:
        remarks.append(load_weights(made, spec.network.weights))
    _check_pruning(made, candidates, example)
    if data is None:  # last, because it may download
        data = load_data(spec, task)
        if count is None:
            check_training(spec, made, data.task, example, len(data.train), where)
    batch = max(spec.dense.batch_size, spec.retraining.batch_size)
    reading = check_reading(data, batch)
    if not shipped:
        # Noise does not bring out all that a forward may do with values.
        few = data.train.take(torch.arange(min(8, len(data.train)))).to(_CPU)
        if len(few) > 1:
            _check_pruning(made, candidates, few.fields)
    _check_batches(made, data, spec)
    _check_around(made, candidates, data, spec.pruning.around)
    named = dict(zip(spec.criteria, criteria, strict=True))
    skipped = _check_criteria(made, candidates, named, data, spec, shipped=shipped)
    architecture = "" if shipped else architecture_sha256(made)
    if not shipped and not spec.network.arrives_trained:
        # A factory of a user's own may begin with other weights than it did.
        architecture += f"-{weights_sha256(made)}"
    if (data.train.is_streamed or spec.data.is_language) and spec.data.fingerprint is None:
        # A path does not say what lies there.
        architecture += f"-images-{data.fingerprint()}"
    data = _in_blocks(made, data, spec.data.blocks)
    return Prepared(
        spec,
        data.to(where),
        made.to(where),
        architecture,
        candidates,
        criteria,
        where,
        skipped,
        (*filter(None, remarks), *(f"data: {n}" for n in (*data.notes, *reading.notes))),
        reading.seconds,
        _code(spec, data.task),
    )


def _in_blocks(network: nn.Module, data: Splits, count: int) -> Splits:
    """The data in blocks of examples, where the task tells what each example adds to its sums."""
    if not count:
        return data
    few = data.train.take(torch.arange(min(_EXAMPLES, len(data.train)))).to(_CPU).fields
    if is_by_example(data.task, run_network(network, few, data.task), few):
        return data.in_blocks(count)
    remark = (
        f"task {data.task.label!r} does not add up what it measures example by example: nothing is "
        "recorded by blocks of examples"
    )
    return replace(data, remarks=(*data.remarks, remark))


def _code(spec: StudySpec, task: Task) -> dict[str, str]:
    """Hashes of the code of a user's own: of a task, a procedure, a criterion drawn around."""
    found = {}
    if ":" in spec.task:
        found["task"] = code_fingerprint(type(task))
    around = spec.pruning.around and find_criterion(spec.pruning.around)
    if around and not around.is_shipped:
        found["pruning.candidates"] = around.fingerprint
    procedure = spec.retraining.procedure and find_procedure(spec.retraining.procedure)
    if inspect.isfunction(procedure):
        found["retraining.procedure"] = code_fingerprint(procedure)
    return found


def list_study(spec: StudySpec) -> CandidateList:
    """The candidates of a study of registered network and data, without loading images.

    Of ``folder`` the names of the classes are read; text and questions are loaded.
    """
    if spec.data.is_language:
        data = load_data(spec)
        network = _built(spec, data)
        return _list(network, data.task, _example(data), spec, find=find_groups)[0]
    info = _info(spec.data)
    network, task = _built(spec, None), _of_images(spec.task, info)
    return _list(network, task, _images(info), spec, find=follow_groups)[0]


def build_study(spec: StudySpec) -> tuple[nn.Module, tuple[int, ...]]:
    """The untrained network of a study, and the shape of its inputs."""
    if spec.data.is_language:
        data = load_data(spec)
        return _built(spec, data), data.network_shape
    return _built(spec, None), _info(spec.data).shape


def load_data(spec: StudySpec, task: Task | type[Task] | None = None) -> Splits:
    """The data set of a study by its name, for ``task`` where it is not the study's own."""
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


def _info(data: DataSpec) -> datasets.DatasetInfo:
    return datasets.dataset_info(
        data.name, path=data.path, image_size=data.image_size, arguments=data.arguments
    )


def _check_fields(spec: DataSpec, of: str = "images of classes") -> None:
    """Refuse fields of text and questions for other data."""
    for name, known in DataSpec.model_fields.items():
        value = getattr(spec, name)
        if f"data.{name}" in LANGUAGE_FIELDS and value != known.default:
            raise InputError(f"data.{name} = {value!r} does nothing for {of}")


def _given(data: Splits, spec: DataSpec) -> Splits:
    """Data given in Python, measured in the part that is asked for."""
    _check_fields(spec, "data given in Python")
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


def _of_images(task: str | Task | type[Task], info: datasets.DatasetInfo) -> Task:
    """The task of a data set that is not loaded yet."""
    if task == Classification.name:
        return Classification(info.classes)
    # One image of each class: all that a task reads off targets.
    labels = torch.arange(info.classes)
    return find_task(task, Split.of(torch.zeros(()).expand(info.classes, *info.shape), labels))


def _built(spec: StudySpec, data: Splits | None) -> nn.Module:
    """The network by its name, for the data set's images or for data that is at hand."""
    name, arguments = spec.network.name, dict(spec.network.arguments)
    if is_of_library(name) and spec.network.weights is not None:
        arguments["pretrained"] = False
    shape, outputs = _wanted(spec, data)
    check_weights(spec, shape, outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(spec.dense.seed, 0, "initial weights"))
        return build(name, arguments, input_shape=shape, classes=outputs)


def _wanted(spec: StudySpec, data: Splits | None) -> tuple[tuple[int, ...], int]:
    """The shape of an image (empty: there is none) and the outputs that a network is built for."""
    if spec.network.is_fixed:
        return (), 0
    if data is None:
        info = _info(spec.data)
        return info.shape, info.classes
    return data.network_shape, data.task.outputs(data.train)


def _noise(*shape: int) -> torch.Tensor:
    # Several examples, none of them constant, so that batch norms have something to norm.
    return torch.rand(_EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))


def _images(info: datasets.DatasetInfo) -> Batch:
    return {INPUT: _noise(*info.shape), TARGET: torch.arange(_EXAMPLES) % info.classes}


def _example(data: Splits) -> Batch:
    """A few examples of data given in Python, with noise in the place of images."""
    index = torch.arange(_EXAMPLES) % len(data.train)
    fields = dict(data.train.take(index).to(_CPU).fields)
    if INPUT in fields and fields[INPUT].is_floating_point():
        fields[INPUT] = _noise(*data.image_shape)
    return fields


def _slow_in_words(network: nn.Module, task: Task, example: Batch, spec: StudySpec) -> str:
    """How long training takes, where one pass over a few examples takes a second or more."""
    tried = copied(network).eval()
    seconds = 0.0
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        with suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
            # What finds the groups says best why a network does not run.
            task.forward(tried, example)
        seconds = time.perf_counter() - started
        if seconds < _SLOW_SECONDS:
            return ""
    recipe = spec.retraining if spec.network.arrives_trained else spec.dense
    epoch = about(3 * 1000 * seconds / _EXAMPLES)  # a step costs three forward passes
    return (
        f"the network takes {seconds:.2g} s for {_EXAMPLES} examples on the CPU: checking the "
        f"study takes minutes, and training it {epoch} for each of "
        f"{many(recipe.epochs, 'epoch')} and 1,000 examples"
    )


def _list(
    network: nn.Module,
    task: Task,
    example: Batch,
    spec: StudySpec,
    *,
    find: Callable[[nn.Module, Any], GroupMap],
) -> tuple[CandidateList, list[str]]:
    """The candidates, once the network is known to fit the task; and what is to be said of it."""
    pruning, given = spec.pruning, as_input(network, example)
    count, seed = _count(pruning), pruning.seed
    listed: CandidateList
    # What finds the groups says best why a network does not run.
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

    In the place of those around a criterion's choice, which the dense network decides, stand as
    many that are sampled.
    """
    given = pruning.candidates
    if isinstance(given, int):
        return given
    if pruning.around is not None:
        return pruning.count or AROUND_COUNT
    return "all" if given == "all" else Path(given)


def _check_answer(network: nn.Module, task: Task, example: Batch, spec: StudySpec) -> list[str]:
    """Refuse a network whose outputs do not fit the task; what a user should know of others."""
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


def _check_pruning(network: nn.Module, candidates: CandidateList, example: Batch) -> None:
    """Try the pruning itself, each kind in its own way."""
    given = as_input(network, example)
    if candidates.units == "weights":
        check_masks(network, cast(WeightCandidates, candidates), given)
    elif candidates.units == "layers":
        check_depth(network, cast(DepthCandidates, candidates), given)
    else:
        check_parity(network, cast(Candidates, candidates), given)


def _check_recipes(network: nn.Module, task: Task, example: Batch, spec: StudySpec) -> None:
    if not any(p.requires_grad for p in network.parameters()):
        raise InputError("none of the network's parameters requires a gradient: nothing can train")
    shape = tuple(example[INPUT].shape[1:]) if INPUT in example else ()
    is_image = len(shape) == 3 and example[INPUT].is_floating_point()
    classes = task.classes if isinstance(task, Classification) else None
    for stage, recipe in (("dense", spec.dense), ("retraining", spec.retraining)):
        for name in ("shift", "flip", "resized_crop", "cutmix"):
            if getattr(recipe, name) and not is_image:
                raise InputError(f"{stage}.{name} needs images [C, H, W], got {in_words(example)}")
            if getattr(recipe, name) and task.has_spatial_targets:
                raise InputError(
                    f"{stage}.{name} would move images and not what task {task.label!r} compares "
                    "them with: augment the data that is given"
                )
        if recipe.shift and recipe.shift >= min(shape[1:]):
            raise InputError(
                f"{stage}.shift = {recipe.shift:,} moves images of {shape[1]}x{shape[2]} pixels "
                "out of sight: expected fewer pixels than a side has"
            )
        for name in ("mixup", "cutmix", "label_smoothing"):
            if getattr(recipe, name) and classes is None:
                raise InputError(f"{stage}.{name} needs classes, and task {task.label!r} has none")
        if recipe.mixup or recipe.cutmix:
            logits = run_network(network, example, task).shape[1]
            if logits != classes:
                raise InputError(
                    f"{stage}.mixup and {stage}.cutmix need one logit for each of {classes} "
                    f"classes: network {spec.network.name!r} gives {logits}"
                )
    if spec.retraining.distil is not None:
        task.logits(run_network(network, example, task))


def _check_training(
    network: nn.Module, candidates: CandidateList, task: Task, example: Batch, spec: StudySpec
) -> None:
    """Try a step of each recipe that lays something on the network, on networks of its stage."""
    data = Splits(Split(example), None, Split(example), task)
    stages: list[tuple[str, Recipe, Callable[[], nn.Module]]] = [
        ("retraining", spec.retraining, lambda: candidates.prune(network, 0))
    ]
    if not spec.network.arrives_trained:
        stages.append(("dense", spec.dense, lambda: copied(network)))
    for stage, recipe, made in stages:
        if what_only_the_loop_does(recipe):
            try:
                Training(made(), data, recipe, (0, "")).check(example)
            except InputError as error:
                raise InputError(f"{stage}: {error}") from error


def _check_batches(network: nn.Module, data: Splits, spec: StudySpec) -> None:
    """Refuse a last batch of one image where the network cannot train on one."""
    for stage, recipe in (("dense", spec.dense), ("retraining", spec.retraining)):
        if stage == "dense" and spec.network.arrives_trained:
            continue
        size = recipe.batch_size
        if (len(data.train) % size or size) > 1:
            continue
        try:
            data.task.forward(copied(network).train(), data.example(1))
        except Exception as error:  # the user's forward runs: anything can come out
            raise InputError(
                f"{stage}.batch_size = {size} leaves a last batch of one example (of "
                f"{len(data.train):,}), on which the network cannot train: {first_line(error)}"
            ) from error


def _check_around(
    network: nn.Module, candidates: CandidateList, data: Splits, name: str | None
) -> None:
    """Refuse to draw candidates around a criterion that does not score filters or weights."""
    if name is None:
        return
    try:
        importance_of(find_criterion(name), copied(network).eval(), candidates, data.few(16))
    except NotApplicableError as reason:
        if not reason.of_images:  # all of them may tell otherwise
            raise InputError(f"pruning.candidates = 'around:{name}': {reason}") from reason


def _check_criteria(
    network: nn.Module,
    candidates: CandidateList,
    criteria: Mapping[str, Criterion],
    data: Splits,
    spec: StudySpec,
    *,
    shipped: bool,
) -> dict[str, str]:
    """Try criteria on a few candidates and images, before anything rests on them.

    Those of a user's own; those shipped that do not apply to everything; and all of them where the
    network is not ``shipped``, on which any of them may fail. Returns why some do not apply, or,
    of those that come with the package, fail; raises :class:`InputError` where that is all of them,
    and where a user's own fails.
    """
    skipped: dict[str, str] = {}
    for name, criterion in criteria.items():
        if shipped and criterion.is_shipped and not criterion.conditional:
            try:
                criterion.check(candidates)
            except NotApplicableError as reason:
                skipped[name] = str(reason)
            continue
        few, count = (1, 16) if criterion.is_shipped else (3, 64)
        try:
            criterion(
                copied(network).eval(),
                candidates.take(range(min(few, len(candidates)))),
                data.few(count),
                spec.retraining,
            )
        except NotApplicableError as reason:
            if not reason.of_images:  # all of them may tell otherwise
                skipped[name] = str(reason)
        except InputError as reason:
            if not criterion.is_shipped:  # its author mends it
                raise
            skipped[name] = str(reason)
    if len(skipped) == len(criteria):
        raise InputError(f"no criterion of the study applies: {'; '.join(skipped.values())}")
    return skipped


def find_device(name: str) -> torch.device:
    """A device by its torch name, or ``auto``; raises :class:`InputError` where none works."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device
