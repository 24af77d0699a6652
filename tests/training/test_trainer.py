"""Every combination of losses trains a step, and fit assigns a batch in pieces."""

import itertools

import keras
import numpy as np
import pytest

from models import losses, pieces
from models.detector import network_from_settings
from models.losses import ASSIGNMENTS, BOX_WEIGHTS, CLASS_LOSSES
from tests.helpers.tiny_network import pictures, targets, tiny_settings, two_pictures
from training.trainer import DetectionTrainer

COMBINATIONS = list(itertools.product(ASSIGNMENTS, CLASS_LOSSES, BOX_WEIGHTS))


def tiny_network() -> tuple[keras.Model, dict]:
    """A network and its anchors."""
    settings = tiny_settings(image_size=32, scales=2, channels=16)
    keras.utils.set_random_seed(0)
    return network_from_settings(settings), settings["anchors"]


@pytest.fixture(scope="module")
def stepping():
    """A trainer that runs operation by operation, so that it can change its losses from step to step."""
    trainer = DetectionTrainer(*tiny_network())
    trainer.compile(optimizer=keras.optimizers.SGD(0.001), run_eagerly=True)
    return trainer


def all_rules() -> dict:
    """Two pictures with what every label rule needs."""
    truth = two_pictures()
    parts = np.zeros((2, 4, 4), "float32")
    parts[:, 0] = [0, 0, 1, 1]
    verified = np.zeros((2, 4, 2), "uint8")
    verified[0, 0], verified[1, 0, 0] = 1, 1
    truth["region_labels"][1, 0] = 2  # both classes
    return truth | {"parts": parts, "verified": verified}


# each assignment and each box loss with each class loss; the rest of the combinations is slow
ROTATED = list(BOX_WEIGHTS) * 3
FEW = [(a, c, b) for shift, a in enumerate(ASSIGNMENTS) for c, b in zip(CLASS_LOSSES, ROTATED[shift:], strict=False)]


@pytest.mark.parametrize("chosen", [FEW, pytest.param(COMBINATIONS, marks=pytest.mark.slow)], ids=["few", "all"])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
def test_every_combination_of_losses_trains_a_step(stepping, assignment, chosen):
    ancestors, region_classes = np.array([[0, 1], [0, 0]], "f"), np.array([[1, 0], [0, 1], [1, 1]], "f")
    seen, chosen = set(), [row for row in chosen if row[0] == assignment]
    for _, class_loss, box_loss in chosen:
        stepping.loss_options = {"assignment": assignment, "class_loss": class_loss, "box_loss": box_loss}
        stepping.loss_options |= {"ancestors": ancestors, "region_classes": region_classes}
        before = [np.array(weight) for weight in stepping.trainable_variables]
        found = stepping.train_on_batch(pictures(2, 32, 32), all_rules(), return_dict=True)
        stepping.reset_metrics()
        found = {name: float(value) for name, value in found.items()}
        assert np.isfinite(list(found.values())).all(), (class_loss, box_loss)
        assert found["class_loss"] > 0
        assert found["box_loss"] > 0
        assert found["loss"] == pytest.approx(found["class_loss"] + found["box_loss"], rel=1e-4)
        after = [np.array(weight) for weight in stepping.trainable_variables]
        assert np.isfinite([np.abs(value).max() for value in after]).all()
        assert np.mean([np.any(a != b) for a, b in zip(after, before, strict=True)]) > 0.7
        seen.add((round(found["class_loss"], 4), round(found["box_loss"], 4)))
    assert len(seen) == len(chosen) >= len(CLASS_LOSSES)  # each of them is another loss


NO_BOX = targets([[], []])
NO_AREA = targets([[(0, 0.3, 0.3, 0.3, 0.6), (1, 0.5, 0.5, 0.5, 0.5)], [(1, 1, 1, 1, 1)]], [[], [(0, 0, 0, 1, 1)]])


@pytest.mark.parametrize("truth", [NO_BOX, NO_AREA], ids=["no boxes", "boxes without area"])
def test_a_batch_without_objects_trains_on_its_background(stepping, truth):
    """The normaliser is then 1, not 0."""
    stepping.loss_options = {}
    found = stepping.train_on_batch(pictures(2, 32, 32), truth, return_dict=True)
    stepping.reset_metrics()
    assert found["box_loss"] == 0
    assert 0 < float(found["class_loss"]) < np.inf
    assert all(np.isfinite(weight).all() for weight in stepping.network.get_weights())


# === Pieces ==========================================================================================================
class Repeated(keras.utils.PyDataset):
    """The same four pictures in every step."""

    num_batches = None

    def __getitem__(self, index: int):
        halves = two_pictures(), targets([[(1, 0.2, 0.1, 0.9, 0.5)], []])
        return pictures(4, 32, 32), {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}


@pytest.fixture(scope="module")
def fitted():
    """A function from the batch size that the trainer is told to the losses of a `fit` and the images of its pieces."""
    network, anchors = tiny_network()

    def fit(batch_size: int | None, piece: int) -> tuple[list[float], set[int | None]]:
        seen, pure = set(), losses.task_aligned_assignment

        def noted(logits, *others):
            seen.add(logits.shape[0])
            return pure(logits, *others)

        trainer = DetectionTrainer(network, anchors, batch_size=batch_size)
        trainer.compile(optimizer=keras.optimizers.SGD(0.0), jit_compile=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "task_aligned_assignment", noted)
            patch.setattr(pieces, "PIECE", piece * 8 * len(trainer.anchors.boxes))  # 8 rows: boxes and regions
            history = trainer.fit(Repeated(), steps_per_epoch=2, epochs=1, shuffle=False, verbose=0).history
        return [history[name][0] for name in ("class_loss", "box_loss")], seen

    return fit


@pytest.mark.slow
def test_fit_assigns_as_many_pictures_together_as_there_is_room_for(fitted):
    """TensorFlow's `fit` does not say how many a batch has: told, it is divided evenly, and the losses are the same."""
    whole, images = fitted(4, 100)
    assert images == {4}
    for room, expected in ((3, 2), (1, 1)):
        found, images = fitted(4, room)
        assert images == {expected}
        np.testing.assert_allclose(found, whole, rtol=1e-5)
    untold, images = fitted(None, 2)
    assert images == {1}
    np.testing.assert_allclose(untold, whole, rtol=1e-5)
