"""Proves the learning rate over a training, whose end may move, and what the optimizer does with gradients."""

import json

import keras
import numpy as np
import pytest

from tests.helpers.project import run_on_backend
from training.schedule import COSINE_END, Schedule, averaging, make_optimizer


def rates(schedule, steps) -> np.ndarray:
    return np.array([float(schedule(step)) for step in steps])


# === The learning rate ===============================================================================================
def test_the_rate_warms_up_linearly_and_decays_by_a_cosine():
    schedule = Schedule(peak=0.5, steps=1000, warm_up=10)
    found = rates(schedule, range(10))
    fall = COSINE_END + (1 - COSINE_END) * (1 + np.cos(np.pi * np.arange(10) / 1000)) / 2
    np.testing.assert_allclose(found, 0.5 * np.arange(1, 11) / 10 * fall, rtol=1e-5)
    np.testing.assert_allclose(rates(schedule, [500, 1000]), [0.5 * 0.505, 0.5 * 0.01], rtol=1e-5)
    assert np.all(np.diff(rates(schedule, range(10, 1001, 30))) < 0)
    assert float(schedule(2000)) == pytest.approx(0.005)  # beyond the end it stays


def test_the_steps_of_the_paper():
    """150 epochs, divided by ten after 90 and 120, as in section 4.1."""
    schedule = Schedule(peak=2e-3, steps=150_000, shape="steps", warm_up=5000)
    steps = [4999, 89_999, 90_000, 119_999, 120_000, 149_999]
    expected = [2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5]
    np.testing.assert_allclose(rates(schedule, steps), expected, atol=1e-7 * 2e-3)
    with pytest.raises(ValueError, match="unknown shape 'linear', there are cosine, steps"):
        Schedule(peak=1.0, steps=10, shape="linear")


@pytest.mark.parametrize("steps", [7, 10, 1000, 99_999])
def test_the_steps_fall_at_the_first_step_of_their_share(steps):
    schedule = Schedule(peak=1.0, steps=steps, shape="steps")
    for drop, (before, after) in {0.6: (1, 0.1), 0.8: (0.1, 0.01)}.items():
        first = next(step for step in range(int(drop * steps) - 1, steps) if step * 10 >= round(drop * 10) * steps)
        np.testing.assert_allclose(rates(schedule, [first - 1, first]), [before, after], rtol=1e-5)


@pytest.mark.parametrize("shape", ["cosine", "steps"])
@pytest.mark.parametrize("end", [400, 650, 5000])
def test_moving_the_end_changes_no_rate_at_that_step_and_ends_at_the_new_one(shape, end):
    at = 350
    schedule, before = (Schedule(peak=0.1, steps=1000, shape=shape, warm_up=10) for _ in range(2))
    schedule.move_end(end, at=at)
    assert schedule.steps == end
    assert float(schedule(at)) == pytest.approx(float(before(at)), rel=1e-5)
    assert float(schedule(end)) == pytest.approx(1e-3, rel=1e-4)
    assert schedule.progress(at) == pytest.approx(before.progress(at))
    assert schedule.progress(end) == 1
    falling = rates(schedule, np.linspace(at, end, 40).astype(int))
    assert np.all(np.diff(falling) <= 0)
    if shape == "cosine":
        assert np.max(-np.diff(falling)) < 0.1 * 0.15  # no jump anywhere


def test_the_end_can_move_more_than_once():
    schedule = Schedule(peak=1.0, steps=100)
    schedule.move_end(200, at=40)
    halfway = schedule.progress(120)
    assert halfway == pytest.approx(0.7)  # half of what was left
    schedule.move_end(130, at=120)
    assert schedule.progress(120) == pytest.approx(halfway)
    assert schedule.progress(125) == pytest.approx(0.85)
    assert float(schedule(130)) == pytest.approx(COSINE_END)


def test_moving_the_end_reaches_what_is_compiled_already():
    import tensorflow as tf

    schedule = Schedule(peak=1.0, steps=100)
    compiled = tf.function(lambda step: schedule(step))
    assert float(compiled(tf.constant(50))) == pytest.approx(0.505)
    schedule.move_end(50, at=25)
    assert float(compiled(tf.constant(50))) == pytest.approx(0.01)


MOVED_ON_JAX = """
import json
import keras, numpy as np
from training.schedule import Schedule, make_optimizer
traced = []
class Traced(keras.Sequential):
    def compute_loss(self, *arguments, **options):
        traced.append(None)
        return super().compute_loss(*arguments, **options)
x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
def train(*, compile_again):
    keras.utils.set_random_seed(0)
    schedule = Schedule(peak=0.01, steps=10**6)
    model = Traced([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=make_optimizer(schedule, optimizer="sgd", weight_decay=0.0, ema=False), loss="mse")
    model.fit(x, y, epochs=3, verbose=0)
    before = len(traced)
    schedule.move_end(6, at=3)
    if compile_again:
        model.train_function = None
    model.fit(x, y, epochs=3, verbose=0)
    weights = np.concatenate([np.ravel(keras.ops.convert_to_numpy(weight)) for weight in model.weights])
    return weights.tolist(), len(traced) - before, schedule.get_config()["steps"]
print(json.dumps([train(compile_again=again) for again in (False, True)]))
"""


def test_moving_the_end_compiles_nothing_again_on_jax():
    (weights, traced, end), (expected, again, _) = json.loads(run_on_backend("jax", MOVED_ON_JAX))
    assert (traced, end) == (0, 6)
    assert again > 0
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


@pytest.mark.parametrize("shape", ["cosine", "steps"])
def test_the_schedule_survives_json(shape):
    schedule = Schedule(peak=0.3, steps=100, shape=shape, warm_up=7, offset=20)
    schedule.move_end(70, at=30)
    again = Schedule(**json.loads(json.dumps(schedule.get_config())))
    np.testing.assert_array_equal(rates(again, range(100)), rates(schedule, range(100)))
    assert again.get_config() == schedule.get_config()


def test_an_offset_begins_later_in_the_same_training():
    whole, late = Schedule(peak=1.0, steps=100, warm_up=10), Schedule(peak=1.0, steps=100, warm_up=10, offset=60)
    np.testing.assert_allclose(rates(late, range(41)), rates(whole, range(60, 101)), rtol=1e-6)


# === The optimizer ===================================================================================================
def linear(**options) -> keras.Model:
    """One dense layer, compiled with `make_optimizer(**options)`."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    model.compile(
        optimizer=make_optimizer(**{"schedule": constant(0.01), "ema": True, "weight_decay": 0.0} | options), loss="mse"
    )
    return model


def values(variables) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def constant(rate: float) -> Schedule:
    """As good as constant in the few steps of a test."""
    return Schedule(peak=rate, steps=10**6)


def after(batches, **options) -> list[np.ndarray]:
    """The weights of `linear` after a training step with each of the batches `(x, y)`, mean squared error."""
    model = linear(**{"weight_decay": 0.1} | options)
    for x, y in batches:
        model.train_on_batch(x, y)
    return values(model.trainable_variables)


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
    made = make_optimizer(constant(0.1), optimizer=optimizer, ema=True, weight_decay=0.5)
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 2.0))
    made.build(model.trainable_variables)
    made.apply([keras.ops.zeros(weight.shape) for weight in model.trainable_variables])
    found = {weight.name: float(np.unique(np.array(weight))[0]) for weight in model.trainable_variables}
    assert found == {"kernel": pytest.approx(2.0 * (1 - 0.1 * 0.5)), "bias": 2.0, "gamma": 2.0, "beta": 2.0}


@pytest.mark.parametrize("ema", [True, False])
def test_the_moving_average_is_one_of_the_weights_or_there_is_none(ema):
    model = linear(schedule=Schedule(peak=0.01, steps=1000), ema=ema)
    x, y = data(8)
    average, momentum = None, averaging(1000)
    for _ in range(4):
        model.train_on_batch(x, y)
        now = values(model.trainable_variables)
        average = [momentum * a + (1 - momentum) * b for a, b in zip(average or now, now, strict=True)]
    kept = [variable for variable in model.optimizer.variables if "average" in variable.path]
    assert model.optimizer.use_ema == ema
    assert len(kept) == (2 if ema else 0)
    for found, expected in zip(values(kept), average, strict=ema):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_end_of_fit_leaves_the_weights_and_not_their_average():
    x, y = data(8)
    found = []
    for ends in ([2], [1, 2]):
        model = linear()
        for begin, end in zip([0, *ends], ends, strict=False):
            model.fit(x, y, batch_size=4, initial_epoch=begin, epochs=end, shuffle=False, verbose=0)
        found.append(values(model.trainable_variables))
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_averages_reach_back_a_twenty_fifth_of_the_training():
    reach = [1 / (1 - averaging(steps)) for steps in (1, 250, 1000, 10**5, 10**7)]
    assert reach == pytest.approx([10, 10, 40, 4000, 5000])


def test_optimizers_by_name():
    sgd, adamw = linear(optimizer="sgd").optimizer, linear().optimizer
    assert isinstance(sgd, keras.optimizers.SGD)
    assert isinstance(adamw, keras.optimizers.AdamW)
    assert (sgd.momentum, adamw.global_clipnorm) == (0.9, 10)
