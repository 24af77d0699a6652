"""Proves that the compiled reader and writer are Python's, and that blocks of images are the file in any order."""

import csv
import gzip
import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.files import InputError
from oid.predictions import printer as prediction_printer
from oid.predictions import scanner as prediction_scanner
from oid.predictions.files import PredictionFile, Predictions, PredictionWriter, read_predictions, write_predictions
from tests.helpers.prediction_cases import (
    BOX,
    KAGGLE,
    ROWS,
    as_tuples,
    assert_well_formed,
    decimal,
    kaggle_in_python,
    rows_in_python,
    some_predictions,
    write,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text('a0.1 ,\n\r"-e\t\u00a0', max_size=12) | st.sampled_from([BOX, "i", "", "nan"]), max_size=6))
def test_the_compiled_reader_and_ten_lines_of_python_agree_on_anything(tmp_path_factory, parts):
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


# === Numbers ==========================================================================================================


tokens = (
    decimal
    | st.floats(allow_nan=False, allow_infinity=False).map(repr)
    | st.floats(-1, 2).map(lambda number: f"{number:.17g}")
    | st.builds(lambda half, shift: str(2 * half + 1 << shift), st.integers(2**52, 2**53 - 1), st.integers(0, 9))
    | st.sampled_from(["0", "-0", "-0.0", "+1.", ".5", "00000000000000000000.5", "9007199254740993", "8.5e-5", "1e23"])
)


@settings(max_examples=300, deadline=None)
@given(tokens)
def test_a_number_that_the_scanner_takes_is_pythons_to_the_last_bit(token):
    """Half-way cases, 17 digits, both zeros; it may leave any to Python, but not the usual ones."""
    number, stop = prediction_scanner._read_number(np.frombuffer(token.encode(), np.uint8), 0, len(token))
    if stop == len(token):
        assert struct.pack("d", number) == struct.pack("d", float(token))
    else:
        assert stop == -1
        assert len(token) > 19 or "e" in token.lower()


@pytest.mark.parametrize("token", ["", "-", ".", "+.", "e5", "1e", "1e+", "nan", "inf", "0x1", "1_0", "--1", "1e12345"])
def test_the_scanner_leaves_what_is_no_number(token):
    data = np.frombuffer(token.encode() + b" ", np.uint8)
    stop = prediction_scanner._read_number(data, 0, len(token))[1]
    assert stop < 0 or data[stop] != ord(" ")


written = (
    st.floats(-2, 2)
    | st.floats(-1e9, 1e9)
    | st.floats(1e-15, 1e-3)
    | st.builds(lambda number, power: number / 2**power, st.integers(0, 10**7), st.integers(1, 40))
    | st.builds(lambda number, power: number / 10**power, st.integers(0, 10**10), st.integers(0, 14))
    | st.sampled_from([0.0, -0.0, 9.99999999949e-5, 0.9999999995, 99999999.95, 1e8, 1e-14, 0.5e-6, 1.5e-6, 2.5e-6])
)


@settings(max_examples=300, deadline=None)
@given(written)
def test_a_number_that_the_printer_takes_is_written_as_python_does(number):
    out = np.zeros(64, np.uint8)
    for write_number, form in ((prediction_printer._write_score, ".9g"), (prediction_printer._write_coordinate, ".6f")):
        stop = write_number(number, out, 0)
        if stop >= 0:
            assert out[:stop].tobytes().decode() == format(number, form)
        else:
            assert not 1e-13 < abs(number) < 1e7  # it may leave these to Python


# === Blocks ===========================================================================================================


def shuffled_rows(folder, images=40):
    """A Kaggle file and one with a row per box, its rows scattered, of the same predictions."""
    rng = np.random.default_rng(3)
    boxes = [
        (f"i{image}", f"l{rng.integers(9)}", round(rng.random(), 3))
        for image in range(images)
        for _ in range(image % 5)
    ]
    strings = {f"i{image}": [] for image in range(images)}
    for image_id, label, score in boxes:
        strings[image_id].append(f"{label} {score} 0 0.1 1 0.9")
    kaggle = KAGGLE + "".join(f"{image_id},{' '.join(parts)}\n" for image_id, parts in strings.items())
    order = rng.permutation(len(boxes))
    rows = ROWS + "".join("{},{},{},0,1,0.1,0.9\n".format(*boxes[i]) for i in order)
    return write(folder, kaggle, "kaggle.csv"), write(folder, rows, "rows.csv")


@pytest.mark.parametrize("packed", [False, True])
def test_blocks_are_the_file_whatever_their_size(tmp_path, packed):
    for path in shuffled_rows(tmp_path):
        whole = read_predictions(path)
        if packed:
            path = write(tmp_path, gzip.compress(path.read_bytes()), path.name + ".gz")
        for size in (1, 7, 1000):
            file = PredictionFile(path)
            assert file.num_images == len(file.image_ids)
            assert file.image_ids == whole.image_ids
            assert file.labels == []
            blocks = list(file.blocks(size))
            assert [len(block.image_ids) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
            for block in blocks:
                assert_well_formed(block)
                assert block.labels is file.labels
            assert [pair for block in blocks for pair in as_tuples(block)] == as_tuples(whole)
            assert file.labels == whole.labels


def test_images_are_read_in_any_order(tmp_path):
    for path in shuffled_rows(tmp_path):
        whole = as_tuples(read_predictions(path))
        file = PredictionFile(path)
        for positions in ([5, 3, 30, 3], [], list(range(file.num_images))[::-1]):
            part = file.read(np.array(positions, dtype=np.int64))
            assert_well_formed(part)
            assert as_tuples(part) == [whole[position] for position in positions]


def test_rows_may_be_scattered(tmp_path):
    kaggle, rows = (read_predictions(path) for path in shuffled_rows(tmp_path))
    boxes_of = {image_id: sorted(boxes) for image_id, boxes in as_tuples(kaggle) if boxes}
    assert {image_id: sorted(boxes) for image_id, boxes in as_tuples(rows)} == boxes_of


def test_thousands_of_labels_and_images(tmp_path):
    """More than the tables of either have room for at first; labels of one length, and long ones."""
    rng = np.random.default_rng(1)
    names = [f"/m/{k:04x}" for k in range(1500)] + [f"é{k}" * (k % 40 + 1) for k in range(1500)]
    boxes = [(f"image {k // 2}", names[label], k / 8) for k, label in enumerate(rng.permutation(3000))] * 2
    rows = write(tmp_path, ROWS + "".join(f"{image_id},{name},{score},0,1,0,1\n" for image_id, name, score in boxes))
    found = read_predictions(rows)
    assert as_tuples(found) == rows_in_python(rows.read_text(encoding="utf-8"))
    assert found.labels == list(dict.fromkeys(name for _, name, _ in boxes))
    write_predictions(tmp_path / "kaggle.csv", found)
    text = (tmp_path / "kaggle.csv").read_text(encoding="utf-8")
    assert as_tuples(read_predictions(tmp_path / "kaggle.csv")) == kaggle_in_python(text) == as_tuples(found)


def test_mistakes_in_images_are_found_on_opening_and_others_on_reading(tmp_path):
    with pytest.raises(InputError, match=r"line 4.*second row"):
        PredictionFile(write(tmp_path, f"{KAGGLE}a,\nb,\na,\n"))
    with pytest.raises(InputError, match=r"line 3.*id is empty"):
        PredictionFile(write(tmp_path, f"{ROWS}a,x,0.5,0,1,0,1\n,x,0.5,0,1,0,1\n"))
    file = PredictionFile(write(tmp_path, f"{KAGGLE}a,{BOX}\nb,x nan 0 0 1 1\nc,{BOX}\n"))
    assert as_tuples(file.read(np.array([2, 0]))) == [(i, [("/m/0", 0.5, 0.1, 0.2, 0.3, 0.4)]) for i in "ca"]
    with pytest.raises(InputError, match=r"line 3, token 2: the score 'nan' is not finite"):
        file.read(np.array([0, 1]))


def test_another_order_of_the_corners_is_told_by_all_boxes_of_the_file_not_of_the_block(tmp_path):
    swapped, fine = "x 0.5 0.7 0.9 0.3 0.4", "x 0.5 0.2 0.1 0.6 0.4"
    other_order = PredictionFile(write(tmp_path, f"{KAGGLE}a,{swapped}\nb,{BOX}\n"), allow_swapped_corners=True)
    with pytest.raises(InputError, match=r"line 2, tokens 1 to 6: .* x1 x2 y1 y2"):
        list(other_order.blocks(1))
    mixed = PredictionFile(write(tmp_path, f"{KAGGLE}a,{swapped}\nb,{fine}\n"), allow_swapped_corners=True)
    assert sum(len(block.boxes) for block in mixed.blocks(1)) == 2


@settings(max_examples=40, deadline=None)
@given(some_predictions(), st.integers(1, 3))
def test_writing_in_blocks_gives_the_same_file_as_python(tmp_path_factory, predictions, size):
    path = tmp_path_factory.mktemp("blocks") / "predictions.csv"
    write_predictions(path, predictions)
    expected = io.StringIO()
    writer = csv.writer(expected, lineterminator="\n")
    writer.writerow(("ImageId", "PredictionString"))
    for image_id, boxes in as_tuples(predictions):
        numbers = [(label, f"{score:.9g}", *(f"{c:.6f}" for c in box)) for label, score, *box in boxes]
        writer.writerow((image_id, " ".join(token for box in numbers for token in box)))
    assert path.read_bytes().decode() == expected.getvalue()
    again = PredictionFile(path)
    with PredictionWriter(path.with_name("again.csv")) as writer:
        for block in again.blocks(size):
            writer.write(block)
    assert path.with_name("again.csv").read_bytes() == path.read_bytes()


def test_a_writer_is_all_or_nothing_and_remembers_ids(tmp_path):
    block = Predictions.from_images(["a"], ["x"], [([0], [0.5], [[0, 0, 1, 1]])])

    def write_twice():
        with PredictionWriter(tmp_path / "out.csv") as writer:
            writer.write(block)
            writer.write(block)

    with pytest.raises(ValueError, match="repeated"):
        write_twice()
    assert list(tmp_path.iterdir()) == []
    wrong = Predictions.from_images(["a"], ["x"], [([1], [0.5], [[0, 0, 1, 1]])])
    with pytest.raises(ValueError, match="label_index"):
        write_predictions(tmp_path / "out.csv", wrong)
