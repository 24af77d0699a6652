"""Exported files find the boxes of the detector, and the examples of docs/export.md use them."""

import functools
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest

from convert.keras_retinanet import load_keras_retinanet
from models.any_shape_detector import AnyShapeDetector
from models.detector import MOST_BOXES, Detector, build_network
from models.export import ABOUT, write_export
from models.suppression import DetectionOptions
from oid.files import InputError
from tests.helpers import any_shape_network
from tests.helpers.keras_retinanet_files import check_detections, golden_retinanet
from tests.helpers.project import ROOT, refused
from tests.helpers.tiny_network import CLASSES, pictures, randomised, tiny_settings

missing = [name for name in ("tf2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed: pip install tf2onnx onnx onnxruntime")
LIMITS = {"nms_iou": 0.3, "score_threshold": 0.005}  # what random weights give is hardly above 0.01
OPTIONS = DetectionOptions(mirror=False, suppression="own", vote_iou=1.0, max_boxes=10_000, **LIMITS)
ALL = DetectionOptions(mirror=False, suppression="own", vote_iou=1.0, max_boxes=10_000, nms_iou=1.0, score_threshold=0)
CASES = {
    "warp": {},
    "letterbox": {"resize": "letterbox", "orientation": "exif"},
    "released": {"variant": "released", "scores": "softmax", "box_deltas": "ssd"},
    "retinanet": {"detector": "retinanet"},
}
EACH = [  # an export takes some seconds
    pytest.param("warp", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    pytest.param("letterbox", "onnx", marks=needs_onnx),
    pytest.param("released", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    pytest.param("retinanet", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    pytest.param("sides", "onnx", marks=needs_onnx),
    pytest.param("sides", "tf_saved_model", marks=pytest.mark.slow),
    ("warp", "tf_saved_model"),
    pytest.param("letterbox", "tf_saved_model", marks=pytest.mark.slow),
]


@functools.cache
def detector_of(case: str, **changes: object) -> Detector | AnyShapeDetector:
    """A detector with random weights."""
    if case == "sides":
        return AnyShapeDetector(any_shape_network.build(), any_shape_network.SETTINGS)
    settings = tiny_settings(**CASES[case] | changes)
    keras.utils.set_random_seed(0)
    return Detector(randomised(build_network(settings)), settings)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Exports once, by case and format; gives the path and the detector."""
    folder = tmp_path_factory.mktemp("exports")

    @functools.cache
    def export(case: str, form: str) -> SimpleNamespace:
        path = folder / (f"{case}.onnx" if form == "onnx" else case)
        write_export(detector_of(case), path, form, **LIMITS)
        return SimpleNamespace(path=path, detector=detector_of(case))

    return export


def outputs_of(path: Path, inputs: np.ndarray, sizes: list[tuple[int, int]] | None) -> dict[str, np.ndarray]:
    """What another program gets from a file."""
    feed = {"images": inputs.astype("float32")} | ({"sizes": np.array(sizes, "float32")} if sizes else {})
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, feed), strict=True))
    import tensorflow

    model = tensorflow.saved_model.load(str(path))
    return {name: value.numpy() for name, value in model.serve(feed).items()}


def about(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    if path.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads((path / ABOUT).read_text(encoding="utf-8"))


# === The same boxes ==================================================================================================
@pytest.mark.parametrize(("case", "form"), EACH)
def test_exported_file_finds_the_boxes_of_the_detector(exported, case, form):
    export = exported(case, form)
    shapes = [(1, 90, 104), (2, 41, 230)] if case == "sides" else [(1, 64, 64), (3, 64, 64)]
    for count, height, width in shapes:
        batch = pictures(count, height, width, seed=count)
        sizes = [(40 + 90 * index, 100) for index in range(count)] if case == "letterbox" else None
        found = outputs_of(export.path, batch, sizes)
        dtypes = {"boxes": np.float32, "scores": np.float32, "labels": np.int32}
        assert {name: found[name].dtype for name in dtypes} == dtypes
        expected = export.detector.detect_prepared(batch.astype("float32"), sizes=sizes, options=ALL)
        for index, (boxes, scores, labels) in enumerate(expected):
            raw = [found[name][index] for name in ("boxes", "scores", "labels")]
            assert (np.diff(raw[1]) <= 1e-6).all()  # in the order of the logits; scores are rounded
            # others may be equal to the last one, and scores may be 0 in float32
            last = 1e-5 + (raw[1].min() if len(raw[1]) == MOST_BOXES else 0.0)
            good = (raw[0][:, 2:] > raw[0][:, :2]).all(axis=1) & (raw[1] > last)
            boxes, scores, labels = (values[scores > last] for values in (boxes, scores, labels))
            assert abs(len(scores) - good.sum()) <= 2  # boxes that rounding gives an area of nearly 0
            assert len(scores) > 20
            near = np.abs(raw[0][good][:, None] - boxes).max(axis=2) < 1e-4  # equal scores may change places
            near &= np.abs(raw[1][good][:, None] - scores) < 1e-4
            near &= raw[2][good][:, None] == labels
            assert near.any(axis=0).sum() >= len(scores) - 2
            assert near.any(axis=1).sum() >= len(scores) - 2


@pytest.mark.parametrize(("case", "form"), [case for case in EACH if "onnx" in getattr(case, "values", ())])
def test_suppression_in_an_onnx_file_keeps_the_boxes_of_the_detector(exported, case, form):
    export = exported(case, form)
    sizes = [(50, 100), (100, 100), (100, 30)] if case == "letterbox" else None
    batch = pictures(3, seed=5).astype("float32")
    found = outputs_of(export.path, batch, sizes)
    same, num_boxes = 0, 0
    for index, expected in enumerate(export.detector.detect_prepared(batch, sizes=sizes, options=OPTIONS)):
        kept = found["kept"][found["kept"][:, 0] == index, 1]
        assert (np.diff(kept) > 0).all()  # the best first
        mine = [found[name][index][kept] for name in ("boxes", "scores", "labels")]
        if case == "sides":  # of small images the file has as many boxes as there are anchors
            expected = expected.at(expected.scores > 0.3)
        near = np.abs(mine[0][:, None] - expected.boxes).max(axis=2) < 1e-3
        near &= (np.abs(mine[1][:, None] - expected.scores) < 1e-3) & (mine[2][:, None] == expected.labels)
        same += near.any(axis=0).sum()
        num_boxes += len(expected.scores)
        assert abs(len(kept) - len(expected.scores)) <= 0.05 * len(kept) or case == "sides"
        assert 10 < len(kept) < found["scores"].shape[1]  # something has gone, too
    assert same >= 0.95 * num_boxes


# === What the file says of itself, and the documentation =============================================================
@pytest.mark.parametrize(("case", "form"), EACH)
def test_classes_and_preprocessing_are_inside(exported, case, form):
    texts = about(exported(case, form).path)
    assert json.loads(texts["classes"]) == [entry._asdict() for entry in CLASSES]
    preprocessing = json.loads(texts["preprocessing"])
    assert preprocessing["resize"] == (case if case in ("letterbox", "sides") else "warp")
    sides = [preprocessing[name] for name in ("side", "min_side", "max_side")]
    assert sides == ([None, 48, 80] if case == "sides" else [64, None, None])
    assert preprocessing["orientation"] == ("exif" if case == "letterbox" else "stored")
    assert preprocessing["normalisation"].startswith("inside the model: ")


@pytest.mark.parametrize(("case", "form"), EACH)
def test_example_of_the_documentation_finds_what_the_detector_finds(
    exported, case, form, tmp_path, monkeypatch, capsys
):
    export = exported(case, form)
    image = cv2.resize(pictures(1, 9, 12)[0], (150, 90), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "photo.jpg"), image)
    name = "model.onnx" if form == "onnx" else "model"
    (shutil.copytree if export.path.is_dir() else shutil.copy)(export.path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    prepare, onnx, saved_model = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)
    example = (prepare + (onnx if form == "onnx" else saved_model)).replace("0.01, 0.55", "0.005, 0.3")
    exec(compile(example, "example", "exec"), {})
    rows = [line.rsplit(maxsplit=5) for line in capsys.readouterr().out.splitlines()]
    names, mine = [row[0] for row in rows], np.array([row[1:] for row in rows], "float64")
    read = cv2.cvtColor(cv2.imread("photo.jpg"), cv2.COLOR_BGR2RGB)
    inputs, sizes = [export.detector.prepare(read)], [read.shape[:2]]
    (expected,) = export.detector.detect_prepared(inputs, sizes=sizes, options=OPTIONS)
    if case == "sides":  # of small images the file has as many boxes as there are anchors
        expected = expected.at(expected.scores > 0.3)
    assert len(rows) >= len(expected.scores) > 5
    equal = []
    for box, score, label in zip(*expected, strict=True):
        near = np.abs(mine - (score, *box)).max(axis=1)
        equal.append(near.min() < 1e-3 and names[near.argmin()] == export.detector.class_names[label])
    assert np.mean(equal) >= 0.95


# === Refusals, and what is left behind ===============================================================================
def test_other_files_are_not_replaced_by_an_export(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("all of it")
    (tmp_path / "folder.onnx").mkdir()
    for name, form, words in (
        ("folder", "tf_saved_model", "holds other files than an earlier export: name a new folder"),
        ("folder/thesis.txt", "tf_saved_model", "is a file: a SavedModel is a folder"),
        ("folder.onnx", "onnx", "is a folder: give another place"),
        ("model", "onnx", "does not end in .onnx"),
    ):
        with refused(words):
            write_export(detector_of("warp"), tmp_path / name, form, **LIMITS)


def test_missing_package_or_another_backend_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with refused("ONNX needs tf2onnx, which is not installed: pip install tf2onnx"):
        write_export(detector_of("warp"), tmp_path / "x.onnx", "onnx", **LIMITS)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with refused("needs Keras on TensorFlow, here it runs on jax: set KERAS_BACKEND=tensorflow"):
        write_export(detector_of("warp"), tmp_path / "x", "tf_saved_model", **LIMITS)


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=needs_onnx), "tf_saved_model"])
def test_failing_export_leaves_the_old_one(tmp_path, monkeypatch, form):
    target = tmp_path / ("model.onnx" if form == "onnx" else "model")
    if form == "onnx":
        target.write_text("old")
    else:
        (target / ABOUT.parent).mkdir(parents=True)
        (target / ABOUT).write_text("old")

    def half(model, path, *arguments):
        path.write_text("half") if form == "onnx" else (path / "saved_model.pb").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.export._export_quietly", half)
    with refused("No space left on device"):
        write_export(detector_of("warp"), target, form, **LIMITS)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert (target if form == "onnx" else target / ABOUT).read_text() == "old"


@needs_onnx
def test_convolutions_in_groups_are_refused(tmp_path, monkeypatch):
    image = keras.Input((8, 8, 4), name="images")
    model = keras.Model({"images": image}, keras.layers.Conv2D(4, 3, groups=2, name="grouped")(image))
    monkeypatch.setattr("models.export._exported_model", lambda detector: model)
    with pytest.raises(InputError, match=r"grouped .* write a SavedModel"):
        write_export(detector_of("warp"), tmp_path / "x.onnx", "onnx", **LIMITS)


@needs_onnx
def test_tf2onnx_is_kept_from_copying_the_graph(tmp_path, monkeypatch):
    from tf2onnx import optimizer

    seen, own = [], optimizer.optimize_graph
    monkeypatch.setattr(optimizer, "optimize_graph", lambda *arguments: seen.append(arguments[1]) or own(*arguments))
    write_export(detector_of("warp"), tmp_path / "x.onnx", "onnx", **LIMITS)
    assert seen == [False]


# === Real networks ===================================================================================================
@pytest.mark.slow
@needs_onnx
def test_published_retinanet_gives_the_detections_of_keras_retinanet(tmp_path):
    file, answers = golden_retinanet(tmp_path, "resnet50_c5", kind="inference")
    detector = AnyShapeDetector(*load_keras_retinanet(file))
    write_export(detector, tmp_path / "x.onnx", "onnx", nms_iou=0.5, score_threshold=0.05)
    found = outputs_of(tmp_path / "x.onnx", answers["small_image"][None, ..., ::-1], None)
    boxes, scores, labels = (found[name][0, found["kept"][:, 1]] for name in ("boxes", "scores", "labels"))
    assert len(scores) == 17
    check_detections((boxes, scores, labels), answers, "small_")


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "efficientnet_v2_b0"])
def test_real_backbones(tmp_path, backbone):
    detector = detector_of("warp", backbone=backbone, image_size=128, head="shared")
    write_export(detector, tmp_path / "x.onnx", "onnx", **LIMITS)
    batch = pictures(2, 128, 128)
    found = outputs_of(tmp_path / "x.onnx", batch, None)
    # random weights make VGG's outputs so large that rounding shows
    for index, expected in enumerate(detector.detect_prepared(batch, options=ALL)):
        mine = np.concatenate([found["boxes"][index], found["scores"][index][:, None]], axis=1)
        theirs = np.concatenate([expected.boxes, expected.scores[:, None]], axis=1)
        distances = np.abs(mine[:, None] - theirs).max(axis=2)
        assert (distances.min(axis=0) < 1e-2).mean() > 0.99
