"""From a spec to all that its stages need, which is found and checked but not yet worked on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from trueoracle.criteria.base import Criterion, find_criterion, split_settings
from trueoracle.data.splits import Splits
from trueoracle.engines.procedure import find_procedure
from trueoracle.errors import InputError, first_line
from trueoracle.networks.copying import copied
from trueoracle.networks.registry import is_shipped
from trueoracle.networks.weights import architecture_sha256, load_weights, weights_sha256
from trueoracle.pruning.candidates import CandidateList
from trueoracle.pruning.walk import find_groups, follow_groups
from trueoracle.run.footprint import (
    check_images,
    check_reading,
    check_training,
    part_sizes,
)
from trueoracle.run.material import (
    EXAMPLES,
    as_given,
    built,
    candidates_of,
    check_fields,
    hub_commit,
    images_task,
    info_of,
    load_data,
    noise_images,
    noise_of,
)
from trueoracle.run.taking import check_taking
from trueoracle.run.trials import (
    slow_in_words,
    try_around,
    try_batches,
    try_criteria,
    try_pruning,
    try_recipes,
    try_training,
)
from trueoracle.sources import named_fingerprint
from trueoracle.spec.spec import (
    StudySpec,
)
from trueoracle.tasks.base import (
    INPUT,
    Task,
    is_by_example,
    run_network,
)
from trueoracle.tasks.registry import GIVEN, TASKS
from trueoracle.training.team import find_team

__all__ = ["Prepared", "find_device", "prepare"]

_CPU = torch.device("cpu")


@dataclass(frozen=True, repr=False, eq=False)
class Prepared:
    """A study whose every part has been found and checked; no long work is done yet.

    - ``network`` has its initial weights, or trained ones where the study brings them;
    - ``architecture`` tells apart a user's own networks, whose names do not say all, and folders of
      images;
    - ``skipped`` has the criteria that do not apply, each with the reason;
    - ``notes`` say what else a user should know before the work begins: how data and weights are
      read, where there was a choice;
    - ``reading_seconds`` is the time that reading an image from a file takes;
    - ``code`` has hashes of the code of a user's own task and training procedure;
    - ``place`` says which dense network this is, of how many.
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

    def __repr__(self) -> str:
        return (
            f"<Prepared {self.spec.name}: {len(self.candidates):,} candidates, criteria "
            f"{', '.join(self.spec.criteria)}, {self.retrainings:,} networks to retrain, on "
            f"{self.device}>"
        )

    @property
    def retrainings(self) -> int:
        """The number of networks that the study retrains."""
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

    ``network``, ``data`` and ``task`` replace the spec's where they are given. ``say`` is called
    with a line where the network is so slow that these checks take long themselves. Raises
    :class:`InputError`, in one line, before any long work.
    """
    criteria = tuple(find_criterion(name) for name in spec.criteria)
    if spec.pruning.around is not None:
        find_criterion(spec.pruning.around)
    if spec.retraining.procedure is not None:
        find_procedure(spec.retraining.procedure)
    where = find_device(device)
    if data is not None:
        data = as_given(data, spec.data)
    elif spec.data.is_language:  # loaded first, since the network depends on the tokenizer
        data = load_data(spec, task)
    if data is None:
        check_fields(spec.data)
        info = info_of(spec.data)
        check_images(spec.data, info.shape)
        of_images = images_task(task or spec.task, info)
        example, known = noise_images(info), part_sizes(spec.data)
        count = known.train if known is not None else None
    else:
        of_images, example, count = data.task, noise_of(data), len(data.train)
    made = copied(network).cpu() if network is not None else built(spec, data)
    if data is not None:
        check_taking(made, data, example)
    check_training(spec, made, of_images, example, count or EXAMPLES, where)
    if say is not None and (slow := slow_in_words(made, of_images, example, spec)):
        say(slow)
    shipped = network is None and is_shipped(spec.network.name)
    # The tests try all groups of shipped image networks; only the pruned ones are tried below.
    find = follow_groups if shipped and INPUT in example else find_groups
    candidates, remarks = candidates_of(made, of_images, example, spec, find=find)
    if (commit := hub_commit(spec)) is not None:
        remarks.append(f"network: {spec.network.name} at commit {commit} of the hub")
    try_recipes(made, of_images, example, spec)
    try_training(made, candidates, of_images, example, spec)
    if spec.network.weights is not None:
        remarks.append(load_weights(made, spec.network.weights))
    try_pruning(made, candidates, example)
    if data is None:  # last, because it may download
        data = load_data(spec, task)
        if count is None:
            check_training(spec, made, data.task, example, len(data.train), where)
    batch = max(spec.dense.batch_size, spec.retraining.batch_size)
    reading = check_reading(data, batch)
    if not shipped:
        # Noise does not show all that a forward may do with values.
        few = data.train.take(torch.arange(min(8, len(data.train)))).to(_CPU)
        if len(few) > 1:
            try_pruning(made, candidates, few.fields)
    try_batches(made, data, spec)
    try_around(made, candidates, data, spec.pruning.around)
    named = dict(zip(spec.criteria, criteria, strict=True))
    skipped = try_criteria(made, candidates, named, data, spec, shipped=shipped)
    architecture = "" if shipped else architecture_sha256(made)
    if not shipped and not spec.network.arrives_trained:
        # A user's own factory may begin with other weights than before.
        architecture += f"-{weights_sha256(made)}"
    if (data.train.is_streamed or spec.data.is_language) and spec.data.fingerprint is None:
        # A path does not say which images lie there.
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
    """The data in blocks of examples, where the task has sums for each example."""
    if not count:
        return data
    few = data.train.take(torch.arange(min(EXAMPLES, len(data.train)))).to(_CPU).fields
    if is_by_example(data.task, run_network(network, few, data.task), few):
        return data.in_blocks(count)
    remark = (
        f"task {data.task.label!r} does not add up what it measures example by example: nothing is "
        "recorded by blocks of examples"
    )
    return replace(data, remarks=(*data.remarks, remark))


def _code(spec: StudySpec, task: Task) -> dict[str, str]:
    """Hashes of a user's own code: of task, procedure, and the criterion drawn around.

    A hash is empty where nothing is known of the code.
    """
    found = {}
    if ":" in spec.task:
        found["task"] = named_fingerprint(type(task))
        # The content of a task that is given in Python is part of its name.
        if not spec.task.startswith(GIVEN) and isinstance(named := TASKS.find(spec.task), Task):
            found["task.object"] = named_fingerprint(named, spec.task)
    if (name := spec.pruning.around) and not (around := find_criterion(name)).is_shipped:
        found["pruning.candidates"] = around.fingerprint or named_fingerprint(
            around.function, split_settings(name)[0]
        )
    if (name := spec.retraining.procedure) is not None:
        found["retraining.procedure"] = named_fingerprint(find_procedure(name), name)
    return found


def find_device(name: str) -> torch.device:
    """A device by its torch name or ``auto``; raises :class:`InputError` where it does not work."""
    if name == "auto" and (team := find_team()) is not None:
        return team.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return device
