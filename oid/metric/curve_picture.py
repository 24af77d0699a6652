"""The curve of precision and recall of one class, as a table and as a picture."""

import re
from pathlib import Path

import numpy as np

from oid.files import replacing
from oid.metric.report import beside, write_table

CURVE_COLUMNS = ("score", "precision", "recall")


def write_curve(metrics_file: Path, label: str, name: str, curve: tuple[np.ndarray, ...], ap: float) -> None:
    """Writes `X.curve.<name>.csv`, a row after each detection in descending score, and the picture beside it.

    Args:
        curve: scores, precision and recall `(N,)`.
    """
    word = re.sub(r"[^\w-]+", "_", name).strip("_") or "class"
    if name != label:
        word += "." + re.sub(r"[^\w-]+", "_", label).strip("_")
    rows = list(zip(*(column.tolist() for column in curve), strict=True))
    write_table(beside(metrics_file, f".curve.{word}.csv"), CURVE_COLUMNS, rows)
    draw_curve(beside(metrics_file, f".curve.{word}.png"), f"{name}: AP {ap:.4f}", *curve[1:])


def draw_curve(path: Path, title: str, precision: np.ndarray, recall: np.ndarray) -> None:
    """Draws precision over recall, thin, and its envelope, whose area is AP, as a PNG of 640 x 560 pixels."""
    import cv2

    left, top, side_x, side_y, scale = 80, 50, 520, 430, 16  # the drawing keeps 1 / 16 of a pixel
    picture = np.full((560, 640, 3), 255, np.uint8)
    font, black, grey = cv2.FONT_HERSHEY_SIMPLEX, (40, 40, 40), (225, 225, 225)

    def text(words: str, x: int, y: int, size: float = 0.45) -> None:
        cv2.putText(picture, words, (x, y), font, size, black, 1, cv2.LINE_AA)

    for tick in range(0, 11, 2):
        x, y = left + side_x * tick // 10, top + side_y - side_y * tick // 10
        cv2.line(picture, (x, top), (x, top + side_y), grey, 1)
        cv2.line(picture, (left, y), (left + side_x, y), grey, 1)
        text(f"{tick / 10:.1f}", x - 12, top + side_y + 20)
        text(f"{tick / 10:.1f}", left - 35, y + 5)
    text(title.encode("ascii", "replace").decode(), left, 30, 0.6)
    text("recall", left + side_x // 2 - 20, top + side_y + 50)
    text("precision", 5, top - 12)

    def line(x: np.ndarray, y: np.ndarray, colour: tuple[int, int, int], thickness: int) -> None:
        points = np.stack([left + np.clip(x, 0, 1) * side_x, top + side_y - np.clip(y, 0, 1) * side_y], axis=1)
        points = np.round(points * scale).astype(np.int32)
        changes = np.flatnonzero(np.any(np.diff(points, axis=0, prepend=-1), axis=1))
        cv2.polylines(picture, [points[changes]], False, colour, thickness, cv2.LINE_AA, shift=4)

    if len(precision):
        line(recall, precision, (200, 170, 120), 1)
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        steps = np.repeat(np.concatenate([[0.0], recall]), 2)[1:-1]
        line(np.append(steps, recall[-1]), np.append(np.repeat(envelope, 2), 0.0), (180, 60, 20), 2)
    cv2.rectangle(picture, (left, top), (left + side_x, top + side_y), black, 1)
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
    print(f"wrote {path}")
