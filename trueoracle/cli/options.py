"""The options that commands share, and commands in words."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from trueoracle.spec.file import parse_overrides
from trueoracle.trust import believe

__all__ = [
    "AllowCode",
    "Chosen",
    "Debug",
    "Device",
    "Engine",
    "Json",
    "Machine",
    "Memory",
    "Output",
    "Quiet",
    "Runs",
    "Settings",
    "Weights",
    "command_line",
    "with_weights",
]

AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code",
        callback=lambda given: believe() if given else None,
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
Runs = Annotated[
    Path,
    typer.Option("--runs", envvar="TRUEORACLE_RUNS", help="Folder of the recorded studies."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Override a field; may be repeated."),
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


@dataclass(frozen=True)
class Output:
    """Options that say what is printed."""

    quiet: Quiet = False
    as_json: Json = False
    debug: Debug = False


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
    """A command to be typed again, quoted for the shell; options that are None are left out."""
    changes = [word for setting in settings or () for word in ("--set", setting)]
    where = [] if runs is None else ["--runs", str(runs)]
    given = [(f"--{name}", str(value)) for name, value in options.items() if value is not None]
    words = [word for option in given for word in option]
    return shlex.join(["trueoracle", command, str(study), *words, *changes, *where])
