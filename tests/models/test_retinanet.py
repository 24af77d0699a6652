"""RetinaNet on every backbone: outputs belong to the anchors, levels read strides 8, 16 and 32."""

import json

import keras
import numpy as np
import pytest

from models.backbones import BACKBONES, PYRAMID_STRIDES, STRIDES, build_backbone
from models.cost import cost_of
from models.detector import Detector, inference_model, load_model, network_from_settings
from models.resized import at_size
from models.retinanet import build_retinanet, feature_pyramid
from oid.anchors.grids import anchors_per_cell, cell_sides, make_anchors, pyramid_sides, retinanet_anchor_settings
from oid.files import InputError
from tests.helpers.runs import history, rows_of
from tests.helpers.small_photographs import TINY
from tests.helpers.tiny_network import pictures, tiny_settings

FAST = ("residual_small", "vgg_small", "mobilenet_0.25")


def settings_of(**changes) -> dict:
    """A run's settings."""
    settings = tiny_settings() | {"detector": "retinanet"} | changes
    settings["anchors"] = retinanet_anchor_settings(settings["image_size"], settings["scales"])
    return {name: value for name, value in settings.items() if name not in ("variant", "tums", "sfam")}


def build(**changes) -> keras.Model:
    sizes = {"backbone": "residual_small", "num_classes": 2, "image_size": 64, "scales": 3, "channels": 16}
    return build_retinanet(**sizes | {"head": "light"} | changes)


@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in BACKBONES]
)
def test_every_backbone_gives_its_maps_and_outputs_for_the_anchors(backbone):
    description = retinanet_anchor_settings(100, 5, anchors="official")
    network = build(backbone=backbone, image_size=100, scales=5, anchors_per_cell=anchors_per_cell(description))
    strides = PYRAMID_STRIDES if BACKBONES[backbone].pyramid else STRIDES
    body = build_backbone(backbone, 128, strides=strides)
    assert [x.shape[1] for x in body.outputs] == [128 // stride for stride in strides]
    outputs = network.predict_on_batch(pictures(1, 100, 100))
    anchors = make_anchors(description)
    assert outputs["classes"].shape == (1, len(anchors), 2)
    assert outputs["boxes"].shape == (1, len(anchors), 4)
    assert all(np.isfinite(values).all() for values in outputs.values())


def test_vgg_and_the_small_backbones_have_no_stride_32_map():
    without = {name for name, entry in BACKBONES.items() if not entry.pyramid}
    assert without - {"tiny"} == {*("residual_small", "vgg_small", "vgg16", "vgg19")}  # tiny is of other tests


@pytest.mark.parametrize(("image_size", "scales"), [(64, 1), (64, 2), (64, 4), (97, 5), (200, 6)])
@pytest.mark.parametrize("head", ["light", "conv"])
def test_any_number_of_levels(image_size, scales, head):
    settings = settings_of(image_size=image_size, scales=scales, head=head)
    network = network_from_settings(settings)
    assert network.output["boxes"].shape[1] == len(make_anchors(settings["anchors"]))


def test_the_pyramid_by_hand():
    """1x1 convolutions that sum the channels, and 3x3 ones that copy: each level is its map plus the ones above."""
    sides, maps = [4, 2, 1], [np.random.default_rng(k).normal(size=(1, s, s, 3)) for k, s in enumerate((4, 2, 1))]
    inputs = [keras.Input(x.shape[1:]) for x in maps]
    model = keras.Model(inputs, feature_pyramid(inputs, sides, 1))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            kernel = np.zeros(layer.kernel.shape)
            kernel[kernel.shape[0] // 2, kernel.shape[1] // 2] = 1
            layer.set_weights([kernel])
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.epsilon = 0.0
    p5, p4, p3 = (x.sum(-1) for x in reversed(maps))
    p4 = p4 + p5.repeat(2, 1).repeat(2, 2)
    p3 = p3 + p4.repeat(2, 1).repeat(2, 2)
    for ours, theirs in zip(model.predict_on_batch(maps), (p3, p4, p5), strict=True):
        np.testing.assert_allclose(ours[..., 0], theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": 0}, "scales is 0: it must be at least 1"),
        ({"head": "no"}, "head 'no' does not exist"),
        ({"image_size": 16}, "image_size is 16: it must be at least 32 pixels"),
        ({"scales": 6}, "6 scales do not fit 64 pixels: take at least 129, or fewer scales"),
        ({"taps": ("a", "b", "c")}, "--taps a b c: give two layers, of strides 8 and 16"),
        ({"backbone": "mobilenet_0.25", "taps": ("a", "b")}, "give three layers, of strides 8, 16 and 32"),
    ],
)
def test_invalid_sizes_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        build(**changes)


def test_sides_and_anchors():
    assert pyramid_sides(203, 5) == [26, 13, 7, 4, 2]
    square = retinanet_anchor_settings(100, 3)
    assert anchors_per_cell(square) == 1
    assert len(make_anchors(square)) == len(cell_sides(square)) == 13**2 + 7**2 + 4**2
    with pytest.raises(InputError, match="anchors round are neither square nor official"):
        retinanet_anchor_settings(100, 3, anchors="round")


def test_a_run_is_saved_and_loaded(tmp_path):
    settings = settings_of()
    network = network_from_settings(settings)
    inference_model(network, settings).save(tmp_path / "model.keras")
    (tmp_path / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    images = pictures(2)
    expected = Detector(inference_model(network, settings), settings).detect(images, score_threshold=0.0)
    for ours, theirs in zip(load_model(tmp_path).detect(images, score_threshold=0.0), expected, strict=True):
        assert len(ours[1])
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_one_network_for_several_sizes():
    settings = settings_of(image_size=64)
    network = network_from_settings(settings)
    larger = at_size(network, settings, 96)
    assert larger.output["boxes"].shape[1] == len(make_anchors(retinanet_anchor_settings(96, 3)))
    assert {id(v) for v in larger.variables} == {id(v) for v in network.variables}


def test_the_cost_has_the_parts_of_the_network():
    cost = cost_of(build())
    assert set(cost) == {"backbone", "pyramid", "heads"}
    assert all(parameters and operations for parameters, operations in cost.values())


# === Training ===


def test_a_training_learns_and_a04_finds_boxes(photographs, tiny_backbone, tmp_path):
    import a03_train_m2det
    import a04_inference

    data_set, output = photographs
    flags = TINY | {"tums": None, "epochs": 5, "head": "light", "learning_rate": 5e-3}
    places = {"dataset_path": str(data_set), "output_path": str(output), "run": "retinanet"}
    a03_train_m2det.main(detector="retinanet", **places, **flags)
    run = output / "weights" / "retinanet"
    losses = [float(row["loss"]) for row in history(run)]
    assert losses[-1] < 0.9 * losses[0]
    for name, value in {"tums": 2, "sfam": True, "variant": "released"}.items():
        with pytest.raises(InputError, match=f"--{name} {value} belongs to M2Det"):
            a03_train_m2det.main(detector="retinanet", **places | {"run": "refused", name: value})
    settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
    assert settings["detector"] == "retinanet"
    assert not {"tums", "sfam", "variant"} & set(settings)
    target = tmp_path / "found.csv"
    inference = places | {"run": ("retinanet",), "split": "validation", "score_threshold": 0.0}
    a04_inference.main(**inference, predictions=str(target))
    rows = rows_of(target)
    assert len(rows) == len(list((data_set / "validation").iterdir()))
    assert all(row["PredictionString"] for row in rows)
