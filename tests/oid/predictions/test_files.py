"""Proves that prediction files are read exactly or not at all, and written so that reading gives the same back."""

import csv
import functools
import gzip
import io
import itertools
import math
import re
import struct
import tempfile
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.files import InputError
from oid.predictions import parse as module
from oid.predictions.files import (
    PredictionFile,
    Predictions,
    PredictionWriter,
    prediction_string,
    read_predictions,
    write_predictions,
)
from tests.helpers.prediction_cases import (
    BOX,
    KAGGLE,
    ROWS,
    as_tuples,
    assert_well_formed,
    kaggle_in_python,
    predictions_of,
    rows_in_python,
    some_predictions,
    write,
)
from tests.helpers.project import shared

ONE_BOX = ([0], [0.5], [[0, 0, 1, 1]])

# === Writing ==========================================================================================================


@settings(max_examples=100, deadline=None)
@given(some_predictions(), st.integers(1, 3))
def test_files_are_written_as_python_formats_them_and_read_back_exactly(tmp_path_factory, predictions, size):
    path = tmp_path_factory.mktemp("there_and_back") / "predictions.csv"
    write_predictions(path, predictions)
    images = [
        (image_id, [(label, f"{score:.9g}", *(f"{c:.6f}" for c in box)) for label, score, *box in boxes])
        for image_id, boxes in as_tuples(predictions)
    ]
    expected = [
        ("ImageId", "PredictionString"),
        *((i, " ".join(t for box in boxes for t in box)) for i, boxes in images),
    ]
    text, offsets = path.read_bytes(), predictions.offsets()
    assert list(map(tuple, csv.reader(io.StringIO(text.decode(), newline="")))) == expected

    found = [predictions.labels[label] for label in predictions.label_index], predictions.scores, predictions.boxes
    for row, part in zip(expected[1:], itertools.starmap(slice, itertools.pairwise(offsets)), strict=True):
        assert prediction_string(*(values[part] for values in found)) == row[1]

    again = read_predictions(path)
    assert_well_formed(again)
    assert as_tuples(again) == [
        (image_id, [(label, *map(float, numbers)) for label, *numbers in boxes]) for image_id, boxes in images
    ]
    packed = path.with_name("packed.csv.gz")
    with PredictionWriter(packed) as writer:
        for block in PredictionFile(path).blocks(size):
            writer.write(block)
    assert packed.read_bytes()[3:8] == bytes(5)  # neither name nor time: the same boxes give the same file
    assert gzip.decompress(packed.read_bytes()).replace(b'"', b"") == text.replace(b'"', b"")
    assert as_tuples(read_predictions(packed)) == as_tuples(again)


def test_the_text_is_that_of_the_contract(tmp_path):
    path = tmp_path / "deep" / "out.csv"
    boxes = [[0, 0.5, 1 / 3, 1], [0.1234567, 0.1, 0.2, 0.3]]
    none = ([], [], [])
    write_predictions(
        path, predictions_of(["b", "a", "c"], ["/m/0", "x"], [none, ([0, 1], [1 / 3, 1e-12], boxes), none])
    )
    text = "/m/0 0.333333333 0.000000 0.500000 0.333333 1.000000 x 1e-12 0.123457 0.100000 0.200000 0.300000"
    assert path.read_text() == f"ImageId,PredictionString\nb,\na,{text}\nc,\n"
    assert prediction_string(["/m/0", "x"], [1 / 3, 1e-12], boxes) == text
    assert prediction_string([], [], np.zeros((0, 4))) == ""


@pytest.mark.parametrize(
    ("ids", "label", "index", "score", "coordinate", "match"),
    [
        (["a"], "a b", 0, 0.5, 0, "white space"),
        (["a"], "", 0, 0.5, 0, "empty"),
        (["a"], "x", 0, math.nan, 0, "finite"),
        (["a"], "x", 0, 1, math.inf, "finite"),
        (["a"], "x", 1, 1, 0, "label_index"),
        (["a", "a"], "x", 0, 1, 0, "repeated"),
        ([" "], "x", 0, 1, 0, "empty"),
        (["a\nb"], "x", 0, 1, 0, "line break"),
    ],
)
def test_nothing_is_written_that_cannot_be_read(tmp_path, ids, label, index, score, coordinate, match):
    predictions = predictions_of(ids, [label], [([index], [score], [[coordinate, 0, 1, 1]])] * len(ids))
    with pytest.raises(ValueError, match=match):
        write_predictions(tmp_path / "out.csv", predictions)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_remembers_ids_and_its_file_appears_at_the_end(tmp_path):
    block = predictions_of(["a"], ["x"], [ONE_BOX])
    with PredictionWriter(tmp_path / "twice.csv") as writer:
        writer.write(block)
        with pytest.raises(ValueError, match="repeated"):
            writer.write(block)
        assert not (tmp_path / "twice.csv").exists()
    assert as_tuples(read_predictions(tmp_path / "twice.csv")) == as_tuples(block)


def test_boxes_must_be_together_by_image(tmp_path):
    shuffled = Predictions(["a", "b"], ["x"], np.array([1, 0]), np.zeros(2, int), np.ones(2), np.ones((2, 4)))
    with pytest.raises(ValueError, match="image_index"):
        write_predictions(tmp_path / "out.csv", shuffled)


# === Reading ==========================================================================================================


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text('a0.1 ,\n\r"-e\t\u00a0', max_size=12) | st.sampled_from([BOX, "i", "", "nan"]), max_size=6))
def test_the_reader_and_a_few_lines_of_python_agree_on_anything(tmp_path_factory, parts):
    """Either both give the same boxes, or both find a mistake."""
    folder = tmp_path_factory.mktemp("anything")
    for header, read_in_python in ((KAGGLE, kaggle_in_python), (ROWS, rows_in_python)):
        path = write(folder, header + ",".join(parts))
        try:
            expected = read_in_python(path.read_bytes().decode())
        except (ValueError, csv.Error):
            with pytest.raises(InputError):
                read_predictions(path)
        else:
            assert as_tuples(read_predictions(path)) == expected


number_texts = (
    st.from_regex(r"\A[+-]?([0-9]{1,20}\.[0-9]{0,25}|\.[0-9]{1,25}|[0-9]{1,20})([eE][+-]?[0-9]{1,2})?\Z")
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(-1, 2).map(lambda number: f"{number:.17g}")
    | st.builds(lambda half, shift: str(2 * half + 1 << shift), st.integers(2**52, 2**53 - 1), st.integers(0, 9))
    | st.sampled_from(["0", "-0", "-0.0", "+1.", ".5", "00000000000000000000.5", "9007199254740993", "8.5e-5", "1e23"])
)


def bits(values):
    return [struct.pack("d", value) for value in values]


@settings(max_examples=100, deadline=None)
@given(st.lists(number_texts, min_size=1, max_size=40))
def test_a_number_is_pythons_to_the_last_bit(tmp_path_factory, texts):
    """In both forms; a blank line makes the csv module split the rows."""
    folder = tmp_path_factory.mktemp("numbers")
    kaggle = KAGGLE + "a," + " ".join(f"x {text} 0 0 1 1" for text in texts) + "\n"
    rows = ROWS + "".join(f"a,x,{text},0,1,0,1\n" for text in texts)
    for text in (kaggle, rows, kaggle + "\n", rows + "\n"):
        assert bits(read_predictions(write(folder, text)).scores) == bits(map(float, texts))


UNUSUAL = ["-", ".", "e5", "1e", "nan", "-inf", "0x1", "1_000", "--1", "1e999", "٣", "1,5"]


@settings(max_examples=150, deadline=None)
@given(st.text("0123456789+-.eE_xnaif٣\u00a0", min_size=1, max_size=8) | st.sampled_from(UNUSUAL))
def test_only_finite_decimal_numbers_are_accepted(tmp_path_factory, number):
    is_number = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", number)
    folder = tmp_path_factory.mktemp("numbers")
    for text in (f'{KAGGLE}a,"x {number} 0 0 1 1"\n', f'{ROWS}a,x,"{number}",0,1,0,1\n'):
        if is_number and math.isfinite(float(number)):
            assert bits(read_predictions(write(folder, text)).scores) == bits([float(number)])
        else:
            with pytest.raises(InputError, match="line 2"):
                read_predictions(write(folder, text))


@pytest.mark.parametrize(
    "text",
    [
        f"{KAGGLE}a,{BOX}\nb,\n",
        f"{KAGGLE}a,{BOX}\nb,",
        f"{KAGGLE}a,{BOX}\nb,\n\n\n",
        f"{KAGGLE}a,{BOX} \nb,  \n",
        f"\n{KAGGLE}\na,{BOX}\n\nb,\n",
        f"{KAGGLE}a,  {BOX.replace(' ', '  ')}\nb,\n",
        f"{KAGGLE}a,{BOX.replace(' ', chr(9))}\nb,\n",
        f'{KAGGLE}"a","{BOX}"\n"b",""\n',
        f'{KAGGLE}"a",{BOX}\nb,\n',
        f"{KAGGLE}a,{BOX}\nb,\n".replace("\n", "\r\n"),
        "\ufeff" + f"{KAGGLE}a,{BOX}\nb,\n",
        "\ufeff" + f'"ImageId","PredictionString"\r\na,{BOX}\r\nb,\r\n',
        f"PredictionString,ImageId\n{BOX},a\n,b\n",
        gzip.compress(f"{KAGGLE}a,{BOX}\nb,\n".encode(), mtime=0),
    ],
)
def test_spellings_of_the_same_predictions(tmp_path, text):
    predictions = read_predictions(write(tmp_path, text))
    assert_well_formed(predictions)
    assert as_tuples(predictions) == [("a", [("/m/0", 0.5, 0.1, 0.2, 0.3, 0.4)]), ("b", [])]


def kaggle_and_scattered_rows(folder):
    """A Kaggle file and one with a row per box, its rows in random order, of the same predictions."""
    rng = np.random.default_rng(3)
    labels = ["x", "/m/0k4j", "é" * 30]
    boxes = [(f"i{i}", labels[rng.integers(3)], round(rng.random(), 3)) for i in range(40) for _ in range(i % 5)]
    strings = {f"i{image}": [] for image in range(40)}
    for image_id, label, score in boxes:
        strings[image_id].append(f"{label} {score} 0 0.1 1 0.9")
    kaggle = KAGGLE + "".join(f"{image_id},{' '.join(parts)}\n" for image_id, parts in strings.items())
    rows = ROWS + "".join("{},{},{},0,1,0.1,0.9\n".format(*boxes[i]) for i in rng.permutation(len(boxes)))
    return write(folder, kaggle, "kaggle.csv"), write(folder, rows, "rows.csv")


def test_rows_may_be_scattered(tmp_path):
    """Those of an image are brought together in their order."""
    kaggle, rows = kaggle_and_scattered_rows(tmp_path)
    text = rows.read_text(encoding="utf-8")
    found = read_predictions(rows)
    assert_well_formed(found)
    assert as_tuples(found) == rows_in_python(text)
    assert found.labels == list(dict.fromkeys(line.split(",")[1] for line in text.splitlines()[1:]))
    boxes_of = {image_id: sorted(boxes) for image_id, boxes in as_tuples(read_predictions(kaggle)) if boxes}
    assert {image_id: sorted(boxes) for image_id, boxes in as_tuples(found)} == boxes_of


def test_images_are_read_in_blocks_of_any_size_and_in_any_order(tmp_path, monkeypatch):
    for path in kaggle_and_scattered_rows(tmp_path):
        whole = as_tuples(read_predictions(path))
        for size in (7, 100, 1000):  # bytes
            monkeypatch.setattr(module, "_BYTES_PER_BLOCK", size)
            file = PredictionFile(path)
            assert file.num_images == len(file.image_ids) == len(whole)
            for images in (1, 7, 1000):
                blocks = list(file.blocks(images))
                assert all(block.labels is file.labels for block in blocks)
                assert [pair for block in blocks for pair in as_tuples(block)] == whole
            for positions in ([5, 3, 30, 30, 3], [], list(range(len(whole)))[::-1]):
                part = file.read(np.array(positions, dtype=np.int64))
                assert_well_formed(part)
                assert as_tuples(part) == [whole[position] for position in positions]


def test_a_line_of_many_blocks_is_read_in_linear_time(tmp_path, monkeypatch):
    """Joining the blocks one by one would copy 30 GB."""
    monkeypatch.setattr(module, "_BYTES_PER_BLOCK", 16)
    path, start = write(tmp_path, f"{KAGGLE}a,{' '.join([BOX] * 40_000)}\nb,{BOX}\n"), time.perf_counter()
    assert len(read_predictions(path).scores) == 40_001
    assert time.perf_counter() - start < 3


# === Mistakes =========================================================================================================


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["is empty", "ImageId,PredictionString"]),
        ("\n \n", ["is empty"]),
        ("Id,PredictionString\na,\n", ["line 1", "unknown column 'Id'"]),
        ("ImageID,PredictionString\na,\n", ["line 1", "unknown column 'ImageID'", "ImageId,PredictionString"]),
        ("ImageId,PredictionString,Extra\na,,\n", ["line 1", "unknown column 'Extra'"]),
        ("ImageId,ImageId,PredictionString\na,a,\n", ["line 1", "ImageId,ImageId,PredictionString"]),
        ("\nImageID,LabelName,Score,XMin,XMax,YMin\n", ["line 2", "ImageID,LabelName,Score,XMin,XMax,YMin,YMax"]),
        (f"a,{BOX}\n", ["line 1", "unknown column 'a'"]),
        (f"{KAGGLE}a\n", ["line 2", "1 fields", "2 columns"]),
        (f"{KAGGLE}a,\nb,{BOX},c\n", ["line 3", "3 fields"]),
        (f"{KAGGLE}a,\n,{BOX}\n", ["line 3", "image id is empty"]),
        (f"{KAGGLE}a,\n  ,{BOX}\n", ["line 3", "image id is empty"]),
        (f"{KAGGLE}a,\n\x1c,{BOX}\n", ["line 3", "image id is empty"]),
        (f'{KAGGLE}a,\n"a\rb",{BOX}\n', ["line 3", "image id has a line break"]),
        (f"{KAGGLE}a,\nb,\na,\n", ["line 4", "'a'", "second row"]),
        (f"{KAGGLE}a,{BOX} /m/1 0.5\n", ["line 2", "8 tokens", "'a'", "'0.5'", "multiple of 6"]),
        (f"{KAGGLE}a,\n\nb,{BOX} /m/1 high 0 0 1 1\n", ["line 4", "token 8", "score 'high'", "not a number"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 0.2 0.3 1_0\n", ["line 2", "token 6", "YMax '1_0'", "not a number"]),
        (f"{KAGGLE}a,/m/0 nan 0.1 0.2 0.3 0.4\n", ["line 2", "token 2", "score 'nan'", "not finite"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 0.2 0.3 1e999\n", ["line 2", "token 6", "YMax '1e999'", "not finite"]),
        (f"{KAGGLE}a,{BOX} /m/0 0.5 0.9 0.2 0.3 0.4\n", ["line 2", "tokens 7 to 12", "XMin 0.9", "XMax 0.3", "swap"]),
        (f"{KAGGLE}\na,\nb,/m/0 0.5 0.1 0.5 0.3 0.4\n", ["line 4", "tokens 1 to 6", "YMin 0.5", "YMax 0.4"]),
        (f'{KAGGLE}"a\nb",\nc,/m/0\n', ["line 2", "quotation mark", "in its line"]),
        (f'{KAGGLE}a,"{BOX}\nb,\n', ["line 2", "quotation mark"]),
        (f"{KAGGLE}a,{BOX}\nb".encode() + b"\xff,\n", ["line 3", "not UTF-8"]),
        (f"{KAGGLE}a,{BOX}\n".encode("utf-16"), ["UTF-16"]),
        (b"PK\x03\x04 and so on", ["zip archive"]),
        (gzip.compress(f"{KAGGLE}a,{BOX}\n".encode(), mtime=0)[:-12], ["damaged gzip", "copy it again"]),
        (f"{ROWS}a,x,0.5,0,1,0\n", ["line 2", "6 fields", "7 columns"]),
        (f"{ROWS}a,x,0.5,0,1,0,\n", ["line 2", "YMax ''", "not a number"]),
        (f"{ROWS}a,x,0.5,0,1,0,1\na,x y,0.5,0,1,0,1\n", ["line 3", "'x y'", "white space"]),
        (f"{ROWS}a,,0.5,0,1,0,1\n", ["line 2", "label ''", "empty"]),
        (f"{ROWS},x,0.5,0,1,0,1\n", ["line 2", "image id is empty"]),
        (f"{ROWS}a,x,0.5,0,1,0,1\na,x,0.5,0.6,0.5,0,1\n", ["line 3: XMin 0.6", "XMax 0.5", "swap"]),
    ],
)
@pytest.mark.parametrize("bytes_per_block", [48, 1 << 22])
def test_a_mistake_is_named_in_one_sentence(tmp_path, monkeypatch, text, fragments, bytes_per_block):
    monkeypatch.setattr(module, "_BYTES_PER_BLOCK", bytes_per_block)
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        PredictionFile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist: .*ImageId,PredictionString"):
        read_predictions(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_predictions(tmp_path)


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    path = write(tmp_path, f"{KAGGLE}a,{BOX}\n")
    monkeypatch.setattr(tempfile, "tempdir", "/some/folder")
    monkeypatch.setattr(tempfile, "TemporaryFile", functools.partial(open, "/dev/full", "w+b"))
    with pytest.raises(InputError, match=r"no room for its boxes in /some/folder \(No space left.*TMPDIR"):
        PredictionFile(path)


def test_swapped_corners_can_be_allowed_but_not_another_order(tmp_path, monkeypatch):
    """The order x1 x2 y1 y2 is recognised by all boxes of the file, not of a block; equal corners are fine."""
    monkeypatch.setattr(module, "_BYTES_PER_BLOCK", 16)
    one_swapped = write(tmp_path, f"{KAGGLE}a,x 0.5 0.9 0.2 0.3 0.4\nb,{BOX} x 0.5 0.2 0.1 0.6 0.4\n", "one.csv")
    with pytest.raises(InputError, match=r"line 2, tokens 1 to 6: XMin 0.9 .* swap them"):
        read_predictions(one_swapped)
    assert read_predictions(one_swapped, allow_swapped_corners=True).boxes[0].tolist() == [0.9, 0.2, 0.3, 0.4]
    other_order = write(tmp_path, f"{KAGGLE}b,{BOX}\na,x 0.5 0.7 0.9 0.3 0.4 x 0.5 0.1 0.2 0.3 0.4\n", "order.csv")
    for allow in (False, True):
        with pytest.raises(InputError, match=r"line 3, tokens 1 to 6: XMin 0.7 .* x1 x2 y1 y2"):
            read_predictions(other_order, allow_swapped_corners=allow)
    equal = read_predictions(write(tmp_path, f"{KAGGLE}a,x 0.5 0.3 0.2 0.3 0.2\n"))
    assert equal.boxes.tolist() == [[0.3, 0.2, 0.3, 0.2]]


def test_the_real_submission_is_read_and_the_malformed_one_is_explained():
    path = shared("data", "submissions", "real_670_images.csv")
    predictions = read_predictions(path)
    assert (len(predictions.image_ids), len(predictions.boxes), len(predictions.labels)) == (670, 38934, 57)
    assert as_tuples(predictions) == kaggle_in_python(path.read_bytes().decode())
    with pytest.raises(InputError, match=r"line 3, tokens 13 to 18: XMin 0.9\d* is greater .* order x1 x2 y1 y2"):
        read_predictions(shared("data", "submissions", "malformed_x1x2y1y2.csv"))
