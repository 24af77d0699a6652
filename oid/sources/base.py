"""A data set in memory, whatever its format: its classes, its pictures, their boxes in pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from oid.sources.problems import Problems

SPLITS = ("train", "validation", "test")


@dataclass(slots=True)
class Box:
    """One annotated object.

    Attributes:
        class_name: the source's name for its class.
        corners: x0, y0, x1, y1 in pixels. After `oid.sources.clean` they are the edges of an area: the first pixel
            of a row reaches from 0 to 1, so that x1 - x0 is the width, and the right edge of the image is its width.
        place: where the source has it: a line or an element.
        occluded, truncated, group_of: 1 yes, 0 no, -1 not known.
        difficult: Pascal VOC's mark; Open Images has no such column, so it gets one of its own.
    """

    class_name: str
    corners: tuple[float, float, float, float]
    place: str
    occluded: int = 0
    truncated: int = 0
    group_of: int = 0
    difficult: int = 0


@dataclass(slots=True)
class Picture:
    """One annotated image.

    Attributes:
        path: the image file.
        name: the source's name for it, with the folders that tell it from others, without suffix; `/` between them.
        file: the annotation file.
        place: where the annotation file speaks of it, "" for the whole file.
        boxes: the objects.
        declared_size: width and height as the annotation file says, None where it does not.
        uncertain: classes of boxes that could not be used: nobody can say that the image has none of these.
        size: width and height of the stored pixels; (0, 0) until they are read.
        md5: of the file, hexadecimal; "" until it is read.
        image_id: unique in the data set, fit for file names and CSV; "" until it is given.
    """

    path: Path
    name: str
    file: Path
    place: str = ""
    boxes: list[Box] = field(default_factory=list)
    declared_size: tuple[int, int] | None = None
    uncertain: set[str] = field(default_factory=set)
    size: tuple[int, int] = (0, 0)
    md5: str = ""
    image_id: str = ""


class Source(Protocol):
    """A data set on disk, opened by one of the readers.

    Attributes:
        sets: the names of its sets of images, for example "train", "val", "trainval".
        corners_are_pixels: box corners name the first and the last pixel, counted from 1, instead of edges.
        ignored_class: boxes of this name are areas where any class may be; None where the format has no such thing.
    """

    sets: Sequence[str]
    corners_are_pixels: bool
    ignored_class: str | None

    def read(self, name: str, problems: Problems) -> list[Picture]:
        """The pictures of one set, unusable entries left out and added to `problems`."""

    def classes(self) -> list[str]:
        """The classes in the order of the network's outputs; to be asked after the sets are read."""
