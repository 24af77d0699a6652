"""`python -m convert.cli` writes a run with the same detections; mistakes end with one sentence and write nothing."""

import csv
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from convert import cli, m2det_pth
from models import load_model
from models.box_deltas import DECODERS
from models.suppression import DetectionOptions
from oid.boxes.suppression import classwise_nms
from oid.files import InputError
from tests.helpers.keras_retinanet_files import TINY, small_numbers, tiny_blocks, write_checkpoint
from tests.helpers.m2det_checkpoint import random_state
from tests.helpers.project import refused, run_script

CLASSES = {"/m/apple": "Apple", "/m/pear": "Pear, green", "/m/plum": "Plum"}
IMAGES = np.random.default_rng(3).integers(0, 256, (1, 300, 200, 3), dtype="uint8")


@pytest.fixture(scope="module")
def state() -> dict[str, np.ndarray]:
    return random_state(channels=8, tums=2, outputs=4, sfam=True)


def write_classes(path: Path, classes: dict[str, str]) -> str:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(classes.items())
    return str(path)


@pytest.fixture
def arrays(state, monkeypatch):
    """Files that begin like a zip file are read as `state`, without PyTorch."""
    monkeypatch.setattr(m2det_pth, "read_state", lambda path: dict(state))


@pytest.fixture
def m2det(arrays, tmp_path) -> Path:
    """A run of an M2Det."""
    (tmp_path / "small.pth").write_bytes(m2det_pth.ZIP)
    classes = write_classes(tmp_path / "classes.csv", CLASSES)
    cli.main(str(tmp_path / "small.pth"), output=str(tmp_path / "run"), classes=classes, image_size=272)
    return tmp_path / "run"


@pytest.fixture
def retinanet(tmp_path, monkeypatch) -> Path:
    """A file of a RetinaNet with one block per stage and 2 classes."""
    tiny_blocks(monkeypatch)
    random = np.random.default_rng(0)
    write_checkpoint(tmp_path / "x.h5", structure=TINY, values=lambda *tensor: small_numbers(*tensor, random))
    return tmp_path / "x.h5"


# === The run =========================================================================================================
def test_m2det_detects_what_its_raw_outputs_say(m2det, capsys):
    """Decoding, softmax without the background and suppression, on a drawn image that is warped to the square."""
    assert sorted(path.name for path in m2det.iterdir()) == ["model.keras", "settings.json"]
    detector = load_model(m2det, precision=None)
    settings = detector.settings
    assert settings.names == list(CLASSES.values())
    assert (settings.network.variant, settings.network.tums, settings.network.channels) == ("released_sfam", 2, 8)
    assert (settings.inputs.resize, settings.inputs.interpolation, settings.converted_from) == (
        *("warp", "linear"),
        "small.pth",
    )
    rng = np.random.default_rng(5)
    image = cv2.resize(rng.integers(0, 256, (9, 12, 3), dtype="uint8"), (600, 400), interpolation=cv2.INTER_CUBIC)
    square = cv2.resize(image, (272, 272), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(detector.prepare(image), square)
    raw = {name: np.asarray(values[0], "float64") for name, values in detector.network(square[None]).items()}
    boxes = np.clip(DECODERS["ssd"](raw["boxes"], settings.anchors.boxes(), library=np), 0, 1)
    exponentials = np.exp(raw["classes"] - raw["classes"].max(axis=1, keepdims=True))
    probabilities = (exponentials / exponentials.sum(axis=1, keepdims=True))[:, 1:]

    limit = np.sort(probabilities, axis=None)[-301:-299].mean()  # the detector decodes more boxes than are above it
    anchor, label = np.nonzero((probabilities >= limit) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)[:, None])
    order = np.argsort(-probabilities[anchor, label], kind="stable")
    anchor, label = anchor[order], label[order]
    kept = classwise_nms(boxes[anchor], probabilities[anchor, label], label, 0.45)
    assert 10 < len(kept) < 300
    assert len(set(label[kept])) > 1
    options = DetectionOptions(mirror=False, score_threshold=limit, nms_iou=0.45, vote_iou=1)
    (found,) = detector.detect_prepared(square[None], options=options)
    np.testing.assert_allclose(found.scores, probabilities[anchor, label][kept], rtol=1e-4)
    np.testing.assert_array_equal(found.labels, label[kept])
    np.testing.assert_allclose(found.boxes, boxes[anchor][kept], atol=1e-5)


def test_conversion_can_be_repeated(m2det, capsys):
    before = load_model(m2det, precision=None).fingerprint()
    folder = m2det.parent
    cli.main(str(folder / "small.pth"), output=str(m2det), classes=str(folder / "classes.csv"), image_size=272)
    assert "m2det on vgg16, released_sfam, 2 TUMs, 8 channels, 3 classes" in capsys.readouterr().out
    assert load_model(m2det, precision=None).fingerprint() == before
    assert sorted(path.name for path in folder.iterdir()) == ["classes.csv", "run", "small.pth"]  # nothing temporary


def test_converted_run_and_the_file_itself_detect_the_same(retinanet, tmp_path, capsys):
    cli.main(str(retinanet), output=str(tmp_path / "run"), min_side=64, max_side=96)
    assert "labels are the numbers of the outputs" in capsys.readouterr().out
    options = {"precision": None, "backbone_name": "resnet50"}
    run, file = load_model(tmp_path / "run", **options), load_model(retinanet, **options).with_sides(64, 96)
    assert run.settings == file.settings
    assert run.class_names == ["0", "1"]
    found, expected = run.predict_on_batch(IMAGES), file.predict_on_batch(IMAGES)
    assert (expected.labels >= 0).sum() > 5
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with refused("has the backbone resnet50, not resnet101"):
        load_model(retinanet, backbone_name="resnet101")


def test_full_disk_leaves_the_earlier_conversion(retinanet, tmp_path, monkeypatch):
    cli.main(str(retinanet), output=str(tmp_path / "run"))
    before = (tmp_path / "run" / "settings.json").read_text(encoding="utf-8")

    def save(self, path):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keras.Model, "save", save)
    with refused("cannot be written (No space left on device)"):
        cli.main(str(retinanet), output=str(tmp_path / "run"), min_side=64)
    assert (tmp_path / "run" / "settings.json").read_text(encoding="utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.h5"]


# === Refusals ========================================================================================================
def refuse(words: str, file: Path, output: Path, **flags: object) -> None:
    """The command ends with one sentence, and leaves nothing behind."""
    before = sorted(output.parent.rglob("*"))
    with pytest.raises(InputError, match=words) as error:
        cli.main(str(file), output=str(output), **flags)
    assert "\n" not in str(error.value)
    assert sorted(output.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "x is empty"),
        (b"hello\n", "x is neither a PyTorch checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "x cannot be read as HDF5"),
        (None, "x does not exist"),
    ],
)
def test_files_that_are_not_checkpoints(tmp_path, content, words):
    if content is not None:
        (tmp_path / "x").write_bytes(content)
    refuse(words, tmp_path / "x", tmp_path / "run")


def test_flags_that_do_not_fit_a_retinanet(retinanet, tmp_path):
    four = write_classes(tmp_path / "four.csv", {f"/m/{k}": f"Class {k}" for k in range(4)})
    for flags, words in (
        ({"classes": four}, r"four\.csv has 4 classes, .*x\.h5 has 2 without the background: give the list"),
        ({"image_size": 512}, r"x\.h5 is a RetinaNet for images of any shape: it takes no image_size"),
        ({"min_side": 900, "max_side": 800}, "min_side 900 and max_side 800: give at least 32, the larger last"),
        ({"min_side": 5}, "min_side 5 and max_side 1024: give at least 32"),
    ):
        refuse(words, retinanet, tmp_path / "run", **flags)


def test_flags_that_do_not_fit_an_m2det(arrays, state, tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(m2det_pth.ZIP)
    for side in (0, -512, 256, 300, 520):
        words = f"image_size is {side}: it must be a multiple of 16, at least 272"
        refuse(words, tmp_path / "x.pth", tmp_path / "run", image_size=side)
    refuse("is not a RetinaNet: it takes neither min_side", tmp_path / "x.pth", tmp_path / "run", min_side=600)
    del state["conf.5.bias"]
    refuse(r"conf\.5\.bias of shape \(24,\) is missing", tmp_path / "x.pth", tmp_path / "run", image_size=272)


def test_output_must_be_free_or_an_earlier_conversion(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"hello")
    with refused("--output is missing"):
        cli.main(str(tmp_path / "x.pth"))
    training = tmp_path / "training"
    training.mkdir()
    (training / "history.csv").write_text("epoch\n", encoding="utf-8")
    refuse("training holds other files than an earlier conversion", tmp_path / "x.pth", training)
    refuse("is not a writable folder", tmp_path / "x.pth", tmp_path / "x.pth")
    (training / "history.csv").unlink()
    refuse("is neither a PyTorch checkpoint", tmp_path / "x.pth", training)  # so the folder was accepted


def test_help_and_a_mistake():
    done = run_script("convert.cli", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "[--image_size INT] [--min_side INT] [--max_side INT] FILE" in " ".join(done.stdout.split())
    done = run_script("convert.cli", "nowhere.pth", "--output", "nowhere")
    assert done.returncode == 2
    assert done.stderr == "error: nowhere.pth does not exist: name the checkpoint to convert\n"
