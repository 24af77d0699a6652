"""How long a training is planned, and when its end moves."""

import dataclasses

import pytest

from oid.files import InputError
from training import lengths
from training.lengths import Speed, budget_plan, changed_length, epochs_that_fit, fixed_plan, is_finished, make_plan
from training.options import LengthOptions
from training.state import EpochRow, TrainingState

ROW = EpochRow(1, 1.0, 0.5, 0.5, None, 0.1, None, seconds=10.0)


def seconds_of(plan, speed: Speed) -> float:
    measured = 1.0 if plan.validation_images is None else plan.validation_images / speed.images
    return plan.total_steps * speed.step + plan.epochs * measured * speed.validation


@pytest.mark.parametrize("step", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("validation", [0.0, 0.5, 20.0, 400.0])
@pytest.mark.parametrize("left", [170.0, 1200.0, 8 * 3600.0])
def test_a_plan_fills_its_budget_with_at_least_five_epochs(left, step, validation):
    speed = Speed(step, validation, images=1000)
    plan = budget_plan(left, speed, budget=left + 10)
    assert left * 0.9 < seconds_of(plan, speed) <= left * (1 - lengths.MARGIN)
    assert plan.steps >= lengths.SHORTEST
    if left * 0.85 >= 100 * step:
        assert plan.epochs >= 5
    assert plan.epochs * validation <= 0.1 * left or plan.validation_images < 1000
    assert plan.close_at == int(0.85 * plan.total_steps)


def test_a_sample_is_smaller_only_where_five_epochs_would_not_fit():
    assert budget_plan(1000.0, Speed(0.1, 19.0, 1000), budget=1000).validation_images is None
    plan = budget_plan(1000.0, Speed(0.1, 40.0, 1000), budget=1000)
    assert (plan.epochs, plan.validation_images) == (5, 490)


def test_a_budget_without_time_for_a_training_is_refused():
    with pytest.raises(InputError, match=r"a time budget of 30 s leaves 5 s .* 20 steps .* at least 2 minutes more"):
        budget_plan(5.0, Speed(1.0, 0.0, 0), budget=30)


def test_without_a_budget_the_images_say_how_long():
    assert fixed_plan(LengthOptions(None, epochs=3), 100, 8)[0] == make_plan(3, 12)
    assert fixed_plan(LengthOptions(None, 3, 7), 100, 8)[0] == make_plan(3, 7)
    small, reason = fixed_plan(LengthOptions(None), 100, 8)
    assert (small, reason) == (make_plan(40, 100), "100 images: 40 epochs of 100 steps, 320 passes through the data")
    assert fixed_plan(LengthOptions(None), 100_000, 8)[0].total_steps * 8 == pytest.approx(12 * 100_000, rel=0.01)


@pytest.mark.parametrize(("left", "epochs"), [(100.0, 13), (103.0, 14), (41.0, 8), (0.0, 4), (-5.0, 4), (1000.0, 103)])
def test_the_end_moves_only_when_the_plan_misses_by_much(left, epochs):
    """Four epochs are done, of ten seconds each, and ten more are planned."""
    assert epochs_that_fit(left, 10.0, done=4, planned=14) == epochs


# === Another length than before ======================================================================================
def state(*, epochs: int, seconds: float | None = None, used: float = 0.0) -> TrainingState:
    """A training of ten planned epochs of five steps."""
    plan = make_plan(10, 5, seconds=seconds)
    return TrainingState(step=5 * epochs, epochs=epochs, plan=plan, seconds=used, history=(ROW,) * epochs)


@pytest.mark.parametrize(
    ("begun", "length", "epochs"),
    [
        (state(epochs=10), LengthOptions(None, 10), None),
        (state(epochs=10), LengthOptions(None, 15), 15),
        (state(epochs=10), LengthOptions(None, 5), None),  # it is finished
        (state(epochs=4), LengthOptions(None, 15), 15),
        (state(epochs=4), LengthOptions(None, 2), 4),
        (state(epochs=4), LengthOptions(None), None),
        (state(epochs=10, seconds=100, used=99), LengthOptions(100), None),
        (state(epochs=10, seconds=100, used=90), LengthOptions(100), None),  # though another epoch would fit
        (state(epochs=10, seconds=100, used=99), LengthOptions(200), 19),
        (state(epochs=10, seconds=100, used=99), LengthOptions(50), None),
        (state(epochs=10, used=99), LengthOptions(200), 19),
        (state(epochs=4, seconds=100, used=40), LengthOptions(200), 19),
        (state(epochs=0), LengthOptions(200), None),  # nobody knows how long an epoch takes
    ],
)
def test_more_epochs_or_a_larger_budget_prolong_a_training(begun, length, epochs):
    assert changed_length(begun, length) == epochs
    assert is_finished(begun, length) == (begun.epochs == 10 and epochs is None)


def test_a_begun_epoch_is_never_planned_away():
    begun = dataclasses.replace(state(epochs=4), step=22)
    assert changed_length(begun, LengthOptions(None, 3)) == 5


def test_epochs_keep_their_number_of_steps():
    with pytest.raises(InputError, match="the epochs of this run have 5 steps, not 6"):
        changed_length(state(epochs=4), LengthOptions(None, 10, 6))
