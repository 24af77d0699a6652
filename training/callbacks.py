"""What happens around the training steps: a guard, checkpoints, validation, history, and one line per epoch."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from models import detector
from oid.files import InputError, replacing
from training import machines
from training.averages import averaged_weights
from training.batches import Batches, BatchSequence
from training.checkpoints import NEWEST, write_checkpoint
from training.history import write_history
from training.stopping import Stop
from training.trainer import DetectionTrainer

BAD_BATCH = "bad_batch.json"


class NonFiniteLoss(InputError):
    """The loss became infinite or not a number; the message names the images of that batch."""


class FiniteLossGuard(keras.callbacks.Callback):
    """Stops the training at the first loss that is not finite, naming the images of the batch.

    Args:
        run: folder of the run; RUN/bad_batch.json gets what the message says.
        batches: knows which images a step had.
        state: its `step` is the number of steps before this one.

    Attributes:
        last_good: the newest checkpoint, with its step, in words; empty before the first.
    """

    def __init__(self, run: Path, batches: Batches, state: dict):
        super().__init__()
        self.run = run
        self.batches = batches
        self.state = state
        self.last_good = ""

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])  # the mean over the epoch so far: one bad batch is enough
        if not math.isfinite(loss):
            raise self.failure(self.state["step"], f"the loss of step {self.state['step']} is {loss}")

    def check_weights(self, trainer: keras.Model) -> None:
        """To be called before they are saved: an update can spoil them though the loss before it was finite.

        Raises:
            NonFiniteLoss: some are not finite.
        """
        for variable in trainer.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                step = self.state["step"] - 1
                raise self.failure(step, f"step {step} made {variable.path} infinite or not a number")

    def failure(self, step: int, what: str) -> NonFiniteLoss:
        """The error that ends the training; writes the same to a file."""
        ids, good = self.batches.ids(step), self.last_good or "nothing: there is no checkpoint yet"
        report = {"step": step, "what": what, "images": ids, "last_good_checkpoint": good}
        if machines.is_first():
            with replacing(self.run / BAD_BATCH) as path:
                path.write_text(json.dumps(report, indent=1), encoding="utf-8")
        return NonFiniteLoss(
            f"{what}: look at its images {' '.join(ids)} and their boxes ({self.run / BAD_BATCH} lists them), or train "
            f"another --run with a lower --learning_rate; the same command goes on from {good}"
        )


class BatchGuard(keras.callbacks.Callback):
    """Begins no step whose batch could not be prepared.

    TensorFlow fetches a batch inside the step: one that fails there has already counted itself and drawn from the
    random seeds, and a checkpoint of what was learned would go on differently.
    """

    def __init__(self, sequence: BatchSequence):
        super().__init__()
        self.sequence = sequence

    def on_train_batch_begin(self, batch, logs=None):
        self.sequence.wait_for(batch)


class Progress(keras.callbacks.Callback):
    """A progress bar over all steps of an epoch, on a terminal only."""

    def __init__(self, state: dict):
        super().__init__()
        self.state = state

    def on_epoch_begin(self, epoch, logs=None):
        text, done = f"epoch {epoch + 1}/{self.state['total']}", self.state["step"] - epoch * self.state["steps"]
        self._bar = tqdm(total=self.state["steps"], initial=done, desc=text, unit="step", leave=False, disable=None)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self._bar.close()


class Saver(keras.callbacks.Callback):
    """Counts the steps, and writes checkpoints between them: after so many steps, after so many minutes, when asked.

    Args:
        run: folder of the run.
        trainer: the network inside and its optimizer are what is saved.
        state: of `training.checkpoints.new_state`, with the plan in it.
        guard: refuses weights that are not finite.
        stop: ends `fit` after a step when it is wanted.
        began: when the training began, on `time.monotonic`'s clock, the time between its processes left out.
        every_steps: from checkpoint to checkpoint; 0 = not by steps.
        every_minutes: the same; 0 = not by time.
    """

    def __init__(
        self,
        run: Path,
        trainer: DetectionTrainer,
        state: dict,
        *,
        guard: FiniteLossGuard,
        stop: Stop,
        began: float,
        every_steps: int = 0,
        every_minutes: float = 0.0,
    ):
        super().__init__()
        self.run = run
        self.trainer = trainer
        self.state = state
        self.guard = guard
        self.stop = stop
        self.began = began
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.unsaved = False  # whether something was learned since the last checkpoint
        self.cost = 0.0  # seconds of the last one
        self._saved_at, self._saved_step = time.monotonic(), state["step"]
        self._epoch_began = time.monotonic() - state["epoch_seconds"]
        if state["step"]:
            self._note_good()

    @property
    def epoch_seconds(self) -> float:
        """Since the epoch began, the time between processes left out."""
        return time.monotonic() - self._epoch_began

    def on_epoch_begin(self, epoch, logs=None):
        if self.state["step"] > epoch * self.state["steps"]:  # after `fit` has set them to zero
            set_means(self.trainer, self.state)

    def on_train_batch_end(self, batch, logs=None):
        state = self.state
        state["step"] += 1
        self.unsaved = True
        if self.stop.wanted():
            self.model.stop_training = True
            return
        by_time = self.every_minutes > 0 and machines.from_first(
            lambda: self.every_minutes * 60 <= time.monotonic() - self._saved_at
        )
        by_steps = 0 < self.every_steps <= state["step"] - self._saved_step
        last = state["step"] == (state["epochs"] + 1) * state["steps"]  # another one comes when it has been measured
        if by_time or (by_steps and not last):
            self.model  # noqa: B018 - on JAX this brings the variables up to date
            self.save()

    def begin_epoch(self) -> None:
        """A new epoch's seconds count from now on."""
        self._epoch_began = time.monotonic()
        self.state["epoch_seconds"] = 0.0

    def save(self, best_model: keras.Model | None = None) -> None:
        """Writes a checkpoint; the arguments are those of `write_checkpoint`.

        Raises:
            InputError: it cannot be written, or the weights are not finite.
        """
        self.guard.check_weights(self.trainer)
        self.state["seconds"] = time.monotonic() - self.began
        self.state["epoch_seconds"] = self.epoch_seconds
        begin = time.monotonic()
        write_checkpoint(self.run, self.trainer, self.trainer.network, self.state, best_model=best_model)
        self._saved_at, self._saved_step, self.unsaved = time.monotonic(), self.state["step"], False
        self.cost = self._saved_at - begin
        self._note_good()

    def save_if_needed(self) -> None:
        """Writes a checkpoint where something was learned since the last one."""
        if self.unsaved:
            self.save()

    def _note_good(self) -> None:
        self.guard.last_good = f"the last good checkpoint, {self.run / NEWEST} of step {self.state['step']}"


def set_means(trainer: keras.Model, state: dict) -> None:
    """Makes the sums of the epoch's losses those of the checkpoint, so that its means are of the whole epoch."""
    for variable, value in zip(trainer.metrics_variables, state["means"], strict=True):
        variable.assign(value)


class _Interruptible(detector.Detector):
    """A detector that asks before each batch whether the training is to stop: measuring can take long."""

    def __init__(self, model: keras.Model, settings: dict, stop: Stop):
        super().__init__(model, settings)
        self._stop = stop

    def detect(self, squares, **options):
        self._stop.check()
        return super().detect(squares, **options)


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: validates, keeps the best model, writes checkpoint and history, prints one line.

    Args:
        saver: writes the checkpoints; has the run's folder, the trainer and the state.
        settings: the run's settings.
        validate: gives the mAP of a detector, or None without validation data; the last epoch then counts.
        batch_size: images per step.
        validate_every: so many epochs; the last one is measured in any case.
        patience: the training stops after so many measurements without a better mAP; 0 = it does not.
        exported: the same network in float32, where the other trains in less; None = the other itself.
        writer: takes the numbers of each epoch as TensorBoard's `Writer` does, or None.

    Attributes:
        measuring: seconds that measuring the mAP took, each time, the newest last.
    """

    def __init__(
        self,
        saver: Saver,
        settings: dict,
        *,
        validate: Callable[[detector.Detector], float] | None,
        batch_size: int,
        validate_every: int = 1,
        patience: int = 0,
        exported: keras.Model | None = None,
        writer=None,
    ):
        super().__init__()
        self.saver = saver
        self.run = saver.run
        self.trainer = saver.trainer
        self.state = saver.state
        self.exported = exported or self.trainer.network
        self.detector = _Interruptible(detector.inference_model(self.exported, settings), settings, saver.stop)
        self.validate = validate
        self.batch_size = batch_size
        self.validate_every = validate_every
        self.patience = patience
        self.writer = writer
        self.measuring: list[float] = []
        self._costs: list[float] = []  # of the epochs, without that
        self.begin_steps(builds=True)

    @property
    def seconds_per_epoch(self) -> float | None:
        """The mean of the newest three epochs, without building the graph; other work makes single ones slow.

        Without measuring the mAP. None before the first epoch of this process.
        """
        return float(np.mean(self._costs[-3:])) if self._costs else None

    @property
    def seconds_to_measure(self) -> float:
        """The mean of the newest three measurements of the mAP; 0 before the first one of this process."""
        return float(np.mean(self.measuring[-3:])) if self.measuring else 0.0

    @property
    def out_of_patience(self) -> bool:
        """Whether the newest `patience` measurements were none of them the best."""
        scores = [row["mAP"] for row in self.state["history"] if row["mAP"] != ""]
        return 0 < self.patience < len(scores) and max(scores[-self.patience :]) <= max(scores[: -self.patience])

    def forget_costs(self) -> None:
        """To be called when epochs take longer from now on than those before, because the backbone thaws."""
        self._costs.clear()

    def begin_steps(self, *, builds: bool) -> None:
        """To be called before the steps of an epoch.

        Args:
            builds: whether the first step also builds the graph: it is no measure of speed then.
        """
        self._builds = builds
        self._steps = 0
        self._began = self._first_step_done = self._last_step_done = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._last_step_done = time.perf_counter()
        if not self._steps:
            self._first_step_done = self._last_step_done
        self._steps += 1

    def finish_epoch(self, replan: Callable[[int], str] = lambda done: "") -> None:
        """What comes after the steps of an epoch. Whenever it is stopped or killed, the next start begins it again.

        Args:
            replan: gets the number of epochs done, may change how many there are in all, returns a line to print.
        """
        state, number, begin = self.state, self.state["epochs"] + 1, time.perf_counter()
        losses = {name: round(float(value), 6) for name, value in self.trainer.get_metrics_result().items()}
        score, best = self._measure(measured=number == state["total"] or number % self.validate_every == 0)
        rest = time.perf_counter() - begin
        if score is not None:
            self.measuring.append(rest)
            rest = 0.0
        seconds = self._seconds_of_a_step()
        if seconds:
            self._costs.append(seconds * state["steps"] + rest + self.saver.cost)
        said = replan(number)
        if number == state["total"] and score is None:  # it has become the last one
            score, best = self._measure(measured=True)
        row = {
            "epoch": number,
            **{name: losses[name] for name in ("loss", "class_loss", "box_loss")},
            "mAP": "" if score is None else round(score, 6),
            "learning_rate": float(f"{float(self.trainer.optimizer.learning_rate):.6g}"),
            "images_per_second": round(self.batch_size / seconds, 2) if seconds else "",
            "seconds": round(self.saver.epoch_seconds, 2),
        }
        state["history"].append(row)
        state["epochs"] = number
        if best:
            state["best"] = score if score is not None else -1.0
        self.saver.begin_epoch()
        self.saver.save(best_model=self.detector.model if best else None)
        write_history(self.run / "history.csv", state["history"])
        self._show(row)
        self._print(row, best)
        if said:
            print(said, flush=True)

    def measure_last(self) -> None:
        """Measures the newest epoch where it was not, because the training was meant to go on."""
        newest = self.state["history"][-1]
        if newest["mAP"] != "" or not self.validate:
            return
        score, best = self._measure(measured=True)
        newest["mAP"] = round(score, 6)
        if best:
            self.state["best"] = score
        self.saver.save(best_model=self.detector.model if best else None)
        write_history(self.run / "history.csv", self.state["history"])
        print(f"epoch {newest['epoch']}  mAP {score:.4f}{' best' if best else ''}", flush=True)

    def _measure(self, *, measured: bool) -> tuple[float | None, bool]:
        """The mAP of the weights (with --ema of their average), and whether it is the best; None if not measured."""
        if self.validate and not measured:
            return None, False
        with averaged_weights(self.trainer):
            if self.exported is not self.trainer.network:
                self.exported.set_weights(self.trainer.network.get_weights())
            score = self.validate(self.detector) if self.validate else None
            score = machines.from_first(lambda: score)
        return score, score is None or score > self.state["best"]  # a tie keeps the earlier one

    def _seconds_of_a_step(self) -> float | None:
        """None where no step was made in this process but the one that built the graph."""
        steps, seconds = self._steps - 1, self._last_step_done - self._first_step_done
        if self._steps == 1 and not self._builds:
            steps, seconds = 1, self._last_step_done - self._began
        return max(seconds, 1e-9) / steps if steps > 0 else None

    def _show(self, row: dict) -> None:
        """Gives the numbers of an epoch to TensorBoard."""
        if not self.writer:
            return
        for name in set(row) - {"epoch"}:
            if row[name] != "":
                self.writer.add_scalar(name, row[name], row["epoch"])
        self.writer.flush()

    def _print(self, row: dict, best: bool) -> None:
        score = "" if row["mAP"] == "" else f"  mAP {row['mAP']:.4f}{' best' if best else ''}"
        speed = "" if row["images_per_second"] == "" else f"  {row['images_per_second']:.1f} images/s"
        left = ""
        if self.seconds_per_epoch is not None:
            seconds = self.seconds_per_epoch + self.seconds_to_measure / self.validate_every
            left = f"  {seconds * (self.state['total'] - row['epoch']) / 60:.1f} min left"
        print(
            f"epoch {row['epoch']}/{self.state['total']}  loss {row['loss']:.3f} (class {row['class_loss']:.3f}, "
            f"box {row['box_loss']:.3f}){score}{speed}{left}",
            flush=True,
        )
