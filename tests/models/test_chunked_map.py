"""Chunks give the same results in bounded memory, and other backends give the same losses in chunks."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import chunked_map
from models.losses import DetectionLoss
from tests.helpers.detection_cases import ANCHORS, GRIDS, NUM_CLASSES, RECIPES, numpy, random_case, with_parts
from tests.helpers.project import run_on_backend

RULES = {
    "ancestors": np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], "float32"),  # class 2 lies above the others
    "region_classes": np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], "float32"),  # region label 1 means two classes
}


def case_of(options: dict, seed: int, batch: int) -> tuple[dict, dict]:
    """Outputs, and ground truth with what every label rule needs."""
    softmax = options["class_loss"] == "softmax"
    offsets, logits, truth = random_case(seed, batch, outputs=NUM_CLASSES + softmax)
    truth = with_parts(truth, [(0, 0, 0.5, 1), (0.5, 0, 1, 1)], [[1, 0, 1], [0, 1, 1]])
    return {"classes": logits, "boxes": offsets}, truth


@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_the_assignment_is_the_same_in_chunks(options, monkeypatch):
    assign = DetectionLoss(GRIDS, **options, **RULES).assign
    arguments = tf.nest.map_structure(tf.constant, case_of(options, 8, batch=4))
    unknown = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), arguments)
    whole = assign(*arguments)
    monkeypatch.setattr(chunked_map, "CHUNK", 2 * 10 * len(ANCHORS))
    assert chunked_map.images_per_chunk(4, 10 * len(ANCHORS)) == 2
    assert chunked_map.images_per_chunk(None, 10 * len(ANCHORS)) == 1
    for signature in (None, unknown):
        for part, expected in zip(tf.function(assign, input_signature=signature)(*arguments), whole, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-6)  # the last anchors' sigmoids are not vectorised


@pytest.mark.parametrize(
    ("batch", "pairs", "expected"),
    [(16, 100 * 32760, 1), (16, 100 * 10000, 4), (8, 100 * 3060, 8), (6, 10**6, 3), (7, 10**6, 1), (1, 10**9, 1)],
)
def test_chunks_are_small_and_divide_the_batch(batch, pairs, expected):
    assert chunked_map.images_per_chunk(batch, pairs) == expected


def losses_of_recipes(*, compiled: bool) -> list[list[float]]:
    """The losses of a random case by each recipe, on the backend that Keras runs on."""
    found = []
    for options in RECIPES:
        loss = DetectionLoss(GRIDS, **options, **RULES)
        if compiled:
            import jax

            loss = jax.jit(loss.__call__)
        case = keras.tree.map_structure(keras.ops.convert_to_tensor, case_of(options, 9, batch=3))
        found.append([float(numpy(part)) for part in loss(*case)])
    return found


@pytest.mark.parametrize("backend", ["jax", pytest.param("torch", marks=pytest.mark.slow)])
def test_other_backends_give_the_same_losses_in_chunks(backend):
    program = f"""
import json
from models import chunked_map
from tests.models.test_chunked_map import losses_of_recipes
chunked_map.CHUNK = 1
print(json.dumps(losses_of_recipes(compiled={backend == "jax"})))
"""
    found = json.loads(run_on_backend(backend, program))
    np.testing.assert_allclose(found, losses_of_recipes(compiled=False), rtol=1e-4)
