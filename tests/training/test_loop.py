"""The loop of a training: plans and budgets on a clock that counts steps, going on, prolonging, what is shown."""

import itertools
import re
import shutil
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from models import load_model
from oid.files import InputError
from tests.helpers.runs import assert_same_training, history
from tests.helpers.small_training import make_training, train
from training import lengths, loop, progress
from training.batches import BatchSequence
from training.checkpoints import find_checkpoint
from training.failures import memory_errors
from training.loop import Training
from training.options import LengthOptions
from training.schedule import COSINE_END
from training.stopping import Stopped
from training.trainer import DetectionTrainer
from training.validation import Validation

pytestmark = pytest.mark.usefixtures("tiny_backbone")


def train_until(step: int, training: Training, length: LengthOptions) -> None:
    """Begins a training that is stopped after a step."""
    stop = training._stop
    training.begin(length)
    stop.wanted = lambda: "the test" if training.state.step >= step else ""
    with pytest.raises(Stopped, match=rf"^after step {step} of \d+, saved"):
        training.run()


# === Going on ========================================================================================================
@pytest.fixture(scope="module")
def whole(photographs, tiny_backbone, tmp_path_factory):
    """A training of two epochs of ten steps that was never stopped."""
    said, run = [], tmp_path_factory.mktemp("whole") / "run"
    training = train(photographs, run, said=said, epochs=2, steps=10, accumulate=2, tensorboard=True)
    return SimpleNamespace(run=run, said=said, state=training.state)


@pytest.mark.parametrize("step", [7, 10], ids=["within an epoch", "at the end of an epoch"])
def test_a_stopped_training_goes_on_exactly(photographs, tmp_path, whole, step):
    length = LengthOptions(None, 2, 10)
    train_until(step, make_training(photographs, tmp_path / "run", said=[], accumulate=2), length)
    assert find_checkpoint(tmp_path / "run")[1].step == step
    said = []
    train(photographs, tmp_path / "run", said=said, epochs=2, steps=10, accumulate=2)
    # a stop at the end of an epoch comes before its validation
    assert any(f"going on after epoch 0 of 2 and {step} of 10 steps" in line for line in said)
    assert_same_training(whole.run, tmp_path / "run")


def test_more_epochs_prolong_a_finished_training(photographs, tmp_path, whole, monkeypatch):
    shutil.copytree(whole.run, tmp_path / "run")
    monkeypatch.setattr("training.checkpoints.digest_of", lambda image_ids: "others")
    said = []
    again = train(photographs, tmp_path / "run", said=said, epochs=4, steps=10, accumulate=2)
    assert "4 epochs instead of 2: the learning rate falls to its end over all of them" in said
    assert any(line.startswith("the training images are not those of the checkpoint") for line in said)
    assert again.state.history[:2] == whole.state.history
    rates = [row.learning_rate for row in again.state.history]
    expected = [COSINE_END, COSINE_END + (1 - COSINE_END) * (1 - np.sqrt(0.5)) / 2, COSINE_END]
    np.testing.assert_allclose(rates[1:], 2e-3 * np.array(expected), rtol=0.02)
    assert again.state.plan.close_at == 34
    assert again.state.best >= whole.state.best


# === A time budget, on a clock that counts steps =====================================================================
class Clock:
    """A step takes `step` seconds, measuring an image `image` seconds, and the first of both compiles for `compile`."""

    def __init__(self, patch):
        self.now, self.step, self.image, self.compile, self.steps = 1000.0, 1.0, 0.05, 0.0, 0
        self.compiled = set()
        read = SimpleNamespace(monotonic=lambda: self.now, perf_counter=lambda: self.now)
        for module in (loop, progress):
            patch.setattr(module, "time", read)
        patch.setattr(loop, "STEPS_TO_WARM", 1)
        patch.setattr(loop, "STEPS_TO_MEASURE", 4)
        patch.setattr(lengths, "SHORTEST", 4)
        usual = BatchSequence.wait_for

        def wait_for(sequence, index):
            usual(sequence, index)
            self.tick("steps", self.step)
            self.steps += 1

        def measure(validation, detector, after_batch=lambda images: None):
            self.tick("validation", self.image * validation.images)
            after_batch(validation.images)
            return 0.5

        def compute_loss(trainer, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return sum(keras.ops.mean(keras.ops.square(output)) for output in y_pred.values())  # a small graph

        patch.setattr(DetectionTrainer, "compute_loss", compute_loss)
        patch.setattr(BatchSequence, "wait_for", wait_for)
        patch.setattr(Validation, "measure", measure)

    def tick(self, what: str, seconds: float) -> None:
        self.now += seconds + self.compile * (what not in self.compiled)
        self.compiled.add(what)

    def begin(self, photographs, run, budget: float, said: list[str], **changes) -> Training:
        training = make_training(photographs, run, said=said, started=self.now, **changes)
        training.begin(LengthOptions(budget))
        return training

    def train(self, photographs, run, budget: float, said: list[str]) -> Training:
        training = self.begin(photographs, run, budget, said)
        training.run()
        return training


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return Clock(monkeypatch)


def test_the_plan_of_a_first_run_equals_that_of_a_warm_one(photographs, tmp_path, clock):
    plans = []
    for number in range(2):
        clock.compile = 0.0 if number else 7.0
        said = []
        plans.append(clock.begin(photographs, tmp_path / str(number), 180.0 - 14 * number, said).state.plan)
        assert any("a step takes 1.000 s (4.0 images/s), measuring the mAP 0.3 s" in line for line in said)
    assert plans[0].epochs == plans[1].epochs > 10
    assert plans[0].steps == plans[1].steps
    assert plans[0].validation_images is None


def test_measuring_changes_nothing(photographs, tmp_path, clock):
    training = make_training(photographs, tmp_path / "run", said=[], started=clock.now)
    trainer = training._trainer
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in trainer.network.weights]
    training.begin(LengthOptions(100.0))
    assert clock.steps >= 3
    assert int(trainer.optimizer.iterations) == 0
    for weight, value in zip(trainer.network.weights, before, strict=True):
        np.testing.assert_array_equal(np.array(keras.ops.convert_to_numpy(weight)), value)


def test_slow_validation_measures_fewer_images_instead_of_fewer_epochs(photographs, tmp_path, clock):
    clock.image = 2.0
    said = []
    training = clock.begin(photographs, tmp_path / "run", 300.0, said)
    assert training.state.plan.epochs == 5
    assert 1 <= training.state.plan.validation_images <= 3
    assert training._validation.images == training.state.plan.validation_images
    assert any("of 6 validation images, to save time" in line for line in said)


def test_a_budget_ends_in_time_though_steps_become_slower_and_it_is_stopped(photographs, tmp_path, clock, monkeypatch):
    begin, said = clock.now, []
    usual = Training._finish_epoch

    def finish_epoch(training):
        usual(training)
        clock.step = 1.5 if training.state.epochs >= 2 else 1.0
        if training.state.epochs == 4 and not any("going on" in line for line in said):
            raise KeyboardInterrupt

    monkeypatch.setattr(Training, "_finish_epoch", finish_epoch)
    with pytest.raises(KeyboardInterrupt):
        clock.train(photographs, tmp_path / "run", 60.0, said)
    planned = int(re.search(r"chosen: (\d+) epochs of 4 steps", "\n".join(said))[1])
    training = clock.train(photographs, tmp_path / "run", 60.0, said)
    rows = training.state.history
    assert training.state.epochs == training.state.plan.epochs == len(rows) < planned
    assert 60 - 7 < clock.now - begin <= 60  # another epoch would have been too long
    assert f"epochs instead of {planned}" in "\n".join(said)
    assert rows[-1].learning_rate == pytest.approx(2e-3 * COSINE_END, rel=1e-3)  # though the end was moved
    assert all(after.learning_rate < before.learning_rate for before, after in itertools.pairwise(rows))
    assert lengths.is_finished(training.state, LengthOptions(60.0))


def test_a_larger_budget_prolongs_a_finished_training(photographs, tmp_path, clock):
    first = clock.train(photographs, tmp_path / "run", 60.0, said := [])
    begin = clock.now
    second = clock.train(photographs, tmp_path / "run", 120.0, said)
    assert second.state.epochs > 1.6 * first.state.epochs
    assert 50 < clock.now - begin <= 61
    rates = [row.learning_rate for row in second.state.history]
    assert rates[first.state.epochs] > 20 * rates[first.state.epochs - 1]
    assert rates[-1] == pytest.approx(2e-3 * COSINE_END, rel=1e-2)


@pytest.mark.parametrize("step", [8, 10], ids=["at the end of an epoch", "within an epoch"])
def test_a_training_that_is_resumed_without_time_left_ends(photographs, tmp_path, clock, step):
    stopped = make_training(photographs, tmp_path / "run", said=[], started=clock.now)
    train_until(step, stopped, LengthOptions(60.0))
    said = []
    training = make_training(photographs, tmp_path / "run", said=said, started=clock.now - 60)
    training.begin(LengthOptions(60.0))
    training.run()
    assert any(line.startswith(f"the time is over: the training ends after step {step} of ") for line in said)
    state = training.state
    assert (state.step, state.epochs, state.plan.epochs) == (step, len(state.history), len(state.history))
    assert len(state.history) == 2 + (step > 8)  # the epoch that was begun counts
    assert state.best == 0.5
    assert lengths.is_finished(state, LengthOptions(60.0))


# === What a person sees ==============================================================================================
def test_without_a_terminal_a_line_comes_every_ten_seconds(photographs, tmp_path, clock):
    said = []
    training = make_training(photographs, tmp_path / "run", said=said, started=clock.now)
    training.begin(LengthOptions(None, 1, 35))
    training.run()
    steps = [int(line.split("step ")[1].split("/")[0]) for line in said if "  step " in line]
    assert steps == [10, 20, 30]
    (line,) = [line for line in said if "step 20" in line]
    assert re.fullmatch(r"epoch 1/1  step 20/35  loss \d+\.\d{3}  0\.\d min left", line)


def test_the_line_of_an_epoch_says_what_its_map_leaves_out(whole):
    (line,) = [line for line in whole.said if line.startswith("epoch 1/2  loss ")]
    ending = r"  mAP 0\.\d{4} without mirrored images, best  \d+\.\d images/s  \d\.\d min left$"
    assert re.search(ending, line)


def test_tensorboard_has_the_numbers_of_the_history(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(whole.run / "tensorboard"))
    events.Reload()
    rows = history(whole.run)
    for name in set(rows[0]) - {"epoch"}:
        found = {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(name)}
        assert found == pytest.approx({int(row["epoch"]): float(row[name]) for row in rows}, rel=1e-5)


# === bfloat16 ========================================================================================================
def test_a_training_in_bfloat16_saves_a_float32_network_that_finds_the_same(photographs, tmp_path):
    training = train(photographs, tmp_path / "run", epochs=1, steps=3, precision="bfloat16")
    network = training._trainer.network
    inner = [layer for layer in network._flatten_layers() if layer.name.endswith(("_conv", "_relu"))]
    assert {layer.dtype_policy.name for layer in inner} == {"mixed_bfloat16"}
    saved = load_model(tmp_path / "run", precision=None).network
    assert {layer.dtype_policy.name for layer in saved._flatten_layers(include_self=False)} == {"float32"}
    for one, two in zip(network.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
    picture = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("uint8")
    mixed, exact = (
        {name: keras.ops.convert_to_numpy(keras.ops.cast(value, "float32")) for name, value in outputs.items()}
        for outputs in (network(picture, training=False), saved(picture, training=False))
    )
    for name, value in exact.items():
        assert np.abs(mixed[name] - value).mean() < 0.02 * np.abs(value).mean() + 0.01


# === Lack of memory ==================================================================================================
@pytest.mark.parametrize(
    "error",
    [
        type("ResourceExhaustedError", (Exception,), {})("OOM when allocating tensor"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes"),
        RuntimeError("MemoryError: Unable to allocate 2.00 GiB for an array"),  # from a data thread of TensorFlow
        MemoryError(),
    ],
)
def test_lack_of_memory_is_one_sentence_that_names_what_to_change(error):
    message = (
        "^the memory does not suffice for a step of 8 images of 192 pixels beside 2.0 GB of cached images: take a "
    )
    with pytest.raises(InputError, match=message), memory_errors(batch_size=8, image_size=192, cache_bytes=2**31):
        raise error


def test_other_errors_stay_what_they_are():
    for error in (ValueError("shapes differ"), InputError("out of memory")):
        with pytest.raises(type(error), match=str(error)), memory_errors(batch_size=8, image_size=192, cache_bytes=0):
            raise error
