"""The learning rate over a training, and the optimizer that follows it."""

import dataclasses
from typing import Literal

import keras
import numpy as np
from keras import ops

from training.state import ScheduleState

Shape = Literal["cosine", "steps"]

COSINE_END = 0.01  # of the highest rate
DROPS = (0.6, 0.8)  # where the paper divides the rate by ten: after 90 and 120 of 150 epochs (section 4.1)
WARM_UP = 100  # steps, at most a tenth of the training
LINE = "schedule"  # name of the variable that the learning rate is computed from


def new_schedule(peak: float, steps: int) -> ScheduleState:
    """The course of the learning rate in a training of `steps` steps."""
    return ScheduleState(peak=peak, steps=steps, warm_up=warm_up_of(steps))


def warm_up_of(steps: int) -> int:
    """Steps in which the rate rises, of a training of `steps` steps."""
    return max(1, min(WARM_UP, steps // 10))


def move_end(state: ScheduleState, steps: int, *, at: int) -> ScheduleState:
    """Moves the end to `steps`: the rate goes on from its value at step `at`."""
    return dataclasses.replace(state, begin=at, begin_progress=float(_progress(state, at)), steps=steps)


def prolong(state: ScheduleState, steps: int, *, at: int, shape: Shape) -> ScheduleState:
    """Makes the training one of `steps` steps, of which `at` are done.

    From its value at step `at` the rate goes over, in the steps of a warm-up, to the fall that it would have had if the
    training had been planned so from its beginning: after a finished training it rises again.
    """
    old = float(_factor(state, at, shape))
    later = {"begin": at, "begin_progress": at / steps, "old_factor": old, "change_steps": warm_up_of(steps - at)}
    return dataclasses.replace(state, steps=steps, **later)


def _progress(state: ScheduleState, step):
    """How much of the fall lies behind a step, 0 to 1; the fields of the state may be tensors."""
    share = (step - state.begin) / ops.maximum(1.0, state.steps - state.begin)
    return ops.clip(state.begin_progress + (1.0 - state.begin_progress) * share, 0.0, 1.0)


def _factor(state: ScheduleState, step, shape: Shape):
    """The share of the highest rate at a step, after the warm-up."""
    step = ops.convert_to_tensor(step, "float32")
    progress = _progress(state, step)
    if shape == "cosine":
        fall = COSINE_END + (1.0 - COSINE_END) * 0.5 * (1.0 + ops.cos(np.pi * progress))
    else:
        fall = ops.power(0.1, sum(ops.cast(progress >= drop, "float32") for drop in DROPS))
    new = ops.clip((step - state.begin + 1.0) / (state.change_steps + 1.0), 0.0, 1.0)
    return new * fall + (1.0 - new) * state.old_factor


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a fall to the end of the training, whose end may move.

    The rate is `peak * min(1, (step + 1) / warm_up) * fall(progress)`, with progress from 0 to 1. "cosine" falls along
    half a cosine to a hundredth; "steps" divides by ten at 0.6 and at 0.8 of the training, as the paper does.

    Args:
        state: the course, which `follow` changes later.
        shape: "cosine" or "steps".

    Attributes:
        line: a variable of the numbers of the course, so that what is compiled follows when they change.
    """

    def __init__(self, state: ScheduleState, shape: Shape = "cosine"):
        super().__init__()
        self.shape = shape
        self.line = keras.Variable(dataclasses.astuple(state), trainable=False, dtype="float32", name=LINE)

    def follow(self, state: ScheduleState) -> None:
        """From now on the rate takes another course."""
        self.line.assign(dataclasses.astuple(state))

    def __call__(self, step):
        state, step = ScheduleState(*ops.unstack(ops.convert_to_tensor(self.line))), ops.cast(step, "float32")
        warm_up = ops.minimum(1.0, (step + 1.0) / ops.maximum(1.0, state.warm_up))
        return state.peak * warm_up * _factor(state, step, self.shape)


class _Following:
    """An optimizer with the numbers of its schedule among its variables: JAX hands these to compiled steps."""

    def __init__(self, schedule: Schedule, **options):
        super().__init__(learning_rate=schedule, **options)
        self.line = schedule.line


class FollowingAdamW(_Following, keras.optimizers.AdamW):
    """AdamW with a `Schedule`."""


class FollowingSGD(_Following, keras.optimizers.SGD):
    """SGD with a `Schedule`."""


def make_optimizer(
    schedule: Schedule,
    *,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float,
    clip_norm: float = 10.0,
    accumulate: int = 1,
) -> keras.optimizers.Optimizer:
    """AdamW (beta_2 0.99), or SGD with momentum 0.9, with clipped gradients.

    Args:
        schedule: the learning rate.
        optimizer: "adamw" or "sgd".
        weight_decay: decoupled from the gradient, times the learning rate; not applied to biases and batch norm.
        clip_norm: longest gradient of all weights together; 0 = any.
        accumulate: steps whose gradients make one update.
    """
    kind, options = (FollowingAdamW, {"beta_2": 0.99}) if optimizer == "adamw" else (FollowingSGD, {"momentum": 0.9})
    made = kind(
        schedule,
        weight_decay=weight_decay,
        global_clipnorm=clip_norm or None,
        gradient_accumulation_steps=accumulate if accumulate > 1 else None,
        **options,
    )
    if weight_decay:
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return made
