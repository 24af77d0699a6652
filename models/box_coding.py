"""From the network's four numbers per anchor to a box.

The functions take tensors and give tensors; with `library=numpy` they take and give arrays, by the same formula.
"""

import math

from keras import ops

SSD_VARIANCES = 0.1, 0.2  # of the centre and of the size, as SSD and the released M2Det code have them
CORNER_UNIT = 0.2  # of a side of the anchor: keras-retinanet's standard deviation
LOWEST, HIGHEST = -6.0, 4.0  # of a log distance: e^4 = 55 anchors is far beyond any image, and still finite


def decode_distances(offsets, anchors, *, library=ops):
    """Decodes distances to the four sides, in units of the anchor's half sides, as exponentials.

    Zero offsets give the anchor itself, and the anchor's centre is always inside the box: sides never swap, and no
    logarithm of a ground-truth size is taken anywhere, so boxes without area make no NaN.

    Args:
        offsets: float tensor `(..., anchors, 4)`: log distances left, top, right, bottom.
        anchors: float tensor `(anchors, 4)`, or with the batch in front: xyxy, normalised.
        library: `keras.ops` for tensors, `numpy` for arrays.

    Returns:
        A float tensor `(..., anchors, 4)`: xyxy, normalised, not clipped.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    half = (anchors[..., 2:] - anchors[..., :2]) / 2
    distances = library.exp(library.clip(offsets, LOWEST, HIGHEST))
    return library.concatenate([centre - distances[..., :2] * half, centre + distances[..., 2:] * half], axis=-1)


def decode_ssd(offsets, anchors, *, library=ops):
    """Decodes a shift of the centre and a logarithm of the size, as SSD does (Liu et al. 2016, section 2.2).

    Args:
        offsets: float tensor `(..., anchors, 4)`: centre x and y in units of 0.1 anchor, log width and height in
            units of 0.2.
        anchors: float tensor `(anchors, 4)`, or with the batch in front: xyxy, normalised.
        library: `keras.ops` for tensors, `numpy` for arrays.

    Returns:
        A float tensor `(..., anchors, 4)`: xyxy, normalised, not clipped.
    """
    of_centre, of_size = SSD_VARIANCES
    size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + of_centre * offsets[..., :2] * size
    growth = library.exp(library.clip(of_size * offsets[..., 2:], -80.0, 80.0))  # e^80 is finite in float32
    half = size * growth / 2
    return library.concatenate([centre - half, centre + half], axis=-1)


def decode_corners(offsets, anchors, *, library=ops):
    """Decodes shifts of the two corners, as keras-retinanet has them; sides can swap, and such a box has no area.

    Args:
        offsets: float tensor `(..., anchors, 4)`: of x1, y1, x2, y2, in units of 0.2 anchor.
        anchors: float tensor `(anchors, 4)`, or with the batch in front: xyxy.
        library: `keras.ops` for tensors, `numpy` for arrays.

    Returns:
        A float tensor `(..., anchors, 4)`: xyxy in the unit of the anchors, not clipped.
    """
    size = anchors[..., 2:] - anchors[..., :2]
    return anchors + CORNER_UNIT * offsets * library.concatenate([size, size], axis=-1)


def encode_distances(boxes, anchors):
    """What `decode_distances` turns into `boxes`, cut to what it can give: sides beyond an anchor's centre, too.

    Args:
        boxes: float tensor `(..., anchors, 4)`: xyxy, normalised.
        anchors: float tensor `(anchors, 4)`: xyxy, normalised.

    Returns:
        A float tensor `(..., anchors, 4)`.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    half = (anchors[..., 2:] - anchors[..., :2]) / 2
    distances = ops.concatenate([(centre - boxes[..., :2]) / half, (boxes[..., 2:] - centre) / half], axis=-1)
    return ops.log(ops.clip(distances, math.exp(LOWEST), math.exp(HIGHEST)))


def encode_ssd(boxes, anchors):
    """What `decode_ssd` turns into `boxes`; of those without area the logarithm is cut. As `encode_distances`."""
    of_centre, of_size = SSD_VARIANCES
    size = anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / (2 * of_centre * size)
    growth = ops.maximum((boxes[..., 2:] - boxes[..., :2]) / size, math.exp(LOWEST))
    return ops.concatenate([shift, ops.log(growth) / of_size], axis=-1)


def encode_corners(boxes, anchors):
    """What `decode_corners` turns into `boxes`. As `encode_distances`."""
    size = anchors[..., 2:] - anchors[..., :2]
    return (boxes - anchors) / (CORNER_UNIT * ops.concatenate([size, size], axis=-1))


BOX_CODINGS = {"distances": decode_distances, "ssd": decode_ssd, "corners": decode_corners}
BOX_ENCODINGS = {"distances": encode_distances, "ssd": encode_ssd, "corners": encode_corners}
