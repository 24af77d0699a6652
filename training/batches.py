"""Batches as a pure function: `batch(step)` depends on the seed and the step alone, whoever asks and in which order.

So threads do not change results, the images of any batch are known afterwards, and a resumed training goes on with the
batches that it would have seen.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Literal

import cv2
import keras
import numpy as np

from oid.files import InputError
from oid.images import read_image
from training.augmentation import Sample, augment
from training.data_set import DataSet

CACHED_SIDE = 1.5  # cached pictures have at most so many times the network's side: enough for any zoom we draw
MAX_REGIONS = 128  # per picture; those beyond are left out, counted and said


class Batches:
    """The batches of one training.

    Args:
        data: the images and their boxes.
        image_size: side of the network's input in pixels.
        batch_size: images per batch.
        seed: of everything random.
        max_gt_boxes: boxes per image of a batch; those beyond are left out, and counted by `boxes_left_out`.
        mosaic: share of the images that are mosaics of four.
        mixup: share of the images that are blended with another.
        crop: "zoom" or "ssd", see `training.crops`.
        resize: "warp" or "letterbox", how the network's inference will see pictures.
        close_at: the first step without mosaics and mixup, so that the end of the training sees whole pictures.
        orientation: "stored" or "exif", see `oid.images.read_image`.
        cache_bytes: pictures are kept in memory, reduced, up to so many bytes.
        weights: how often each image is drawn, see `training.sampling.image_weights`; None = all alike.
        num_classes: of the network; needed for `verified`.
        verified: whether targets say which classes are verified where.
        regions: whether targets have the ignored regions.
    """

    def __init__(
        self,
        data: DataSet,
        *,
        image_size: int,
        batch_size: int,
        seed: int = 0,
        max_gt_boxes: int = 100,
        mosaic: float = 0.5,
        mixup: float = 0.0,
        crop: Literal["zoom", "ssd"] = "zoom",
        resize: Literal["warp", "letterbox"] = "warp",
        close_at: int = 0,
        orientation: str = "stored",
        cache_bytes: int = 2 * 2**30,
        weights: np.ndarray | None = None,
        num_classes: int = 0,
        verified: bool = False,
        regions: bool = True,
    ):
        self.data = data
        self.image_size = image_size
        self.batch_size = batch_size
        self.seed = seed
        self.max_gt_boxes = max_gt_boxes
        self.mosaic = mosaic
        self.mixup = mixup
        self.crop = crop
        self.resize = resize
        self.close_at = close_at
        self.weights = weights
        self.num_classes = num_classes
        self.verified = verified
        self.regions = regions
        self.orientation = orientation
        # boxes and regions by step: a batch that is made twice, or never used, must not count
        self._left_out: dict[int, tuple[int, int]] = {}
        self._cache: dict[int, np.ndarray] = {}
        self._free_bytes = cache_bytes

    def batch(self, step: int, image_size: int | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The batch of a step.

        Args:
            step: from 0 on.
            image_size: side of the pictures, for multi-scale training; None = the network's.

        Returns:
            uint8 images `(batch, size, size, 3)` in RGB, and the targets: `boxes` float32 `(batch, max_gt_boxes, 4)`
            xyxy normalised and `labels` int32 `(batch, max_gt_boxes)`, `regions` and `region_labels` likewise, all
            padded with -1 (labels) and 0 (boxes); with the `verified` rule also `parts` float32 `(batch, 4, 4)` and
            `verified` uint8 `(batch, 4, classes)`, padded with 0.
        """
        side = image_size or self.image_size
        samples = [self._sample(step, position, side) for position in range(self.batch_size)]
        targets = {}
        targets["boxes"], targets["labels"] = _padded([(s.boxes, s.labels) for s in samples], self.max_gt_boxes)
        targets["regions"], targets["region_labels"] = _padded(
            [(s.regions, s.region_labels) for s in samples], MAX_REGIONS
        )
        boxes = sum(max(0, len(sample.labels) - self.max_gt_boxes) for sample in samples)
        regions = sum(max(0, len(sample.region_labels) - MAX_REGIONS) for sample in samples)
        if boxes or regions:
            self._left_out[step] = boxes, regions
        return np.stack([sample.image for sample in samples]), targets

    def ids(self, step: int) -> list[str]:
        """The ids of the images in the batch of a step, tiles of mosaics included."""
        parts = [self._images(step, position)[0] for position in range(self.batch_size)]
        return [self.data.image_ids[image] for image in itertools.chain.from_iterable(parts)]

    def boxes_left_out(self, steps: range) -> int:
        """How many boxes beyond `max_gt_boxes` the batches of these steps had, as far as this object made them."""
        return sum(self._left_out.get(step, (0, 0))[0] for step in steps)

    def regions_left_out(self, steps: range) -> int:
        """The same for ignored regions beyond `MAX_REGIONS`: their background counts as background."""
        return sum(self._left_out.get(step, (0, 0))[1] for step in steps)

    def _images(self, step: int, position: int) -> tuple[list[int], np.random.Generator]:
        """Which images make one picture of the batch (one, or four for a mosaic), and the generator for the rest."""
        rng = np.random.default_rng([self.seed, step, position])
        epoch, index = divmod(step * self.batch_size + position, len(self.data))
        images = [int(_order(self.seed, epoch, len(self.data))[index])]
        if step < self.close_at and rng.random() < self.mosaic:
            images += [int(image) for image in rng.integers(0, len(self.data), 3)]
        return images, rng

    def _sample(self, step: int, position: int, side: int) -> Sample:
        images, rng = self._images(step, position)
        parts = [Sample(self._picture(i), *self.data.objects.of(i), *self.data.regions.of(i)) for i in images]
        return augment(parts, side, rng)

    def _picture(self, image: int) -> np.ndarray:
        """A picture from the cache, or from its file, reduced to what any zoom can need."""
        cached = self._cache.get(image)
        if cached is not None:
            return cached
        side = round(CACHED_SIDE * self.image_size)
        picture = reduce_to(read_image(self.data.paths[image], orientation=self.orientation, minimum_side=side), side)
        if picture.nbytes <= self._free_bytes:
            self._free_bytes -= picture.nbytes
            self._cache[image] = picture
        return picture


def _padded(lists: list[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(batch, width, 4)` and labels `(batch, width)` from one pair per image, filled up with 0 and -1."""
    boxes = np.zeros((len(lists), width, 4), "float32")
    labels = np.full((len(lists), width), -1, "int32")
    for row, (b, c) in enumerate(lists):
        kept = min(len(b), width)
        boxes[row, :kept], labels[row, :kept] = b[:kept], c[:kept]
    return boxes, labels


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """The order of the images in one pass through the data."""
    return np.random.default_rng([seed, epoch, length]).permutation(length)


def reduce_to(picture: np.ndarray, side: int) -> np.ndarray:
    """Shrinks a picture so that its longer side is at most `side`."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


class BatchSequence(keras.utils.PyDataset):
    """Gives a `Batches` to `fit`, from step `start` on and without end; `fit` says how many steps an epoch has."""

    def __init__(self, batches: Batches, *, start: int = 0, workers: int = 1):
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=8)
        self.batches = batches
        self.start = start
        self._mistake: InputError | None = None

    @property
    def num_batches(self) -> None:
        """None: no end."""
        return None

    def __getitem__(self, index: int):
        try:
            return self.batches.batch(self.start + index)
        except InputError as error:
            self._mistake = error
            raise

    @contextlib.contextmanager
    def mistakes_as_they_are(self) -> Iterator[None]:
        """Around `fit`: raises an InputError of a batch itself, not what the framework's data threads make of it."""
        try:
            yield
        except Exception:
            if self._mistake:
                raise self._mistake from None
            raise


def check_images(data: DataSet, orientation: str) -> None:
    """Reads the first image, so that a wrong folder fails before the network is built.

    Raises:
        InputError: it cannot be read.
    """
    if not len(data):
        raise InputError("a01 found no training image of this level: check its boxes, or choose another --level")
    read_image(data.paths[0], orientation=orientation)
