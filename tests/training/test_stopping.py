"""Proves when a training is to stop: by real signals to this process, and when its hours are over."""

import contextlib
import os
import signal
import threading

import pytest

from training import stopping
from training.stopping import Stop, Stopped


def test_before_the_first_step_a_signal_stops_at_once():
    with pytest.raises(Stopped), Stop().on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), Stop().on_signals():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "the keyboard")])
def test_a_signal_stops_the_training_after_the_step(number, reason):
    """A second SIGTERM changes nothing; a second Ctrl+C ends at once."""
    stop = Stop()
    with stop.on_signals():
        stop.waits = True
        assert not stop.wanted()
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt) if number == signal.SIGINT else contextlib.nullcontext():
            os.kill(os.getpid(), number)
        assert stop.wanted()
        assert stop.reason == reason
        assert stop.by_keyboard == (number == signal.SIGINT)
        with pytest.raises(Stopped):
            stop.check()


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
    assert done == [False]


def test_hours_end_a_training(monkeypatch):
    now = [5000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: now[0])
    stop = Stop(max_hours=11.5, started=1000.0)
    now[0] = 1000 + 11.5 * 3600 - 1
    assert not stop.wanted()
    now[0] += 1
    assert stop.wanted()
    assert stop.reason == "--max_hours 11.5"
    assert not Stop(started=0.0).wanted()
