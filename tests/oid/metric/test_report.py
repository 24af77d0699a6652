"""Proves what a07 reports besides mAP: the table of classes, how a class is named, a class's curve and its picture."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from oid.metric.challenge import Metrics
from oid.metric.report import Results, beside, class_table, result_lines, write_curve

NAMES = {"/m/1": "Apple", "/m/2": "Banana", "/m/3": "Traffic light", "/m/4": "apple"}
METRICS = Metrics(0.5, np.array([0.75, np.nan, 0.25, 0.25]), np.array([8.0, 0.0, 3.0, 5.0]), {})
RESULTS = Results(NAMES, SimpleNamespace(), METRICS, SimpleNamespace(per_class=np.array([10, 20, 30, 0])), None, None)


def test_class_table_has_what_costs_most_first():
    """Equal costs: more boxes first. Costs and mAP add up to 1; a class without ground truth has neither."""
    rows = class_table(RESULTS).rows()
    assert [row[0] for row in rows] == ["/m/4", "/m/3", "/m/1", "/m/2"]
    assert rows[0] == ("/m/4", "apple", 0.25, 5.0, 0, pytest.approx(0.25))
    assert rows[-1] == ("/m/2", "Banana", None, 0.0, 20, None)
    assert sum(row[5] for row in rows[:3]) + np.nanmean(METRICS.average_precision) == pytest.approx(1)


def test_lines_have_as_many_classes_as_are_asked_for():
    lines = result_lines(RESULTS, 2)
    assert [line.split("  ")[-1] for line in lines[2:]] == ["apple (/m/4)", "Traffic light (/m/3)"]
    assert result_lines(RESULTS, 0) == []


@pytest.mark.parametrize(
    ("file", "expected"),
    [("a/X.metrics.json", "a/X.classes.csv"), ("m.json", "m.classes.csv"), ("other", "other.classes.csv")],
)
def test_files_beside(file: str, expected: str):
    assert beside(Path(file), ".classes.csv") == Path(expected)


PRECISION, RECALL = np.array([1.0, 0.5, 2 / 3]), np.array([0.25, 0.25, 0.5])


@pytest.mark.parametrize(
    ("label", "name", "word"),
    [("/m/3", "Traffic light", "Traffic_light.m_3"), ("a b/c", "a b/c", "a_b_c"), ("x", "$x$ Bär", "x_Bär.x")],
)
def test_curve_is_written_exactly(label: str, name: str, word: str, tmp_path):
    curve = np.array([0.9, 0.1 + 0.2, 1e-7]), PRECISION, RECALL
    written = write_curve(tmp_path / "X.metrics.json", label, name, curve, 5 / 12)
    assert written == [tmp_path / f"X.curve.{word}.csv", tmp_path / f"X.curve.{word}.png"]
    assert sorted(tmp_path.iterdir()) == written
    with open(written[0], encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["score", "precision", "recall"]
    np.testing.assert_array_equal(np.array(rows, float).T, curve)
