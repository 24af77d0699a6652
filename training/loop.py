"""A training from its first step, or from where it was stopped, to its end: one `fit` per epoch, or for its rest."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

from models.detector import Detector, runs_on_cpu
from models.run_settings import SETTINGS, write_run_settings
from oid.images.loader import BadImages
from oid.json_files import write_json
from training import checkpoints, lengths, processes, schedule
from training.batches import Batches, BatchSequence
from training.failures import memory_errors, report_bad_batch, spoiled_weight
from training.options import LengthOptions, TrainingSettings
from training.progress import Progress, TensorBoard, best_so_far, line_of_epoch, minutes_left
from training.schedule import Schedule, make_optimizer
from training.state import EpochRow, ScheduleState, TrainingState
from training.stopping import Stop, Stopped
from training.trainer import DetectionTrainer
from training.validation import Validation

TRAINING_SETTINGS = "training.json"
STEPS_TO_WARM, STEPS_TO_MEASURE = 6, 30
FEWEST_STEPS = 3  # the first builds the graph, the second may still wait for images
MEASURING_SHARE = 0.03  # of a time budget: longer steps are fewer
IMAGES_TO_MEASURE = 64  # of the validation, twice: the first time reads the files
NEWEST_EPOCHS = 3  # whose mean tells how long the next ones take


def compile_trainer(trainer: DetectionTrainer, settings: TrainingSettings, course: ScheduleState) -> Schedule:
    """Gives a trainer its optimizer; returns the schedule of its learning rate, whose course may change later."""
    recipe = settings.recipe
    # XLA on the CPU is slower than TensorFlow's own kernels; JAX compiles whatever is said here
    plain = keras.backend.backend() == "tensorflow" and runs_on_cpu()
    with trainer.scope():
        rate = Schedule(course, recipe.schedule)
        optimizer = make_optimizer(
            rate,
            optimizer=recipe.optimizer,
            weight_decay=recipe.weight_decay,
            clip_norm=recipe.clip_norm,
            accumulate=settings.options.step.accumulate,
        )
        trainer.compile(optimizer=optimizer, jit_compile=False if plain else "auto")
        optimizer.build(trainer.network.trainable_variables)
    return rate


def prepare_trainer(trainer: DetectionTrainer, state: TrainingState, run: Path) -> Schedule:
    """Compiles a trainer; where the training has begun, its weights become those of the newest checkpoint."""
    course = state.schedule or schedule.new_schedule(state.training.learning_rate, 1000)  # until it is planned
    rate = compile_trainer(trainer, state.training, course)
    if state.step:
        checkpoints.restore(run, trainer)
    return rate


class Training:
    """A training and its state, which nothing else holds.

    Args:
        run: folder of the run, locked by the caller.
        trainer: with the weights to begin with; not compiled.
        batches: of the whole training.
        state: with the settings of the run and of the training.
        workers: threads that prepare batches.
        validation: measures the mAP; None = the last epoch counts as the best.
        exported: the same network in float32, where the other trains in less.
        stop: asked after each step and during the validation.
        started: when this process began, on the clock of `time.monotonic`.
        cache_bytes: memory for reduced images, to name it where memory is short.
        report: gets each line that a person reads.

    Attributes:
        state: where the training is.
    """

    def __init__(
        self,
        run: Path,
        trainer: DetectionTrainer,
        batches: Batches,
        state: TrainingState,
        *,
        workers: int,
        validation: Validation | None = None,
        exported: keras.Model | None = None,
        stop: Stop,
        started: float,
        cache_bytes: int = 0,
        report: Callable[[str], None],
    ):
        self.state = state
        self.report = report
        self._run, self._trainer, self._batches, self._validation = run, trainer, batches, validation
        self._exported = exported or trainer.network
        self._detector = Detector(self._exported, state.run)
        self._workers, self._stop = workers, stop
        self._began = started - state.seconds  # the time between two processes left out
        self._epoch_began = time.monotonic() - state.epoch_seconds
        self._saved_at, self._saved_step = time.monotonic(), state.step
        self._memory = functools.partial(
            memory_errors,
            batch_size=batches.batch_size,
            image_size=state.run.network.image_size,
            cache_bytes=cache_bytes,
        )
        self._progress = Progress(report)
        self._steps_began: float | None = None
        self._step_times: list[float] = []  # of the epoch, in this process
        self._costs: list[float] = []  # seconds of the newest epochs with their validation
        self._saving = 0.0  # seconds of the newest checkpoint
        self._rate: Schedule | None = None
        self._deadline: float | None = None  # when the time budget ends, on the clock of `time.monotonic`
        tensorboard = state.training.options.records.tensorboard and processes.is_first()
        self._tensorboard = TensorBoard(run / "tensorboard" if tensorboard else None)

    # === Before the first step =======================================================================================
    def begin(self, length: LengthOptions) -> None:
        """Plans a new training, or restores one; writes its settings.

        Args:
            length: a training goes on with its plan, unless this is another length than before.

        Raises:
            InputError: there is no time for a training, or no memory for a step.
        """
        budgeted = length.epochs is None and length.time_budget is not None
        self._deadline = self._began + length.time_budget if budgeted else None
        self._rate = prepare_trainer(self._trainer, self.state, self._run)
        images = checkpoints.digest_of(self._batches.data.image_ids)
        if self.state.step and self.state.images != images:
            self.report("the training images are not those of the checkpoint: they come in another order from here on")
        self.state = dataclasses.replace(self.state, images=images)
        with self._memory():
            if self._validation:
                self._measure_on(self._validation.sample(1))  # compiles, so that no epoch is measured with that
            if self.state.plan:
                self._resume(length)
            else:
                self._plan(length)
        if self._validation:
            self._validation = self._validation.sample(self.state.plan.validation_images)
        if processes.is_first():
            write_run_settings(self._run, self.state.run)
            write_json(self._run / TRAINING_SETTINGS, self.state.training)
            for name in (SETTINGS, TRAINING_SETTINGS):
                checkpoints.flush(self._run / name)

    def _plan(self, length: LengthOptions) -> None:
        images, batch_size = len(self._batches.data), self._batches.batch_size
        if self._deadline is None:
            plan, reason = lengths.fixed_plan(length, images, batch_size)
            self.report(f"chosen: {reason}")
        else:
            self.report("planning: some steps and some of the validation show how long they take")
            speed = self._measure_speed(MEASURING_SHARE * length.time_budget)
            speed = lengths.Speed(*processes.from_first(lambda: speed))
            left = processes.from_first(lambda: self._deadline - time.monotonic())
            plan = lengths.budget_plan(left, speed, budget=length.time_budget)
            self.report(
                f"chosen: {plan.epochs} epochs of {plan.steps} steps for {length.time_budget / 60:g} minutes, "
                f"{plan.total_steps * batch_size / images:.0f} passes: a step takes {speed.step:.3f} s "
                f"({batch_size / speed.step:.1f} images/s), measuring the mAP {speed.validation:.1f} s"
            )
            if plan.validation_images:
                self.report(f"chosen: {plan.validation_images} of {speed.images} validation images, to save time")
        course = schedule.new_schedule(self.state.training.learning_rate, plan.total_steps)
        self._change(plan, course)

    def _resume(self, length: LengthOptions) -> None:
        state, plan = self.state, self.state.plan
        inside = state.step - state.epochs * plan.steps
        where = f" and {inside} of {plan.steps} steps" if inside else ""
        self.report(f"{self._run}: going on after epoch {state.epochs} of {plan.epochs}{where}{best_so_far(state)}")
        epochs = lengths.changed_length(state, length)
        if epochs is None:
            return
        budget = length.time_budget if length.epochs is None else None
        longer = lengths.make_plan(epochs, plan.steps, seconds=budget, validation_images=plan.validation_images)
        shape = state.training.recipe.schedule
        self._change(longer, schedule.prolong(state.schedule, longer.total_steps, at=state.step, shape=shape))
        self.report(f"{epochs} epochs instead of {plan.epochs}: the learning rate falls to its end over all of them")

    def _change(self, plan, course: ScheduleState) -> None:
        self.state = dataclasses.replace(self.state, plan=plan, schedule=course)
        self._rate.follow(course)

    def _measure_speed(self, seconds: float) -> lengths.Speed:
        """Measures steps and validation, after what they compile; afterwards all weights are as before.

        Args:
            seconds: for the steps after the first one, which builds the graph.
        """
        variables = [*self._trainer.variables, *self._trainer.optimizer.variables]
        before = [np.array(ops.convert_to_numpy(variable)) for variable in variables]
        times = []

        def after_step(logs, update_variables):
            float(logs["loss"])  # waits until an accelerator has done the step
            times.append(time.perf_counter())
            over = processes.from_first(lambda: times[-1] - times[0] >= seconds)
            self._trainer.stop_training = over and len(times) >= FEWEST_STEPS

        steps = STEPS_TO_WARM + STEPS_TO_MEASURE
        self._fit(BatchSequence(self._batches, workers=self._workers, close_at=steps), steps, after_step)
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        step = float(np.median(np.diff(times[min(STEPS_TO_WARM, (len(times) - 1) // 2) :])))
        if not self._validation:
            return lengths.Speed(step, 0.0, 0)
        sample = self._validation.sample(IMAGES_TO_MEASURE)
        for _ in range(2):
            began = time.perf_counter()
            self._measure_on(sample)
            took = time.perf_counter() - began
        return lengths.Speed(step, took * self._validation.images / sample.images, self._validation.images)

    # === The steps ===================================================================================================
    def run(self) -> str:
        """Trains until the last epoch, until the time budget is used up, or until it is to stop.

        Returns:
            a sentence about the finished training.

        Raises:
            Stopped: it is to stop; a checkpoint is written.
            InputError: the data, the memory or the losses do not allow to go on.
        """
        self._stop.waits = True  # from here on there is something to lose
        try:
            with self._memory():
                self._train()
        except Stopped:
            self._save_if_needed()
            where = f"after step {self.state.step} of {self.state.plan.total_steps}"
            raise Stopped(f"{where}, saved{best_so_far(self.state)}") from None
        except BadImages:
            if not processes.several():  # they are those of this process alone, and all must save together
                self._save_if_needed()
            raise
        finally:
            self._stop.waits = False
            self._progress.end()
        return f"{self._run}: {self.state.epochs} epochs on level {self.state.run.level}{best_so_far(self.state)}"

    def _train(self) -> None:
        while self.state.epochs < self.state.plan.epochs:
            limited = self._deadline is not None and self.state.step
            if limited and processes.from_first(lambda: time.monotonic() >= self._deadline):
                self._end_here()
                return
            self._train_epoch()
            self._check_stop()
            self._finish_epoch()

    def _end_here(self) -> None:
        """Ends a training that is resumed when its time is over; an epoch that was begun counts as it is."""
        state, plan = self.state, self.state.plan
        begun = state.step > state.epochs * plan.steps
        self.report(f"the time is over: the training ends after step {state.step} of {plan.total_steps}")
        self.state = dataclasses.replace(state, plan=dataclasses.replace(plan, epochs=state.epochs + begun))
        if begun:
            checkpoints.restore_loss_sums(self._trainer, state)
            self._finish_epoch()
        else:
            self._save()

    def _train_epoch(self) -> None:
        """The steps of an epoch, or those that are left of it; fewer when the training is to stop."""
        state, plan = self.state, self.state.plan
        done = state.step - state.epochs * plan.steps
        self._step_times = []
        if done == plan.steps:
            checkpoints.restore_loss_sums(self._trainer, state)
            return
        self._progress.begin(f"epoch {state.epochs + 1}/{plan.epochs}", total=plan.steps, done=done)
        sequence = BatchSequence(self._batches, start=state.step, workers=self._workers, close_at=plan.close_at)
        # the step that builds the graph is no measure of speed
        self._steps_began = time.perf_counter() if self._trainer.train_function else None
        self._fit(sequence, plan.steps - done, self._after_step, restore_sums=done > 0)
        self._progress.end()

    def _fit(self, sequence: BatchSequence, steps: int, after_step: Callable, *, restore_sums: bool = False) -> None:
        """One `fit`. No step begins whose batch could not be prepared.

        TensorFlow fetches a batch inside the step: one that fails there has already counted itself and drawn from the
        random seeds, and a checkpoint of what was learned would go on differently.

        Args:
            sequence: of the batches.
            steps: how many.
            after_step: gets the logs, and a function that brings the variables up to date, which JAX needs.
            restore_sums: of the losses, which `fit` sets to zero.
        """
        state, epoch = self.state, self.state.epochs
        callback = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: restore_sums and checkpoints.restore_loss_sums(self._trainer, state),
            on_train_batch_begin=lambda batch, logs: sequence.wait_for(batch),
            on_train_batch_end=lambda batch, logs: after_step(logs, lambda: callback.model),
        )
        self._trainer.fit(
            sequence,
            steps_per_epoch=steps,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,
            verbose=0,
            callbacks=[callback],
        )

    def _after_step(self, logs: dict[str, float], update_variables: Callable) -> None:
        loss, step = float(logs["loss"]), self.state.step  # the mean over the epoch so far: one bad batch is enough
        if not math.isfinite(loss):
            raise self._bad_batch(step, f"the loss of step {step} is {loss}")
        self._step_times.append(time.perf_counter())
        self.state = dataclasses.replace(self.state, step=step + 1)
        done = self.state.step - self.state.epochs * self.state.plan.steps
        self._progress.update(done, f"loss {loss:.3f}", line=lambda: self._line_of_step(loss))
        if self._stop_wanted():
            self._trainer.stop_training = True
        elif self._checkpoint_is_due(done):
            update_variables()
            self._save()

    def _checkpoint_is_due(self, done: int) -> bool:
        records = self.state.training.options.records
        by_time = records.checkpoint_minutes > 0 and processes.from_first(
            lambda: records.checkpoint_minutes * 60 <= time.monotonic() - self._saved_at
        )
        by_steps = 0 < records.checkpoint_steps <= self.state.step - self._saved_step
        return by_time or (by_steps and done < self.state.plan.steps)  # after the last one comes that of the epoch

    def _stop_wanted(self) -> bool:
        self._stop.request(processes.from_any(self._stop.wanted()))
        return bool(self._stop.reason)

    def _check_stop(self) -> None:
        if self._stop_wanted():
            raise Stopped

    # === After an epoch ==============================================================================================
    def _finish_epoch(self) -> None:
        """What comes after the steps of an epoch. Whenever it is stopped or killed, the next start begins it again."""
        number, begin = self.state.epochs + 1, time.perf_counter()
        losses = {name: round(float(value), 6) for name, value in self._trainer.get_metrics_result().items()}
        score = self._measure()
        best = score is None or self.state.best is None or score > self.state.best  # a tie keeps the earlier one
        step = self._seconds_of_a_step()
        if step:
            after = time.perf_counter() - begin + self._saving
            self._costs.append(step * self.state.plan.steps + after)
        said = self._keep_to_deadline(number)
        row = EpochRow(
            epoch=number,
            **{name: losses[name] for name in ("loss", "class_loss", "box_loss")},
            mAP=None if score is None else round(score, 6),
            learning_rate=float(f"{float(self._trainer.optimizer.learning_rate):.6g}"),
            images_per_second=round(self._batches.batch_size / step, 2) if step else None,
            seconds=round(time.monotonic() - self._epoch_began, 2),
        )
        history = (*self.state.history, row)
        self.state = dataclasses.replace(
            self.state, epochs=number, history=history, best=score if best else self.state.best
        )
        self._epoch_began = time.monotonic()
        self._save(best=self._exported if best else None)
        if processes.is_first():
            checkpoints.write_history(self._run, history)
        self._tensorboard.show(row)
        left = self._seconds_left()
        self._progress.say(line_of_epoch(row, self.state.plan.epochs, best=best, seconds_left=left))
        if said:
            self.report(said)

    def _measure(self) -> float | None:
        """The mAP of the newest weights; None without validation images."""
        if self._exported is not self._trainer.network:
            self._exported.set_weights(self._trainer.network.get_weights())
        if not self._validation:
            return None
        score = self._measure_on(self._validation)
        return processes.from_first(lambda: score)

    def _measure_on(self, validation: Validation) -> float:
        def after_batch(images: int) -> None:
            self._check_stop()
            self._progress.update(images, line=lambda: f"validation: {images} of {validation.images} images")

        self._progress.begin("validation", total=validation.images)
        score = validation.measure(self._detector, after_batch)
        self._progress.end()
        return score

    def _keep_to_deadline(self, done: int) -> str:
        """Moves the end of the training when the newest epochs say that the plan misses the deadline by much.

        A part without mosaics that has begun stays where it is.

        Returns:
            a sentence about it; empty where the plan stays.
        """
        plan = self.state.plan
        if self._deadline is None or not self._costs:
            return ""
        left, epoch = processes.from_first(lambda: (self._deadline - time.monotonic(), self._seconds_of_an_epoch()))
        epochs = lengths.epochs_that_fit(left, epoch, done=done, planned=plan.epochs)
        if epochs == plan.epochs:
            return ""
        moved = lengths.make_plan(epochs, plan.steps, seconds=plan.seconds, validation_images=plan.validation_images)
        if self.state.step >= plan.close_at:
            moved = dataclasses.replace(moved, close_at=plan.close_at)
        if done == epochs:
            self.state = dataclasses.replace(self.state, plan=moved)
            return f"the time is over after {epochs} of {plan.epochs} epochs"
        self._change(moved, schedule.move_end(self.state.schedule, moved.total_steps, at=done * plan.steps))
        return f"{left / 60:.1f} minutes are left: {epochs} epochs instead of {plan.epochs}"

    def _seconds_of_a_step(self) -> float | None:
        """None where no step was made in this process but the one that built the graph."""
        times = self._step_times
        if len(times) == 1 and self._steps_began is not None:
            times = [self._steps_began, *times]
        return max(times[-1] - times[0], 1e-9) / (len(times) - 1) if len(times) > 1 else None

    def _seconds_of_an_epoch(self) -> float:
        """The mean of the newest epochs: other work makes single ones slow."""
        return float(np.mean(self._costs[-NEWEST_EPOCHS:]))

    # === Saving and showing ==========================================================================================
    def _save(self, best: keras.Model | None = None) -> None:
        """Writes a checkpoint.

        Args:
            best: the network, where its weights are the best so far.

        Raises:
            InputError: it cannot be written, or the weights are not finite.
        """
        step = self.state.step - 1
        if weight := spoiled_weight(self._trainer):
            raise self._bad_batch(step, f"step {step} made {weight} infinite or not a number")
        begin = time.monotonic()
        times = {"seconds": begin - self._began, "epoch_seconds": begin - self._epoch_began}
        state = dataclasses.replace(self.state, **times)
        self.state = checkpoints.write_checkpoint(self._run, self._trainer, self._trainer.network, state, best=best)
        self._saved_at, self._saved_step = time.monotonic(), self.state.step
        self._saving = self._saved_at - begin

    def _save_if_needed(self) -> None:
        """Writes a checkpoint where something was learned since the last one."""
        if self.state.step != self._saved_step:
            self._save()

    def _bad_batch(self, step: int, what: str) -> Exception:
        """The error about weights or losses that are not finite."""
        good = f"the last good checkpoint, {self._run / checkpoints.NEWEST} of step {self._saved_step}"
        images = self._batches.ids(step, closed=step >= self.state.plan.close_at)
        return report_bad_batch(self._run, what, step, images, good if self._saved_step else "")

    def _seconds_left(self) -> float | None:
        """Until the end of the training, in this process's experience; None where there is none."""
        state, plan = self.state, self.state.plan
        left, seconds = plan.total_steps - state.step, self._seconds_of_a_step()
        if self._costs:
            return left * self._seconds_of_an_epoch() / plan.steps
        return None if seconds is None else left * seconds

    def _line_of_step(self, loss: float) -> str:
        state, plan = self.state, self.state.plan
        where = f"epoch {state.epochs + 1}/{plan.epochs}  step {state.step}/{plan.total_steps}"
        return f"{where}  loss {loss:.3f}{minutes_left(self._seconds_left())}"
