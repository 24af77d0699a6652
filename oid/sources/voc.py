"""Reads data sets in Pascal VOC's paths.

    Annotations/<name>.xml       one file for each image; objects with name, bndbox, and optionally truncated,
                                 occluded, difficult, group_of
    ImageSets/Main/<set>.txt     the names of a set; without the folder all annotations are one set, `train`
    JPEGImages/<name>.jpg        or another suffix

A folder that holds XML files and images side by side, as labelling tools write it, is read, too. Corners are those of
the format: pixels, counted from 1, the last one included. (keras-retinanet subtracts 1 from all four, and takes what
it gets for edges: its boxes end one pixel short on the right and at the bottom.)
"""

import math
import os
import re
from pathlib import Path
from xml.etree.ElementTree import Element

from oid.files import InputError
from oid.images.find import SUFFIXES
from oid.sources.base import Box, Picture
from oid.sources.problems import Problems
from oid.sources.xml_files import LINE, XmlError, read_xml


class VocSource:
    """A folder in Pascal VOC's layout; see `description.Source`."""

    corners_are_pixels = True
    ignored_class = None

    def __init__(self, path: Path):
        """Opens the folder.

        Raises:
            InputError: there are no annotations in it.
        """
        if path.is_file():
            raise InputError(f"{path} is a file: give --source_path the folder with Annotations and JPEGImages")
        self._annotations = path / "Annotations" if (path / "Annotations").is_dir() else path
        self._images = path / "JPEGImages" if (path / "JPEGImages").is_dir() else path
        self._xml = {file.stem: file for file in sorted(self._annotations.glob("*.xml"))}
        if not self._xml:
            raise InputError(f"{path} has no annotations: expected Annotations/*.xml, as Pascal VOC has them")
        self._lists: dict[str, Path | None] = {}
        for listing in sorted((path / "ImageSets" / "Main").glob("*.txt")):
            names = _listed(listing)
            if any(name in self._xml for name in names[:1000]):  # a test set may come without annotations
                self._lists[listing.stem] = listing
        if not self._lists:
            print(f"{path / 'ImageSets' / 'Main'} lists no annotated images: all of {self._annotations} are one set")
            self._lists = {"train": None}
        self.sets = list(self._lists)
        self._files: dict[str, list[Path]] = {}
        for file in sorted(self._images.iterdir()):
            if file.suffix.lower() in SUFFIXES:
                self._files.setdefault(file.stem, []).append(file)
        self._found: set[str] = set()

    def classes(self) -> list[str]:
        """All that occur, in the order of the alphabet."""
        return sorted(self._found)

    def read(self, name: str, problems: Problems) -> list[Picture]:
        """See `description.Source`."""
        listing = self._lists[name]
        pictures: dict[str, Picture] = {}
        for line, image in enumerate(list(self._xml) if listing is None else _listed(listing), start=1):
            if not image or image in pictures:
                if image:
                    problems.add(listing, f"line {line}", "image listed twice", image, "taken once")
                continue
            picture = self._read_image(image, problems)
            if picture is not None:
                pictures[image] = picture
        return list(pictures.values())

    def _read_image(self, image: str, problems: Problems) -> Picture | None:
        """The picture of one annotation file; None, and a problem, where it cannot be read."""
        file = self._xml.get(image, self._annotations / f"{image}.xml")
        try:
            root = read_xml(file)
        except XmlError as error:
            problem, _, value = str(error).partition(": ")
            problems.add(file, "", problem, value, "image left out")
            return None
        picture = Picture(self._image_path(image, root), image, file, declared_size=_size(root))
        for number, element in enumerate(root.iter("object"), start=1):
            box = _read_object(element, f"line {element.get(LINE)}, object {number}", picture, problems)
            if box is not None:
                self._found.add(box.class_name)
                picture.boxes.append(box)
        return picture

    def _image_path(self, image: str, root: Element) -> Path:
        """The image file: by the name of the annotation file, of several that which it names; else what it names."""
        named = re.split(r"[/\\]", root.findtext("filename", "").strip())[-1]
        files = self._files.get(image, [])
        same = [file for file in files if file.name == named]
        if files:
            return (same or files)[0]
        return self._images / named if named and os.path.isfile(self._images / named) else self._images / f"{image}.jpg"


def _listed(listing: Path) -> list[str]:
    """The names of a set, one for each line; what lists of single classes have behind the name, -1, 0 or 1, is cut."""
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{listing}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    return [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines]


def _size(root: Element) -> tuple[int, int] | None:
    """Width and height, 0 for what is no number; None without the element."""
    if root.find("size") is None:
        return None
    values = [_number(root.findtext(f"size/{side}", "")) for side in ("width", "height")]
    return tuple(0 if math.isnan(value) else int(value) for value in values)


def _read_object(element: Element, place: str, picture: Picture, problems: Problems) -> Box | None:
    """The box of one object; None, and a problem, where something is missing or no number."""
    class_name = (element.findtext("name") or "").strip()
    texts = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in ("xmin", "ymin", "xmax", "ymax")]
    corners = tuple(map(_number, texts))
    if not class_name or any(map(math.isnan, corners)):
        problem = "corner that is missing or no number" if class_name else "box without a class"
        problems.add(picture.file, place, problem, f"{class_name} {','.join(texts)}", "box left out")
        if class_name:
            picture.uncertain.add(class_name)
        return None
    flags = {flag: _flag(element, flag) for flag in ("truncated", "occluded", "difficult", "group_of")}
    return Box(class_name, corners, place, **flags)


def _number(text: str) -> float:
    """A finite number, or NaN."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _flag(element: Element, name: str) -> int:
    """1 where the element says so, else 0."""
    return int((element.findtext(name) or "").strip().lower() in ("1", "true", "yes"))
