"""``trueoracle inspect``: what of a network can be pruned."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from trueoracle.cli import doors
from trueoracle.cli.console import err, guarded, out, print_json, table
from trueoracle.cli.options import Debug, Json, Settings, Weights
from trueoracle.errors import InputError, shown
from trueoracle.spec.file import is_reference, parse_overrides
from trueoracle.spec.grid import load_spec


@guarded
def inspect(
    network: Annotated[
        str,
        typer.Argument(
            help="A network's name, module:factory, a study (its name or .toml) or GRID+POINT."
        ),
    ],
    settings: Settings = None,
    images: Annotated[
        str | None,
        typer.Option(help="Shape of its images, such as 3x224x224 [default: the network's own]."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes [default: the network's own].")
    ] = None,
    weights: Weights = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show the prunable groups of a network, and say why other layers cannot be pruned.

    A group holds filters that can only be removed together: layers whose outputs are added lose the
    same filters, and norms and the layers that read these lose the matching channels. The names are
    those of pruning.layers in a study file; a pattern such as *layer\\*.conv1* names many.

    Examples:

    - trueoracle inspect resnet56

    - trueoracle inspect lenet5-mini --set width=20

    - trueoracle inspect torchvision.models:mobilenet_v2 --images 3x224x224

    - trueoracle inspect my_module:my_network --classes 7 --json
    """
    made, name, shape = _network(network, settings, images, classes)
    if weights is not None and (remark := doors.load_weights(made, weights)):
        err().print(remark)
    inspection = doors.inspect_network(made, shape)
    if as_json:
        print_json(_plain(name, shape, inspection))
        return
    console = out()
    total = inspection.cost
    console.print(
        f"{name} on images {'x'.join(map(str, shape))}: {total.parameters:,} parameters, "
        f"{total.macs:,} MACs"
    )
    columns = ("filters", "parameters per filter", "MACs per filter")
    made_table = table("group", *columns, "goes with", right=columns)
    for one in inspection.groups:
        others = [member for member in one.group.members if member != one.group.name]
        made_table.add_row(
            one.group.name,
            f"{one.group.filters:,}",
            "" if one.parameters is None else f"{one.parameters:,}",
            "" if one.macs is None else f"{one.macs:,}",
            ", ".join(others),
        )
    console.print(made_table)
    for layer, reason in inspection.refused.items():
        console.print(f"{layer} cannot be pruned: {reason}")


def _network(
    reference: str, settings: list[str] | None, images: str | None, classes: int | None
) -> tuple[Any, str, tuple[int, ...]]:
    """The network, its name, and the shape of its images."""
    overrides = parse_overrides(settings or ())
    if is_reference(reference) and reference not in doors.NETWORKS:
        if images is not None or classes is not None:
            raise InputError(
                f"--images and --classes are of a network: {reference!r} is a study, whose data "
                "say both (--set data.image_size=…)"
            )
        spec = load_spec(reference, overrides)
        network, shape = doors.build_study(spec)
        return network, f"{spec.network.name} of {spec.name}", shape
    shape, count = doors.defaults(reference)
    if images is not None:
        shape = _shape(images)
    count = classes or count
    return doors.build(reference, overrides, input_shape=shape, classes=count), reference, shape


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.lower().replace(",", "x").split("x")]
    # Only these digits: Python takes others too, such as superscripts.
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise InputError(f"--images takes a shape such as 3x224x224, got {shown(text)}")
    return tuple(map(int, parts))


def _plain(name: str, shape: tuple[int, ...], inspection: doors.Inspection) -> dict[str, Any]:
    return {
        "network": name,
        "images": list(shape),
        "parameters": inspection.cost.parameters,
        "macs": inspection.cost.macs,
        "groups": [one.as_dict() for one in inspection.groups],
        "refused": inspection.refused,
    }
