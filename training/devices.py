"""What a training on several devices must add up: the one place that asks a backend itself."""

import keras


def over_all_devices(value):
    """The sum of a number over the devices that share a batch, so that every object of the batch counts alike.

    Where one program sees the whole batch (JAX's distribution, or one device) the number is the sum already.
    """
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
