"""The learning rate over a training, and the optimizer that follows it."""

from typing import Literal

import keras
import numpy as np
from keras import ops

Shape = Literal["cosine", "steps"]

SHAPES = ("cosine", "steps")
COSINE_END = 0.01  # of the highest rate
DROPS = (0.6, 0.8)  # where the paper divides the rate by ten: after 90 and 120 of 150 epochs (section 4.1)
AVERAGED_SHARE = 1 / 25  # of the training that the moving average of the weights reaches back
LONGEST_AVERAGE = 5000  # steps
LINE = "schedule"  # name of the variable that the learning rate is computed from


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a fall to the end of the training, whose end may move.

    The rate is `peak * min(1, (step + 1) / warm_up) * fall(progress)`, with progress from 0 to 1. "cosine" falls along
    half a cosine to a hundredth; "steps" divides by ten at 0.6 and at 0.8 of the training, as the paper does.

    Args:
        peak: the highest rate.
        steps: steps of the whole training.
        shape: "cosine" or "steps".
        warm_up: steps.
        begin: the step from which progress grows evenly up to the end.
        begin_progress: the progress at `begin`; 0 unless the end of the training was moved on its way.
        offset: the step that an optimizer calls 0, when it did not begin with the training.

    Attributes:
        line: a variable of `begin`, `begin_progress` and `steps`.
    """

    def __init__(
        self,
        *,
        peak: float,
        steps: int,
        shape: Shape = "cosine",
        warm_up: int = 0,
        begin: int = 0,
        begin_progress: float = 0.0,
        offset: int = 0,
    ):
        super().__init__()
        if shape not in SHAPES:
            raise ValueError(f"unknown shape {shape!r}, there are {', '.join(SHAPES)}")
        self.peak = peak
        self.shape = shape
        self.warm_up = warm_up
        self.offset = offset
        # a variable, so that what is compiled follows when the end is moved
        self.line = keras.Variable([begin, begin_progress, steps], trainable=False, dtype="float32", name=LINE)

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return round(self._numbers()[2])

    def _numbers(self) -> tuple[float, float, float]:
        begin, begin_progress, steps = ops.convert_to_numpy(self.line)
        return float(begin), float(begin_progress), float(steps)

    def progress(self, step: int) -> float:
        """How much of the training lies behind a step, 0 to 1."""
        begin, begin_progress, steps = self._numbers()
        share = (step - begin) / max(1.0, steps - begin)
        return float(np.clip(begin_progress + (1 - begin_progress) * share, 0.0, 1.0))

    def move_end(self, steps: int, *, at: int) -> None:
        """From step `at` on, with the rate that it has there, the training goes to an end after `steps` steps."""
        self.line.assign([at, self.progress(at), steps])

    def __call__(self, step):
        step = ops.cast(step, "float32") + self.offset
        begin, begin_progress, steps = ops.unstack(ops.convert_to_tensor(self.line))
        share = (step - begin) / ops.maximum(1.0, steps - begin)
        progress = ops.clip(begin_progress + (1.0 - begin_progress) * share, 0.0, 1.0)
        if self.shape == "cosine":
            fall = COSINE_END + (1.0 - COSINE_END) * 0.5 * (1.0 + ops.cos(np.pi * progress))
        else:
            fall = ops.power(0.1, sum(ops.cast(progress >= drop, "float32") for drop in DROPS))
        return self.peak * ops.minimum(1.0, (step + 1.0) / max(1, self.warm_up)) * fall

    def get_config(self) -> dict:
        begin, begin_progress, steps = self._numbers()
        moved = {"begin": round(begin), "begin_progress": begin_progress, "steps": round(steps)}
        return moved | {name: getattr(self, name) for name in ("peak", "shape", "warm_up", "offset")}


def averaging(steps: int) -> float:
    """The momentum of the moving average of the weights in a training of so many steps."""
    return 1 - 1 / min(max(steps * AVERAGED_SHARE, 10), LONGEST_AVERAGE)


def make_optimizer(
    schedule: Schedule,
    *,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float,
    ema: bool,
    clip_norm: float = 10.0,
    accumulate: int = 1,
    average_over: int | None = None,
) -> keras.optimizers.Optimizer:
    """AdamW, or SGD with momentum 0.9, with clipped gradients and, where it is wanted, a moving average of the weights.

    The average reaches back over about a twenty-fifth of the training, at most 5,000 steps: long enough to be smooth,
    short enough that a short training is not measured by what its weights were in its first half.

    Args:
        schedule: the learning rate.
        optimizer: "adamw" (beta_2 0.99) or "sgd".
        weight_decay: decoupled from the gradient, times the learning rate; not applied to biases and batch norm.
        ema: whether there is an exponential moving average of the weights.
        clip_norm: the gradient of all weights together is made no longer than this; 0 = as long as it is.
        accumulate: gradients of so many steps are averaged to one update.
        average_over: the steps of the training that the average is meant for (default: the schedule's).
    """
    options = {
        "learning_rate": schedule,
        "weight_decay": weight_decay or None,
        "global_clipnorm": clip_norm or None,
        "use_ema": ema,
        "ema_momentum": averaging(average_over or schedule.steps),
        "gradient_accumulation_steps": accumulate if accumulate > 1 else None,
    }
    if optimizer == "adamw":
        made = keras.optimizers.AdamW(beta_2=0.99, **options | {"weight_decay": weight_decay})
    else:
        made = keras.optimizers.SGD(momentum=0.9, **options)
    if weight_decay:
        made.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    made.line = schedule.line  # one of its variables from now on: JAX gives these to what it compiled, no others
    # each `fit` would end with the average in place of the weights, and there is one per epoch
    made.finalize_variable_values = lambda variables: None
    return made
