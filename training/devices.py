"""The devices that share a batch, of one machine or several: the one place that asks a backend itself.

TensorFlow shares a batch within one machine by its MirroredStrategy: every device has a copy of the weights and runs
the step on its part of the batch. JAX does it by `keras.distribution`, over all machines: one program sees the whole
batch.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator

import keras
import numpy as np

from models.keras_internals import clip_sum

BFLOAT16_FROM = (8, 0)  # NVIDIA's compute capability; P100 has 6.0, V100 7.0, T4 7.5, A100 8.0


# === Inside a step ===================================================================================================
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
    return _summed(value)


def _summed(values):
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


# === What a trainer needs to be on several devices ===================================================================
def copies_of(trainer: keras.Model) -> int:
    """How many devices have a copy of a trainer that is run on each: 1 by JAX's distribution."""
    return trainer.distribute_strategy.num_replicas_in_sync if keras.backend.backend() == "tensorflow" else 1


def scope_of(trainer: keras.Model) -> contextlib.AbstractContextManager:
    """Inside the block new variables are made where a trainer has its own."""
    return trainer.distribute_strategy.scope() if keras.backend.backend() == "tensorflow" else contextlib.nullcontext()


def clip_the_sum(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimizer clip the gradient of the whole batch; TensorFlow's would clip that of each device's part.

    To be called where several devices run copies of a trainer.
    """
    clip_sum(optimizer, _summed)


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


# === Which devices there are =========================================================================================
def make_virtual(count: int) -> None:
    """Lets the CPU be so many devices, where there is no accelerator. To be called before a backend starts.

    Raises:
        RuntimeError: it has started.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            parts = [tf.config.LogicalDeviceConfiguration()] * count
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    elif "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):  # the user's own words
        import jax

        jax.config.update("jax_num_cpu_devices", count)


def accelerator_bytes() -> int | None:
    """The memory of one accelerator that a training may fill, as JAX says; None where it does not, and on a CPU."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return min(limits) if all(limits) else None


def accelerators_have_bfloat16() -> bool:
    """Whether all of them multiply in bfloat16: TPUs do, and NVIDIA's GPUs from compute capability 8.0 on.

    False where they do not say what they are.
    """
    found = list(_capabilities())
    return bool(found) and all(capability >= BFLOAT16_FROM for capability in found)


def _capabilities() -> Iterator[tuple[int, ...]]:
    """The compute capability of each accelerator, (major, minor); () where it has none."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        yield from [BFLOAT16_FROM] * len(tf.config.list_logical_devices("TPU"))
        for gpu in tf.config.list_physical_devices("GPU"):
            yield tuple(tf.config.experimental.get_device_details(gpu).get("compute_capability", ()))
    elif keras.backend.backend() == "jax":
        import jax

        for device in jax.local_devices():
            text = "8.0" if device.platform == "tpu" else str(getattr(device, "compute_capability", ""))
            known = re.fullmatch(r"(\d+)\.(\d+)", text)  # AMD's are called gfx90a
            yield tuple(map(int, known.groups())) if known else ()
    else:
        import torch

        nvidia = torch.cuda.is_available() and torch.version.hip is None  # AMD's GPUs pass for CUDA's there
        for index in range(torch.cuda.device_count() if nvidia else 0):
            yield torch.cuda.get_device_capability(index)


@contextlib.contextmanager
def shared_by(devices: list[str]) -> Iterator[Callable[[], contextlib.AbstractContextManager]]:
    """Inside the block trainings share their batches among devices.

    Args:
        devices: as `keras.distribution.list_devices` names them.

    Yields:
        a function; what is made in the context that it gives has its variables on all of the devices.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # TensorFlow's own choice for CPUs takes the sums of two layers for the same one
        ways = tf.distribute.ReductionToOneDevice() if devices[0].startswith("cpu") else None
        strategy = tf.distribute.MirroredStrategy([name.upper() for name in devices], cross_device_ops=ways)
        yield strategy.scope
    else:
        distribution = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
        with distribution.scope():
            yield contextlib.nullcontext


# === Several processes, which is JAX's alone =========================================================================
def join(coordinator: str, *, processes: int, process: int, patience: int) -> None:
    """Makes this process one of several that train together. To be called before JAX starts.

    Args:
        coordinator: address:port of process 0.
        processes: how many there are.
        process: the number of this one.
        patience: seconds to wait for the others.

    Raises:
        RuntimeError: they did not come.
    """
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    jax.config.update("jax_enable_recoverability", True)  # or JAX aborts when a process is gone, without a sentence
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        initialization_timeout=patience,
        shutdown_timeout_seconds=10,
    )


def leave() -> None:
    """The opposite of `join`."""
    import jax

    jax.distributed.shutdown()


def process_and_processes() -> tuple[int, int]:
    """The number of this process and how many there are: (0, 1) unless they joined."""
    if keras.backend.backend() != "jax":
        return 0, 1
    import jax

    return jax.process_index(), jax.process_count()


def broadcast(values: np.ndarray) -> np.ndarray:
    """What process 0 has, in all of them; the shapes must be the same."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(values))


def gather(values: np.ndarray) -> np.ndarray:
    """What all processes have, one row for each."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))
