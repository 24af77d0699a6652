"""Proves what a03 chooses where something is open, that it says why, and that a time budget is filled, not exceeded."""

import functools
import math
import os

import keras
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from models.backbones import BACKBONES, all_layers, build_backbone
from oid.anchors.grids import smallest_image
from oid.files import InputError
from tests.helpers.project import refused
from training import plan

OPEN = {
    **dict.fromkeys((*plan.PAPER, "batch_size", "learning_rate", "weight_decay", "precision", "cache_gb")),
    "backbone_weights": "none",
    "init_from": None,
    "optimizer": "adamw",
}
GIVEN = {"backbone": "resnet50", "image_size": 256, "tums": 3, "scales": 2, "channels": 48}
GIVEN |= {"batch_size": 5, "learning_rate": 0.123, "weight_decay": 0.0, "precision": "float32", "cache_gb": 0.5}


def facts(images: int = 500, *, accelerator: bool = False, free: int = 8 * 2**30) -> plan.Facts:
    return plan.Facts(images=images, accelerator=accelerator, cores=4, free_memory=free)


# === Durations =======================================================================================================
DURATIONS = {"90s": 90, "20m": 1200, "1h30m": 5400, "2d": 172_800, "1.5h": 5400, "1d2h3m4s": 93_784, "0.5s": 0.5}


@pytest.mark.parametrize(("text", "seconds"), [*DURATIONS.items(), ("none", None)])
def test_times_are_read(text, seconds):
    assert plan.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "20", "m", "20 m", "20M", "20min", "0h0m", "1h-5m", "1..5h", "None", "nan", "1e3s"]
)
def test_invalid_times_are_one_sentence(text):
    with refused(f"--time_budget {text} is no time: write 90s, 20m, 1h30m or 2d, or none"):
        plan.parse_duration(text)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99), st.integers(0, 999))
def test_the_parts_add_up(days, hours, minutes, seconds):
    assume(days + hours + minutes + seconds)
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert plan.parse_duration(f"{days}d{hours}h{minutes}m{seconds}s") == expected


# === Network, batch, learning rate, cache ============================================================================
@pytest.mark.parametrize(
    ("images", "accelerator", "weights", "network", "batch_size"),
    [
        (500, False, "none", plan.SMALL, 8),
        (1_700_000, False, "none", plan.SMALL, 8),  # a processor would need years for the paper's
        (9_999, True, "none", plan.SMALL, 32),
        (10_000, True, "imagenet", plan.PAPER, 32),
    ],
)
def test_open_flags_follow_from_images_and_machine(images, accelerator, weights, network, batch_size):
    chosen, reasons = plan.fill_in(OPEN | {"backbone_weights": weights}, facts(images, accelerator=accelerator))
    assert {name: chosen[name] for name in network} == network
    assert chosen["batch_size"] == batch_size
    assert all(value is not None for name, value in chosen.items() if name != "init_from")
    machine = "an accelerator" if accelerator else "4 CPU cores"
    kind = "the paper" if network is plan.PAPER else "a small network"
    assert reasons[0].startswith(f"{images} images on {machine}: {kind} (backbone {network['backbone']}, image_size ")
    assert reasons[1] == f"batches of {batch_size} on {machine}"
    assert len(reasons) == 5
    assert OPEN["backbone"] is None  # the argument is untouched


@pytest.mark.parametrize("detector", ["m2det", "retinanet"])
@pytest.mark.parametrize("weights", ["none", "imagenet"])
@pytest.mark.parametrize("large", [False, True])
def test_an_open_backbone_can_begin_with_the_weights_that_are_asked_for(detector, weights, large):
    """ImageNet's are there; random ones have batch norm, or they hardly learn."""
    machine = facts(10_000, accelerator=large)
    chosen, reasons = plan.fill_in(OPEN | {"detector": detector, "backbone_weights": weights}, machine)
    name = chosen["backbone"]
    assert f"(backbone {name}, image_size " in reasons[0]
    usual = (plan.SMALL if not large else plan.PAPER if detector == "m2det" else plan.RETINANET)["backbone"]
    assert sum(reason.startswith(f"backbone {name}, because ") for reason in reasons) == (name != usual)
    assert BACKBONES[name].pretrained if weights == "imagenet" else has_batch_norm(name)


@functools.cache
def has_batch_norm(backbone: str) -> bool:
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in all_layers(build_backbone(backbone, 64)))


def test_a_file_of_weights_needs_its_backbone():
    with refused("--backbone_weights file.h5 needs --backbone: name the one whose weights they are"):
        plan.fill_in(OPEN | {"backbone_weights": "file.h5"}, facts())
    chosen, _ = plan.fill_in(OPEN | {"backbone_weights": "file.h5", "backbone": "vgg16"}, facts())
    assert chosen["backbone"] == "vgg16"


@pytest.mark.parametrize(
    "change", [{}, {"backbone_weights": "imagenet"}, {"backbone_weights": "x.h5"}, {"init_from": "x"}]
)
@pytest.mark.parametrize(("optimizer", "random_rate", "decay"), [("adamw", 2e-3, 0.03), ("sgd", 2e-2, 5e-4)])
def test_weights_that_have_learned_are_changed_less(change, optimizer, random_rate, decay):
    rate, why = (random_rate / 10, "have learned already") if change else (random_rate, "begin at random")
    chosen, reasons = plan.fill_in(OPEN | {"backbone": "vgg16", "optimizer": optimizer} | change, facts())
    assert (chosen["learning_rate"], chosen["weight_decay"]) == (pytest.approx(rate), decay)
    assert f"learning rate {rate:g} for {optimizer}, because the weights {why}" in reasons
    assert f"weight decay {decay:g}, because the optimizer is {optimizer}" in reasons


@given(
    names=st.sets(st.sampled_from(sorted(GIVEN))),
    images=st.integers(1, 2_000_000),
    accelerator=st.booleans(),
    weights=st.sampled_from(["none", "imagenet"]),
)
def test_given_flags_are_never_overridden(names, images, accelerator, weights):
    given_ones = {name: GIVEN[name] for name in names}
    open_flags = OPEN | {"backbone_weights": weights} | given_ones
    chosen, reasons = plan.fill_in(open_flags, facts(images, accelerator=accelerator))
    assert {name: chosen[name] for name in names} == given_ones
    for name in names & set(plan.SMALL):
        assert f"{name} {GIVEN[name]}" not in "".join(reasons)  # nor claimed to be chosen
    if len(names) == len(GIVEN):
        assert reasons == []


@given(image_size=st.integers(smallest_image(1), 900), accelerator=st.booleans())
def test_open_scales_fit_the_image_that_was_given(image_size, accelerator):
    settings = OPEN | {"image_size": image_size}
    chosen, _ = plan.fill_in(settings, facts(20_000, accelerator=accelerator))
    assert smallest_image(chosen["scales"]) <= image_size
    wanted = (plan.PAPER if accelerator else plan.SMALL)["scales"]
    assert chosen["scales"] == wanted or smallest_image(chosen["scales"] + 1) > image_size


@pytest.mark.parametrize(("has_it", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_is_what_the_machine_is_fast_in(has_it, precision):
    machine = plan.Facts(images=500, accelerator=False, cores=4, free_memory=2**30, bfloat16=has_it)
    chosen, reasons = plan.fill_in(OPEN, machine)
    assert chosen["precision"] == precision
    assert sum(f"precision {precision}, because this machine has" in reason for reason in reasons) == 1
    assert plan.processor_has_bfloat16() in (True, False)


def test_the_cache_takes_half_of_the_free_memory_and_says_what_stays_in_it():
    """1,000 pictures of 4 by 3, whose longer side is kept at `KEPT_SIDE` times the network's, 3 bytes per pixel."""
    assert plan.fill_in(OPEN, facts(free=6 * 2**30))[0]["cache_gb"] == 3.0
    need = 1000 * 3 * (plan.KEPT_SIDE * 192) * (plan.KEPT_SIDE * 192 * 0.75) / 2**30
    assert plan.cache_reason(1000, 192, 4.0) == f"1000 images: cache on, they need {need:.2f} of 4 GB"
    half = round(need / 2, 3)
    share = plan.cache_reason(1000, 192, half)
    assert share == f"1000 images: cache on for {100 * half / need:.0f} %, {half:g} of the {need:.1f} GB they need"
    assert plan.cache_reason(1000, 192, 0) == "cache off: pictures are read from the disk each time"


# === Length ==========================================================================================================
@pytest.mark.parametrize(("images", "passes"), [(1, 32_000), (100, 320), (2000, 16), (1_700_000, 12)])
def test_without_a_budget_the_images_say_how_long(images, passes):
    epochs, steps, reason = plan.fixed_length(images, 8)
    assert epochs == 40
    assert 0 <= epochs * steps * 8 - passes * images < epochs * 8  # rounded up to whole steps per epoch
    assert reason == f"{images} images: 40 epochs of {steps} steps, {passes} passes through the data"


STEP = st.floats(1e-3, 60)
VALIDATION = st.one_of(st.just(0.0), st.floats(0.01, 1000))


@given(seconds=st.floats(1, 1e6), step=STEP, validation=VALIDATION, every=st.integers(1, 40))
@example(seconds=300.0, step=11.0, validation=0.0, every=1)  # epochs of a thirtieth of the time would not have one step
@example(seconds=1200.0, step=19.0, validation=0.0, every=1)
def test_a_budget_is_filled_and_never_exceeded(seconds, step, validation, every):
    usable = seconds * (1 - plan.MARGIN)
    try:
        epochs, steps = plan.budget_length(seconds, step=step, validation=validation, validate_every=every)
    except InputError:
        assert usable < (plan.SHORTEST * step + validation) * (1 + 1e-9)  # it really is too short
        return
    measured = sum(number % every == 0 or number == epochs for number in range(1, epochs + 1))
    used = epochs * steps * step + measured * validation
    assert used <= usable * (1 + 1e-9)
    assert usable - used <= epochs * step * (1 + 1e-6)  # less than a step per epoch is left
    assert epochs * steps >= plan.SHORTEST
    assert epochs <= plan.EPOCHS_IN_BUDGET
    if epochs > 1:
        assert validation * measured <= 0.1 * usable * (1 + 1e-9)  # most of the time trains
        assert used >= 0.9 * usable


def test_measuring_that_takes_long_makes_fewer_epochs():
    epochs, steps = plan.budget_length(10_000, step=1.0, validation=200.0)
    assert (epochs, steps) == (4, 2250)  # 9,800 s; an epoch of at least 2,000 s, and 200 s
    # 4 measurements of 200 s, as before: the fifth would be more than a tenth
    assert plan.budget_length(10_000, step=1.0, validation=200.0, validate_every=5) == (20, 450)


@pytest.mark.parametrize(("seconds", "step", "validation"), [(30, 5.0, 2.0), (-12, 0.1, 0.0), (101, 5.0, 0.0)])
def test_too_short_a_budget_is_one_sentence_with_the_remedy(seconds, step, validation):
    with pytest.raises(InputError) as error:
        plan.budget_length(seconds, step=step, validation=validation)
    need = 20 * step + validation
    start, minutes = str(error.value).rsplit(": give it at least ", 1)
    assert start.startswith(f"--time_budget leaves {max(seconds, 0):.0f} s after the start, and 20 steps with their ")
    assert start.endswith(f"validation need {need:.0f} s")
    more = int(minutes.removesuffix(" minutes more"))
    plan.budget_length(seconds + 60 * more, step=step, validation=validation)  # which is enough
    assert more <= math.ceil((need - seconds) / 60) + 1


@pytest.mark.parametrize(
    ("seconds", "done", "planned", "expected"),
    [
        (970.0, 1, 11, 11),  # ten more of 95 s each: as planned
        (500.0, 1, 11, 6),  # everything takes twice as long
        (2000.0, 1, 11, 21),  # or half
        (5000.0, 10, 60, 60),  # 52 fit, 50 are left: off by 4 %, so the plan stays
        (-50.0, 3, 11, 3),
        (90.0, 10, 11, 10),  # the last one does not fit
    ],
)
def test_the_plan_follows_the_newest_epochs(seconds, done, planned, expected):
    assert plan.epochs_that_fit(seconds, 95.0, done=done, planned=planned) == expected


@given(
    epoch=st.floats(0.5, 100),
    validation=VALIDATION,
    every=st.integers(1, 12),
    done=st.integers(0, 40),
    more=st.integers(0, 60),
    spare=st.floats(0.001, 0.999),
)
def test_epochs_that_fit_include_their_validations(epoch, validation, every, done, more, spare):
    planned = done + more + 1000  # so that it is off by more than 5 %

    def seconds(total: int) -> float:
        measured = sum(number % every == 0 or number == total for number in range(done + 1, total + 1))
        return (total - done) * epoch + measured * validation

    expected = done + more
    left = seconds(expected) + spare * (seconds(expected + 1) - seconds(expected))
    options = {"done": done, "planned": planned, "validation": validation, "validate_every": every}
    assert plan.epochs_that_fit(left / (1 - plan.MARGIN / 2), epoch, **options) == expected


@pytest.mark.parametrize(
    ("change", "classes", "head"),
    [
        ({}, 3, "light"),
        ({}, 101, "shared"),
        ({"channels": 64}, 3, "conv"),  # who chooses the network gets the published head
        ({"variant": "released"}, 3, "conv"),
    ],
)
def test_the_small_network_has_the_light_head(change, classes, head):
    settings = OPEN | {"variant": "paper"} | change
    chosen, _ = plan.fill_in(settings, facts())
    assert plan.head_for(settings, chosen, classes) == head


# === Cores ===========================================================================================================
THREADS = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"


@pytest.mark.parametrize(
    ("before", "channels", "cores", "expected"),
    [
        ({}, None, 2, ("1", "2")),
        ({}, 64, 4, ("1", "4")),
        ({}, 64, 8, (None, None)),
        ({}, 128, 2, (None, None)),
        (dict(zip(THREADS, ("3", "5"), strict=True)), None, 2, ("3", "5")),  # the user's own stay
    ],
)
def test_few_cores_are_shared_by_the_layers_of_a_thin_network(monkeypatch, before, channels, cores, expected):
    for name in THREADS:
        monkeypatch.setenv(name, before.get(name, ""))  # monkeypatch restores what is set below
        if name not in before:
            monkeypatch.delenv(name)
    plan.share_few_cores(channels, cores)
    assert tuple(os.environ.get(name) for name in THREADS) == expected
