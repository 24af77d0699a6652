"""The peak of a training's memory, expected and measured: a program, because a peak is that of a process.

    PYTHONPATH=. python benchmarks/memory.py --backbone vgg16 --image_size 512 --num_classes 500 --tums 8 --scales 6 \\
        --channels 128 --batch_size 4

prints as JSON the bytes that `training.memory` expects, with its parts, and those that two steps have needed; Linux.
"""

import json
import resource
from typing import Literal

import keras
import numpy as np

from models.cost import result_bytes
from models.detector import network_from_settings, runs_on_cpu
from oid.anchors.grids import anchor_settings
from oid.command_line import run_script
from training import memory
from training.batches import MAX_REGIONS
from training.schedule import Schedule, make_optimizer
from training.trainer import DetectionTrainer

FLAGS = {"optimizer": "adamw", "ema": True, "accumulate": 1, "max_gt_boxes": 100, "multi_scale": None}


class Batches(keras.utils.PyDataset):
    """The same batch without end, with all that the label rules ask for; eight boxes in each picture."""

    num_batches = None

    def __init__(self, batch_size: int, image_size: int, num_classes: int):
        super().__init__()
        rng, count, boxes = np.random.default_rng(0), batch_size, FLAGS["max_gt_boxes"]
        self.images = rng.integers(0, 256, (count, image_size, image_size, 3), dtype="uint8")
        self.targets = {
            "boxes": np.zeros((count, boxes, 4), "float32"),
            "labels": np.full((count, boxes), -1, "int32"),
            "regions": np.zeros((count, MAX_REGIONS, 4), "float32"),
            "region_labels": np.full((count, MAX_REGIONS), -1, "int32"),
            "parts": np.zeros((count, 4, 4), "float32"),
            "verified": np.zeros((count, 4, num_classes), "uint8"),
        }
        corners = rng.uniform(0, 0.6, (count, 8, 2))
        self.targets["boxes"][:, :8] = np.concatenate([corners, corners + 0.3], axis=-1)
        self.targets["labels"][:, :8] = rng.integers(0, num_classes, (count, 8))
        self.targets["parts"][:, 0] = [0, 0, 1, 1]
        self.targets["verified"][:, 0, :7] = 1

    def __getitem__(self, index: int):
        return self.images, self.targets


def main(
    *,
    backbone: str = "residual_small",
    image_size: int = 192,
    num_classes: int = 20,
    tums: int = 2,
    scales: int = 4,
    channels: int = 64,
    head: Literal["conv", "shared", "light"] = "shared",
    batch_size: int = 8,
    steps: int = 2,
) -> None:
    """Trains some steps and prints the memory that was expected, and the peak.

    Args:
        backbone: as in a03
        image_size: as in a03
        num_classes: outputs per anchor
        tums: as in a03
        scales: as in a03
        channels: as in a03
        head: as in a03
        batch_size: as in a03
        steps: of the training
    """
    program = memory.resident_bytes()
    settings = {
        "classes": [{"label": str(number), "name": str(number)} for number in range(num_classes)],
        "preprocessing": {"resize": "warp", "normalisation": None},
        "anchors": anchor_settings(image_size, scales),
        **{"score_activation": "sigmoid", "sfam": True, "taps": None, "variant": "paper"},
        **{"backbone": backbone, "image_size": image_size, "tums": tums, "scales": scales},
        **{"channels": channels, "head": head},
    }
    network = network_from_settings(settings)
    rules = {"ancestors": np.eye(num_classes, k=1, dtype="f"), "region_classes": np.eye(num_classes, dtype="f")}
    trainer = DetectionTrainer(network, settings["anchors"], batch_size=batch_size, **rules)
    optimizer = make_optimizer(Schedule(peak=1e-4, steps=100), ema=True, weight_decay=0.03)
    plain = keras.backend.backend() == "tensorflow" and runs_on_cpu()
    trainer.compile(optimizer=optimizer, jit_compile=False if plain else "auto")
    optimizer.build(network.trainable_variables)
    parts = memory.expected_bytes(network, FLAGS, batch_size=batch_size, images=0, cache_gb=0)
    print(memory.report(parts, program=program, free=0, batch_size=batch_size).splitlines()[0], flush=True)
    before = memory.resident_bytes()
    trainer.fit(Batches(batch_size, image_size, num_classes), steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        "expected": program + sum(parts.values()),
        "peak": peak,
        "program": program,
        "before the first step": before,
    }
    print(json.dumps(found | {"parts": parts, "results of an image": result_bytes(network)}))


if __name__ == "__main__":
    run_script(main)
