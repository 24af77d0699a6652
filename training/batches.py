"""Batches as a pure function: `batch(step)` depends on the seed and the step alone, whoever asks and in which order.

So threads do not change results, the images of any batch are known afterwards, and a resumed training goes on with the
batches that it would have seen. An image that cannot be read is replaced by another one, which depends on seed and
step, too.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator

import cv2
import keras
import numpy as np

from oid.files import InputError
from oid.images.letterbox import Resize
from oid.images.read import Orientation, read_image
from training import machines
from training.augmentation import MAX_PARTS, MOSAIC_TILES, Crop, augment
from training.data_set import DataSet
from training.label_rules import IgnoredRegions
from training.pictures import Pictures
from training.samples import Sample, with_boxes, with_regions
from training.sampling import epoch_order

AHEAD = 128  # the other pictures of a mosaic are among the next so many: they are decoded once for both uses
TRIED_FIRST = 8  # images, one of which must be readable before anything begins
MAX_REGIONS = 128  # per picture; the smallest beyond are left out, counted and said


class BadImages(InputError):
    """More images than allowed cannot be read; the training so far is sound."""


class Batches:
    """The batches of one training.

    Args:
        data: the images and their boxes.
        image_size: side of the network's input in pixels.
        batch_size: images per batch.
        seed: of everything random.
        max_gt_boxes: boxes per image of a batch, a row for each class of an object; those beyond become ignored
            regions, see `training.samples.with_boxes`, and are counted by `boxes_left_out`.
        mosaic: share of the images that are mosaics of four.
        mixup: share of the images, mosaics included, that are blended with another picture.
        crop: "zoom" or "ssd", which part of a picture is shown, see `training.crops`.
        resize: "warp" or "letterbox", as `settings["preprocessing"]["resize"]` has it for inference.
        close_at: the first step without mosaics and mixup, so that the end of the training sees whole pictures; with
            "letterbox" from here on in their own aspect ratio.
        orientation: "stored" or "exif", see `oid.images.read.read_image`.
        cache_bytes: pictures are kept in memory, reduced, up to so many bytes, see `training.pictures`.
        weights: float64 `(images,)`, how often each image is drawn, see `training.sampling.image_weights`; None = all
            alike.
        num_classes: of the network; only `verified` needs it.
        verified: whether the targets say which classes are verified where.
        regions: which ignored regions the targets have, see `training.label_rules.LabelRules`.
        max_bad_images: so many images that cannot be read are replaced by others, each said once; 0 = none.
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
        crop: Crop = "zoom",
        resize: Resize = "warp",
        close_at: int = 0,
        orientation: Orientation = "stored",
        cache_bytes: int = 2 * 2**30,
        weights: np.ndarray | None = None,
        num_classes: int = 0,
        verified: bool = False,
        regions: IgnoredRegions = "all",
        max_bad_images: int = 0,
    ):
        if verified and num_classes < 1:
            raise ValueError("the verified rule needs num_classes")
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
        self.weights = np.ones(len(data)) if weights is None else weights
        self.num_classes = num_classes
        self.verified = verified
        self.regions = regions != "none"
        self._ignored = data.depictions if regions == "depictions" else data.regions
        self.max_bad_images = max_bad_images
        self._bad: dict[int, InputError] = {}
        self._bad_lock = threading.Lock()
        # boxes and regions by step: a batch that is made twice, or never used, must not count
        self._left_out: dict[int, tuple[int, int]] = {}
        self.pictures = Pictures(data.paths, image_size=image_size, orientation=orientation, cache_bytes=cache_bytes)

    def batch(
        self, step: int, image_size: int | None = None, positions: range | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The batch of a step: the same whoever asks, in which order, with or without a cache.

        Args:
            step: from 0 on.
            image_size: side of the pictures, for multi-scale training; None = the network's. It changes nothing else:
                the same images are seen in the same way.
            positions: only these pictures of the batch, where several processes share it; None = all.

        Returns:
            uint8 images `(batch, size, size, 3)` in RGB, and the targets: `boxes` float32 `(batch, max_gt_boxes, 4)`
            xyxy normalised and `labels` int32 `(batch, max_gt_boxes)`; with the `regions` rule `regions` and
            `region_labels` likewise; all padded with 0 (boxes) and -1 (labels). With the `verified` rule `parts`
            float32 `(batch, 4, 4)` xyxy normalised, the tiles of mosaics, and `verified` uint8 `(batch, 4, classes)`,
            1 where the background of the part is known not to be the class; both padded with 0.

        Raises:
            BadImages: more images than `max_bad_images` cannot be read.
        """
        side = image_size or self.image_size
        made = [self._sample(step, position, side) for position in positions or range(self.batch_size)]
        samples, boxes = zip(*made, strict=True)
        regions, targets = (), {}
        targets["boxes"], targets["labels"] = _padded([(s.boxes, s.labels) for s in samples], self.max_gt_boxes)
        if self.regions:
            samples, regions = zip(*(with_regions(sample, MAX_REGIONS) for sample in samples), strict=True)
            found = [(s.regions, s.region_labels) for s in samples]
            targets["regions"], targets["region_labels"] = _padded(found, MAX_REGIONS)
        if self.verified:
            targets["parts"] = np.zeros((len(samples), MAX_PARTS, 4), "float32")
            targets["verified"] = np.zeros((len(samples), MAX_PARTS, self.num_classes), "uint8")
            for row, sample in enumerate(samples):
                targets["parts"][row, : len(sample.parts)] = sample.parts
                targets["verified"][row, : len(sample.parts)] = sample.verified
        if any(boxes + regions):
            self._left_out[step] = sum(boxes), sum(regions)
        return np.stack([sample.image for sample in samples]), targets

    def ids(self, step: int) -> list[str]:
        """The ids of the images in the batch of a step, tiles of mosaics and blended ones included.

        What stands in for a bad image is named, as far as this object has read it.
        """
        sources = [found for position in range(self.batch_size) for found in self.sources(step, position)]
        return [self.data.image_ids[image] for found in sources for image in found]

    def sources(self, step: int, position: int) -> tuple[list[int], list[int]]:
        """The images that a picture of a batch is made of, by number: one, or a mosaic's four; and those blended in."""
        tiles, mixed, _ = self._draw(step, position)
        found = []
        for slot, image in enumerate(tiles + mixed):
            stand_ins = self._stand_ins(image, step, position, slot)
            found.append(next(other for other in stand_ins if other not in self._bad))
        return found[: len(tiles)], found[len(tiles) :]

    @property
    def bad_images(self) -> list[str]:
        """The ids of the images that could not be read so far, in this order."""
        return [self.data.image_ids[image] for image in self._bad]

    def boxes_left_out(self, steps: range) -> int:
        """How many boxes beyond `max_gt_boxes` the batches of these steps had, as far as this object made them."""
        return sum(self._left_out.get(step, (0, 0))[0] for step in steps)

    def regions_left_out(self, steps: range) -> int:
        """The same for ignored regions beyond `MAX_REGIONS`: their background counts as background."""
        return sum(self._left_out.get(step, (0, 0))[1] for step in steps)

    def print_left_out(self, steps: range) -> None:
        """Says what did not fit into the batches of these steps, and how many images were replaced."""
        if self._bad:
            print(
                f"{len(self._bad)} images could not be read and were replaced by others: {', '.join(self.bad_images)}"
            )
        if count := self.boxes_left_out(steps):
            became = "ignored regions" if self.regions else "background"
            print(
                f"{count} boxes beyond --max_gt_boxes {self.max_gt_boxes} of a picture were left out and are {became}"
            )
        if count := self.regions_left_out(steps):
            print(
                f"{count} ignored regions beyond {MAX_REGIONS} of a picture, its smallest, were left out: background "
                "counts there"
            )

    def _draw(self, step: int, position: int) -> tuple[list[int], list[int], np.random.Generator]:
        """Which images make one picture of the batch: one, or four for a mosaic; none or one to blend in; and the
        generator for the rest."""
        rng = np.random.default_rng([self.seed, step, position])
        place = step * self.batch_size + position
        others = 0, 0
        if step < self.close_at:
            others = (MOSAIC_TILES - 1) * (rng.random() < self.mosaic), int(rng.random() < self.mixup)
        ahead = rng.integers(1, AHEAD + 1, sum(others))
        images = [self._image(place), *(self._image(place + int(offset)) for offset in ahead)]
        return images[: 1 + others[0]], images[1 + others[0] :], rng

    def _image(self, place: int) -> int:
        """The image at a place of the endless line of epochs."""
        epoch, index = divmod(place, len(self.data))
        return int(epoch_order(self.weights, self.seed, epoch)[index])

    def _sample(self, step: int, position: int, side: int) -> tuple[Sample, int]:
        """One picture of the batch, and how many boxes of it had no room."""
        images, mixed, rng = self._draw(step, position)
        samples = [self._readable(image, step, position, slot) for slot, image in enumerate(images + mixed)]
        sample = augment(
            samples[: len(images)],
            side,
            rng,
            mixed=samples[-1] if mixed else None,
            crop=self.crop,
            keep_aspect=self.resize == "letterbox" and step >= self.close_at,
        )
        return with_boxes(sample, self.max_gt_boxes, rng)

    def _readable(self, image: int, step: int, position: int, slot: int) -> Sample:
        """An image as it is, or what stands in for it."""
        for other in self._stand_ins(image, step, position, slot):
            if other not in self._bad:
                try:
                    return self._untouched(other)
                except InputError as error:
                    self._note_bad(other, error)
        raise AssertionError("there is no end of them")

    def _stand_ins(self, image: int, step: int, position: int, slot: int) -> Iterator[int]:
        """An image, and without end those that may stand in for it, drawn as often as others are."""
        yield image
        rng, images = np.random.default_rng([self.seed, step, position, slot]), len(self.data)
        epoch = step * self.batch_size // images
        while True:
            yield self._image(epoch * images + int(rng.integers(images)))

    def _note_bad(self, image: int, error: InputError) -> None:
        """Counts an image that cannot be read, and says so once.

        Raises:
            BadImages: there are more than `max_bad_images`, or no others.
        """
        with self._bad_lock:
            if image in self._bad:  # another thread was faster
                return
            limit = self.max_bad_images
            if len(self._bad) <= limit:  # else another thread is about to end the training, and says this number
                self._bad[image] = error
            count = len(self._bad)
        if limit == 0:
            raise BadImages(str(error))
        if count > limit or count == len(self.data):
            raise BadImages(
                f"{count} of {len(self.data)} training images cannot be read, and --max_bad_images is {limit}; the "
                f"newest: {error}"
            )
        print(f"{error}; another image stands in for it ({count} of at most {limit})", flush=True)

    def _untouched(self, image: int) -> Sample:
        """An image of the data set as it is."""
        sample = Sample(self.pictures[image], *self.data.objects.of(image), *self._ignored.of(image))
        if not self.verified:
            return sample
        verified = np.zeros((1, self.num_classes), "uint8")
        verified[0, self.data.verified_of(image)] = 1
        return dataclasses.replace(sample, verified=verified)


def _padded(lists: list[tuple[np.ndarray, np.ndarray]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(batch, width, 4)` and labels `(batch, width)` from one pair per image, filled up with 0 and -1."""
    boxes = np.zeros((len(lists), width, 4), "float32")
    labels = np.full((len(lists), width), -1, "int32")
    for row, (b, c) in enumerate(lists):
        boxes[row, : len(b)], labels[row, : len(c)] = b, c
    return boxes, labels


class BatchSequence(keras.utils.PyDataset):
    """Gives a `Batches` to `fit`, from step `start` on and without end; `fit` says how many steps an epoch has.

    Args:
        batches: of the whole training.
        start: the first step.
        workers: threads that prepare batches, see `training.plan.workers_for`.
        image_size: see `Batches.batch`.
    """

    def __init__(self, batches: Batches, *, start: int = 0, workers: int = 2, image_size: int | None = None):
        super().__init__(workers=workers, use_multiprocessing=False, max_queue_size=8)
        cv2.setNumThreads(1)  # `workers` is the number of threads; OpenCV's own gain nothing on pictures of this size
        self.batches = batches
        self.start = start
        self.image_size = image_size
        self._mistake: InputError | None = None
        self._prepared: dict[int, InputError | None] = {}  # index -> why not, of batches that nobody has waited for
        self._news = threading.Condition()

    @property
    def num_batches(self) -> None:
        """None: no end."""
        return None

    def __getitem__(self, index: int):
        mistake = None
        try:
            positions = machines.share_of(self.batches.batch_size)
            share = {} if positions is None else {"positions": positions}
            return self.batches.batch(self.start + index, self.image_size, **share)
        except InputError as error:
            self._mistake = mistake = error
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

    @contextlib.contextmanager
    def mistakes_as_they_are(self) -> Iterator[None]:
        """Around `fit`: raises an InputError of a batch itself, not what the framework's data threads make of it."""
        try:
            yield
        except InputError:
            raise
        except Exception:
            if self._mistake:
                raise self._mistake from None
            raise


def check_images(data: DataSet, orientation: str, *, max_bad_images: int = 0) -> None:
    """Reads an image, so that a wrong folder fails before the network is built.

    Args:
        data: the images.
        orientation: see `oid.images.read.read_image`.
        max_bad_images: of so many the next one is tried.

    Raises:
        InputError: there is none, or none of these can be read; the error of the first.
    """
    if not len(data):
        raise InputError("a01 found no training image of this level: check its boxes, or choose another --level")
    errors = []
    for path in data.paths[: min(max_bad_images, TRIED_FIRST - 1) + 1]:
        try:
            read_image(path, orientation=orientation)
            return
        except InputError as error:
            errors.append(error)
    raise errors[0]
