"""Maps a function over a batch in chunks of a few images, so that tensors of boxes x anchors stay small.

The smallest chunk is one image: 228 boxes and 32,760 anchors make tensors of 30 MB.
"""

from keras import ops

CHUNK = 4 * 2**20  # pairs of a box and an anchor: 16 MB for each float32 tensor


def chunked_map(function, arguments: tuple, pairs: int):
    """Calls `function(*arguments)`, in chunks where the batch is too large for one call.

    Args:
        function: from tensors with the batch in front to a tuple of such tensors; it treats images independently.
            No gradient needs to flow through it.
        arguments: tensors with the batch in front. If its size is unknown, each image may be a chunk.
        pairs: boxes x anchors of one image.

    Returns:
        The result of `function` for the whole batch.
    """
    batch = arguments[0].shape[0]
    chunk = images_per_chunk(batch, pairs)
    if chunk == batch:
        return function(*arguments)
    folded = tuple(ops.reshape(x, (-1, chunk, *x.shape[1:])) for x in arguments)
    results = ops.map(lambda xs: tuple(function(*xs)), folded)
    return tuple(ops.reshape(x, (-1, *x.shape[2:])) for x in results)


def images_per_chunk(batch: int | None, pairs: int) -> int | None:
    """The largest divisor of the batch whose pairs fit; for a batch of unknown size all images (None) or one."""
    if batch is None:
        return None if 16 * pairs <= CHUNK else 1
    return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * pairs <= CHUNK))
