"""From the network's four numbers per anchor to a box."""

from keras import ops


def decode_distances(offsets, anchors):
    """Decodes distances to the four sides, in units of the anchor's half sides, as exponentials.

    Zero offsets give the anchor itself, and the anchor's centre is always inside the box: sides never swap, and no
    logarithm of a ground-truth size is taken anywhere, so boxes without area make no NaN.

    Args:
        offsets: float tensor `(..., anchors, 4)`: log distances left, top, right, bottom.
        anchors: float tensor `(anchors, 4)`, or with the batch in front: xyxy, normalised.

    Returns:
        A float tensor `(..., anchors, 4)`: xyxy, normalised, not clipped.
    """
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2
    half = (anchors[..., 2:] - anchors[..., :2]) / 2
    distances = ops.exp(ops.clip(offsets, -6.0, 4.0))  # e^4 = 55 anchors: far beyond any image, still finite
    return ops.concatenate([centre - distances[..., :2] * half, centre + distances[..., 2:] * half], axis=-1)
