"""VGG is the form that SSD and M2Det read, reproduces the released code, and takes weights with and without a top."""

import gc
import types

import keras
import numpy as np
import pytest

from models.backbones import BACKBONES, build_backbone
from models.vgg import FC1_INPUTS, FC1_OUTPUTS, FC1_SIDE, load_vgg, reduce_fully_connected
from tests.helpers.tiny_network import saved

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")


def test_only_the_third_pooling_of_vgg_rounds_up():
    shallow, deep = build_backbone("vgg16", 300).outputs
    assert (shallow.shape[1], deep.shape[1]) == (38, 19)  # 300, 150, 75, 38, 19
    assert build_backbone("vgg16", 36).outputs[1].shape[1] == 2  # 36, 18, 9, 5, 2


def random_top(outputs: int, inputs: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    shapes = [[(49 * inputs, outputs), (outputs,)], [(outputs, outputs), (outputs,)]]
    return tuple([rng.normal(size=shape).astype("float32") for shape in layer] for layer in shapes)


def test_every_third_row_and_every_fourth_channel_of_the_fully_connected_layers():
    (kernel1, bias1), (kernel2, bias2) = top = random_top(outputs=12, inputs=5)
    (kernel6, bias6), (kernel7, bias7) = reduce_fully_connected(*top)
    assert (kernel6.shape, kernel7.shape) == ((3, 3, 5, 3), (1, 1, 3, 3))
    for (i, j, c, o), value in np.ndenumerate(kernel6):
        assert value == kernel1[(3 * i * 7 + 3 * j) * 5 + c, 4 * o]
    for (_, _, c, o), value in np.ndenumerate(kernel7):
        assert value == kernel2[4 * c, 4 * o]
    np.testing.assert_array_equal(bias6, bias1[[0, 4, 8]])
    np.testing.assert_array_equal(bias7, bias2[[0, 4, 8]])


def test_the_reduced_form_answers_as_the_fully_connected_one():
    """Where the layers left out are zero, fc7 in the middle of a 16 x 16 map is fc2 on the 13 pixels around it."""
    top = random_top(outputs=8, inputs=2)
    kernel1 = top[0][0].reshape(7, 7, 2, 8)
    kernel1[np.arange(7) % 3 != 0] = 0
    kernel1[:, np.arange(7) % 3 != 0] = 0
    top[1][0][np.arange(8) % 4 != 0] = 0
    image = np.random.default_rng(1).normal(size=(13, 13, 2)).astype("float32")
    hidden = np.maximum(image[::2, ::2].reshape(-1) @ top[0][0] + top[0][1], 0)  # 7 x 7: every second pixel
    expected = (hidden @ top[1][0] + top[1][1])[::4]
    (kernel6, bias6), (kernel7, bias7) = reduce_fully_connected(*top)
    x = keras.ops.conv(image[None], kernel6, padding="same", dilation_rate=6)[0, 6, 6] + bias6
    np.testing.assert_allclose(np.maximum(np.array(x), 0) @ kernel7[0, 0] + bias7, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".weights.h5", pytest.param(".h5", marks=pytest.mark.slow)])
def test_vgg_takes_the_convolutions_of_a_file_without_the_top(suffix, tmp_path):
    source = keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))
    file = saved(source, tmp_path / f"vgg{suffix}")
    with pytest.warns(UserWarning, match=r"vgg.* fc6 and fc7 of vgg16 begin with random values"):
        model = build_backbone("vgg16", 64, str(file)).get_layer("backbone")
    for layer in source.layers:
        for theirs, path in zip(layer.get_weights(), ("kernel", "bias"), strict=False):
            np.testing.assert_array_equal(np.array(getattr(model.get_layer(layer.name), path)), theirs)
    assert np.array(model.get_layer("fc6").kernel).std() > 0


def test_vgg_takes_a_file_of_its_own_form(tmp_path):
    image = keras.Input((32, 32, 3))
    first, second = (BACKBONES["vgg16"].build(input_tensor=image) for _ in range(2))
    first.save_weights(tmp_path / "own.weights.h5")
    load_vgg("VGG16", second, str(tmp_path / "own.weights.h5"))
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
def test_vgg_makes_fc6_and_fc7_of_a_file_with_the_top(suffix, tmp_path):
    source = keras.applications.VGG16(weights=None)
    file = saved(source, tmp_path / f"vgg{suffix}")
    last = np.array(source.get_layer("block5_conv3").kernel)
    wanted = reduce_fully_connected(*(source.get_layer(name).get_weights() for name in ("fc1", "fc2")))
    wanted = [np.array(values) for layer in wanted for values in layer]  # copies: half a gigabyte can go
    del source
    gc.collect()
    body = build_backbone("vgg16", 64, str(file)).get_layer("backbone")
    file.unlink()
    np.testing.assert_array_equal(np.array(body.get_layer("block5_conv3").kernel), last)
    ours = [values for name in ("fc6", "fc7") for values in body.get_layer(name).get_weights()]
    for values, expected in zip(ours, wanted, strict=True):
        np.testing.assert_array_equal(values, expected)


def test_vgg_of_imagenet_comes_with_its_top(monkeypatch):
    asked, original = [], keras.applications.VGG16
    outputs = np.arange(FC1_OUTPUTS, dtype="float32")
    wide = np.broadcast_to(outputs, (FC1_SIDE**2 * FC1_INPUTS, FC1_OUTPUTS))  # takes no memory

    def constructor(**options):
        asked.append(options)
        convolutions = original(include_top=False, weights=None)
        dense = {"fc1": [wide, outputs], "fc2": [wide[:FC1_OUTPUTS], outputs]}

        def get_layer(name):
            values = dense.get(name) or convolutions.get_layer(name).get_weights()
            return types.SimpleNamespace(get_weights=lambda: values)

        return types.SimpleNamespace(get_layer=get_layer)

    monkeypatch.setattr(keras.applications, "VGG16", constructor)
    model = build_backbone("vgg16", 64, "imagenet").get_layer("backbone")
    assert asked == [{"include_top": True, "weights": "imagenet"}]
    for name in ("fc6", "fc7"):
        np.testing.assert_array_equal(np.array(model.get_layer(name).kernel)[0, 0, 0], outputs[::4])
