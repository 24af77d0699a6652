"""The converted RetinaNet has the outputs and detections of keras-retinanet."""

import itertools
import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models import convert, decoding, detector
from models.backbones import all_layers
from models.box_deltas import decode_corners
from models.decoding import clip_ends, published_boxes
from models.detector import Detector, load_model
from models.legacy_checkpoint import BLOCKS, LegacyStructure, open_legacy_checkpoint
from models.legacy_retinanet import UpsampleLike, build_legacy_retinanet, load_tensors
from oid.anchors.grids import anchors_of_picture, make_anchors, retinanet_anchor_settings
from oid.boxes.suppression import iou_matrix
from oid.files import InputError
from oid.images.letterbox import resize_to_sides
from tests.helpers.legacy_checkpoint_files import check_detections, golden_retinanet, write_checkpoint
from tests.helpers.project import run_on_backend, shared

PICTURE = np.random.default_rng(0).uniform(0, 255, (64, 80, 3)).astype("float32")
PUBLISHED = {"score_threshold": 0.05, "nms": "published", "nms_iou": 0.5, "max_boxes": 300}


# === The reference's answers ===


def run_of(path, folder, classes):
    """The run that the converter makes of a file, loaded."""
    labels = folder / "classes.csv"
    labels.write_text("".join(f"/m/{k},Class {k}\n" for k in range(classes)), encoding="utf-8")
    convert.main(str(path), output=str(folder / "run"), classes=str(labels))
    return load_model(folder / "run")


@pytest.fixture(scope="module")
def golden5(tmp_path_factory):
    """Five classes: the loaded run, its file and the answers; the file is a converted one with renumbered weights."""
    folder = tmp_path_factory.mktemp("golden")
    path, answers = golden_retinanet(folder, "resnet50_c5", kind="inference", renumbered=True)
    return SimpleNamespace(path=path, answers=answers, detector=run_of(path, folder, 5))


def check_outputs(model, answers, prefix=""):
    """Raw outputs to 1e-4."""
    image = answers[f"{prefix}image"][..., ::-1].astype("float32")
    outputs = model.predict_on_batch(image[None])
    np.testing.assert_allclose(outputs["boxes"][0], answers[f"{prefix}regression"], atol=1e-4)
    scores = 1 / (1 + np.exp(-outputs["classes"][0].astype("float64")))
    if f"{prefix}classification" in answers:
        np.testing.assert_allclose(scores, answers[f"{prefix}classification"], atol=1e-4)
    else:
        rows = answers[f"{prefix}classification_rows"]
        np.testing.assert_allclose(scores[rows], answers[f"{prefix}classification_sub"], atol=1e-4)
        np.testing.assert_allclose(scores.max(1), answers[f"{prefix}classification_max"], atol=1e-4)


def check_detector(detector, answers, prefix=""):
    """Raw outputs and detections of the reference's picture."""
    check_outputs(detector.model, answers, prefix)
    (found,) = detector.detect([answers[f"{prefix}image"][..., ::-1].astype("float32")], **PUBLISHED)
    check_detections(found, answers, prefix)


@pytest.mark.parametrize("prefix", ["small_", pytest.param("", marks=pytest.mark.slow)])
def test_raw_outputs_and_detections_are_those_of_the_reference(golden5, prefix):
    check_detector(golden5.detector, golden5.answers, prefix)
    assert (golden5.answers["small_labels"] >= 0).sum() == 17


@pytest.mark.parametrize("prefix", ["small_kr100_", pytest.param("kr100_", marks=pytest.mark.slow)])
def test_the_version_without_explicit_padding(golden5, prefix):
    network = build_legacy_retinanet(backbone="legacy_resnet50", num_classes=5, padding="same")
    with open_legacy_checkpoint(golden5.path) as checkpoint:
        load_tensors(network, checkpoint)
    # TF 2.12 and its anchors, and the same picture
    answers = dict(golden5.answers) | {f"{prefix}image": golden5.answers[f"{prefix.removesuffix('kr100_')}image"]}
    settings_of_version = golden5.detector.settings | {"padding": "same", "clip": "last_pixel"}
    check_detector(Detector(network, settings_of_version), answers, prefix)


@pytest.mark.slow
def test_the_graph_on_jax(golden5):
    program = f"""
import numpy as np
from models.detector import load_model
answers = np.load({str(shared("golden", "retinanet", "resnet50_c5.npz"))!r})
detector = load_model({str(golden5.path.parent / "run")!r})
image = answers["small_image"][..., ::-1].astype("float32")
(found,) = detector.detect([image], **{PUBLISHED!r})
import json
print(json.dumps([values.tolist() for values in found]))
"""
    found = [np.asarray(values) for values in json.loads(run_on_backend("jax", program))]
    check_detections(found, golden5.answers, "small_")


@pytest.mark.slow
def test_443_classes(tmp_path):
    path, answers = golden_retinanet(tmp_path, "resnet50_c443", kind="training", optimizer=True)
    run = run_of(path, tmp_path, 443)
    assert run.model.count_params() == 45_552_247
    check_detector(run, answers)


# === Without the reference material ===


@pytest.fixture(scope="module")
def tiny():
    """A network with one block per stage, and its file's structure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCKS, 50, (1, 1, 1, 1))
        yield LegacyStructure(50, 2, "explicit")


@pytest.fixture(scope="module")
def tiny_run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)

    def values(group, shape):
        array = random.normal(size=shape).astype("float32")
        if group.startswith("bn"):
            return abs(array) + 0.5
        output = shape[-1] in (18, 36)  # small: sigmoids that say something, and boxes near their anchors
        return array * (0.05 if len(shape) == 1 else (0.002 if output else 1) * (2 / np.prod(shape[:-1])) ** 0.5)

    write_checkpoint(folder / "x.h5", structure=tiny, values=values, renumbered=True, optimizer=True)
    return SimpleNamespace(folder=folder, detector=run_of(folder / "x.h5", folder, 2))


def test_a_file_becomes_a_run_with_its_numbers(tiny_run):
    model, said = tiny_run.detector.model, tiny_run.detector.settings
    with open_legacy_checkpoint(tiny_run.folder / "x.h5") as checkpoint:
        arrays = dict(checkpoint.tensors())
    layers = {layer.name: layer for layer in all_layers(model)}
    norm = layers["bn5a_branch2c"]
    for name, array in zip(("gamma", "beta", "moving_mean", "moving_variance"), arrays["bn5a_branch2c"], strict=True):
        np.testing.assert_array_equal(getattr(norm, name), array)
    head = arrays["classification_submodel"]
    np.testing.assert_array_equal(layers["classes_subnet2"].kernel, head[2])
    np.testing.assert_array_equal(layers["classes_output"].bias, head[-1])
    assert model.count_params() == sum(a.size for group in arrays.values() for a in group)
    assert (said["backbone"], said["padding"], said["clip"]) == ("legacy_resnet50", "explicit", "side")
    assert (said["preprocessing"]["min_side"], said["preprocessing"]["max_side"]) == (768, 1024)


def test_the_end_of_the_graph_on_accelerators_gives_the_same(tiny_run, monkeypatch):
    host = Detector(tiny_run.detector.model, tiny_run.detector.settings)
    monkeypatch.setattr(detector, "runs_on_cpu", lambda: False)
    for count in (2000, 5):  # the second: more is asked for than leaves the graph
        monkeypatch.setattr(decoding.TopPairs.__init__, "__defaults__", (count,))
        other = Detector(tiny_run.detector.model, tiny_run.detector.settings)
        for options in (PUBLISHED, {"score_threshold": 0.05} if count > 1000 else PUBLISHED):
            (expected,), (found,) = host.detect([PICTURE], **options), other.detect([PICTURE], **options)
            assert len(expected[1]) > 5
            for ours, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_pictures_of_several_shapes_come_back_in_their_order(tiny_run, monkeypatch):
    monkeypatch.setattr(detector, "MOST_OUTPUTS", 1)  # each alone
    pictures = [PICTURE, PICTURE[:50], np.ascontiguousarray(PICTURE[:, ::-1]), PICTURE[:50] / 2]
    together = tiny_run.detector.detect(pictures, score_threshold=0.05)
    monkeypatch.undo()
    assert min(len(scores) for _, scores, _ in together) > 5
    for picture, found in zip(pictures, together, strict=True):
        for ours, theirs in zip(found, tiny_run.detector.detect([picture], score_threshold=0.05)[0], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_published_suppression_excludes_the_mirror(tiny_run):
    with pytest.raises(InputError, match="--nms published"):
        tiny_run.detector.detect([PICTURE], mirror=True, **PUBLISHED)


def test_explicit_padding_is_a_shift_of_same(tiny):
    """Three pixels before, where "same" has two for an even side: the picture with a row and a column of the mean."""
    options = {"backbone": "legacy_resnet50", "num_classes": 2}
    networks = [build_legacy_retinanet(**options, padding=padding) for padding in ("explicit", "same")]
    bodies = [network.get_layer("legacy_resnet50") for network in networks]
    explicit, same = (keras.Model(body.input, body.get_layer("conv1").output) for body in bodies)
    same.get_layer("conv1").set_weights(explicit.get_layer("conv1").get_weights())
    picture = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype("float32")
    mean = np.asarray([123.68, 116.779, 103.939], "float32")
    shifted = np.broadcast_to(mean, (1, 34, 34, 3)).copy()
    shifted[:, 1:33, 1:33] = picture
    ours, theirs = explicit.predict_on_batch(picture), same.predict_on_batch(shifted)
    np.testing.assert_allclose(ours, theirs[:, :16, :16], atol=1e-3)
    assert abs(ours - same.predict_on_batch(picture)).max() > 1
    odd = picture[:, :31, :31]
    np.testing.assert_allclose(explicit.predict_on_batch(odd), same.predict_on_batch(odd), atol=1e-3)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (7, 5), (1, 2)])
def test_maps_are_doubled_by_the_rule_of_the_nearest(size):
    x = np.random.default_rng(0).normal(size=(2, -(-size[0] // 2), -(-size[1] // 2), 3)).astype("float32")
    doubled = np.asarray(UpsampleLike()([x, np.zeros((2, *size, 1), "float32")]))
    rows, columns = (np.floor(np.arange(n) * m / n).astype(int) for n, m in zip(size, x.shape[1:3], strict=True))
    np.testing.assert_array_equal(doubled, x[:, rows][:, :, columns])


# === Anchors, boxes, pictures ===


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
def test_square_pictures_have_the_same_anchors_in_the_form_of_a_training(image_size):
    description = json.loads(json.dumps(retinanet_anchor_settings(image_size, 5, anchors="official")))
    pixels = make_anchors(description) * np.float32(image_size)
    np.testing.assert_allclose(pixels, anchors_of_picture(5, image_size, image_size), atol=1e-3)


def test_corners_are_moved_by_a_fifth_of_the_anchors_sides():
    anchors, offsets = np.asarray([[0.0, 0.0, 10.0, 20.0]]), np.asarray([[1.0, -1.0, 0.5, 2.0]])
    np.testing.assert_allclose(decode_corners(offsets, anchors, library=np), [[2.0, -4.0, 11.0, 28.0]])


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
def test_sizes_of_pictures(size, sides, expected):
    assert resize_to_sides(np.zeros((*size, 3), "uint8"), *sides).shape == (*expected, 3)


# === The suppression ===


def reference_suppression(boxes, scores, labels, *, score_threshold, nms_iou, max_boxes, ends):
    """That of keras-retinanet: suppression in each class, then the best boxes of all classes."""
    boxes = np.clip(boxes, 0, (*ends, *ends))
    kept = []
    for label in np.unique(labels):
        mine = np.flatnonzero((labels == label) & (scores > score_threshold))
        chosen = []
        for index in sorted(mine, key=lambda i: (-scores[i], i)):
            upright = np.sort(boxes[[*chosen, index]].reshape(-1, 2, 2), axis=1).reshape(-1, 4)
            if len(chosen) < max_boxes and (iou_matrix(upright[-1:], upright[:-1]) <= nms_iou).all():
                chosen.append(index)
        kept += chosen
    kept.sort(key=lambda i: -scores[i])  # stable: of equal ones the lower class first
    kept = np.asarray(kept[:max_boxes], int)
    return boxes[kept], scores[kept], labels[kept]


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    anchors=st.integers(0, 40),
    classes=st.integers(1, 4),
    levels=st.integers(1, 30),
    max_boxes=st.integers(1, 12),
)
def test_published_suppression_is_exact(seed, anchors, classes, levels, max_boxes):
    """Scores of few levels, so that many are equal; boxes outside the picture, without area, and with swapped sides."""
    random = np.random.default_rng(seed)
    boxes = np.round(random.uniform(-0.2, 1.2, (anchors, 4)), 1)
    ordered = random.random(anchors) < 0.8
    boxes[ordered] = np.sort(boxes[ordered].reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    table = random.integers(0, levels + 1, (anchors, classes)) / levels
    anchor, label = (values.ravel() for values in np.indices(table.shape))
    flat = table.ravel()
    limits = {"score_threshold": 0.3, "nms_iou": 0.5, "max_boxes": max_boxes, "ends": clip_ends("last_pixel", 10, 20)}

    asked = []

    def pairs_of(count, score_threshold):
        asked.append(count)
        order = np.lexsort((label, anchor, -flat))
        order = order[flat[order] >= score_threshold][:count]
        return boxes[anchor[order]], flat[order], label[order], anchor[order]

    found = published_boxes(pairs_of, **limits)
    for ours, theirs in zip(found, reference_suppression(boxes[anchor], flat, label, **limits), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert all(b == 16 * a for a, b in itertools.pairwise(asked))
