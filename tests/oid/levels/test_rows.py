"""Proves that box and image-label files become few numbers per row, in batches of any size, and their text stays."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.annotations import BOX_COLUMNS, read_boxes
from oid.files import InputError
from oid.levels import rows as annotation_rows
from oid.levels.rows import BoxText, no_image_labels, read_box_rows, read_image_label_rows
from tests.helpers.small_open_images import BIG, LEFT, RIGHT, V6_COLUMNS, box, write_rows

LABELS = pl.Enum(["apple", "fruit", "car"])


@pytest.fixture(params=[1, 2, 100])
def batch(request, monkeypatch):
    monkeypatch.setattr(annotation_rows, "BATCH", request.param)


def written(folder, rows, header=BOX_COLUMNS, **options):
    path = folder / "boxes.csv"
    write_rows(path, header, rows, **options)
    return path


def described(rows) -> list[tuple]:
    """(line, image, label, group_of) of each row."""
    kinds = rows.kinds.rows(named=True)
    return [
        (int(line), rows.images[int(image)], kinds[kind]["label"], kinds[kind]["group_of"])
        for line, image, kind in zip(rows.line, rows.image, rows.kind, strict=True)
    ]


def test_rows_of_images_that_are_not_together(tmp_path, batch):
    rows = [box("a", "apple"), box("a", "car", group="1"), box("b", "zebra"), box("b", "apple"), box("a", "fruit", BIG)]
    found = read_box_rows(written(tmp_path, rows), LABELS)
    assert found.images.to_list() == ["a", "b"]
    expected = [(2, "a", "apple", False), (3, "a", "car", True), (5, "b", "apple", False), (6, "a", "fruit", False)]
    assert described(found) == expected
    assert found.unknown.to_list() == ["zebra"]


def test_a_box_that_has_its_rectangle_for_itself_is_of_the_kind_of_its_label(tmp_path, batch):
    rows = [box("a", "apple"), box("b", "apple"), box("b", "car", RIGHT, "1"), box("c", "apple"), box("c", "fruit")]
    found = read_box_rows(written(tmp_path, rows), LABELS)
    assert found.kind[0] == found.kind[1] < 2 * 3
    assert found.kinds.row(int(found.kind[2])) == (5, "car", True, 5)
    assert found.kinds[6:].rows() == [(6, "apple", False, 9), (7, "fruit", False, 9)]  # c's: 6 kinds, and row 3
    assert found.rows_of_kinds().tolist() == [2, 0, 0, 0, 0, 1, 1, 1]


some_rows = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["apple", "fruit"]),
        st.sampled_from([LEFT, RIGHT, ("0.10", ".4", "1e-1", "0.5"), ("0", "0", "0", "0"), ("-0", "0", "-0.0", "0")]),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=40, deadline=None)
@given(some_rows, st.sampled_from([1, 3, 100]))
def test_rectangles_are_those_of_equal_numbers(tmp_path_factory, rows, size):
    path = written(tmp_path_factory.mktemp("case"), [box(*row) for row in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_rows, "BATCH", size)
        found = read_box_rows(path, LABELS)
    table = read_boxes(path)
    own = found.kinds["rectangle"].to_numpy()[found.kind]
    alone = found.kind < 2 * len(LABELS.categories)
    for row, first in enumerate(table["rectangle"] - 2):
        assert alone[row] == (table["rectangle"].to_list().count(first + 2) == 1)
        assert alone[row] or (own[row] == own[first] and found.kind[row] >= found.kind[first])


# === Text ============================================================================================================
@pytest.mark.parametrize("header", [BOX_COLUMNS, V6_COLUMNS])
@pytest.mark.parametrize(("newline", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_text_is_cut_from_whole_rows(tmp_path, batch, header, newline, encoding):
    more = ("0.5",) * (len(header) - len(BOX_COLUMNS))
    rows = [box(f"ü{number}", name, BIG) + more for number, name in enumerate(["apple", "zebra", "car", "apple"])]
    path = written(tmp_path, rows, header, newline=newline, encoding=encoding)
    found = read_box_rows(path, LABELS)
    assert found.ends is not None
    text = BoxText(path, found)
    lines, corners = [], []
    for _, frame in text.frames():
        lines += frame.select("before", "after").rows()
        corners += frame.select("ImageID", "corners").rows()
    known = [row for row in rows if row[2] != "zebra"]
    assert lines == [(",".join(row[:2]), ",".join(row[3:13])) for row in known]
    assert corners == [(row[0], ",".join(row[4:8])) for row in known]


@pytest.mark.parametrize("case", ["quotes", "order", "long"])
def test_text_that_cannot_be_cut_is_read_column_by_column(tmp_path, batch, case):
    order = (12, *range(12)) if case == "order" else range(13)
    names = {"quotes": "x,1", "order": "x", "long": "x" * 300}
    rows = [box(names[case], "apple"), box("b", "zebra"), box("c", "car", RIGHT)]
    path = written(tmp_path, [[row[place] for place in order] for row in rows], [BOX_COLUMNS[place] for place in order])
    found = read_box_rows(path, LABELS)
    assert found.ends is None
    text = BoxText(path, found)
    cells = pl.concat([frame for _, frame in text.frames()])
    columns = [name for name in BOX_COLUMNS if name != "LabelName"]
    assert cells.select(columns).rows() == [row[:2] + row[3:] for row in (rows[0], rows[2])]


def test_a_label_that_needs_quotes_is_written_with_them(tmp_path):
    path = written(tmp_path, [box("a", "apple")])
    assert read_box_rows(path, pl.Enum(["apple"])).ends is not None
    assert read_box_rows(path, pl.Enum(["apple", "fruit, any"])).ends is None


@pytest.mark.parametrize("quoted", [False, True])
def test_blank_lines_are_no_rows(tmp_path, batch, quoted):
    path = written(tmp_path, [box("a", "apple"), box("b", "car")])
    header, *lines = path.read_text().splitlines()
    lines = [f'"{line[0]}"{line[1:]}' if quoted else line for line in lines]
    path.write_text("\n".join([header, "", lines[0], "", "", lines[1], "", ""]))
    found = read_box_rows(path, LABELS)
    assert found.line.tolist() == [3, 6]
    frames = list(BoxText(path, found).frames())
    first = [frame[:, 0].to_list() for _, frame in frames if len(frame)]
    assert [name for names in first for name in names] == ["a", "b"]


def test_mistakes_are_named_in_any_batch(tmp_path, batch):
    rows = [box(str(number), "apple") for number in range(5)]
    path = written(tmp_path, [*rows, box("x", "apple", ("0.5", "0.4", "0", "1")), *rows])
    with pytest.raises(InputError, match="line 7: found"):
        read_box_rows(path, LABELS)
    with pytest.raises(InputError, match="holds no boxes"):
        read_box_rows(written(tmp_path, []), LABELS)


# === Image labels ====================================================================================================
def test_image_labels_of_an_image_come_together(tmp_path, batch):
    path = tmp_path / "labels.csv"
    text = [("b", "apple", "1"), ("a", "car", "0"), ("b", "zebra", "1"), ("c", "zebra", "0"), ("b", "car", "0")]
    write_rows(path, ("ImageID", "LabelName", "Confidence"), text)
    found = read_image_label_rows(path, LABELS)
    assert found.images.to_list() == ["b", "a", "c"]
    assert found.image.tolist() == [0, 0, 1]
    kinds = found.kinds.select("label", "positive").rows()
    assert [kinds[kind] for kind in found.kind] == [("apple", True), ("car", False), ("car", False)]
    assert found.unknown.to_list() == ["zebra", "zebra"]


def test_no_image_labels_are_a_header_only(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("ImageID,LabelName,Confidence\n")
    for found in (read_image_label_rows(path, LABELS), no_image_labels(LABELS)):
        assert (len(found.images), len(found.image), len(found.unknown)) == (0, 0, 0)
        assert found.kinds.rows() == no_image_labels(LABELS).kinds.rows()
        assert found.image.dtype == found.kind.dtype == np.uint32


def test_bad_image_labels_are_named_in_any_batch(tmp_path, batch):
    path = tmp_path / "labels.csv"
    write_rows(path, ("ImageID", "LabelName", "Confidence"), [("a", "car", "1"), ("a", "car", "yes")])
    with pytest.raises(InputError, match="line 3: found"):
        read_image_label_rows(path, LABELS)
