"""A training from a converted RetinaNet takes over every layer and keeps batch norm frozen."""

import json

import numpy as np
import pytest

import a03_train_m2det
from models import convert, load_model
from models.backbones import all_layers
from models.legacy_checkpoint import BLOCKS, LegacyStructure
from tests.helpers.legacy_checkpoint_files import write_checkpoint
from tests.helpers.project import refused
from training import detectors
from training.data_set import read_classes


@pytest.fixture(scope="module")
def source(photographs, tmp_path_factory):
    """A converted run of a small network with the classes of `photographs`; its file's weights are random."""
    folder = tmp_path_factory.mktemp("source")
    classes = folder / "classes.csv"
    names = read_classes(photographs[1], "1")
    classes.write_text("".join(f"{label},{name}\n" for label, name in names.items()), encoding="utf-8")
    random = np.random.default_rng(0)

    def values(group, shape):
        array = random.normal(size=shape).astype("float32")
        if group.startswith("bn"):
            return abs(array) + 0.5
        return array * (0.01 if len(shape) == 1 else 0.3 * (2 / np.prod(shape[:-1])) ** 0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCKS, 50, (1, 1, 1, 1))
        structure = LegacyStructure(50, len(names), "explicit")
        write_checkpoint(folder / "x.h5", structure=structure, values=values)
        convert.main(str(folder / "x.h5"), output=str(folder / "run"), classes=str(classes))
        yield folder / "run"


@pytest.mark.slow
def test_training_goes_on_from_a_converted_checkpoint(photographs, source, capsys):
    data_set, output = photographs
    flags = {"dataset_path": str(data_set), "output_path": str(output), "run": "goes_on", "image_size": 80}
    flags |= {"epochs": 1, "steps_per_epoch": 1, "batch_size": 4, "precision": "float32", "ema": False}
    a03_train_m2det.main(**flags, detector="retinanet", init_from=str(source), learning_rate=1e-6)
    printed = capsys.readouterr().out
    assert "legacy_retinanet on legacy_resnet50" in printed
    assert " layers taken over, 0 begin anew" in printed
    trained, before = load_model(output / "weights" / "goes_on", precision=None), load_model(source, precision=None)
    assert trained.image_size == 80
    assert trained.settings["box_coding"] == "corners"
    old, new = ({layer.name: layer for layer in all_layers(one.model)} for one in (before, trained))
    for name in ("bn_conv1", "bn5a_branch2c"):
        assert not new[name].trainable
        for a, b in zip(old[name].get_weights(), new[name].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    learned = [abs(a - b).max() for a, b in zip(old["P3"].get_weights(), new["P3"].get_weights(), strict=True)]
    assert 0 < max(learned) < 1e-3


def test_flags_that_would_change_the_network_are_refused(source, tmp_path):
    flags = {"detector": "retinanet", "init_from": str(source), "backbone": None, "output_path": str(tmp_path)}
    flags |= {"scales": None, "channels": None, "taps": None, "anchors": None, "image_size": None, "head": "auto"}
    flags |= {"variant": None}
    network, reasons = detectors.with_source(flags)
    assert network["detector"] == "legacy_retinanet"
    assert [reason.split(",")[0] for reason in reasons] == ["detector legacy_retinanet"]
    assert detectors.with_source(flags | {"backbone": "vgg16"})[0]["detector"] == "retinanet"
    with refused("--channels 64 would change the network"):
        detectors.with_source(flags | {"channels": 64})
    with refused("--anchors mine.json are not those of"):
        detectors.with_source(flags | {"anchors": "mine.json"})


def test_box_outputs_mean_the_same_at_every_size(source):
    old = json.loads((source / "settings.json").read_text(encoding="utf-8"))
    assert detectors.same_boxes(old, old | {"anchors": detectors.anchors_of("legacy_retinanet", 80, 5, "official")})
    assert not detectors.same_boxes(old, old | {"detector": "retinanet", "box_coding": "distances"})
