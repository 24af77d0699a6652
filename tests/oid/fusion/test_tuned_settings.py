"""Proves the file of tuned settings: what is written is read, and what does not fit is refused in one sentence."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES
from oid.fusion.tuned_settings import FusionSettings, model_names, read_tuned_settings, write_tuned_settings

NAMES = ["a.expanded", "b.expanded"]
SETTINGS = FusionSettings((1.0, 0.25), 0.61, 0.0123, "max")


def written(folder: Path, **changes: object) -> Path:
    """A settings file with other values in some keys; None takes the key away."""
    path = folder / "x.tuned.json"
    write_tuned_settings(path, NAMES, SETTINGS, "gain", {"images": 12})
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


numbers = st.floats(0.0, 1.0)


@given(
    weights=st.lists(numbers, min_size=1, max_size=5).filter(any),
    iou=numbers,
    skip=st.floats(-10.0, 10.0),
    conf_type=st.sampled_from(CONF_TYPES),
)
def test_what_is_written_is_read(tmp_path_factory, weights, iou, skip, conf_type):
    settings = FusionSettings(tuple(weights), iou, skip, conf_type)
    path = tmp_path_factory.mktemp("settings") / "x.tuned.json"
    names = [f"model {k}" for k in range(len(weights))]
    write_tuned_settings(path, names, settings, "inside the noise", {"gains": [0.1, None]})
    assert read_tuned_settings(path, names) == settings


def test_the_file_is_for_people_too(tmp_path):
    content = json.loads(written(tmp_path).read_text())
    assert content["models"] == NAMES
    assert content["weights"] == [1.0, 0.25]
    assert (content["format"], content["version"], content["method"]) == ("fusion settings", 1, "wbf")
    assert (content["verdict"], content["measured"]) == ("gain", {"images": 12})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_tuned_settings(tmp_path / "y.json", NAMES, SETTINGS, "gain", {"gain": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["x.tuned.json"]
    with pytest.raises(ValueError, match="1 names for 2 weights"):
        write_tuned_settings(tmp_path / "y.json", NAMES[:1], SETTINGS, "gain", {})


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.expanded"], r"has 2 models \(a.expanded b.expanded\), but 1 files are to be fused"),
        ([*NAMES, "c"], r"has 2 models .* but 3 files"),
        (NAMES[::-1], r"model 1 is 'a.expanded', but file 1 is 'b.expanded': .* in this order: a.expanded b.expanded"),
        (["a.expanded", "b"], r"model 2 is 'b.expanded', but file 2 is 'b'"),
    ],
)
def test_other_models_are_refused(tmp_path, names, said):
    with pytest.raises(InputError, match=said):
        read_tuned_settings(written(tmp_path), names)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "weights"}, "is no settings file"),
        ({"version": 2}, "has version 2, this program reads 1"),
        ({"weights": None}, "'weights' is missing"),
        ({"conf_type": None}, "'conf_type' is missing"),
        ({"conf_type": "mean"}, "conf_type is 'mean', it must be one of avg, max"),
        ({"conf_type": ["avg"]}, r"conf_type is \['avg'\]"),
        ({"method": "nms"}, "method is 'nms', it must be one of wbf"),
        ({"models": "ab"}, "models is 'ab', it must be a list of names"),
        ({"models": [1, 2]}, r"models is \[1, 2\]"),
        ({"weights": [1.0]}, r"weights is \[1.0\], it must have a number for each"),
        ({"weights": 1}, "weights is 1"),
        ({"weights": [0, 0]}, "not all 0"),
        ({"weights": [1, -0.5]}, "numbers from 0"),
        ({"weights": [1, "1"]}, "numbers from 0"),
        ({"weights": [1, True]}, "numbers from 0"),
        ({"weights": [1, float("nan")]}, "numbers from 0"),
        ({"weights": [1, 10**400]}, "numbers from 0"),
        ({"fusion_iou": 1.5}, "fusion_iou is 1.5, it must be a number from 0 to 1"),
        ({"fusion_iou": "0.5"}, "fusion_iou is '0.5'"),
        ({"fusion_iou": float("nan")}, "fusion_iou is nan"),
        ({"skip_box_threshold": float("inf")}, "skip_box_threshold is inf"),
        ({"skip_box_threshold": {}}, "skip_box_threshold is {}"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, changes, said):
    path = written(tmp_path, **changes)
    with pytest.raises(InputError, match=said) as refused:
        read_tuned_settings(path, NAMES)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "x.tuned.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"x\.tuned\.json is no (JSON|settings) file"):
        read_tuned_settings(path, NAMES)
    with pytest.raises(InputError, match=r"does not exist: a06_ensemble.py --tune writes it"):
        read_tuned_settings(tmp_path / "y.json", NAMES)


def test_a_model_is_known_by_the_name_of_its_file():
    paths = ["validation/a.expanded.csv", Path("validation/b.csv.gz"), "c"]
    assert model_names(paths) == ["a.expanded", "b", "c"]
    assert model_names([]) == []
    with pytest.raises(InputError, match=r"one/a.csv and two/a.csv.gz have the same name"):
        model_names(["one/a.csv", "b.csv", "two/a.csv.gz"])
