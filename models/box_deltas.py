"""Box deltas: the network's four numbers per anchor, from which a box is decoded.

The decoders take tensors; with `library=numpy` they take arrays. Deltas are `(..., N, 4)`, anchors and boxes xyxy:
anchors `(N, 4)`, or with the batch in front. Boxes come in the unit of the anchors and are not clipped.
"""

import math

from keras import ops

SSD_VARIANCES = 0.1, 0.2  # of the centre and of the size, as in SSD and the released M2Det
CORNER_UNIT = 0.2  # of a side of the anchor: keras-retinanet's standard deviation
LOWEST, HIGHEST = -6.0, 4.0  # of a log distance: e^4 = 55 anchors is far beyond any image, and still finite


def decode_distances(deltas, anchors, *, library=ops):
    """Decodes log distances from the anchor's centre to left, top, right and bottom, in units of its half sides.

    Zeros give the anchor itself. The anchor's centre is always inside the box, so sides never swap. Training takes no
    logarithm of the size of a ground-truth box, so boxes without area make no NaN.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    half = (anchors[..., 2:] - anchors[..., :2]) / 2
    distances = library.exp(library.clip(deltas, LOWEST, HIGHEST))
    return library.concatenate([centre - distances[..., :2] * half, centre + distances[..., 2:] * half], axis=-1)


def decode_ssd(deltas, anchors, *, library=ops):
    """Decodes shifts of the centre in units of 0.1 anchor and log sizes in units of 0.2 (Liu et al. 2016, 2.2)."""
    of_centre, of_size = SSD_VARIANCES
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + of_centre * deltas[..., :2] * size
    growth = library.exp(library.clip(of_size * deltas[..., 2:], -80.0, 80.0))  # e^80 is finite in float32
    half = size * growth / 2
    return library.concatenate([centre - half, centre + half], axis=-1)


def decode_corners(deltas, anchors, *, library=ops):
    """Decodes shifts of x1, y1, x2, y2 in units of 0.2 anchor, as keras-retinanet does.

    Sides can swap; such a box has no area.
    """
    size = anchors[..., 2:] - anchors[..., :2]
    return anchors + CORNER_UNIT * deltas * library.concatenate([size, size], axis=-1)


def encode_distances(boxes, anchors):
    """The inverse of `decode_distances`, cut to its range: it has no box that leaves out the anchor's centre."""
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    half = (anchors[..., 2:] - anchors[..., :2]) / 2
    distances = ops.concatenate([(centre - boxes[..., :2]) / half, (boxes[..., 2:] - centre) / half], axis=-1)
    return ops.log(ops.clip(distances, math.exp(LOWEST), math.exp(HIGHEST)))


def encode_ssd(boxes, anchors):
    """The inverse of `decode_ssd`; the logarithm is cut for boxes without area."""
    of_centre, of_size = SSD_VARIANCES
    size = anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / (2 * of_centre * size)
    growth = ops.maximum((boxes[..., 2:] - boxes[..., :2]) / size, math.exp(LOWEST))
    return ops.concatenate([shift, ops.log(growth) / of_size], axis=-1)


def encode_corners(boxes, anchors):
    """The inverse of `decode_corners`."""
    size = anchors[..., 2:] - anchors[..., :2]
    return (boxes - anchors) / (CORNER_UNIT * ops.concatenate([size, size], axis=-1))


DECODERS = {"distances": decode_distances, "ssd": decode_ssd, "corners": decode_corners}
ENCODERS = {"distances": encode_distances, "ssd": encode_ssd, "corners": encode_corners}
