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
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from oid.files import InputError
from oid.images.find import SUFFIXES
from oid.sources.base import Reader, SourceImage, read_size, read_text

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MARKS = ("truncated", "occluded", "difficult", "group_of")
LINE = "line of the file"  # an attribute that `read_xml` adds; XML allows no spaces in names


class VocReader(Reader):
    """A folder in Pascal VOC's layout."""

    corners_are_pixels = True

    def __init__(self, path: Path):
        """Finds annotations, images and sets. Raises an InputError if there are no annotations."""
        if path.is_file():
            raise InputError(f"{path} is a file: give the folder with Annotations and JPEGImages")
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
        note = f"  {lists} lists no annotated images: all of {self._annotations} are one set"
        super().__init__(self._lists or ["train"], [] if self._lists else [note])

    def read(self, name: str) -> list[SourceImage]:
        """See `Reader`."""
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
            root = read_xml(file)
        except InputError as error:
            problem, _, value = str(error).partition(": ")
            self.problems.add(file, "", problem, value, "image left out")
            return None
        size = read_size(_text(root, "size/width"), _text(root, "size/height"))
        image = SourceImage(self._image_path(name, root), name, file, declared_size=size)
        for index, element in enumerate(root.iter("object"), start=1):
            corners = [_text(element, f"bndbox/{corner}") for corner in CORNERS]
            marks = {mark: int(_text(element, mark).lower() in ("1", "true", "yes")) for mark in MARKS}
            place = f"line {element.get(LINE)}, object {index}"
            self.add_box(image, _text(element, "name"), corners, place, **marks)
        return image

    def _image_path(self, name: str, root: Element) -> Path:
        """The file with the name of the annotation file, or else the file that the annotation names."""
        named = re.split(r"[/\\]", _text(root, "filename"))[-1]
        files = self._files.get(name, [])
        if files:
            return next((file for file in files if file.name == named), files[0])
        return self._images / (named if named and os.path.isfile(self._images / named) else f"{name}.jpg")


def read_xml(path: Path) -> Element:
    """Reads an XML file. Each element has its line number, as text, in the attribute `LINE`.

    Raises an InputError, without the file's name, if it cannot be read, is not well-formed, or has a document type:
    entities defined there can make a few bytes huge.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        builder.start(tag, attributes | {LINE: str(parser.CurrentLineNumber)})

    def refuse(*_: object) -> None:
        raise InputError("XML with a document type declaration")

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
        return builder.close()
    except FileNotFoundError:
        raise InputError("missing annotation file") from None
    except OSError as error:
        raise InputError(f"unreadable: {error.strerror}") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise InputError(f"not well-formed XML: {error}") from None


def _read_list(file: Path) -> list[str]:
    """The names of a set, one per line. Lists of single classes have -1, 0 or 1 after the name, which is removed."""
    return [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in read_text(file).splitlines()]


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
