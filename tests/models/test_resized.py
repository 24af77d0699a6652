"""A network for another input size has the same variables, and computes what one built at that size would."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from models.backbones import freeze
from models.detector import build_network
from models.resized import at_size
from oid.anchors.grids import m2det_anchors
from oid.files import InputError
from tests.helpers.project import run_on_backend
from tests.helpers.tiny_network import arrays, pictures, tiny_settings

BACKEND_PROGRAM = """
import json
import keras, numpy as np
from tests.helpers.tiny_network import pictures, tiny_settings
from models.detector import build_network
from models.resized import at_size
settings = {"scales": 2, "channels": 8, "variant": "released"}
network = build_network(tiny_settings(**settings))
other = at_size(network, tiny_settings(**settings), 100)
fresh = build_network(tiny_settings(**settings, image_size=100))
fresh.set_weights(other.get_weights())
a, b = (model.predict_on_batch(pictures(2, 100, 100)) for model in (other, fresh))
print(json.dumps({
    "backend": keras.backend.backend(),
    "shared": {id(v) for v in other.variables} == {id(v) for v in network.variables},
    "difference": max(float(np.abs(a[name] - b[name]).max()) for name in a),
    "anchors": a["boxes"].shape[1],
}))
"""


def assert_equal_to_a_fresh_one(other, changes, size):
    fresh = build_network(tiny_settings(**changes | {"image_size": size}))
    fresh.set_weights(other.get_weights())
    expected = arrays(fresh(pictures(2, size, size)))
    for name, value in arrays(other(pictures(2, size, size))).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5)
    assert value.shape[1] == len(m2det_anchors(size, changes.get("scales", 3)).boxes())


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, (48, 96, 100)),  # at 100 pixels a map of the backbone has to be fitted, at 64 not
        ({"variant": "released", "head": "shared"}, (96, 100)),
        ({"scales": 6, "image_size": 272, "channels": 8, "variant": "released"}, (304,)),
        ({"backbone": "mobilenet_v3_small"}, (96,)),
        *(
            pytest.param({"backbone": name}, (96, 112), marks=pytest.mark.slow)
            for name in ("vgg16", "resnet50", "densenet121", "convnext_tiny", "efficientnet_v2_b0")
        ),
    ],
    ids=str,
)
def test_a_resized_network_shares_variables_and_equals_a_fresh_one(changes, sizes):
    keras.layers.LayerNormalization()(keras.Input((2,)))  # the names that Keras counts begin elsewhere
    settings = tiny_settings(**changes)
    network, size_before = build_network(settings), settings.network.image_size
    before = arrays(network(pictures(1, size_before, size_before)))
    for size in sizes:
        other = at_size(network, settings, size)
        assert {id(v) for v in other.variables} == {id(v) for v in network.variables}
        assert_equal_to_a_fresh_one(other, changes, size)
    after = arrays(network(pictures(1, size_before, size_before)))
    np.testing.assert_array_equal(after["boxes"], before["boxes"])


def test_gradients_reach_every_weight_and_training_one_trains_the_other():
    settings = tiny_settings()
    network = build_network(settings)
    other = at_size(network, settings, 96)
    before = arrays(network(pictures(1)))
    with tf.GradientTape() as tape:
        outputs = other(pictures(2, 96, 96), training=True)
        loss = sum(tf.reduce_sum(tf.square(value)) for value in outputs.values())
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    assert all(g is not None and np.isfinite(g).all() for g in gradients)
    assert np.mean([bool(np.any(g)) for g in gradients]) > 0.9
    keras.optimizers.SGD(1e-3).apply(gradients, network.trainable_variables)
    after = arrays(network(pictures(1)))
    assert all(np.any(after[name] != before[name]) for name in before)


def test_frozen_weights_are_frozen_at_every_size():
    settings = tiny_settings()
    network = build_network(settings)
    freeze(network, batch_norm=True)
    other = at_size(network, settings, 96)
    assert [v.path for v in other.trainable_variables] == [v.path for v in network.trainable_variables]
    assert len(other.trainable_variables) < len(build_network(settings).trainable_variables)


def test_sizes_and_settings_that_do_not_fit_are_refused():
    network = build_network(tiny_settings())
    with pytest.raises(InputError, match="6 scales do not fit 128 pixels: take at least 272"):
        at_size(network, tiny_settings(scales=6, image_size=272), 128)
    for changes in ({"channels": 32}, {"tums": 2}, {"variant": "released"}):
        with pytest.raises(ValueError, match="its settings give"):
            at_size(network, tiny_settings(**changes), 96)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_on_other_backends(backend):
    result = json.loads(run_on_backend(backend, BACKEND_PROGRAM))
    assert result["backend"] == backend
    assert result["shared"]
    assert result["difference"] < 1e-5
    assert result["anchors"] == len(m2det_anchors(100, 2).boxes())
