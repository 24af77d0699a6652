"""The smallest network and its settings, for several test files."""

import json
from pathlib import Path

import numpy as np

from oid.anchors.grids import anchor_settings

CLASSES = [{"label": "/m/apple", "name": "Apple"}, {"label": "/m/pear", "name": "Pear, green"}]


def tiny_settings(**changes: object) -> dict:
    """What a03 writes as `settings.json`, for a network that builds in half a second."""
    settings = {
        "classes": CLASSES,
        "preprocessing": {
            "resize": "warp",
            "interpolation": "area",
            "orientation": "stored",
            "pixels": "RGB, 0 to 255",
            "normalisation": None,
        },
        "box_coding": "distances",
        "score_activation": "sigmoid",
        "backbone": "residual_small",
        "taps": None,
        "level": "1",
        "image_size": 64,
        "variant": "paper",
        "tums": 1,
        "scales": 3,
        "channels": 16,
        "sfam": True,
        "head": "conv",
    } | changes
    return {"anchors": anchor_settings(settings["image_size"], settings["scales"])} | settings


def write_settings(run: Path, settings: object) -> None:
    """Writes `run/settings.json`."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "settings.json").write_text(json.dumps(settings), encoding="utf-8")


def pictures(count: int, height: int = 64, width: int = 64, *, seed: int = 0) -> np.ndarray:
    """Noise: uint8 `(count, height, width, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype="uint8")


def targets(lists: list[list[tuple]], regions: list[list[tuple]] | None = None, *, width: int = 4) -> dict:
    """Padded ground truth as `training.batches` makes it.

    Args:
        lists: for each image its `(class, xmin, ymin, xmax, ymax)` tuples.
        regions: the same for ignored regions; none by default.
        width: rows per image.
    """
    result = {}
    for boxes, labels, rows in (
        ("boxes", "labels", lists),
        ("regions", "region_labels", regions or [[]] * len(lists)),
    ):
        result[boxes] = np.zeros((len(lists), width, 4), "float32")
        result[labels] = np.full((len(lists), width), -1, "int32")
        for image, objects in enumerate(rows):
            for row, (label, *box) in enumerate(objects):
                result[boxes][image, row], result[labels][image, row] = box, label
    return result


def two_pictures() -> dict:
    """Ground truth of two pictures: a box with two classes; another box, and an ignored region."""
    box = (0.1, 0.1, 0.5, 0.6)
    return targets([[(0, *box), (1, *box)], [(1, 0.4, 0.4, 1, 1)]], [[], [(0, 0, 0, 0.3, 0.3)]])


def losses_of_fixed_outputs() -> list[float]:
    """The losses of outputs and ground truth that are always the same, on the backend that Keras runs on."""
    from keras import ops

    from models.losses import detection_losses
    from oid.anchors.grids import cell_sides, make_anchors

    description, rng = tiny_settings()["anchors"], np.random.default_rng(0)
    anchors, cells = make_anchors(description), cell_sides(description)
    outputs = {
        "classes": rng.normal(-2, 1, (2, len(anchors), 2)).astype("float32"),
        "boxes": rng.normal(0, 0.3, (2, len(anchors), 4)).astype("float32"),
    }
    outputs, truth = ({k: ops.convert_to_tensor(v) for k, v in part.items()} for part in (outputs, two_pictures()))
    losses = detection_losses(outputs, truth, ops.convert_to_tensor(anchors), ops.convert_to_tensor(cells))
    return [float(ops.convert_to_numpy(loss)) for loss in losses]
