"""Anchors of a file, on their way from a02 through a03 to a04: used as they are, and read once."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

import a02_find_image_parameters as a02
import a03_train_m2det as a03
import a04_inference as a04
from models import load_model
from oid import paths
from oid.anchors.grids import make_anchors
from tests.helpers.project import refused
from tests.helpers.runs import copy_level
from tests.helpers.small_photographs import TINY
from training import callbacks


@pytest.fixture(scope="module")
def output(photographs, tmp_path_factory):
    """a01's files, and what a02 makes of them for the flags of TINY."""
    output = copy_level(photographs[1], tmp_path_factory.mktemp("own_anchors"))
    flags = {"image_size": 96, "scales": 2, "anchors_per_cell": 2, "levels": ("1",), "splits": ("train", "validation")}
    a02.main(dataset_path=str(photographs[0]), output_path=str(output), **flags)
    return output


@pytest.fixture
def flags(photographs, tiny_backbone, output, tmp_path):
    copy_level(output, tmp_path)
    file = shutil.copy(paths.level_anchors(output, "1"), tmp_path / "own.json")
    places = {"dataset_path": str(photographs[0]), "output_path": str(tmp_path), "run": "own"}
    return TINY | places | {"anchors": str(file)}


@pytest.mark.slow
def test_a_run_keeps_the_numbers_and_goes_on_without_the_file(flags, tmp_path, monkeypatch, capsys):
    sizes = json.loads((tmp_path / "own.json").read_text())["sizes"]
    usual = callbacks.FiniteLossGuard.on_train_batch_end

    def stops(self, batch, logs=None):
        usual(self, batch, logs)
        if self.state["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(callbacks.FiniteLossGuard, "on_train_batch_end", stops)
    a03.main(**flags, multi_scale=(128,))
    printed = capsys.readouterr().out
    assert "2 anchors per cell, as" in printed
    assert "stopped by SIGTERM" in printed
    (tmp_path / "own.json").unlink()
    a03.main(**flags, multi_scale=(128,))
    assert "going on after" in capsys.readouterr().out
    detector = load_model(tmp_path / "weights/own")
    assert detector.settings["anchors"]["sizes"] == sizes
    assert detector.model.output["boxes"].shape[-1] == 4
    assert len(make_anchors(detector.settings["anchors"])) == 2 * (12**2 + 6**2)
    a04.main(dataset_path=flags["dataset_path"], output_path=str(tmp_path), run=("own",), split="validation")
    assert paths.run_predictions(tmp_path, "validation", "own").is_file()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resize": "warp"}, "made for pictures of another shape, --resize letterbox"),
        ({"scales": 1}, "has sizes for 2 maps, not for 1"),
    ],
)
def test_anchors_for_another_input_are_refused(flags, change, sentence):
    with refused(sentence):
        a03.main(**flags | change)


def test_a02_covers_more_than_the_squares(output):
    content = json.loads(paths.level_anchors(output, "1").read_text())
    assert np.shape(content["sizes"]) == (2, 2, 2)
    assert content["covered"]["k-means"] >= content["covered"]["square"]
    assert content["anchors_per_cell"] == 2
    assert content["image_size"] == 96
