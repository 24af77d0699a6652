"""Which anchor learns which ground-truth box: by task alignment, or by the maximum IoU as published.

All functions work on the device, on batches of fixed shape; padding has label -1. Rows with the same coordinates are
one object: its anchors are assigned to the first of its rows. Gradients do not flow through an assignment: the caller
stops them.
"""

from keras import ops

TIE = 1e-4  # numbers that differ less, relatively, are equal: the rounding of a backend must not choose


def pairwise_iou(a, b):
    """IoU of each box of `(..., N, 4)` with each of `(..., M, 4)`, xyxy: `(..., N, M)`; 0 for boxes without area."""
    intersection = pairwise_intersection(a, b)
    union = ops.expand_dims(area(a), -1) + ops.expand_dims(area(b), -2) - intersection
    return intersection / ops.maximum(union, 1e-9)


def pairwise_intersection(a, b):
    """Areas of the intersections of `(..., N, 4)` with `(..., M, 4)`: `(..., N, M)`."""
    a, b = ops.expand_dims(a, -2), ops.expand_dims(b, -3)
    width = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    height = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    return ops.maximum(width, 0.0) * ops.maximum(height, 0.0)


def area(boxes):
    """Areas of xyxy boxes `(..., 4)`: `(...)`; 0 for swapped corners."""
    return ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)


def centre_inside(boxes, anchors, cell_sides):
    """Whether an anchor's centre lies in a box; a box smaller than the anchor's cell counts as large as the cell.

    A box that covers half of an anchor's area always contains its centre.

    Args:
        boxes: `(batch, boxes, 4)`, xyxy, normalised.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.

    Returns:
        A bool tensor `(batch, boxes, anchors)`.
    """
    inside = []
    for low, high in ((0, 2), (1, 3)):
        anchor_centre = (anchors[:, low] + anchors[:, high]) / 2  # [A]
        centre = ops.expand_dims((boxes[..., low] + boxes[..., high]) / 2, -1)  # [B,G,1]
        half = ops.expand_dims((boxes[..., high] - boxes[..., low]) / 2, -1)
        half = ops.maximum(half, cell_sides / 2) + 1e-6  # [B,G,A]; a border belongs to both cells
        inside.append(ops.abs(anchor_centre - centre) <= half)
    return ops.logical_and(*inside)


def task_aligned_assignment(
    logits,
    boxes,
    gt_boxes,
    gt_labels,
    anchors,
    cell_sides,
    *,
    candidates: int = 10,
    score_power: float = 0.5,
    iou_power: float = 6.0,
):
    """Chooses the anchors that learn each box, and how strongly (Feng et al. 2021, arXiv 2108.07755, section 3.2).

    An anchor is good for a box when it already gives the box's class a high score *and* predicts a well-placed box.

    1. An anchor may learn a box when its centre lies inside (`centre_inside`): each map has a candidate for each box.
    2. alignment = score of the box's class ^ `score_power` * IoU of the predicted box ^ `iou_power`.
    3. The `candidates` best-aligned anchors of a box (more where they tie) learn it. An anchor that several boxes
       choose learns the box that its prediction overlaps most.
    4. The target score is the alignment, scaled so that the best anchor of a box has the box's best IoU.

    The score of a box that is listed with several classes is their mean.

    Args:
        logits: `(batch, anchors, classes)`; their sigmoids are the scores.
        boxes: `(batch, anchors, 4)`, predicted boxes, xyxy, normalised.
        gt_boxes: `(batch, gt, 4)`, xyxy, normalised, padded.
        gt_labels: `(batch, gt)` int32 class indices; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        candidates: anchors per box.
        score_power: exponent of the score.
        iou_power: exponent of the IoU.

    Returns:
        A tuple `(assigned, target)`: int32 `(batch, anchors)`, the index of the box that each anchor learns, -1 for
        background; float32 `(batch, anchors)`, its target score in [0, 1], 0 for background.
    """
    num_anchors = anchors.shape[0]
    score = scores_of_boxes(logits, gt_boxes, gt_labels)  # [B,G,A]
    iou = pairwise_iou(gt_boxes, boxes)  # [B,G,A]
    may_learn = ops.logical_and(centre_inside(gt_boxes, anchors, cell_sides), ops.expand_dims(gt_labels, -1) >= 0)
    alignment = ops.where(may_learn, _power(score, score_power) * _power(iou, iou_power), 0.0)  # [B,G,A]

    best = ops.top_k(alignment, min(candidates, num_anchors))[0]  # [B,G,candidates]
    chosen = ops.logical_and(alignment >= best[..., -1:], alignment > 0)
    assigned = best_of_chosen(chosen, iou)  # [B,A]
    chosen = ops.logical_and(chosen, ops.expand_dims(assigned, 1) == row_indices(gt_boxes))  # one box per anchor

    alignment = ops.where(chosen, alignment, 0.0)
    best_alignment = ops.max(alignment, axis=-1, keepdims=True)
    best_iou = ops.max(ops.where(chosen, iou, 0.0), axis=-1, keepdims=True)
    target = ops.max(alignment * (best_iou / ops.maximum(best_alignment, 1e-30)), axis=1)  # [B,A]
    return assigned, target


def max_iou_assignment(gt_boxes, gt_labels, anchors, *, positive: float = 0.5, negative: float = 0.4):
    """Assigns by the overlap with the anchors, as SSD and RetinaNet do (Liu et al. 2016, 2.2; Lin et al. 2017, 4.1).

    1. An anchor whose highest IoU with a box is at least `positive` learns that box. It is ignored if that IoU is above
       `negative`, else it is background.
    2. A box forces its best anchor to learn it, whatever the IoU above 0. Of anchors with equal IoU it takes the one
       with the nearest centre (a box inside many anchors of one size has the same IoU with all). Of boxes that force
       the same anchor the one with the highest IoU gets it. (keras-retinanet does without this rule.)

    Args:
        gt_boxes: `(batch, gt, 4)`, xyxy, normalised, padded.
        gt_labels: `(batch, gt)` int32 class indices; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        positive: lowest IoU of a positive.
        negative: highest IoU of background; RetinaNet has 0.4, SSD ignores nothing (0.5).

    Returns:
        As `task_aligned_assignment`, with -2 for an ignored anchor, and with 1 as the target of each positive.
    """
    real = ops.expand_dims(gt_labels >= 0, -1)  # [B,G,1]
    iou = ops.where(real, pairwise_iou(gt_boxes, anchors), 0.0)  # [B,G,A]
    highest = ops.max(iou, axis=1)  # [B,A]
    index = ops.cast(ops.argmax(iou, axis=1), "int32")
    assigned = ops.where(highest >= positive, index, ops.where(highest > negative, -2, -1))

    best = ops.max(iou, axis=-1, keepdims=True)  # [B,G,1]
    distance = ops.where(iou >= (1 - TIE) * best, _squared_distance(gt_boxes, anchors), 1e9)
    nearest = distance <= (1 + TIE) * ops.min(distance, axis=-1, keepdims=True) + 1e-9
    nearest = ops.cast(ops.argmax(ops.cast(nearest, "int32"), axis=-1), "int32")  # [B,G], of equals the first
    taken = ops.expand_dims(nearest, -1) == ops.arange(anchors.shape[0], dtype="int32")  # [B,G,A]
    forced = best_of_chosen(ops.logical_and(taken, best > 0), iou)
    assigned = ops.where(forced >= 0, forced, assigned)
    return assigned, ops.cast(assigned >= 0, "float32")


def best_of_chosen(chosen, iou):
    """For each anchor the box with the highest IoU among those that chose it, the first of equals; -1 if none did.

    Args:
        chosen: bool `(batch, gt, anchors)`.
        iou: float `(batch, gt, anchors)`, at least 0.

    Returns:
        An int32 tensor `(batch, anchors)`.
    """
    iou = ops.where(chosen, iou, -1.0)
    return ops.where(ops.max(iou, axis=1) >= 0, ops.cast(ops.argmax(iou, axis=1), "int32"), -1)


def row_indices(gt_boxes):
    """0, 1, ... over the ground-truth axis, shaped `(1, gt, 1)`."""
    return ops.reshape(ops.arange(gt_boxes.shape[1], dtype="int32"), (1, -1, 1))


def same_boxes(gt_boxes):
    """Which rows have the same coordinates: bool `(batch, gt, gt)`."""
    return ops.all(ops.expand_dims(gt_boxes, 2) == ops.expand_dims(gt_boxes, 1), axis=-1)


def classes_of_boxes(gt_boxes, gt_labels, num_classes: int):
    """All classes of each box: rows with the same coordinates are one object.

    Open Images lists a box again for each ancestor of its class. If each row were its own object, one row would take
    all the anchors, and the other classes would be negatives there.

    Args:
        gt_boxes: `(batch, gt, 4)`.
        gt_labels: `(batch, gt)` int32; -1 marks padding.
        num_classes: number of classes.

    Returns:
        A float32 tensor `(batch, gt, num_classes)` of zeros and ones; zeros for padding.
    """
    real = ops.expand_dims(ops.cast(gt_labels >= 0, "float32"), -1)  # [B,G,1]
    one_hot = ops.one_hot(ops.maximum(gt_labels, 0), num_classes, dtype="float32") * real  # [B,G,C]
    return ops.minimum(ops.matmul(ops.cast(same_boxes(gt_boxes), "float32"), one_hot), 1.0) * real


def scores_of_boxes(logits, gt_boxes, gt_labels):
    """The score that each anchor gives to each box, the mean over the box's classes: `(batch, gt, anchors)`."""
    num_classes, rows = logits.shape[-1], gt_labels.shape[1]
    if num_classes <= rows:
        classes = classes_of_boxes(gt_boxes, gt_labels, num_classes)  # [B,G,C]
        classes = classes / ops.maximum(ops.sum(classes, axis=-1, keepdims=True), 1.0)
        return ops.einsum("bgc,bac->bga", classes, ops.sigmoid(logits))
    # With many classes read only the columns of the boxes' labels; weights of rows replace weights of classes.
    columns = ops.expand_dims(ops.maximum(gt_labels, 0), 1)  # [B,1,G]
    score = ops.sigmoid(ops.take_along_axis(logits, columns, axis=-1))  # [B,A,G]
    real = gt_labels >= 0
    same = ops.logical_and(same_boxes(gt_boxes), ops.expand_dims(real, 1))  # [B,G,G]
    twice = ops.logical_and(same, ops.expand_dims(gt_labels, 2) == ops.expand_dims(gt_labels, 1))
    weight = ops.cast(same, "float32") / ops.maximum(ops.sum(ops.cast(twice, "float32"), 1, keepdims=True), 1.0)
    weight = weight / ops.maximum(ops.sum(weight, axis=-1, keepdims=True), 1.0)
    return ops.einsum("bgh,bah->bga", weight, score)


def _power(x, exponent: float):
    """`x ** exponent`; multiplications and a square root are faster where they suffice."""
    if exponent == 0.5:
        return ops.sqrt(x)
    if exponent == 6:
        cube = x * x * x
        return cube * cube
    return x**exponent


def _squared_distance(gt_boxes, anchors):
    """Squared distances between the centres of boxes `(batch, gt, 4)` and of anchors: `(batch, gt, anchors)`."""
    x = ops.expand_dims(gt_boxes[..., 0] + gt_boxes[..., 2], -1) - (anchors[:, 0] + anchors[:, 2])
    y = ops.expand_dims(gt_boxes[..., 1] + gt_boxes[..., 3], -1) - (anchors[:, 1] + anchors[:, 3])
    return (x * x + y * y) / 4
