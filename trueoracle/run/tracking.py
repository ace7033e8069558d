"""Live logging to an experiment tracker: TensorBoard, Weights & Biases or MLflow.

A tracker is shown what the record holds, as it is committed:

- ``dense/…``: the dense network's metrics, by epoch;
- ``retrained/…``: a pruned network's metrics after its last epoch, by the number of networks;
- ``tau/…``: each criterion's tau with each outcome, once all networks are retrained.

What was recorded in an earlier sitting is not logged again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from trueoracle.errors import InputError, StoreError, first_line, unknown
from trueoracle.record.results import Results
from trueoracle.run.progress import Progress
from trueoracle.spec.spec import StudySpec

__all__ = ["TRACKERS", "Tracker", "check_tracker", "tracked"]

PROJECT = "trueoracle"
FOLDER = "tracking"
"""The folder below a run in which trackers keep files."""

SECONDS = 5.0
"""The fewest seconds between two looks at the record, which is read as a whole."""

_SHARE = 20
"""A look is followed by this many times its own time without one, so that it slows nothing down."""

_PLAIN = ("candidate", "seed", "epoch", "learning_rate")


class Tracker(Protocol):
    """A place that numbers are logged to."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log finite numbers by name, at a step."""

    def close(self) -> None:
        """Write what is not written yet."""


class TensorBoard:
    """Event files in ``tracking/tensorboard`` of the run, by torch's own writer."""

    needs = "tensorboard"

    def __init__(self, spec: StudySpec, folder: Path) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(folder / FOLDER / "tensorboard"))
        self._writer.add_text("study", f"```json\n{spec.model_dump_json(indent=1)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of the project ``trueoracle``; offline unless WANDB_MODE or a key says otherwise."""

    needs = "wandb"

    def __init__(self, spec: StudySpec, folder: Path) -> None:
        wandb = import_module("wandb")
        online = "WANDB_MODE" in os.environ or "WANDB_API_KEY" in os.environ
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=spec.name,
            dir=str(folder / FOLDER),
            config=spec.model_dump(mode="json"),
            mode=os.environ.get("WANDB_MODE", "online") if online else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        # Each group of names has a step of its own, and that of a run may not go back.
        group = next(iter(values)).partition("/")[0]
        self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")
        self._run.log({**values, f"{group}/step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment ``trueoracle``, at MLFLOW_TRACKING_URI or below the run."""

    needs = "mlflow"

    def __init__(self, spec: StudySpec, folder: Path) -> None:
        mlflow = import_module("mlflow")
        own = f"sqlite:///{(folder / FOLDER / 'mlflow.db').resolve()}"
        client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", own))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        self._client = client
        self._run = client.create_run(number, run_name=spec.name).info.run_id
        for field, value in pd.json_normalize(spec.model_dump(mode="json")).iloc[0].items():
            client.log_param(self._run, str(field), str(value)[:500])

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._run)


TRACKERS: dict[str, Callable[[StudySpec, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def check_tracker(name: str) -> None:
    """Raise :class:`InputError` for an unknown tracker, or one that is not installed."""
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    needs = TRACKERS[name].needs  # type: ignore[attr-defined]
    try:
        import_module(needs)
    except ImportError as error:
        raise InputError(f"--track {name} needs {error.name}: pip install '.[track]'") from error


@contextmanager
def tracked(
    name: str | None, spec: StudySpec, folder: Path, progress: Progress
) -> Iterator[Progress]:
    """A progress that also logs to the named tracker what is recorded; None: the same progress.

    Raises :class:`InputError` where the tracker cannot begin.
    """
    if name is None:
        yield progress
        return
    check_tracker(name)
    before = _Seen.of(folder)
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        tracker = TRACKERS[name](spec, folder)
    except Exception as error:  # a library's own, of its network, its settings, its key
        raise InputError(f"--track {name} cannot begin: {first_line(error)}") from error
    shown = _Tracking(name, progress, tracker, folder, before)
    try:
        yield shown
        shown.look(final=True)
    finally:
        shown.tell(tracker.close)


class _Seen:
    """What of a record has been logged: epochs of the dense network, and retrained networks."""

    def __init__(self, epochs: int, networks: set[tuple[str, int]]) -> None:
        self.epochs, self.networks = epochs, networks

    @classmethod
    def of(cls, folder: Path) -> _Seen:
        try:
            results = Results(folder)
        except StoreError:  # nothing is recorded yet
            return cls(0, set())
        keys = results.retrainings[["candidate", "seed"]].itertuples(index=False, name=None)
        return cls(len(results.dense_epochs), set(keys))


class _Tracking:
    """Passes progress on, and logs what is newly recorded."""

    def __init__(
        self, name: str, inner: Progress, tracker: Tracker, folder: Path, seen: _Seen
    ) -> None:
        self._name, self._inner, self._tracker = name, inner, tracker
        self._folder, self._seen = folder, seen
        self._next, self._is_lost = time.monotonic() + SECONDS, False

    def stage(self, name: str, total: int, done: int, unit: str) -> None:
        self.look()
        self._inner.stage(name, total, done, unit)

    def advance(self, count: float = 1, note: str = "") -> None:
        self._inner.advance(count, note)
        if time.monotonic() >= self._next:
            self.look()

    def message(self, text: str) -> None:
        self._inner.message(text)

    def look(self, *, final: bool = False) -> None:
        """Log what has been recorded since the last look."""
        started = time.monotonic()
        self.tell(lambda: self._look(final=final))
        now = time.monotonic()
        self._next = now + max(SECONDS, _SHARE * (now - started))

    def tell(self, call: Callable[[], None]) -> None:
        """Call the tracker; where it fails, say so once and go on without it: the study matters."""
        if self._is_lost:
            return
        try:
            call()
        except Exception as error:  # a library's own: of its network, its disk, its limits
            self._is_lost = True
            self._inner.message(
                f"--track {self._name} failed, and nothing more is logged: {first_line(error)}"
            )

    def _look(self, *, final: bool) -> None:
        try:
            results = Results(self._folder)
        except StoreError:  # nothing is recorded yet
            return
        epochs = results.dense_epochs
        for row in epochs.iloc[self._seen.epochs :].to_dict("records"):
            self._log("dense", row, int(row["epoch"]))
        self._seen.epochs = max(len(epochs), self._seen.epochs)
        last = results.outcomes.groupby(["candidate", "seed"], sort=False).tail(1)
        for row in last.to_dict("records"):
            key = (row["candidate"], row["seed"])
            if key not in self._seen.networks:
                self._seen.networks.add(key)
                self._log("retrained", row, len(self._seen.networks))
        if final and results.finished and not results.outcomes.empty:
            found = results.correlate()
            taus = {
                f"{one.criterion}/{one.metric}": one.kendall_tau
                for one in found.itertuples(index=False)
            }
            self._log("tau", taus, len(self._seen.networks))

    def _log(self, group: str, row: Mapping[Any, Any], step: int) -> None:
        values = {
            f"{group}/{name}": float(value)
            for name, value in row.items()
            if name not in _PLAIN and value is not None and math.isfinite(value)
        }
        if values:
            self._tracker.log(values, step)
