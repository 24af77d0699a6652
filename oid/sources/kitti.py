"""Reads data sets in KITTI's layout, the official one and that of keras-retinanet.

    training/image_2/*.png   training/label_2/*.txt      official; also with source_path = .../training
    train/images/*           train/labels/*.txt          keras-retinanet, and val/ likewise

A label row is: type truncated occluded alpha left top right bottom, and seven values of the third dimension (and a
score, perhaps), separated by white space. Corners are taken as edges, as KITTI's own evaluation and keras-retinanet
take them. An image without a label file is not annotated and left out; an empty label file is an image without
objects. `DontCare` is no class: nothing is learned there.
"""

import math
from pathlib import Path

from oid.files import InputError
from oid.images.find import find_images
from oid.sources.base import Box, Picture
from oid.sources.problems import Problems

FOLDERS = (("image_2", "label_2"), ("images", "labels"))
CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
OCCLUDED = {"0": 0, "1": 1, "2": 1}  # 3 = not known


class KittiSource:
    """A folder in KITTI's layout; see `description.Source`."""

    corners_are_pixels = False
    ignored_class = "DontCare"

    def __init__(self, path: Path):
        """Opens the folder.

        Raises:
            InputError: there is no folder with labels in it.
        """
        if path.is_file():
            raise InputError(f"{path} is a file: give --source_path the folder with training/ or train/ in it")
        self._root = path
        places = [path, *sorted(folder for folder in path.iterdir() if folder.is_dir())]
        pairs = ((place, place / images, place / labels) for place in places for images, labels in FOLDERS)
        found = [(place, images, labels) for place, images, labels in pairs if images.is_dir() and labels.is_dir()]
        self._folders = {"train" if place == path else place.name: rest for place, *rest in found}
        if not self._folders:
            raise InputError(f"{path} has no labels: expected training/image_2 and label_2, or train/images and labels")
        self.sets = list(self._folders)
        self._found: set[str] = set()

    def classes(self) -> list[str]:
        """KITTI's that occur, in its order; then others in the order of the alphabet."""
        found = self._found - {self.ignored_class}
        return [name for name in CLASSES if name in found] + sorted(found - set(CLASSES))

    def read(self, name: str, problems: Problems) -> list[Picture]:
        """See `description.Source`."""
        image_folder, label_folder = self._folders[name]
        images = find_images(image_folder)
        labels = {file.stem: file for file in sorted(label_folder.glob("*.txt"))}
        for stem in sorted(images.keys() - labels.keys()):
            problems.add(images[stem], "", "image without a label file", "", "image left out")
        pictures = []
        for stem, file in labels.items():
            path = images.get(stem, image_folder / f"{stem}.png")
            # the name says the set, too: KITTI counts from 000000 in each
            picture = Picture(path, f"{name}/{stem}", file)
            pictures.append(picture)
            self._read_labels(picture, problems)
        return pictures

    def _read_labels(self, picture: Picture, problems: Problems) -> None:
        """Adds the boxes of a label file."""
        try:
            lines = picture.file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{picture.file}: byte {error.start} is not UTF-8: save it as UTF-8") from None
        for number, line in enumerate(lines, start=1):
            values = line.split()
            if not values:
                continue
            try:
                corners = tuple(float(value) for value in values[4:8])
                truncated = float(values[1])
                if len(corners) < 4 or not all(map(math.isfinite, corners)):
                    raise ValueError
            except (ValueError, IndexError):
                place, expected = f"line {number}", "type truncated occluded alpha left top right bottom"
                problems.add(picture.file, place, f"row that is not {expected}", line, "box left out")
                picture.uncertain.add(values[0])
                continue
            self._found.add(values[0])
            flags = {"truncated": int(truncated > 0), "occluded": OCCLUDED.get(values[2], -1)}
            picture.boxes.append(Box(values[0], corners, f"line {number}", **flags))
