"""Draws dark images with one rectangle per class in the colour of the class, and finds the rectangles again."""

import numpy as np

from training.augment import Sample

NO_BOXES, NO_LABELS = np.zeros((0, 4), "float32"), np.zeros(0, "int32")
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255)], "uint8")  # of classes 0, 1, 2


def picture(rng: np.random.Generator, labels: tuple[int, ...] = (0, 1, 2), *, verified=None) -> Sample:
    """A dark image of random size with a filled rectangle for each label, side by side."""
    height, width = (int(side) for side in rng.integers(60, 220, 2))
    image, boxes = np.zeros((height, width, 3), "uint8"), []
    for place, label in enumerate(rng.permutation(labels)):
        left, right = place * width // len(labels), (place + 1) * width // len(labels)
        x0, y0 = int(rng.integers(left, (left + right) // 2)), int(rng.integers(0, height // 2))
        x1, y1 = int(rng.integers(x0 + 8, right + 1)), int(rng.integers(y0 + 12, height + 1))
        image[y0:y1, x0:x1] = COLOURS[label]
        boxes.append((label, x0 / width, y0 / height, x1 / width, y1 / height))
    columns = np.array(boxes, "float32").reshape(-1, 5)
    return Sample(image, columns[:, 1:], columns[:, 0].astype("int32"), NO_BOXES, NO_LABELS, verified=verified)


def empty(image: np.ndarray, **options) -> Sample:
    """A picture without boxes."""
    return Sample(image, NO_BOXES, NO_LABELS, NO_BOXES, NO_LABELS, **options)


def found_box(image: np.ndarray, label: int, edge: float = 132) -> np.ndarray | None:
    """The box in pixels around the colour of a class; `edge` is slightly above half of its brightness."""
    seen = image[..., label] > edge  # the colours are pure: one channel each
    if not seen.any():
        return None
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def check_sample(sample: Sample, side: int) -> None:
    """Checks dtypes, shapes and ranges of an augmented image."""
    for boxes, labels in ((sample.boxes, sample.labels), (sample.regions, sample.region_labels)):
        assert boxes.dtype == np.float32
        assert labels.dtype == np.int32
        assert boxes.shape == (len(labels), 4)
        assert np.all((boxes >= 0) & (boxes <= 1))
        assert np.all(boxes[:, 2:] >= boxes[:, :2])
    assert sample.image.shape == (side, side, 3)
    assert sample.image.dtype == np.uint8
    assert sample.parts.dtype == np.float32


def check_places(sample: Sample, labels: tuple[int, ...] = (0, 1, 2), edge: float = 132) -> dict[int, str]:
    """Compares each class's rectangle, at most one, with its box or region: at most 1.25 pixels apart, because
    interpolation blurs edges. Returns {label: "whole", "cut" or "gone"}."""
    side = sample.image.shape[0]
    boxes = np.concatenate([sample.boxes, sample.regions]) * side
    known = np.concatenate([sample.labels, sample.region_labels])
    assert len(set(known.tolist())) == len(known)
    assert set(known.tolist()) <= set(labels)
    became = {}
    for label in labels:
        seen = found_box(sample.image, label, edge)
        became[label] = "whole" if label in sample.labels else "cut" if label in known else "gone"
        if became[label] == "gone":
            assert seen is None, (label, seen)
            continue
        (box,) = boxes[known == label]
        if np.min(box[2:] - box[:2]) < 4:
            continue  # a sliver, which interpolation has mixed with its surroundings
        assert seen is not None, (label, box)
        at_frame = np.any((box <= 0) | (box >= side))
        if at_frame and sample.image[..., label].max() < 1.9 * edge:
            continue  # only the blur of its edge is inside the frame, as when a small picture is magnified much
        assert np.abs(seen - box).max() <= 1.25, (label, seen, box)
    return became
