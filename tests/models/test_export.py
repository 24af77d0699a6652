"""`a04 --export` writes files that find the same boxes as a04, and that contain a working example of their use."""

import contextlib
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest

import a04_inference as a04
from models import convert, load_model
from models.decoding import suppress
from models.detector import MOST_BOXES, SIDES, inference_model, network_from_settings
from models.export import ABOUT, _refuse_groups, check_target, require_packages
from oid import paths
from oid.anchors.grids import retinanet_anchor_settings
from oid.files import InputError
from tests.helpers import any_shape_network
from tests.helpers.legacy_checkpoint_files import check_detections, golden_retinanet
from tests.helpers.project import refused
from tests.helpers.tiny_network import CLASSES, pictures, randomised, tiny_settings, write_settings

missing = [name for name in ("tf2onnx", "onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"{missing} not installed: pip install tf2onnx onnx onnxruntime")
THRESHOLD = 0.005  # what random weights give is hardly above 0.01
CASES = {
    "warp": {},
    "letterbox": {"preprocessing": tiny_settings()["preprocessing"] | {"resize": "letterbox", "orientation": "exif"}},
    "released": {"variant": "released", "sfam": False, "score_activation": "softmax", "box_coding": "ssd"},
}
CASES["retinanet"] = {"detector": "retinanet", "anchors": retinanet_anchor_settings(64, 3)}
FORMS = [pytest.param("onnx", marks=needs_onnx), "tf_saved_model"]
EACH = [  # an export takes some seconds
    pytest.param("warp", "onnx", marks=needs_onnx),
    pytest.param("letterbox", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    pytest.param("released", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    pytest.param("retinanet", "onnx", marks=[needs_onnx, pytest.mark.slow]),
    pytest.param("sides", "onnx", marks=needs_onnx),
    pytest.param("sides", "tf_saved_model", marks=pytest.mark.slow),
    pytest.param("warp", "tf_saved_model", marks=pytest.mark.slow),
    ("letterbox", "tf_saved_model"),
    pytest.param("released", "tf_saved_model", marks=pytest.mark.slow),
]


def make_run(folder: Path, **changes: object) -> Path:
    """A run with random weights."""
    settings = tiny_settings(**changes)
    keras.utils.set_random_seed(0)
    network = randomised(network_from_settings(settings))
    write_settings(folder, settings)
    inference_model(network, settings).save(folder / "model.keras")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """OUTPUT with a run for each of `CASES`; to be read only."""
    output = tmp_path_factory.mktemp("output")
    for name, changes in CASES.items():
        make_run(output / "weights" / name, **changes)
    any_shape_network.write_run(output / "weights" / "sides")
    return output


@pytest.fixture(scope="module")
def exported(runs):
    """Exports once, by run and format: the path, and what was printed."""
    done = {}

    def export(run: str, form: str) -> SimpleNamespace:
        if (run, form) not in done:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                flags = {"score_threshold": THRESHOLD, "nms_iou": 0.3, "recipe": "own"}
                a04.main(output_path=str(runs), run=(run,), export=form, **flags)
            path = paths.run_export(runs, run, form)
            done[run, form] = SimpleNamespace(path=path, printed=printed.getvalue(), folder=runs / "weights" / run)
        return done[run, form]

    return export


def outputs_of(path: Path, batch: np.ndarray) -> dict[str, np.ndarray]:
    """What another program gets from a file."""
    batch = batch.astype("float32")
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, {"pictures": batch}), strict=True))
    import tensorflow

    model = tensorflow.saved_model.load(str(path))
    return {name: value.numpy() for name, value in model.serve(batch).items()}


def about(path: Path) -> dict[str, str]:
    """What a file says of itself."""
    if path.suffix == ".onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return json.loads((path / ABOUT).read_text(encoding="utf-8"))


# === The same boxes ==================================================================================================
@pytest.mark.parametrize(("case", "form"), EACH)
def test_the_exported_file_finds_the_boxes_of_the_model(exported, case, form):
    export = exported(case, form)
    detector = load_model(export.folder)
    detector._resize = SIDES if case == "sides" else "warp"  # boxes in the square, as the file gives them
    options = {"nms_iou": 1.0, "vote_iou": 1.0, "score_threshold": 0.0, "max_boxes": 10_000}
    shapes = [(1, 90, 104), (3, 90, 104), (2, 41, 230)] if case == "sides" else [(1, 64, 64), (3, 64, 64)]
    for count, height, width in shapes:
        batch = pictures(count, height, width, seed=count)
        found = outputs_of(export.path, batch)
        dtypes = {"boxes": np.float32, "scores": np.float32, "labels": np.int32}
        assert {name: found[name].dtype for name in dtypes} == dtypes
        assert {len(found[name]) for name in dtypes} == {count}
        for index, (boxes, scores, labels) in enumerate(detector.detect(batch.astype("float32"), **options)):
            raw = [found[name][index] for name in ("boxes", "scores", "labels")]
            assert (np.diff(raw[1]) <= 1e-6).all()  # in the order of the logits, of which scores are rounded
            raw[0] = raw[0].clip(0, 1)
            # others may be equal to the last one, and scores may be 0 in float32
            last = 1e-5 + (raw[1].min() if len(raw[1]) == MOST_BOXES else 0.0)
            good = (raw[0][:, 2:] > raw[0][:, :2]).all(axis=1) & (raw[1] > last)
            boxes, scores, labels = (values[scores > last] for values in (boxes, scores, labels))
            assert len(scores) == good.sum() > 20
            np.testing.assert_allclose(raw[1][good], scores, atol=1e-4)
            near = np.abs(raw[0][good][:, None] - boxes).max(axis=2) < 1e-4  # equal scores may change places
            near &= raw[2][good][:, None] == labels
            assert near.any(axis=0).all()
            assert near.any(axis=1).all()


@pytest.mark.parametrize(("case", "form"), [case for case in EACH if "onnx" in getattr(case, "values", ())])
def test_the_suppression_in_an_onnx_file_keeps_the_same_boxes(exported, case, form):
    found = outputs_of(exported(case, form).path, pictures(3, seed=5))
    for index in range(3):
        mine = [found[name][index] for name in ("boxes", "scores", "labels")]
        options = {"nms_iou": 0.3, "vote_iou": 1.0, "score_threshold": THRESHOLD, "max_boxes": 10_000}
        boxes, scores, labels = suppress(*mine, **options)
        kept = found["kept"][found["kept"][:, 0] == index, 1]
        assert (np.diff(kept) > 0).all()  # the best first
        kept = kept[np.argsort(-mine[1][kept], kind="stable")]
        np.testing.assert_array_equal(mine[1][kept], scores)
        np.testing.assert_array_equal(mine[2][kept], labels)
        np.testing.assert_array_equal(mine[0][kept].clip(0, 1), boxes)
        assert 10 < len(kept) < len(mine[1])  # something has gone, too


# === What the file says of itself ====================================================================================
@pytest.mark.parametrize(("case", "form"), EACH)
def test_classes_and_preprocessing_are_inside(exported, case, form):
    export = exported(case, form)
    texts = about(export.path)
    assert json.loads(texts["classes"]) == CLASSES
    preprocessing = json.loads(texts["preprocessing"])
    assert preprocessing["resize"] == (case if case in ("letterbox", "sides") else "warp")
    sides, size = ("min_side", "max_side"), ("height", "width")
    if case == "sides":
        sides, size = size, sides
    assert [preprocessing[name] for name in size] == ([48, 80] if case == "sides" else [64, 64])
    assert not set(sides) & set(preprocessing)
    assert "RGB, 0 to 255" in preprocessing["input"]
    assert preprocessing["orientation"].startswith("turned" if case == "letterbox" else "pixels as stored")
    assert set(json.loads(texts["outputs"])) - {"kept"} == {"boxes", "scores", "labels"}
    assert texts["example"] in export.printed
    assert str(export.path) in export.printed


@pytest.mark.parametrize(("case", "form"), EACH)
def test_the_example_inside_finds_what_a04_finds(exported, case, form, tmp_path, monkeypatch, capsys):
    export = exported(case, form)
    image = cv2.resize(pictures(1, 9, 12)[0], (150, 90), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "photo.jpg"), image)
    (shutil.copytree if export.path.is_dir() else shutil.copy)(export.path, tmp_path / export.path.name)
    monkeypatch.chdir(tmp_path)
    exec(compile(about(export.path)["example"], "example", "exec"), {})
    printed = capsys.readouterr().out.replace("[", " ").replace("]", " ").splitlines()
    rows = [line.rsplit(maxsplit=5) for line in printed]
    found = sorted(((name, *map(float, numbers)) for name, *numbers in rows), key=lambda row: -row[1])
    detector = load_model(export.folder)
    read = cv2.cvtColor(cv2.imread("photo.jpg"), cv2.COLOR_BGR2RGB)
    options = {"nms_iou": 0.3, "vote_iou": 1.0, "score_threshold": THRESHOLD, "max_boxes": 10_000}
    ((boxes, scores, labels),) = detector.detect([detector.prepare(read)], sizes=[read.shape[:2]], **options)
    if case == "sides":  # of small pictures the file has as many boxes as there are anchors
        boxes, scores, labels = (values[scores > 0.3] for values in (boxes, scores, labels))
    assert len(scores) > 5
    assert len(found) >= len(scores)  # beside the picture, on the grey, there may be others
    mine = np.array([row[1:] for row in found])
    mine[:, 1:] = mine[:, 1:].clip(0, 1)
    equal = []
    for box, score, label in zip(boxes, scores, labels, strict=True):
        near = np.abs(mine - (score, *box)).max(axis=1)
        equal.append(near.min() < 1e-3 and found[near.argmin()][0] == detector.class_names[label])
    # an ONNX file suppresses in the square, where boxes that reach into the grey overlap otherwise than in the picture
    assert np.mean(equal) > (0.5 if (case, form) == ("letterbox", "onnx") else 0.999)


# === Refusals, and what is left behind ===============================================================================
def export_to(runs: Path, path: Path, form: str = "tf_saved_model", **flags: object) -> None:
    a04.main(**{"output_path": str(runs), "run": ("warp",), "export": form, "export_path": str(path)} | flags)


def test_no_image_folder_is_needed_and_an_earlier_export_is_replaced(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no data set below it
    monkeypatch.setattr("models.export._export_quietly", lambda model, path, form: (path / number).write_text(""))
    for number in ("first", "second"):
        export_to(runs, tmp_path / "new" / "model")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
        assert {path.name for path in (tmp_path / "new" / "model").iterdir()} == {number, ABOUT.parent.name}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"images": "folder"}, "--images folder does not go with --export, which looks at no image: leave out"),
        ({"predictions": "a.csv"}, "--predictions a.csv does not go with --export"),
        ({"nms": "linear"}, "--nms linear does not go with --export, which knows hard only: leave out --nms"),
        ({"precision": "bfloat16"}, "--precision bfloat16 does not go with --export, which knows float32 only"),
        ({"run": ("nothing",)}, "nothing is no run"),
        ({"nms_iou": 2.0}, "--nms_iou is 2.0"),
        ({"export": None}, "--export_path goes with --export: say whether it is to be onnx or tf_saved_model"),
        ({"export": "onnx"}, "does not end in .onnx"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(runs, tmp_path, flags, sentence):
    with refused(sentence):
        export_to(runs, tmp_path / "new" / "model", **flags)
    assert not (tmp_path / "new").exists()


def test_other_files_are_not_replaced_by_an_export(tmp_path):
    (tmp_path / "folder").mkdir()
    check_target(tmp_path / "folder", "tf_saved_model")  # an empty one may be
    (tmp_path / "folder" / "thesis.txt").write_text("all of it")
    (tmp_path / "folder.onnx").mkdir()
    for name, form, words in (
        ("folder", "tf_saved_model", "holds other files than an earlier export: give --export_path a new"),
        ("folder/thesis.txt", "tf_saved_model", "is a file: give --export_path the name of a folder"),
        ("folder.onnx", "onnx", "is a folder: give another place by --export_path"),
    ):
        with refused(words):
            check_target(tmp_path / name, form)


def test_a_missing_package_or_another_backend_is_one_sentence_with_the_remedy(monkeypatch):
    require_packages("tf_saved_model")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with refused("--export onnx needs tf2onnx, which is not installed: pip install tf2onnx"):
        require_packages("onnx")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with refused("--export needs Keras on TensorFlow, here it runs on jax: set KERAS_BACKEND=tensorflow, which reads"):
        require_packages("tf_saved_model")


@pytest.mark.parametrize("form", FORMS)
def test_a_failing_export_leaves_the_old_one(runs, tmp_path, monkeypatch, form):
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
    with pytest.raises(InputError, match="No space left on device"):
        export_to(runs, target, form)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert (target if form == "onnx" else target / ABOUT).read_text() == "old"


def test_a_converted_retinanet_has_the_suppression_and_the_sides_of_its_authors(runs, tmp_path, monkeypatch):
    asked = {}

    def write_export(detector, target, form, **options):
        asked.update(options, **{name: detector.settings["preprocessing"][name] for name in ("min_side", "max_side")})
        return {"example": ""}

    monkeypatch.setattr("models.export.write_export", write_export)
    export_to(runs, tmp_path / "model", run=("sides",), max_side=64)
    assert asked == {"nms_iou": 0.5, "score_threshold": 0.05, "min_side": 48, "max_side": 64}
    with pytest.raises(InputError, match=r"--nms_iou 0\.3 has no part in the published recipe: add --recipe own"):
        export_to(runs, tmp_path / "model", run=("sides",), nms_iou=0.3)
    with pytest.raises(InputError, match="--min_side 48 is for converted RetinaNets"):
        export_to(runs, tmp_path / "model", min_side=48)


# === Real networks ===================================================================================================
@pytest.mark.slow
@needs_onnx
def test_a_published_retinanet_gives_the_detections_of_keras_retinanet(tmp_path):
    file, answers = golden_retinanet(tmp_path, "resnet50_c5", kind="inference")
    (tmp_path / "classes.csv").write_text("".join(f"/m/{k},Class {k}\n" for k in range(5)), encoding="utf-8")
    convert.main(str(file), output=str(tmp_path / "run"), classes=str(tmp_path / "classes.csv"))
    a04.main(run=(str(tmp_path / "run"),), export="onnx", export_path=str(tmp_path / "model.onnx"))
    found = outputs_of(tmp_path / "model.onnx", answers["small_image"][None, ..., ::-1])
    boxes, scores, labels = (found[name][0, found["kept"][:, 1]] for name in ("boxes", "scores", "labels"))
    assert len(scores) == 17
    check_detections((boxes.clip(0, 1), scores, labels), answers, "small_")


@pytest.mark.slow
@needs_onnx
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "efficientnet_v2_b0"])
def test_real_backbones(tmp_path, backbone):
    changes = {"backbone": backbone, "image_size": 128, "head": "shared"}
    folder = make_run(tmp_path / "run", **changes)
    a04.main(run=(str(folder),), export="onnx", export_path=str(tmp_path / "model.onnx"))
    batch = pictures(2, 128, 128)
    expected = load_model(folder, precision=None).model.predict_on_batch(batch)
    found = outputs_of(tmp_path / "model.onnx", batch)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-3)
    # equal scores may change places; random weights make VGG's outputs so large that rounding shows
    for mine, theirs in zip(found["boxes"], expected["boxes"], strict=True):
        distances = np.abs(mine[:, None] - theirs).max(axis=2)
        assert (distances.min(axis=0) < 1e-2).mean() > 0.99
        assert (distances.min(axis=1) < 1e-2).mean() > 0.99


def test_convolutions_in_groups_are_refused():
    image = keras.Input((8, 8, 4))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, groups=2, name="grouped")(image))
    with pytest.raises(InputError, match=r"grouped .* tf_saved_model"):
        _refuse_groups(model)
