"""Which anchor learns which ground-truth box: task-aligned assignment, on the device, from padded boxes.

Feng et al. 2021 (TOOD, arXiv 2108.07755), section 3.2: an anchor is good for a box when it already gives that box's
class a high score *and* a well-placed box. All functions work on batches of fixed shape; padding has label -1.
"""

from keras import ops


def pairwise_iou(a, b):
    """Intersection over union of two lists of boxes; boxes without area overlap nothing.

    Args:
        a: float tensor `(..., N, 4)`, xyxy.
        b: float tensor `(..., M, 4)`, xyxy.

    Returns:
        A float tensor `(..., N, M)`.
    """
    intersection = pairwise_intersection(a, b)
    union = ops.expand_dims(area(a), -1) + ops.expand_dims(area(b), -2) - intersection
    return intersection / ops.maximum(union, 1e-9)


def pairwise_intersection(a, b):
    """Areas of the intersections: `(..., N, 4)` and `(..., M, 4)` give `(..., N, M)`."""
    a, b = ops.expand_dims(a, -2), ops.expand_dims(b, -3)
    width = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    height = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    return ops.maximum(width, 0.0) * ops.maximum(height, 0.0)


def area(boxes):
    """Areas of xyxy boxes, 0 for swapped corners: `(..., 4)` gives `(...)`."""
    return ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)


def task_aligned_assignment(
    scores,
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
    """Chooses the anchors that learn each ground-truth box, and how strongly.

    1. An anchor may learn a box when its centre lies inside; a box smaller than the anchor's cell counts as large as
       the cell, so that every box has a candidate on every map.
    2. alignment = score of the box's class ^ `score_power` * IoU of the predicted box ^ `iou_power`.
    3. The `candidates` best-aligned anchors of a box (more where they tie) learn it. An anchor chosen by several boxes
       learns the one that its prediction overlaps most.
    4. The target score is the alignment, scaled so that the best anchor of a box has the box's best IoU.

    A box that is listed with several classes has all of them (`classes_of_boxes`), its score is their mean, and the
    anchors are assigned to the first of its rows.

    Gradients do not flow through the assignment: the caller stops them.

    Args:
        scores: `(batch, anchors, classes)`, predicted probabilities.
        boxes: `(batch, anchors, 4)`, predicted boxes, xyxy, normalised.
        gt_boxes: `(batch, gt, 4)`, xyxy, normalised, padded.
        gt_labels: `(batch, gt)` int32 class indices; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        candidates: so many anchors per box.
        score_power: TOOD's alpha.
        iou_power: TOOD's beta.

    Returns:
        A tuple `(assigned, target)`: int32 `(batch, anchors)`, the index of the box that each anchor learns, -1 for
        none; float32 `(batch, anchors)`, its target score in [0, 1], 0 for none.
    """
    num_anchors = anchors.shape[0]
    real = ops.cast(gt_labels >= 0, "float32")  # [B,G]
    classes = classes_of_boxes(gt_boxes, gt_labels, scores.shape[-1])  # [B,G,C]
    classes = classes / ops.maximum(ops.sum(classes, axis=-1, keepdims=True), 1.0)
    score = ops.einsum("bgc,bac->bga", classes, scores)  # [B,G,A]
    iou = pairwise_iou(gt_boxes, boxes)  # [B,G,A]
    inside = ops.cast(_centre_inside(gt_boxes, anchors, cell_sides), "float32")
    alignment = inside * ops.expand_dims(real, -1) * score**score_power * iou**iou_power  # [B,G,A]

    best = ops.top_k(alignment, min(candidates, num_anchors))[0]  # [B,G,candidates]
    chosen = ops.logical_and(alignment >= best[..., -1:], alignment > 0)
    chosen_iou = ops.where(chosen, iou, -1.0)
    assigned = ops.cast(ops.argmax(chosen_iou, axis=1), "int32")  # [B,A]
    positive = ops.max(chosen_iou, axis=1) >= 0  # [B,A]
    chosen = ops.logical_and(chosen, ops.expand_dims(assigned, 1) == _indices(gt_boxes))  # one box per anchor

    alignment = ops.where(chosen, alignment, 0.0)
    best_alignment = ops.max(alignment, axis=-1, keepdims=True)
    best_iou = ops.max(ops.where(chosen, iou, 0.0), axis=-1, keepdims=True)
    target = ops.max(alignment / ops.maximum(best_alignment, 1e-30) * best_iou, axis=1)  # [B,A]
    return ops.where(positive, assigned, -1), ops.where(positive, target, 0.0)


def classes_of_boxes(gt_boxes, gt_labels, num_classes: int):
    """All classes of each box: rows with the same coordinates are one object.

    That is how a class and its ancestors, or the two parents of a class, are annotated. Were each row its own object,
    one would take all the anchors, and there the other classes would be trained as negatives.

    Args:
        gt_boxes: `(batch, gt, 4)`.
        gt_labels: `(batch, gt)` int32; -1 marks padding.
        num_classes: number of classes.

    Returns:
        A float32 tensor `(batch, gt, num_classes)` of zeros and ones; zeros for padding.
    """
    real = ops.expand_dims(ops.cast(gt_labels >= 0, "float32"), -1)  # [B,G,1]
    one_hot = ops.one_hot(ops.maximum(gt_labels, 0), num_classes, dtype="float32") * real  # [B,G,C]
    same = ops.all(ops.expand_dims(gt_boxes, 2) == ops.expand_dims(gt_boxes, 1), axis=-1)  # [B,G,G]
    return ops.minimum(ops.matmul(ops.cast(same, "float32"), one_hot), 1.0) * real


def _indices(gt_boxes):
    """0, 1, ... over the ground-truth axis, shaped `(1, gt, 1)`."""
    return ops.reshape(ops.arange(gt_boxes.shape[1], dtype="int32"), (1, -1, 1))


def _centre_inside(gt_boxes, anchors, cell_sides):
    """Whether an anchor's centre lies in a box, grown to the anchor's cell where smaller: `(batch, gt, anchors)`."""
    anchor_centre = (anchors[:, :2] + anchors[:, 2:]) / 2  # [A,2]
    centre = ops.expand_dims((gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2, -2)  # [B,G,1,2]
    half = ops.expand_dims((gt_boxes[..., 2:] - gt_boxes[..., :2]) / 2, -2)
    half = ops.maximum(half, ops.expand_dims(cell_sides, -1) / 2) + 1e-6  # [B,G,A,2]; a border belongs to both cells
    return ops.all(ops.abs(anchor_centre - centre) <= half, axis=-1)


def ignored_classes(regions, region_labels, anchors, cell_sides, num_classes: int):
    """Where a class must give no gradient: the anchors that could learn an object of that class in an ignored region.

    The rule is the one of step 1 of `task_aligned_assignment`, so a region is ignored on every map however small it is.

    Args:
        regions: `(batch, regions, 4)`, xyxy, normalised, padded.
        region_labels: `(batch, regions)` int32; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        num_classes: number of classes.

    Returns:
        A float32 tensor `(batch, anchors, num_classes)`: 1 = ignored, 0 = not.
    """
    inside = _centre_inside(regions, anchors, cell_sides)  # [B,R,A]
    inside = ops.cast(ops.logical_and(inside, ops.expand_dims(region_labels, -1) >= 0), "float32")
    one_hot = ops.one_hot(ops.maximum(region_labels, 0), num_classes, dtype="float32")  # [B,R,C]
    return ops.minimum(ops.einsum("bra,brc->bac", inside, one_hot), 1.0)
