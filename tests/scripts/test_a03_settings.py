"""Proves that flags which make no training are refused in one sentence with the flag's name and its value."""

import inspect
import json
import math

import pytest

import a03_train_m2det as a03
from oid.files import InputError
from training import settings
from training.settings import FREE_TO_CHANGE, LABEL_RULES, LOWEST, SHARES, check_flags, check_length, known_channels

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(a03.main).parameters.items()}


def refusal(**changes) -> str:
    """The message about these flags."""
    assert changes.keys() <= DEFAULTS.keys()
    with pytest.raises(InputError) as error:
        check_flags(DEFAULTS | changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_defaults_of_a03_are_allowed():
    check_flags(DEFAULTS)
    assert LOWEST.keys() | set(SHARES) | FREE_TO_CHANGE <= DEFAULTS.keys()  # no name is misspelt


@pytest.mark.parametrize(("name", "least"), LOWEST.items())
def test_the_lowest_value_of_a_flag(name, least):
    others = {"epochs": 3} if name == "steps_per_epoch" else {}
    others |= {"init_from": "run"} if name == "freeze_backbone_epochs" else {}
    check_flags(DEFAULTS | others | {name: least})
    for wrong in (least - 1, math.nan):
        assert refusal(**others, **{name: wrong}) == f"--{name} is {wrong}: it must be at least {least}"


@pytest.mark.parametrize("name", SHARES)
def test_shares_are_from_0_to_1(name):
    for value in (0.0, 0.3, 1.0):
        check_flags(DEFAULTS | {name: value})
    for wrong in (-0.1, 1.1, math.nan, math.inf):
        assert refusal(**{name: wrong}) == f"--{name} is {wrong}: it must be from 0 to 1"


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay", "clip_norm"])
def test_numbers_of_a_step_are_finite(name):
    check_flags(DEFAULTS | {name: 0.5})
    found = refusal(**{name: math.inf})
    assert f"--{name} is inf: it must be " in found
    assert "finite" in found


FROZEN = "would keep random weights: give --backbone_weights or --init_from as well"
RULES = "give some of verified, ancestors, regions, depictions, or none"
RATE = "it must be above 0 and finite"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"learning_rate": 0.0}, f"--learning_rate is 0.0: {RATE}"),
        ({"learning_rate": -1e-3}, f"--learning_rate is -0.001: {RATE}"),
        ({"learning_rate": math.nan}, f"--learning_rate is nan: {RATE}"),
        ({"seed": 2**32}, "--seed is 4294967296: it must be below 4294967296"),
        ({"cache_gb": 2e6}, "--cache_gb is 2000000.0: it must be at most 1000000"),
        ({"cache_gb": math.inf}, "--cache_gb is inf: it must be at most 1000000"),
        ({"taps": ("one",)}, "--taps names 1 layers: name two, at strides of 8 and 16 pixels"),
        ({"steps_per_epoch": 9}, "--steps_per_epoch 9 needs --epochs: give both, or a --time_budget"),
        ({"label_rules": ("verfied",)}, f"--label_rules verfied: {RULES}"),
        ({"label_rules": ("none", "verified")}, f"--label_rules none verified: {RULES}"),
        ({"label_rules": ("verified", "all")}, f"--label_rules verified all: {RULES}"),
        ({"multi_scale": (0,)}, "--multi_scale has 0: it must be at least 32"),
        ({"multi_scale": (320, 16)}, "--multi_scale has 16: it must be at least 32"),
        ({"freeze_backbone": True}, f"--freeze_backbone {FROZEN}"),
        ({"freeze_batch_norm": True}, f"--freeze_batch_norm {FROZEN}"),
        ({"freeze_backbone_epochs": 1}, f"--freeze_backbone_epochs {FROZEN}"),
        (
            {"freeze_backbone": True, "freeze_backbone_epochs": 2, "init_from": "run"},
            "--freeze_backbone with --freeze_backbone_epochs 2: the first is for the whole training, the second until "
            "it thaws: leave one out",
        ),
    ],
    ids=str,
)
def test_other_mistakes(flags, message):
    assert refusal(**flags) == message


def test_values_at_the_limit_are_allowed():
    check_flags(DEFAULTS | {"seed": 2**32 - 1, "cache_gb": 1e6, "taps": ("one", "two"), "multi_scale": (256, 320)})
    for steps in (0, 9):
        check_flags(DEFAULTS | {"steps_per_epoch": steps, "epochs": 2})
    for rules in (LABEL_RULES, *((rule,) for rule in (*LABEL_RULES, "none"))):
        check_flags(DEFAULTS | {"label_rules": rules})
    for frozen in ("freeze_backbone", "freeze_batch_norm", "freeze_backbone_epochs"):
        check_flags(DEFAULTS | {frozen: 1, "backbone_weights": "imagenet"})
        check_flags(DEFAULTS | {frozen: 1, "init_from": "run"})


@pytest.mark.parametrize(
    ("flag", "least", "sentence"),
    [
        (
            "freeze_backbone_epochs",
            3,
            "in a training of 3 epochs would never thaw: give fewer, or --freeze_backbone if that is what is meant",
        ),
        (
            "warm_up_steps",
            31,
            "in a training of 30 steps would never reach the learning rate: give fewer, or leave it out",
        ),
    ],
)
def test_flags_longer_than_the_training_are_refused(flag, least, sentence):
    flags = {"init_from": "run", "epochs": 3, "steps_per_epoch": 10}
    for value in (least, least + 1):
        assert refusal(**flags | {flag: value}) == f"--{flag} {value} {sentence}"
        with pytest.raises(InputError) as error:
            check_length(DEFAULTS | {flag: value}, 3, 10)  # the length was planned
        assert str(error.value) == f"--{flag} {value} {sentence}"
    check_flags(DEFAULTS | flags | {flag: least - 1})
    check_flags(DEFAULTS | {"warm_up_steps": 31, "epochs": 3, "steps_per_epoch": 0})  # the images decide


def test_tensorboard_is_looked_for_before_anything_starts(monkeypatch):
    check_flags(DEFAULTS | {"tensorboard": True})
    monkeypatch.setattr(settings.importlib.util, "find_spec", lambda name: None)
    check_flags(DEFAULTS)
    assert refusal(tensorboard=True) == (
        "--tensorboard needs the package of that name: pip install tensorboard, or leave it out"
    )


@pytest.mark.parametrize(
    ("detector", "changes", "channels"),
    [
        ("legacy_retinanet", {}, 256),
        ("legacy_retinanet", {"channels": 64}, 64),
        ("legacy_retinanet", {"backbone": "vgg16"}, None),
        ("legacy_retinanet", {"detector": "m2det"}, None),
        ("retinanet", {}, 48),
        ("retinanet", {"channels": 64}, 64),
        ("retinanet", {"detector": "m2det"}, None),
        ("m2det", {"detector": "m2det", "backbone": "vgg16"}, 48),
        (None, {}, None),  # there is no such run: that is said later
    ],
)
def test_the_channels_of_another_run_are_known_before_a_framework_starts(tmp_path, detector, changes, channels):
    if detector:
        (tmp_path / "settings.json").write_text(json.dumps({"detector": detector, "channels": 48}))
    flags = DEFAULTS | {"detector": "retinanet", "init_from": str(tmp_path)} | changes
    assert known_channels(flags) == channels
    assert known_channels(flags | {"init_from": str(tmp_path / "checkpoint")}) == channels


# === Flags of a run that goes on =====================================================================================
def state_of(flags: dict, **training: object) -> dict:
    """Of a run that has begun with these flags."""
    flags = json.loads(json.dumps(flags))
    return {"step": 9, "settings": {"flags": flags, "classes": [], "training": training}}


def test_a_run_from_before_some_flags_were_open_goes_on_with_what_it_had(tmp_path):
    before = DEFAULTS | settings.OPENED
    state = state_of(before, batch_size=8)
    found = settings.saved_settings(tmp_path, DEFAULTS, {}, state)
    assert settings.weight_decay_of(found) == 0.03
    assert settings.saved_settings(tmp_path, before, {}, state) == found


@pytest.mark.parametrize("name", settings.OPENED)
def test_what_was_given_then_is_still_needed(tmp_path, name):
    was, now = {"weight_decay": 0.5, "variant": "released", "anchors": "official"}[name], None
    with pytest.raises(InputError, match=f"was begun with --{name} {was}, now it is {now}"):
        settings.saved_settings(tmp_path, DEFAULTS, {}, state_of(DEFAULTS | settings.OPENED | {name: was}))
    with pytest.raises(InputError, match=f"was begun with --{name} {now}, now it is {was}"):
        settings.saved_settings(tmp_path, DEFAULTS | {name: was}, {}, state_of(DEFAULTS))


def test_a_chosen_weight_decay_counts():
    assert settings.weight_decay_of(state_of(DEFAULTS, weight_decay=5e-4)["settings"]) == 5e-4
