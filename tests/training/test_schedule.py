"""The learning rate over a training whose end may move, and what the optimizer does with gradients."""

import json

import keras
import numpy as np
import pytest

from tests.helpers.project import run_on_backend
from training.schedule import COSINE_END, Schedule, make_optimizer, move_end, new_schedule, prolong
from training.state import ScheduleState

SHAPES = pytest.mark.parametrize("shape", ["cosine", "steps"])


def course(steps: int, *, peak: float = 1.0, warm_up: int = 1) -> ScheduleState:
    return ScheduleState(peak=peak, steps=steps, warm_up=warm_up)


def rates(state: ScheduleState, steps, shape: str = "cosine") -> np.ndarray:
    schedule = Schedule(state, shape)
    return np.array([float(schedule(step)) for step in steps])


# === The learning rate ===============================================================================================
def test_the_rate_warms_up_linearly_and_falls_along_a_cosine():
    state = course(1000, peak=0.5, warm_up=10)
    fall = COSINE_END + (1 - COSINE_END) * (1 + np.cos(np.pi * np.arange(10) / 1000)) / 2
    np.testing.assert_allclose(rates(state, range(10)), 0.5 * np.arange(1, 11) / 10 * fall, rtol=1e-5)
    np.testing.assert_allclose(rates(state, [500, 1000, 2000]), [0.5 * 0.505, 0.005, 0.005], rtol=1e-5)
    assert np.all(np.diff(rates(state, range(10, 1001, 30))) < 0)


def test_the_warm_up_takes_a_hundred_steps_or_a_tenth_of_the_training():
    assert [new_schedule(1.0, steps).warm_up for steps in (5, 200, 10**5)] == [1, 20, 100]


def test_the_steps_of_the_paper():
    """150 epochs, divided by ten after 90 and 120, as in section 4.1."""
    state = course(150_000, peak=2e-3, warm_up=5000)
    expected = [2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5]
    found = rates(state, [4999, 89_999, 90_000, 119_999, 120_000, 149_999], "steps")
    np.testing.assert_allclose(found, expected, atol=1e-7 * 2e-3)


@SHAPES
@pytest.mark.parametrize("end", [400, 650, 5000])
def test_moving_the_end_changes_no_rate_at_that_step_and_ends_at_the_new_one(shape, end):
    at = 350
    before = course(1000, peak=0.1, warm_up=10)
    moved = move_end(before, end, at=at)
    np.testing.assert_allclose(rates(moved, [at, end], shape), [rates(before, [at], shape)[0], 1e-3], rtol=1e-4)
    falling = rates(moved, np.linspace(at, end, 40).astype(int), shape)
    assert np.all(np.diff(falling) <= 0)
    if shape == "cosine":
        assert np.max(-np.diff(falling)) < 0.1 * 0.15  # no jump anywhere


def test_the_end_can_move_more_than_once():
    moved = move_end(course(100), 200, at=40)
    again = move_end(moved, 130, at=120)
    assert again.begin_progress == pytest.approx(0.7)  # half of what was left at step 40
    assert rates(again, [120])[0] == pytest.approx(rates(moved, [120])[0])
    assert rates(again, [130])[0] == pytest.approx(COSINE_END)


@SHAPES
@pytest.mark.parametrize("at", [700, 1000], ids=["on its way", "finished"])
def test_a_prolonged_training_rises_smoothly_to_the_fall_of_the_longer_one(shape, at):
    before, planned_so = course(1000, peak=0.1, warm_up=10), course(3000, peak=0.1, warm_up=10)
    longer = prolong(before, 3000, at=at, shape=shape)
    begin = rates(before, [at - 1], shape)[0]
    found = rates(longer, range(at, at + 101), shape)
    assert abs(found[0] - begin) < 0.02 * 0.1
    assert np.all(np.abs(np.diff(found)) < 0.02 * 0.1)
    later = range(at + 101, 3001, 50)
    np.testing.assert_allclose(rates(longer, later, shape), rates(planned_so, later, shape), rtol=1e-3)


MOVED_ON_JAX = """
import json
import keras, numpy as np
from training.schedule import Schedule, make_optimizer, move_end, new_schedule
traced = []
class Traced(keras.Sequential):
    def compute_loss(self, *arguments, **options):
        traced.append(None)
        return super().compute_loss(*arguments, **options)
x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
def train(*, compile_again):
    keras.utils.set_random_seed(0)
    state = new_schedule(0.01, 10**6)
    schedule = Schedule(state)
    model = Traced([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=make_optimizer(schedule, optimizer="sgd", weight_decay=0.0), loss="mse")
    model.fit(x, y, epochs=3, verbose=0)
    before = len(traced)
    schedule.follow(move_end(state, 6, at=3))
    if compile_again:
        model.train_function = None
    model.fit(x, y, epochs=3, verbose=0)
    weights = np.concatenate([np.ravel(keras.ops.convert_to_numpy(weight)) for weight in model.weights])
    return weights.tolist(), len(traced) - before
print(json.dumps([train(compile_again=again) for again in (False, True)]))
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_moving_the_end_compiles_nothing_again(backend):
    (weights, traced), (expected, again) = json.loads(run_on_backend(backend, MOVED_ON_JAX))
    assert traced == 0 < again
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


# === The optimizer ===================================================================================================
def constant(rate: float) -> Schedule:
    """As good as constant in the few steps of a test."""
    return Schedule(course(10**6, peak=rate))


def after(batches, **options) -> list[np.ndarray]:
    """The weights of a dense layer after a training step with each of the batches `(x, y)`, mean squared error."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(optimizer=make_optimizer(constant(0.01), **{"weight_decay": 0.1} | options), loss="mse")
    for x, y in batches:
        model.train_on_batch(x, y)
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.trainable_variables]


def data(count: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, 3)).astype("float32"), rng.normal(size=(count, 2)).astype("float32")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_two_accumulated_batches_of_four_are_one_of_eight(optimizer):
    x, y = data(8)
    halves = [(x[:4], y[:4]), (x[4:], y[4:])]
    start, whole = after([], optimizer=optimizer), after([(x, y)], optimizer=optimizer)
    parts = after(halves, optimizer=optimizer, accumulate=2)
    for a, b, c in zip(parts, whole, start, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert np.all(b != c)
    for a, c in zip(after(halves[:1], optimizer=optimizer, accumulate=2), start, strict=True):
        np.testing.assert_array_equal(a, c)  # the first half alone changes nothing


def test_gradients_are_clipped_together():
    """With SGD the first step is the gradient times the rate: as long as the limit, in its own direction."""
    x, y = data(8)
    start = after([])
    moves = {}
    for limit in (0.0, 1e6, 0.25):
        end = after([(x, 1000 * y)], optimizer="sgd", weight_decay=0.0, clip_norm=limit)
        moves[limit] = np.concatenate([(b - a).ravel() for a, b in zip(start, end, strict=True)])
    np.testing.assert_allclose(moves[1e6], moves[0.0], rtol=1e-4)
    assert np.linalg.norm(moves[0.0]) > 1
    assert np.linalg.norm(moves[0.25]) == pytest.approx(0.01 * 0.25, rel=1e-3)
    unit = moves[0.0] / np.linalg.norm(moves[0.0])
    np.testing.assert_allclose(moves[0.25] / np.linalg.norm(moves[0.25]), unit, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_decay_but_biases_and_batch_norm_do_not(optimizer):
    inputs = keras.Input((4, 4, 3))
    x = keras.layers.Conv2D(5, 3, name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x))
    made = make_optimizer(constant(0.1), optimizer=optimizer, weight_decay=0.5)
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 2.0))
    made.build(model.trainable_variables)
    made.apply([keras.ops.zeros(weight.shape) for weight in model.trainable_variables])
    found = {weight.name: float(np.unique(np.array(weight))[0]) for weight in model.trainable_variables}
    assert found == {"kernel": pytest.approx(2.0 * (1 - 0.1 * 0.5)), "bias": 2.0, "gamma": 2.0, "beta": 2.0}
