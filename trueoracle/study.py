"""A study in Python: from a name, a file or fields to results."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from trueoracle.criteria.base import given_criterion
from trueoracle.data.given import as_splits
from trueoracle.data.splits import Splits
from trueoracle.engines.memory import parse_bytes
from trueoracle.errors import InputError, first_line, unknown
from trueoracle.networks.copying import copied
from trueoracle.networks.weights import architecture_sha256, weights_sha256
from trueoracle.record.networks import write_networks
from trueoracle.record.pooled import open_results
from trueoracle.record.results import Results
from trueoracle.run import runner
from trueoracle.run.prepare import Prepared, prepare
from trueoracle.run.progress import Progress, as_progress
from trueoracle.run.retrain import check_retraining
from trueoracle.run.tracking import check_tracker, tracked
from trueoracle.search.settings import SearchSettings
from trueoracle.spec.file import is_own_file, merged, spec_from, with_files
from trueoracle.spec.grid import load_spec
from trueoracle.spec.hub import is_of_library
from trueoracle.spec.spec import StudySpec
from trueoracle.tasks.base import Task
from trueoracle.tasks.registry import GIVEN, find_task, given_task
from trueoracle.trust import believe, vouch

if TYPE_CHECKING:
    from trueoracle.report.page import WrittenReport
    from trueoracle.search.search import SearchResult

__all__ = ["Study"]


class Study:
    """One dense network × one pruning × criteria × a retraining recipe × seeds.

    A shipped study, with a field overridden::

        results = Study("digits-conv1-0.2", overrides={"retraining.epochs": 3}).run()

    A trained network and tensors (or a ``Dataset``) of one's own::

        study = Study(
            name="mine", network=network, data=((train_x, train_y), (test_x, test_y)),
            pruning={"layers": {"conv1": 0.5}}, retraining={"epochs": 5, "seeds": [0, 1]},
        )
        results = study.run()
        results.correlate()
        results.plot("oracle").savefig("scatter.png")

    Over several dense networks, whose results are :class:`trueoracle.record.pooled.PooledResults`::

        Study("digits-conv1-0.2", overrides={"dense.seeds": [0, 1, 2]}).run().correlate()
    """

    def __init__(
        self,
        study: str | Path | StudySpec | nn.Module | None = None,
        *,
        network: nn.Module | str | Mapping[str, Any] | None = None,
        data: object = None,
        task: str | Task | type[Task] | None = None,
        columns: Mapping[str, str] | None = None,
        overrides: Mapping[str, Any] | None = None,
        runs: str | Path = "runs",
        allow_code: bool = False,
        **fields: Any,
    ) -> None:
        """Read the study; raises :class:`InputError`, in one line, where no valid study results.

        - ``network`` is a name, fields, or a trained ``nn.Module``, which is copied and left
          unchanged. A module, or the name of another library's network (``"hf:…"``), may also be
          given as the first argument.
        - ``data`` is a name, fields, or splits as :func:`trueoracle.data.given.as_splits` takes
          them, with ``columns`` to name their fields.
        - ``task`` is a name, or a :class:`trueoracle.Task` of one's own.
        - ``criteria``, one of the ``fields``, lists names and functions of one's own
          (:func:`trueoracle.criteria.base.given_criterion`).
        - ``overrides`` maps dotted fields to values.
        - Results are kept below ``runs``.
        - With ``allow_code``, a study file outside the current project may also name code
          (``module:attribute``) that is run.
        """
        if allow_code:
            believe()
        if isinstance(study, nn.Module) or (isinstance(study, str) and is_of_library(study)):
            if network is not None:
                raise InputError(f"two networks are given: {_called(study)} and network=…")
            fields.setdefault("name", _called(study))
            network, study = study, None
        self._network = copied(network) if isinstance(network, nn.Module) else None
        self._data: Splits | None = None
        is_own = isinstance(study, str | Path) and is_own_file(str(study)) and "name" not in fields
        if study is not None and not isinstance(study, StudySpec):
            study = load_spec(str(study))
        if isinstance(data, Splits):  # which has a task already
            if task is not None and find_task(task, data.train).label != data.task.label:
                raise InputError(
                    f"the data is made for task {data.task.label!r}, and task is {task!r}: leave "
                    "one of them out"
                )
            task = data.task
        self._task = None if isinstance(task, str) else task
        changes: dict[str, Any] = dict(fields)
        overrides = dict(overrides or {})
        for given in (changes, overrides):
            if isinstance(given.get("criteria"), list | tuple):
                given["criteria"] = [given_criterion(one) for one in given["criteria"]]
        if isinstance(network, nn.Module):
            changes["network"] = {
                "name": type(network).__name__,
                "fingerprint": _fingerprint(network),
            }
        elif network is not None:
            changes["network"] = {"name": network} if isinstance(network, str) else network
        if task is not None:
            changes["task"] = task if isinstance(task, str) else given_task(task)
        if isinstance(data, str):
            changes["data"] = {"name": data}
        elif isinstance(data, Mapping) and not {"train", "test"} <= data.keys():
            changes["data"] = dict(data)
        elif data is not None:
            of_study = (study.task, study.data.uint8) if study else ("classification", None)
            wanted, uint8 = task or of_study[0], (overrides or {}).get("data.uint8") or of_study[1]
            self._data = as_splits(data, wanted, uint8=uint8, columns=columns)
            changes["data"] = {
                "name": "given",
                "validation_images": len(self._data.validation or ()),
                "fingerprint": self._data.fingerprint(),
            }
        vouch(changes)
        vouch(overrides or {})
        if study is None:
            if "name" not in changes:
                raise InputError("a study needs a name, such as Study(name='mine', …)")
            self.spec = spec_from(changes, overrides)
        else:
            base = study.model_dump(exclude_unset=True)
            for field, value in (("network", network), ("data", data)):
                if value is not None and not isinstance(value, Mapping):
                    base.pop(field, None)  # it is replaced as a whole, not merged
            self.spec = spec_from(merged(base, changes), overrides)
            if is_own and (changed := tuple(self.spec.differences(study))):
                self.spec = self.spec.model_copy(update={"changed": changed})
        self.folder = Path(runs) / self.spec.folder_name

    @property
    def networks(self) -> tuple[Study, ...]:
        """One study per dense network, each with its own folder; for one network, this study."""
        if len(self.spec.networks) == 1:
            return (self,)
        each = []
        for spec in self.spec.networks:
            one = copy.copy(self)
            one.spec, one.folder = spec, self.folder.parent / spec.folder_name
            each.append(one)
        return tuple(each)

    def prepare(self, device: str = "auto", *, progress: bool | Progress = False) -> Prepared:
        """Check everything and list the candidates, for the first dense network.

        This is no long work, except for downloading a network. ``progress`` gets a message where a
        network is downloaded, or is so slow that the checks take minutes.
        """
        if self.spec.network.fingerprint and self._network is None:
            raise InputError(f"{self.spec.name} needs its network: Study(…, network=…)")
        if self.spec.data.fingerprint and self._data is None:
            raise InputError(f"{self.spec.name} needs its data: Study(…, data=…)")
        if self.spec.task.startswith(GIVEN) and self._task is None:
            raise InputError(f"{self.spec.name} needs its task: Study(…, task=…)")
        say = as_progress(progress).message
        if self.spec.network.files is None:  # files that are not here yet are downloaded
            self.spec = with_files(self.spec, say)
            self.folder = self.folder.parent / self.spec.folder_name
        return prepare(
            self.spec.networks[0],
            network=self._network,
            data=self._data,
            task=self._task,
            device=device,
            say=say,
        )

    def check(self, device: str = "auto", engine: str | None = None) -> None:
        """Prepare the study, and try an ``engine`` if one is given, without long work.

        Raises :class:`InputError` where the study cannot run.
        """
        prepared = self.prepare(device)
        if engine is not None:
            check_retraining(prepared, engine)

    def run(
        self,
        *,
        progress: bool | Progress = True,
        device: str = "auto",
        engine: str = "auto",
        memory: str | None = None,
        executor: Executor | None = None,
        retry_failed: bool = False,
        track: str | None = None,
    ) -> Results:
        """Carry the study out, or go on where it stopped, and return its results.

        Several dense networks are trained, pruned and retrained one after the other.

        - ``progress`` prints plain lines to standard error; False is silent.
        - ``device`` is ``"auto"`` (CUDA where there is one), or a torch device name.
        - ``engine`` is ``"auto"``, ``"native"``, ``"wide"`` or ``"loop"``, and changes speed, not
          results.
        - ``memory`` (such as ``"4GB"``) bounds how many candidates are retrained at once; by
          default half of the free memory is used.
        - ``executor`` runs the retraining: a :class:`trueoracle.RayExecutor`, a
          :class:`trueoracle.SlurmExecutor`, or any ``concurrent.futures.Executor`` of processes; by
          default this process does. It changes no results.
        - A network whose retraining raises an error is recorded in ``Results.failures``, and the
          study goes on. Running again leaves it so, unless ``retry_failed`` is true.
        - ``track`` also logs what is recorded, live, to ``"tensorboard"``, ``"wandb"`` or
          ``"mlflow"`` (:mod:`trueoracle.run.tracking`).
        """
        budget = None if memory is None else parse_bytes(memory)
        if track is not None:
            check_tracker(track)

        def carry_out(prepared: Prepared, folder: Path, progress: Progress) -> None:
            with tracked(track, prepared.spec, folder, progress) as shown:
                runner.run(
                    prepared,
                    folder,
                    shown,
                    engine=engine,
                    memory=budget,
                    executor=executor,
                    retry_failed=retry_failed,
                )

        return self._each(as_progress(progress), device, carry_out)

    def score(self, *, progress: bool | Progress = True, device: str = "auto") -> Results:
        """Score every candidate without retraining any; :meth:`run` goes on from there.

        :meth:`Results.ranking` then ranks the scores::

            Study("lenet5-mini-conv1-0.5").score().ranking("oracle").sentence()
        """
        return self._each(as_progress(progress), device, runner.score)

    def _each(
        self,
        progress: Progress,
        device: str,
        carry_out: Callable[[Prepared, Path, Progress], None],
    ) -> Results:
        """Carry out the study of each dense network."""
        each = self.networks
        for place, one in enumerate(each, start=1):
            if len(each) > 1:
                name = f"dense network {place} of {len(each)} (dense.seed = {one.spec.dense.seed})"
                progress.message(f"{self.spec.name}, {name}")
            prepared = one.prepare(device, progress=progress)
            if len(each) > 1 and place == 1:  # a study that cannot run has written nothing
                write_networks(self.folder, self.spec)
            carry_out(replace(prepared, place=(place, len(each))), one.folder, progress)
        return self.results()

    def search(
        self,
        budget: int | str | SearchSettings | None = None,
        *,
        progress: bool | Progress = True,
        device: str = "auto",
        engine: str = "auto",
        memory: str | None = None,
        executor: Executor | None = None,
        **settings: Any,
    ) -> SearchResult:
        """Choose one candidate and retrain it, at a fraction of the cost of retraining all.

        ``budget`` is a number of epochs of one candidate, or a share (``"10%"``, the default) of
        the cost of retraining all candidates. ``settings`` are the other fields of
        :class:`trueoracle.search.settings.SearchSettings`, which may also be given as ``budget``::

            found = Study("digits-conv1-0.2").search("10%", criterion="l1")
            found.network, found.chosen, found.history
            found.export("model.safetensors")

        ``executor`` trains the candidates, as in :meth:`run`.
        """
        from trueoracle.search.search import search

        if len(self.networks) > 1:
            raise InputError(
                f"{self.spec.name} has {len(self.networks)} dense networks, and a search is of "
                f"one: dense.seeds = [{self.spec.dense.seed}]"
            )
        if not isinstance(budget, SearchSettings):
            budget = SearchSettings(None if budget is None else str(budget))
        shown = as_progress(progress)
        return search(
            self.prepare(device, progress=shown),
            self.folder,
            shown,
            _with_settings(budget, settings),
            engine=engine,
            memory=None if memory is None else parse_bytes(memory),
            executor=executor,
        )

    def report(
        self, out: str | Path | None = None, outcome: str = "last", *, share: bool = False
    ) -> WrittenReport:
        """Write ``report.html``, ``summary.json`` and the figures of what is recorded so far.

        Recorded arms of the study are shown beside it. ``out`` is the folder to write to, by
        default ``report/`` in the study's own folder. ``outcome`` says which epochs count. With
        ``share``, host, user and absolute paths are left out.
        """
        return self.results().report(out, outcome, share=share)

    def results(self) -> Results:
        """The results recorded so far; raises :class:`StoreError` where nothing is recorded."""
        return open_results(self.folder)


def _with_settings(wanted: SearchSettings, settings: Mapping[str, Any]) -> SearchSettings:
    """A search's settings with some changed; raises :class:`InputError` for an unknown one."""
    known = {one.name for one in dataclass_fields(SearchSettings)}
    for name in settings:
        if name not in known:
            raise unknown("setting of a search", name, known)
    return replace(wanted, **settings)


def _called(network: nn.Module | str) -> str:
    """A name for the study of a network: its class's name, or the last part of its own name."""
    if isinstance(network, nn.Module):
        return type(network).__name__
    last = Path(network.partition(":")[2]).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._") or "study"


def _fingerprint(network: nn.Module) -> str:
    try:
        return f"{weights_sha256(network)}-{architecture_sha256(network)}"
    except InputError:
        raise
    except Exception as error:  # a module's extra state is the user's code
        raise InputError(f"the network's tensors cannot be read: {first_line(error)}") from error
