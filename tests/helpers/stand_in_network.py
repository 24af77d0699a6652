"""A stand-in for a network: gives the raw outputs for boxes that a function finds in the input."""

from collections.abc import Callable

import numpy as np

from models.box_deltas import CORNER_UNIT
from models.detector import Detector
from tests.helpers.tiny_network import tiny_settings


class StandIn:
    """`find` returns the `(class, score, xmin, ymin, xmax, ymax)` rows of an input. `seen` are the batches."""

    weights = ()

    def __init__(self, find: Callable[[np.ndarray], list[tuple]], anchors: np.ndarray, num_classes: int):
        self.find, self.anchors, self.num_classes = find, anchors, num_classes
        self.seen: list[np.ndarray] = []

    def predict_on_batch(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        self.seen.append(inputs)
        size = np.tile(self.anchors[:, 2:] - self.anchors[:, :2], 2)
        classes = np.full((len(inputs), len(self.anchors), self.num_classes), -50.0, "float32")
        deltas = np.zeros((len(inputs), len(self.anchors), 4), "float32")
        for image, pixels in enumerate(inputs):
            for anchor, (label, score, *box) in enumerate(self.find(pixels)):
                classes[image, anchor, int(label)] = np.log(score / (1 - score))
                deltas[image, anchor] = (box - self.anchors[anchor]) / (CORNER_UNIT * size[anchor])
        return {"classes": classes, "boxes": deltas}


def detector_that_finds(find: Callable[[np.ndarray], list[tuple]], **changes: object) -> Detector:
    """A detector of the tiny settings on a `StandIn`."""
    settings = tiny_settings(box_deltas="corners", **changes)
    return Detector(StandIn(find, settings.anchors.boxes(), settings.num_outputs), settings)
