"""Lists the images of a folder by their ids."""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

from oid.files import InputError, require_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageList(NamedTuple):
    """The images of a folder; two million take 200 MB."""

    folder: str
    names: list[str]  # paths below the folder, ordered by id
    passed_over: list[tuple[str, str]]  # (path, reason) of the other files, ordered by path


def image_id(name: str) -> str:
    """The name of the file without folder and last suffix."""
    return name[name.rfind("/") + 1 : name.rfind(".")]


def list_images(folder: str | os.PathLike) -> ImageList:
    """Lists the images of a folder: flat, or in sub-folders named by the id's first three characters.

    Images have a suffix of `SUFFIXES`, in upper or lower case, and a name in UTF-8. Hidden files, and folders with
    longer names, are ignored.

    Raises:
        InputError: there is no such folder, or two files have one id.
    """
    folder = os.fspath(require_folder(folder, "give the folder that holds the images"))
    names: list[str] = []
    passed_over: list[tuple[str, str]] = []

    def scan(place: str, prefix: str) -> None:
        """Sorts the files of a folder, and of those below it, into `names` and `passed_over`."""
        with os.scandir(place) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_symlink() and not os.path.exists(entry.path):
                    passed_over.append((entry.path, "is a link that leads nowhere: replace it or remove it"))
                elif entry.is_file():
                    if reason := _problem_of_name(name, prefix):
                        passed_over.append((entry.path, reason))
                    else:
                        names.append(f"{prefix}/{name}" if prefix else name)
                elif not prefix and len(name) == 3 and entry.is_dir():
                    scan(entry.path, name)

    scan(folder, "")
    names.sort(key=image_id)
    for place, (first, second) in enumerate(itertools.pairwise(map(image_id, names))):
        if first == second:
            paths = sorted(os.path.join(folder, name) for name in names[place : place + 2])
            raise InputError(f"{paths[0]} and {paths[1]} have the same image id {first}: keep one of them")
    return ImageList(folder, names, sorted(passed_over))


def find_images(folder: str | os.PathLike) -> dict[str, Path]:
    """As `list_images`, but returns {id: path}, ordered by id."""
    images = list_images(folder)
    return {image_id(name): Path(images.folder, name) for name in images.names}


def _problem_of_name(name: str, prefix: str) -> str:
    """Why a file in a sub-folder `prefix` does not count as an image; "" if it does."""
    dot = name.rfind(".")
    if name[dot:].lower() not in SUFFIXES or dot <= 0:
        return f"has none of the suffixes {' '.join(SUFFIXES)}: convert it or remove it"
    if name.encode(errors="ignore") != os.fsencode(name):
        return "has a name that is not UTF-8: rename it"
    if not name.startswith(prefix):
        return f"lies in a folder {prefix} that its name does not begin with: move it"
    return ""
