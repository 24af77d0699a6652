"""Reads data sets in KITTI's layout, the official one and that of keras-retinanet.

    training/image_2/*.png   training/label_2/*.txt      official; the path may also be that of training/
    train/images/*           train/labels/*.txt          keras-retinanet, and val/ likewise

A label row is: type truncated occluded alpha left top right bottom, and seven values of the third dimension (and
perhaps a score), separated by white space. Corners are edges, as in KITTI's own evaluation and keras-retinanet. An
image without a label file is not annotated and left out; an empty label file means an image without objects. `DontCare`
is no class: nothing is learned in such an area.
"""

import math
from pathlib import Path

from oid.files import InputError
from oid.images.find import find_images
from oid.sources.base import Reader, SourceImage, number
from oid.text_files import read_text

FOLDERS = (("image_2", "label_2"), ("images", "labels"))
CLASSES = ("Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Misc")
OCCLUDED = {"0": 0, "1": 1, "2": 1}  # 3 = not known
ROW = "type truncated occluded alpha left top right bottom"


class KittiReader(Reader):
    """A folder in KITTI's layout."""

    ignored_class = "DontCare"

    def __init__(self, path: Path):
        """Finds the folders with labels. Raises an InputError if there are none."""
        self._folders = {}
        for place in [path, *sorted(path.glob("*"))]:
            for images, labels in FOLDERS:
                if (place / images).is_dir() and (place / labels).is_dir():
                    self._folders["train" if place == path else place.name] = (place / images, place / labels)
        if not self._folders:
            raise InputError(f"{path} has no labels: expected training/image_2 and label_2, or train/images and labels")
        super().__init__(self._folders)

    def classes(self) -> list[str]:
        """KITTI's own classes, in its order, then the others by the alphabet; only those that occur."""
        found = self.found - {self.ignored_class}
        return [name for name in CLASSES if name in found] + sorted(found - set(CLASSES))

    def read(self, name: str) -> list[SourceImage]:
        """The images of a folder that have a label file."""
        image_folder, label_folder = self._folders[name]
        paths = find_images(image_folder)
        labels = {file.stem: file for file in sorted(label_folder.glob("*.txt"))}
        for stem in sorted(paths.keys() - labels.keys()):
            self.problems.add(paths[stem], "", "image without a label file", "", "image left out")
        images = []
        for stem, file in labels.items():
            path = paths.get(stem, image_folder / f"{stem}.png")
            images.append(SourceImage(path, f"{name}/{stem}", file))  # the numbers of each set begin with 000000
            for line, text in enumerate(read_text(file).splitlines(), start=1):
                values = text.split()
                if len(values) >= 8 and not math.isnan(truncated := number(values[1])):
                    marks = {"truncated": int(truncated > 0), "occluded": OCCLUDED.get(values[2], -1)}
                    self.add_box(images[-1], values[0], values[4:8], f"line {line}", **marks)
                elif values:
                    self.leave_out_box(images[-1], values[0], f"line {line}", f"row that is not {ROW}", text.strip())
        return images
