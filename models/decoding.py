"""From the network's raw outputs to boxes: decoding, the best (anchor, class) pairs, non-maximum suppression.

Two ways lead to the same boxes. `TopBoxes` is a layer, the end of the graph, for accelerators: only a fixed number of
boxes leaves it. `top_boxes` reads the raw outputs on the host, which is faster where the network runs on the CPU. Both
are exact: the best `count` of all pairs; equal scores: lower anchor first, then lower class.
"""

from collections.abc import Callable
from typing import Literal

import keras
import numpy as np
from keras import ops

from models.box_coding import BOX_CODINGS
from oid.anchors.grids import make_anchors
from oid.boxes.best_pairs import best_pairs
from oid.boxes.suppression import classwise_nms, classwise_soft_nms
from oid.boxes.voting import vote_boxes

BoxCoding = Literal["distances", "ssd", "corners"]
ScoreActivation = Literal["sigmoid", "softmax"]
GROUP = 20  # scores that are looked at together: of these groups, too, only the best are searched


@keras.saving.register_keras_serializable(package="oid")
class TopBoxes(keras.layers.Layer):
    """Decodes the network's outputs and keeps the boxes with the highest scores: the end of the graph.

    An anchor can appear with several classes. "sigmoid" compares logits and turns only those of the result into scores,
    so scores that are equal after rounding still have the logits' order. "softmax" compares logarithms of the
    probabilities; entry 0 is the background, which is left out and not counted: label 0 is entry 1.

    Args:
        anchors: the description that `oid.anchors.grids.make_anchors` takes.
        count: boxes per image; fewer when there are fewer (anchor, class) pairs.
        box_coding: what the four numbers of an anchor mean, see `models.box_coding`.
        score_activation: what makes scores of the class outputs.

    Raises:
        ValueError: there is no such coding or activation.
    """

    def __init__(
        self,
        anchors: dict,
        count: int = 1000,
        box_coding: BoxCoding = "distances",
        score_activation: ScoreActivation = "sigmoid",
        **kwargs,
    ):
        # not cast on entry: of half-precision outputs only the few that are searched need be converted
        options = {name: value for name, value in kwargs.items() if name not in ("dtype", "autocast")}
        super().__init__(dtype="float32", autocast=False, **options)
        if box_coding not in BOX_CODINGS or score_activation not in ("sigmoid", "softmax"):
            raise ValueError(f"box coding {box_coding!r} with score activation {score_activation!r} does not exist")
        self.anchors = anchors
        self.count = count
        self.box_coding = box_coding
        self.score_activation = score_activation
        self._boxes = make_anchors(anchors)

    def call(self, outputs):
        """`classes` `(batch, anchors, classes)`, `boxes` `(batch, anchors, 4)` -> `boxes` `(batch, count, 4)` xyxy
        normalised and not clipped, `scores` `(batch, count)` descending, `labels` `(batch, count)` int32."""
        values, activation = outputs["classes"], ops.sigmoid
        if self.score_activation == "softmax":
            values, activation = ops.log_softmax(ops.cast(values, "float32"), axis=-1)[..., 1:], ops.exp
        num_anchors, num_classes = values.shape[1:]
        pairs = ops.reshape(values, (-1, num_anchors * num_classes))
        top, pair = best_entries(pairs, self.count, (max(num_classes, GROUP), GROUP))
        anchor = pair // num_classes  # [B,T]
        offsets = ops.cast(_take_rows(outputs["boxes"], anchor), "float32")  # [B,T,4]
        boxes = BOX_CODINGS[self.box_coding](offsets, ops.take(self._boxes, anchor, axis=0))
        return {"boxes": boxes, "scores": activation(top), "labels": ops.cast(pair % num_classes, "int32")}

    def get_config(self):
        names = ("anchors", "count", "box_coding", "score_activation")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(package="oid")
class TopPairs(keras.layers.Layer):
    """The end of a graph whose pictures have any shape: the (anchor, class) pairs with the highest logits.

    The best `count` pairs belong to the `count` anchors with the highest logits, so only these are searched. Boxes are
    decoded on the host, which knows the anchors of the shape.

    Args:
        count: pairs per image; fewer where there are fewer anchors.
    """

    def __init__(self, count: int = 2000, **kwargs):
        options = {name: value for name, value in kwargs.items() if name not in ("dtype", "autocast")}
        super().__init__(dtype="float32", autocast=False, **options)
        self.count = count

    def call(self, outputs):
        """`classes` `(batch, anchors, classes)`, `boxes` `(batch, anchors, 4)` -> `logits` `(batch, count)` descending,
        `pairs` `(batch, count)`, int32 anchor * classes + class, and `offsets` `(batch, count, 4)`."""
        classes = outputs["classes"]
        anchors, num_classes = ops.shape(classes)[1], classes.shape[-1]
        count = min(self.count, anchors) if isinstance(anchors, int) else ops.minimum(self.count, anchors)
        _, rows = _top_k(ops.cast(ops.max(classes, axis=-1), "float32"), count)
        rows = ops.sort(rows, axis=-1)  # equal logits: lower anchor first
        best = ops.reshape(_take_rows(classes, rows), (ops.shape(rows)[0], -1))  # [B,T*C]
        logits, index = _top_k(ops.cast(best, "float32"), count)
        anchor = ops.take_along_axis(rows, index // num_classes, axis=1)
        offsets = ops.cast(_take_rows(outputs["boxes"], anchor), "float32")
        return {"logits": logits, "pairs": anchor * num_classes + index % num_classes, "offsets": offsets}

    def compute_output_spec(self, outputs):
        batch = outputs["classes"].shape[0]
        specs = {"logits": ((batch, None), "float32"), "pairs": ((batch, None), "int32")}
        specs["offsets"] = ((batch, None, 4), "float32")
        return {name: keras.KerasTensor(shape, dtype=dtype) for name, (shape, dtype) in specs.items()}

    def get_config(self):
        return {**super().get_config(), "count": self.count}


def best_entries(values, count: int, groups: tuple[int, ...]):
    """The highest entries of each row, found through groups of neighbours: as `ops.top_k`, with less to sort.

    The best `count` entries belong to the `count` groups with the highest maxima, so only these are searched, by the
    next smaller groups.

    Args:
        values: float tensor `(batch, N)`, N known.
        count: how many; fewer where N is smaller.
        groups: sizes of the groups, from coarse to fine; () sorts `values` itself.

    Returns:
        float32 `(batch, count)`, descending, and their int32 indices; equal values: lower index first.
    """
    if not groups:
        return _top_k(ops.cast(values, "float32"), min(count, values.shape[1]))
    size, *finer = groups
    if values.shape[1] <= count * size:  # all groups would be searched
        return best_entries(values, count, tuple(finer))
    if rest := -values.shape[1] % size:
        values = ops.pad(values, ((0, 0), (0, rest)), constant_values=-np.inf)
    values = ops.reshape(values, (-1, values.shape[1] // size, size))  # [B,G,size]
    maxima = ops.cast(ops.max(values, axis=-1), "float32")
    _, group = _top_k(maxima, count)  # [B,T]
    group = ops.sort(group, axis=-1)  # in the order of `values`, which decides between equal ones
    searched = ops.reshape(_take_rows(values, group), (-1, group.shape[1] * size))
    top, index = best_entries(searched, count, tuple(finer))
    return top, ops.take_along_axis(group, index // size, axis=1) * size + index % size


def _top_k(values, count: int):
    """`ops.top_k` with int32 indices. PyTorch's takes equal values in any order, its stable sort does not."""
    if keras.config.backend() != "torch":
        top, index = ops.top_k(values, count)
    else:
        index = ops.argsort(-values, axis=-1)[:, :count]
        top = ops.take_along_axis(values, index, axis=-1)
    return top, ops.cast(index, "int32")


def _take_rows(values, index):
    """Rows `index` `(batch, T)` of `values` `(batch, N, C)`: `(batch, T, C)`. Whole rows at once, where
    `ops.take_along_axis` would fetch number by number."""
    first = ops.arange(ops.shape(values)[0], dtype="int32") * ops.shape(values)[1]
    return ops.take(ops.reshape(values, (-1, values.shape[2])), index + ops.expand_dims(first, -1), axis=0)


def top_boxes(
    classes: np.ndarray,
    offsets: np.ndarray,
    anchors: np.ndarray,
    *,
    count: int = 1000,
    score_threshold: float = 0.0,
    box_coding: BoxCoding = "distances",
    score_activation: ScoreActivation = "sigmoid",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Does on the host, for one image, what `TopBoxes` does in the graph, and leaves out low scores.

    Args:
        classes: float32 `(anchors, classes)`, the raw class outputs.
        offsets: float32 `(anchors, 4)`, the raw box outputs.
        anchors: `(anchors, 4)` from `oid.anchors.grids.make_anchors`.
        count: boxes, at most.
        score_threshold: boxes with a lower score are left out.
        box_coding: see `TopBoxes`.
        score_activation: see `TopBoxes`.

    Returns:
        float64 `(n, 4)` xyxy normalised and not clipped, float64 `(n,)` scores descending, int64 `(n,)` labels. The
        scores are those of `TopBoxes` before rounding to float32.

    Raises:
        ValueError: the arrays do not fit each other, or there is no such activation.
    """
    options = {"box_coding": box_coding, "score_activation": score_activation}
    return best_boxes(classes, offsets, anchors, count, score_threshold, **options)[:3]


def best_boxes(
    classes: np.ndarray,
    offsets: np.ndarray,
    anchors: np.ndarray,
    count: int,
    score_threshold: float = 0.0,
    *,
    box_coding: BoxCoding,
    score_activation: ScoreActivation,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """As `top_boxes`; gives int64 `(n,)` indices of the anchors as well."""
    if not len(classes) == len(offsets) == len(anchors):
        raise ValueError(f"{len(classes)} class outputs and {len(offsets)} box outputs of {len(anchors)} anchors")
    options = {"count": count, "score_threshold": score_threshold, "activation": score_activation}
    pairs, scores = best_pairs(classes, **options)
    anchor, labels = np.divmod(pairs, classes.shape[1] - (score_activation == "softmax"))
    boxes = np.asarray(offsets)[anchor].astype("float64"), np.asarray(anchors)[anchor].astype("float64")
    return BOX_CODINGS[box_coding](*boxes, library=np), scores, labels, anchor


def boxes_of_pairs(top: dict, anchors: np.ndarray, num_classes: int, *, box_coding: BoxCoding):
    """What `best_boxes` gives, from what `TopPairs` found in one image."""
    anchor, labels = np.divmod(np.asarray(top["pairs"], "int64"), num_classes)
    boxes = np.asarray(top["offsets"], "float64"), np.asarray(anchors)[anchor].astype("float64")
    scores = 1.0 / (1.0 + np.exp(-np.asarray(top["logits"], "float64")))
    return BOX_CODINGS[box_coding](*boxes, library=np), scores, labels, anchor


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    nms: Literal["hard", "linear", "gaussian"] = "hard",
    nms_iou: float = 0.55,
    nms_sigma: float = 0.5,
    vote_iou: float = 0.6,
    score_threshold: float = 0.0,
    max_boxes: int = 300,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips the boxes of one image to it and leaves out those that show the same thing as a better one.

    Args:
        boxes: `(n, 4)` xyxy normalised.
        scores: `(n,)`.
        labels: `(n,)` integers.
        nms: "hard" removes boxes of one class that overlap a better one; "linear" and "gaussian" lower their scores,
            see `oid.boxes.suppression.soft_nms`.
        nms_iou: the overlap from which on this happens; "gaussian" does not use it.
        nms_sigma: the width of "gaussian".
        vote_iou: after "hard", a box moves to the mean of those that overlap it by so much, see `oid.boxes.voting`, and
            goes when it then overlaps a better one; 1 = none moves. The others stay as boxes of their own.
        score_threshold: boxes with a lower score are left out, before and, where scores were lowered, after.
        max_boxes: at most so many.

    Returns:
        The boxes that stay: float64 `(k, 4)` clipped to [0, 1], float64 `(k,)` scores descending, int64 `(k,)` labels.
    """
    boxes = np.clip(np.asarray(boxes, "float64"), 0.0, 1.0)
    scores, labels = np.asarray(scores, "float64"), np.asarray(labels, "int64")
    # a box outside the picture has no area left, and one without area can never be right
    good = (scores >= score_threshold) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    boxes, scores, labels = boxes[good], scores[good], labels[good]
    if nms == "hard":
        keep = classwise_nms(boxes, scores, labels, nms_iou, max_boxes)
        boxes, scores, labels = vote_boxes(boxes, scores, labels, keep, vote_iou), scores[keep], labels[keep]
        if vote_iou < 1:  # some have moved onto better ones, where they would be further votes in an ensemble
            keep = classwise_nms(boxes, scores, labels, nms_iou)
            boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
        return boxes, scores, labels
    options = {"iou_threshold": nms_iou, "sigma": nms_sigma, "score_threshold": score_threshold}
    keep, scores = classwise_soft_nms(boxes, scores, labels, method=nms, max_boxes=max_boxes, **options)
    return boxes[keep], scores, labels[keep]


# === The suppression of the published RetinaNets =====================================================================


def published_boxes(
    pairs_of: Callable, *, score_threshold: float, nms_iou: float, max_boxes: int, ends: tuple[float, float]
):
    """What keras-retinanet's inference model gives for one image, exactly.

    1. All pairs of an anchor and a class with a score above the threshold; boxes are clipped to the picture.
    2. Non-maximum suppression within each class: IoU above `nms_iou` goes. A box without area overlaps nothing and
       stays; one whose sides have swapped is compared as if they had not.
    3. The `max_boxes` best; equal scores: lower class first, then lower anchor.

    keras-retinanet does this for all pairs. Here they come in the order of their scores, as many as are needed: what
    a better box suppresses does not depend on what follows.

    Args:
        pairs_of: function of a number and a score; gives as many of the best pairs that are not below it: float64
            boxes `(n, 4)` xyxy normalised, scores `(n,)` descending, labels `(n,)` and anchors `(n,)`.
        score_threshold, nms_iou, max_boxes: published: 0.05, 0.5 and 300.
        ends: right and lower end of the picture, normalised: 1, or one pixel less, see `clip_ends`.

    Returns:
        As `suppress`.
    """
    count = 4 * max_boxes
    while True:
        boxes, scores, labels, anchors = pairs_of(count, score_threshold)
        complete = len(scores) < count
        # pairs that are equal to the last one may be missing, and would decide between them
        good = scores > (score_threshold if complete else scores[-1])
        boxes, scores, labels, anchors = (values[good] for values in (boxes, scores, labels, anchors))
        if (scores[1:] == scores[:-1]).any():
            order = np.lexsort((anchors, labels, -scores))
            boxes, scores, labels = boxes[order], scores[order], labels[order]
        boxes = np.clip(boxes, 0.0, (*ends, *ends))
        upright = np.concatenate(
            [np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1
        )
        keep = classwise_nms(upright, scores, labels, nms_iou, max_boxes)
        if complete or len(keep) == max_boxes:
            return boxes[keep], scores[keep], labels[keep]
        count *= 16


def clip_ends(rule: Literal["side", "last_pixel"], height: int, width: int) -> tuple[float, float]:
    """Where boxes end at the right and at the bottom, normalised: keras-retinanet clips to the sides before its version
    1.0, and to the centres of the last pixels, as it says, since."""
    return (1.0, 1.0) if rule == "side" else (1.0 - 1.0 / width, 1.0 - 1.0 / height)
