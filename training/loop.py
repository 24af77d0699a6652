"""A training from its first step, or from where it was stopped, to its end: one `fit` per epoch, or for its rest.

Between epochs the backbone may thaw, the size of the input may change, and a time budget may move the end.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from models import backbones
from models.detector import Detector, runs_on_cpu
from training import machines, memory, plan
from training.batches import BadImages, Batches, BatchSequence
from training.callbacks import BatchGuard, EpochEnd, FiniteLossGuard, Progress, Saver, set_means
from training.checkpoints import best_so_far, note_images
from training.schedule import Schedule, make_optimizer
from training.settings import check_length
from training.stopping import Stop, Stopped
from training.trainer import DetectionTrainer
from training.validation import BATCH

CLOSED = 0.85  # of the training; the rest sees whole pictures, at the network's own size
STEPS_TO_WARM, STEPS_TO_MEASURE = 6, 30
FEWEST_STEPS = 3  # the first builds the graph, the second may still wait for pictures
MEASURING_SHARE = 0.03  # of a time budget: longer steps are fewer, and a longer measurement of the mAP is made once
WARM_UP = 100  # steps, at most a tenth of the training


def new_schedule(flags: dict, learning_rate: float, steps: int) -> dict:
    """The description of a `Schedule` for so many steps."""
    warm_up = min(WARM_UP, steps // 10) if flags["warm_up_steps"] is None else flags["warm_up_steps"]
    return Schedule(peak=learning_rate, steps=steps, shape=flags["schedule"], warm_up=max(1, warm_up)).get_config()


def plan_length(flags: dict, settings: dict, trainer, batches: Batches, end: EpochEnd, deadline: float | None) -> None:
    """Fills in `total` epochs of so many `steps` and the `schedule`: as given, as time allows, or by the images.

    Args:
        flags: a03's.
        settings: of the run.
        trainer: compiled; it is to be compiled again for the plan.
        batches: of the whole training.
        end: its `state` gets the plan.
        deadline: when a time budget ends, on `time.monotonic`'s clock; None = never.

    Raises:
        InputError: there is no time for a training, or none so long as its flags need.
    """
    images, chosen, state = len(batches.data), settings["training"], end.state
    if flags["epochs"] is not None:
        total, steps = flags["epochs"], flags["steps_per_epoch"] or max(1, images // chosen["batch_size"])
    elif deadline is not None:
        if thaws := flags["freeze_backbone_epochs"]:  # the steps after the thaw take longer, and are most
            compile_for(trainer, state, flags, backbone=settings["backbone"], epoch=thaws)
        seconds = MEASURING_SHARE * (deadline - time.monotonic())
        build, step, validation = measure(trainer, batches, end, workers=flags["workers"], seconds=seconds)
        every = flags["validate_every"]
        build *= 2 if thaws else 1
        seconds = deadline - time.monotonic() - build
        total, steps = plan.budget_length(seconds, step=step, validation=validation, validate_every=every)
        pictures = total * steps * chosen["batch_size"]
        print(
            f"chosen: {total} epochs of {steps} steps for --time_budget {flags['time_budget']}, "
            f"{pictures / images:.0f} passes: a step takes {step:.3f} s ({chosen['batch_size'] / step:.1f} images/s), "
            f"measuring the mAP {validation:.1f} s"
        )
        measuring = plan.measurements(total, every) * validation
        share = measuring / (measuring + total * steps * step)
        if share > plan.VALIDATION_SHARE:
            print(f"measuring the mAP takes {share:.0%} of the time: fewer images by --validation_images take less")
    else:
        total, steps, reason = plan.fixed_length(images, chosen["batch_size"])
        print(f"chosen: {reason}")
    check_length(flags, total, steps)
    state.update(total=total, steps=steps, average_over=total * steps)
    state["schedule"] = new_schedule(flags, chosen["learning_rate"], total * steps)


def compile_for(trainer: DetectionTrainer, state: dict, flags: dict, *, backbone: str, epoch: int = 0) -> None:
    """Gives the trainer a new optimizer, with the backbone frozen or not.

    Args:
        trainer: its weights are those of the training so far.
        state: `steps`, `schedule` and `average_over`.
        flags: a03's.
        backbone: name of its layer in the network.
        epoch: the one that the optimizer is for, from 0 on.
    """
    network = trainer.network
    thaws = flags["freeze_backbone_epochs"]
    for layer in network._flatten_layers():  # setting it on the network does not reach the models inside its models
        layer.trainable = True
    for layer in trainer.always_frozen:
        layer.trainable = False
    if flags["freeze_backbone"] or epoch < thaws:
        backbones.freeze(network.get_layer(backbone), weights=True)
    if flags["freeze_batch_norm"]:
        backbones.freeze(network, batch_norm=True)
    # an optimizer counts from its own first step: then its averages begin with the weights that it finds
    offset = thaws * state["steps"] if epoch >= thaws else 0
    options = {name: flags[name] for name in ("optimizer", "weight_decay", "clip_norm", "ema", "accumulate")}
    # XLA on the CPU is slower than TensorFlow's own kernels; JAX compiles whatever is said here
    plain = keras.backend.backend() == "tensorflow" and runs_on_cpu()
    with trainer.scope():
        schedule = Schedule(**state["schedule"] | {"offset": offset})
        optimizer = make_optimizer(schedule, average_over=state["average_over"], **options)
        trainer.compile(optimizer=optimizer, jit_compile=False if plain else "auto")
        optimizer.build(network.trainable_variables)
    trainer.forget_functions()
    trainer.schedule, trainer.compiled_for = schedule, epoch


def measure(
    trainer: DetectionTrainer, batches: Batches, end: EpochEnd, *, workers: int, seconds: float
) -> tuple[float, float, float]:
    """Seconds to build the graph, of a training step, of measuring the mAP; afterwards all weights are as before.

    Args:
        trainer: compiled as it trains most of the time.
        batches: of the whole training.
        end: validates.
        workers: threads that prepare batches.
        seconds: that all steps together may take without the first, which builds the graph, but for `FEWEST_STEPS`;
            the mAP is measured once only where that takes longer.
    """
    variables = [*trainer.variables, *trainer.optimizer.variables]
    before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
    clock = _StepTimes(seconds)
    steps = STEPS_TO_WARM + STEPS_TO_MEASURE
    batches.close_at = steps  # mosaics and mixtures belong to what is measured
    sequence = BatchSequence(batches, workers=workers)
    with sequence.mistakes_as_they_are(), _memory(end, trainer.sizes[0]):
        began = time.perf_counter()
        trainer.fit(sequence, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    if end.validate:
        end.measuring.append(_seconds_to_validate(end, seconds))
    warm = min(STEPS_TO_WARM, (len(clock.times) - 1) // 2)
    step = float(np.median(np.diff(clock.times[warm:])))
    return max(clock.times[0] - began - step, 0.0), step, end.measuring[-1] if end.validate else 0.0


def _seconds_to_validate(end: EpochEnd, long: float) -> float:
    """Of measuring the mAP; the second time, when the pictures are in memory, unless the first was `long`."""
    side = end.detector.settings["image_size"]
    end.detector.detect(np.zeros((BATCH, side, side, 3), "uint8"), sizes=[(side, side)] * BATCH)  # compiles
    for _ in range(2):
        began = time.perf_counter()
        end.validate(end.detector)
        took = time.perf_counter() - began
        if machines.from_first(lambda took=took: took > long):
            break
    return took


class _StepTimes(keras.callbacks.Callback):
    """When each step ended; no more steps than fit into so many seconds after the first, but `FEWEST_STEPS`."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds = seconds
        self.times: list[float] = []

    def on_train_batch_end(self, batch, logs=None):
        float(logs["loss"])  # waits until an accelerator has done the step
        self.times.append(time.perf_counter())
        over = machines.from_first(lambda: self.times[-1] - self.times[0] >= self.seconds)
        if over and len(self.times) >= FEWEST_STEPS:
            self.model.stop_training = True


def _memory(end: EpochEnd, image_size: int) -> contextlib.AbstractContextManager:
    """Around `fit`: a lack of memory is said in one sentence."""
    checkpoint = end.saver.guard.last_good
    return memory.shortage_in_one_sentence(batch_size=end.batch_size, image_size=image_size, checkpoint=checkpoint)


def planned_at_closing(state: dict) -> int:
    """The epochs of which the last `CLOSED` part is closed: all, unless the end was moved after it had begun."""
    return state.get("closed") or state["total"]


def close_at(state: dict) -> int:
    """The first step without mosaics and mixtures."""
    return int(CLOSED * planned_at_closing(state) * state["steps"])


def size_of(epoch: int, sizes: tuple[int, ...], *, total: int, seed: int) -> int:
    """The input's size in an epoch: one of several at random, and the network's own, which is the first, at the end."""
    if epoch >= CLOSED * total:
        return sizes[0]
    return int(np.random.default_rng([seed, epoch, len(sizes)]).choice(sizes))


def epoch_end(
    run: Path,
    trainer: DetectionTrainer,
    state: dict,
    flags: dict,
    settings: dict,
    *,
    batches: Batches,
    stop: Stop,
    began: float,
    validate: Callable[[Detector], float] | None,
    exported: keras.Model | None,
) -> EpochEnd:
    """What guards, saves and measures a training, with a03's flags; the other arguments are those of the callbacks."""
    writer = None
    if flags["tensorboard"] and machines.is_first():
        from tensorboard.summary import Writer

        writer = Writer(str(run / "tensorboard"))
    saver = Saver(
        run,
        trainer,
        state,
        guard=FiniteLossGuard(run, batches, state),
        stop=stop,
        began=began,
        every_steps=flags["checkpoint_steps"],
        every_minutes=flags["checkpoint_minutes"],
    )
    return EpochEnd(
        saver,
        settings,
        validate=validate,
        batch_size=settings["training"]["batch_size"],
        validate_every=flags["validate_every"],
        patience=flags["patience"],
        exported=exported,
        writer=writer,
    )


def run(
    trainer: DetectionTrainer, batches: Batches, end: EpochEnd, flags: dict, *, backbone: str, deadline: float | None
) -> str:
    """Trains until the last epoch, until nothing gets better, until the time is over, or until it is to stop.

    Args:
        trainer: compiled, for the step that comes next or the one before it.
        batches: of the whole training.
        end: what happens after each epoch; its `state` counts steps and epochs, its `saver` knows when to stop.
        flags: a03's.
        backbone: see `compile_for`.
        deadline: when a time budget ends, on `time.monotonic`'s clock; None = never.

    Returns:
        why it will not go on though its last epoch is not reached; empty when it was, or when `end.saver.stop` has a
        reason: then a checkpoint is written, and the training goes on from there.
    """
    state, stop = end.state, end.saver.stop
    note_images(state, batches.data.image_ids)
    stop.waits = True  # from here on there is something to lose
    try:
        if state["step"] > state["epochs"] * state["steps"]:
            set_means(trainer, state)  # where only the end of the epoch is left; `fit` sets them to zero
        while state["epochs"] < state["total"]:
            if end.out_of_patience:
                return f"no better mAP in {flags['patience']} measurements"
            if deadline is not None and state["step"] and machines.from_first(lambda: time.monotonic() >= deadline):
                _end_here(end)
                break
            _train_epoch(trainer, batches, end, flags, backbone=backbone)
            stop.check()
            end.finish_epoch(lambda done: _keep_to(deadline, trainer, end, flags, done))
        end.measure_last()
    except Stopped:
        end.saver.save_if_needed()
    except BadImages:
        if not machines.several():  # they are those of this process alone, and all must save together
            end.saver.save_if_needed()
        raise
    finally:
        stop.waits = False
    return ""


def how_it_ended(folder: Path, state: dict, why: str, stop: Stop) -> str:
    """The last line of a training; `why` it will not go on is what `run` gave back."""
    best = best_so_far(state)
    if state["epochs"] < state["total"] and stop.reason:
        where = f"step {state['step']} of {state['total'] * state['steps']}"
        return f"{folder}: stopped by {stop.reason} after {where}, saved{best}: run the same command to go on"
    level = state["settings"]["flags"]["level"]
    return f"{folder}: {state['epochs']} epochs on level {level}{best}{'; stopped: ' + why if why else ''}"


def _train_epoch(trainer: DetectionTrainer, batches: Batches, end: EpochEnd, flags: dict, *, backbone: str) -> None:
    """The steps of an epoch, or those that are left of it; fewer when the training is to stop."""
    state, epoch = end.state, end.state["epochs"]
    if epoch and epoch == flags["freeze_backbone_epochs"] and trainer.compiled_for < epoch:
        compile_for(trainer, state, flags, backbone=backbone, epoch=epoch)
        end.forget_costs()
        print(f"the backbone thaws after epoch {epoch}")
    size = size_of(epoch, tuple(trainer.sizes), total=planned_at_closing(state), seed=flags["seed"])
    trainer.look_at(size)
    batches.close_at = close_at(state)
    left = (epoch + 1) * state["steps"] - state["step"]
    if not left:
        return
    sequence = BatchSequence(batches, start=state["step"], workers=flags["workers"], image_size=size)
    end.begin_steps(builds=trainer.train_function is None)
    with sequence.mistakes_as_they_are(), _memory(end, size):
        trainer.fit(
            sequence,
            steps_per_epoch=left,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
            callbacks=[BatchGuard(sequence), end.saver.guard, Progress(state), end, end.saver],
        )


def _end_here(end: EpochEnd) -> None:
    """Ends a training that was stopped and goes on when its time is over: an epoch that was begun counts as it is."""
    state = end.state
    begun = state["step"] > state["epochs"] * state["steps"]
    print(f"the time is over: the training ends after step {state['step']} of {state['total'] * state['steps']}")
    state["total"] = state["epochs"] + begun
    if begun:
        end.finish_epoch()
    else:
        end.saver.save()


def _keep_to(deadline: float | None, trainer: DetectionTrainer, end: EpochEnd, flags: dict, done: int) -> str:
    """Moves the end of the training when the newest epochs say that the plan misses the deadline by much.

    While the backbone is frozen not to a later one, as the epochs after the thaw take longer. What is closed stays so.

    Returns:
        what there is to say about it; empty where the plan stays.
    """
    state, planned, epoch = end.state, end.state["total"], end.seconds_per_epoch
    if deadline is None or epoch is None:
        return ""
    left, epoch, measuring = machines.from_first(lambda: (deadline - time.monotonic(), epoch, end.seconds_to_measure))
    often = {"validation": measuring, "validate_every": end.validate_every}
    total = plan.epochs_that_fit(left, epoch, done=done, planned=planned, **often)
    if total == planned or (total > planned and done <= flags["freeze_backbone_epochs"]):
        return ""
    if state["step"] >= close_at(state):
        state["closed"] = planned_at_closing(state)
    state["total"] = total
    if done == total:
        return f"the time is over after {total} of {planned} epochs"
    trainer.schedule.move_end(total * state["steps"], at=done * state["steps"])
    state["schedule"] = trainer.schedule.get_config()
    return f"{left / 60:.1f} minutes are left: {total} epochs instead of {planned}"
