"""The prediction files of several models, aligned: common images, common labels, read in blocks of images."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from oid.files import InputError
from oid.fusion.fuse import Boxes
from oid.machine import map_in_threads
from oid.predictions.files import PredictionFile

MAX_SCORE = 1e9  # with weights up to 1e6 the sums of larger scores could leave the range of float32


class ModelFiles:
    """Reads the same images of several prediction files. Reading raises an InputError for a score beyond `MAX_SCORE`.

    Args:
        files: one per model.
        image_ids: the images to read; None = all images of the first file, then those that only later files have.

    Attributes:
        image_ids: the images to read, in this order.
        labels: the common label vocabulary.
        missing: per model, the number of these images that its file does not have: they have no boxes.
    """

    def __init__(self, files: Sequence[PredictionFile], image_ids: Sequence[str] | None = None):
        found = itertools.chain.from_iterable(file.image_ids for file in files)
        self.image_ids = list(dict.fromkeys(found if image_ids is None else image_ids))
        self.labels = list(dict.fromkeys(itertools.chain.from_iterable(file.labels for file in files)))
        self._files = files
        self._rows = [_positions(self.image_ids, file.image_ids) for file in files]
        self._label_numbers = [_positions(file.labels, self.labels) for file in files]
        self.missing = [int(np.count_nonzero(rows < 0)) for rows in self._rows]

    def blocks(self, images_per_block: int) -> Iterator[tuple[slice, list[Boxes]]]:
        """Returns slices of `image_ids`, with the boxes of each model there; a thread reads one block ahead."""
        count = len(self.image_ids)
        blocks = [slice(first, min(first + images_per_block, count)) for first in range(0, count, images_per_block)]
        return zip(blocks, map_in_threads(self._read, blocks, threads=1), strict=True)

    def _read(self, images: slice) -> list[Boxes]:
        models = []
        for file, rows, label_numbers in zip(self._files, self._rows, self._label_numbers, strict=True):
            rows = rows[images]
            found = file.read(rows[rows >= 0])
            for box in np.flatnonzero(np.abs(found.scores) > MAX_SCORE)[:1]:
                image_id = found.image_ids[found.image_index[box]]
                problem = (
                    f"the score {found.scores[box]:g} of image {image_id!r} is not from {-MAX_SCORE:g} to {MAX_SCORE:g}"
                )
                raise InputError(f"{file.path}: {problem}: scale the scores")
            sizes = np.zeros(len(rows), np.int64)
            sizes[rows >= 0] = np.diff(found.offsets())
            offsets = np.concatenate([[0], np.cumsum(sizes)])
            models.append(Boxes(found.boxes, found.scores, label_numbers[found.label_index], offsets))
        return models


def _positions(wanted: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """`(len(wanted),)` int64 positions in `texts`; -1 for those that are missing there."""
    position = {text: number for number, text in enumerate(texts)}
    return np.array([position.get(text, -1) for text in wanted], dtype=np.int64)
