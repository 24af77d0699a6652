"""A training from a converted RetinaNet takes over every layer and keeps batch norm frozen."""

import dataclasses

import numpy as np
import pytest

import a03_train_m2det as a03
from convert import cli
from models.keras_internals import all_layers
from models.load import load_run
from tests.helpers.keras_retinanet_files import TINY, small_numbers, tiny_blocks, write_checkpoint
from training.data_set import read_classes


@pytest.mark.slow
def test_training_goes_on_from_a_converted_checkpoint(photographs, tmp_path, capsys, monkeypatch):
    data_set, output = photographs
    tiny_blocks(monkeypatch)
    names, random = read_classes(output, "1"), np.random.default_rng(0)
    (tmp_path / "classes.csv").write_text("".join(f"{label},{name}\n" for label, name in names.items()))
    structure = dataclasses.replace(TINY, num_classes=len(names))
    write_checkpoint(tmp_path / "x.h5", structure=structure, values=lambda *tensor: small_numbers(*tensor, random))
    cli.main(str(tmp_path / "x.h5"), output=str(tmp_path / "run"), classes=str(tmp_path / "classes.csv"))
    flags = {"dataset_path": str(data_set), "output_path": str(output), "run": "goes_on", "image_size": 80}
    flags |= {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "precision": "float32", "learning_rate": 1e-6}
    a03.main(**flags, detector="retinanet", init_from=str(tmp_path / "run"))
    printed = capsys.readouterr().out
    assert "chosen: keras_retinanet on resnet50, because the weights of" in printed
    assert " layers taken over, 0 begin anew" in printed
    (trained, settings), (before, _) = load_run(output / "weights" / "goes_on"), load_run(tmp_path / "run")
    assert (settings.network.image_size, settings.box_deltas) == (80, "corners")
    old, new = ({layer.name: layer for layer in all_layers(one)} for one in (before, trained))
    for name in ("bn_conv1", "bn5a_branch2c"):
        assert not new[name].trainable
        for a, b in zip(old[name].get_weights(), new[name].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    learned = [abs(a - b).max() for a, b in zip(old["P3"].get_weights(), new["P3"].get_weights(), strict=True)]
    assert 0 < max(learned) < 1e-3
