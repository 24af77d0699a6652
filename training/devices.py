"""What a training on several devices must add up: the one place that asks a backend itself."""

import os

import keras


def devices_in_sync() -> int:
    """On how many devices a step runs at once, each seeing its part of the batch only.

    One where one program sees the whole batch: on one device, or by JAX's distribution.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def over_all_devices(value):
    """The sum of a number over the devices that share a batch, so that every object of the batch counts alike."""
    if devices_in_sync() == 1:
        return value
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def make_deterministic() -> None:
    """The same step gives the same bits from now on; to be called before the first one, after the seed is set."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "jax":  # which reads this when it starts; on a CPU its steps are so anyway
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    else:
        import torch

        torch.use_deterministic_algorithms(True)
