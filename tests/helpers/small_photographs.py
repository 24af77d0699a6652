"""A data set of a few drawn pictures with a01's files, and the flags of a tiny training, for several test files."""

from pathlib import Path

import cv2
import numpy as np

from a01_create_training_files import main as create_training_files
from tests.helpers.small_open_images import box, make_data_set

# the hierarchy of small_open_images; level 1 of these pictures is tomato, apple, carrot: the leaves that have boxes
CLASSES = ("tomato", "apple", "carrot")
TINY = {"image_size": 96, "tums": 1, "scales": 2, "channels": 16, "epochs": 2, "steps_per_epoch": 3, "batch_size": 4}
TINY |= {"backbone": "tiny", "precision": "float32"}  # conftest's; mixed precision builds a second network

ODD = (("group", "apple", "1"), ("flat", "apple", "0"), ("kind", "fruit", "0"))  # name, label, IsGroupOf


def draw(picture: np.ndarray, label: str, rectangle: tuple[int, int, int, int]) -> None:
    """Draws an object that fills a rectangle x0, y0, x1, y1 (pixels): the classes differ in their outline."""
    x0, y0, x1, y1 = rectangle
    if label == "apple":
        picture[y0:y1, x0:x1] = (250, 250, 250)
    elif label == "tomato":
        centre, axes = ((x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2), (x1 - x0, y1 - y0)
        cv2.ellipse(picture, (centre, axes, 0.0), (250, 250, 250), -1)
    else:
        corners = np.array([[(x0 + x1 - 1) // 2, y0], [x1 - 1, y1 - 1], [x0, y1 - 1]])
        cv2.fillPoly(picture, [corners], (250, 250, 250))


def photograph(path: Path, seed: int, labels: tuple[str, ...]) -> list[tuple[str, str, tuple[str, ...]]]:
    """Writes a picture with one object per label, side by side; returns (image id, label, the box's four texts)."""
    rng = np.random.default_rng(seed)
    height, width = int(rng.integers(80, 130)), int(rng.integers(100, 150))
    picture = rng.integers(20, 90, (height, width, 3)).astype("uint8")
    found = []
    for place, label in enumerate(labels):
        left, right = place * width // len(labels), (place + 1) * width // len(labels)
        side = int(rng.integers(28, min(right - left, 60)))
        x0, y0 = int(rng.integers(left, right - side + 1)), int(rng.integers(0, height - side + 1))
        draw(picture, label, (x0, y0, x0 + side, y0 + side))
        corners = (x0 / width, (x0 + side) / width, y0 / height, (y0 + side) / height)
        found.append((path.stem, label, tuple(f"{value:.6f}" for value in corners)))
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)
    return found


def make_photographs(folder: Path, *, train: int = 8, validation: int = 5, odd: bool = True) -> tuple[Path, Path]:
    """Writes DATASET and, by a01, OUTPUT's level 1; returns both.

    Besides the ordinary pictures both splits have one without boxes, and `odd` adds three to train: with a group-of
    box, with a box without area, and with a box of an ancestor class only.
    """
    data_set, rows, labels = folder / "data", {"train": [], "validation": []}, {"train": [], "validation": []}
    for split, count in (("train", train), ("validation", validation)):
        for number in range(count):
            names = (CLASSES[number % 3],) if number % 2 else (CLASSES[number % 3], CLASSES[(number // 3) % 3])
            suffix = ".png" if number % 3 else ".jpg"
            path = data_set / split / f"{split[0]}{number:02d}{suffix}"
            found = photograph(path, 100 * len(split) + number, names)
            rows[split] += [box(image_id, label, corners) for image_id, label, corners in found]
            labels[split] += [(path.stem, label, "1" if label in names else "0") for label in CLASSES]
        photograph(data_set / split / f"{split[0]}_empty.jpg", 0, ())
        labels[split] += [(f"{split[0]}_empty", label, "0") for label in CLASSES]
    for number, (name, label, group) in enumerate(ODD if odd else ()):
        path = data_set / "train" / f"t_{name}.jpg"
        ((_, _, corners),) = photograph(path, 500 + number, ("apple",))
        rows["train"].append(box(path.stem, label, corners, group))
        if name == "flat":
            x0, _, y0, y1 = corners
            rows["train"].append(box(path.stem, "tomato", (x0, x0, y0, y1)))
    make_data_set(folder / "data", rows["train"], rows["validation"], labels["train"], labels["validation"])
    create_training_files(dataset_path=str(data_set), output_path=str(folder / "out"), levels=("1",))
    return data_set, folder / "out"
