"""Proves what a07 says besides mAP: the table of classes, how a class is named, a class's curve and its picture."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from oid.files import InputError
from oid.metric.challenge import Metrics, area_below
from oid.metric.curve_picture import draw_curve, write_curve
from oid.metric.report import beside, class_table, find_class, print_class_table

NAMES = {"/m/1": "Apple", "/m/2": "Banana", "/m/3": "Traffic light", "/m/4": "apple"}
RESULT = Metrics(0.5, np.array([0.75, np.nan, 0.25, 0.25]), np.array([8.0, 0.0, 3.0, 5.0]), {})
PREDICTED = np.array([10, 20, 30, 0])


def test_class_table_has_what_costs_most_first():
    """Equal costs: more boxes first. Costs and mAP add up to 1; a class without ground truth has neither."""
    rows = class_table(RESULT, NAMES, PREDICTED)
    assert [row[0] for row in rows] == ["/m/4", "/m/3", "/m/1", "/m/2"]
    assert rows[0] == ("/m/4", "apple", 0.25, 5.0, 0, pytest.approx(0.25))
    assert rows[-1] == ("/m/2", "Banana", None, 0.0, 20, None)
    mean = np.nanmean(RESULT.average_precision)
    assert sum(row[5] for row in rows if row[5] is not None) + mean == pytest.approx(1)


def test_printed_class_table(capsys):
    rows = class_table(RESULT, NAMES, PREDICTED)
    print_class_table(rows, 2)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[2:]] == ["apple (/m/4)", "Traffic light (/m/3)"]
    print_class_table(rows, 0)
    print_class_table(rows[-1:], 5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("wanted", "index"), [("/m/3", 2), ("Banana", 1), ("TRAFFIC LIGHT", 2)])
def test_find_class(wanted: str, index: int):
    assert find_class(wanted, NAMES) == index


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("Bananna", "--curve 'Bananna' is no class: did you mean 'Banana'"),
        ("xyz", "--curve 'xyz' is no class: give a label or a name"),
        ("Apple", "is the name of /m/1 and /m/4: give one of these labels"),
    ],
)
def test_a_class_that_cannot_be_found(wanted: str, message: str):
    with pytest.raises(InputError, match=message):
        find_class(wanted, NAMES)


@pytest.mark.parametrize(
    ("file", "expected"),
    [("a/X.metrics.json", "a/X.classes.csv"), ("m.json", "m.classes.csv"), ("other", "other.classes.csv")],
)
def test_files_beside(file: str, expected: str):
    assert beside(Path(file), ".classes.csv") == Path(expected)


PRECISION, RECALL = np.array([1.0, 0.5, 2 / 3]), np.array([0.25, 0.25, 0.5])


def test_curve_is_written_exactly(tmp_path):
    scores = np.array([0.9, 0.1 + 0.2, 1e-7])
    curve = (scores, PRECISION, RECALL)
    write_curve(tmp_path / "X.metrics.json", "/m/3", "Traffic light", curve, area_below(PRECISION, RECALL))
    with open(tmp_path / "X.curve.Traffic_light.m_3.csv", encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["score", "precision", "recall"]
    np.testing.assert_array_equal(np.array(rows, float).T, curve)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".png"]


def test_labels_that_are_names_make_one_word(tmp_path):
    write_curve(tmp_path / "X.metrics.json", "a b/c", "a b/c", (PRECISION, PRECISION, RECALL), 0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"X.curve.a_b_c.csv", "X.curve.a_b_c.png"}


def test_the_picture_shows_the_envelope(tmp_path):
    """The thick line is where precision and recall put it; nothing is drawn above it, whatever the name's letters."""
    draw_curve(tmp_path / "c.png", "Bär: AP 0.4167", PRECISION, RECALL)
    picture = cv2.imread(str(tmp_path / "c.png"))
    assert picture.shape == (560, 640, 3)
    dark = (picture[..., 2].astype(int) < 100) & (picture[..., 0] > 140)  # the line's blue

    def rows_of(recall: float) -> np.ndarray:
        return 1 - (np.flatnonzero(dark[50:480, round(80 + 520 * recall)]) / 430)

    assert rows_of(0.1).mean() == pytest.approx(1.0, abs=0.01)
    assert rows_of(0.4).mean() == pytest.approx(2 / 3, abs=0.01)
    assert len(rows_of(0.6)) == 0


def test_a_class_without_detections_has_an_empty_picture(tmp_path):
    draw_curve(tmp_path / "c.png", "none", np.zeros(0), np.zeros(0))
    assert cv2.imread(str(tmp_path / "c.png")).shape == (560, 640, 3)
