"""A step trains by every recipe, and fit assigns a batch in chunks."""

import keras
import numpy as np
import pytest

from models import chunked_map, losses
from models.m2det import build_m2det
from oid.anchors.grids import m2det_anchors
from tests.helpers.detection_cases import M2DET, OWN, RECIPES, RETINANET
from tests.helpers.tiny_network import pictures, targets, two_pictures
from training.trainer import DetectionTrainer

ANCHORS = m2det_anchors(32, 2)
RULES = {"ancestors": np.array([[0, 1], [0, 0]], "f"), "region_classes": np.array([[1, 0], [0, 1], [1, 1]], "f")}


def tiny_trainer(options: dict, **others) -> DetectionTrainer:
    keras.utils.set_random_seed(0)
    outputs = 2 + (options["class_loss"] == "softmax")
    sizes = {"image_size": 32, "tums": 1, "scales": 2, "channels": 16}
    network = build_m2det(backbone="residual_small", num_classes=outputs, **sizes)
    return DetectionTrainer(network, ANCHORS, **options, **others)


def truth_with_all_rules() -> dict:
    """Two pictures with what every label rule needs."""
    truth = two_pictures()
    parts, verified = np.zeros((2, 4, 4), "float32"), np.zeros((2, 4, 2), "uint8")
    parts[:, 0] = [0, 0, 1, 1]
    verified[0, 0], verified[1, 0, 0] = 1, 1
    truth["region_labels"][1, 0] = 2  # both classes
    return truth | {"parts": parts, "verified": verified}


@pytest.mark.parametrize("options", [*RECIPES, OWN | {"box_loss": "ciou"}], ids=str)
def test_steps_train_every_weight_and_lower_the_loss(options):
    trainer = tiny_trainer(options, **RULES)
    trainer.compile(optimizer=keras.optimizers.Adam(2e-3), run_eagerly=True)
    before, found = [np.array(weight) for weight in trainer.trainable_variables], []
    for _ in range(8):
        found.append(trainer.train_on_batch(pictures(2, 32, 32), truth_with_all_rules(), return_dict=True))
        trainer.reset_metrics()
    assert found[0]["loss"] == pytest.approx(found[0]["class_loss"] + found[0]["box_loss"], rel=1e-4)
    assert found[0]["class_loss"] > 0
    assert found[0]["box_loss"] > 0
    assert found[-1]["loss"] < 0.9 * found[0]["loss"]
    after = [np.array(weight) for weight in trainer.trainable_variables]
    assert np.isfinite([np.abs(value).max() for value in after]).all()
    assert np.mean([np.any(a != b) for a, b in zip(after, before, strict=True)]) > 0.7  # of a map without boxes none


NO_BOX = targets([[], []])
NO_AREA = targets([[(0, 0.3, 0.3, 0.3, 0.6), (1, 0.5, 0.5, 0.5, 0.5)], [(1, 1, 1, 1, 1)]], [[], [(0, 0, 0, 1, 1)]])


@pytest.mark.parametrize("truth", [NO_BOX, NO_AREA], ids=["no boxes", "boxes without area"])
@pytest.mark.parametrize("options", RECIPES, ids=str)
def test_a_batch_without_objects_has_a_finite_loss(options, truth):
    """The normaliser is then 1, not 0. Only softmax, whose negatives are three per positive, learns nothing."""
    trainer = tiny_trainer(options)
    trainer.compile(optimizer=keras.optimizers.SGD(0.001), run_eagerly=True)
    found = trainer.train_on_batch(pictures(2, 32, 32), truth, return_dict=True)
    assert found["box_loss"] == 0
    assert (found["class_loss"] > 0) == (options != M2DET)
    assert all(np.isfinite(weight).all() for weight in trainer.network.get_weights())


def test_assigned_is_the_assignment_of_a_step():
    """By the overlap with the anchors it does not depend on the network."""
    trainer, truth = tiny_trainer(RETINANET), two_pictures()
    found = keras.ops.convert_to_numpy(trainer.assigned(pictures(2, 32, 32), truth))
    shape = (2, sum(ANCHORS.per_map))
    outputs = {"classes": np.zeros((*shape, 2), "float32"), "boxes": np.zeros((*shape, 4), "float32")}
    expected = losses.DetectionLoss(ANCHORS, **RETINANET).assign(outputs, truth).index
    np.testing.assert_array_equal(found, expected)
    assert {-1, 0} <= set(found.ravel().tolist())


# === Chunks ===========================================================================================================
class Repeated(keras.utils.PyDataset):
    """The same four pictures in every step."""

    num_batches = None

    def __getitem__(self, index: int):
        halves = two_pictures(), targets([[(1, 0.2, 0.1, 0.9, 0.5)], []])
        return pictures(4, 32, 32), {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}


def fit(batch_size: int | None, room: int) -> tuple[list[float], set[int | None]]:
    """The losses of a `fit`, and the sizes of the chunks when `room` images fit into one."""
    seen, pure = set(), losses.task_aligned_assignment

    def noted(logits, *others):
        seen.add(logits.shape[0])
        return pure(logits, *others)

    trainer = tiny_trainer(OWN, batch_size=batch_size)
    trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "task_aligned_assignment", noted)
        patch.setattr(chunked_map, "CHUNK", room * 8 * sum(ANCHORS.per_map))  # 8 rows: boxes and regions
        history = trainer.fit(Repeated(), steps_per_epoch=2, epochs=1, shuffle=False, verbose=0).history
    return [history[name][0] for name in ("class_loss", "box_loss")], seen


@pytest.mark.slow
def test_fit_divides_a_batch_evenly_if_it_knows_the_batch_size():
    """TensorFlow's `fit` does not say it; without it each image is a chunk. The losses are the same."""
    whole, images = fit(4, 100)
    assert images == {4}
    for batch_size, room, expected in ((4, 3, 2), (4, 1, 1), (None, 2, 1)):
        found, images = fit(batch_size, room)
        assert images == {expected}
        np.testing.assert_allclose(found, whole, rtol=1e-5)
