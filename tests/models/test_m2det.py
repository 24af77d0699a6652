"""The network's outputs fit the anchors, in float32; it looks at each picture alone, and saves without pickle."""

import json
import zipfile
from typing import get_args

import keras
import numpy as np
import pytest
from keras import layers

from models.heads import default_head
from models.m2det import build_m2det
from models.run_settings import Head, Variant
from oid.anchors.grids import feature_map_sides
from tests.helpers.project import refused
from tests.helpers.tiny_network import arrays, pictures, randomised

VARIANTS, HEADS = get_args(Variant), get_args(Head)

TINY = {"backbone": "residual_small", "num_classes": 2, "image_size": 64, "tums": 1, "scales": 3, "channels": 16}


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return build_m2det(**TINY)


@pytest.mark.parametrize(
    ("image_size", "scales", "tums", "channels", "num_classes", "per_cell"),
    [(64, 1, 1, 16, 1, 1), (96, 4, 1, 16, 5, 2), (100, 3, 4, 4, 2, 3)],
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_shapes(image_size, scales, tums, channels, num_classes, per_cell, variant, head):
    sizes = {"num_classes": num_classes, "image_size": image_size, "tums": tums, "scales": scales}
    sizes |= {"channels": channels, "anchors_per_cell": per_cell}
    network = build_m2det(backbone="residual_small", variant=variant, head=head, **sizes)
    anchors = per_cell * sum(side**2 for side in feature_map_sides(image_size, scales))
    outputs = arrays(network(pictures(2, image_size, image_size)))
    assert set(outputs) == {"classes", "boxes"}
    assert outputs["classes"].shape == (2, anchors, num_classes)
    assert outputs["boxes"].shape == (2, anchors, 4)
    for values in outputs.values():
        assert values.dtype == np.float32
        assert np.isfinite(values).all()


def test_the_head_follows_the_classes():
    assert [default_head(num_classes) for num_classes in (1, 100, 101)] == ["conv", "conv", "shared"]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("head", HEADS)
def test_every_weight_reaches_the_outputs(variant, head):
    import tensorflow as tf

    keras.utils.set_random_seed(0)  # or a ReLU of the few in SFAM may be dead
    model = randomised(build_m2det(**(TINY | {"tums": 2, "variant": variant, "head": head})), seed=5)
    with tf.GradientTape() as tape:
        outputs = model(pictures(2), training=True)
        total = sum(tf.reduce_sum(tf.sin(value)) for value in outputs.values())
    gradients = tape.gradient(total, [weight.value for weight in model.trainable_weights])
    dead = [w.path for w, g in zip(model.trainable_weights, gradients, strict=True) if g is None or not np.any(g)]
    assert not dead


@pytest.mark.parametrize(("head", "convolutions"), [("light", 1), ("shared", 4)])
def test_scales_share_the_convolutions_of_a_subnet_but_not_their_statistics(head, convolutions):
    network = build_m2det(**(TINY | {"head": head}))
    kernels = [w.path for w in network.trainable_weights if "subnet" in w.path and "kernel" in w.path]
    means = [w.path for w in network.non_trainable_weights if "subnet" in w.path and "moving_mean" in w.path]
    assert (len(kernels), len(means)) == (2 * convolutions, 2 * convolutions * TINY["scales"])


def test_scores_start_at_the_prior(network):
    logits = arrays(network(pictures(4)))["classes"]
    probability = 1 / (1 + np.exp(-logits))
    assert probability.min() > 0.003
    assert probability.max() < 0.03
    assert abs(probability.mean() - 0.01) < 0.003


def test_outputs_are_float32_in_mixed_precision():
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        network = build_m2det(**TINY)
    finally:
        keras.config.set_dtype_policy(before)
    assert {layer.compute_dtype for layer in network.layers if isinstance(layer, layers.ReLU)} == {"bfloat16"}
    assert all(weight.dtype == "float32" for weight in network.trainable_weights)
    for values in arrays(network(pictures(1))).values():
        assert values.dtype == np.float32
        assert np.isfinite(values).all()


def test_a_picture_alone_equals_the_same_picture_in_a_batch(network):
    model, batch = randomised(keras.models.clone_model(network)), pictures(4)
    together = arrays(model(batch.astype("float32"), training=False))  # bytes and float32 are the same pictures
    assert np.ptp(together["classes"], axis=0).max() > 1e-3  # the pictures do matter
    for index in range(len(batch)):
        alone = arrays(model(batch[index : index + 1], training=False))
        for name, values in alone.items():
            np.testing.assert_allclose(values[0], together[name][index], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_size": 16}, "image_size is 16"),
        ({"image_size": 0}, "image_size is 0"),
        ({"scales": 0}, "scales is 0"),
        ({"tums": 0}, "tums is 0"),
        ({"channels": -1}, "channels is -1"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"anchors_per_cell": 0}, "anchors_per_cell is 0"),
        ({"scales": 6}, "6 scales do not fit 64 pixels: take at least 272, or fewer scales"),
        ({"scales": 5}, "5 scales do not fit 64 pixels: take at least 80"),
        ({"backbone": "resnet"}, "resnet50"),
        ({"variant": "v2"}, "variant 'v2' does not exist: choose one of paper, released, released_sfam"),
        ({"head": "big"}, "head 'big' does not exist: choose one of conv, shared, light"),
        ({"channels": 12}, "1 tums of 12 channels give 12: SFAM divides them by 16"),
        ({"channels": 5, "variant": "released"}, "channels is 5: the released variant needs an even number"),
    ],
)
def test_wrong_sizes_are_one_sentence(changes, words):
    with refused(words):
        build_m2det(**(TINY | changes))


def test_published_defaults():
    arguments = {name: TINY[name] for name in ("backbone", "image_size", "tums", "scales")}
    names = {}
    for variant, classes in (("paper", 100), ("paper", 101), ("released", 2)):
        network = build_m2det(**arguments, variant=variant, num_classes=classes)
        names[variant, classes] = {layer.name for layer in network.layers if layer.weights}
    assert "sfam1_reduce" in names["paper", 100]
    assert not any("sfam" in name for name in names["released", 2])
    assert {"classes1", "boxes3"} <= names["paper", 100]
    assert {"classes_output", "boxes_subnet4_conv"} <= names["paper", 101]
    assert "leach_conv" in names["released", 2]
    wide = build_m2det(**arguments, variant="released", num_classes=2).get_layer("tum1_down1_conv")
    assert wide.kernel.shape == (3, 3, 128, 256)
    narrow = build_m2det(**arguments, num_classes=2).get_layer("tum1_down1_conv")
    assert narrow.kernel.shape == (3, 3, 256, 256)


def test_saves_without_code_or_pickle_and_loads_in_safe_mode(network, tmp_path):
    model, file = randomised(keras.models.clone_model(network)), tmp_path / "model.keras"
    model.save(file)
    with zipfile.ZipFile(file) as archive:
        assert {name.rsplit(".", 1)[-1] for name in archive.namelist()} <= {"json", "h5"}
        config = archive.read("config.json").decode()
    assert json.loads(config)
    assert "__lambda__" not in config
    again = keras.saving.load_model(file, compile=False, safe_mode=True)
    before, after = (arrays(m(pictures(2))) for m in (model, again))
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
