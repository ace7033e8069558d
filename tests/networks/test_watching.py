from __future__ import annotations

import signal
import threading
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trueoracle.errors import InputError
from trueoracle.networks.watching import LIMIT, Watch, limited
from trueoracle.pruning.walk import find_groups


class Endless(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.second = kind, nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        while self.kind == "operations":
            x = x + 1
        while self.kind == "python":
            pass
        while self.kind == "swallows":
            with suppress(Exception):
                x = x + 1
        return self.second(self.first(x))  # type: ignore[no-any-return]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    find_groups(Endless("ends"), torch.rand(2, 4))  # imports what the first run imports
    monkeypatch.setenv(LIMIT, "0.3")


@pytest.mark.parametrize("kind", ["operations", "python", "swallows"])
def test_a_forward_without_end_is_ended_in_one_line(kind: str, short: None) -> None:
    threads = threading.active_count()
    with pytest.raises(InputError, match=r"no answer within 0\.3 seconds \(TRUEORACLE_FORWARD"):
        find_groups(Endless(kind), torch.rand(2, 4))
    assert threading.active_count() == threads
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_operations_are_ended_in_any_thread(short: None) -> None:
    said: list[str] = []

    def work() -> None:
        try:
            find_groups(Endless("operations"), torch.rand(2, 4))
        except InputError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "no answer within 0.3 seconds" in said[0]


def test_somebody_elses_alarm_stays(short: None) -> None:
    def ring(number: int, frame: Any) -> None:
        raise AssertionError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        with limited():
            assert signal.getsignal(signal.SIGALRM) is ring
        with pytest.raises(TimeoutError), limited():
            Endless("operations")(torch.zeros(2, 4))
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, value)
    with (
        pytest.raises(InputError, match=f"{LIMIT} takes a number of seconds above 0, got"),
        limited(),
    ):
        pass


def test_every_operation_goes_through_a_watch() -> None:
    class Names(Watch):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def call(self, func: Any, args: Any, kwargs: Any) -> Any:
            self.names.append(func._schema.name)
            return super().call(func, args, kwargs)

    watch = Names()
    with watch:
        assert (torch.ones(2) + 1).tolist() == [2, 2]
    assert watch.names[:2] == ["aten::ones", "aten::add"]
