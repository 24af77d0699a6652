"""Work in pieces gives the same results in bounded memory, and other backends give the same losses in pieces."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from models import pieces
from models.box_coding import decode_distances
from models.losses import ASSIGNMENTS, assigned_targets, detection_losses
from tests.helpers.detection_cases import ANCHORS, CELLS, LEVELS, numpy, random_case, with_parts
from tests.helpers.project import run_on_backend

ANCESTORS = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 0]], "float32")  # class 2 lies above the others
REGION_CLASSES = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], "float32")  # region label 1 means two classes
RULES = {"ancestors": ANCESTORS, "region_classes": REGION_CLASSES}


@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_the_result_is_the_same_in_pieces(assignment, monkeypatch):
    offsets, logits, truth = random_case(8, batch=4)
    truth = with_parts(truth, [(0, 0, 0.5, 1), (0.5, 0, 1, 1)], [[1, 0, 1], [0, 1, 1]])

    def all_of(logits, boxes, truth):
        return assigned_targets(assignment, logits, boxes, truth, ANCHORS, CELLS, level_sizes=LEVELS, **RULES)

    boxes = numpy(decode_distances(offsets, ANCHORS))
    arguments = tf.nest.map_structure(tf.constant, (logits, boxes, truth))
    unknown = tf.nest.map_structure(lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype), arguments)
    whole = all_of(*arguments)
    monkeypatch.setattr(pieces, "PIECE", 2 * 10 * len(ANCHORS))
    assert pieces._images_together(4, 10 * len(ANCHORS)) == 2
    assert pieces._images_together(None, 10 * len(ANCHORS)) == 1
    for signature in (None, unknown):
        for part, expected in zip(tf.function(all_of, input_signature=signature)(*arguments), whole, strict=True):
            np.testing.assert_allclose(part, expected, rtol=1e-6)  # the last anchors' sigmoids are not vectorised


@pytest.mark.parametrize(
    ("batch", "pairs", "expected"),
    [(16, 100 * 32760, 1), (16, 100 * 10000, 4), (8, 100 * 3060, 8), (6, 10**6, 3), (7, 10**6, 1), (1, 10**9, 1)],
)
def test_pieces_are_small_and_divide_the_batch(batch, pairs, expected):
    assert pieces._images_together(batch, pairs) == expected


MEMORY_PROGRAM = """
import json
import jax, numpy as np
from tests.helpers.detection_cases import NUM_CLASSES
from models import pieces
from oid.anchors.grids import anchor_settings, anchors_per_level, cell_sides, make_anchors
from models.losses import ASSIGNMENTS, assigned_targets
settings = anchor_settings(512, 6, anchors="official")
anchors, cells, levels = make_anchors(settings), cell_sides(settings), anchors_per_level(settings)
batch, rows = 16, 100
shapes = {"boxes": (rows, 4), "labels": (rows,), "regions": (128, 4), "region_labels": (128,)}
dtypes = {"labels": "int32", "region_labels": "int32"}
truth = {k: jax.ShapeDtypeStruct((batch, *s), dtypes.get(k, "float32")) for k, s in shapes.items()}
logits, boxes = (jax.ShapeDtypeStruct((batch, len(anchors), n), "float32") for n in (NUM_CLASSES, 4))
def megabytes(assignment):
    def function(logits, boxes, truth):
        return assigned_targets(assignment, logits, boxes, truth, anchors, cells, level_sizes=levels)
    compiled = jax.jit(function).lower(logits, boxes, truth).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20
result = {"anchors": len(anchors)} | {assignment: megabytes(assignment) for assignment in ASSIGNMENTS}
pieces.PIECE = 10**12
result["whole"] = megabytes("task_aligned")
print(json.dumps(result))
"""


@pytest.mark.slow
def test_memory_is_bounded_at_full_size():
    """16 images at 512 pixels, with 100 boxes and 128 regions: one tensor over all their pairs has 456 MB."""
    result = json.loads(run_on_backend("jax", MEMORY_PROGRAM))
    assert result.pop("anchors") == 32760
    assert result.pop("whole") > 450
    assert max(result.values()) < 100


SOME_OPTIONS = [
    {},
    {"assignment": "atss", "class_loss": "varifocal", "box_loss": "ciou"},
    {"assignment": "max_iou", "class_loss": "focal", "box_loss": "smooth_l1", "box_coding": "ssd"},
    {"assignment": "task_aligned", "class_loss": "quality_focal", "box_loss": "smooth_l1"},
]


def losses_of_some_options(*, compiled: bool) -> list[list[float]]:
    """The losses of a random case, on the backend that Keras runs on."""
    offsets, logits, truth = random_case(9)
    truth = with_parts(truth, [(0, 0, 0.5, 1), (0.5, 0, 1, 1)], [[1, 0, 1], [0, 1, 1]])
    case = keras.tree.map_structure(keras.ops.convert_to_tensor, ({"boxes": offsets, "classes": logits}, truth))
    places = keras.tree.map_structure(keras.ops.convert_to_tensor, (ANCHORS, CELLS))

    def losses(outputs, truth):
        options = ({"level_sizes": LEVELS, **RULES, **chosen} for chosen in SOME_OPTIONS)
        return [detection_losses(outputs, truth, *places, **chosen) for chosen in options]

    if compiled:
        import jax

        losses = jax.jit(losses)
    return [[float(numpy(x)) for x in parts] for parts in losses(*case)]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_give_the_same_losses_in_pieces(backend):
    program = f"""
import json
from models import pieces
from tests.models.test_pieces import losses_of_some_options
pieces.PIECE = 1
print(json.dumps(losses_of_some_options(compiled={backend == "jax"})))
"""
    found = json.loads(run_on_backend(backend, program))
    np.testing.assert_allclose(found, losses_of_some_options(compiled=False), rtol=1e-4)
