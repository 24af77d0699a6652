"""How much memory a training needs at its peak, told before its first step, and what to lower when it will not fit.

The parts are counted from the network and the batch. What a framework adds to the results that its layers keep for the
gradient (buffers of convolutions, gradients on their way) is a factor that was measured, see `ACTIVATIONS`.
"""

import contextlib
import math
import os
import shutil
import subprocess
from collections.abc import Iterator

import keras

from models.cost import result_bytes, weight_bytes
from models.detector import runs_on_cpu
from models.pieces import PIECE
from oid import machine
from oid.files import InputError
from training.batches import MAX_REGIONS
from training.devices import accelerator_bytes
from training.pictures import KEPT_SIDE

GIB = 2**30
ACTIVATIONS = 1.2  # times the results of all layers: what a step on the CPU needs beyond weights and losses
OF_CLASSES = 12  # tensors of batch x anchors x classes that the losses keep at a time
OF_PAIRS = 8  # tensors of boxes x anchors that the assignment keeps at a time
GRAPH = 1_500_000  # bytes that the graph of a step takes for each layer
GRAPH_OF_JAX = 4_500_000  # the same with what compiles it
CONTEXT = 2**29  # bytes that an accelerator's own software takes
WAITING = 10  # batches between the threads that prepare them and the step
MOMENTS = {"adamw": 2, "sgd": 1}
FULL = ("ResourceExhaustedError", "OutOfMemoryError", "MemoryError")  # of TensorFlow, PyTorch, Python; JAX's has a text


def expected_bytes(
    network, flags: dict, *, batch_size: int, images: int, cache_gb: float, copies: int = 1
) -> dict[str, int]:
    """The memory of a training at its peak, part by part, without the program itself.

    Args:
        network: of `models.detector.network_from_settings`, what is frozen being so already.
        flags: a03's optimizer, ema, accumulate, max_gt_boxes, multi_scale and image sizes.
        batch_size: of the images that one device sees in a step.
        images: of the training data.
        cache_gb: for reduced pictures.
        copies: of the weights in the same memory: the devices that a CPU is made.

    Returns:
        `{"weights" | "optimizer" | "activations" | "assignment" | "graph" | "pictures": bytes}`; the optimizer's with
        the gradients, the assignment's with the losses.
    """
    side = network.input.shape[1]
    larger = (max([side, *(flags["multi_scale"] or ())]) / side) ** 2
    anchors, classes = network.output["classes"].shape[1:]
    anchors *= larger
    weights, learned = weight_bytes(network)
    times = 1 + MOMENTS[flags["optimizer"]] + flags["ema"] + (flags["accumulate"] > 1)  # the first: the gradients
    rows = flags["max_gt_boxes"] + MAX_REGIONS
    graph = GRAPH_OF_JAX if keras.backend.backend() == "jax" else GRAPH
    together = min(batch_size, max(1, PIECE // int(rows * anchors)))  # images, see models.pieces
    picture = 3 * side * side
    kept = min(cache_gb * GIB, images * 0.75 * (KEPT_SIDE**2) * picture)
    return {
        "weights": copies * weights,
        "optimizer": times * copies * learned,
        "activations": int(ACTIVATIONS * larger * batch_size * result_bytes(network)),
        "assignment": int(4 * anchors * (OF_CLASSES * batch_size * classes + OF_PAIRS * together * rows)),
        "graph": copies * graph * sum(1 for _ in network._flatten_layers()),
        "pictures": int(kept + larger * WAITING * batch_size * picture),
    }


def print_expected(
    network, flags: dict, settings: dict, *, images: int, devices: tuple[str, ...], program: int
) -> None:
    """Prints `report` for the machine that this process runs on, or for its accelerators.

    Args:
        network: that trains.
        flags: a03's.
        settings: of the run; its `training` has the batch size and the cache.
        images: of the training data.
        devices: that share each batch, see `training.machines.Sharing`.
        program: bytes that the process had before it built anything.
    """
    batch_size, cache_gb = (settings["training"][name] for name in ("batch_size", "cache_gb"))
    cache_gb = cache_gb if flags["cache_gb"] is None else flags["cache_gb"]
    exported = settings["training"]["precision"] == "bfloat16"  # the same network in float32 is there, too
    here = max(1, len(devices) // flags["processes"])  # devices of this process
    share = max(1, batch_size // flags["processes"])
    if runs_on_cpu():
        parts = expected_bytes(network, flags, batch_size=share, images=images, cache_gb=cache_gb, copies=here)
        parts["weights"] += exported * weight_bytes(network)[0]
        print(report(parts, program=program, free=machine.free_memory() + resident_bytes(), batch_size=share))
    elif limit := accelerator_bytes() or smallest_gpu_bytes():
        share = max(1, share // here)
        parts = expected_bytes(network, flags, batch_size=share, images=0, cache_gb=0)
        parts["weights"] += exported * weight_bytes(network)[0]
        print(report(parts, program=CONTEXT, free=limit, batch_size=share))


def report(parts: dict[str, int], *, program: int, free: int, batch_size: int) -> str:
    """What a03 prints: the peak with its parts, and what to lower where it exceeds the free memory.

    Args:
        parts: of `expected_bytes`.
        program: bytes that the process has without them.
        free: bytes that it can have, its own included.
        batch_size: that `parts` are for.
    """
    total = program + sum(parts.values())
    names = {"optimizer": "optimizer and gradients", "assignment": "assignment and losses"}
    shown = {"program": program} | {names.get(name, name): size for name, size in parts.items()}
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in shown.items())
    said = f"memory: {_gib(total)} GiB expected at the peak ({listed}); {_gib(free)} GiB are free"
    if total <= free:
        return said
    growing = sum(parts[name] for name in ("activations", "assignment"))
    fits = int((free - (total - growing)) // (growing / batch_size))
    lower = [f"--batch_size to {fits} (with --accumulate {math.ceil(batch_size / fits)})"] if fits > 0 else []
    if parts["pictures"] > 0.1 * total:
        lower.append(f"--cache_gb, whose pictures take {_gib(parts['pictures'])} GiB")
    lower += ["--image_size", "--tums", "--channels"]
    return f"{said}\nmemory: it will not fit: lower {', or '.join(lower)}"


@contextlib.contextmanager
def shortage_in_one_sentence(*, batch_size: int, image_size: int, checkpoint: str) -> Iterator[None]:
    """Around `fit`: says what to lower where the framework finds no memory, and where the training goes on.

    Args:
        batch_size: images per step.
        image_size: side of its pictures in pixels.
        checkpoint: the newest, with its step, in words; empty where there is none: then all flags may still change.

    Raises:
        InputError: there is no memory for a step.
    """
    try:
        yield
    except Exception as error:
        if type(error).__name__ not in FULL and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        lower = "a lower --batch_size (--accumulate adds several up), a lower --image_size or a smaller network"
        remedy = f"give {lower}"
        if checkpoint:
            remedy = (
                f"{checkpoint}, goes on by the same command where more memory is free; or let another --run start from "
                f"its weights by --init_from, with {lower}"
            )
        raise InputError(
            f"the memory does not suffice for a step of {batch_size} images of {image_size} pixels: {remedy}"
        ) from error


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}"


def resident_bytes() -> int:
    """Memory that this process has now; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def smallest_gpu_bytes() -> int | None:
    """The memory of the smallest NVIDIA GPU, as its driver says; None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    sizes = [int(line) for line in done.stdout.split() if line.isdecimal()]
    return min(sizes) * 2**20 if sizes and not done.returncode else None
