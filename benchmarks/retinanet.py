"""Times a converted RetinaNet on ResNet50 against keras-retinanet's own inference, and the conversion.

    python benchmarks/retinanet.py --theirs ../keras-retinanet/bin/python
    python benchmarks/retinanet.py --height 256 --width 320 --classes 5 --rounds 3

--theirs is the Python of an environment with tensorflow-cpu 2.12.1 and keras-retinanet 1.0.0; without it only this side
is timed. Both sides have the same file, of random weights, and the same picture: more scores exceed 0.05, and more
boxes overlap, than of a trained network.
Each side is a process of its own that waits for its turn; a round gives each way one turn. "boxes" has everything
behind the network: decoding, clipping, suppression for every class, the 300 best boxes. Prints the smallest and the
median time, the ratio of the medians to keras-retinanet's, and what converting a file of each ResNet costs. Needs 8 GB
and about 15 minutes on two CPU cores.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.processes import measured
from oid.command_line import run_script

ROOT = Path(__file__).resolve().parent.parent
LAYERS = (50, 101, 152)
MEAN_BGR = (103.939, 116.779, 123.68)
ROUNDS_TO_WARM = 2
WAYS = {  # of this side: what is loaded, what is timed
    "network": ("float32", "network"),
    "boxes as published": ("float32", "boxes"),
    "boxes as a04's own": ("float32", "own"),
    "network, bfloat16": ("bfloat16", "network"),
    "boxes as published, bfloat16": ("bfloat16", "boxes"),
}


# === This side ===


def serve(*, run: str, precision: str, picture: str) -> None:
    """Answers each line, "network", "boxes" or "own", with the seconds of one picture."""
    from models.load import load_model
    from models.suppression import DetectionOptions

    detector = load_model(run, precision=precision)
    batch = (np.load(picture) + np.asarray(MEAN_BGR, "float32"))[None, ..., ::-1]
    published = DetectionOptions(mirror=False, score_threshold=0.05)
    own = DetectionOptions(mirror=False, score_threshold=0.05, suppression="own")
    ways = {
        "network": lambda: detector._predicting.predict_on_batch(batch)["boxes"],
        "boxes": lambda: detector.detect_prepared(batch, options=published)[0].boxes,
        "own": lambda: detector.detect_prepared(batch, options=own)[0].boxes,
    }
    for line in sys.stdin:
        begin = time.perf_counter()
        found = ways[line.strip()]()
        print("seconds", time.perf_counter() - begin, len(found), flush=True)


# === Both ===


class Side:
    """A process that detects when it is told to."""

    def __init__(self, command: list[str]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
            text=True,
        )

    def turn(self, what: str) -> float:
        """Seconds of one picture."""
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith("seconds "):
                return float(answer.split()[1])
        raise RuntimeError(f"{self._process.args} ended")

    def stop(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def write_file(path: Path, layers: int, classes: int) -> None:
    """A training file without an optimizer's state, of random weights."""
    from convert.keras_retinanet import Structure
    from tests.helpers.keras_retinanet_files import write_checkpoint

    random, of_norm = np.random.default_rng(0), {}

    def values(group: str, shape: tuple) -> np.ndarray:
        array = random.standard_normal(shape, dtype="float32")
        if group.startswith("bn"):
            of_norm[group] = of_norm.get(group, 0) + 1
            if of_norm[group] in (2, 3):  # beta and moving mean
                return 0.1 * array
            scale = 1 / 64 if group == "bn_conv1" else 0.4 if group.endswith("2c") else 1.0
            return random.uniform(0.5, 1.5, shape).astype("float32") * (scale if of_norm[group] == 1 else 1.0)
        if len(shape) == 1:
            return 0.3 * array - np.float32(np.log(99)) if shape[0] == 9 * classes else 0.1 * array
        inner = group.startswith(("res", "conv1")) or group.endswith("submodel")
        gain = 0.04 if shape[-1] in (36, 9 * classes) else 2**0.5 if inner else 1.0
        return array * np.float32(gain / np.prod(shape[:-1]) ** 0.5)

    write_checkpoint(path, structure=Structure(f"resnet{layers}", classes, "valid"), values=values)


def convert(folder: Path, layers: int, classes: int) -> Path:
    """Converts a file in a process of its own, and prints its cost."""
    file, run, labels = folder / f"resnet{layers}.h5", folder / f"run{layers}", folder / "classes.csv"
    write_file(file, layers, classes)
    labels.write_text("".join(f"/m/{k},Class {k}\n" for k in range(classes)), encoding="utf-8")
    command = ["-m", "convert.cli", str(file), "--output", str(run), "--classes", str(labels)]
    seconds, processor, memory = measured(
        [sys.executable, *command], os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    cost = f"{seconds:.1f} s, {processor:.1f} s of processor, {memory:.0f} MB"
    print(f"converting ResNet{layers}, {file.stat().st_size / 1e6:.0f} MB: {cost}", flush=True)
    return run


def main(
    *,
    theirs: str | None = None,
    height: int = 800,
    width: int = 1067,
    classes: int = 443,
    rounds: int = 7,
    conversions: tuple[int, ...] = LAYERS,
    bfloat16: bool = True,
) -> None:
    """Prints the tables.

    Args:
        theirs: Python of keras-retinanet's environment
        height: of the picture in pixels
        width: of the picture in pixels
        classes: of the network
        rounds: turns of each way
        conversions: ResNets whose conversion is timed, of 50, 101 and 152
        bfloat16: time it, too
    """
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = {layers: convert(folder, layers, classes) for layers in sorted({50, *conversions})}[50]
        picture = str(folder / "picture.npy")
        small = random.uniform(0, 255, (height // 20 + 1, width // 20 + 1, 3)).repeat(20, 0).repeat(20, 1)
        np.save(picture, small[:height, :width].astype("float32") - np.asarray(MEAN_BGR, "float32"))
        ways = {}
        if theirs:
            task = {
                "file": str(folder / "resnet50.h5"),
                "classes": classes,
                "shape": [height, width],
                "picture": picture,
            }
            worker = Path(__file__).with_name("keras_retinanet_inference_worker.py")
            side = Side([theirs, str(worker), json.dumps(task)])
            ways |= {f"keras-retinanet, {what}": (side, what) for what in ("network", "boxes")}
        sides = {}
        for title, (precision, what) in WAYS.items():
            if precision == "float32" or bfloat16:
                task = json.dumps({"run": str(run), "precision": precision, "picture": picture})
                if precision not in sides:
                    sides[precision] = Side([sys.executable, __file__, "--serve", task])
                ways[title] = sides[precision], what
        seconds = {title: [] for title in ways}
        for number in range(rounds + ROUNDS_TO_WARM):
            for title, (side, what) in ways.items():
                took = side.turn(what)
                if number >= ROUNDS_TO_WARM:
                    seconds[title].append(took)
        for side in {side for side, _ in ways.values()}:
            side.stop()
    print(
        f"\n{height} x {width}, {classes} classes, batch 1, {rounds} rounds: smallest and median seconds, times as fast"
    )
    for title, found in seconds.items():
        base = f"keras-retinanet, {'network' if 'network' in title else 'boxes'}"
        ratio = f"{statistics.median(seconds[base]) / statistics.median(found):6.2f}" if base in seconds else ""
        print(f"{title:32} {min(found):8.3f} {statistics.median(found):8.3f} {ratio}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(**json.loads(sys.argv[2]))
    else:
        run_script(main)
