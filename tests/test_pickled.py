"""Pickles read as data: what they hold is all there, and nothing that they name is called."""

from __future__ import annotations

import os
import pickle
import random
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueoracle.pickled import Call, Name, Stored, read_pickle

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda below: st.lists(below) | st.tuples(below, below) | st.dictionaries(st.text(), below),
    max_leaves=20,
)


@given(plain, st.sampled_from(PROTOCOLS))
def test_plain_values_are_as_pickle_gives_them(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_are_lists(protocol: int) -> None:
    for made in (set, frozenset):
        assert read_pickle(pickle.dumps(made(()), protocol)) == []
        assert sorted(read_pickle(pickle.dumps(made((3, 1, 2)), protocol))) == [1, 2, 3]  # type: ignore[call-overload]


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_bytes_are_bytes(protocol: int) -> None:
    for value in (b"", b"\x00\xff", b"x" * 300):
        assert read_pickle(pickle.dumps(value, protocol)) == value
    if protocol > 4:
        assert read_pickle(pickle.dumps(bytearray(b"x"), protocol)) == b"x"


class Thing:
    def __init__(self) -> None:
        self.held = [1, 2]

    def __setstate__(self, state: Any) -> None:
        raise AssertionError("called")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Thing, (1,), {"held": [1, 2]}, iter([5]), iter([("k", 6)]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_descriptions(protocol: int) -> None:
    thing: Any = read_pickle(pickle.dumps(Thing(), protocol))
    assert isinstance(thing, Call)
    assert thing.of == Name(f"{__name__}.Thing")
    assert thing.arguments == (1,)
    assert (thing.state, thing.entries, thing.items) == ({"held": [1, 2]}, [5], {"k": 6})
    ordered: Any = read_pickle(pickle.dumps(OrderedDict(a=1), protocol))
    assert ordered.of == Name("collections.OrderedDict")
    assert ordered.items == {"a": 1}
    assert read_pickle(pickle.dumps(os.system, protocol)) == Name(f"{os.name}.system")


def test_what_is_kept_elsewhere_is_named(tmp_path: Path) -> None:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return "there" if value == "secret" else None

    for protocol in PROTOCOLS:
        with (tmp_path / "p").open("wb") as file:
            Pickler(file, protocol).dump(["secret", 1])
        made: Any = read_pickle((tmp_path / "p").read_bytes())
        assert isinstance(made[0], Stored)
        assert (made[0].identity, made[1]) == ("there", 1)


class Harmful:
    def __init__(self, *made: Any) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return self.made[0], self.made[1:]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("harm", [os.system, eval, exec, os.mkdir])
def test_nothing_is_called(tmp_path: Path, harm: Any, protocol: int) -> None:
    target = tmp_path / "harmed"
    arguments = {
        os.system: (f"touch {target}",),
        os.mkdir: (str(target),),
    }.get(harm, (f"open({str(target)!r}, 'w').close()",))
    data = pickle.dumps([Harmful(harm, *arguments)], protocol)
    made: Any = read_pickle(data)
    assert isinstance(made[0], Call)
    assert made[0].arguments == arguments
    assert not target.exists()
    pickle.loads(data)  # noqa: S301
    assert target.exists()  # whoever believes it is harmed


def test_nothing_is_imported() -> None:
    made: Any = read_pickle(b"cno_such_module_anywhere\nthing\n.")
    assert made == Name("no_such_module_anywhere.thing")
    assert repr(read_pickle(b"\x80\x04\x8c\x03a\nb\x8c\x05\x1b[31m\x93.")) == repr("a\nb.\x1b[31m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b".",
        b"t.",
        b"a.",
        b"s.",
        b"R.",
        b"b.",
        b"g5\n.",
        b"h\x01.",
        b"q\x01.",
        b"r\xff\xff\xff\x7f.",
        b"j\xff\xff\xff\x7f.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",  # 8 exabytes
        b"\x8b\xff\xff\xff\x7f.",
        b"]K\x01K\x02s.",
        b"K\x01K\x02a.",
        b"(K\x01d.",
        b"\x82\x01.",  # extension registry
        b"\x97.",  # a buffer out of band
        b"\x80\x04K\x01K\x02\x93.",
        b"L" + b"9" * 10_000 + b"L\n.",
    ],
)
def test_damage_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        read_pickle(data)
    assert len(str(caught.value)) < 300


def test_no_mutation_raises_anything_else() -> None:
    whole = [pickle.dumps([Thing(), {"a": [(1, 2), {3}]}, b"x", 1.5], p) for p in PROTOCOLS]
    generator = random.Random(0)
    for _ in range(3000):
        data = bytearray(generator.choice(whole))
        for _ in range(generator.randrange(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        with suppress(ValueError):
            read_pickle(bytes(data[: generator.randrange(1, len(data) + 1)]))


def test_depth_cycles_and_sharing_are_no_burden() -> None:
    deep: Any = read_pickle(b"]" * 200_000 + b"a" * 199_999 + b".")
    assert len(deep) == 1
    del deep
    held: list[Any] = []
    held.append(held)
    cyclic: Any = read_pickle(pickle.dumps(held))
    assert cyclic[0] is cyclic
    laughs: tuple[Any, ...] = ()
    for _ in range(200):
        laughs = (laughs, laughs)
    shared: Any = read_pickle(pickle.dumps(laughs))
    assert shared[0] is shared[1]
    # A tuple of it as a key would be hashed through all of it.
    assert len(read_pickle(b"}" + pickle.dumps(laughs, 2)[2:-1] + b"K\x01s.")) == 1  # type: ignore[arg-type]
