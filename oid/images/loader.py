"""Many images: read in threads, kept in memory where there is room, and one policy for files that cannot be read."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from oid.files import InputError
from oid.images.read import Orientation, read_image
from oid.machine import map_in_threads


class BadImages(InputError):
    """More images cannot be read than are allowed."""


class LoadedImage(NamedTuple):
    """An image, ready for use.

    Attributes:
        pixels: as the loader's `prepare` returned them; not to be changed.
        size: height and width of the image that `prepare` was given.
    """

    pixels: np.ndarray
    size: tuple[int, int]


class ImageLoader:
    """Loads images by number. Memory and files give the same pixels; threads may share a loader.

    An unreadable file is reported once and never tried again.

    Args:
        paths: the files.
        prepare: from uint8 RGB `(H, W, 3)` to what is kept; called in threads.
        orientation: see `oid.images.read`.
        minimum_side, minimum_longer_side: let JPEGs be decoded at a reduced size, see `read_image`.
        cache_bytes: the images that are read first stay in memory up to this number of bytes.
        recent: number of images that stay in memory besides, the most recently used ones.
        max_bad_images: number of unreadable files that is allowed; None = any.
        report: is called with a sentence about each unreadable file, unless it ends the work.
        consequence: ends that sentence, such as "it is not measured".

    Attributes:
        bad: {number: error} of the unreadable files so far.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        prepare: Callable[[np.ndarray], np.ndarray],
        *,
        orientation: Orientation,
        minimum_side: int = 0,
        minimum_longer_side: int = 0,
        cache_bytes: int = 0,
        recent: int = 0,
        max_bad_images: int | None = None,
        report: Callable[[str], None] | None = None,
        consequence: str = "it is left out",
    ):
        self.paths = paths
        self.bad: dict[int, InputError] = {}
        self._prepare = prepare
        self._read_image = functools.partial(
            read_image, orientation=orientation, minimum_side=minimum_side, minimum_longer_side=minimum_longer_side
        )
        self._room = cache_bytes
        self._cache: dict[int, LoadedImage] = {}
        self._recent = functools.lru_cache(maxsize=recent)(self._read)
        self._max_bad_images = max_bad_images
        self._report, self._consequence = report, consequence
        self._lock = threading.Lock()

    def load(self, number: int) -> LoadedImage | None:
        """Returns the image, or None if its file cannot be read.

        Raises:
            BadImages: more than `max_bad_images` files cannot be read, or, if their number is limited, all.
        """
        if number in self.bad:
            return None
        if number in self._cache:
            return self._cache[number]
        try:
            image = self._recent(number)
        except InputError as error:
            self._note_bad(number, error)
            return None
        with self._lock:
            if image.pixels.nbytes <= self._room and number not in self._cache:
                self._room -= image.pixels.nbytes
                self._cache[number] = image
        return image

    def load_all(self, numbers: Iterable[int], *, threads: int, ahead: int) -> Iterator[LoadedImage | None]:
        """Yields what `load` returns, in the order of `numbers`; `ahead` images are read before they are needed."""
        return map_in_threads(self.load, numbers, threads, ahead=ahead)

    def _read(self, number: int) -> LoadedImage:
        pixels = self._read_image(self.paths[number])
        return LoadedImage(self._prepare(pixels), pixels.shape[:2])

    def _note_bad(self, number: int, error: InputError) -> None:
        limit, total = self._max_bad_images, len(self.paths)
        with self._lock:
            if number in self.bad:  # another thread was faster
                return
            if limit is None or len(self.bad) <= limit:  # else another thread is about to raise the same error
                self.bad[number] = error
            count = len(self.bad)
        if limit == 0:
            raise BadImages(str(error))
        if limit is not None and (count > limit or count == total):
            raise BadImages(f"{count} of {total} images cannot be read, and {limit} are allowed; the newest: {error}")
        if self._report:
            allowed = "" if limit is None else f" of at most {limit}"
            self._report(f"{error}; {self._consequence} ({count}{allowed})")


def reduce_to(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image by area averaging until its longer side is at most `side` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
