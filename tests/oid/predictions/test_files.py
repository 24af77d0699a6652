"""Proves that prediction files are read exactly or not at all, and written so that reading gives the same back."""

import gzip
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.files import InputError
from oid.predictions import files as module
from oid.predictions import index as prediction_index
from oid.predictions.files import Predictions, prediction_string, read_predictions, write_predictions
from tests.helpers.prediction_cases import (
    BOX,
    KAGGLE,
    ROWS,
    as_tuples,
    assert_well_formed,
    decimal,
    kaggle_in_python,
    some_predictions,
    write,
)
from tests.helpers.project import shared

# === There and back ===================================================================================================


@settings(max_examples=60, deadline=None)
@given(some_predictions())
def test_what_was_written_is_read_back_exactly(tmp_path_factory, predictions):
    path = tmp_path_factory.mktemp("there_and_back") / "predictions.csv"
    write_predictions(path, predictions)
    again = read_predictions(path)
    assert_well_formed(again)
    expected = [
        (image_id, [(label, float(f"{score:.9g}"), *(float(f"{c:.6f}") for c in box)) for label, score, *box in boxes])
        for image_id, boxes in as_tuples(predictions)
    ]
    assert as_tuples(again) == expected

    first_text = path.read_bytes()
    write_predictions(path, again)
    assert path.read_bytes() == first_text

    packed = path.with_name("packed.csv.gz")
    write_predictions(packed, again)
    assert gzip.decompress(packed.read_bytes()) == first_text
    assert as_tuples(read_predictions(packed)) == expected


def test_the_text_is_that_of_the_contract(tmp_path):
    boxes = [[0, 0.5, 1 / 3, 1], [0.1234567, 0.1, 0.2, 0.3]]
    text = prediction_string(["/m/0", "cat"], [1 / 3, 1e-12], boxes)
    assert text == "/m/0 0.333333333 0.000000 0.500000 0.333333 1.000000 cat 1e-12 0.123457 0.100000 0.200000 0.300000"
    assert prediction_string([], [], np.zeros((0, 4))) == ""
    path = tmp_path / "deep" / "out.csv"
    write_predictions(path, Predictions.from_images(["b", "a"], ["x"], [([], [], []), ([0], [0.5], [[0, 0, 1, 1]])]))
    assert path.read_bytes() == b"ImageId,PredictionString\nb,\na,x 0.5 0.000000 0.000000 1.000000 1.000000\n"


def test_compressed_files_do_not_depend_on_name_and_time(tmp_path):
    predictions = Predictions.from_images(["a"], ["x"], [([0], [0.5], [[0, 0, 1, 1]])])
    for name in ("one.csv.gz", "two.csv.gz"):
        write_predictions(tmp_path / name, predictions)
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()


@pytest.mark.parametrize(
    ("label", "score", "coordinate", "match"),
    [("a b", 0.5, 0, "white space"), ("", 0.5, 0, "empty"), ("x", math.nan, 0, "finite"), ("x", 1, math.inf, "finite")],
)
def test_nothing_is_written_that_cannot_be_read(tmp_path, label, score, coordinate, match):
    predictions = Predictions.from_images(["a"], [label], [([0], [score], [[coordinate, 0, 1, 1]])])
    with pytest.raises(ValueError, match=match):
        write_predictions(tmp_path / "out.csv", predictions)
    assert list(tmp_path.iterdir()) == []


def test_writing_refuses_repeated_ids_and_boxes_that_are_not_together(tmp_path):
    box = ([0], [0.5], [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="repeated"):
        write_predictions(tmp_path / "out.csv", Predictions.from_images(["a", "a"], ["x"], [box, box]))
    shuffled = Predictions(["a", "b"], ["x"], np.array([1, 0]), np.zeros(2, int), np.ones(2), np.ones((2, 4)))
    with pytest.raises(ValueError, match="image_index"):
        write_predictions(tmp_path / "out.csv", shuffled)
    with pytest.raises(ValueError, match="1 results for 2 images"):
        Predictions.from_images(["a", "b"], ["x"], [box])


# === Reading ==========================================================================================================


@pytest.mark.parametrize(
    "text",
    [
        f"{KAGGLE}a,{BOX}\nb,\n",
        f"{KAGGLE}a,{BOX}\nb,",
        f"{KAGGLE}a,{BOX}\nb,\n\n\n",
        f"{KAGGLE}a,{BOX} \nb,  \n",
        f"{KAGGLE}\na,{BOX}\n\nb,\n",
        f"{KAGGLE}a,  {BOX.replace(' ', '  ')}\nb,\n",
        f"{KAGGLE}a,{BOX.replace(' ', chr(9))}\nb,\n",
        f'{KAGGLE}"a","{BOX}"\n"b",""\n',
        f'{KAGGLE}"a","{BOX.replace(" 0.1", chr(10) + "0.1")}"\nb,\n',
        f"{KAGGLE}a,{BOX}\nb,\n".replace("\n", "\r\n"),
        "\ufeff" + f"{KAGGLE}a,{BOX}\nb,\n",
        "\ufeff" + f'"ImageId","PredictionString"\r\na,{BOX}\r\nb,\r\n',
        f"PredictionString,ImageId\n{BOX},a\n,b\n",
    ],
)
def test_spellings_of_the_same_predictions(tmp_path, text):
    predictions = read_predictions(write(tmp_path, text))
    assert_well_formed(predictions)
    assert as_tuples(predictions) == [("a", [("/m/0", 0.5, 0.1, 0.2, 0.3, 0.4)]), ("b", [])]


def test_rows_of_an_image_are_brought_together_in_their_order(tmp_path):
    rows = [
        "b,y,0.1,0.1,0.3,0.2,0.4",
        "a,x,0.2,0,1,0,1",
        "b,x,0.3,0,1,0,1",
        "a,y,0.4,0,1,0,1",
    ]
    predictions = read_predictions(write(tmp_path, ROWS + "\n".join(rows)))
    assert_well_formed(predictions)
    assert predictions.labels == ["y", "x"]
    assert as_tuples(predictions) == [
        ("b", [("y", 0.1, 0.1, 0.2, 0.3, 0.4), ("x", 0.3, 0, 0, 1, 1)]),
        ("a", [("x", 0.2, 0, 0, 1, 1), ("y", 0.4, 0, 0, 1, 1)]),
    ]
    quoted = write(tmp_path, ROWS + "\n".join(rows).replace("b,y", '"b","y"'), "quoted.csv")
    assert as_tuples(read_predictions(quoted)) == as_tuples(predictions)


def test_ids_and_labels_are_text(tmp_path):
    text = f"{KAGGLE}007,{BOX.replace('/m/0', '1e5')}\n7,\n1e5,\nnan,\nTrue,\n"
    predictions = read_predictions(write(tmp_path, text))
    assert predictions.image_ids == ["007", "7", "1e5", "nan", "True"]
    assert predictions.labels == ["1e5"]


@pytest.mark.parametrize("header", [KAGGLE, ROWS])
def test_a_header_alone_is_no_prediction_at_all(tmp_path, header):
    predictions = read_predictions(write(tmp_path, header))
    assert_well_formed(predictions)
    assert predictions.image_ids == []
    assert predictions.labels == []


@settings(max_examples=40, deadline=None)
@given(st.lists(decimal, min_size=1, max_size=40))
def test_a_number_is_the_double_nearest_to_its_decimals(tmp_path_factory, numbers):
    folder = tmp_path_factory.mktemp("numbers")
    text = KAGGLE + "a," + " ".join(f"x {number} 0 0 1 1" for number in numbers)
    expected = [float(number) for number in numbers]
    assert read_predictions(write(folder, text)).scores.tolist() == expected
    rows = ROWS + "".join(f"a,x,{number},0,1,0,1\n" for number in numbers)
    assert read_predictions(write(folder, rows)).scores.tolist() == expected


def test_more_than_one_part_and_long_quoted_fields(tmp_path, monkeypatch):
    rows = [(f"{i:04}", " ".join([f"l{i % 7} 0.{i + 1} 0 0 1 1"] * (i % 3))) for i in range(50)]
    rows.append(("long", " ".join(["z 0.5 0 0 1 1"] * 12_000)))  # longer than the csv module takes by default
    plain = write(tmp_path, KAGGLE + "".join(f"{image_id},{text}\n" for image_id, text in rows), "plain.csv")
    quoted = write(tmp_path, KAGGLE + "".join(f'"{image_id}","{text}"\n' for image_id, text in rows), "quoted.csv")
    expected = as_tuples(read_predictions(plain))
    assert [len(boxes) for _, boxes in expected] == [i % 3 for i in range(50)] + [12_000]
    assert as_tuples(read_predictions(quoted)) == expected
    monkeypatch.setattr(module, "_KAGGLE_ROWS", 7)
    monkeypatch.setattr(prediction_index, "_ROWS_AT_ONCE", 5)
    monkeypatch.setattr(prediction_index, "_BYTES_AT_ONCE", 100)
    again = read_predictions(plain)
    assert as_tuples(again) == expected
    assert again.labels == read_predictions(quoted).labels == ["l1", "l2", "l4", "l5", "l0", "l3", "l6", "z"]


# === Mistakes =========================================================================================================


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ["is empty", "ImageId,PredictionString"]),
        ("\n \n", ["is empty"]),
        ("Id,PredictionString\na,\n", ["line 1", "unknown column 'Id'"]),
        ("ImageId,PredictionString,Extra\na,,\n", ["line 1", "unknown column 'Extra'"]),
        ("ImageId,ImageId,PredictionString\na,a,\n", ["line 1", "'ImageId' is there twice"]),
        ("ImageID,LabelName,Score,XMin,XMax,YMin\n", ["line 1", "'YMax' is missing"]),
        (f"a,{BOX}\n", ["line 1", "is not the header"]),
        (f"{KAGGLE}a\n", ["line 2", "1 fields", "2 columns"]),
        (f"{KAGGLE}a,\nb,{BOX},c\n", ["line 3", "3 fields"]),
        (f"{KAGGLE}a,\n,{BOX}\n", ["line 3", "image id is empty"]),
        (f"{KAGGLE}a,\n  ,{BOX}\n", ["line 3", "image id is empty"]),
        (f"{KAGGLE}a,\nb,\na,\n", ["line 4", "'a'", "second row"]),
        (f"{KAGGLE}a,{BOX} /m/1 0.5\n", ["line 2", "8 tokens", "'a'", "'0.5'", "multiple of 6"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 0.2 0.3\n", ["line 2", "5 tokens"]),
        (f"{KAGGLE}a,\n\nb,{BOX} /m/1 high 0 0 1 1\n", ["line 4", "token 8", "score 'high'", "not a number"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 0.2 0.3 1_0\n", ["line 2", "token 6", "YMax '1_0'", "not a number"]),
        (f"{KAGGLE}a,/m/0 nan 0.1 0.2 0.3 0.4\n", ["line 2", "token 2", "score 'nan'", "not finite"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 -inf 0.3 0.4\n", ["line 2", "token 4", "YMin '-inf'", "not finite"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 0.2 0.3 1e999\n", ["line 2", "token 6", "YMax '1e999'", "not finite"]),
        (f"{KAGGLE}a,{BOX} /m/0 0.5 0.9 0.2 0.3 0.4\n", ["line 2", "tokens 7 to 12", "XMin 0.9", "XMax 0.3", "swap"]),
        (f"{KAGGLE}a,/m/0 0.5 0.1 0.5 0.3 0.4\n", ["line 2", "YMin 0.5", "YMax 0.4"]),
        (f'{KAGGLE}"a\nb",\nc,/m/0\n', ["line 4", "1 tokens"]),
        (f'{KAGGLE}a,"{BOX}\nb,\n', ["line 2", "quotation mark"]),
        (f"{KAGGLE}a,{BOX}\nb".encode() + b"\xff,\n", ["line 3", "not UTF-8"]),
        (f"{KAGGLE}a,{BOX}\n".encode("utf-16"), ["UTF-16"]),
        (b"PK\x03\x04 and so on", ["zip archive"]),
        (
            gzip.compress(KAGGLE.encode() * 50, mtime=0)[:-12],
            ["damaged gzip"],
        ),  # a test has the same name in each process
        (f"{ROWS}a,x,0.5,0,1,0\n", ["line 2", "6 fields", "7 columns"]),
        (f"{ROWS}a,x,0.5,0,1,0,\n", ["line 2", "YMax ''", "not a number"]),
        (f"{ROWS}a,x,inf,0,1,0,1\n", ["line 2", "score 'inf'", "not finite"]),
        (f"{ROWS}a,x,0.5,0,1,0,1\na,x y,0.5,0,1,0,1\n", ["line 3", "'x y'", "white space"]),
        (f"{ROWS}a,,0.5,0,1,0,1\n", ["line 2", "label ''", "empty"]),
        (f"{ROWS},x,0.5,0,1,0,1\n", ["line 2", "image id is empty"]),
        (f"{ROWS}a,x,0.5,0.6,0.5,0,1\n", ["line 2", "XMin 0.6", "XMax 0.5"]),
    ],
)
def test_a_mistake_is_named_in_one_sentence(tmp_path, text, fragments):
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv does not exist: .*ImageId,PredictionString"):
        read_predictions(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_predictions(tmp_path)


def test_equal_corners_are_fine(tmp_path):
    predictions = read_predictions(write(tmp_path, f"{KAGGLE}a,x 0.5 0.3 0.2 0.3 0.2\n"))
    assert predictions.boxes.tolist() == [[0.3, 0.2, 0.3, 0.2]]


def test_swapped_corners_can_be_allowed_but_not_another_order(tmp_path):
    one_swapped = write(tmp_path, f"{KAGGLE}a,x 0.5 0.9 0.2 0.3 0.4\nb,{BOX} x 0.5 0.2 0.1 0.6 0.4\n", "one.csv")
    with pytest.raises(InputError, match="swap them"):
        read_predictions(one_swapped)
    allowed = read_predictions(one_swapped, allow_swapped_corners=True)
    assert allowed.boxes[0].tolist() == [0.9, 0.2, 0.3, 0.4]
    other_order = write(tmp_path, f"{KAGGLE}a,x 0.5 0.7 0.9 0.3 0.4 x 0.5 0.1 0.2 0.3 0.4\n", "order.csv")
    for allow in (False, True):
        with pytest.raises(InputError, match=r"line 2, tokens 1 to 6: XMin 0.7 .* x1 x2 y1 y2"):
            read_predictions(other_order, allow_swapped_corners=allow)


def test_the_real_submission_is_read_and_the_malformed_one_is_explained(tmp_path):
    predictions = read_predictions(shared("data", "submissions", "real_670_images.csv"))
    assert (len(predictions.image_ids), len(predictions.boxes), len(predictions.labels)) == (670, 38934, 57)
    text = shared("data", "submissions", "real_670_images.csv").read_bytes().decode()
    assert as_tuples(predictions) == kaggle_in_python(text)
    with pytest.raises(InputError, match=r"line 3, tokens 13 to 18: XMin 0.9\d* is greater .* order x1 x2 y1 y2"):
        read_predictions(shared("data", "submissions", "malformed_x1x2y1y2.csv"))


@pytest.mark.parametrize("case", ["c1", "c3"])
def test_both_forms_of_the_metric_cases_agree(case):
    rows = read_predictions(shared("metric_cases", case, "pred.csv"), allow_swapped_corners=True)
    kaggle = read_predictions(shared("metric_cases", case, "pred_kaggle.csv"), allow_swapped_corners=True)
    kaggle_boxes = {image_id: sorted(boxes) for image_id, boxes in as_tuples(kaggle) if boxes}
    assert {image_id: sorted(boxes) for image_id, boxes in as_tuples(rows)} == kaggle_boxes
