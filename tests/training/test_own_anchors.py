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
from oid.files import Unfinished
from tests.helpers.runs import copy_level
from tests.helpers.small_photographs import TINY
from training.loop import Training


@pytest.fixture(scope="module")
def output(photographs, tmp_path_factory):
    """a01's files, and what a02 makes of them for the flags of TINY."""
    output = copy_level(photographs[1], tmp_path_factory.mktemp("own_anchors"))
    flags = {"image_size": 96, "scales": 2, "anchors_per_cell": 2, "levels": ("1",), "splits": ("train", "validation")}
    a02.main(dataset_path=str(photographs[0]), output_path=str(output), **flags)
    return output


@pytest.mark.slow
def test_a_run_keeps_the_numbers_and_goes_on_without_the_file(
    photographs, tiny_backbone, output, tmp_path, monkeypatch, capsys
):
    copy_level(output, tmp_path)
    file = shutil.copy(paths.level_anchors(output, "1"), tmp_path / "own.json")
    sizes = json.loads(file.read_text())["sizes"]
    places = {"dataset_path": str(photographs[0]), "output_path": str(tmp_path)}
    usual = Training._after_step

    def stops(self, logs, update_variables):
        os.kill(os.getpid(), signal.SIGTERM)
        usual(self, logs, update_variables)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_after_step", stops)
        with pytest.raises(Unfinished, match="stopped by SIGTERM"):
            a03.main(**TINY, **places, run="own", anchors=str(file))
    assert "anchors per cell: 2, from" in capsys.readouterr().out
    file.unlink()
    a03.main(**TINY, **places, run="own", anchors=str(file))
    assert "going on after" in capsys.readouterr().out
    settings = load_model(tmp_path / "weights/own").settings
    np.testing.assert_array_equal(settings.anchors.sizes, sizes)
    assert len(settings.anchors.boxes()) == 2 * (12**2 + 6**2)
    a04.main(**places, run=("own",), split="validation")
    assert paths.run_predictions(tmp_path, "validation", "own").is_file()


def test_a02_covers_more_than_the_squares(output):
    content = json.loads(paths.level_anchors(output, "1").read_text())
    assert np.shape(content["sizes"]) == (2, 2, 2)
    assert content["covered"]["k-means"] >= content["covered"]["square"]
    assert content["anchors_per_cell"] == 2
    assert content["image_size"] == 96
