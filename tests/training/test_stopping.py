"""When a training stops: real signals to this process, and hours that are over."""

import os
import signal
import threading

import pytest

from oid.files import Unfinished
from training import stopping
from training.stopping import Stop, Stopped

SIGNALS = pytest.mark.parametrize(
    ("number", "reason", "error"),
    [(signal.SIGTERM, "SIGTERM", Unfinished), (signal.SIGINT, "the keyboard", KeyboardInterrupt)],
)


def train(stop: Stop, *signals: int, waits: bool) -> None:
    """Gets signals in a step, after which it stops."""
    with stop.on_signals():
        stop.waits = waits
        for number in signals:
            os.kill(os.getpid(), number)
        assert stop.wanted()
        raise Stopped("after step 5")


@SIGNALS
@pytest.mark.parametrize(("waits", "where"), [(False, "before its next step"), (True, "after step 5")])
def test_a_signal_stops_at_once_before_the_first_step_and_then_after_the_step(number, reason, error, waits, where):
    with pytest.raises(error, match=f"^run: stopped by {reason} {where}: run the same command to go on"):
        train(Stop("run"), number, waits=waits)


def test_a_second_ctrl_c_ends_at_once_and_a_second_sigterm_does_not():
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        train(Stop(), signal.SIGTERM, signal.SIGTERM, signal.SIGINT, signal.SIGINT, waits=True)


def test_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with Stop().on_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_another_thread_sets_no_handlers():
    done = []

    def train():
        with Stop().on_signals() as stop:
            done.append(stop.wanted())

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done == [""]


def test_hours_end_a_training(monkeypatch):
    now = [5000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = Stop(max_hours=11.5, started=1000.0)
    now[0] = 1000 + 11.5 * 3600 - 1
    assert not stop.wanted()
    now[0] += 1
    assert stop.wanted() == "its limit of 11.5 hours"
    assert not Stop(started=0.0).wanted()
