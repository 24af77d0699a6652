"""The file of tuned settings: what is written is read, and what does not fit is refused in one sentence."""

import json
from pathlib import Path

import pytest

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES
from oid.fusion.tuned_settings import FusionSettings, model_names, read_settings, write_settings

NAMES = ["a.expanded", "b.expanded"]
SETTINGS = FusionSettings((1.0, 0.25), 0.61, 0.0123, "max")


def written(folder: Path, **changes: object) -> Path:
    """A settings file with other values in some keys; None removes the key."""
    path = folder / "x.tuned.json"
    write_settings(path, NAMES, SETTINGS, "gain", {"images": 12})
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


@pytest.mark.parametrize("conf_type", CONF_TYPES)
def test_what_is_written_is_read(tmp_path, conf_type):
    settings = FusionSettings((0.0, 1.0, 1 / 3), 1 / 7, -0.5, conf_type)
    write_settings(tmp_path / "x.tuned.json", ["a", "b", "c"], settings, "gain", {"gains": [0.1, None]})
    assert read_settings(tmp_path / "x.tuned.json", ["a", "b", "c"]) == settings


def test_the_file_is_for_people_too(tmp_path):
    content = json.loads(written(tmp_path).read_text())
    assert (content["models"], content["weights"]) == (NAMES, [1.0, 0.25])
    assert (content["format"], content["version"], content["method"]) == ("fusion settings", 1, "wbf")
    assert (content["verdict"], content["measured"]) == ("gain", {"images": 12})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_settings(tmp_path / "y.json", NAMES, SETTINGS, "gain", {"gain": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["x.tuned.json"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "weights"}, "is not a settings file"),
        ({"version": 2}, "version is 2, it must be 1"),
        ({"weights": None}, "weights is None"),
        ({"conf_type": None}, "conf_type is None"),
        ({"conf_type": "mean"}, "conf_type is 'mean', it must be one of avg, max"),
        ({"conf_type": ["avg"]}, r"conf_type is \['avg'\]"),
        ({"method": "nms"}, "method is 'nms', it must be wbf"),
        ({"models": "ab"}, r"models is 'ab', it must be \['a.expanded', 'b.expanded'\]"),
        ({"models": NAMES[:1]}, "models is"),
        ({"models": [*NAMES, "c"]}, "models is"),
        ({"models": NAMES[::-1]}, r"\['b.expanded', 'a.expanded'\], it must be \['a.expanded', 'b.expanded'\]"),
        ({"weights": [1.0]}, r"weights is \[1.0\], it must be 2 numbers from 0 to 1e.06, not all 0"),
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
        read_settings(path, NAMES)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.tuned.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"x\.tuned\.json is not a (JSON|settings) file"):
        read_settings(tmp_path / "x.tuned.json", NAMES)


def test_a_model_is_known_by_the_name_of_its_file():
    paths = ["validation/a.expanded.csv", Path("validation/b.csv.gz"), "c"]
    assert model_names(paths) == ["a.expanded", "b", "c"]
    with pytest.raises(InputError, match=r"one/a.csv and two/a.csv.gz have the same name"):
        model_names(["one/a.csv", "b.csv", "two/a.csv.gz"])
