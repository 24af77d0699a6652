"""The options of a training: recipes, durations, and which of them may change while a run goes on."""

import dataclasses
import math

import msgspec
import pytest

from oid.files import InputError
from oid.json_files import read_json, write_json
from tests.helpers.tiny_network import tiny_settings
from training import options
from training.options import OWN, PUBLISHED, Options, TrainingSettings, changes, continued, recipe_of

RUN = tiny_settings()


def with_options(**fields: object) -> Options:
    """The default options with some fields, whichever group these belong to."""
    made = Options()
    for name, value in fields.items():
        for group in ("network", "length", "labels", "images", "step", "records", "machine"):
            if hasattr(getattr(made, group), name):
                made = dataclasses.replace(made, **{group: dataclasses.replace(getattr(made, group), **{name: value})})
                break
        else:
            made = dataclasses.replace(made, **{name: value})
    return made


def begun(**fields: object) -> TrainingSettings:
    given_options = with_options(**fields)
    return TrainingSettings(given_options, recipe_of(given_options), 8, 2e-3, "float32")


# === Recipes ===
@pytest.mark.parametrize(
    ("fields", "recipe"),
    [
        ({}, OWN),
        ({"recipe": "published"}, PUBLISHED),
        ({"recipe": "published", "detector": "retinanet"}, dataclasses.replace(PUBLISHED, class_loss="focal")),
        ({"detector": "retinanet"}, OWN),
        ({"mosaic": 0.25}, dataclasses.replace(OWN, mosaic=0.25)),
    ],
)
def test_a_recipe_follows_from_its_name_the_detector_and_the_mosaics(fields, recipe):
    assert recipe_of(with_options(**fields)) == recipe


# === Durations ===
DURATIONS = {"90s": 90, "20m": 1200, "1h30m": 5400, "2d": 172_800, "1.5h": 5400, "1d2h3m4s": 93_784, "0.5s": 0.5}


@pytest.mark.parametrize(("text", "seconds"), DURATIONS.items())
def test_durations_are_read(text, seconds):
    assert options.duration(text) == seconds


@pytest.mark.parametrize("text", ["20", "m", "20 m", "20M", "20min", "1h-5m", "1..5h", "None", "nan", "1e3s"])
def test_other_texts_are_no_durations(text):
    assert math.isnan(options.duration(text))


# === A run that goes on ===
@pytest.mark.parametrize(
    "fields",
    [
        {"time_budget": 7200.0},
        {"epochs": 9, "steps_per_epoch": 7},
        {"max_hours": 2.0},
        {"max_bad_images": 3, "skip_missing": True},
        {"validation_images": 5, "tensorboard": True, "checkpoint_steps": 4},
        {"workers": 3, "cache_gb": 0.5, "devices": 2},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_what_is_not_learned_may_change(fields):
    now = with_options(**fields)
    assert changes(RUN, begun(), now) == []
    assert continued(begun().options, now) == now


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("level", "2"),
        ("detector", "retinanet"),
        ("backbone_weights", "imagenet"),
        ("freeze", "backbone"),
        ("rules", ("verified",)),
        ("max_gt_boxes", 50),
        ("sampling", "classes"),
        ("orientation", "exif"),
        ("recipe", "published"),
        ("accumulate", 2),
        ("seed", 1),
        ("deterministic", True),
    ],
)
def test_what_is_learned_may_not_change(name, value):
    before = {"level": "1"}
    for group in options.GROUPS:
        before |= vars(getattr(Options(), group))
    assert changes(RUN, begun(), with_options(**{name: value})) == [(name, before[name], value)]
    assert continued(begun().options, with_options(**{name: value})) == Options()


def test_an_option_that_was_open_has_the_value_that_was_chosen():
    same = with_options(batch_size=8, learning_rate=2e-3, precision="float32", image_size=64, head="conv", mosaic=0.5)
    assert changes(RUN, begun(), same) == []
    assert changes(RUN, begun(), with_options(learning_rate=0.1)) == [("learning_rate", 2e-3, 0.1)]
    assert changes(RUN, begun(), with_options(image_size=96)) == [("image_size", 64, 96)]
    assert changes(RUN, begun(), with_options(negatives=0.5)) == [("negatives", None, 0.5)]


def test_an_option_that_is_open_now_is_as_the_run_began():
    before = begun(learning_rate=0.5, mosaic=0.25, init_from="other", negatives=0.3)
    assert changes(RUN, before, Options()) == []
    assert continued(before.options, Options()) == before.options


def test_training_settings_are_the_same_after_reading(tmp_path):
    settings = begun(rules=(), epochs=3, mosaic=0.25, recipe="published")
    write_json(tmp_path / "training.json", settings)
    assert read_json(tmp_path / "training.json", TrainingSettings) == settings
    other = msgspec.to_builtins(settings) | {"recipe": {"assignment": "atss"}}
    (tmp_path / "training.json").write_bytes(msgspec.json.encode(other))
    with pytest.raises(InputError, match="written by another version"):
        read_json(tmp_path / "training.json", TrainingSettings)
