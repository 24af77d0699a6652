"""How long a training is: epochs and steps, by the images, by a time budget, and when the end moves."""

import math
import statistics
from typing import NamedTuple

from oid.files import InputError
from training.options import LengthOptions
from training.state import Plan, TrainingState

CLOSED = 0.85  # of the training; the rest sees no mosaics
IMAGES_OF_SMALL_DATA = 32_000  # seen in the whole training, where no time budget says how many
PASSES = 12  # the same for many images
EPOCHS = 40
EPOCHS_IN_BUDGET = 30  # fewer where measuring the mAP would take too large a share of the time
FEWEST_EPOCHS = 5  # then fewer validation images instead, so that there is a curve
VALIDATION_SHARE = 0.1
SHORTEST = 20  # steps: a budget for fewer trains nothing, and an epoch has at least so many
MARGIN = 0.02  # of a time budget is kept for saving, and for steps slower than those that were measured


class Speed(NamedTuple):
    """Seconds that a training step takes, and that measuring the mAP takes on all of `images` images."""

    step: float
    validation: float
    images: int


def make_plan(epochs: int, steps: int, *, seconds: float | None = None, validation_images: int | None = None) -> Plan:
    """The plan of a training that has not begun."""
    return Plan(epochs, steps, int(CLOSED * epochs * steps), seconds, validation_images)


def fixed_plan(length: LengthOptions, images: int, batch_size: int) -> tuple[Plan, str]:
    """The plan without a time budget, and its reason.

    Args:
        length: its epochs and steps hold where they are given.
        images: of the training data.
        batch_size: images per step.
    """
    if length.epochs is not None:
        steps = length.steps_per_epoch or max(1, images // batch_size)
        return make_plan(length.epochs, steps), f"{length.epochs} epochs of {steps} steps, as given"
    seen = max(IMAGES_OF_SMALL_DATA, PASSES * images)
    steps = max(1, math.ceil(seen / (EPOCHS * batch_size)))
    reason = f"{images} images: {EPOCHS} epochs of {steps} steps, {seen / max(images, 1):.0f} passes through the data"
    return make_plan(EPOCHS, steps), reason


def budget_plan(left: float, speed: Speed, *, budget: float) -> Plan:
    """The plan that fills a time, with as many epochs as measuring the mAP and whole steps allow.

    Where that would be less than `FEWEST_EPOCHS`, fewer images measure.

    Args:
        left: seconds until the end.
        speed: as measured.
        budget: the time budget in seconds, of which `left` are left.

    Raises:
        InputError: there is no time for a training.
    """
    usable = left * (1 - MARGIN)
    for epochs in range(EPOCHS_IN_BUDGET, 0, -1):
        measuring = epochs * speed.validation
        if epochs <= FEWEST_EPOCHS:
            measuring = min(measuring, VALIDATION_SHARE * usable)
        steps = int((usable - measuring) / (epochs * speed.step))
        if steps >= SHORTEST and measuring <= VALIDATION_SHARE * usable:
            share = measuring / (epochs * speed.validation) if speed.validation else 1.0
            images = max(1, int(share * speed.images)) if share < 1 else None
            return make_plan(epochs, steps, seconds=budget, validation_images=images)
    need = SHORTEST * speed.step / (1 - VALIDATION_SHARE) / (1 - MARGIN)
    raise InputError(
        f"a time budget of {budget:.0f} s leaves {max(left, 0):.0f} s after the start, and {SHORTEST} steps with their "
        f"validation need {need:.0f} s: give at least {math.ceil((need - left) / 60) + 1} minutes more"
    )


def epochs_that_fit(left: float, epoch: float, *, done: int, planned: int) -> int:
    """The number of epochs when those to come take as long as the newest: the planned one unless it is off by 5 %.

    Args:
        left: seconds until the end.
        epoch: seconds of an epoch with its validation.
        done: epochs so far.
        planned: epochs in all.
    """
    fit = done + max(0, int(left * (1 - MARGIN / 2) // epoch))
    return fit if abs(fit - planned) > max(0.05 * (planned - done), 0.5) else planned


def changed_length(state: TrainingState, length: LengthOptions) -> int | None:
    """The number of epochs of a training that goes on with another length than it was planned with; None = the same.

    It is at least the number of those that have begun. A finished training is only prolonged.

    Args:
        state: of a training with a plan.
        length: now.

    Raises:
        InputError: the epochs are to have another number of steps.
    """
    plan = state.plan
    if length.epochs is not None:
        if length.steps_per_epoch and length.steps_per_epoch != plan.steps:
            raise InputError(f"the epochs of this run have {plan.steps} steps, not {length.steps_per_epoch}: keep them")
        total = length.epochs
    elif length.time_budget in (None, plan.seconds) or not state.history:
        return None
    else:
        newest = [row.seconds for row in state.history[-3:]]
        left = length.time_budget - state.seconds
        total = epochs_that_fit(left, max(statistics.median(newest), 1e-3), done=state.epochs, planned=plan.epochs)
    total = max(total, math.ceil(state.step / plan.steps))
    return None if total == plan.epochs else total


def is_finished(state: TrainingState, length: LengthOptions) -> bool:
    """Whether nothing is left to train; a larger length prolongs a training that was finished."""
    plan = state.plan
    return plan is not None and state.epochs >= plan.epochs and changed_length(state, length) is None
