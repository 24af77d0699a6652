"""Reads data sets in Pascal VOC's layout.

    Annotations/<name>.xml       one file for each image; objects with name, bndbox, and optionally truncated,
                                 occluded, difficult, group_of
    ImageSets/Main/<set>.txt     the names of a set; without the folder all annotations are one set, `train`
    JPEGImages/<name>.jpg        or another suffix

XML files and images may also lie in one folder, as labelling tools write them. Corners are pixels, counted from 1, the
last one included: a box with xmin = xmax is one pixel wide. (keras-retinanet subtracts 1 from all four corners and
takes them for edges: its boxes end one pixel short on the right and at the bottom.)
"""

import os
import re
from pathlib import Path
from xml.etree import ElementTree

from oid.files import InputError
from oid.images.find import SUFFIXES
from oid.sources.base import Reader, SourceImage, read_size
from oid.text_files import read_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MARKS = ("truncated", "occluded", "difficult", "group_of")


class VocReader(Reader):
    """A folder in Pascal VOC's layout."""

    corners_are_pixels = True

    def __init__(self, path: Path):
        """Finds annotations, images and sets. Raises an InputError if there are no annotations."""
        self._annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
        self._images = path / "JPEGImages" if (path / "JPEGImages").is_dir() else path
        self._xml = {file.stem: file for file in sorted(self._annotations.glob("*.xml"))}
        if not self._xml:
            raise InputError(f"{path} has no annotations: expected Annotations/*.xml, as in Pascal VOC")
        lists = path / "ImageSets" / "Main"
        self._lists = {
            file.stem: file  # a test set may come without annotations
            for file in sorted(lists.glob("*.txt"))
            if any(name in self._xml for name in _read_list(file)[:1000])
        }
        self._files: dict[str, list[Path]] = {}
        for file in sorted(self._images.iterdir()):
            if file.suffix.lower() in SUFFIXES:
                self._files.setdefault(file.stem, []).append(file)
        super().__init__(self._lists or ["train"])

    def read(self, name: str) -> list[SourceImage]:
        file = self._lists.get(name)
        images: dict[str, SourceImage] = {}
        for line, image in enumerate(_read_list(file) if file else self._xml, start=1):
            if image in images:
                self.problems.add(file, f"line {line}", "image listed twice", image, "taken once")
            elif image and (found := self._read_image(image)):
                images[image] = found
        return list(images.values())

    def _read_image(self, name: str) -> SourceImage | None:
        """The image of one annotation file; None, and a problem, if that cannot be read."""
        file = self._xml.get(name, self._annotations / f"{name}.xml")
        try:
            root = ElementTree.fromstring(file.read_bytes())  # expat limits what entities expand to
        except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
            reason = getattr(error, "strerror", None) or error
            self.problems.add(file, "", "annotation file missing or not well-formed XML", reason, "image left out")
            return None
        size = read_size(_text(root, "size/width"), _text(root, "size/height"))
        image = SourceImage(self._image_path(name, root), name, file, declared_size=size)
        for index, element in enumerate(root.iter("object"), start=1):
            corners = [_text(element, f"bndbox/{corner}") for corner in CORNERS]
            marks = {mark: int(_text(element, mark).lower() in ("1", "true", "yes")) for mark in MARKS}
            self.add_box(image, _text(element, "name"), corners, f"object {index}", **marks)
        return image

    def _image_path(self, name: str, root: ElementTree.Element) -> Path:
        """The file with the name of the annotation file, or else the file that the annotation names."""
        named = re.split(r"[/\\]", _text(root, "filename"))[-1]
        files = self._files.get(name, [])
        if files:
            return next((file for file in files if file.name == named), files[0])
        return self._images / (named if named and os.path.isfile(self._images / named) else f"{name}.jpg")


def _read_list(file: Path) -> list[str]:
    """The names of a set, one per line. Lists of single classes have -1, 0 or 1 after the name, which is removed."""
    return [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in read_text(file).splitlines()]


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
