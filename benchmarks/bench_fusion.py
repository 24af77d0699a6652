"""Times weighted boxes fusion per image against the package ensemble-boxes in one process, and checks that they agree.

    python benchmarks/bench_fusion.py
    python benchmarks/bench_fusion.py --small

Prints milliseconds per image and their ratio; the first call, which compiles or loads the kernel, is printed apart.
About 10 seconds.
"""

import argparse
import sys
import time
from pathlib import Path

import ensemble_boxes
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.fusion import weighted_boxes_fusion


def random_image(rng: np.random.Generator, num_models: int, num_boxes: int) -> tuple[list, list, list]:
    """Models that see the same objects of 10 classes, a few hundredths apart: boxes, scores and labels per model."""
    sizes = rng.uniform(0.1, 0.4, (num_boxes, 2))
    corners = rng.uniform(0.05, 0.95 - sizes)
    objects, labels = np.concatenate([corners, corners + sizes], axis=1), rng.integers(0, 10, num_boxes)
    boxes = [objects + rng.uniform(-0.03, 0.03, objects.shape) for _ in range(num_models)]
    return boxes, [rng.random(num_boxes) for _ in range(num_models)], [labels] * num_models


def milliseconds(function, images: list) -> float:
    """Per image, over all of them."""
    start = time.perf_counter()
    for image in images:
        function(*image)
    return (time.perf_counter() - start) / len(images) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer images: a quick look")
    num_images = 5 if parser.parse_args().small else 100
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    weighted_boxes_fusion(*random_image(rng, 2, 2))
    print(f"first call {time.perf_counter() - start:.2f} s")
    print("models x boxes   package ms/image   here ms/image   ratio")
    for num_models, num_boxes in ((3, 100), (5, 300)):
        images = [random_image(rng, num_models, num_boxes) for _ in range(num_images)]
        as_lists = [[[part.tolist() for part in parts] for parts in image] for image in images]
        package = milliseconds(ensemble_boxes.weighted_boxes_fusion, as_lists)
        here = milliseconds(weighted_boxes_fusion, images * 5)
        same = all(
            np.array_equal(
                np.sort(ensemble_boxes.weighted_boxes_fusion(*slow)[1]), np.sort(weighted_boxes_fusion(*fast)[1])
            )
            for slow, fast in zip(as_lists[:5], images[:5], strict=True)
        )
        agree = "" if same else "   BUT THE SCORES DIFFER"
        print(f"{num_models:6} x {num_boxes:<5} {package:18.2f} {here:15.3f} {package / here:7.0f}{agree}")


if __name__ == "__main__":
    main()
