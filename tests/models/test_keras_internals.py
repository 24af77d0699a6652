"""The members of Keras and tf2onnx that are not public do what `models.keras_internals` takes for granted."""

import keras
import numpy as np
import pytest
from keras import layers

from models.keras_internals import KeepsEveryBatch, all_layers, calls_of, clip_sum, onnx_without_copies


def network_with_a_model_inside() -> keras.Model:
    inner_input = keras.Input((4,), name="inner_input")
    inner = keras.Model(inner_input, layers.Dense(4, name="inside")(inner_input), name="inner")
    x = keras.Input((4,), name="image")
    shared = layers.Dense(4, name="shared")
    y = layers.Add(name="sum")([shared(inner(x)), shared(x)])
    return keras.Model(x, y * 2.0)


def test_layers_of_inner_models_are_listed_without_these_models():
    names = [layer.name for layer in all_layers(network_with_a_model_inside())]
    assert {"inside", "shared", "sum"} <= set(names)
    assert "inner" not in names
    assert len(set(names)) == len(names)


def test_calls_in_their_order_give_what_the_network_gives():
    network = network_with_a_model_inside()
    image = np.random.default_rng(0).normal(size=(2, 4)).astype("float32")
    values = {id(network.inputs[0]): image}
    names = []
    for call in calls_of(network):
        args, kwargs = call.arguments(values)
        results = keras.tree.flatten(call.operation(*args, **kwargs))
        values |= {id(x): result for x, result in zip(call.outputs, results, strict=True)}
        names.append(call.operation.name)
    assert names.count("shared") == 2
    result = keras.ops.convert_to_numpy(values[id(network.outputs[0])])
    assert np.allclose(result, keras.ops.convert_to_numpy(network(image)), atol=1e-6)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the others have no such optimizer")
def test_optimizer_clips_the_sum_of_all_devices():
    optimizer = keras.optimizers.SGD(1.0, global_clipnorm=1.0)
    clip_sum(optimizer, add_up=lambda gradients: [3.0 * gradient for gradient in gradients])
    weight = keras.Variable(np.zeros(2, "float32"))
    optimizer.apply([keras.ops.convert_to_tensor(np.array([0.2, 0.0], "float32"))], [weight])
    assert np.allclose(keras.ops.convert_to_numpy(weight), [-0.6, 0.0])  # not clipped: the sum is shorter than 1
    optimizer.apply([keras.ops.convert_to_tensor(np.array([0.0, 0.9], "float32"))], [weight])
    assert np.allclose(keras.ops.convert_to_numpy(weight), [-0.6, -1.0])  # the sum 2.7 is clipped to 1


def test_tf2onnx_optimises_in_place_only_inside_the_block(monkeypatch):
    optimizer = pytest.importorskip("tf2onnx.optimizer")
    seen = []
    monkeypatch.setattr(optimizer, "optimize_graph", lambda graph, catch_errors, optimizers: seen.append(catch_errors))
    own = optimizer.optimize_graph
    with onnx_without_copies():
        optimizer.optimize_graph("graph", catch_errors=True)
        optimizer.optimize_graph("graph")
    assert seen == [False, False]
    assert optimizer.optimize_graph is own


def test_keras_still_takes_batches_before_the_first_step_by_this_method():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow's `fit` does")
    assert callable(keras.Model._maybe_symbolic_build)
    assert KeepsEveryBatch._maybe_symbolic_build is not keras.Model._maybe_symbolic_build
