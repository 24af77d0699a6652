"""Reads COCO's JSON files: images, annotations with bbox [x, y, width, height] in pixels, categories.

    annotations/instances_<set>.json    images in <set>/, images/<set>/ or images/
    <set>/_annotations.coco.json        images in the same folder
    one JSON file                       images in the same folder, or in images/ there

`iscrowd` becomes a group-of box. Classes are in the order of the category ids; categories with one name are one class.
Coordinates are edges: the corners are x, y, x + width, y + height.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

from oid.files import InputError
from oid.sources.base import Reader, SourceImage, number, read_size
from oid.text_files import read_text

PREFIX = "instances_"
ROBOFLOW = "_annotations.coco.json"


class CocoReader(Reader):
    """A folder with annotation files and images, or one annotation file."""

    def __init__(self, path: Path):
        """Finds the annotation files. Raises an InputError if there are none."""
        patterns = (f"annotations/{PREFIX}*.json", "*.json", "annotations/*.json", f"*/{ROBOFLOW}")
        files = [path] if path.is_file() else next(filter(None, (sorted(path.glob(each)) for each in patterns)), [])
        if not files:
            raise InputError(f"{path} has no annotations: expected annotations/{PREFIX}<set>.json, as in COCO")
        self._files = {f.parent.name if f.name == ROBOFLOW else f.stem.removeprefix(PREFIX): f for f in files}
        super().__init__(self._files)

    def read(self, name: str) -> list[SourceImage]:
        """The images of a set, with boxes of the categories that the file describes."""
        file = self._files[name]
        content = _read_json(file)
        names = self._read_categories(content["categories"], file)
        images = self._read_images(content["images"], file, name)
        for place, annotation in self._elements(content["annotations"], "annotations", file):
            image = images.get(_as_id(annotation.get("image_id")))
            class_name = names.get(_as_id(annotation.get("category_id")))
            if image is None or class_name is None:
                value = f"{annotation.get('image_id')}, {annotation.get('category_id')}"
                self.problems.add(file, place, "unknown image or category", value, "box left out")
                continue
            bbox = annotation.get("bbox")
            values = bbox if isinstance(bbox, list) and len(bbox) == 4 else [math.nan] * 4
            x, y, width, height = map(number, values)
            is_crowd = int(annotation.get("iscrowd") == 1)
            self.add_box(image, class_name, (x, y, x + width, y + height), place, group_of=is_crowd)
        return list(images.values())

    def _read_categories(self, categories: list, file: Path) -> dict[int, str]:
        """{id: name} of one file; adds the names to the classes of the source."""
        names: dict[int, str] = {}
        for index, category in enumerate(categories):
            place = f"categories[{index}]"
            known = category if isinstance(category, dict) else {}
            category_id, name = known.get("id"), known.get("name")
            name = name.strip() if isinstance(name, str) else ""
            if not name or not isinstance(category_id, int) or category_id in names:
                raise InputError(f"{file}, {place}: {category!r} needs a name, and a whole number of its own as id")
            if name in names.values():
                self.problems.add(file, place, "category name occurs twice", name, "taken as one class")
            names[category_id] = name
            self.class_ids[name] = min(category_id, self.class_ids.get(name, category_id))
        return names

    def _read_images(self, elements: list, file: Path, name: str) -> dict[object, SourceImage]:
        """{id: image} of one file."""
        root = file.parent.parent if file.parent.name == "annotations" or file.name == ROBOFLOW else file.parent
        folders = [file.parent, root / name, root / "images" / name, root / "images", root]
        images: dict[object, SourceImage] = {}
        paths = set()
        for place, element in self._elements(elements, "images", file):
            path, image_id = element.get("file_name"), _as_id(element.get("id"))
            path = path.replace("\\", "/") if isinstance(path, str) else ""
            if not path or image_id is None or image_id in images or path in paths:
                self.problems.add(file, place, "image without file_name and id of its own", path, "image left out")
                continue
            paths.add(path)
            folder = next((folder for folder in folders if os.path.isfile(folder / path)), folders[0])
            folders.sort(key=lambda other, last=folder: other != last)  # the next image is likely there, too
            size = read_size(element.get("width"), element.get("height"))
            full_name = os.path.splitext(f"{name}/{path}")[0]
            images[image_id] = SourceImage(folder / path, full_name, file, place, declared_size=size)
        return images

    def _elements(self, elements: list, key: str, file: Path) -> Iterator[tuple[str, dict]]:
        """Yields the place and the content of each element. An element that is not an object is a problem."""
        for index, element in enumerate(elements):
            place = f"{key}[{index}]"
            if not isinstance(element, dict):
                self.problems.add(file, place, "element that is not an object", repr(element)[:50], "left out")
                continue
            yield place + (f" (id {element['id']})" if _as_id(element.get("id")) is not None else ""), element


def _read_json(file: Path) -> dict:
    """The content of an annotation file, with its three lists."""
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not JSON of a data set: {error}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{file} has no list {key!r}: expected COCO's images, annotations and categories")
    return content


def _as_id(value: object) -> object:
    """A number or text as it is; None for anything else."""
    return value if isinstance(value, int | float | str) else None
