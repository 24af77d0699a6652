"""Proves the readers of annotation files: with and without header, quoting, order, and errors that name the line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid.annotations import (
    read_boxes,
    read_class_descriptions,
    read_image_labels,
    scan_rows,
    write_class_descriptions,
)
from oid.columns import BOX_COLUMNS
from oid.files import InputError
from tests.helpers.project import shared


def written(folder, text: str | bytes):
    path = folder / "classes.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "/m/b,Bee\n/m/a,Ant\n",
        "LabelName,DisplayName\n/m/b,Bee\n/m/a,Ant",
        "label,name\r\n/m/b,Bee\r\n\r\n/m/a,Ant\r\n",
        "\ufeff/m/b,Bee\n/m/a,Ant\n",
        "\ufeffLabelName,DisplayName\n/m/b,Bee\n/m/a,Ant\n",
        "/m/b,Bee,1\n/m/a,Ant,2\n",
    ],
)
def test_with_and_without_header(tmp_path, text):
    classes = read_class_descriptions(written(tmp_path, text))
    assert list(classes.items()) == [("/m/b", "Bee"), ("/m/a", "Ant")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no class"),
        ("label,name\n", "holds no class"),
        ("/m/a,Ant\n,Bee\n", "line 2:"),
        ("/m/a\n", "line 1:"),
        ("/m/a,\n", "line 1:"),
        ("/m/a,Ant\n/m/b,Bee\n/m/a,Ape\n", "line 3: label /m/a is already in line 1"),
        ("/m/a b,Ant\n", "white space"),
        ('/m/a,"Ant\n', "not CSV"),
        (b"/m/a,Caf\xe9\n", "not UTF-8"),
        (None, "is a folder"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = tmp_path if text is None else written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_class_descriptions(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


printable = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=8)


@given(classes=st.dictionaries(printable.map("/m/{}".format), printable, min_size=1, max_size=6))
def test_written_classes_come_back(classes, tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "classes.csv"
    write_class_descriptions(path, classes)
    assert list(read_class_descriptions(path).items()) == list(classes.items())


HEADER = ",".join(BOX_COLUMNS)


def test_boxes_are_text_in_file_order(tmp_path):
    rows = ["a,x,l,1,0.5,1,0,1,0,0,0,0,0", "b,x,l,1,0.5,1,0,1,0,0,1,0,0", "", "a,x,m,1,.500,1.0,0,1e0,0,0,-1,0,0"]
    path = written(tmp_path, "\n".join([HEADER, *rows, ""]))
    assert read_boxes(path).rows() == [("a", "l", "0"), ("b", "l", "1"), ("a", "m", "-1")]
    assert read_boxes(path, ["XMin"]).to_series().to_list() == ["0.5", "0.5", ".500"]


@pytest.mark.parametrize("rows", [[("007", "x", "1"), ("1e5", "y", "0"), ("007", "z", "0")], []])
def test_image_labels_are_text_in_file_order(tmp_path, rows):
    lines = ["LabelName,ImageID,Confidence", *(f"{label},{image},{sign}" for image, label, sign in rows)]
    assert read_image_labels(written(tmp_path, "\n".join([*lines, ""]))).rows() == rows


def test_columns_are_text_in_the_asked_order(tmp_path):
    path = written(tmp_path, '\ufeffA,B,C\r\n1.0,"x,y",007\r\n\r\n,0x1, z\r\n')
    assert scan_rows(path, ("C", "A", "B")).collect().rows() == [(2, "007", "1.0", "x,y"), (4, " z", None, "0x1")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("A,B\n", "line 1: column C, D is missing"),
        (b"A,\xe9\n", "line 1: the header is not UTF-8"),
    ],
)
def test_bad_headers_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        scan_rows(written(tmp_path, text), ("A", "C", "D"))


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (read_boxes, "v6-train-annotations-bbox.head.csv"),
        (read_boxes, "v4-freeform-annotations-bbox.head.csv"),
        (read_image_labels, "train-human-imagelabels-boxable.head.csv"),
        (read_image_labels, "v4-human-imagelabels.head.csv"),
    ],
)
def test_the_first_rows_of_the_official_files(read, name):
    path = shared("data", "oid_rows", "format_snippets", name)
    assert len(read(path)) == len(path.read_text().splitlines()) - 1
