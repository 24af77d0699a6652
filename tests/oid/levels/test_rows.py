"""Proves that box and image-label files become an image and a pattern for each row, and that their text stays."""

import csv

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.columns import BOX_COLUMNS
from oid.levels import rows as annotation_rows
from oid.levels.rows import read_box_rows, read_image_label_rows, read_text
from tests.helpers.small_open_images import BIG, LEFT, RIGHT, V6_COLUMNS, box, write_rows

LABELS = pl.Enum(["apple", "fruit", "car"])
IMAGE_LABEL_HEADER = ("ImageID", "LabelName", "Confidence")


def written(folder, rows, header=BOX_COLUMNS, **options):
    path = folder / "boxes.csv"
    write_rows(path, header, rows, **options)
    return path


def test_each_row_has_its_image_label_and_flag(tmp_path):
    rows = [box("a", "apple"), box("a", "car", group="1"), box("b", "zebra"), box("b", "apple"), box("a", "fruit", BIG)]
    found = read_box_rows(written(tmp_path, rows), LABELS)
    assert found.image.to_list() == ["a", "a", "b", "b", "a"]
    labels, groups = (found.patterns[name].gather(found.pattern).to_list() for name in ("label", "group_of"))
    assert labels == ["apple", "car", None, "apple", "fruit"]
    assert groups == [False, True, None, False, False]
    assert found.unknown_labels.to_list() == ["zebra"]


def test_a_box_that_has_its_rectangle_for_itself_has_the_pattern_of_its_label(tmp_path):
    rows = [box("a", "apple"), box("b", "apple"), box("b", "car", RIGHT, "1"), box("c", "apple"), box("c", "fruit")]
    found = read_box_rows(written(tmp_path, rows), LABELS)
    assert found.pattern[0] == found.pattern[1] < 2 * 3
    assert found.patterns.row(found.pattern[2]) == (5, "car", True, 5)
    assert found.patterns[6:].rows() == [(6, "apple", False, 6), (7, "fruit", False, 6)]
    assert sorted(found.counts.rows()) == [(0, 2), (5, 1), (6, 1), (7, 1)]


some_rows = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["apple", "fruit"]),
        st.sampled_from([LEFT, RIGHT, ("0.10", ".4", "1e-1", "0.5"), ("0", "0", "0", "0"), ("-0", "0", "-0.0", "0")]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=20, deadline=None)
@given(some_rows)
def test_rectangles_are_equal_if_image_and_numbers_are_equal(tmp_path_factory, rows):
    found = read_box_rows(written(tmp_path_factory.mktemp("case"), [box(*row) for row in rows]), LABELS)
    places = [(row[0], *map(float, row[2])) for row in rows]
    rectangles = found.patterns["rectangle"].gather(found.pattern).to_list()
    for pattern, place, rectangle in zip(found.pattern, places, rectangles, strict=True):
        assert (pattern < 2 * len(LABELS.categories)) == (places.count(place) == 1)
        if places.count(place) > 1:
            assert [r == rectangle for r in rectangles] == [p == place for p in places]


# === Text ============================================================================================================
@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("header", [BOX_COLUMNS, V6_COLUMNS, BOX_COLUMNS[::-1]])
@pytest.mark.parametrize(("newline", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
@pytest.mark.parametrize("image", ["ü", 'ü,"'])
def test_text_comes_back_in_batches_with_the_pattern_of_each_row(
    tmp_path, monkeypatch, batch, header, newline, encoding, image
):
    monkeypatch.setattr(annotation_rows, "BLOCK", batch)
    rows = [box(f"{image}{number}", name, BIG) for number, name in enumerate(["apple", "zebra", "car", "apple"])]
    cells = [dict(zip(BOX_COLUMNS, row, strict=True)) for row in rows]
    table = [[row.get(column, "0.5") for column in header] for row in cells]
    path = written(tmp_path, table, header, newline=newline, encoding=encoding)
    found = read_box_rows(path, LABELS)
    text = pl.concat(list(read_text(path, found)))
    assert text["pattern"].to_list() == [found.pattern[0], len(found.patterns), found.pattern[2], found.pattern[3]]
    lines = [",".join(line) for line in text.drop("pattern").rows()]
    assert [tuple(row) for row in csv.reader(lines)] == [row[:2] + row[3:] for row in rows]


def test_blank_lines_are_not_rows(tmp_path):
    path = written(tmp_path, [box("a", "apple"), box("b", "car")])
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, "", lines[0], "", "", lines[1], "", ""]))
    found = read_box_rows(path, LABELS)
    text = pl.concat(list(read_text(path, found)))
    assert text["ImageID"].to_list() == found.image.to_list() == ["a", "b"]


# === Image labels ====================================================================================================
def test_each_image_label_has_its_image_label_and_sign(tmp_path):
    path = tmp_path / "labels.csv"
    write_rows(path, IMAGE_LABEL_HEADER, [("b", "apple", "1"), ("a", "car", "0"), ("b", "zebra", "1")])
    found = read_image_label_rows(path, LABELS)
    assert found.image.to_list() == ["b", "a", "b"]
    assert found.patterns["label"].gather(found.pattern).to_list() == ["apple", "car", None]
    assert found.patterns["positive"].gather(found.pattern).to_list() == [True, False, None]
    assert found.unknown_labels.to_list() == ["zebra"]


def test_a_missing_file_of_image_labels_is_like_one_without_rows(tmp_path):
    path = tmp_path / "labels.csv"
    write_rows(path, IMAGE_LABEL_HEADER, [])
    read, made = (read_image_label_rows(each, LABELS) for each in (path, tmp_path / "none.csv"))
    assert read.patterns.equals(made.patterns)
    for name in ("image", "pattern", "unknown_labels"):
        one, other = getattr(read, name), getattr(made, name)
        assert (len(one), one.dtype) == (len(other), other.dtype) == (0, one.dtype)
