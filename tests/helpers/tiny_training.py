"""a03 with `--backbone tiny`, as a program; `--stop_after 4` sends it a SIGTERM after 4 steps.

    python -m tests.helpers.tiny_training --stop_after 4 --run first ...

Prints `loss <step> <loss> <class_loss> <box_loss> <bytes>` after each step: the means over the epoch so far, and the
memory of the process.
"""

import os
import signal
import sys

import a03_train_m2det as a03
from models.backbones import BACKBONES
from oid.command_line import command_line
from oid.files import InputError
from tests.helpers.tiny_network import tiny_backbone


def watch(stop_after: int | None) -> None:
    """Makes each step print its losses, and one of them stop the training."""
    from training import callbacks, memory

    usual = callbacks.FiniteLossGuard.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        usual(self, batch, logs)
        step = self.state["step"] + 1
        losses = " ".join(f"{float(logs[name]):.9g}" for name in ("loss", "class_loss", "box_loss"))
        print(f"loss {step} {losses} {memory.resident_bytes()}", flush=True)
        if step == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    callbacks.FiniteLossGuard.on_train_batch_end = on_train_batch_end


def main(arguments: list[str]) -> int:
    BACKBONES["tiny"] = tiny_backbone()
    stop_after = int(arguments.pop(1)) if arguments[0] == "--stop_after" else None
    del arguments[: stop_after is not None]
    watch(stop_after)
    values = vars(command_line(a03.main).parse_args(arguments))
    try:
        a03.main(**values)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
