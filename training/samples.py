"""A picture with what is in it, as the augmentations pass it on."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sample:
    """A picture of any size with what is in it.

    Attributes:
        image: uint8 `(height, width, 3)`, RGB.
        boxes: float32 `(n, 4)`, xyxy, normalised.
        labels: int32 `(n,)`.
        regions: float32 `(m, 4)`: where classes give no gradient.
        region_labels: int32 `(m,)`, of which `training.data_set.DataSet.region_classes` says what they mean.
        parts: float32 `(p, 4)`: the rectangles of the pictures that this one is made of; together they are all of it.
        verified: uint8 `(p, classes)`, 1 where the background of a part is known not to be that class; None where
            nobody wants to know.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    regions: np.ndarray
    region_labels: np.ndarray
    parts: np.ndarray = dataclasses.field(default_factory=lambda: np.array([[0, 0, 1, 1]], "float32"))
    verified: np.ndarray | None = None


def assembled(image: np.ndarray, tiles: list[tuple[Sample, tuple[int, int, int, int]]]) -> Sample:
    """One sample of several, each drawn into a rectangle x0, y0, x1, y1 of `image`, in pixels."""
    height, width = image.shape[:2]
    boxes, regions, parts = [], [], []
    for tile, (x0, y0, x1, y1) in tiles:
        image[y0:y1, x0:x1] = tile.image
        scale = np.array([x1 - x0, y1 - y0] * 2, "float32") / (width, height, width, height)
        shift = np.array([x0, y0] * 2, "float32") / (width, height, width, height)
        for rectangles, found in ((tile.boxes, boxes), (tile.regions, regions), (tile.parts, parts)):
            found.append((rectangles * scale + shift).astype("float32"))
    known = [tile.verified for tile, _ in tiles if tile.verified is not None]
    return Sample(
        image,
        np.concatenate(boxes),
        np.concatenate([tile.labels for tile, _ in tiles]),
        np.concatenate(regions),
        np.concatenate([tile.region_labels for tile, _ in tiles]),
        np.concatenate(parts),
        np.concatenate(known) if known else None,
    )


def with_boxes(sample: Sample, most: int, rng: np.random.Generator) -> tuple[Sample, int]:
    """A sample with at most so many boxes, and how many others became ignored regions, so that they are no background.

    Which objects stay is drawn, so that none is always left out; they keep all their classes, each of which is a row.
    """
    if len(sample.labels) <= most:
        return sample, 0
    _, of_object = np.unique(sample.boxes, axis=0, return_inverse=True)
    turn = rng.permutation(of_object.max() + 1)[of_object.reshape(-1)]
    fits = np.cumsum(np.bincount(turn)) <= most
    fits[0] = True  # an object of more classes than there is room for has some of them
    kept = fits[turn]
    kept &= np.cumsum(kept) <= most
    left = dataclasses.replace(
        sample,
        boxes=sample.boxes[kept],
        labels=sample.labels[kept],
        regions=np.concatenate([sample.regions, sample.boxes[~kept]]),
        region_labels=np.concatenate([sample.region_labels, sample.labels[~kept]]),
    )
    return left, int(np.count_nonzero(~kept))


def with_regions(sample: Sample, most: int) -> tuple[Sample, int]:
    """A sample with its largest regions, at most so many, which cover most anchors; and how many had no room."""
    beyond = max(0, len(sample.region_labels) - most)
    if not beyond:
        return sample, 0
    sides = sample.regions[:, 2:] - sample.regions[:, :2]
    largest = np.sort(np.argsort(-sides.prod(axis=1), kind="stable")[:most])
    kept = dataclasses.replace(sample, regions=sample.regions[largest], region_labels=sample.region_labels[largest])
    return kept, beyond
