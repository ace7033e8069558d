"""How long a study's retraining will take here, from a trial of a second or two."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import pairwise

import torch

from trueoracle.data import datasets
from trueoracle.data.splits import Split, Splits
from trueoracle.engines.choose import (
    Plan,
    engine_for,
    plan,
    seconds_alone,
    train_population,
)
from trueoracle.engines.loop import LoopEngine
from trueoracle.networks.copying import copied
from trueoracle.networks.registry import build
from trueoracle.pruning.candidates import CandidateList
from trueoracle.run.footprint import part_sizes
from trueoracle.run.material import list_study, load_study
from trueoracle.run.prepare import find_device
from trueoracle.spec.hub import HF
from trueoracle.spec.spec import StudySpec
from trueoracle.tasks.classification import Classification

__all__ = ["Estimate", "Estimator"]

_IMAGES = 64
_LARGE = 128
"""Images of more pixels per side are tried four at a time, in one network at a time."""

_MOST_AT_ONCE = 8


@dataclass(frozen=True)
class Estimate:
    """The retraining of one study on this machine; seconds of wall time, by one engine."""

    networks: int
    seconds_a_network: float
    engine: str

    @property
    def seconds(self) -> float:
        """The time for retraining all networks, without training the dense network and scoring."""
        return self.networks * self.seconds_a_network


class Estimator:
    """Estimates studies by one trial per distinct network, whose result it keeps.

    Raises :class:`InputError` for a device that cannot be used.
    """

    def __init__(self, device: str = "auto") -> None:
        self._device = find_device(device)
        self._measured: dict[str, tuple[float, str]] = {}
        self._listed: dict[str, int] = {}

    def estimate(self, spec: StudySpec) -> Estimate | None:
        """How long the study's networks take; None where the data set's size is not known.

        Text and questions are loaded for the estimate; nothing is downloaded. Raises
        :class:`InputError` for what makes no study, such as an unknown network.
        """
        if spec.data.is_language:
            return self._of_language(spec)
        if (counts := part_sizes(spec.data)) is None:
            return None
        # Different prunings of one network differ in time less than trials on a busy machine do.
        key = json.dumps(
            [
                spec.network.model_dump(mode="json", exclude={"weights"}),
                spec.data.name,
                spec.data.image_size,
                spec.pruning.kind,
                spec.retraining.model_dump(mode="json", exclude={"seeds", "epochs", "milestones"}),
            ],
            sort_keys=True,
        )
        candidates = None
        if key not in self._measured:
            candidates = list_study(spec)
            self._measured[key] = _try(spec, candidates, self._device)
        seconds_an_image, engine = self._measured[key]
        count = spec.pruning.candidates
        if not isinstance(count, int):
            count = len(candidates or list_study(spec))
        networks = count * len(spec.retraining.seeds)
        trained = counts.train
        evaluated = trained * spec.data.measured_fraction + counts.validation + counts.test
        # Evaluating an image costs about a third of a training step on it.
        recipe = spec.retraining
        images = recipe.epochs * (recipe.examples_in_epoch(trained) + evaluated / 3)
        return Estimate(networks, seconds_an_image * images, engine)

    def _of_language(self, spec: StudySpec) -> Estimate | None:
        """The estimate for text or questions, by the loop; None for a network not at hand."""
        if spec.network.name.startswith(HF) and spec.network.files is None:
            return None
        # One trial serves all retrainings with such a recipe and pruning.
        key = json.dumps([spec.outcome_digest, spec.pruning.model_dump(mode="json")])
        if key not in self._measured:
            data, network, candidates = load_study(spec)
            pruned = candidates.prune(network, 0).to(self._device)
            seconds = seconds_alone(pruned, data.to(self._device), spec.retraining)
            self._listed[key] = len(candidates)
            self._measured[key] = seconds, LoopEngine.name
        seconds, engine = self._measured[key]
        return Estimate(self._listed[key] * len(spec.retraining.seeds), seconds, engine)


def _try(spec: StudySpec, candidates: CandidateList, device: torch.device) -> tuple[float, str]:
    """Seconds per network and trained image, and the engine."""
    info = datasets.dataset_info(spec.data.name, arguments=spec.data.arguments)
    channels, height, width = info.shape
    size = spec.data.image_size
    shape = (channels, size or height, size or width)
    with torch.random.fork_rng(devices=[]):
        dense = build(
            spec.network.name, spec.network.arguments, input_shape=shape, classes=info.classes
        )
    pruned = candidates.prune(dense, 0).to(device)
    large = min(shape[1:]) >= _LARGE
    count = 4 if large else _IMAGES
    images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))
    split = Split.of(images, torch.arange(count) % info.classes)
    data = Splits(split, None, split, Classification(info.classes)).to(device)
    recipe = spec.retraining.model_copy(
        update={
            "epochs": 3,
            "milestones": (),
            "batch_size": min(count, spec.retraining.batch_size),
            "steps_per_epoch": None,
        }
    )
    chosen = Plan("loop", "an estimate")
    if not large:
        chosen = plan(pruned, data, recipe, members=1000, engine=engine_for(candidates, "auto"))
    # Try as many networks as are trained side by side; more would only take longer.
    members = chosen.group * min(chosen.groups, torch.get_num_threads())
    if chosen.groups == 1:
        members = min(members, _MOST_AT_ONCE)
    networks = [copied(pruned) for _ in range(members)]
    ends: list[float] = []
    train_population(
        networks,
        [(0, "")] * members,
        data,
        recipe,
        engine=chosen.engine,
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )
    # The first epoch warms up. Each epoch trains on the images once and evaluates them twice, as
    # the training split and as the test split.
    seconds = min(end - start for start, end in pairwise(ends))
    return seconds / members / (count * (1 + 2 / 3)), chosen.engine
