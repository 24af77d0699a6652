"""a03 with `--backbone tiny`, as a program with two flags more.

    python -m tests.helpers.tiny_training --stop_after 4 --checkpoint_steps 2 --run first ...

sends itself a SIGTERM after 4 steps, and writes a checkpoint every 2. Prints `loss <step> <loss> <class_loss>
<box_loss>` after each step: the means over the epoch so far.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable

import a03_train_m2det as a03
from models.backbones import BACKBONES
from oid.command_line import run_script
from tests.helpers.tiny_network import tiny_backbone


def prepare(*, dropout: float = 0.0, checkpoint_steps: int = 0) -> None:
    """Makes a03 know `--backbone tiny`, and write a checkpoint after this number of steps."""
    BACKBONES["tiny"] = tiny_backbone(dropout=dropout)
    a03.RecordOptions = functools.partial(a03.RecordOptions, checkpoint_steps=checkpoint_steps)


def before_each_step_counts(do: Callable[[int, dict[str, float]], None]) -> None:
    """Calls `do(step, logs)` when a step is done and before the training looks at it; step counts from 0 on."""
    from training.loop import Training

    usual = Training._after_step

    def after_step(training, logs, update_variables):
        do(training.state.step, logs)
        usual(training, logs, update_variables)

    Training._after_step = after_step


def stop_after(steps: int | None) -> None:
    """Prints the losses of each step, and sends a SIGTERM after this number of steps."""

    def do(step: int, logs: dict[str, float]) -> None:
        losses = " ".join(f"{float(logs[name]):.9g}" for name in ("loss", "class_loss", "box_loss"))
        print(f"loss {step + 1} {losses}", flush=True)
        if step + 1 == steps:
            os.kill(os.getpid(), signal.SIGTERM)

    before_each_step_counts(do)


def taken(arguments: list[str], name: str) -> int | None:
    """Takes a flag out of the arguments."""
    if name not in arguments:
        return None
    place = arguments.index(name)
    value = int(arguments[place + 1])
    del arguments[place : place + 2]
    return value


if __name__ == "__main__":
    flags = sys.argv[1:]
    prepare(checkpoint_steps=taken(flags, "--checkpoint_steps") or 0)
    stop_after(taken(flags, "--stop_after"))
    run_script(a03.main, flags)
