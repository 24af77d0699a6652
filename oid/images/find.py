"""The images of a folder, by their ids."""

import os
from pathlib import Path
from typing import NamedTuple

from oid.files import InputError, require_folder

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageList(NamedTuple):
    """The images of a folder; two million take 200 MB.

    Attributes:
        folder: where they lie.
        names: their paths below it, ordered by id.
        passed_over: (path, reason) of the files that are no images by their name or place, in the order of the paths.
    """

    folder: str
    names: list[str]
    passed_over: list[tuple[str, str]]


def image_id(name: str) -> str:
    """The id of an image: its file's name without the last suffix."""
    return name[name.rfind("/") + 1 : name.rfind(".")]


def list_images(folder: str | os.PathLike) -> ImageList:
    """Lists the images of a folder: flat, or in sub-folders named by the id's first three characters.

    Images have a suffix of `SUFFIXES`, in upper or lower case, and a name in UTF-8, as the tables have. Hidden files
    and folders with longer names do not count.

    Raises:
        InputError: there is no such folder, or two files have one id.
    """
    folder = os.fspath(require_folder(folder, "give the folder that holds the images"))
    names: list[str] = []
    passed_over: list[tuple[str, str]] = []

    def look(place: str, prefix: str) -> None:
        with os.scandir(place) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_file():
                    reason = _why_no_image(name, prefix)
                    if reason:
                        passed_over.append((entry.path, reason))
                    else:
                        names.append(f"{prefix}/{name}" if prefix else name)
                elif not prefix and len(name) == 3 and entry.is_dir():
                    look(entry.path, name)
                elif entry.is_symlink() and not entry.is_dir():
                    passed_over.append((entry.path, "is a link to a file that is not there: replace it or remove it"))

    look(folder, "")
    names.sort(key=image_id)
    before = last = ""
    for name in names:
        this = image_id(name)
        if this == last and before:
            first, second = sorted(os.path.join(folder, path) for path in (before, name))
            raise InputError(f"{first} and {second} have the same image id {this}: keep one of them")
        before, last = name, this
    return ImageList(folder, names, sorted(passed_over))


def find_images(folder: str | os.PathLike) -> dict[str, Path]:
    """Finds the images of a folder as `list_images` does.

    Returns:
        {id: path}, ordered by id. Empty if there are none.

    Raises:
        InputError: there is no such folder, or two files have one id.
    """
    images = list_images(folder)
    return {image_id(name): Path(images.folder, name) for name in images.names}


def _why_no_image(name: str, prefix: str) -> str:
    """Why a file does not count as an image; "" where it does."""
    dot = name.rfind(".")
    if name[dot:].lower() not in SUFFIXES or dot <= 0:
        return f"has none of the suffixes {' '.join(SUFFIXES)}: convert it or remove it"
    if not name.isascii():
        try:
            name.encode()
        except UnicodeEncodeError:
            return "has a name that is not UTF-8: rename it"
    if not name.startswith(prefix):
        return f"lies in a folder {prefix} that its name does not begin with: move it"
    return ""
