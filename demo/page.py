"""Draws ground truth and predictions side by side into one HTML page that needs no other file.

Reads:  images of DATASET/<split>/, DATASET/annotations/, prediction CSVs of a04, a05 or a06, a07's X.metrics.json.
Writes: PAGE, with the pictures inside.
Takes:  a few seconds.

    python -m demo.page --split validation --page predictions.html
    python -m demo.page --dataset_path demo_data/data_set --predictions a.csv b.csv --page page.html --pictures 6
"""

import csv
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from a00_utils_and_constants import DATASET_PATH, ORIENTATION, OUTPUT_PATH, SPLIT
from oid import paths
from oid.annotations import csv_errors, read_class_descriptions, scan_rows
from oid.command_line import run_script
from oid.files import InputError, output_file
from oid.hierarchy import read_hierarchy
from oid.images.find import find_images
from oid.images.read import read_image
from oid.page import Table, draw_name, draw_outline, picture_html, scaled, table_html, write_page
from oid.predictions.files import read_predictions

BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "YMin", "XMax", "YMax", "IsGroupOf")
LONGER_SIDE = 400  # pixels of a drawn picture


class DrawnBox(NamedTuple):
    """A box as it is drawn: class name, score (None in ground truth), xyxy normalised to [0, 1]."""

    name: str
    score: float | None
    box: tuple[float, float, float, float]


class Panel(NamedTuple):
    """One picture of each row: a title, and the boxes of each image id."""

    title: str
    boxes: dict[str, list[DrawnBox]]


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    split: str = SPLIT,
    predictions: tuple[str, ...] | None = None,
    page: str | None = None,
    table: str | None = None,
    pictures: int = 24,
    score: float = 0.3,
    all_classes: bool = False,
    orientation: Literal["stored", "exif"] = ORIENTATION,
) -> None:
    """Of the split's images, as many as asked for, evenly spread in the order of their ids.

    Args:
        dataset_path: folder of the data set.
        output_path: folder of all results.
        split: which images to show.
        predictions: prediction CSVs, one column each; by default all of a05 for the split and a06's submission.
        page: the HTML file to write; by default predictions.html beside the split's predictions.
        table: a CSV file to show as the result table; by default the mAP of each X.metrics.json.
        pictures: how many images to show; 0 = all.
        score: boxes below are not drawn; 0 = draw all.
        all_classes: draw predicted inner classes too, which a05 adds on top of the leaf classes' boxes.
        orientation: pixels as "stored", or turned as "exif" says; as in a03 and a04.
    """
    if pictures < 0 or not 0 <= score <= 1:
        raise InputError(f"--pictures {pictures} --score {score}: give 0 or more pictures, and a score from 0 to 1")
    target = output_file(
        page or paths.submission(output_path, split).with_name("predictions.html"), "give another place by --page"
    )
    files = [Path(name) for name in predictions or ()] or _default_predictions(output_path, split)
    names = read_class_descriptions(paths.annotation_file(dataset_path, paths.CLASS_DESCRIPTIONS))
    tree = read_hierarchy(paths.annotation_file(dataset_path, paths.HIERARCHY))
    images = find_images(Path(dataset_path) / split)
    if not images:
        raise InputError(f"{Path(dataset_path) / split} holds no images: check --dataset_path and --split")
    shown = choose(images, pictures)
    hidden = set() if all_classes else {label for label in tree.labels if tree.children(label)}
    truth = paths.box_annotations(dataset_path, split)
    panels = [read_truth(truth, shown, names)] if truth.is_file() else []
    panels += [read_panel(path, shown, names, score, hidden) for path in files]
    metrics = {panel_title(path): read_metrics(path) for path in files}
    tables = [read_table(Path(table))] if table else summary(metrics)
    write_predictions(target, shown, panels, [*tables, *class_table(metrics, names)], note(score, hidden), orientation)
    print(f"{target}: {len(shown)} of {len(images)} images, {len(panels)} pictures each")


def choose(images: dict[str, Path], count: int) -> dict[str, Path]:
    """`count` of the images, evenly spread; all of them for 0."""
    ids = list(images)
    places = np.unique(np.linspace(0, len(ids) - 1, min(count or len(ids), len(ids))).round().astype(int))
    return {ids[place]: images[ids[place]] for place in places}


def read_truth(path: Path, shown: dict[str, Path], names: dict[str, str]) -> Panel:
    """The annotated boxes of the images that are shown."""
    with csv_errors(path):
        table = scan_rows(path, BOX_COLUMNS).collect()
    boxes = {image_id: [] for image_id in shown}
    for line, image_id, label, *values, group_of in table.iter_rows():
        if image_id not in shown or label is None:
            continue
        try:
            box = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            raise InputError(f"{path}, line {line}: {values} are not four numbers: download the file again") from None
        group = " (group)" if group_of == "1" else ""
        boxes[image_id].append(DrawnBox(names.get(label, label) + group, None, box))
    return Panel("ground truth", boxes)


def read_panel(path: Path, shown: dict[str, Path], names: dict[str, str], score: float, hidden: set[str]) -> Panel:
    """The predicted boxes of the images that are shown, best last so that they are drawn on top."""
    found = read_predictions(path)
    boxes = {image_id: [] for image_id in shown}
    for index in np.argsort(found.scores, kind="stable"):
        image_id, label = found.image_ids[found.image_index[index]], found.labels[found.label_index[index]]
        if image_id in shown and found.scores[index] >= score and label not in hidden:
            name = names.get(label, label)
            boxes[image_id].append(DrawnBox(name, float(found.scores[index]), tuple(found.boxes[index])))
    return Panel(panel_title(path), boxes)


def panel_title(path: Path) -> str:
    """The file's name without what a05 and gzip add."""
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".expanded")


def read_metrics(predictions: Path) -> dict | None:
    """What a07 wrote beside a prediction file, None where it did not."""
    path = paths.metrics_file(predictions)
    if not path.is_file():
        return None
    try:
        metrics = json.loads(path.read_text())
        return {"mAP": metrics["mAP"], "AP": dict(metrics["AP"])}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not what a07 writes: run a07_evaluate.py again") from None


def read_table(path: Path) -> Table:
    """A CSV file with a header as a table."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table with a header: {error}") from None
    return Table("Results", header, rows)


def summary(metrics: dict[str, dict | None]) -> list[Table]:
    """One row per prediction file that a07 measured."""
    rows = [(title, _number(found["mAP"])) for title, found in metrics.items() if found]
    return [Table("Results", ("predictions", "mAP@0.5"), rows)] if rows else []


def class_table(metrics: dict[str, dict | None], names: dict[str, str]) -> list[Table]:
    """The AP of each class that has ground truth, one column per prediction file that a07 measured."""
    measured = {title: found["AP"] for title, found in metrics.items() if found}
    labels = [label for label in names if any(ap.get(label) is not None for ap in measured.values())]
    rows = [(names[label], *(_number(ap.get(label)) for ap in measured.values())) for label in labels]
    return [Table("AP@0.5 of each class", ("class", *measured), rows)] if rows else []


def note(score: float, hidden: set[str]) -> str:
    """The sentence below the tables."""
    inner = "; of predictions only leaf classes" if hidden else ""
    return f"Drawn are boxes with a score of at least {score:g}{inner}."


def draw(pixels: np.ndarray, boxes: Sequence[DrawnBox]) -> np.ndarray:
    """Draws boxes and their names.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        boxes: later ones on top.

    Returns:
        (h, w, 3) uint8 RGB, the longer side `LONGER_SIDE` pixels.
    """
    picture = scaled(pixels, LONGER_SIDE)
    for name, score, box in boxes:
        draw_outline(picture, box, _colour(name))
        draw_name(picture, box, name if score is None else f"{name} {score:.2f}", _colour(name))
    return picture


def write_predictions(
    path: Path,
    images: dict[str, Path],
    panels: Sequence[Panel],
    tables: Sequence[Table] = (),
    text: str = "",
    orientation: Literal["stored", "exif"] = "stored",
) -> None:
    """Writes the page: tables, then for each image a row with one picture per panel.

    Args:
        path: the HTML file.
        images: {image id: file}, in the order of the rows.
        panels: what to draw; an image that a panel does not have is shown without boxes.
        tables: shown first.
        text: a sentence between tables and pictures.
        orientation: pixels as "stored", or turned as "exif" says.
    """
    parts = [*map(table_html, tables), f"<p>{html.escape(text)}</p>"]
    for image_id, file in images.items():
        pixels = read_image(file, orientation=orientation, minimum_side=LONGER_SIDE)
        parts.append(f"<h2>{html.escape(image_id)}</h2><div class=row>")
        for panel in panels:
            boxes = panel.boxes.get(image_id, [])
            title = f"{panel.title}, {len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
            parts.append(f"<figure><figcaption>{html.escape(title)}</figcaption>")
            parts.append(f"{picture_html(draw(pixels, boxes), title)}</figure>")
        parts.append("</div>")
    write_page(path, "Predictions", parts)


def _default_predictions(output_path: str, split: str) -> list[Path]:
    submission = paths.submission(output_path, split)
    files = paths.all_expanded_predictions(output_path, split) + [submission] * submission.is_file()
    if not files:
        raise InputError(f"{submission.parent} has no predictions: run a04 and a05 first, or give --predictions")
    return files


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _colour(name: str) -> tuple[int, int, int]:
    """A dark RGB colour for a class name, the same in every picture, on which white text is readable."""
    hue = sum(ord(letter) * 37 for letter in name.removesuffix(" (group)")) % 180
    rgb = cv2.cvtColor(np.uint8([[[hue, 230, 150]]]), cv2.COLOR_HSV2RGB)[0, 0]
    return tuple(int(value) for value in rgb)


if __name__ == "__main__":
    run_script(main)
