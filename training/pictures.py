"""The pictures of a data set in memory: reduced to what the network needs, as many as may stay."""

import collections
import threading
from pathlib import Path

import cv2
import numpy as np

from oid.images.read import Orientation, read_image

# Pictures have at most so many times the network's side; for 320 that is 1024 / 2, to which a JPEG is decoded
# quickly. The largest zoom, of 1.7, enlarges them hardly, its stretch towards a square and a larger size of
# --multi_scale a little, a small patch of --crop ssd to twice its pixels and more; to spare that the cache would need
# the square of more.
KEPT_SIDE = 1.6
RECENT_PICTURES = 160  # besides the cache: those of the last batches, which the next mosaics show again
RECENT_BYTES = 2**28


class Pictures:
    """Pictures by number, from memory or from their files; both ways give the same pixels.

    A picture's longer side is at most `KEPT_SIDE` times the network's. A JPEG is decoded at a half, a quarter or an
    eighth of its size where that leaves so many pixels; what is still larger is reduced by area averaging.

    Args:
        paths: the files.
        image_size: side of the network's input in pixels.
        orientation: "stored" or "exif", see `oid.images.read.read_image`.
        cache_bytes: pictures stay in memory up to so many bytes, those that are read first. Any other is kept until
            `RECENT_PICTURES` more have been read, or `RECENT_BYTES`.

    Attributes:
        cached_bytes: how much of `cache_bytes` is in use.
    """

    def __init__(self, paths: list[Path], *, image_size: int, orientation: Orientation, cache_bytes: int):
        self.paths = paths
        self.side = round(KEPT_SIDE * image_size)
        self.orientation = orientation
        self.cache_bytes = cache_bytes
        self.cached_bytes = 0
        self._cache: dict[int, np.ndarray] = {}
        self._recent: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._recent_bytes = 0
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> np.ndarray:
        """uint8 `(height, width, 3)`, RGB, not to be changed.

        Raises:
            InputError: the file cannot be read.
        """
        picture = self._cache.get(number)
        if picture is not None:
            return picture
        with self._lock:
            picture = self._recent.get(number)
            if picture is not None:
                self._recent.move_to_end(number)
                return picture
        picture = self._read(number)
        with self._lock:
            self._keep(number, picture)
        return picture

    def _read(self, number: int) -> np.ndarray:
        path = self.paths[number]
        return reduce_to(read_image(path, orientation=self.orientation, minimum_longer_side=self.side), self.side)

    def _keep(self, number: int, picture: np.ndarray) -> None:
        if number in self._cache or number in self._recent:  # another thread was faster
            return
        if self.cached_bytes + picture.nbytes <= self.cache_bytes:
            self.cached_bytes += picture.nbytes
            self._cache[number] = picture
            return
        self._recent[number] = picture
        self._recent_bytes += picture.nbytes
        while len(self._recent) > RECENT_PICTURES or self._recent_bytes > RECENT_BYTES:
            self._recent_bytes -= self._recent.popitem(last=False)[1].nbytes


def reduce_to(picture: np.ndarray, side: int) -> np.ndarray:
    """Shrinks a picture so that its longer side is at most `side`."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
