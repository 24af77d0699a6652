"""Where a training is: what a checkpoint keeps besides weights, as frozen dataclasses.

A step or an epoch makes a new state (`dataclasses.replace`); only `training.loop.Training` holds the current one.
"""

import dataclasses

from models.run_settings import RunSettings
from training.options import TrainingSettings


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long the training is.

    Attributes:
        epochs: in all.
        steps: of an epoch.
        close_at: the first step without mosaics.
        seconds: the time budget that the plan fills; None = no budget.
        validation_images: how many measure the mAP; None = all that there are.
    """

    epochs: int
    steps: int
    close_at: int
    seconds: float | None = None
    validation_images: int | None = None

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps


@dataclasses.dataclass(frozen=True)
class ScheduleState:
    """The learning rate's course: see `training.schedule.Schedule`.

    Attributes:
        peak: the highest rate.
        steps: of the whole training.
        warm_up: steps.
        begin, begin_progress: step and progress from which the fall grows evenly; moved when the end is.
        old_factor, change_steps: from `begin` on the rate goes over from `old_factor * peak` to the fall, in so many
            steps.
    """

    peak: float
    steps: int
    warm_up: int
    begin: int = 0
    begin_progress: float = 0.0
    old_factor: float = 0.0
    change_steps: int = 0


@dataclasses.dataclass(frozen=True)
class EpochRow:
    """A finished epoch: a row of `history.csv`; None = not measured."""

    epoch: int
    loss: float
    class_loss: float
    box_loss: float
    mAP: float | None
    learning_rate: float
    images_per_second: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """Where a training is.

    Attributes:
        step: steps done.
        epochs: finished.
        plan: None before it is made.
        schedule: None before the plan is made.
        seconds: used in all, without the time between two processes.
        epoch_seconds: used in the epoch that has begun.
        best: best mAP so far; None = nothing measured yet.
        best_model: SHA-256 of the best model's file; empty = none.
        history: a row per finished epoch.
        loss_sums: sums and counts of the epoch's losses.
        images: digest of the training images' ids.
        run, training: settings of the run, None before they are chosen.
    """

    step: int = 0
    epochs: int = 0
    plan: Plan | None = None
    schedule: ScheduleState | None = None
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: float | None = None
    best_model: str = ""
    history: tuple[EpochRow, ...] = ()
    loss_sums: tuple[float, ...] = ()
    images: str = ""
    run: RunSettings | None = None
    training: TrainingSettings | None = None
