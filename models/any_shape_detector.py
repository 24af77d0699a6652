"""A converted RetinaNet as a detector: it takes images of any shape, for which anchors are made."""

import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from models.decoding import TopPairs, best_candidates, candidates_of_pairs
from models.detector import DEFAULTS, BaseDetector, mirror_image
from models.suppression import (
    Candidates,
    DetectionOptions,
    GetCandidates,
    ScoredBoxes,
    clip_ends,
    keras_retinanet_detections,
    keras_retinanet_suppress,
)
from oid.anchors.grids import anchors_of_picture
from oid.images.letterbox import resize_to_sides

MOST_OUTPUTS = 2**29  # bytes of raw outputs at a time


class AnyShapeDetector(BaseDetector):
    """A converted RetinaNet, which takes images of any shape."""

    def with_sides(self, min_side: int, max_side: int) -> "AnyShapeDetector":
        """Returns this detector for images of other sides, see `models.run_settings.InputSettings`."""
        inputs = dataclasses.replace(self.settings.inputs, min_side=min_side, max_side=max_side)
        detector = copy.copy(self)
        detector.settings = dataclasses.replace(self.settings, inputs=inputs)
        return detector

    def _end(self) -> keras.layers.Layer:
        return TopPairs()

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Resizes an RGB image `(height, width, 3)` in its aspect ratio to the run's sides; float32."""
        return resize_to_sides(image, self.settings.inputs.min_side, self.settings.inputs.max_side)

    def detect_prepared(
        self,
        inputs: Sequence[np.ndarray],
        *,
        sizes: Sequence[tuple[int, int]] | None = None,
        options: DetectionOptions = DEFAULTS,
    ) -> list[ScoredBoxes]:
        """Detects on images that `prepare` made; images of one shape together, as many as memory allows.

        `options.suppression` "auto" is "keras_retinanet". See `BaseDetector.detect_prepared`.
        """
        if options.resolved(any_shape=True).suppression == "own":
            return super().detect_prepared(inputs, sizes=sizes, options=options)
        views = [*inputs, *(mirror_image(image) for image in inputs if options.mirror)]
        found = [None] * len(views)
        for index, get_candidates in self._candidates(views):
            ends = clip_ends(self.settings.network.clip, *views[index].shape[:2])
            found[index] = keras_retinanet_suppress(get_candidates, ends)
        mirrored = found[len(inputs) :] or [None] * len(inputs)
        return [keras_retinanet_detections(*pair, options) for pair in zip(found[: len(inputs)], mirrored, strict=True)]

    def _candidates(self, inputs: Sequence[np.ndarray]) -> Iterator[tuple[int, GetCandidates]]:
        shapes: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(inputs):
            shapes.setdefault(image.shape[:2], []).append(index)
        for shape, indices in shapes.items():
            anchors = _anchors_of_shape(self.settings.network.scales, *shape)
            most = max(1, MOST_OUTPUTS // (4 * len(anchors) * (self.settings.num_outputs + 4)))
            for together in (indices[k : k + most] for k in range(0, len(indices), most)):
                outputs = self._predicting.predict_on_batch(np.stack([inputs[index] for index in together]))
                for row, index in enumerate(together):
                    one = {name: values[row] for name, values in outputs.items()}
                    if self._host_decodes:
                        yield index, self._of_outputs(one, anchors)
                    else:
                        yield index, functools.partial(self._of_top_pairs, one, inputs[index], anchors)

    def _of_outputs(self, outputs: dict[str, np.ndarray], anchors: np.ndarray) -> GetCandidates:
        kind = self.settings.box_deltas
        return functools.partial(best_candidates, outputs["classes"], outputs["boxes"], anchors, box_deltas=kind)

    def _of_top_pairs(
        self, top: dict[str, np.ndarray], image: np.ndarray, anchors: np.ndarray, count: int, score_threshold: float
    ) -> Candidates:
        """From the pairs that left the graph; if more are wanted, from all outputs of the network."""
        if count > len(top["logits"]):
            outputs = self.network.predict_on_batch(image[None])
            one = {name: values[0] for name, values in outputs.items()}
            return self._of_outputs(one, anchors)(count, score_threshold)
        pairs = {name: values[:count] for name, values in top.items()}
        kind, num_classes = self.settings.box_deltas, self.settings.num_outputs
        found, anchor = candidates_of_pairs(pairs, anchors, num_classes, box_deltas=kind)
        good = found.scores >= score_threshold
        return Candidates(found.at(good), anchor[good])


@functools.lru_cache(maxsize=16)
def _anchors_of_shape(scales: int, height: int, width: int) -> np.ndarray:
    """RetinaNet's anchors on an image, float64 `(anchors, 4)` xyxy, normalised."""
    return anchors_of_picture(scales, height, width).astype("float64") / (width, height, width, height)
