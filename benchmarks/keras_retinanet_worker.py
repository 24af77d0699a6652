"""keras-retinanet's side of `against_keras_retinanet.py`, in its own environment: trains, then writes what it finds."""

import json
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras_retinanet import losses, models
from keras_retinanet.models.retinanet import retinanet_bbox
from keras_retinanet.preprocessing.csv_generator import CSVGenerator
from keras_retinanet.utils.image import read_image_bgr, resize_image
from keras_retinanet.utils.transform import random_transform_generator

SCORE_THRESHOLD = 0.01
TRANSFORM = {  # train.py's, with --random-transform
    "min_rotation": -0.1,
    "max_rotation": 0.1,
    "min_translation": (-0.1, -0.1),
    "max_translation": (0.1, 0.1),
    "min_shear": -0.1,
    "max_shear": 0.1,
    "min_scaling": (0.9, 0.9),
    "max_scaling": (1.1, 1.1),
    "flip_x_chance": 0.5,
}


class Generator(CSVGenerator):
    """Fills pictures up to what the feature pyramid can add."""

    def compute_inputs(self, image_group):
        return super().compute_inputs([filled(image) for image in image_group])

    def compute_targets(self, image_group, annotations_group):
        return super().compute_targets([filled(image) for image in image_group], annotations_group)


def filled(image: np.ndarray) -> np.ndarray:
    """`(height, width, 3)` with zeros below and to the right, up to multiples of 32."""
    return np.pad(image, [(0, -image.shape[0] % 32), (0, -image.shape[1] % 32), (0, 0)])


def main(*, folder: str, backbone: str, side: int, minutes: float, learning_rate: float, seed: int) -> None:
    """Trains on train.csv for the time, and writes the boxes of the images of validation.txt to theirs.json.

    Args:
        folder: with train.csv, classes.csv and validation.txt
        backbone: their name of it
        side: shorter side of the pictures in pixels
        minutes: of training
        learning_rate: of Adam
        seed: of weights and augmentation
    """
    begin = time.monotonic()
    tf.keras.utils.set_random_seed(seed)
    made = models.backbone(backbone)
    common = {"image_min_side": side, "image_max_side": 2 * side, "preprocess_image": made.preprocess_image}
    transform = random_transform_generator(**TRANSFORM)
    files = f"{folder}/train.csv", f"{folder}/classes.csv"
    train = Generator(*files, transform_generator=transform, batch_size=4, **common)
    model = made.retinanet(train.num_classes())
    model.compile(
        loss={"regression": losses.smooth_l1(), "classification": losses.focal()},
        optimizer=keras.optimizers.Adam(learning_rate=learning_rate, clipnorm=0.001),
    )
    images = 0
    while time.monotonic() - begin < 60 * minutes:
        for index in range(len(train)):
            model.train_on_batch(*train[index])
            images += train.batch_size
            if time.monotonic() - begin > 60 * minutes:
                break
        train.on_epoch_end()
    seconds = time.monotonic() - begin

    detector = retinanet_bbox(model=model)
    found = {}
    for path in Path(f"{folder}/validation.txt").read_text().splitlines():
        raw = read_image_bgr(path)
        small, scale = resize_image(raw, min_side=side, max_side=2 * side)
        picture = filled(made.preprocess_image(small))
        boxes, scores, labels = (values[0] for values in detector.predict_on_batch(picture[None]))
        boxes = boxes / scale / np.tile(raw.shape[1::-1], 2)
        good = (scores >= SCORE_THRESHOLD) & (labels >= 0)
        rows = zip(labels[good].tolist(), scores[good].tolist(), boxes[good].tolist(), strict=True)
        found[path] = [[label, score, *box] for label, score, box in rows]
    Path(f"{folder}/theirs.json").write_text(json.dumps({"images": images, "seconds": seconds, "found": found}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
