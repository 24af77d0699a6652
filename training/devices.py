"""The devices that share a batch.

TensorFlow shares it by its MirroredStrategy: each device has a copy of the weights and runs the step on its part of the
batch. JAX shares it by `keras.distribution`, also over several machines: one program sees the whole batch.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator

import keras

from models.keras_internals import clip_sum
from oid.files import InputError

BFLOAT16_FROM = (8, 0)  # NVIDIA's compute capability; P100 has 6.0, V100 7.0, T4 7.5, A100 8.0


# === Inside a step ===================================================================================================
def devices_in_sync() -> int:
    """Returns how many devices run the current step, each on its part of the batch.

    It is 1 where one program sees the whole batch: on one device, or by JAX's distribution.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context else 1


def over_all_devices(value):
    """Adds up a number over the devices that share a batch, so that every object of the batch counts alike."""
    return value if devices_in_sync() == 1 else _summed(value)


def _summed(values):
    import tensorflow as tf

    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


# === Around a step ===================================================================================================
def copies_of(trainer: keras.Model) -> int:
    """Returns how many devices have a copy of a trainer; 1 by JAX's distribution."""
    return trainer.distribute_strategy.num_replicas_in_sync if keras.backend.backend() == "tensorflow" else 1


def scope_of(trainer: keras.Model) -> contextlib.AbstractContextManager:
    """Returns a context that puts new variables on the devices of a trainer."""
    return trainer.distribute_strategy.scope() if keras.backend.backend() == "tensorflow" else contextlib.nullcontext()


def clip_the_sum(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes an optimizer clip the gradient of the whole batch; TensorFlow's would clip that of each device's part.

    Call it where several devices have copies of a trainer.
    """
    clip_sum(optimizer, _summed)


def make_deterministic() -> None:
    """Makes steps repeatable bit for bit. Call it after the seed is set and before the first step."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "jax":  # JAX reads this when it starts; on a CPU its steps are repeatable anyway
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    else:
        import torch

        torch.use_deterministic_algorithms(True)


# === Choosing devices ================================================================================================
@dataclasses.dataclass(frozen=True)
class Sharing:
    """The devices that share each batch.

    Attributes:
        devices: their names, of all machines; empty where one device does all.
        scope: returns a context that puts new variables on all of the devices.
    """

    devices: tuple[str, ...] = ()
    scope: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext

    @property
    def count(self) -> int:
        return max(1, len(self.devices))

    def check_batch_size(self, batch_size: int) -> None:
        """Rejects a batch that cannot be shared evenly.

        Raises:
            InputError: naming a size that can.
        """
        if batch_size % self.count:
            fits = max(1, batch_size // self.count) * self.count
            raise InputError(
                f"{self.count} devices cannot share batches of {batch_size} images evenly: take batches of {fits}, "
                "or fewer devices"
            )


def split_cpu(count: int) -> None:
    """Splits the CPU into virtual devices on a machine without an accelerator.

    Call it before the backend starts; afterwards it changes nothing.
    """
    with contextlib.suppress(RuntimeError):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if not tf.config.list_physical_devices("GPU"):
                parts = [tf.config.LogicalDeviceConfiguration()] * count
                tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
        elif keras.backend.backend() == "jax" and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
            import jax

            jax.config.update("jax_num_cpu_devices", count)


@contextlib.contextmanager
def sharing(wanted: int | None, *, processes: int = 1, accumulate: int = 1) -> Iterator[Sharing]:
    """Inside the block trainings use the chosen devices; see `choose`.

    Yields:
        the devices, and the scope for the variables of a training.

    Raises:
        InputError: as `choose`.
    """
    found = [] if keras.backend.backend() == "torch" else keras.distribution.list_devices()
    used = choose(wanted, found, processes=processes, accumulate=accumulate)
    if not used:
        yield Sharing()
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # TensorFlow's own choice for CPUs mixes up the sums of two layers
        reduction = tf.distribute.ReductionToOneDevice() if used[0].startswith("cpu") else None
        strategy = tf.distribute.MirroredStrategy([name.upper() for name in used], cross_device_ops=reduction)
        yield Sharing(tuple(used), strategy.scope)
    else:
        with keras.distribution.DataParallel(devices=used, auto_shard_dataset=False).scope():
            yield Sharing(tuple(used))


def choose(wanted: int | None, found: list[str], *, processes: int = 1, accumulate: int = 1) -> list[str]:
    """Chooses the devices that share each batch.

    Args:
        wanted: number of devices; None = all accelerators, or one CPU.
        found: all devices of the best kind and of all machines, as `keras.distribution.list_devices` names them.
        processes: processes that train together, which use all devices.
        accumulate: steps whose gradients make one update.

    Returns:
        the names; empty where one device does all.

    Raises:
        InputError: there are fewer devices, or the backend cannot share a batch.
    """
    backend, several = keras.backend.backend(), (wanted or 1) > 1
    if several and backend == "torch":
        raise InputError(f"{wanted} devices need TensorFlow or JAX: set KERAS_BACKEND=tensorflow or jax")
    if several and backend == "tensorflow" and accumulate > 1:
        raise InputError("TensorFlow cannot accumulate gradients on several devices: set KERAS_BACKEND=jax")
    if wanted is not None and wanted * processes > max(1, len(found)):
        most = max(1, len(found) // processes)
        raise InputError(f"{len(found)} devices were found ({' '.join(found) or 'none'}), not {wanted}: take {most}")
    if processes > 1:
        if wanted is not None and wanted * processes != len(found):
            raise InputError(f"several processes use all of their devices, not {wanted} each: do not limit them")
        return found
    if wanted is None and (not found or found[0].startswith("cpu") or (backend == "tensorflow" and accumulate > 1)):
        return []
    used = found[:wanted]
    return used if len(used) > 1 else []


# === What accelerators can ===========================================================================================
def accelerators_have_bfloat16() -> bool:
    """Returns whether all of them multiply in bfloat16: TPUs, and NVIDIA's GPUs from compute capability 8.0 on.

    False where they do not tell what they are.
    """
    found = list(_capabilities())
    return bool(found) and all(capability >= BFLOAT16_FROM for capability in found)


def _capabilities() -> Iterator[tuple[int, ...]]:
    """Yields the compute capability (major, minor) of each accelerator; () where it has none."""
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
