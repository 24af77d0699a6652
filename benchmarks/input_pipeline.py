"""Times the input of the training, from JPEG files to batches, against keras-retinanet's generator in the same process.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --images 8 --rounds 1

Pictures of 1024 x 768 pixels and about 250 KB, as large as those of Open Images: photographs of ../shared where it lies
beside the project, enlarged and with grain, else generated ones. Each has 8 boxes and 10 verified classes. Both sides
make batches of 4 with everything random that they have switched on; here that is mosaics for half of the images, zoom,
mirror and colour. The ways take turns. "cache" has all pictures in memory before the clock runs; "no cache" decodes
each once, and keeps the last 160 for mosaics, as a03 does. "per core" is per second of CPU time of the process, so that
what else runs on the machine counts little. About two minutes.

keras-retinanet's generator is at the defaults of its `retinanet-train --random-transform`, but for the image's size:
at most 320 x 240 pixels, of which the longer side is the network's here, and its own 1333 x 800. Its targets are for
443 classes, those here for 500.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.command_line import run_script
from oid.images.read import read_image
from training.batches import Batches
from training.data_set import Boxes
from training.options import ImageOptions, LabelOptions, Recipe
from training.verified_labels import LabelRulesInForce

WIDTH, HEIGHT = 1024, 768
BOXES, VERIFIED = 8, 10  # per image
CLASSES, THEIR_CLASSES = 500, 443
BATCH = 4
MANY = 4000  # pictures of "no cache", far more than are kept for mosaics: the same files many times
PHOTOGRAPHS = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "fruit_oid" / "train"


class Data(SimpleNamespace):
    """What `Batches` wants of a data set."""

    def __len__(self) -> int:
        return len(self.paths)

    def verified_of(self, image: int) -> np.ndarray:
        return self.verified[image]


def write_pictures(folder: Path, count: int) -> tuple[list[Path], str]:
    """Writes JPEG files; returns them, and what they show."""
    rng = np.random.default_rng(0)
    sources = sorted(PHOTOGRAPHS.glob("*.jpg"))[:count] if PHOTOGRAPHS.is_dir() else []
    paths = []
    for number in range(count):
        if sources:
            picture = cv2.imread(str(sources[number % len(sources)])).astype("float32")
            picture = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        else:
            picture = np.zeros((HEIGHT, WIDTH, 3), "float32")
            for cell in (8, 32, 128):  # light and shade of several sizes
                small = rng.uniform(0, 255 / 3, (HEIGHT // cell, WIDTH // cell, 3)).astype("float32")
                picture += cv2.resize(small, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        picture += rng.normal(0, 8, (HEIGHT, WIDTH, 1))
        paths.append(folder / f"{number:04d}.jpg")
        cv2.imwrite(str(paths[-1]), np.clip(picture, 0, 255).astype("uint8"), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths, "photographs with grain" if sources else "generated light and shade with grain"


def make_data(paths: list[Path]) -> Data:
    rng = np.random.default_rng(1)
    total = len(paths) * BOXES
    corner = rng.uniform(0, 0.6, (total, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (total, 2))], axis=1).astype("float32")
    objects = Boxes(np.arange(len(paths) + 1) * BOXES, boxes, rng.integers(0, THEIR_CLASSES, total).astype("int32"))
    regions = Boxes(np.arange(len(paths) + 1), boxes[::BOXES].copy(), objects.labels[::BOXES].copy())
    verified = rng.integers(0, CLASSES, (len(paths), VERIFIED))
    ids = [str(number) for number in range(len(paths))]
    return Data(paths=paths, image_ids=ids, objects=objects, regions=regions, verified=verified)


def our_way(data: Data, *, cached: bool, image_size: int, recipe: Recipe) -> Callable[[int], tuple]:
    """A function from a step to its batch."""
    batches = Batches(
        data,
        image_size=image_size,
        batch_size=BATCH,
        recipe=recipe,
        labels=LabelOptions(),
        images=ImageOptions(),
        rules=LabelRulesInForce(verified=True),
        num_classes=CLASSES,
        seed=0,
        cache_bytes=sys.maxsize if cached else 0,
        report=print,
    )
    for number in range(len(data)) if cached else ():
        batches.loader.load(number)
    return batches.batch


def their_way(data: Data, shorter: int, longer: int) -> Callable[[int], tuple] | None:
    """The same of keras-retinanet; None where it is not installed."""
    try:
        from keras_retinanet.preprocessing.generator import Generator
        from keras_retinanet.utils.image import random_visual_effect_generator, read_image_bgr
        from keras_retinanet.utils.transform import random_transform_generator
    except ImportError as error:
        print(f"keras-retinanet cannot be imported ({error}): try make keras-retinanet")
        return None

    class Files(Generator):
        def size(self):
            return len(data)

        def num_classes(self):
            return THEIR_CLASSES

        def image_aspect_ratio(self, image_index):
            return WIDTH / HEIGHT

        def load_image(self, image_index):
            return read_image_bgr(data.paths[image_index])

        def load_annotations(self, image_index):
            boxes, labels = data.objects.of(image_index)
            return {"labels": labels.astype("float64"), "bboxes": boxes * np.array([WIDTH, HEIGHT] * 2, "float64")}

    generator = Files(
        transform_generator=random_transform_generator(
            **{"min_rotation": -0.1, "min_translation": (-0.1, -0.1), "min_shear": -0.1, "min_scaling": (0.9, 0.9)},
            **{"max_rotation": 0.1, "max_translation": (0.1, 0.1), "max_shear": 0.1, "max_scaling": (1.1, 1.1)},
            flip_x_chance=0.5,
            flip_y_chance=0.5,
        ),
        visual_effect_generator=random_visual_effect_generator(),
        batch_size=BATCH,
        image_min_side=shorter,
        image_max_side=longer,
    )
    return lambda step: generator[step % len(generator)]


def decode_only(data: Data) -> Callable[[int], tuple]:
    """The floor of "no cache": reading the files at half their size, nothing else."""

    def batch(step: int) -> tuple:
        paths = [data.paths[place % len(data)] for place in range(step * BATCH, (step + 1) * BATCH)]
        return tuple(read_image(path, orientation="stored", minimum_longer_side=WIDTH // 2) for path in paths)

    return batch


def images_per_second(ways: dict[str, Callable], steps: dict[str, int], rounds: int) -> dict[str, list[float]]:
    """Images per second of CPU time, one figure per round; a way goes on with the steps where it stopped."""
    found = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first round fills what is kept for mosaics and is not counted
        for name, way in ways.items():
            begin = time.process_time()
            for step in range(number * steps[name], (number + 1) * steps[name]):
                way(step)
            if number:
                found[name].append(steps[name] * BATCH / (time.process_time() - begin))
    return found


def kilobytes(targets: dict | list) -> float:
    """Of the targets of one image."""
    return sum(value.nbytes for value in (targets.values() if isinstance(targets, dict) else targets)) / BATCH / 1024


def main(*, images: int = 64, image_size: int = 320, rounds: int = 3) -> None:
    """Prints a table.

    Args:
        images: different files
        image_size: side of the network's input in pixels
        rounds: of measuring, of which the median is printed, with the lowest and the highest
    """
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths, what = write_pictures(Path(folder), images)
        size = sum(path.stat().st_size for path in paths) / len(paths) / 1000
        print(f"{images} files, {what}: {WIDTH} x {HEIGHT} pixels, {size:.0f} KB on average; to {image_size} pixels")
        data, many = make_data(paths), make_data(paths * (1 + MANY // len(paths)))
        ways = {
            "reading the files, half size": decode_only(many),
            "no cache": our_way(many, cached=False, image_size=image_size, recipe=Recipe()),
            "cache": our_way(data, cached=True, image_size=image_size, recipe=Recipe()),
            "cache, SSD's crop, no mosaic": our_way(
                data, cached=True, image_size=image_size, recipe=Recipe(crop="ssd", resize="warp", mosaic=0.0)
            ),
        }
        steps = dict.fromkeys(ways, 60)
        their_sizes = {f"keras-retinanet, {image_size}": (image_size * 3 // 4, image_size)}
        their_sizes["keras-retinanet, 1333 x 800"] = (800, 1333)
        for name, sides in their_sizes.items():
            if way := their_way(data, *sides):
                ways[name], steps[name] = way, 8 if sides[0] < 800 else 2
        found = images_per_second(ways, steps, rounds)
        baseline = np.median(found[next(iter(their_sizes))]) if next(iter(their_sizes)) in found else np.nan
        print("way                             images/s per core (lowest to highest)   times keras-retinanet   targets")
        for name, values in found.items():
            middle = np.median(values)
            batch = ways[name](0)
            targets = f"{kilobytes(batch[1]):.1f} KB/image" if len(batch) == 2 else ""
            spread = f"({min(values):.0f} to {max(values):.0f})"
            print(f"{name:30} {middle:8.1f} {spread:>20} {middle / baseline:20.1f} {targets:>24}")


if __name__ == "__main__":
    run_script(main)
