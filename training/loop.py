"""A training from its first epoch, or from where it was stopped, to its end: one `fit` per epoch.

Between epochs the backbone may thaw, the size of the input may change, and a time budget may move the end.
"""

import time

import keras
import numpy as np
from keras import ops

from models import backbones
from models.detector import runs_on_cpu
from training.batches import Batches, BatchSequence
from training.callbacks import EpochEnd, FiniteLossGuard, Progress, write_state
from training.plan import epochs_that_fit
from training.schedule import Schedule, make_optimizer
from training.trainer import DetectionTrainer

CLOSED = 0.85  # of the training; the rest sees whole pictures, at the network's own size
STEPS_TO_WARM, STEPS_TO_MEASURE = 6, 30
WARM_UP = 100  # steps, at most a tenth of the training


def new_schedule(flags: dict, learning_rate: float, steps: int) -> dict:
    """The description of a `Schedule` for so many steps."""
    warm_up = min(WARM_UP, steps // 10) if flags["warm_up_steps"] is None else flags["warm_up_steps"]
    return Schedule(peak=learning_rate, steps=steps, shape=flags["schedule"], warm_up=max(1, warm_up)).get_config()


def compile_for(trainer: DetectionTrainer, state: dict, flags: dict, *, backbone: str) -> None:
    """Gives the trainer a new optimizer for the epoch that comes next, with the backbone frozen or not.

    Args:
        trainer: its weights are those after `state["epochs"]` epochs.
        state: `epochs`, `steps` and `schedule`.
        flags: a03's.
        backbone: name of its layer in the network.
    """
    network = trainer.network
    thaws = flags["freeze_backbone_epochs"]
    for layer in network._flatten_layers():  # setting it on the network does not reach the models inside its models
        layer.trainable = True
    if flags["freeze_backbone"] or state["epochs"] < thaws:
        backbones.freeze(network.get_layer(backbone), weights=True)
    if flags["freeze_batch_norm"]:
        backbones.freeze(network, batch_norm=True)
    # an optimizer counts from its own first step: then its averages begin with the weights that it finds
    offset = thaws * state["steps"] if state["epochs"] >= thaws else 0
    schedule = Schedule(**state["schedule"] | {"offset": offset})
    optimizer = make_optimizer(
        schedule,
        optimizer=flags["optimizer"],
        weight_decay=flags["weight_decay"],
        clip_norm=flags["clip_norm"],
        ema=flags["ema"],
        accumulate=flags["accumulate"],
    )
    # XLA on the CPU is slower than TensorFlow's own kernels; JAX compiles whatever is said here
    plain = keras.backend.backend() == "tensorflow" and runs_on_cpu()
    trainer.compile(optimizer=optimizer, jit_compile=False if plain else "auto")
    trainer.forget_functions()
    trainer.schedule, trainer.compiled_for = schedule, state["epochs"]
    optimizer.build(network.trainable_variables)


def measure(trainer: DetectionTrainer, batches: Batches, end: EpochEnd, *, workers: int) -> tuple[float, float, float]:
    """Seconds to build the graph, of a training step, of measuring the mAP; afterwards all weights are as before."""
    variables = [*trainer.variables, *trainer.optimizer.variables]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    clock = _StepTimes()
    steps = STEPS_TO_WARM + STEPS_TO_MEASURE
    batches.close_at = steps  # mosaics and mixtures belong to what is measured
    sequence = BatchSequence(batches, workers=workers)
    with sequence.mistakes_as_they_are():
        began = time.perf_counter()
        trainer.fit(sequence, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    validation = 0.0
    if end.validate:
        end.validate(end.detector)  # the first time compiles, and fills the cache
        ready = time.perf_counter()
        end.validate(end.detector)
        validation = time.perf_counter() - ready
    step = float(np.median(np.diff(clock.times[STEPS_TO_WARM:])))
    return max(clock.times[0] - began - step, 0.0), step, validation


class _StepTimes(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.times: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())


def close_at(state: dict) -> int:
    """The first step without mosaics and mixtures."""
    return int(CLOSED * state["total"] * state["steps"])


def size_of(epoch: int, sizes: tuple[int, ...], *, total: int, seed: int) -> int:
    """The input's size in an epoch: one of several at random, and the network's own, which is the first, at the end."""
    if epoch >= CLOSED * total:
        return sizes[0]
    return int(np.random.default_rng([seed, epoch, len(sizes)]).choice(sizes))


def run(
    trainer: DetectionTrainer, batches: Batches, end: EpochEnd, flags: dict, *, backbone: str, deadline: float | None
) -> str:
    """Trains until the last epoch, until nothing gets better, or until the time is over.

    Args:
        trainer: compiled, for the epoch that comes next.
        batches: of the whole training.
        end: what happens after each epoch; its `state` counts them.
        flags: a03's.
        backbone: see `compile_for`.
        deadline: when a time budget ends, on `time.monotonic`'s clock; None = never.

    Returns:
        why it ended before its last epoch; empty when it did not.
    """
    state = end.state
    sizes = tuple(trainer.sizes)
    callbacks = [FiniteLossGuard(batches, state), Progress(state), end]
    while (epoch := state["epochs"]) < state["total"]:
        if end.out_of_patience:
            return f"no better mAP in {flags['patience']} measurements"
        if epoch and deadline is not None and time.monotonic() >= deadline:  # a run that was stopped and goes on late
            state["total"] = epoch
            write_state(end.run / "checkpoint", state)
            break
        if epoch and epoch == flags["freeze_backbone_epochs"] and trainer.compiled_for < epoch:
            compile_for(trainer, state, flags, backbone=backbone)
            print(f"the backbone thaws after epoch {epoch}")
        size = size_of(epoch, sizes, total=state["total"], seed=flags["seed"])
        trainer.look_at(size)
        batches.close_at = close_at(state)
        begin = epoch * state["steps"]
        sequence = BatchSequence(batches, start=begin, workers=flags["workers"], image_size=size)
        with sequence.mistakes_as_they_are():
            trainer.fit(
                sequence,
                steps_per_epoch=state["steps"],
                initial_epoch=epoch,
                epochs=epoch + 1,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
        if deadline is not None:
            _keep_to(deadline, trainer, end)
    end.measure_last()
    return ""


def _keep_to(deadline: float, trainer: DetectionTrainer, end: EpochEnd) -> None:
    """Moves the end of the training when the newest epoch says that the plan misses the deadline by much."""
    state, left = end.state, deadline - time.monotonic()
    done, planned = state["epochs"], state["total"]
    total = epochs_that_fit(left, end.seconds_per_epoch, done=done, planned=planned)
    if total == planned:
        return
    state["total"] = total
    if done < total:
        trainer.schedule.move_end(total * state["steps"], at=done * state["steps"])
        state["schedule"] = trainer.schedule.get_config()
    write_state(end.run / "checkpoint", state)  # a run that goes on from here has the same end
    if done == total:
        print(f"the time is over after {total} of {planned} epochs")
        return
    print(f"{left / 60:.1f} minutes are left: {total} epochs instead of {planned}")
    if keras.backend.backend() == "jax":  # what it compiled holds the line as a constant
        trainer.forget_functions()
