"""From the network's raw outputs to the best boxes, in the graph or on the host.

`TopBoxes` is a layer, the end of the graph on accelerators: only a fixed number of boxes leaves it. `best_candidates`
reads the raw outputs on the host, which is faster where the network runs on the CPU. Both are exact: the best `count`
(anchor, class) pairs of all; equal scores: lower anchor first, then lower class.
"""

import keras
import numpy as np
from keras import ops

from models.box_deltas import DECODERS
from models.run_settings import BoxDeltas, Scores
from models.suppression import Candidates, ScoredBoxes
from oid.anchors.grids import AnchorGrids
from oid.boxes.best_pairs import best_pairs

GROUP = 20  # scores whose maximum is taken, so that only the groups with the highest maxima are searched


class TopBoxes(keras.layers.Layer):
    """Decodes the network's outputs and keeps the boxes with the highest scores.

    An anchor can appear with several classes. "sigmoid" compares logits and turns only those of the result into scores,
    so scores that are equal after rounding still have the logits' order. "softmax" compares logarithms of the
    probabilities; entry 0 is the background, which is left out and not counted: label 0 is entry 1.

    Args:
        anchors: of the network.
        count: boxes per image; fewer when there are fewer (anchor, class) pairs.
        box_deltas: what the four numbers of an anchor mean, see `models.box_deltas`.
        scores: what makes scores of the class outputs.
    """

    def __init__(
        self,
        anchors: AnchorGrids,
        count: int = 1000,
        box_deltas: BoxDeltas = "distances",
        scores: Scores = "sigmoid",
        name: str = "top_boxes",
    ):
        # not cast on entry: of half-precision outputs only those that are searched need be converted
        super().__init__(dtype="float32", autocast=False, name=name)
        self.count = count
        self.decode = DECODERS[box_deltas]
        self.scores = scores
        self._boxes = anchors.boxes()

    def call(self, outputs):
        """`classes` `(batch, anchors, classes)`, `boxes` `(batch, anchors, 4)` -> `boxes` `(batch, count, 4)` xyxy
        normalised and not clipped, `scores` `(batch, count)` descending, `labels` `(batch, count)` int32."""
        values, activation = outputs["classes"], ops.sigmoid
        if self.scores == "softmax":
            values, activation = ops.log_softmax(ops.cast(values, "float32"), axis=-1)[..., 1:], ops.exp
        num_anchors, num_classes = values.shape[1:]
        pairs = ops.reshape(values, (-1, num_anchors * num_classes))
        top, pair = best_entries(pairs, self.count, (max(num_classes, GROUP), GROUP))
        anchor = pair // num_classes  # [B,T]
        offsets = ops.cast(_take_rows(outputs["boxes"], anchor), "float32")  # [B,T,4]
        boxes = self.decode(offsets, ops.take(self._boxes, anchor, axis=0))
        return {"boxes": boxes, "scores": activation(top), "labels": ops.cast(pair % num_classes, "int32")}


class TopPairs(keras.layers.Layer):
    """Keeps the (anchor, class) pairs with the highest logits: the end of the graph for images of any shape.

    The best `count` pairs belong to the `count` anchors with the highest logits, so only these are searched. Boxes are
    decoded on the host, which knows the anchors of the shape.

    Args:
        count: pairs per image; fewer where there are fewer anchors.
    """

    def __init__(self, count: int = 2000, name: str = "top_pairs"):
        super().__init__(dtype="float32", autocast=False, name=name)
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


# === On the host =====================================================================================================
def best_candidates(
    classes: np.ndarray,
    offsets: np.ndarray,
    anchors: np.ndarray,
    count: int = 1000,
    score_threshold: float = 0.0,
    *,
    box_deltas: BoxDeltas = "distances",
    scores: Scores = "sigmoid",
) -> Candidates:
    """Does on the host, for one image, what `TopBoxes` does in the graph, and leaves out low scores.

    Args:
        classes: float32 `(anchors, classes)`, the raw class outputs.
        offsets: float32 `(anchors, 4)`, the raw box outputs.
        anchors: `(anchors, 4)` xyxy, normalised.
        count: boxes, at most.
        score_threshold: boxes with a lower score are left out.
        box_deltas, scores: see `TopBoxes`.

    Returns:
        The best pairs, boxes not clipped. The scores are those of `TopBoxes` before rounding to float32.

    Raises:
        ValueError: the arrays do not fit each other.
    """
    if not len(classes) == len(offsets) == len(anchors):
        raise ValueError(f"{len(classes)} class outputs and {len(offsets)} box outputs of {len(anchors)} anchors")
    pairs, values = best_pairs(classes, count=count, score_threshold=score_threshold, activation=scores)
    anchor, labels = np.divmod(pairs, classes.shape[1] - (scores == "softmax"))
    boxes = _decoded(np.asarray(offsets)[anchor], np.asarray(anchors)[anchor], box_deltas)
    return Candidates(ScoredBoxes(boxes, values, labels), anchor)


def candidates_of_pairs(
    top: dict[str, np.ndarray], anchors: np.ndarray, num_classes: int, *, box_deltas: BoxDeltas
) -> Candidates:
    """As `best_candidates`, from what `TopPairs` found in one image."""
    anchor, labels = np.divmod(np.asarray(top["pairs"], "int64"), num_classes)
    scores = 1.0 / (1.0 + np.exp(-np.asarray(top["logits"], "float64")))
    boxes = _decoded(top["offsets"], np.asarray(anchors)[anchor], box_deltas)
    return Candidates(ScoredBoxes(boxes, scores, labels), anchor)


def _decoded(offsets: np.ndarray, anchors: np.ndarray, box_deltas: BoxDeltas) -> np.ndarray:
    return DECODERS[box_deltas](np.asarray(offsets, "float64"), np.asarray(anchors, "float64"), library=np)
