"""Predictions for tests: files of both forms, random ones, and the ten lines of Python that read each form."""

import csv
import math

import numpy as np
from hypothesis import strategies as st

from oid.predictions.files import Predictions

KAGGLE = "ImageId,PredictionString\n"
ROWS = "ImageID,LabelName,Score,XMin,XMax,YMin,YMax\n"
BOX = "/m/0 0.5 0.1 0.2 0.3 0.4"

printable = st.characters(codec="utf-8", exclude_categories=("C", "Z"))
image_ids = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), min_size=1, max_size=8).filter(str.strip)
    | st.sampled_from(["007", "1e5", "NaN", "null", "-0", 'a"b', "a,b", "  padded "]),
    unique=True,
    max_size=6,
)
labels = st.text(printable, min_size=1, max_size=6).filter(lambda text: text.split() == [text]) | st.sampled_from(
    ["/m/0k4j", "1e5"]
)
numbers = (
    st.floats(-2, 2)
    | st.floats(-1e9, 1e9)
    | st.floats(1e-15, 1e-3)
    | st.builds(lambda number, power: number / 2**power, st.integers(0, 10**7), st.integers(1, 40))
    | st.sampled_from([0.0, -0.0, 9.99999999949e-5, 0.9999999995, 99999999.95, 1e8, 1e300, 0.5e-6, 1.5e-6, 2.5e-6])
)


@st.composite
def some_predictions(draw):
    images = []
    vocabulary = draw(st.lists(labels, unique=True, min_size=1, max_size=4))
    ids = draw(image_ids)
    for _ in ids:
        n = draw(st.integers(0, 3))
        corners = np.array(draw(st.lists(numbers, min_size=4 * n, max_size=4 * n))).reshape(n, 2, 2)
        boxes = np.sort(corners, axis=1).reshape(n, 4)
        label_index = draw(st.lists(st.integers(0, len(vocabulary) - 1), min_size=n, max_size=n))
        images.append((label_index, draw(st.lists(numbers, min_size=n, max_size=n)), boxes))
    return predictions_of(ids, vocabulary, images)


def predictions_of(ids, vocabulary, images):
    """The predictions of single images: for each (label indices, scores, boxes)."""
    counts = [len(scores) for _, scores, _ in images]
    labels, scores, boxes = ([row for image in images for row in image[column]] for column in range(3))
    label_index, image_index = np.array(labels, np.int64), np.repeat(np.arange(len(images)), counts)
    scores, boxes = np.array(scores, np.float64), np.array(boxes, np.float64).reshape(-1, 4)
    return Predictions(list(ids), list(vocabulary), image_index, label_index, scores, boxes)


def write(folder, text, name="predictions.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_tuples(predictions):
    """[(image, [(label, score, x1, y1, x2, y2), ...]), ...]: what the arrays mean."""
    offsets = predictions.offsets()
    return [
        (
            image_id,
            [
                (predictions.labels[predictions.label_index[i]], float(predictions.scores[i]), *predictions.boxes[i])
                for i in range(offsets[image], offsets[image + 1])
            ],
        )
        for image, image_id in enumerate(predictions.image_ids)
    ]


def assert_well_formed(predictions):
    for array in (predictions.image_index, predictions.label_index):
        assert array.dtype == np.int64
    assert predictions.scores.dtype == predictions.boxes.dtype == np.float64
    assert predictions.boxes.shape == (len(predictions.scores), 4)
    assert np.all(np.diff(predictions.image_index) >= 0)


def rows_of_lines(text):
    """The fields of every line that is not blank: a line is a row. The first is the header."""
    for line in text.split("\n"):
        if line.strip("\r"):
            yield from csv.reader([line], strict=True)


def kaggle_in_python(text):
    found = {}
    for image_id, boxes in list(rows_of_lines(text))[1:]:
        tokens = boxes.replace("\t", " ").split(" ")
        tokens = [token for token in tokens if token]
        if not image_id.strip() or image_id in found or len(tokens) % 6:
            raise ValueError
        found[image_id] = [checked(*tokens[i : i + 6]) for i in range(0, len(tokens), 6)]
    return list(found.items())


def rows_in_python(text):
    found = {}
    for image_id, label, score, x1, x2, y1, y2 in list(rows_of_lines(text))[1:]:
        if not image_id.strip():
            raise ValueError
        found.setdefault(image_id, []).append(checked(label, score, x1, y1, x2, y2))
    return list(found.items())


def checked(label, *texts):
    score, x1, y1, x2, y2 = numbers = [float(text) for text in texts]
    if label.split() != [label] or any(text != text.strip() for text in texts):
        raise ValueError
    if not all(map(math.isfinite, numbers)) or x1 > x2 or y1 > y2:
        raise ValueError
    return (label, score, x1, y1, x2, y2)
