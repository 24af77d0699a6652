"""Reads COCO's JSON files: images, annotations with bbox [x, y, width, height] in pixels, categories.

    annotations/instances_<set>.json    images in <set>/, images/<set>/ or images/
    <set>/_annotations.coco.json        images beside it
    one JSON file                       images beside it, or in images/ there

`iscrowd` becomes a group-of box. Categories are in the order of their ids; several of one name are one class. Pixels
are edges: the corners are x, y, x + width, y + height.
"""

import json
import math
import os
from pathlib import Path

from oid.files import InputError
from oid.sources.base import Box, Picture
from oid.sources.problems import Problems

PREFIX = "instances_"
ROBOFLOW = "_annotations.coco.json"


class CocoSource:
    """A folder with annotation files and images, or one annotation file; see `description.Source`."""

    corners_are_pixels = False
    ignored_class = None

    def __init__(self, path: Path):
        """Finds the annotation files.

        Raises:
            InputError: there is none.
        """
        self._root = path
        if path.is_file():
            in_a_folder = path.parent.name == "annotations" or path.name == ROBOFLOW
            self._root = path.parent.parent if in_a_folder else path.parent
            self._files = {path.parent.name if path.name == ROBOFLOW else path.stem.removeprefix(PREFIX): path}
        else:
            files = sorted((path / "annotations").glob(f"{PREFIX}*.json")) or sorted(path.glob("*.json"))
            files = files or sorted((path / "annotations").glob("*.json"))
            self._files = {file.stem.removeprefix(PREFIX): file for file in files}
            if not files:
                self._files = {file.parent.name: file for file in sorted(path.glob(f"*/{ROBOFLOW}"))}
        if not self._files:
            raise InputError(f"{path} has no annotations: expected annotations/{PREFIX}<set>.json, as COCO has them")
        self.sets = list(self._files)
        self._categories: dict[str, int] = {}  # {name: its smallest id}

    def classes(self) -> list[str]:
        """All categories in the order of their ids, with or without boxes."""
        return sorted(self._categories, key=self._categories.get)

    def read(self, name: str, problems: Problems) -> list[Picture]:
        """See `description.Source`."""
        file = self._files[name]
        content = _read_json(file)
        names = self._read_categories(content["categories"], file, problems)
        folders = [file.parent, self._root / name, self._root / "images" / name, self._root / "images", self._root]
        pictures: dict[object, Picture] = {}
        paths = set()
        for place, image in _elements(content, "images", file, problems):
            path = image.get("file_name")
            if not isinstance(path, str) or not path or image.get("id") is None:
                problems.add(file, place, "image without file_name or id", path, "image left out")
                continue
            path = path.replace("\\", "/")
            if image["id"] in pictures or path in paths:
                problems.add(file, place, "image id or file_name a second time", path, "image left out")
                continue
            paths.add(path)
            folder = next((folder for folder in folders if os.path.isfile(folder / path)), folders[0])
            folders.sort(key=lambda other, last=folder: other != last)  # the next is where this one was
            spelled = os.path.splitext(f"{name}/{path}")[0]
            pictures[image["id"]] = Picture(folder / path, spelled, file, place, declared_size=_size(image))
        for place, annotation in _elements(content, "annotations", file, problems):
            picture = pictures.get(_hashable(annotation.get("image_id")))
            if picture is None:
                problems.add(file, place, "annotation of an unknown image", annotation.get("image_id"), "left out")
                continue
            _add_box(picture, annotation, place, names, problems)
        return list(pictures.values())

    def _read_categories(self, categories: list, file: Path, problems: Problems) -> dict[int, str]:
        """{id: name} of a file; adds the names to the classes of the source."""
        names: dict[int, str] = {}
        for index, category in enumerate(categories):
            known = category if isinstance(category, dict) else {}
            number, name = known.get("id"), known.get("name")
            if not isinstance(number, int) or not isinstance(name, str) or not name.strip():
                raise InputError(f"{file}, categories[{index}]: {category!r} needs a whole number id and a name")
            if number in names:
                raise InputError(f"{file}, categories[{index}]: id {number} is there already: give each its own")
            name = name.strip()
            if name in names.values():
                problems.add(file, f"categories[{index}]", "category name a second time", name, "taken as one class")
            names[number] = name
            self._categories[name] = min(number, self._categories.get(name, number))
        return names


def _read_json(file: Path) -> dict:
    """The content of an annotation file, its three lists checked to be there."""
    try:
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: byte {error.start} is not UTF-8: save it as UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ": too deep"
        raise InputError(f"{file}{where}: it is not JSON") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{file} has no list {key!r}: expected COCO's images, annotations and categories")
    return content


def _elements(content: dict, key: str, file: Path, problems: Problems):
    """Yields (place, element) of a list; what is no object is a problem."""
    for index, element in enumerate(content[key]):
        if not isinstance(element, dict):
            problems.add(file, f"{key}[{index}]", "element that is no object", repr(element)[:50], "left out")
            continue
        number = _hashable(element.get("id"))
        element["id"] = number
        yield f"{key}[{index}]" + ("" if number is None else f" (id {number})"), element


def _add_box(picture: Picture, annotation: dict, place: str, names: dict[int, str], problems: Problems) -> None:
    """Adds the box of one annotation, or tells why not."""
    category = _hashable(annotation.get("category_id"))
    if category not in names:
        problems.add(picture.file, place, "unknown category", category, "box left out")
        return
    bbox = annotation.get("bbox")
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
    if not numbers:
        problems.add(picture.file, place, "bbox that is missing or no four numbers", repr(bbox)[:50], "box left out")
        picture.uncertain.add(names[category])
        return
    x, y, width, height = map(float, bbox)
    crowd = int(annotation.get("iscrowd") in (1, True))
    picture.boxes.append(Box(names[category], (x, y, x + width, y + height), place, group_of=crowd))


def _size(image: dict) -> tuple[int, int] | None:
    """Width and height, 0 for what is no number; None where the file has neither."""
    sides = [image.get(side) for side in ("width", "height")]
    return None if sides == [None, None] else tuple(int(side) if _is_number(side) else 0 for side in sides)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _hashable(value: object) -> object:
    """Ids as they are, numbers or text; None for what cannot be one."""
    return value if isinstance(value, int | float | str) else None
