"""Each backbone gives two maps as the paper reads them, trains, saves and loads; its pixels are preprocessed."""

import gc

import keras
import numpy as np
import pytest
from keras import layers

from models.backbones import BACKBONES, build_backbone, find_backbone
from models.detector import build_network
from models.preprocessing import PREPROCESSING, Preprocessing
from models.remove_strides import remove_strides
from oid.files import InputError
from tests.helpers.project import refused
from tests.helpers.tiny_network import pictures, tiny_settings, train_a_step

QUICK = ("residual_small", "vgg16", "resnet50", "mobilenet_0.25", "mobilenet_v2_0.35", "mobilenet_v3_small")
SMALL = "mobilenet_0.25"


@pytest.fixture
def forget_models():
    """Keras' memory of the large models of one test is gone before the next.

    Python looks for garbage then only: over the thousands of objects of a network it is a fifth of the time.
    """
    gc.disable()
    yield
    keras.backend.clear_session()
    gc.enable()


def named(names, fast):
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


def published(name: str, image_size: int) -> keras.Model:
    """The architecture without its top, as Keras has it, with names that do not depend on what was built before."""
    return remove_strides(BACKBONES[name].build(input_tensor=keras.Input((image_size, image_size, 3))), ())


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, side, side, 3)).astype("float32")


def maps_of(body: keras.Model, names: list[str], pixels: np.ndarray) -> list[np.ndarray]:
    """What the layers `names` give for `pixels`."""
    part = keras.Model(body.inputs, [body.get_layer(name).output for name in names])
    return [np.array(values) for values in keras.tree.flatten(part([pixels]))]


# === All of them ===


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize("name", named(BACKBONES, QUICK))
def test_each_inside_m2det_builds_trains_a_step_saves_and_loads(name, tmp_path):
    settings = tiny_settings(backbone=name)
    network = build_network(settings)
    assert [output.shape[1:3] for output in network.get_layer(name).outputs] == [(8, 8), (4, 4)]
    before = [np.array(weight) for weight in network.trainable_weights]
    assert np.isfinite(train_a_step(network, settings)).all()
    moved = [np.any(np.array(w) != b) for w, b in zip(network.trainable_weights, before, strict=True)]
    assert moved[0]  # the first kernel of the backbone
    assert np.mean(moved) > 0.8  # not all: ReLUs in a tiny squeeze-and-excitation may be dead

    network.save_weights(tmp_path / "network.weights.h5")
    again = build_network(settings)
    again.load_weights(tmp_path / "network.weights.h5")
    (tmp_path / "network.weights.h5").unlink()  # up to half a gigabyte, which pytest would keep
    outputs, loaded = (keras.tree.flatten(m(pictures(1))) for m in (network, again))
    for values, expected in zip(loaded, outputs, strict=True):
        assert np.ptp(np.array(expected)) > 0
        np.testing.assert_array_equal(np.array(values), np.array(expected))


@pytest.mark.parametrize("name", named(BACKBONES, ["residual_small", "vgg16"]))
@pytest.mark.parametrize("image_size", [32, 165])
def test_maps_have_strides_8_and_16_at_any_size(name, image_size):
    for found, stride in zip(build_backbone(name, image_size).outputs, (8, 16), strict=True):
        assert found.shape[1] == found.shape[2]
        assert image_size // stride <= found.shape[1] <= -(-image_size // stride)


def test_the_size_of_a_bare_name_is_1():
    """`mobilenet` is as wide as published, `mobilenet_0.5` half as wide."""
    for name, channels in (("mobilenet_0.5", 512), ("mobilenet", 1024)):
        assert BACKBONES[name].build(input_tensor=keras.Input((32, 32, 3))).output.shape[-1] == channels


def test_a_wrong_name_lists_the_valid_ones():
    with refused("'vgg'", *BACKBONES):
        find_backbone("vgg")


def test_pytorch_does_not_build_nasnet_and_that_is_one_sentence(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(InputError, match=r"'nasnet_mobile'.*PyTorch"):
        build_backbone("nasnet_mobile", 64)


# === The reach of the deep map ===

STRIDED = [name for name, backbone in BACKBONES.items() if backbone.unstrided]
CHEAP = ["mobilenet_0.25", "mobilenet_v3_small"]


@pytest.mark.parametrize("name", [name for name in BACKBONES if name not in STRIDED])
def test_the_deep_map_is_the_end_of_a_network_that_keeps_its_strides(name):
    body = BACKBONES[name].build(input_tensor=keras.Input((64, 64, 3)))
    assert body.layers[-1].name == BACKBONES[name].deep


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize("name", named(STRIDED, CHEAP))
def test_a_network_without_a_stride_has_the_same_weights_and_a_finer_map(name):
    """Every second value of a layer that lost its stride is what the published network gives there.

    The deep map is the end of the network, as in the paper, which reads ResNet's last stage: nothing of what was
    trained on ImageNet is left out.
    """
    before = published(name, 96)
    after = remove_strides(before, BACKBONES[name].unstrided)
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for old, new in zip(before.weights, after.weights, strict=True):
        np.testing.assert_array_equal(np.array(old), np.array(new))
    assert after.layers[-1].name == BACKBONES[name].deep
    assert before.output.shape[1] == 3
    assert after.output.shape == (None, 6, 6, before.output.shape[-1])

    names = [n for n in BACKBONES[name].unstrided if not isinstance(before.get_layer(n), layers.ZeroPadding2D)]
    for layer, (coarse,), (fine,) in zip(names, *(maps_of(b, names, noise(96)) for b in (before, after)), strict=True):
        assert np.ptp(coarse) > 0
        inner = slice(1, len(coarse) - 1)  # "same" padding and Keras' own differ at the border
        differences = [
            np.abs(fine[row::2, column::2][: len(coarse), : len(coarse)] - coarse)[inner, inner].max()
            for row in (0, 1)
            for column in (0, 1)
        ]
        assert min(differences) < 1e-4 * np.abs(coarse).max(), layer
        assert max(differences) > 1e-2 * np.abs(coarse).max(), layer


@pytest.mark.slow
@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize(
    ("name", "stage3", "stage4"),
    [
        ("resnet50_v2", "conv3_block4_out", "conv4_block5_out"),
        ("resnet50", "conv3_block4_out", "conv4_block6_out"),
        ("resnet152", "conv3_block8_out", "conv4_block36_out"),
        ("densenet121", "pool3_relu", "conv4_block24_concat"),
    ],
)
def test_stage_4_of_a_residual_network_stays_at_stride_8(name, stage3, stage4):
    body = remove_strides(published(name, 64), BACKBONES[name].unstrided)
    sides = [body.get_layer(layer).output.shape[1] for layer in (stage3, stage4, BACKBONES[name].deep)]
    assert sides == [8, 8, 4]


def test_a_stride_of_a_layer_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="conv_dw_99"):
        remove_strides(published("mobilenet_0.25", 32), ("conv_dw_99",))


def test_names_do_not_depend_on_what_was_built_before():
    layers.Activation("relu")  # Keras counts it
    first, second = (published("mobilenet_v3_small", 32) for _ in range(2))
    assert [layer.name for layer in first.layers][1:] == [layer.name for layer in second.layers][1:]
    assert {"activation", "activation_1"} < {layer.name for layer in first.layers}


# === Pixels ===


@pytest.mark.parametrize(("mode", "expected"), [("ssd", (26, -117, -113)), ("tf128", (-0.921875, -1, 0.015625))])
def test_preprocessing_by_hand(mode, expected):
    pixel = np.array([[[[10, 0, 130]]]], "uint8")  # red, green, blue
    np.testing.assert_array_equal(np.array(Preprocessing(mode)(pixel)).ravel(), expected)


def test_preprocessing_none_leaves_the_pixels():
    np.testing.assert_array_equal(np.array(Preprocessing("none")(pictures(1))), pictures(1))
    with pytest.raises(ValueError, match="bgr"):
        Preprocessing("bgr")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("vgg16", "vgg16"),
        ("resnet50", "resnet"),
        ("resnet101_v2", "resnet_v2"),
        ("mobilenet", "mobilenet"),
        ("mobilenet_v2_0.35", "mobilenet_v2"),
        ("densenet169", "densenet"),
        ("nasnet_mobile", "nasnet"),
    ],
)
def test_preprocessing_is_that_of_the_pretrained_weights(name, module):
    images = pictures(1, 4, 4).astype("float32")
    expected = getattr(keras.applications, module).preprocess_input(images.copy())
    np.testing.assert_allclose(np.array(Preprocessing(BACKBONES[name].preprocessing)(images)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "constructor"),
    [
        ("mobilenet_v3_small", "MobileNetV3Small"),
        pytest.param("efficientnet_v2_b0", "EfficientNetV2B0", marks=pytest.mark.slow),
        pytest.param("efficientnet_v2_s", "EfficientNetV2S", marks=pytest.mark.slow),
        pytest.param("convnext_base", "ConvNeXtBase", marks=pytest.mark.slow),
    ],
)
def test_preprocessing_equals_the_layers_that_keras_puts_inside(name, constructor):
    model = getattr(keras.applications, constructor)(include_top=False, weights=None, input_shape=(32, 32, 3))
    x = expected = pictures(1, 32, 32).astype("float32")
    inside = [layer for layer in model.layers[:3] if isinstance(layer, layers.Rescaling | layers.Normalization)]
    assert inside
    for layer in inside:
        expected = layer(expected)
    actual = Preprocessing(BACKBONES[name].preprocessing)(x)
    np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-4, atol=1e-4)
    own = BACKBONES[name].build(input_tensor=keras.Input((32, 32, 3)))
    assert not [layer for layer in own.layers if isinstance(layer, layers.Rescaling | layers.Normalization)]


def test_preprocessing_can_be_chosen():
    asked = [None, "ssd", "none"]
    models = [build_backbone("residual_small", 32, preprocessing=mode) for mode in asked]
    assert [model.get_layer("preprocessing").mode for model in models] == ["tf", "ssd", "none"]
    with pytest.raises(InputError, match="preprocessing 'bgr' does not exist") as error:
        build_backbone("residual_small", 32, preprocessing="bgr")
    assert all(mode in str(error.value) for mode in PREPROCESSING)
