"""Which anchor learns which ground-truth box by the anchors' own places: maximum IoU and ATSS.

As in `models.assignment` batches have fixed shapes, padding has label -1, rows with the same coordinates are one object
whose anchors are assigned to the first of its rows, and an anchor that several boxes choose learns the one with the
highest IoU, of equals the first.
"""

from collections.abc import Sequence

from keras import ops

from models.assignment import best_of_chosen, centre_inside, pairwise_iou

TIE = 1e-4  # numbers whose ratio is nearer to 1 are equal: the rounding of a backend must not choose


def max_iou_assignment(gt_boxes, gt_labels, anchors, *, positive: float = 0.5, negative: float = 0.4):
    """Assigns by overlap with the anchors, as SSD and RetinaNet do (Liu et al. 2016, section 2.2; Lin et al. 2017).

    1. An anchor learns the box that it overlaps most when that IoU is at least `positive`; it is background below
       `negative`, and ignored between.
    2. Each box takes its best anchor whatever the IoU, if there is any overlap: of the anchors with its highest IoU the
       one whose centre is nearest (a box inside many anchors of one size has the same IoU with all). Of boxes that take
       the same anchor, the one with the highest IoU gets it.

    Args:
        gt_boxes: `(batch, gt, 4)`, xyxy, normalised, padded.
        gt_labels: `(batch, gt)` int32 class indices; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        positive: lowest IoU of a positive.
        negative: lowest IoU of an ignored anchor.

    Returns:
        A tuple `(assigned, target)`: int32 `(batch, anchors)`, the index of the box that each anchor learns, -1 for
        none, -2 for an ignored anchor; float32 `(batch, anchors)`, 1 where there is one, 0 elsewhere.
    """
    real = ops.expand_dims(gt_labels >= 0, -1)  # [B,G,1]
    iou = ops.where(real, pairwise_iou(gt_boxes, anchors), 0.0)  # [B,G,A]
    highest = ops.max(iou, axis=1)  # [B,A]
    index = ops.cast(ops.argmax(iou, axis=1), "int32")
    assigned = ops.where(highest >= positive, index, ops.where(highest < negative, -1, -2))

    best = ops.max(iou, axis=-1, keepdims=True)  # [B,G,1]
    distance = ops.where(iou >= (1 - TIE) * best, _squared_distance(gt_boxes, anchors), 1e9)
    nearest = distance <= (1 + TIE) * ops.min(distance, axis=-1, keepdims=True) + 1e-9
    nearest = ops.cast(ops.argmax(ops.cast(nearest, "int32"), axis=-1), "int32")  # [B,G], of equals the first
    taken = ops.expand_dims(nearest, -1) == ops.arange(anchors.shape[0], dtype="int32")  # [B,G,A]
    forced = best_of_chosen(ops.logical_and(taken, best > 0), iou)
    assigned = ops.where(forced >= 0, forced, assigned)
    return assigned, ops.cast(assigned >= 0, "float32")


def atss_assignment(gt_boxes, gt_labels, anchors, cell_sides, level_sizes: Sequence[int], *, candidates: int = 9):
    """Assigns by a threshold that each box sets itself (Zhang et al. 2020, arXiv 1912.02424, section 3).

    1. Candidates of a box are, on every map, the `candidates` anchors whose centres are nearest to its own; more where
       they tie, as the anchors of one cell do.
    2. Its threshold is the mean of the candidates' IoUs plus their standard deviation (of a sample, as in the authors'
       code).
    3. The candidates that reach it, and whose centres lie in the box, learn it. Unlike the paper's, a box smaller than
       the anchor's cell counts as large as the cell (`centre_inside`): it could lie between all centres.

    Args:
        gt_boxes: `(batch, gt, 4)`, xyxy, normalised, padded.
        gt_labels: `(batch, gt)` int32 class indices; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        level_sizes: how many of the anchors belong to each map, in their order.
        candidates: so many anchors per box and map.

    Returns:
        As `max_iou_assignment`, without ignored anchors.

    Raises:
        ValueError: `level_sizes` do not add up to the anchors.
    """
    if sum(level_sizes) != anchors.shape[0]:
        raise ValueError(f"level_sizes {list(level_sizes)} do not add up to {anchors.shape[0]} anchors")
    distance = _squared_distance(gt_boxes, anchors)  # [B,G,A]
    near, start = [], 0
    for size in level_sizes:
        on_map = distance[..., start : start + size]
        farthest = -ops.top_k(-on_map, min(candidates, size))[0][..., -1:]
        near.append(on_map <= (1 + TIE) * farthest)
        start += size
    near = ops.concatenate(near, axis=-1)

    iou = pairwise_iou(gt_boxes, anchors)
    weight = ops.cast(near, "float32")
    count = ops.sum(weight, axis=-1, keepdims=True)
    mean = ops.sum(weight * iou, axis=-1, keepdims=True) / count
    variance = ops.sum(weight * ops.square(iou - mean), axis=-1, keepdims=True) / ops.maximum(count - 1, 1.0)
    reached = ops.logical_and(iou >= (1 - TIE) * (mean + ops.sqrt(variance)), iou > 0)
    chosen = ops.logical_and(near, reached)
    chosen = ops.logical_and(chosen, centre_inside(gt_boxes, anchors, cell_sides))
    assigned = best_of_chosen(ops.logical_and(chosen, ops.expand_dims(gt_labels, -1) >= 0), iou)
    return assigned, ops.cast(assigned >= 0, "float32")


def _squared_distance(gt_boxes, anchors):
    """Of the centres: `(batch, gt, anchors)`."""
    x = ops.expand_dims(gt_boxes[..., 0] + gt_boxes[..., 2], -1) - (anchors[:, 0] + anchors[:, 2])
    y = ops.expand_dims(gt_boxes[..., 1] + gt_boxes[..., 3], -1) - (anchors[:, 1] + anchors[:, 3])
    return (x * x + y * y) / 4
