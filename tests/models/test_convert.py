"""Converted checkpoints have the same detections, others are refused; only the tests of .pth files need PyTorch."""

import csv
import importlib.util
import io
import json
import os
import re
import sys
import types
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from models import convert, load_model
from models.box_deltas import decode_ssd
from models.legacy_checkpoint import LegacyStructure
from models.released import COCO_NAMES, read_structure
from oid.anchors.grids import make_anchors
from oid.boxes.suppression import classwise_nms
from oid.files import InputError
from tests.helpers.legacy_checkpoint_files import write_checkpoint
from tests.helpers.project import refused, run_script
from tests.helpers.released_checkpoint import random_state

SMALL = {"channels": 8, "tums": 2, "outputs": 4, "sfam": True}
CLASSES = {"/m/apple": "Apple", "/m/pear": "Pear, green", "/m/plum": "Plum"}
needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed: it is optional, pip install torch"
)


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return random_state(**SMALL)


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("classes") / "classes.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(CLASSES.items())
    return path


def convert_arrays(state: dict, file: Path, output: Path, **flags: object) -> None:
    """The command on a checkpoint whose content is `state`, without PyTorch."""
    file.write_bytes(b"stands for a checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "read_checkpoint", lambda path: dict(state))
        convert.main(str(file), output=str(output), **flags)


@pytest.fixture(scope="module")
def run(state, csv_file, tmp_path_factory) -> Path:
    """A run converted from `state`; to be read only."""
    folder = tmp_path_factory.mktemp("converted")
    convert_arrays(state, folder / "small.pth", folder / "runs" / "small", classes=str(csv_file), image_size=272)
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def detector(run):
    return load_model(run)


def assert_same_detections(run: Path, detector) -> None:
    pictures = np.random.default_rng(3).integers(0, 256, (1, 300, 200, 3), dtype="uint8")
    expected = detector.predict_on_batch(pictures)
    assert (expected["labels"] >= 0).sum() > 10
    np.testing.assert_equal(load_model(run).predict_on_batch(pictures), expected)


# === The run =========================================================================================================
def test_settings(run):
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert settings["classes"] == [{"label": label, "name": name} for label, name in CLASSES.items()]
    assert list(settings["preprocessing"].values()) == ["warp", "linear", "stored", "RGB, 0 to 255", "ssd"]
    expected = {"variant": "released", "backbone": "vgg16", "image_size": 272, "tums": 2, "scales": 6, "channels": 8}
    expected |= {"sfam": True, "head": "conv", "box_coding": "ssd", "score_activation": "softmax"}
    assert {name: settings[name] for name in expected} == expected
    assert make_anchors(settings["anchors"]).shape == (9366, 4)
    assert settings["converted_from"] == "small.pth"
    assert sorted(path.name for path in run.iterdir()) == ["model.keras", "settings.json"]
    assert [path.name for path in run.parent.iterdir()] == ["small"]  # nothing temporary


def test_the_detector_decodes_its_raw_outputs(run, detector, state):
    """Decoding, softmax without the background and suppression, on a drawn picture that is warped to the square."""
    rng = np.random.default_rng(5)
    picture = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype="uint8"), (600, 400), interpolation=cv2.INTER_CUBIC)
    square = cv2.resize(picture, (272, 272), interpolation=cv2.INTER_LINEAR)
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    network = convert.released_network(state, read_structure(state, "small"), settings, "small")
    raw = {name: values[0].astype("float64") for name, values in network.predict_on_batch(square[None]).items()}
    boxes = np.clip(decode_ssd(raw["boxes"], make_anchors(settings["anchors"]), library=np), 0, 1)
    exponentials = np.exp(raw["classes"] - raw["classes"].max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, 1:]

    limit = np.sort(probabilities, axis=None)[-301:-299].mean()  # the detector decodes more boxes than are above it
    anchor, label = np.nonzero((probabilities >= limit) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)[:, None])
    order = np.argsort(-probabilities[anchor, label], kind="stable")
    anchor, label = anchor[order], label[order]
    expected_boxes, expected_scores = boxes[anchor], probabilities[anchor, label]
    kept = classwise_nms(expected_boxes, expected_scores, label, 0.45)
    assert 10 < len(kept) < 300
    assert len(set(label[kept])) > 1

    assert (detector.class_labels, detector.class_names) == (list(CLASSES), list(CLASSES.values()))
    np.testing.assert_array_equal(detector.prepare(picture), square)
    ((found, scores, labels),) = detector.detect(square[None], score_threshold=limit, nms_iou=0.45, vote_iou=1)
    np.testing.assert_allclose(scores, expected_scores[kept], rtol=1e-4)
    np.testing.assert_array_equal(labels, label[kept])
    np.testing.assert_allclose(found, expected_boxes[kept], atol=1e-5)


def test_a_conversion_can_be_repeated(state, csv_file, detector, tmp_path, capsys):
    output = tmp_path / "run"
    output.mkdir()
    (output / "settings.json").write_text('{"converted_from": "other.pth"}', encoding="utf-8")
    (output / "model.keras").write_bytes(b"other")
    convert_arrays(state, tmp_path / "small.pth", output, classes=str(csv_file), image_size=272)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small.pth"]
    assert_same_detections(output, detector)
    printed = capsys.readouterr().out
    assert "2 TUMs of 6 scales with 8 channels, with SFAM, 3 classes and the background, " in printed
    second_name = re.compile(r"leach\.1|.*fc..[1-5]\.|.*(running|num_batches)")
    assert f"{sum(a.size for n, a in state.items() if not second_name.match(n)):,} parameters" in printed


@pytest.mark.parametrize(("depth", "sides"), [(50, (768, 1024)), (101, (768, 1024)), (152, (600, 800))])
def test_sides_of_a_retinanet_are_the_published_ones_unless_said(depth, sides):
    structure = LegacyStructure(depth, 1, "same")
    for asked, expected in (((), sides), ((64, 96), (64, 96))):
        settings = convert.legacy_settings(structure, {"/m/0": "Class"}, *asked)
        assert (settings["preprocessing"]["min_side"], settings["preprocessing"]["max_side"]) == expected
        assert (settings["backbone"], settings["clip"]) == (f"legacy_resnet{depth}", "last_pixel")


# === Classes =========================================================================================================
def test_the_classes_of_coco():
    classes = convert.read_classes(80, "m2det512_vgg.pth", None)
    assert tuple(classes.values()) == COCO_NAMES
    assert len(classes) == 80
    assert not any(" " in label for label in classes)
    assert list(classes.items())[:2] == [("person", "person"), ("bicycle", "bicycle")]
    assert classes["traffic_light"] == "traffic light"
    places = {name: index for index, name in enumerate(COCO_NAMES, start=1)}  # output 0 is the background
    known = {"traffic light": 10, "stop sign": 12, "dog": 17, "backpack": 25, "banana": 47, "tv": 63, "toothbrush": 80}
    assert {name: places[name] for name in known} == known


def test_classes_of_a_file_must_be_those_of_the_checkpoint(csv_file):
    assert convert.read_classes(3, "x.pth", str(csv_file)) == CLASSES
    for count, file, words in (
        (80, str(csv_file), "has 3 classes and x.pth has 80"),
        (2, str(csv_file), "has 3 classes and x.pth has 2"),
        (20, None, "x.pth has 20 classes, not the 80 of COCO: name them by --classes"),
    ):
        with refused(words):
            convert.read_classes(count, "x.pth", file, background=True)


# === Refusals ========================================================================================================
def refuse(words: str, file: Path, output: Path, **flags: object) -> None:
    """The command ends with one sentence, and leaves nothing behind."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(InputError, match=words) as error:
        convert.main(str(file), output=str(output), **flags)
    assert "\n" not in str(error.value)
    assert sorted(output.parent.rglob("*")) == before


def test_files_that_are_no_checkpoint(tmp_path):
    for name, content, words in (
        ("empty", b"", "is empty"),
        ("text", b"hello\n", "is neither a PyTorch checkpoint"),
        ("damaged", b"\x89HDF\r\n\x1a\n" + bytes(99), "cannot be read as HDF5"),
        ("absent", None, "does not exist"),
        ("", None, "is a folder, not a file"),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        refuse(f"{name} {words}", tmp_path / name, tmp_path / "run")


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("file") / "x.h5"
    write_checkpoint(path, structure=LegacyStructure(50, 3, "explicit"))
    return path


@pytest.mark.parametrize(
    ("count", "flags", "words"),
    [
        (None, {}, r"x\.h5 has 3 classes, not the 80 of COCO: name them by --classes with a CSV"),
        (4, {}, r"--classes .*4\.csv has 4 classes and .*x\.h5 has 3: give the list that it was trained on"),
        (3, {"image_size": 512}, r"--image_size 512 does not belong to .*x\.h5"),
        (3, {"min_side": 900, "max_side": 800}, "--min_side 900 --max_side 800: give at least 32, and the larger last"),
        (3, {"min_side": 5}, "--min_side 5 --max_side 1024: give at least 32"),
    ],
)
def test_flags_that_do_not_fit_a_retinanet(tmp_path, retinanet, count, flags, words):
    if count:
        flags |= {"classes": str(tmp_path / f"{count}.csv")}
        rows = "".join(f"/m/{k},Class {k}\n" for k in range(count))
        (tmp_path / f"{count}.csv").write_text(rows, encoding="utf-8")
    refuse(words, retinanet, tmp_path / "run", **flags)


def test_flags_that_do_not_fit_an_m2det(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04")
    for side in (0, -512, 256, 300, 520):
        words = f"--image_size is {side}: it must be a multiple of 16, at least 272"
        refuse(words, tmp_path / "x.pth", tmp_path / "run", image_size=side)
    refuse("--min_side 600 does not belong to", tmp_path / "x.pth", tmp_path / "run", min_side=600)


def test_without_pytorch_or_with_an_old_one(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04")
    monkeypatch.setitem(sys.modules, "torch", None)
    refuse("is read by PyTorch, which is not installed: pip install torch", tmp_path / "x.pth", tmp_path / "run")
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(__version__="2.5.1+cpu"))
    refuse(r"PyTorch 2\.5\.1\+cpu does not read files safely", tmp_path / "x.pth", tmp_path / "run")


def test_a_checkpoint_that_does_not_fit(state, csv_file, tmp_path):
    damaged = {name: array for name, array in state.items() if name != "conf.5.bias"}
    with pytest.raises(InputError, match=r"conf\.5\.bias of shape \(24\) is missing"):
        convert_arrays(damaged, tmp_path / "x.pth", tmp_path / "run", classes=str(csv_file), image_size=272)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_output_is_needed_and_must_be_free(run, tmp_path):
    (tmp_path / "x.pth").write_bytes(b"hello")
    with pytest.raises(InputError, match="--output is missing"):
        convert.main(str(tmp_path / "x.pth"))
    training = tmp_path / "training"
    training.mkdir()
    (training / "settings.json").write_text('{"classes": []}', encoding="utf-8")
    refuse("training holds other files than an earlier conversion", tmp_path / "x.pth", training)
    (training / "settings.json").write_text('{"converted_from": "y.pth"}', encoding="utf-8")
    (training / "history.csv").write_text("epoch\n", encoding="utf-8")
    refuse("training holds other files than an earlier conversion", tmp_path / "x.pth", training)
    refuse("is not a writable folder", tmp_path / "x.pth", tmp_path / "x.pth")
    (tmp_path / "free").mkdir()
    refuse("is neither a PyTorch checkpoint", tmp_path / "x.pth", tmp_path / "free")  # so the folder was accepted
    (training / "history.csv").unlink()
    refuse("is neither a PyTorch checkpoint", tmp_path / "x.pth", training)


def test_a_full_disk_leaves_the_earlier_conversion(run, tmp_path):
    class Network:
        def save(self, path, *, zipped):
            Path(path).mkdir()
            (Path(path) / "model.weights.h5").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    output = tmp_path / "run"
    output.mkdir()
    (output / "settings.json").write_text("earlier", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.detector.inference_model", lambda network, settings: network)
        with pytest.raises(InputError, match=r"cannot be written .No space left on device."):
            convert.write_run(output, settings, Network())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (output / "settings.json").read_text(encoding="utf-8") == "earlier"


# === The command line ================================================================================================
def test_help_and_a_mistake():
    done = run_script("models.convert", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[--image_size INT] [--min_side INT] [--max_side INT] FILE" in " ".join(done.stdout.split())
    done = run_script("models.convert", "nowhere.pth", "--output", "nowhere")
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.pth does not exist: name the checkpoint to convert\n"


# === Files of PyTorch ================================================================================================
def save(content: object, path: Path, *, legacy: bool = False) -> Path:
    import torch

    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def tensors(state: dict[str, np.ndarray], prefix: str = "") -> dict:
    """A state_dict; names of one array are names of one tensor."""
    import torch

    made = {id(array): torch.from_numpy(array) for array in state.values()}
    return {prefix + name: made[id(array)] for name, array in state.items()}


@pytest.fixture
def little() -> dict[str, np.ndarray]:
    """Arrays of several kinds, two names of one among them."""
    weight = np.arange(6, dtype="float32").reshape(2, 3)
    return {"a.weight": weight, "b.weight": weight, "a.num_batches_tracked": np.zeros((), "int64")}


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
def test_every_form_of_the_file(little, tmp_path, legacy, prefix, wrap):
    content = tensors(little, prefix)
    path = save({wrap: content, "epoch": 3} if wrap else content, tmp_path / "x.pth", legacy=legacy)
    assert path.read_bytes().startswith(b"\x80\x02" if legacy else b"PK")
    found = convert.read_checkpoint(path)
    assert list(found) == list(little)
    for name, array in found.items():
        assert array.dtype == little[name].dtype
        np.testing.assert_array_equal(array, little[name])


@needs_torch
def test_half_precision_becomes_float32(tmp_path):
    import torch

    half = {"a": torch.full((2,), 0.5, dtype=torch.bfloat16), "b": torch.ones(1, dtype=torch.float64)}
    path = save(half, tmp_path / "x")
    found = convert.read_checkpoint(path)
    assert {name: array.dtype for name, array in found.items()} == {"a": np.float32, "b": np.float32}
    np.testing.assert_array_equal(found["a"], [0.5, 0.5])


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_runs_none(tmp_path, legacy):
    import torch

    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    path = save({"loc.0.weight": torch.zeros(1), "x": Harmful()}, tmp_path / "x.pth", legacy=legacy)
    refuse("holds more than tensors, or is damaged, and none of its code was run", path, tmp_path / "run")
    assert not (tmp_path / "harm").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "harm").exists()  # the file would have run it


@needs_torch
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_was_cut_short(little, tmp_path, legacy, share):
    little["c.weight"] = np.zeros((50, 50), "float32")
    path = save(tensors(little), tmp_path / "x.pth", legacy=legacy)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    words = "x.pth (cannot be read as a PyTorch checkpoint|holds more than tensors, or is damaged)"
    refuse(words, path, tmp_path / "run")


@needs_torch
def test_other_files_that_pytorch_reads(tmp_path):
    import torch

    for content, words in (
        (torch.zeros(3), "holds no table of tensors"),
        ({}, "holds no table of tensors"),
        ([torch.zeros(3)], "holds no table of tensors"),
        ({"epoch": 3, "loc": torch.zeros(3)}, "epoch is no plain tensor"),
        ({"a": torch.zeros(3).to_sparse()}, "a is no plain tensor"),
        (torch.nn.Linear(2, 2), "holds more than tensors"),
    ):
        refuse(words, save(content, tmp_path / "x.pth"), tmp_path / "run")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("config.json", "{}")
    (tmp_path / "x.pth").write_bytes(archive.getvalue())
    refuse("cannot be read as a PyTorch checkpoint", tmp_path / "x.pth", tmp_path / "run")


@needs_torch
def test_the_command_and_a04(state, csv_file, detector, tmp_path):
    path = save(tensors(state, "module."), tmp_path / "small.pth", legacy=True)
    images = tmp_path / "images"
    images.mkdir()
    picture = np.random.default_rng(4).integers(0, 256, (90, 120, 3), dtype="uint8")
    cv2.imwrite(str(images / "one.png"), picture)
    done = run_script("models.convert", path, "--output", tmp_path / "run", "--classes", csv_file, "--image_size", 272)
    assert done.returncode == 0, done.stderr
    assert "* file" in done.stdout
    assert_same_detections(tmp_path / "run", detector)
    line = re.search(r"wrote .*: python (.*) --images FOLDER --predictions FILE.csv", done.stdout)[1].split()
    flags = ["--images", str(images), "--predictions", str(tmp_path / "out.csv"), "--score_threshold", "0.2"]
    done = run_script(*line, *flags)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "out.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 2
    tokens = rows[1].removeprefix("one,").split(" ")
    assert len(tokens) > 6
    assert set(tokens[::6]) <= set(CLASSES)
