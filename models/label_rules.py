"""The label rules: Open Images does not say everywhere that a class is absent; there it must be no negative.

- Unverified classes: an image is annotated for the classes that people have verified in it. It may show objects of
  other classes without boxes.
- Ancestors: an apple is a fruit. The ancestors of a box's class are no negatives at the anchors that learn the box or
  could learn it. An ancestor that is listed with the same box is a class like others.
- Ignored regions: groups, and whatever else a01 marks.

A class is never silent at an anchor that learns it. A rule without its input costs nothing.
"""

from keras import ops

from models.assignment import centre_inside, classes_of_boxes, row_indices


def silent_classes(targets, assigned, anchors, cell_sides, num_classes: int, ancestors=None, region_classes=None):
    """Where a class gives no gradient as a negative.

    Args:
        targets: see `models.losses.DetectionLoss`. The rule on regions is off without `regions` and `region_labels`,
            the rule on verified classes without `parts` and `verified`.
        assigned: int32 `(batch, anchors)`, the row of the box that each anchor learns, below 0 without one.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        num_classes: number of classes.
        ancestors: float `(num_classes, num_classes)`, 1 in row c and column a if a is a proper ancestor of c; None =
            the rule is off.
        region_classes: see `ignored_regions`.

    Returns:
        A bool tensor `(batch, anchors, num_classes)`, or None if all rules are off.
    """
    rules = []  # pairs of anchors (batch, rows, anchors) and classes (batch, rows, classes)
    if "regions" in targets:
        regions = targets["regions"], targets["region_labels"]
        rules.append(ignored_regions(*regions, anchors, cell_sides, num_classes, region_classes))
    if "parts" in targets:
        rules.append(unverified_parts(targets["parts"], targets["verified"], anchors))
    if ancestors is not None:
        rules.append(unlisted_ancestors(targets["boxes"], targets["labels"], assigned, anchors, cell_sides, ancestors))
    if not rules:
        return None
    rows, classes = (
        ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0] for parts in zip(*rules, strict=True)
    )
    # one product for all rules: it is above 0 where a row has both the anchor and the class
    return ops.einsum("bra,brc->bac", ops.cast(rows, "float32"), classes) > 0.5


def ignored_regions(regions, region_labels, anchors, cell_sides, num_classes: int, region_classes=None):
    """The anchors that could learn an object as large as the region, and the region's classes.

    They are the candidates of task-aligned assignment (`centre_inside`). The published rule, a region covers at least
    half of the anchor, is a subset, and leaves a region smaller than half of every anchor without any.

    Args:
        regions: `(batch, regions, 4)`, xyxy, normalised, padded.
        region_labels: `(batch, regions)` int32; -1 marks padding.
        anchors: `(anchors, 4)`, xyxy, normalised.
        cell_sides: `(anchors,)`, side of each anchor's cell, normalised.
        num_classes: number of classes.
        region_classes: float `(labels, num_classes)`, 1 where a region's label (row) covers a class (column): the
            label of a coarse box covers many. None = a label is the class itself.

    Returns:
        A tuple `(rows, classes)`: bool `(batch, regions, anchors)` and float32 `(batch, regions, num_classes)`.
    """
    rows = ops.logical_and(centre_inside(regions, anchors, cell_sides), ops.expand_dims(region_labels >= 0, -1))
    labels = ops.maximum(region_labels, 0)
    if region_classes is None:
        return rows, ops.one_hot(labels, num_classes, dtype="float32")
    return rows, ops.take(ops.cast(region_classes, "float32"), labels, axis=0)


def unverified_parts(parts, verified, anchors):
    """The anchors of each part of a picture, and the classes that nobody has verified there.

    A mosaic has several parts. An anchor belongs to the part that contains its centre (the first of several), or to
    the nearest part.

    Args:
        parts: `(batch, parts, 4)`, xyxy, normalised; padding has no area.
        verified: `(batch, parts, num_classes)`, 1 where background is known not to be that class.
        anchors: `(anchors, 4)`, xyxy, normalised.

    Returns:
        As `ignored_regions`, with a row for each part.
    """
    distance = 0.0
    for low, high in ((0, 2), (1, 3)):
        centre = (anchors[:, low] + anchors[:, high]) / 2  # [A]
        before, behind = ops.expand_dims(parts[..., low], -1) - centre, centre - ops.expand_dims(parts[..., high], -1)
        distance = distance + ops.square(ops.maximum(ops.maximum(before, behind), 0.0))  # [B,P,A]
    has_area = ops.logical_and(parts[..., 2] > parts[..., 0], parts[..., 3] > parts[..., 1])
    distance = ops.where(ops.expand_dims(has_area, -1), distance, 1e9)
    part = ops.cast(ops.argmin(distance, axis=1), "int32")  # [B,A]
    return ops.expand_dims(part, 1) == row_indices(parts), 1.0 - ops.cast(verified, "float32")


def unlisted_ancestors(gt_boxes, gt_labels, assigned, anchors, cell_sides, ancestors):
    """The anchors that learn a box or could learn it, and those ancestors of its classes that are not listed with it.

    Args:
        gt_boxes: `(batch, gt, 4)`, xyxy, normalised, padded.
        gt_labels: `(batch, gt)` int32; -1 marks padding.
        assigned, anchors, cell_sides, ancestors: as in `silent_classes`.

    Returns:
        As `ignored_regions`, with a row for each box.
    """
    rows = ops.logical_and(centre_inside(gt_boxes, anchors, cell_sides), ops.expand_dims(gt_labels >= 0, -1))
    rows = ops.logical_or(rows, ops.expand_dims(assigned, 1) == row_indices(gt_boxes))
    classes = classes_of_boxes(gt_boxes, gt_labels, ancestors.shape[0])  # [B,G,C]
    above = ops.minimum(ops.matmul(classes, ops.cast(ancestors, "float32")), 1.0)
    return rows, above * (1.0 - classes)
