"""Batches as a pure function of the seed and the step.

So threads do not change results, the images of any batch are known afterwards, and a resumed training goes on with the
batches that it would have seen. An unreadable image is replaced by another, which depends on seed and step, too.
"""

import dataclasses
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np

from oid.files import InputError
from oid.images.loader import ImageLoader, reduce_to
from training.augment import KEPT_SIDE, MOSAIC_TILES, Sample, augment
from training.data_set import DataSet
from training.options import ImageOptions, LabelOptions, Recipe
from training.processes import share_of
from training.sampling import epoch_order, image_weights
from training.verified_labels import LabelRulesInForce

AHEAD = 128  # the other images of a mosaic are among the next AHEAD ones, so that each is decoded once for both uses
# Kept besides the cache: those of the last batches, which the next mosaics show again.
RECENT_IMAGES, RECENT_BYTES = 160, 2**28
MAX_REGIONS = 128  # per image
MAX_PARTS = MOSAIC_TILES
KEPT_EPOCHS = 4  # whose order of images is kept

Targets = dict[str, np.ndarray]


class LeftOut(NamedTuple):
    """Number of boxes beyond `max_gt_boxes`, and of ignored regions beyond `MAX_REGIONS`."""

    boxes: int
    regions: int


class Batches:
    """The batches of one training; threads may share it.

    Args:
        data: the images and their boxes.
        image_size: side of the network's input in pixels.
        batch_size: images per batch.
        recipe: its crop, its share of mosaics, and how images become square.
        labels: its maximum of box rows per image.
        images: which are drawn how often, and how they are read.
        rules: the label rules; they say which targets there are.
        num_classes: of the network.
        seed: of everything random.
        cache_bytes: reduced images stay in memory up to this number of bytes.
        report: is called with a sentence about each unreadable image.

    Attributes:
        data, batch_size: as given.
        loader: reads the images.

    Raises:
        InputError: there is no image, or `images.negatives` asks for images that do not exist.
    """

    def __init__(
        self,
        data: DataSet,
        *,
        image_size: int,
        batch_size: int,
        recipe: Recipe,
        labels: LabelOptions,
        images: ImageOptions,
        rules: LabelRulesInForce,
        num_classes: int,
        seed: int,
        cache_bytes: int,
        report: Callable[[str], None],
    ):
        if not len(data):
            raise InputError("a01 found no training image of this level: check its boxes, or choose another level")
        self.data = data
        self.batch_size = batch_size
        self._side = image_size
        self._recipe = recipe
        self._max_gt_boxes = labels.max_gt_boxes
        self._rules = rules
        self._num_classes = num_classes
        self._seed = seed
        self._ignored = data.depictions if rules.regions == "depictions" else data.regions
        # by step: a batch that is made twice, or never used, must not count
        self._left_out: dict[int, LeftOut] = {}
        weights = image_weights(
            data, sampling=images.sampling, exponent=images.sampling_exponent, negatives=images.negatives
        )
        self._order = functools.lru_cache(maxsize=KEPT_EPOCHS)(functools.partial(epoch_order, weights, seed))
        kept_side = round(KEPT_SIDE * image_size)
        self.loader = ImageLoader(
            data.paths,
            functools.partial(reduce_to, side=kept_side),
            orientation=images.orientation,
            minimum_longer_side=kept_side,
            cache_bytes=cache_bytes,
            recent=min(RECENT_IMAGES, RECENT_BYTES // (3 * kept_side**2)),
            max_bad_images=images.max_bad_images,
            report=report,
            consequence="another image stands in for it",
        )

    def batch(self, step: int, *, closed: bool = False, positions: range | None = None) -> tuple[np.ndarray, Targets]:
        """Makes the batch of a step: the same in any order, in any thread, with or without a cache.

        Args:
            step: from 0 on.
            closed: without mosaics, and, where the recipe letterboxes, in the images' own aspect ratio.
            positions: only these images of the batch, where several processes share it; None = all.

        Returns:
            uint8 RGB images `(batch, size, size, 3)`, and the targets. `boxes` float32 `(batch, max_gt_boxes, 4)`, xyxy
            normalised, and `labels` int32 `(batch, max_gt_boxes)`. With ignored regions `regions` and `region_labels`
            likewise, `MAX_REGIONS` wide. All are padded with 0 (boxes) and -1 (labels). With the rule on verified
            classes `parts` float32 `(batch, 4, 4)`, the tiles of mosaics, and `verified` uint8 `(batch, 4, classes)`,
            1 where the background of the part is known not to be the class; both padded with 0.

        Raises:
            BadImages: more images cannot be read than are allowed.
        """
        samples, left_out = [], []
        for position in positions or range(self.batch_size):
            sample, boxes = self._sample(step, position, closed=closed)
            sample, regions = limit_regions(sample, MAX_REGIONS)
            samples.append(sample)
            left_out.append((boxes, regions if self._has_regions else 0))
        total = LeftOut(*np.sum(left_out, axis=0).tolist())
        if any(total):
            self._left_out[step] = total
        else:
            self._left_out.pop(step, None)
        return np.stack([sample.image for sample in samples]), self._targets(samples)

    def _targets(self, samples: list[Sample]) -> Targets:
        targets = {}
        objects = [(sample.boxes, sample.labels) for sample in samples]
        targets["boxes"], targets["labels"] = _padded(objects, self._max_gt_boxes)
        if self._has_regions:
            regions = [(sample.regions, sample.region_labels) for sample in samples]
            targets["regions"], targets["region_labels"] = _padded(regions, MAX_REGIONS)
        if self._rules.verified:
            targets["parts"] = np.zeros((len(samples), MAX_PARTS, 4), "float32")
            targets["verified"] = np.zeros((len(samples), MAX_PARTS, self._num_classes), "uint8")
            for row, sample in enumerate(samples):
                targets["parts"][row, : len(sample.parts)] = sample.parts
                targets["verified"][row, : len(sample.parts)] = sample.verified
        return targets

    @property
    def _has_regions(self) -> bool:
        return self._rules.regions != "none"

    # === What was in a batch ==========================================================================================
    def sources(self, step: int, position: int, *, closed: bool = False) -> list[int]:
        """Returns the numbers of the images that one image of a batch is made of: one, or a mosaic's four.

        Names the replacement of a bad image, if this object has tried to read that one.
        """
        drawn, _ = self._draw(step, position, closed=closed)
        return [
            next(image for image in self._stand_ins(image, step, position, slot) if image not in self.loader.bad)
            for slot, image in enumerate(drawn)
        ]

    def ids(self, step: int, *, closed: bool = False) -> list[str]:
        """Returns the ids of the images in the batch of a step, tiles of mosaics included; see `sources`."""
        found = (self.sources(step, position, closed=closed) for position in range(self.batch_size))
        return [self.data.image_ids[image] for image in itertools.chain.from_iterable(found)]

    def left_out(self, steps: range) -> LeftOut:
        """Returns what had no room in the batches of these steps, as far as this object made them."""
        counts = [self._left_out[step] for step in steps if step in self._left_out]
        return LeftOut(sum(count.boxes for count in counts), sum(count.regions for count in counts))

    def notes(self, steps: range) -> list[str]:
        """Returns sentences about what had no room in the batches of these steps, and about bad images."""
        sentences, (boxes, regions) = [], self.left_out(steps)
        if self.loader.bad:
            ids = ", ".join(self.data.image_ids[image] for image in self.loader.bad)
            sentences.append(f"{len(self.loader.bad)} images could not be read and were replaced by others: {ids}")
        if boxes:
            became = "ignored regions" if self._has_regions else "background"
            sentences.append(f"{boxes} boxes beyond {self._max_gt_boxes} of an image were left out and are {became}")
        if regions:
            sentences.append(
                f"{regions} ignored regions beyond {MAX_REGIONS} of an image, its smallest, were left out: background "
                "counts there"
            )
        return sentences

    # === One image of a batch =========================================================================================
    def _sample(self, step: int, position: int, *, closed: bool) -> tuple[Sample, int]:
        """One image of the batch, and the number of its boxes that had no room."""
        drawn, rng = self._draw(step, position, closed=closed)
        samples = [self._load(image, step, position, slot) for slot, image in enumerate(drawn)]
        keep_aspect = closed and self._recipe.resize == "letterbox"
        sample = augment(samples, self._side, rng, crop=self._recipe.crop, keep_aspect=keep_aspect)
        return limit_boxes(sample, self._max_gt_boxes, rng)

    def _draw(self, step: int, position: int, *, closed: bool) -> tuple[list[int], np.random.Generator]:
        """The images that make one image of the batch, one or a mosaic's four, and the generator for the rest."""
        rng = np.random.default_rng([self._seed, step, position])
        place = step * self.batch_size + position
        others = 0 if closed or rng.random() >= self._recipe.mosaic else MOSAIC_TILES - 1
        ahead = rng.integers(1, AHEAD + 1, others)
        return [self._image(place), *(self._image(place + int(offset)) for offset in ahead)], rng

    def _image(self, place: int) -> int:
        """The image at a place of the endless line of epochs."""
        epoch, index = divmod(place, len(self.data))
        return int(self._order(epoch)[index])

    def _load(self, image: int, step: int, position: int, slot: int) -> Sample:
        """An image as it is in the data set, or its replacement."""
        for number in self._stand_ins(image, step, position, slot):
            if loaded := self.loader.load(number):
                break
        verified = None
        if self._rules.verified:
            verified = np.zeros((1, self._num_classes), "uint8")
            verified[0, self.data.verified_of(number)] = 1
        objects, ignored = self.data.objects.of(number), self._ignored.of(number)
        return Sample(loaded.pixels, *objects, *ignored, verified=verified)

    def _stand_ins(self, image: int, step: int, position: int, slot: int) -> Iterator[int]:
        """Yields an image, then without end images that may replace it, drawn as often as others are."""
        yield image
        rng, images = np.random.default_rng([self._seed, step, position, slot]), len(self.data)
        epoch = step * self.batch_size // images
        while True:
            yield self._image(epoch * images + int(rng.integers(images)))


def limit_boxes(sample: Sample, most: int, rng: np.random.Generator) -> tuple[Sample, int]:
    """Turns a random surplus of boxes into ignored regions, so that they are no background, and counts them.

    Objects stay or go with all their classes, each of which is a row; a single object of more classes than `most`
    keeps some of them.
    """
    if len(sample.labels) <= most:
        return sample, 0
    _, of_object = np.unique(sample.boxes, axis=0, return_inverse=True)
    turn = rng.permutation(of_object.max() + 1)[of_object.reshape(-1)]
    fits = np.cumsum(np.bincount(turn)) <= most
    fits[0] = True
    kept = fits[turn]
    kept &= np.cumsum(kept) <= most
    limited = dataclasses.replace(
        sample,
        boxes=sample.boxes[kept],
        labels=sample.labels[kept],
        regions=np.concatenate([sample.regions, sample.boxes[~kept]]),
        region_labels=np.concatenate([sample.region_labels, sample.labels[~kept]]),
    )
    return limited, int(np.count_nonzero(~kept))


def limit_regions(sample: Sample, most: int) -> tuple[Sample, int]:
    """Keeps the `most` largest regions, which cover most anchors, and counts the others."""
    beyond = max(0, len(sample.region_labels) - most)
    if not beyond:
        return sample, 0
    sides = sample.regions[:, 2:] - sample.regions[:, :2]
    largest = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:most])
    kept = dataclasses.replace(sample, regions=sample.regions[largest], region_labels=sample.region_labels[largest])
    return kept, beyond


def _padded(lists: list[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(batch, width, 4)` and labels `(batch, width)` from one pair per image, padded with 0 and -1."""
    boxes = np.zeros((len(lists), width, 4), "float32")
    labels = np.full((len(lists), width), -1, "int32")
    for row, (b, c) in enumerate(lists):
        boxes[row, : len(b)], labels[row, : len(c)] = b, c
    return boxes, labels


class BatchSequence(keras.utils.PyDataset):
    """Gives a `Batches` to `fit`, without end: `fit` says how many steps an epoch has.

    Each step must call `wait_for` first: TensorFlow wraps an error of a data thread in one of its own.

    Args:
        batches: of the whole training.
        start: the first step.
        close_at: the first step whose batch is closed, see `Batches.batch`.
        workers: number of threads that prepare batches, at least 2.
    """

    def __init__(self, batches: Batches, *, start: int = 0, close_at: int, workers: int):
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=8)
        self._batches = batches
        self._start = start
        self._close_at = close_at
        self._prepared: dict[int, InputError | None] = {}  # index -> why not, of batches that nobody has waited for
        self._news = threading.Condition()

    @property
    def num_batches(self) -> None:
        """None: no end."""
        return None

    def __getitem__(self, index: int) -> tuple[np.ndarray, Targets]:
        step, mistake = self._start + index, None
        try:
            positions = share_of(self._batches.batch_size)
            return self._batches.batch(step, closed=step >= self._close_at, positions=positions)
        except InputError as error:
            mistake = error
            raise
        finally:
            with self._news:
                self._prepared[index] = mistake
                self._news.notify_all()

    def wait_for(self, index: int) -> None:
        """Waits until the threads of a running `fit` have prepared a batch.

        Raises:
            InputError: they could not.
        """
        with self._news:
            self._news.wait_for(lambda: index in self._prepared)
            mistake = self._prepared.pop(index)
        if mistake is not None:
            raise mistake
