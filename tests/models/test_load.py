"""A run loads by name, by folder and by its checkpoint; what cannot be loaded is refused in one sentence."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from models import load_model
from models.detector import build_network
from models.load import load_model as load_without_a00
from tests.helpers.project import refused
from tests.helpers.tiny_network import arrays, pictures, randomised, tiny_settings, write_settings

SETTINGS = tiny_settings()


@pytest.fixture(scope="module")
def complete_run(tmp_path_factory):
    """A run named "fruit" below an output folder; the weights of its checkpoint differ from the best ones."""
    folder = tmp_path_factory.mktemp("output") / "weights" / "fruit"
    write_settings(folder, SETTINGS)
    (folder / "checkpoint").mkdir()
    network = randomised(build_network(SETTINGS), seed=1)
    network.save(folder / "model.keras")
    randomised(network, seed=2).save_weights(folder / "checkpoint" / "network.weights.h5")
    return folder


@pytest.fixture
def run(complete_run, tmp_path):
    """A copy of the complete run, to be damaged."""
    return Path(shutil.copytree(complete_run, tmp_path / "run"))


def raw(detector) -> np.ndarray:
    return arrays(detector.network(pictures(1)))["classes"]


def test_runs_and_checkpoints_load(run, complete_run, monkeypatch):
    best, newest = (raw_of_seed(seed) for seed in (1, 2))
    assert np.abs(best - newest).max() > 1e-3  # they can be told apart
    output = complete_run.parent.parent
    for place in (str(run), run):
        np.testing.assert_allclose(raw(load_model(place)), best, rtol=1e-5)
    np.testing.assert_allclose(raw(load_without_a00("fruit", output_path=output)), best, rtol=1e-5)
    monkeypatch.setattr("a00_utils_and_constants.OUTPUT_PATH", str(output))
    for name, expected in (("fruit", best), ("fruit/checkpoint", newest)):
        np.testing.assert_allclose(raw(load_model(name)), expected, rtol=1e-5)
    for place, checkpoint in ((run / "checkpoint", False), (run, True)):
        np.testing.assert_allclose(raw(load_model(place, checkpoint=checkpoint)), newest, rtol=1e-5)
    (run / "model.keras").unlink()
    np.testing.assert_allclose(raw(load_model(run)), newest, rtol=1e-5)


def raw_of_seed(seed: int) -> np.ndarray:
    return arrays(randomised(build_network(SETTINGS), seed=seed)(pictures(1)))["classes"]


def test_a_loaded_run_has_its_settings_and_detects(run):
    detector = load_model(run, backbone_name="residual_small")
    assert detector.settings == SETTINGS
    assert (detector.class_labels, detector.class_names) == (["/m/apple", "/m/pear"], ["Apple", "Pear, green"])
    boxes, scores, labels = detector.predict_on_batch(pictures(3, 50, 120))
    found = labels >= 0
    assert found.any(axis=1).all()
    assert ((boxes[found] >= 0) & (boxes[found] <= (120, 50, 120, 50))).all()
    assert (np.diff(scores, axis=1) <= 0).all()


def test_another_backbone_or_classes_of_a_run_are_refused(run):
    with refused("run has the backbone residual_small, not resnet50"):
        load_model(run, backbone_name="resnet50")
    with refused("classes belong to a checkpoint file"):
        load_model(run, classes="classes.csv")


def assert_refused(run: Path, *words: str) -> None:
    with refused(str(run), *words):
        load_model(run)


def test_places_without_a_trained_run(tmp_path):
    assert_refused(tmp_path / "nowhere", "settings.json")
    assert_refused(tmp_path, "settings.json")
    (tmp_path / "checkpoint").mkdir()
    with refused(f"{tmp_path} is not a run"):
        load_model(tmp_path / "checkpoint")
    write_settings(tmp_path, SETTINGS)
    assert_refused(tmp_path, "neither model.keras nor a checkpoint yet")
    (tmp_path / "model.keras").write_bytes(b"")
    with refused("has no checkpoint yet"):
        load_model(tmp_path / "checkpoint")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"5", b"null", b"[]", b"{}", b'{"classes": []}'])
def test_damaged_settings_are_refused(tmp_path, content):
    (tmp_path / "settings.json").write_bytes(content)
    assert_refused(tmp_path, "settings.json")


@pytest.mark.parametrize("changes", [{"channels": 32}, {"classes": SETTINGS.classes * 2}, {"tums": 2}])
def test_weights_of_another_network_than_the_settings_are_refused(run, changes):
    write_settings(run, tiny_settings(**changes))
    for place, file in ((run, "model.keras"), (run / "checkpoint", "network.weights.h5")):
        with refused(file, "cannot be loaded"):
            load_model(place)


def test_damaged_weights_are_refused(run):
    model, weights = run / "model.keras", run / "checkpoint" / "network.weights.h5"
    good = model.read_bytes()
    half = len(good) // 2
    for content in (b"", b"x" * 500, good[:half], good[:half] + b"\0" * 100 + good[half + 100 :]):
        model.write_bytes(content)
        assert_refused(run, "model.keras cannot be loaded")
    with zipfile.ZipFile(model, "w") as archive:  # without weights
        archive.writestr("metadata.json", "{}")
    assert_refused(run, "model.keras cannot be loaded")
    model.unlink()  # so the checkpoint is read
    good = weights.read_bytes()
    for content in (b"", b"x" * 500, good[: len(good) // 2]):
        weights.write_bytes(content)
        assert_refused(run, "network.weights.h5 cannot be loaded")


def test_an_error_of_the_code_is_not_blamed_on_the_run(run, monkeypatch):
    monkeypatch.setattr("models.load.build_network", lambda settings: {}["slip"])
    with pytest.raises(KeyError, match="slip"):
        load_model(run)
