"""From the best boxes of an image to its detections: boxes that show the same object become one."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from oid.boxes.suppression import classwise_nms, classwise_soft_nms
from oid.boxes.voting import vote_boxes
from oid.files import InputError
from oid.fusion.fuse import fuse

Nms = Literal["hard", "linear", "gaussian"]
Suppression = Literal["auto", "own", "keras_retinanet"]
Clip = Literal["side", "last_pixel"]

KERAS_RETINANET_SCORE, KERAS_RETINANET_IOU, KERAS_RETINANET_BOXES = 0.05, 0.5, 300  # of its inference models
MIRRORED_FUSION_IOU = 0.55  # of the published inference script
LEAST_SIDE = 1e-5  # of an image; a smaller box has no area in a CSV


@dataclasses.dataclass(frozen=True)
class DetectionOptions:
    """How the objects of an image are found. The defaults are those of a04.

    Attributes:
        score_threshold: boxes with a lower score are left out.
        nms: "hard" removes boxes of one class that overlap a better one; "linear" and "gaussian" lower their scores,
            see `oid.boxes.suppression.classwise_soft_nms`.
        nms_iou: the overlap above which this happens; "gaussian" does not use it.
        nms_sigma: the width of "gaussian".
        vote_iou: after "hard", a box moves to the mean of the boxes that overlap it by at least this, see
            `oid.boxes.voting`; 1 = none moves.
        mirror: also looks at the mirrored image, which takes twice as long.
        max_boxes: at most this many per image.
        suppression: "own" is described by the fields above. "keras_retinanet" is that of converted RetinaNets, see
            `keras_retinanet_detections`; it uses `score_threshold`, `mirror` and `max_boxes` only. "auto" is
            "keras_retinanet" for converted RetinaNets, "own" for all others.
    """

    score_threshold: float = 0.01
    nms: Nms = "hard"
    nms_iou: float = 0.55
    nms_sigma: float = 0.5
    vote_iou: float = 0.6
    mirror: bool = True
    max_boxes: int = 300
    suppression: Suppression = "auto"

    def resolved(self, *, any_shape: bool) -> "DetectionOptions":
        """Replaces the suppression "auto".

        Raises:
            InputError: "keras_retinanet" of a network that does not take images of any shape.
        """
        if self.suppression == "keras_retinanet" and not any_shape:
            raise InputError("the suppression keras_retinanet is for converted RetinaNets, and this is another network")
        default = "keras_retinanet" if any_shape else "own"
        return dataclasses.replace(self, suppression=default) if self.suppression == "auto" else self


class ScoredBoxes(NamedTuple):
    """Boxes of one image.

    Attributes:
        boxes: float64 `(n, 4)`, xyxy, normalised to the image.
        scores: float64 `(n,)`, descending.
        labels: int64 `(n,)`, class indices.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def at(self, rows: np.ndarray | slice) -> "ScoredBoxes":
        """The boxes at these rows, or where a mask is true."""
        return ScoredBoxes(self.boxes[rows], self.scores[rows], self.labels[rows])

    def mirrored(self) -> "ScoredBoxes":
        """The boxes in the mirror image."""
        return self._replace(boxes=np.asarray(self.boxes)[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0))


class Candidates(NamedTuple):
    """The best (anchor, class) pairs of one image, and the int64 `(n,)` index of each one's anchor."""

    found: ScoredBoxes
    anchors: np.ndarray


GetCandidates = Callable[[int, float], Candidates]  # get(count, score): the best `count` with at least this score


def suppress(found: ScoredBoxes, options: DetectionOptions) -> ScoredBoxes:
    """Clips the boxes of one image to it, and keeps one of those that show the same object.

    1. Boxes with a low score or, once clipped, without area are dropped.
    2. Non-maximum suppression within each class.
    3. After "hard" the boxes move by voting. A box that then overlaps a better one is dropped: in an ensemble it would
       be a second vote.

    Args:
        found: in any order.
        options: without `mirror`, `suppression`.
    """
    boxes = np.clip(np.asarray(found.boxes, "float64"), 0.0, 1.0)
    scores, labels = np.asarray(found.scores, "float64"), np.asarray(found.labels, "int64")
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    found = ScoredBoxes(boxes, scores, labels).at((scores >= options.score_threshold) & has_area)
    if options.nms != "hard":
        keep, scores = classwise_soft_nms(
            *found,
            method=options.nms,
            iou_threshold=options.nms_iou,
            sigma=options.nms_sigma,
            score_threshold=options.score_threshold,
            max_boxes=options.max_boxes,
        )
        return found.at(keep)._replace(scores=scores)
    keep = classwise_nms(*found, options.nms_iou, options.max_boxes)
    kept = found.at(keep)._replace(boxes=vote_boxes(*found, keep, options.vote_iou))
    return kept.at(classwise_nms(*kept, options.nms_iou)) if options.vote_iou < 1 else kept


# === The suppression of keras-retinanet ==============================================================================
def keras_retinanet_detections(
    found: ScoredBoxes, mirrored: ScoredBoxes | None, options: DetectionOptions
) -> ScoredBoxes:
    """Does what the inference script of the published RetinaNets does with the detections of one image.

    Boxes without area, which the network can give, are left out. The detections of the image and of its mirrored one
    are fused: a box in one of the two keeps half its score. The script weights coordinates by the number of boxes,
    `oid.fusion.fuse` by score.

    Args:
        found: of `keras_retinanet_suppress`.
        mirrored: the same of the mirrored image; None = not looked at.
        options: `score_threshold` and `max_boxes` limit the result.
    """
    found = _with_area(found)
    if mirrored is not None:
        views = zip(found, _with_area(mirrored).mirrored(), strict=True)
        found = ScoredBoxes(*fuse("wbf", *(list(pair) for pair in views), iou_threshold=MIRRORED_FUSION_IOU)[:3])
    best = found.at(slice(options.max_boxes))
    return best.at(best.scores >= options.score_threshold)


def _with_area(found: ScoredBoxes) -> ScoredBoxes:
    """Without the boxes that are too small or whose sides have swapped."""
    return found.at((found.boxes[:, 2:] - found.boxes[:, :2] >= LEAST_SIDE).all(axis=1))


def keras_retinanet_suppress(
    get_candidates: GetCandidates,
    ends: tuple[float, float],
    *,
    score_threshold: float = KERAS_RETINANET_SCORE,
    nms_iou: float = KERAS_RETINANET_IOU,
    max_boxes: int = KERAS_RETINANET_BOXES,
) -> ScoredBoxes:
    """Gives what keras-retinanet's inference model gives for one image, exactly.

    1. All pairs of an anchor and a class with a score above the threshold; boxes are clipped to the image.
    2. Non-maximum suppression within each class: a box with a higher IoU than `nms_iou` is dropped. A box without area
       overlaps nothing and stays; one whose sides have swapped is compared as if they had not.
    3. The `max_boxes` best; equal scores: lower class first, then lower anchor.

    keras-retinanet does this for all pairs. Here they are fetched in the order of their scores until there are enough,
    because what a better box suppresses does not depend on what follows.

    Args:
        get_candidates: of the image.
        ends: right and lower end of the image, normalised, see `clip_ends`.
        score_threshold, nms_iou, max_boxes: see above.
    """
    count = 4 * max_boxes
    while True:
        found, anchors = get_candidates(count, score_threshold)
        complete = len(anchors) < count
        # Without the last score: pairs with the same one may be missing, and they would decide between equal ones.
        good = found.scores > (score_threshold if complete else found.scores[-1])
        found, anchors = found.at(good), anchors[good]
        if (found.scores[1:] == found.scores[:-1]).any():
            found = found.at(np.lexsort((anchors, found.labels, -found.scores)))
        found = found._replace(boxes=np.clip(found.boxes, 0.0, (*ends, *ends)))
        corners = found.boxes[:, :2], found.boxes[:, 2:]
        upright = np.concatenate([np.minimum(*corners), np.maximum(*corners)], axis=1)
        keep = classwise_nms(upright, found.scores, found.labels, nms_iou, max_boxes)
        if complete or len(keep) == max_boxes:
            return found.at(keep)
        count *= 16


def clip_ends(rule: Clip, height: int, width: int) -> tuple[float, float]:
    """The right and lower end of an image, normalised, to which keras-retinanet clips boxes.

    Before its version 1.0 these were the image's sides, since then they are the coordinates of its last pixels.
    """
    return (1.0, 1.0) if rule == "side" else (1.0 - 1.0 / width, 1.0 - 1.0 / height)
