"""A program that starts trainings of a03 and ends them: `test_kills.py` talks to it by lines of JSON.

Each training is a process of its own, a fork of one that has loaded TensorFlow, which takes longest. A line in is a
task: `arguments` of a03's command line, the `log` for what it prints, and when to send which signal: `{"step": 7,
"signal": 15}`, `{"operation": 12}` = before the twelfth operation on the run's files, `{"seconds": 0.5}` after its
first step, or nothing. The line out is its exit code, negative for a signal.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import keras  # noqa: F401  and with it TensorFlow: nothing may run in it before the fork, nor may Polars be imported

ROOT = Path(__file__).resolve().parent.parent.parent
OPERATIONS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "shutil.rmtree", "shutil.copyfile"}


def arm(when: dict, run: str, pipe: int) -> None:
    """Makes the process end itself, or say when its first step is done."""
    from tests.helpers.tiny_training import before_each_step_counts

    left, begun = [when.get("operation", 0)], []

    def do(step, logs):
        if not begun:
            os.write(pipe, b".")
            begun.append(step)
        if step == when.get("step"):
            os.kill(os.getpid(), when.get("signal", signal.SIGKILL))

    def hook(event, arguments):
        if left[0] > 0 and event in OPERATIONS and isinstance(arguments[0], (str, Path)) and run in str(arguments[0]):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    before_each_step_counts(do)
    sys.addaudithook(hook)


def train(task: dict, pipe: int) -> int:
    """What a fork does; returns its exit code."""
    log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.path[:0] = [str(ROOT)]
    import a03_train_m2det as a03
    from oid.command_line import run_script
    from tests.helpers.tiny_training import prepare

    prepare(dropout=0.2, checkpoint_steps=3)  # a checkpoint must hold dropout's random state
    arm(task.get("when", {}), f"/weights/{task['run']}", pipe)
    try:
        run_script(a03.main, [*task["arguments"], "--run", task["run"]])
    except SystemExit as end:
        return end.code
    except BaseException:
        import traceback

        traceback.print_exc()
    return 70


def start(task: dict) -> int:
    """Forks, waits for the training to end, and helps it to where the task says so."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        sys.exit(train(task, writing))  # as a script ends, with whatever threads there are
    os.close(writing)
    if "seconds" in task.get("when", {}) and os.read(reading, 1):
        time.sleep(task["when"]["seconds"])
        os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(reading)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(start(json.loads(line))), flush=True)
