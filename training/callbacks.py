"""What happens around the training steps: a guard, validation, checkpoints, history, and one line per epoch."""

import contextlib
import csv
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from models import detector
from oid.files import InputError, replacing
from training.batches import Batches

TRAINING_WEIGHTS = "training.weights.h5"
STATE = "state.json"


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside the block the model's weights are their moving average; afterwards they are bit for bit what they were.

    Where the optimizer keeps no average they stay what they are.
    """
    if not model.optimizer.use_ema:
        yield
        return
    variables = [*model.trainable_variables, *model.optimizer.variables]
    # copies, because Keras swaps by adding and subtracting, which rounds
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


class NonFiniteLoss(InputError):
    """The loss became infinite or not a number; the message names the images of that batch."""


class FiniteLossGuard(keras.callbacks.Callback):
    """Stops the training at the first loss that is not finite, naming the images of the batch.

    Args:
        batches: knows which images a step had.
        state: its `steps` per epoch count steps from the start of the training.
    """

    def __init__(self, batches: Batches, state: dict):
        super().__init__()
        self.batches = batches
        self.state = state
        self._epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])  # the mean over the epoch so far: one bad batch is enough
        if not math.isfinite(loss):
            step = self._epoch * self.state["steps"] + batch
            raise NonFiniteLoss(
                f"the loss of step {step} is {loss}: look at its images {' '.join(self.batches.ids(step))} and their "
                "boxes, or lower --learning_rate"
            )


class Progress(keras.callbacks.Callback):
    """A progress bar over all steps of an epoch, on a terminal only."""

    def __init__(self, state: dict):
        super().__init__()
        self.state = state

    def on_epoch_begin(self, epoch, logs=None):
        text = f"epoch {epoch + 1}/{self.state['total']}"
        self._bar = tqdm(total=self.state["steps"], desc=text, unit="step", leave=False, disable=None)

    def on_train_batch_end(self, batch, logs=None):
        self._bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self._bar.close()


class EpochEnd(keras.callbacks.Callback):
    """After each epoch: validates, keeps the best model, writes history and checkpoint, prints one line.

    Args:
        run: folder of the run.
        network: the network inside the trainer.
        settings: the run's settings.
        validate: gives the mAP of a detector, or None without validation data; the last epoch then counts.
        state: what `read_state` gave, with the plan in it: `total` epochs of `steps` steps.
        batch_size: images per step.
        validate_every: so many epochs; the last one is measured in any case.
        patience: the training stops after so many measurements without a better mAP; 0 = it does not.
        exported: the same network in float32, where the other trains in less; None = the other itself.
        writer: takes the numbers of each epoch as TensorBoard's `Writer` does, or None.
    """

    def __init__(
        self,
        run: Path,
        network: keras.Model,
        settings: dict,
        *,
        validate: Callable[[detector.Detector], float] | None,
        state: dict,
        batch_size: int,
        validate_every: int = 1,
        patience: int = 0,
        exported: keras.Model | None = None,
        writer=None,
    ):
        super().__init__()
        self.run = run
        self.network = network
        self.exported = exported or network
        self.detector = detector.Detector(detector.inference_model(self.exported, settings), settings)
        self.validate = validate
        self.state = state
        self.batch_size = batch_size
        self.validate_every = validate_every
        self.patience = patience
        self.writer = writer
        self._began = self._first_step_done = time.perf_counter()
        self._costs: list[float] = []

    @property
    def seconds_per_epoch(self) -> float:
        """The mean of the newest three epochs, without building the graph; other work makes single ones slow."""
        return float(np.mean(self._costs[-3:]))

    @property
    def out_of_patience(self) -> bool:
        """Whether the newest `patience` measurements were none of them the best."""
        scores = [row["mAP"] for row in self.state["history"] if row["mAP"] != ""]
        return 0 < self.patience < len(scores) and max(scores[-self.patience :]) <= max(scores[: -self.patience])

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch == 0:  # the very first step also builds the graph: it is no measure of speed
            self._first_step_done = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """The best model first, then the checkpoint: a stop between the two repeats the epoch and loses nothing."""
        state, done = self.state, time.perf_counter()
        speed = (state["steps"] - 1) * self.batch_size / max(done - self._first_step_done, 1e-9)
        last = epoch + 1 == state["total"]
        score, best = self._measure(measured=last or (epoch + 1) % self.validate_every == 0)
        row = {
            "epoch": epoch + 1,
            "loss": round(logs["loss"], 6),
            "class_loss": round(logs["class_loss"], 6),
            "box_loss": round(logs["box_loss"], 6),
            "mAP": "" if score is None else round(score, 6),
            "learning_rate": float(f"{float(self.model.optimizer.learning_rate):.6g}"),
            "images_per_second": round(speed, 2),
            "seconds": round(time.perf_counter() - self._began, 2),
        }
        state["history"].append(row)
        state["epochs"] = epoch + 1
        state["seconds"] += row["seconds"]
        write_checkpoint(self.run, self.model, self.network, state)
        write_history(self.run / "history.csv", state["history"])
        since_first_step = time.perf_counter() - self._first_step_done
        self._costs.append(since_first_step * state["steps"] / max(1, state["steps"] - 1))
        if self.writer:
            for name in set(row) - {"epoch"}:
                if row[name] != "":
                    self.writer.add_scalar(name, row[name], epoch + 1)
            self.writer.flush()
        self._print(row, best)

    def measure_last(self) -> None:
        """Measures the newest epoch where it was not, because the training was meant to go on."""
        newest = self.state["history"][-1]
        if newest["mAP"] != "" or not self.validate:
            return
        score, best = self._measure(measured=True)
        newest["mAP"] = round(score, 6)
        write_state(self.run / "checkpoint", self.state)
        write_history(self.run / "history.csv", self.state["history"])
        print(f"epoch {newest['epoch']}  mAP {score:.4f}{' best' if best else ''}")

    def _measure(self, *, measured: bool) -> tuple[float | None, bool]:
        """The mAP of the averaged weights, which are saved where they are the best so far; None if not measured."""
        if self.validate and not measured:
            return None, False
        with averaged_weights(self.model):
            if self.exported is not self.network:
                self.exported.set_weights(self.network.get_weights())
            score = self.validate(self.detector) if self.validate else None
            best = score is None or score > self.state["best"]  # a tie keeps the earlier one
            if best:
                self.state["best"] = score if score is not None else -1.0
                with replacing(self.run / detector.MODEL) as path:
                    self.detector.model.save(path)
        return score, best

    def _print(self, row: dict, best: bool) -> None:
        left = self.seconds_per_epoch * (self.state["total"] - row["epoch"]) / 60
        score = "" if row["mAP"] == "" else f"  mAP {row['mAP']:.4f}{' best' if best else ''}"
        print(
            f"epoch {row['epoch']}/{self.state['total']}  loss {row['loss']:.3f} (class {row['class_loss']:.3f}, "
            f"box {row['box_loss']:.3f}){score}  {row['images_per_second']:.1f} images/s  {left:.1f} min left",
            flush=True,
        )


def write_checkpoint(run: Path, trainer: keras.Model, network: keras.Model, state: dict) -> None:
    """Writes `run/checkpoint`: all of the training, the averaged network for inference, and the state.

    The folder is complete or it is the one before: it is written beside and renamed.
    """
    new, old, final = run / "checkpoint.new", run / "checkpoint.old", run / "checkpoint"
    for folder in (new, old):
        shutil.rmtree(folder, ignore_errors=True)
    new.mkdir(parents=True)
    trainer.save_weights(new / TRAINING_WEIGHTS)
    with averaged_weights(trainer):
        network.save_weights(new / detector.CHECKPOINT_WEIGHTS.name)
    write_state(new, state)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def write_state(checkpoint: Path, state: dict) -> None:
    """Writes the state into the folder of a checkpoint."""
    with replacing(checkpoint / STATE) as path:
        path.write_text(json.dumps(state), encoding="utf-8")


def read_state(run: Path) -> dict:
    """The state of the newest complete checkpoint, zeros where there is none.

    Its entries: `epochs` done of `total`, `steps` per epoch, the `schedule` of the learning rate, `seconds` used,
    `best` mAP, `history`.
    """
    final, old = run / "checkpoint", run / "checkpoint.old"
    if not final.exists() and old.exists():  # killed between the two renames
        old.rename(final)
    try:
        return json.loads((final / STATE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"epochs": 0, "best": -1.0, "history": [], "total": 0, "steps": 0, "schedule": {}, "seconds": 0.0}
    except ValueError as error:
        raise InputError(f"{final / STATE} is damaged ({error}): remove {run} and train again") from error


def write_history(path: Path, rows: list[dict]) -> None:
    """Writes one row per epoch."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
