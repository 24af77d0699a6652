"""Draws ground truth and predictions side by side into one self-contained HTML page.

Reads:  images of DATASET/<split>/, DATASET/annotations/, prediction CSVs of a04, a05 or a06, a07's X.metrics.json.
Writes: PAGE, with the pictures inside.
Takes:  a few seconds.

    python -m demo.page --split validation --page predictions.html
    python -m demo.page --dataset_path demo_data/data_set --predictions a.csv b.csv --page page.html --pictures 6
"""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import polars as pl

from a00_utils_and_constants import DATASET_PATH, ORIENTATION, OUTPUT_PATH, SPLIT
from oid import paths
from oid.annotations import read_boxes, read_class_descriptions
from oid.columns import CORNERS
from oid.command_line import check_flag, run_script
from oid.files import InputError, output_file
from oid.hierarchy import read_hierarchy
from oid.images.find import find_images
from oid.images.read import read_image
from oid.page import Table, draw_name, draw_outline, picture_html, scaled, table_html, write_page
from oid.predictions.files import read_predictions

LONGER_SIDE = 400  # pixels of a drawn picture


class Panel(NamedTuple):
    """One column of pictures: its title, and the boxes of each image by its id.

    A box is its class name, its score (None for ground truth) and its corners, xyxy normalised to [0, 1].
    """

    title: str
    boxes: dict[str, list[tuple[str, float | None, Sequence[float]]]]


def main(
    *,
    dataset_path: str = DATASET_PATH,
    output_path: str = OUTPUT_PATH,
    split: str = SPLIT,
    predictions: tuple[str, ...] | None = None,
    page: str | None = None,
    pictures: int = 24,
    score: float = 0.3,
    all_classes: bool = False,
    orientation: Literal["stored", "exif"] = ORIENTATION,
) -> None:
    """Shows images that are evenly spaced in the sorted list of the split's image ids.

    Args:
        dataset_path: folder of the data set.
        output_path: folder of all results.
        split: which images to show.
        predictions: prediction CSVs, one column each; by default the split's files from a05 and a06.
        page: the HTML file to write; by default predictions.html beside the split's predictions.
        pictures: how many images to show; 0 = all.
        score: boxes with a lower score are not drawn; 0 = draw all.
        all_classes: also draw predicted inner classes, which a05 adds to the boxes of the leaf classes.
        orientation: "stored" keeps the pixels as stored, "exif" applies the EXIF rotation; use a03's and a04's value.
    """
    check_flag(pictures >= 0, "pictures", pictures, "0 (all) or a number of images")
    check_flag(0 <= score <= 1, "score", score, "a score from 0 to 1")
    page = page or paths.submission(output_path, split).with_name("predictions.html")
    target = output_file(page, "give another place by --page")
    files = [Path(name) for name in predictions or ()] or _default_predictions(output_path, split)
    names = read_class_descriptions(paths.annotation_file(dataset_path, paths.CLASS_DESCRIPTIONS))
    tree = read_hierarchy(paths.annotation_file(dataset_path, paths.HIERARCHY))
    images = find_images(Path(dataset_path) / split)
    if not images:
        raise InputError(f"{Path(dataset_path) / split} holds no images: check --dataset_path and --split")
    hidden = set() if all_classes else {label for label in tree.labels if tree.children(label)}
    shown = choose(images, pictures)
    truth = paths.box_annotations(dataset_path, split)
    panels = [read_truth(truth, shown, names)] if truth.is_file() else []
    panels += [read_panel(path, shown, names, score, hidden) for path in files]
    metrics = {panel_title(path): found for path in files if (found := read_metrics(path))}
    tables = [summary(metrics), class_table(metrics, names)]
    note = f"Boxes with a score of at least {score:g} are drawn{', of leaf classes only' if hidden else ''}."
    parts = [*(table_html(found) for found in tables if found.rows), f"<p>{note}</p>"]
    for image_id, file in shown.items():
        pixels = read_image(file, orientation=orientation, minimum_side=LONGER_SIDE)
        parts += picture_row(image_id, pixels, panels)
    write_page(target, "Predictions", parts)
    print(f"{target}: {len(shown)} of {len(images)} images, {len(panels)} pictures each")


def choose(images: dict[str, Path], count: int) -> dict[str, Path]:
    """Picks `count` evenly spaced images, or all if `count` is 0."""
    ids = list(images)
    places = np.unique(np.linspace(0, len(ids) - 1, min(count or len(ids), len(ids))).round().astype(int))
    return {ids[place]: images[ids[place]] for place in places}


def read_truth(path: Path, shown: dict[str, Path], names: dict[str, str]) -> Panel:
    """Reads the annotated boxes of the shown images."""
    corners = pl.col(CORNERS).cast(pl.Float64, strict=False)
    table = read_boxes(path, ("ImageID", "LabelName", corners, "IsGroupOf"))
    table = table.filter(pl.col("ImageID").is_in(list(shown)))
    boxes = {image_id: [] for image_id in shown}
    for image_id, label, *box, group_of in table.iter_rows():
        group = " (group)" if group_of == "1" else ""
        boxes[image_id].append((names.get(label, label) + group, None, box))
    return Panel("ground truth", boxes)


def read_panel(path: Path, shown: dict[str, Path], names: dict[str, str], score: float, hidden: set[str]) -> Panel:
    """Reads the predicted boxes of the shown images, in ascending order of score, so the best is drawn on top."""
    found = read_predictions(path)
    boxes = {image_id: [] for image_id in shown}
    for index in np.argsort(found.scores, kind="stable"):
        image_id, label = found.image_ids[found.image_index[index]], found.labels[found.label_index[index]]
        if image_id in shown and found.scores[index] >= score and label not in hidden:
            boxes[image_id].append((names.get(label, label), found.scores[index], found.boxes[index]))
    return Panel(panel_title(path), boxes)


def panel_title(path: Path) -> str:
    """The file's name without `.gz`, `.csv` and `.expanded`."""
    return path.name.removesuffix(".gz").removesuffix(".csv").removesuffix(".expanded")


def read_metrics(predictions: Path) -> dict | None:
    """The `mAP` and `AP` that a07 wrote for a prediction file, or None if a07 was not run.

    Raises:
        InputError: the file was not written by a07.
    """
    path = paths.metrics_file(predictions)
    try:
        metrics = json.loads(path.read_text())
        return {"mAP": metrics["mAP"], "AP": dict(metrics["AP"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not what a07 writes: run a07_evaluate.py again") from None


def summary(metrics: dict[str, dict]) -> Table:
    """The mAP of each evaluated prediction file."""
    return Table("Results", ("predictions", "mAP@0.5"), [(title, _number(m["mAP"])) for title, m in metrics.items()])


def class_table(metrics: dict[str, dict], names: dict[str, str]) -> Table:
    """The AP of each class with ground truth, one column per evaluated prediction file."""
    found = {label: [_number(m["AP"].get(label)) for m in metrics.values()] for label in names}
    rows = [(names[label], *values) for label, values in found.items() if any(values)]
    return Table("AP@0.5 of each class", ("class", *metrics), rows)


def draw(pixels: np.ndarray, boxes: Sequence[tuple]) -> np.ndarray:
    """A copy of `(H, W, 3)` uint8 RGB pixels with boxes and their names, the last box on top; see `Panel`."""
    picture = scaled(pixels, LONGER_SIDE)
    for name, score, box in boxes:
        draw_outline(picture, box, _colour(name))
        draw_name(picture, box, name if score is None else f"{name} {score:.2f}", _colour(name))
    return picture


def picture_row(image_id: str, pixels: np.ndarray, panels: Sequence[Panel]) -> list[str]:
    """The HTML of one image: its id and one picture per panel."""
    parts = [f"<h2>{html.escape(image_id)}</h2><div class=row>"]
    for panel in panels:
        boxes = panel.boxes[image_id]
        title = f"{panel.title}, {len(boxes)} box{'' if len(boxes) == 1 else 'es'}"
        parts.append(
            f"<figure><figcaption>{html.escape(title)}</figcaption>{picture_html(draw(pixels, boxes), title)}</figure>"
        )
    return [*parts, "</div>"]


def _default_predictions(output_path: str, split: str) -> list[Path]:
    submission = paths.submission(output_path, split)
    files = paths.all_expanded_predictions(output_path, split) + [submission] * submission.is_file()
    if not files:
        raise InputError(f"{submission.parent} has no predictions: run a04 and a05 first, or give --predictions")
    return files


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _colour(name: str) -> tuple[int, int, int]:
    """A fixed RGB colour per class name, dark enough for white text."""
    hue = sum(ord(letter) * 37 for letter in name.removesuffix(" (group)")) % 180
    return tuple(cv2.cvtColor(np.uint8([[[hue, 230, 150]]]), cv2.COLOR_HSV2RGB)[0, 0].tolist())


if __name__ == "__main__":
    run_script(main)
