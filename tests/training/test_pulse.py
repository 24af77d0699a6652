"""Proves the pulse between processes: who is gone is noticed, who says good-bye is not missed."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers.project import ROOT
from training.pulse import Pulse

OTHER = """
import sys, time
from training.pulse import Pulse
pulse = Pulse(lambda: print("lost", flush=True), beat=0.05, silence=float(sys.argv[2]))
pulse.connect("127.0.0.1", int(sys.argv[1]))
print("connected", flush=True)
if sys.stdin.readline() == "leave\\n":
    pulse.leave()
else:
    time.sleep(60)
"""


class Others:
    """Process 0's pulse in this process, and others in processes of their own."""

    def __init__(self, count: int, silence: float = 30.0):
        self.lost = threading.Event()
        self.pulse = Pulse(self.lost.set, beat=0.05, silence=silence)
        command = [sys.executable, "-c", OTHER, str(self.pulse.listen()), str(silence)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        self.processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
        self.pulse.accept(count)
        assert all(process.stdout.readline() == "connected\n" for process in self.processes)


@pytest.fixture
def others(request):
    made = Others(*request.param)
    yield made
    for process in made.processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("others", [(2,)], indirect=True)
def test_a_process_that_is_killed_is_missed(others):
    time.sleep(0.3)
    assert not others.lost.is_set()
    others.processes[1].kill()
    assert others.lost.wait(20)


@pytest.mark.parametrize("others", [(1,)], indirect=True)
def test_the_others_miss_process_0(others):
    for connection in others.pulse._connections:
        connection.close()  # as the system does when it is killed
    assert others.processes[0].stdout.readline() == "lost\n"


@pytest.mark.parametrize("others", [(1,)], indirect=True)
def test_a_process_that_leaves_is_not_missed(others):
    others.processes[0].stdin.write("leave\n")
    others.processes[0].stdin.flush()
    assert others.processes[0].wait(20) == 0
    others.pulse.wait_for_others(20)
    assert not others.lost.wait(0.3)
    others.pulse.leave()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system cannot stop a process")
@pytest.mark.parametrize("others", [(1, 1.0)], indirect=True)
def test_a_process_that_is_silent_is_missed(others):
    time.sleep(1.5)
    assert not others.lost.is_set()
    os.kill(others.processes[0].pid, signal.SIGSTOP)
    assert others.lost.wait(20)


def test_waiting_for_processes_times_out():
    pulse = Pulse(lambda: None, silence=0.2)
    pulse.listen()
    with pytest.raises(OSError, match="timed out"):
        pulse.accept(1)
