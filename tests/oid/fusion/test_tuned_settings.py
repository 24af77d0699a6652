"""The file of tuned settings: what is written is read, and what does not fit is refused in one sentence."""

import json
from pathlib import Path

import pytest

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES
from oid.fusion.tuned_settings import FusionSettings, model_names, read_settings, write_settings

NAMES = ["a.expanded", "b.expanded"]
SETTINGS = FusionSettings((1.0, 0.25), 0.61, 0.0123, "max")


def written(folder: Path, change: dict[str, object]) -> Path:
    """A settings file with another value at one place, such as `settings.weights`."""
    path = folder / "x.tuned.json"
    write_settings(path, NAMES, SETTINGS, "gain", {"images": 12})
    content = json.loads(path.read_text())
    for place, value in change.items():
        *above, key = place.split(".")
        (content[above[0]] if above else content)[key] = value
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("conf_type", CONF_TYPES)
def test_what_is_written_is_read(tmp_path, conf_type):
    settings = FusionSettings((0.0, 1.0, 1 / 3), 1 / 7, -0.5, conf_type)
    write_settings(tmp_path / "x.tuned.json", ["a", "b", "c"], settings, "gain", {"gains": [0.1, None]})
    assert read_settings(tmp_path / "x.tuned.json", ["a", "b", "c"]) == settings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "weights"}, r"'weights' - at `\$.format`"),
        ({"version": 2}, r"2 - at `\$.version`"),
        ({"method": "nms"}, r"'nms' - at `\$.method`"),
        ({"models": "ab"}, r"models"),
        ({"models": NAMES[:1]}, "models are"),
        ({"models": NAMES[::-1]}, r"\['b.expanded', 'a.expanded'\], they must be \['a.expanded', 'b.expanded'\]"),
        ({"settings": None}, r"\$.settings"),
        ({"settings.conf_type": "mean"}, r"'mean' - at `\$.settings.conf_type`"),
        ({"settings.weights": [1.0]}, "they must be 2 numbers, not all 0"),
        ({"settings.weights": [0, 0]}, "not all 0"),
        ({"settings.weights": [1, -0.5]}, r"\$.settings.weights\[1\]"),
        ({"settings.weights": [1, True]}, "bool"),
        ({"settings.weights": [1, float("nan")]}, "malformed"),
        ({"settings.iou_threshold": 1.5}, r"<= 1.0 - at `\$.settings.iou_threshold`"),
        ({"settings.iou_threshold": "0.5"}, r"`str` - at `\$.settings.iou_threshold`"),
        ({"settings.skip_box_threshold": 10**400}, r"range|float"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path, change, said):
    path = written(tmp_path, change)
    with pytest.raises(InputError, match=said) as refused:
        read_settings(path, NAMES)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "\xff", "[" * 100_000])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.tuned.json").write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"x\.tuned\.json is damaged"):
        read_settings(tmp_path / "x.tuned.json", NAMES)


def test_a_model_is_known_by_the_name_of_its_file():
    paths = ["validation/a.expanded.csv", Path("validation/b.csv.gz"), "c"]
    assert model_names(paths) == ["a.expanded", "b", "c"]
    with pytest.raises(InputError, match=r"one/a.csv and two/a.csv.gz have the same name"):
        model_names(["one/a.csv", "b.csv", "two/a.csv.gz"])
