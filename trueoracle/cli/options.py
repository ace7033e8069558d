"""The options that commands share, and commands in words."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trueoracle.cli import completion, doors
from trueoracle.errors import InputError
from trueoracle.spec.file import parse_overrides
from trueoracle.trust import believe

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = [
    "AllowCode",
    "Chosen",
    "Debug",
    "Device",
    "Engine",
    "Json",
    "Machine",
    "Memory",
    "OutcomeRule",
    "Output",
    "Quiet",
    "RetryFailed",
    "Runs",
    "Settings",
    "StudyName",
    "Weights",
    "Workers",
    "check_figure",
    "command_line",
    "with_weights",
]


def _allow(given: bool) -> bool:
    if given:
        believe()
    return given


AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        callback=_allow,
        help="Run the code (module:attribute) that a study file outside of this project names.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, …; auto takes CUDA where it is.")
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        help="How networks are retrained: auto (the fastest that can), native, wide or loop; "
        "devices, where several processes were launched. It changes the speed; results agree to "
        "rounding.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to stdout.")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", help="Most memory for retraining at once, such as 4GB [default: half]."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no table.")]
RetryFailed = Annotated[
    bool,
    typer.Option("--retry-failed", help="Retrain the networks whose retraining failed, too."),
]
Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="TRUEORACLE_RUNS", help="Folder of the recorded studies."),
]
OutcomeRule = Annotated[
    str,
    typer.Option(help="Epochs that count: last, last-5, best-on-validation or best-on-test."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Override a field; may be repeated.",
        autocompletion=completion.fields,
    ),
]

StudyName = Annotated[
    str,
    typer.Argument(
        help="A shipped study, or the path of a .toml; @arm.", autocompletion=completion.studies
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Trained weights of the dense network (.safetensors, a PyTorch file, or "
        "torchvision:NAME): short for --set network.weights=FILE.",
    ),
]


@dataclass(frozen=True)
class Chosen:
    """Options that say which study is meant, besides its name."""

    settings: Settings = None
    weights: Weights = None
    runs: Runs = Path("runs")
    allow_code: AllowCode = False

    @property
    def changes(self) -> list[str]:
        """The settings, and the weights as one of them."""
        return with_weights(self.settings, self.weights)

    @property
    def overrides(self) -> dict[str, Any]:
        """The settings as dotted fields and values; raises :class:`InputError`."""
        return parse_overrides(self.changes)


@dataclass(frozen=True)
class Machine:
    """Options that say where and how networks are trained."""

    device: Device = "auto"
    engine: Engine = "auto"
    memory: Memory = None

    def as_given(self) -> dict[str, str | None]:
        """The options by name; None where they are at their default."""
        return {
            "device": None if self.device == "auto" else self.device,
            "engine": None if self.engine == "auto" else self.engine,
            "memory": self.memory,
        }


_BELONGS = {"address": "ray", "slurm": "slurm"}
"""The options of one executor alone."""


@dataclass(frozen=True)
class Workers:
    """Options that say where chunks of networks are retrained."""

    executor: Annotated[
        Literal["local", "ray", "slurm"],
        typer.Option(help="Where networks are retrained: this process, a Ray cluster, or Slurm."),
    ] = "local"
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Of the Ray cluster [default: $RAY_ADDRESS, or start one]."
        ),
    ] = None
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of sbatch, as partition=gpu; repeated."),
    ] = None
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of each chunk of networks [default: 1].")
    ] = None
    gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each; on Ray a fraction too [default: 0].")
    ] = None
    at_once: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most chunks that run or wait; of Slurm, most jobs [default: 1024; 64]."
        ),
    ] = None

    def as_given(self) -> dict[str, Any]:
        """The options by name; None where they are at their default."""
        return asdict(self) | {"executor": None if self.executor == "local" else self.executor}

    @contextmanager
    def opened(self, runs: Path) -> Iterator[Executor | None]:
        """The executor, until the block ends; None for this process.

        Raises :class:`InputError` for options that belong to another executor.
        """
        given = {name: value for name, value in asdict(self).items() if value is not None}
        kind = given.pop("executor")
        for name in given:
            if kind == "local" or (name in ("address", "slurm") and kind != _BELONGS[name]):
                option = name.replace("_", "-")
                raise InputError(f"--{option} does nothing with --executor {kind}")
        if kind == "local":
            yield None
        elif kind == "ray":
            with doors.RayExecutor(**given) as ray:
                yield ray
        else:
            options = _sbatch(given.pop("slurm", ()))
            with doors.SlurmExecutor(runs / ".jobs", options=options, **given) as slurm:
                yield slurm


@dataclass(frozen=True)
class Output:
    """Options that say what is printed."""

    quiet: Quiet = False
    as_json: Json = False
    debug: Debug = False


def _sbatch(given: Iterable[str]) -> dict[str, str]:
    """Options of sbatch as they are given, KEY=VALUE; raises :class:`InputError`."""
    pairs = [one.partition("=") for one in given]
    for key, mark, value in pairs:
        if not (key and mark and value):
            raise InputError(f"--slurm {key}{mark}{value}: expected KEY=VALUE, as partition=gpu")
    return {key: value for key, _, value in pairs}


def check_figure(figure: Path | None) -> None:
    """Raise :class:`InputError` for a figure's file of an ending that is none of those drawn."""
    if figure is not None and figure.suffix[1:] not in doors.FORMATS:
        raise InputError(f"--figure takes a .png, .svg or .pdf, got {figure}")


def with_weights(settings: list[str] | None, weights: str | None) -> list[str]:
    """The settings, and the weights as one of them."""
    given = [] if weights is None else [f"network.weights={json.dumps(weights)}"]
    return [*(settings or ()), *given]


def command_line(
    command: str,
    study: object,
    settings: list[str] | None = None,
    runs: Path | None = None,
    **options: object,
) -> str:
    """A command to be typed again, quoted for the shell.

    Options that are None or False are left out, and of those that are True only the name is given.
    """
    changes = [word for setting in settings or () for word in ("--set", setting)]
    where = [] if runs is None else ["--runs", str(runs)]
    words = [
        word
        for name, value in options.items()
        if value is not None and value is not False
        for one in (value if isinstance(value, list) else [value])
        for word in (f"--{name.replace('_', '-')}", *(() if one is True else (str(one),)))
    ]
    named = str(study)
    if named.startswith("-"):  # it would be taken for an option
        named = f"./{named}"
    return shlex.join(["trueoracle", command, named, *words, *changes, *where])
