"""Times the network's forward pass and training step against the authors' PyTorch code, interleaved in one run.

    git clone https://github.com/VDIGPKU/M2Det ../M2Det; pip install torch
    python benchmarks/network.py --official ../M2Det
    python benchmarks/network.py --small

Every way to run it is a process of its own that waits for its turn; a round gives each one turn, so that whatever else
the machine does falls on all alike. Both sides are the released network: VGG16, 8 modules of 256 channels, 81 outputs,
6 anchors per cell, without SFAM, random weights. Prints the smallest and the median time of the rounds, the ratio of
the medians to the official float32, and the limit: counted operations over the matrix rate measured in the same run. On
a GPU it also measures a detector with decoding and suppression at 320 pixels, and training. Half an hour on two CPU
cores; with --sizes 512 --batches 8 the processes need 20 GB, and --train false, because training needs twice as much.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.command_line import run_script
from oid.files import InputError

RELEASED = {"backbone": "vgg16", "variant": "released", "num_classes": 81, "anchors_per_cell": 6, "head": "conv"}
PAPER_500 = {"backbone": "vgg16", "variant": "paper", "num_classes": 500}
FORWARD = {  # what is printed: how it is run
    "float32": {},
    "float32, folded": {"fold": {"join": False}},
    "float32, folded and joined": {"fold": {}},
    "float32, folded, XLA": {"fold": {}, "xla": True},
    "bfloat16": {"policy": "bfloat16"},
    "bfloat16, folded and joined": {"fold": {"dtype": "bfloat16"}},
}
VGG16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and depth of its stages
ROUNDS_TO_WARM = 2
MATRIX = 2048  # side of the matrices whose product gives the matrix rate
TRUTH = 7  # boxes of each training picture


# === Processes that wait for their turn ===


class Worker:
    """A process that does one thing once for each line it gets, and answers with the seconds."""

    def __init__(self, name: str, task: dict):
        self.name = name
        self.seconds: list[float] = []
        self.errors = ""
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            text=True,
        )

    def turn(self) -> float:
        """Seconds of one more turn; the first ones compile."""
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        while answer and not answer.startswith("seconds "):
            answer = self._process.stdout.readline()
        if not answer:
            raise InputError(f"the process of {self.name!r} ended: is there enough memory, and is --official complete?")
        return float(answer.split()[1])

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def work(task: dict) -> None:
    """The life of a worker."""
    run = globals()[task.pop("what")](**task)
    for _ in sys.stdin:
        begin = time.perf_counter()
        run()
        print(f"seconds {time.perf_counter() - begin}", flush=True)


def interleaved(tasks: dict[str, dict], repeats: int) -> dict[str, list[float]]:
    """The times of each task, in seconds; one after the other in each round."""
    workers = []
    try:
        for name, task in tasks.items():
            workers.append(Worker(name, task))
            for _ in range(ROUNDS_TO_WARM):
                workers[-1].turn()
        for _ in range(repeats):
            for worker in workers:
                worker.seconds.append(worker.turn())
    finally:
        for worker in workers:
            worker.stop()
    return {worker.name: worker.seconds for worker in workers}


# === The authors' network ===


def official_network(checkout: str, size: int):
    """Their class, with nothing downloaded and the imports that it does not use left out."""
    import torch

    class Anything(types.ModuleType):
        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            return Anything(name)

        def __call__(self, *arguments, **options):
            return None

    for name in ("torchvision", "torchvision.transforms", "torchvision.models", "termcolor", "utils.core"):
        sys.modules[name] = Anything(name)
    sys.path.insert(0, checkout)
    from m2det import M2Det

    torch.set_num_threads(os.cpu_count())
    sizes = {"planes": 256, "num_levels": 8, "num_scales": 6, "num_classes": 81}
    family = {"backbone": "vgg16", "net_family": "vgg", "base_out": [22, 34]}
    return M2Det("train", size, {**family, **sizes, "sfam": False, "smooth": True})


def official_forward(*, checkout: str, size: int, batch: int, channels_last: bool = False):
    """Raw outputs of their network, in PyTorch's own layout or with channels last."""
    import torch

    network = official_network(checkout, size).eval()
    x = torch.from_numpy(pictures(size, batch)).permute(0, 3, 1, 2).contiguous()
    if channels_last:
        network, x = (value.to(memory_format=torch.channels_last) for value in (network, x))

    def run():
        with torch.no_grad():
            network(x)

    return run


def official_training(*, checkout: str, size: int, batch: int):
    """A step with their loss and SGD."""
    import torch

    network = official_network(checkout, size).train()
    from layers.modules.multibox_loss import MultiBoxLoss

    from oid.anchors.grids import m2det_anchors

    corners = m2det_anchors(size, 6, "official").boxes()
    centre, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    priors = torch.from_numpy(np.concatenate([centre, sides], axis=1))
    loss = MultiBoxLoss(81, 0.5, True, 0, True, 3, 0.5, False)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    x = torch.from_numpy(pictures(size, batch)).permute(0, 3, 1, 2).contiguous() / 255 - 0.5
    boxes, labels = ground_truth(batch)
    rows = np.concatenate([boxes, labels[..., None] + 1], axis=-1).astype("float32")
    targets = [torch.from_numpy(row) for row in rows]

    def run():
        optimizer.zero_grad()
        box_loss, class_loss = loss(network(x), priors, targets)
        (box_loss + class_loss).backward()
        optimizer.step()

    return run


# === Our network ===


def forward(*, network: dict, size: int, batch: int, policy="float32", fold: dict | None = None, xla: bool = False):
    """Raw outputs, on the backend that Keras runs on."""
    import keras

    from models.fold import folded
    from models.m2det import build_m2det

    keras.config.set_dtype_policy(policy)
    model = build_m2det(**network, image_size=size)
    if fold is not None:
        model = folded(model, **fold)
    if keras.backend.backend() != "jax":  # it compiles whatever is said
        model.compile(jit_compile=xla)
    x = pictures(size, batch)
    return lambda: model.predict_on_batch(x)


def training(*, network: dict, size: int, batch: int, policy: str = "float32"):
    """A step with our losses, and SGD as theirs."""
    import keras

    from models.m2det import build_m2det
    from oid.anchors.grids import m2det_anchors
    from training.batches import MAX_REGIONS
    from training.trainer import DetectionTrainer

    keras.config.set_dtype_policy(policy)
    anchors = "official" if network.get("anchors_per_cell") == 6 else "square"
    trainer = DetectionTrainer(
        build_m2det(**network, image_size=size), m2det_anchors(size, 6, anchors), batch_size=batch
    )
    optimizer = keras.optimizers.SGD(1e-6, momentum=0.9, weight_decay=5e-4)
    trainer.compile(optimizer=optimizer, jit_compile=False if keras.backend.backend() == "tensorflow" else "auto")
    boxes, labels = ground_truth(batch)
    targets = {
        "boxes": np.zeros((batch, 100, 4), "float32"),
        "labels": np.full((batch, 100), -1, "int32"),
        "regions": np.zeros((batch, MAX_REGIONS, 4), "float32"),
        "region_labels": np.full((batch, MAX_REGIONS), -1, "int32"),
    }
    targets["boxes"][:, :TRUTH], targets["labels"][:, :TRUTH] = boxes, labels
    x = pictures(size, batch)
    return lambda: float(trainer.train_on_batch(x, targets, return_dict=True)["loss"])


def convolutions(*, layout: str, size: int, batch: int):
    """VGG16's convolutions, half of the network's operations, with maps in either paths."""
    import keras
    from keras import layers

    channels_first = layout == "channels_first"
    x = image = keras.Input((3, size, size) if channels_first else (size, size, 3))
    for filters, depth in VGG16:
        for _ in range(depth):
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", data_format=layout)(x)
        x = layers.MaxPooling2D(data_format=layout)(x)
    model = keras.Model(image, x)
    if keras.backend.backend() != "jax":
        model.compile(jit_compile=False)
    inputs = pictures(size, batch)
    inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2)) if channels_first else inputs
    return lambda: model.predict_on_batch(inputs)


def detection(*, network: dict, size: int, batch: int, precision: str):
    """Pictures to boxes: the network, decoding and suppression."""
    from models.detector import Detector, build_network
    from models.heads import default_head
    from models.run_settings import DetectionClass, InputSettings, NetworkSettings, RunSettings
    from models.suppression import DetectionOptions
    from oid.anchors.grids import m2det_anchors

    classes = tuple(DetectionClass(str(k), str(k)) for k in range(network["num_classes"]))
    network = NetworkSettings(
        detector="m2det",
        backbone=network["backbone"],
        image_size=size,
        scales=6,
        channels=128,
        head=default_head(len(classes)),
        variant="paper",
        tums=8,
    )
    settings = RunSettings(network, InputSettings(resize="warp"), classes, m2det_anchors(size, 6))
    detector = Detector(build_network(settings), settings, precision=precision)
    squares = pictures(size, batch).astype("uint8")
    return lambda: detector.detect_prepared(squares, options=DetectionOptions(mirror=False))


def pictures(size: int, batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype("float32")


def ground_truth(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes `(batch, TRUTH, 4)` xyxy normalised, and their classes below 80."""
    rng = np.random.default_rng(1)
    corner, sides = rng.uniform(0, 0.6, (batch, TRUTH, 2)), rng.uniform(0.1, 0.4, (batch, TRUTH, 2))
    return np.concatenate([corner, corner + sides], axis=-1), rng.integers(0, 80, (batch, TRUTH))


def product(*, dtype: str):
    """A product of two matrices: the rate that convolutions can hope for."""
    import keras

    a = keras.random.normal((MATRIX, MATRIX), dtype="float32")
    a = keras.ops.cast(a, dtype)
    return lambda: keras.ops.convert_to_numpy(keras.ops.matmul(a, a)[:1, :1])


# === The tables ===


def multiply_additions(network: dict, size: int) -> float:
    """Of one picture, forward."""
    from models.cost import cost_of
    from models.m2det import build_m2det

    return sum(operations for _, operations in cost_of(build_m2det(**network, image_size=size)).values())


def convolution_operations(size: int) -> float:
    """Multiply-additions of VGG16's convolutions for one picture."""
    operations, channels = 0.0, 3
    for stage, (filters, depth) in enumerate(VGG16):
        for _ in range(depth):
            operations += 9 * channels * filters * (size >> stage) ** 2
            channels = filters
    return operations


def print_rows(times: dict[str, list[float]], batch: int, limits: dict[str, float]) -> None:
    """One row for each way: smallest and median seconds, images/s, ratio to the first, limit."""
    first = next(iter(times.values()))
    print(f"  {'':36} {'min s':>8} {'median s':>9} {'images/s':>9} {'ratio':>6} {'limit s':>8}")
    for name, seconds in times.items():
        ratio = statistics.median(first) / statistics.median(seconds)
        limit = limits["bfloat16" if "bfloat16" in name else "float32"]
        print(
            f"  {name:36} {min(seconds):8.3f} {statistics.median(seconds):9.3f} {batch / min(seconds):9.2f} "
            f"{ratio:6.2f} {limit:8.3f}",
            flush=True,
        )


def main(
    *,
    official: str | None = None,
    sizes: tuple[int, ...] = (320, 512),
    batches: tuple[int, ...] = (1, 8),
    repeats: int = 5,
    train: bool = True,
    small: bool = False,
) -> None:
    """Prints a table for each image size and batch.

    Args:
        official: folder of a checkout of the authors' code; without it ours is measured alone
        sizes: sides of the square input in pixels
        batches: images at a time
        repeats: rounds that count
        train: whether training steps are measured, too, for two images and more
        small: a quick look: 320 pixels, one image, two rounds, no training
    """
    if small:
        sizes, batches, repeats, train = (320,), (1,), 2, False
    if official and not (Path(official) / "m2det.py").is_file():
        raise InputError(f"--official {official} has no m2det.py: name a checkout of github.com/VDIGPKU/M2Det")
    if not official:
        print("--official is not given: the authors' network is left out")
    from models.detector import runs_on_cpu

    rates = {}
    products = {dtype: {"what": "product", "dtype": dtype} for dtype in ("float32", "bfloat16")}
    for dtype, seconds in interleaved(products, 10).items():
        rates[dtype] = MATRIX**3 / min(seconds)
        print(f"matrix rate {dtype}: {rates[dtype] / 1e9:.0f} x 10^9 multiply-additions/s")
    for size in sizes:
        operations = multiply_additions(RELEASED, size)
        for batch in batches:
            print(f"forward, released, {size} px, batch {batch}, {operations / 1e9:.1f} x 10^9 per image:")
            common = {"size": size, "batch": batch}
            theirs = {"what": "official_forward", "checkout": official, **common}
            theirs = {"official float32": theirs, "official float32, channels last": theirs | {"channels_last": True}}
            ours = {name: {"what": "forward", "network": RELEASED, **common, **way} for name, way in FORWARD.items()}
            limits = {dtype: batch * operations / rate for dtype, rate in rates.items()}
            print_rows(interleaved((theirs if official else {}) | ours, repeats), batch, limits)
            print("VGG16's convolutions alone, maps in either layout:")
            layouts = ("channels_last", "channels_first")
            tasks = {layout: {"what": "convolutions", "layout": layout, **common} for layout in layouts}
            print_rows(
                interleaved(tasks, repeats), batch, {"float32": batch * convolution_operations(size) / rates["float32"]}
            )
            if train and batch > 1:  # PyTorch's batch norm refuses one picture where a map is one cell
                measure_training(official, size, batch, repeats, rates)
    if not runs_on_cpu():
        measure_accelerator(repeats, rates)


def measure_training(official: str | None, size: int, batch: int, repeats: int, rates: dict[str, float]) -> None:
    """Steps of both sides."""
    print(f"training step, released, {size} px, batch {batch}:")
    common = {"size": size, "batch": batch}
    tasks = {"official float32": {"what": "official_training", "checkout": official, **common}} if official else {}
    for dtype in ("float32", "mixed_bfloat16"):
        tasks[dtype] = {"what": "training", "network": RELEASED, "policy": dtype, **common}
    limits = {dtype: 3 * batch * multiply_additions(RELEASED, size) / rate for dtype, rate in rates.items()}
    print_rows(interleaved(tasks, repeats), batch, limits)


def measure_accelerator(repeats: int, rates: dict[str, float]) -> None:
    """Detection in bfloat16 with everything, and training, at 320 pixels."""
    operations = multiply_additions(PAPER_500, 320)
    for batch in (64, 1):
        task = {"what": "detection", "network": PAPER_500, "size": 320, "batch": batch, "precision": "bfloat16"}
        print(f"detection, paper, 500 classes, batch {batch}, decoding and suppression included:")
        limits = {"bfloat16": batch * operations / rates["bfloat16"]}
        print_rows(interleaved({"bfloat16": task}, 4 * repeats), batch, limits)
    for backbone in ("vgg16", "resnet50"):
        network = PAPER_500 | {"backbone": backbone}
        task = {"what": "training", "network": network, "size": 320, "batch": 64, "policy": "mixed_bfloat16"}
        print(f"training step, paper, {backbone}, 500 classes, batch 64:")
        limits = {"bfloat16": 3 * 64 * multiply_additions(network, 320) / rates["bfloat16"]}
        print_rows(interleaved({"mixed_bfloat16": task}, 2 * repeats), 64, limits)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
    else:
        run_script(main)
