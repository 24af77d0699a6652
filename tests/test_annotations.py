"""Proves the readers of annotation files: with and without header, quoting, order, and errors that name the line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid.annotations import read_class_descriptions, write_class_descriptions
from oid.files import InputError


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


def test_quoting_and_text_ids(tmp_path):
    classes = read_class_descriptions(written(tmp_path, '007,"Hammer, claw"\n1e5,"the ""big"" one"\n'))
    assert classes == {"007": "Hammer, claw", "1e5": 'the "big" one'}


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
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(InputError) as error:
        read_class_descriptions(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_class_descriptions(tmp_path / "none.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_class_descriptions(tmp_path)


printable = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1, max_size=8)


@given(classes=st.dictionaries(printable.map("/m/{}".format), printable, min_size=1, max_size=6))
def test_written_classes_come_back(classes, tmp_path_factory):
    path = tmp_path_factory.mktemp("classes") / "classes.csv"
    write_class_descriptions(path, classes)
    assert list(read_class_descriptions(path).items()) == list(classes.items())
