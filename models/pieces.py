"""Work on a batch in pieces of a few images, so that tensors of ground truth x anchors stay small.

No piece is smaller than one image: 228 rows and 32,760 anchors make tensors of 30 MB.
"""

from keras import ops

PIECE = 4 * 2**20  # pairs of a box and an anchor that are looked at together: 16 MB for each float32 tensor of them


def in_pieces(function, arguments: tuple, pairs: int):
    """`function(*arguments)`, a few images at a time where one tensor over all pairs would be large.

    Args:
        function: treats the images of a batch independently; from tensors with the batch in front to a tuple of such
            tensors. Gradients are not meant to flow through it.
        arguments: tensors with the batch in front; it should be known, or each image may be a piece.
        pairs: boxes x anchors of one image.

    Returns:
        What `function` gives for the whole batch.
    """
    batch = arguments[0].shape[0]
    piece = _images_together(batch, pairs)
    if piece == batch:
        return function(*arguments)
    folded = tuple(ops.reshape(x, (-1, piece, *x.shape[1:])) for x in arguments)
    results = ops.map(lambda xs: tuple(function(*xs)), folded)
    return tuple(ops.reshape(x, (-1, *x.shape[2:])) for x in results)


def _images_together(batch: int | None, pairs: int) -> int | None:
    """The largest divisor of the batch whose pairs fit; of a batch of unknown size all images, or one at a time."""
    if batch is None:
        return None if 16 * pairs <= PIECE else 1
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * pairs <= PIECE))
