"""From the network's four numbers per anchor to a box.

The functions take tensors and give tensors; with `library=numpy` they take and give arrays, by the same formula.
"""

from keras import ops

SSD_VARIANCES = 0.1, 0.2  # of the centre and of the size, as SSD and the released M2Det code have them


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
    distances = library.exp(library.clip(offsets, -6.0, 4.0))  # e^4 = 55 anchors: far beyond any image, still finite
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


BOX_CODINGS = {"distances": decode_distances, "ssd": decode_ssd}
