"""``trueoracle inspect``: what of a network can be pruned."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from trueoracle.cli import doors
from trueoracle.cli.completion import fields, studies
from trueoracle.cli.console import err, guarded, out, print_json, table
from trueoracle.cli.options import AllowCode, Debug, Json, Weights
from trueoracle.errors import InputError, shown
from trueoracle.spec.file import is_reference, parse_overrides
from trueoracle.spec.grid import load_spec
from trueoracle.spec.hub import HF, folder_of


@guarded
def inspect(
    network: Annotated[
        str,
        typer.Argument(
            help="A network's name, module:factory, a study (its name or .toml) or GRID+POINT.",
            autocompletion=studies,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Of a network, one of its arguments (width=20); of a study, a field; repeatable.",
            autocompletion=fields,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="Shape of its images, such as 3x224x224 [default: the network's own]."),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=1, help="Number of classes [default: the network's own].")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="One of its inputs, such as input_ids=int50:2x32 (kinds: int, float, ones), or "
            "a .safetensors file of all; repeatable [default: found from the network].",
        ),
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an item [default: 32].")
    ] = None,
    weights: Weights = None,
    allow_code: AllowCode = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what of a network can be pruned, and say why the rest cannot be.

    A group holds filters that can only be removed together: layers whose outputs are added lose the
    same filters, and norms and the layers that read these lose the matching channels. The names are
    those of pruning.layers in a study file; a pattern such as *layer\\*.conv1* names many, and
    stands in the table for groups that are alike. Parameters and MACs are those of one filter, unit
    or head, or of one whole layer (pruning.kind = "depth"); MACs for one item, at the size or
    context shown. Of other layers it is said why they cannot be pruned.

    Examples:

    - trueoracle inspect resnet56

    - trueoracle inspect lenet5-mini --set width=20

    - trueoracle inspect torchvision.models:mobilenet_v2 --images 3x224x224

    - trueoracle inspect my_module:my_network --classes 7 --json

    - trueoracle inspect hf:my-llama --context 128

    - trueoracle inspect my_module:my_network --input ids=int50:2x9 --input ages=float:2x1
    """
    made, name, shape = _network(network, settings, images, classes)
    example: Any = shape
    if inputs or images is None:
        given = doors.read_inputs(inputs) if inputs else doors.made_up(made, context)
        example = shape if given is None else given
    if weights is not None and (remark := doors.load_weights(made, weights)):
        err().print(remark)
    inspection = doors.inspect_network(made, example)
    if as_json:
        print_json(_plain(name, example, inspection))
        return
    console = out()
    total = inspection.cost
    console.print(
        f"{name} on {_in_words(example)}: {total.parameters:,} parameters, {total.macs:,} MACs"
    )
    columns = ("groups", "of each", "parameters", "MACs")
    made_table = table("group", *columns[:2], "", *columns[2:], right=columns)
    for pattern, alike in _alike(inspection.groups):
        one = alike[0]
        made_table.add_row(
            pattern,
            f"{len(alike):,}",
            f"{one.group.filters:,}",
            one.group.kind,
            "" if one.parameters is None else f"{one.parameters:,}",
            "" if one.macs is None else f"{one.macs:,}",
        )
    for stack in inspection.stacks:
        one_of_each = f"{len(stack.stack.layers):,}", "layers"
        costs = (_between(stack.parameters), _between(stack.macs))
        made_table.add_row(f"{stack.stack.name}.*", "1", *one_of_each, *costs)
    console.print(made_table)
    for layers, reason in _by_reason(inspection.refused):
        console.print(f"{layers} cannot be pruned: {reason}")


def _between(numbers: Sequence[int]) -> str:
    """One number for all, or the least and the most."""
    return "–".join(f"{one:,}" for one in dict.fromkeys((min(numbers), max(numbers))))


def _alike(
    groups: Sequence[doors.InspectedGroup],
) -> Iterator[tuple[str, list[doors.InspectedGroup]]]:
    """Groups whose names differ in numbers only, and that cost the same, under one pattern.

    The pattern names these groups and no others.
    """
    found: dict[tuple[Any, ...], list[doors.InspectedGroup]] = {}
    for one in groups:
        name = re.sub(r"(?<=[._])\d+(?=\.)", "*", one.group.name)
        key = (name, one.group.filters, one.group.kind, one.parameters, one.macs)
        found.setdefault(key, []).append(one)
    patterns = Counter(key[0] for key in found)
    for key, alike in found.items():
        meant = [one for one in groups if fnmatchcase(one.group.name, key[0])]
        if patterns[key[0]] == 1 and meant == alike:
            yield key[0] if len(alike) > 1 else alike[0].group.name, alike
        else:
            yield from ((one.group.name, [one]) for one in alike)


def _by_reason(refused: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Layers that are refused for one reason, each reason once."""
    layers: dict[str, list[str]] = {}
    for layer, words in refused.items():
        reason = re.sub(r"^with [^:]*: ", "", words)
        layers.setdefault(reason, []).append(re.sub(r"(?<=[._])\d+(?=\.)", "*", layer))
    for reason, names in layers.items():
        yield ", ".join(dict.fromkeys(names)), reason


def _in_words(example: Any) -> str:
    """An example by its sizes, those of one item."""
    if isinstance(example, Mapping):
        return ", ".join(f"{name} {list(one.shape[1:])}" for name, one in example.items())
    return f"images {'x'.join(map(str, example))}"


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
    if reference.startswith(HF):  # which may be a download of gigabytes
        revision = overrides.get("revision")
        folder_of(reference.removeprefix(HF), revision and str(revision), err().print)
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


def _plain(name: str, example: Any, inspection: doors.Inspection) -> dict[str, Any]:
    is_named = isinstance(example, Mapping)
    sizes = {n: list(one.shape) for n, one in example.items()} if is_named else list(example)
    return {
        "network": name,
        "inputs" if is_named else "images": sizes,
        "parameters": inspection.cost.parameters,
        "macs": inspection.cost.macs,
        "groups": [one.as_dict() for one in inspection.groups],
        "stacks": [one.as_dict() for one in inspection.stacks],
        "refused": inspection.refused,
        "needed": inspection.needed,
    }
