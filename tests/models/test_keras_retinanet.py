"""The converted RetinaNet has the outputs and detections of keras-retinanet."""

import dataclasses
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from convert.keras_retinanet import load_keras_retinanet, open_checkpoint
from models.any_shape_detector import AnyShapeDetector
from models.keras_retinanet import UpsampleLike, build_keras_retinanet
from models.suppression import DetectionOptions
from oid.anchors.grids import anchors_of_picture, retinanet_anchors
from oid.images.letterbox import resize_to_sides
from tests.helpers.keras_retinanet_files import check_detections, golden_retinanet, tiny_blocks
from tests.helpers.project import run_on_backend, shared

PUBLISHED = DetectionOptions(mirror=False, score_threshold=0.05)


@pytest.fixture(scope="module")
def golden5(tmp_path_factory):
    """Five classes: the detector, its file and the answers; the file is a converted one with renumbered weights."""
    folder = tmp_path_factory.mktemp("golden")
    path, answers = golden_retinanet(folder, "resnet50_c5", kind="inference", renumbered=True)
    return SimpleNamespace(path=path, answers=answers, detector=AnyShapeDetector(*load_keras_retinanet(path)))


def check_detector(detector, answers, prefix=""):
    """Raw outputs, to 1e-4, and detections of the reference's image."""
    image = answers[f"{prefix}image"][..., ::-1].astype("float32")
    outputs = detector.network.predict_on_batch(image[None])
    np.testing.assert_allclose(outputs["boxes"][0], answers[f"{prefix}regression"], atol=1e-4)
    scores = 1 / (1 + np.exp(-outputs["classes"][0].astype("float64")))
    if f"{prefix}classification" in answers:
        np.testing.assert_allclose(scores, answers[f"{prefix}classification"], atol=1e-4)
    else:
        rows = answers[f"{prefix}classification_rows"]
        np.testing.assert_allclose(scores[rows], answers[f"{prefix}classification_sub"], atol=1e-4)
        np.testing.assert_allclose(scores.max(1), answers[f"{prefix}classification_max"], atol=1e-4)
    (found,) = detector.detect_prepared([image], options=PUBLISHED)
    check_detections(found, answers, prefix)


@pytest.mark.parametrize("prefix", ["small_", pytest.param("", marks=pytest.mark.slow)])
def test_outputs_and_detections_are_those_of_the_reference(golden5, prefix):
    check_detector(golden5.detector, golden5.answers, prefix)
    assert (golden5.answers["small_labels"] >= 0).sum() == 17


@pytest.mark.parametrize("prefix", ["small_kr100_", pytest.param("kr100_", marks=pytest.mark.slow)])
def test_version_with_same_padding(golden5, prefix):
    network = build_keras_retinanet(backbone="resnet50", num_classes=5, padding="same")
    with open_checkpoint(golden5.path) as checkpoint:
        checkpoint.load_into(network)
    # TF 2.12 and its anchors, and the same image
    answers = dict(golden5.answers) | {f"{prefix}image": golden5.answers[f"{prefix.removesuffix('kr100_')}image"]}
    settings = golden5.detector.settings
    changed = dataclasses.replace(settings.network, padding="same", clip="last_pixel")
    check_detector(AnyShapeDetector(network, dataclasses.replace(settings, network=changed)), answers, prefix)


@pytest.mark.slow
def test_outputs_and_detections_on_jax(golden5):
    program = f"""
import json
import numpy as np
from models import load_model
from tests.models.test_keras_retinanet import PUBLISHED
answers = np.load({str(shared("golden", "retinanet", "resnet50_c5.npz"))!r})
detector = load_model({str(golden5.path)!r})
image = answers["small_image"][..., ::-1].astype("float32")
(found,) = detector.detect_prepared([image], options=PUBLISHED)
print(json.dumps([values.tolist() for values in found]))
"""
    found = [np.asarray(values) for values in json.loads(run_on_backend("jax", program))]
    check_detections(found, golden5.answers, "small_")


@pytest.mark.slow
def test_443_classes(tmp_path):
    path, answers = golden_retinanet(tmp_path, "resnet50_c443", kind="training", optimizer=True)
    check_detector(AnyShapeDetector(*load_keras_retinanet(path)), answers)


def test_valid_padding_is_a_shift_of_same(monkeypatch):
    """Three pixels before, where "same" has two for an even side: the image with a row and a column of the mean."""
    tiny_blocks(monkeypatch)
    options = {"backbone": "resnet50", "num_classes": 2}
    networks = [build_keras_retinanet(**options, padding=padding) for padding in ("valid", "same")]
    bodies = [network.get_layer("resnet50") for network in networks]
    valid, same = (keras.Model(body.input, body.get_layer("conv1").output) for body in bodies)
    same.get_layer("conv1").set_weights(valid.get_layer("conv1").get_weights())
    image = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
    mean = np.asarray([123.68, 116.779, 103.939], "float32")
    shifted = np.broadcast_to(mean, (1, 34, 34, 3)).copy()
    shifted[:, 1:33, 1:33] = image
    ours, theirs = valid.predict_on_batch(image), same.predict_on_batch(shifted)
    np.testing.assert_allclose(ours, theirs[:, :16, :16], atol=1e-3)
    assert abs(ours - same.predict_on_batch(image)).max() > 1
    odd = image[:, :31, :31]
    np.testing.assert_allclose(valid.predict_on_batch(odd), same.predict_on_batch(odd), atol=1e-3)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (7, 5), (1, 2)])
def test_maps_are_doubled_by_the_rule_of_the_nearest(size):
    x = np.random.default_rng(0).normal(size=(2, -(-size[0] // 2), -(-size[1] // 2), 3)).astype("float32")
    doubled = np.asarray(UpsampleLike()([x, np.zeros((2, *size, 1), "float32")]))
    rows, columns = (np.floor(np.arange(n) * m / n).astype(int) for n, m in zip(size, x.shape[1:3], strict=True))
    np.testing.assert_array_equal(doubled, x[:, rows][:, :, columns])


# === Anchors and images ==============================================================================================
def test_anchors_by_hand():
    """The first cell's: 32 pixels with half the height of the width, then larger ones, then other shapes."""
    anchors = anchors_of_picture(5, 203, 269)
    assert anchors.shape == (10746, 4)
    width, height = 32 * 2**0.5, 32 / 2**0.5
    np.testing.assert_allclose(anchors[0], [4 - width / 2, 4 - height / 2, 4 + width / 2, 4 + height / 2], rtol=1e-6)
    np.testing.assert_allclose(anchors[3], [-12, -12, 20, 20], atol=1e-5)
    np.testing.assert_allclose(anchors[9:18] - anchors[:9], np.tile([8, 0, 8, 0], (9, 1)), atol=1e-5)
    np.testing.assert_allclose(anchors[34 * 9] - anchors[0], [0, 8, 0, 8], atol=1e-5)
    np.testing.assert_allclose((anchors[-1, 2:] - anchors[-1, :2]).prod(), (512 * 2 ** (2 / 3)) ** 2, rtol=1e-5)


@pytest.mark.parametrize("image_size", [72, 100, 129])
def test_square_images_have_the_anchors_of_a_training(image_size):
    pixels = retinanet_anchors(image_size, 5, "official").boxes() * np.float32(image_size)
    np.testing.assert_allclose(pixels, anchors_of_picture(5, image_size, image_size), atol=1e-3)


@pytest.mark.parametrize(
    ("size", "sides", "expected"),
    [
        ((768, 1024), (768, 1024), (768, 1024)),
        ((683, 1024), (768, 1024), (683, 1024)),  # the longer side would be 1151
        ((1024, 683), (600, 800), (800, 534)),
        ((100, 101), (600, 800), (600, 606)),
        ((1, 5000), (600, 800), (1, 5000)),  # nothing would be left
    ],
)
def test_images_keep_their_aspect_ratio(size, sides, expected):
    assert resize_to_sides(np.zeros((*size, 3), "uint8"), *sides).shape == (*expected, 3)
