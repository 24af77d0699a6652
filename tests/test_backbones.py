"""Each backbone gives two maps that reach as deep as the paper's, trains, saves and loads; weights come from where the
user says, without a download; frozen ones stay as they are."""

import dataclasses
import gc
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import shared
from keras import layers
from keras.applications.imagenet_utils import preprocess_input
from tiny_network import pictures, targets, tiny_settings

from models.backbones import BACKBONES, all_layers, build_backbone, find_backbone, freeze
from models.detector import network_from_settings
from models.preprocessing import PREPROCESSING, Preprocessing
from models.strides import without_strides
from models.vgg import FC1_INPUTS, FC1_OUTPUTS, FC1_SIDE, load_vgg, reduce_fully_connected
from oid.files import InputError
from training.trainer import DetectionTrainer

FAMILIES = [  # the smallest of each
    "residual_small",
    "vgg16",
    "resnet50",
    "resnet50_v2",
    "mobilenet_0.25",
    "mobilenet_v2_0.35",
    "mobilenet_v3_small",
    "densenet121",
    "efficientnet_v2_b0",
    "convnext_tiny",
    "nasnet_mobile",
]
TRUTH = targets([[(0, 0.1, 0.1, 0.5, 0.6)], [(1, 0.4, 0.4, 1, 1)]], [[], [(0, 0, 0, 0.3, 0.3)]])
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
    return without_strides(BACKBONES[name].build(input_tensor=keras.Input((image_size, image_size, 3))), ())


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, side, side, 3)).astype("float32")


def maps_of(body: keras.Model, names: list[str], pixels: np.ndarray) -> list[np.ndarray]:
    """What the layers `names` give for `pixels`."""
    part = keras.Model(body.inputs, [body.get_layer(name).output for name in names])
    return [np.array(values) for values in keras.tree.flatten(part([pixels]))]


# === One per family, and all of them ===


def steps_saves_and_loads(model: keras.Model, network: keras.Model, truth: object, file: Path) -> None:
    """A training step of the compiled `model` moves the weights of `network`; written and read, it answers the same."""
    before = [np.array(weight) for weight in network.trainable_weights]
    assert np.isfinite(model.train_on_batch(pictures(2), truth)).all()
    moved = [np.any(np.array(w) != b) for w, b in zip(network.trainable_weights, before, strict=True)]
    assert moved[0]  # the first kernel of the backbone
    assert np.mean(moved) > 0.8  # not all: ReLUs in a tiny squeeze-and-excitation may be dead

    network.save(file)
    again = keras.saving.load_model(file, compile=False, safe_mode=True)
    outputs, loaded = (keras.tree.flatten(m(pictures(1))) for m in (network, again))
    assert len(outputs) == 2
    for values, expected in zip(loaded, outputs, strict=True):
        assert np.ptp(np.array(expected)) > 0
        np.testing.assert_array_equal(np.array(values), np.array(expected))


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize("name", FAMILIES)
def test_one_of_each_family_builds_trains_a_step_saves_and_loads(name, tmp_path):
    model = build_backbone(name, 64)
    assert [output.shape[1:3] for output in model.outputs] == [(8, 8), (4, 4)]
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss="mse", run_eagerly=True)  # no graph to trace for one step
    truth = [np.ones((2, *output.shape[1:]), "float32") for output in model.outputs]
    steps_saves_and_loads(model, model, truth, tmp_path / "model.keras")


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize("name", named(BACKBONES, ["residual_small"]))
def test_each_inside_m2det_builds_trains_a_step_saves_and_loads(name, tmp_path):
    settings = tiny_settings(backbone=name)
    network = network_from_settings(settings)
    assert [output.shape[1:3] for output in network.get_layer(name).outputs] == [(8, 8), (4, 4)]
    trainer = DetectionTrainer(network, settings["anchors"])
    trainer.compile(optimizer=keras.optimizers.Adam(1e-3), run_eagerly=True)
    steps_saves_and_loads(trainer, network, TRUTH, tmp_path / "network.keras")


@pytest.mark.parametrize("name", named(BACKBONES, ["residual_small", "vgg16"]))
@pytest.mark.parametrize("image_size", [32, 96, 165, 272, 320])
def test_the_maps_have_strides_8_and_16_at_any_size(name, image_size):
    for tap, stride in zip(build_backbone(name, image_size).outputs, (8, 16), strict=True):
        assert tap.shape[1] == tap.shape[2]
        assert image_size // stride <= tap.shape[1] <= -(-image_size // stride)


def test_the_size_of_a_bare_name_is_1():
    """`mobilenet` is as wide as published, `mobilenet_0.5` half as wide."""
    for name, channels in (("mobilenet_0.5", 512), ("mobilenet", 1024)):
        assert BACKBONES[name].build(input_tensor=keras.Input((32, 32, 3))).output.shape[-1] == channels


def test_a_wrong_name_lists_the_valid_ones():
    with pytest.raises(InputError) as error:
        find_backbone("vgg")
    assert "'vgg'" in str(error.value)
    assert all(name in str(error.value) for name in BACKBONES)


def test_what_the_pytorch_backend_does_not_build_is_one_sentence(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(InputError, match=r"'nasnet_mobile'.*PyTorch"):
        build_backbone("nasnet_mobile", 64)


# === The reach of the deep tap ===

STRIDED = [name for name, backbone in BACKBONES.items() if backbone.unstrided]
CHEAP = ["mobilenet_0.25", "mobilenet_v3_small"]


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize("name", named(BACKBONES, ["mobilenet_0.25", "vgg16", "residual_small"]))
def test_the_deep_tap_is_the_end_of_the_network(name):
    """As in the paper, which reads ResNet's last stage: nothing of what was trained on ImageNet is left out."""
    body = published(name, 64)
    assert body.output.shape == body.get_layer(BACKBONES[name].deep).output.shape
    assert body.layers[-1].name == BACKBONES[name].deep


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize("name", named(STRIDED, CHEAP))
def test_a_network_without_a_stride_has_the_same_weights_and_a_finer_map(name):
    """Every second value of a layer that lost its stride is what the published network gives there."""
    before = published(name, 96)
    after = without_strides(before, BACKBONES[name].unstrided)
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    for old, new in zip(before.weights, after.weights, strict=True):
        assert old.path == new.path
        np.testing.assert_array_equal(np.array(old), np.array(new))
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


@pytest.mark.usefixtures("forget_models")
@pytest.mark.parametrize(
    ("name", "stage3", "stage4"),
    [
        pytest.param("resnet50_v2", "conv3_block4_out", "conv4_block5_out", marks=pytest.mark.slow),
        pytest.param("resnet50", "conv3_block4_out", "conv4_block6_out", marks=pytest.mark.slow),
        pytest.param("resnet152", "conv3_block8_out", "conv4_block36_out", marks=pytest.mark.slow),
        pytest.param("densenet121", "pool3_relu", "conv4_block24_concat", marks=pytest.mark.slow),
    ],
)
def test_stage_4_of_a_residual_network_stays_at_stride_8(name, stage3, stage4):
    body = without_strides(published(name, 64), BACKBONES[name].unstrided)
    sides = [body.get_layer(layer).output.shape[1] for layer in (stage3, stage4, BACKBONES[name].deep)]
    assert sides == [8, 8, 4]


def test_a_stride_of_a_layer_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="conv_dw_99"):
        without_strides(published("mobilenet_0.25", 32), ("conv_dw_99",))


def test_names_do_not_depend_on_what_was_built_before():
    layers.Activation("relu")  # Keras counts it
    first, second = (published("mobilenet_v3_small", 32) for _ in range(2))
    assert [layer.name for layer in first.layers][1:] == [layer.name for layer in second.layers][1:]
    assert {"activation", "activation_1"} < {layer.name for layer in first.layers}


# === Taps of the user's choice ===


def test_taps_can_be_chosen():
    model = build_backbone("mobilenet_v2_0.35", 64, taps=("block_5_add", "block_16_project_BN"))
    assert [output.shape[1:] for output in model.outputs] == [(8, 8, 16), (4, 4, 112)]


def test_taps_of_the_network_as_published_are_found_too(monkeypatch):
    """With the paper's rule the end of stage 4, which many detectors read, has a stride of 8 instead of 16."""
    as_the_paper = dataclasses.replace(BACKBONES[SMALL], unstrided=("conv_pad_6", "conv_dw_6"))
    monkeypatch.setitem(BACKBONES, SMALL, as_the_paper)
    for taps in (None, ["conv_pw_5_relu", "conv_pw_11_relu"], ["conv_pw_11_relu", "conv_pw_13_relu"]):
        sides = [output.shape[1] for output in build_backbone(SMALL, 64, taps=taps).outputs]
        assert sides == [8, 4]


@pytest.mark.parametrize(
    ("taps", "words"),
    [
        (("shalow", "deep"), r"--taps shalow: residual_small has no such layer.*shallow"),
        (("shallow", "§"), r"--taps §: residual_small has no such layer.*deep_add, deep"),
        (("deep", "shallow"), r"--taps deep: its map has a stride of 16 pixels.*but 8 are needed"),
        (("shallow", "shallow_1_bn"), r"--taps shallow_1_bn: its map has a stride of 8 pixels.*but 16 are needed"),
        (("stem_relu", "deep"), r"--taps stem_relu: its map has a stride of 2 pixels.*but 8 are needed"),
        (("shallow",), "--taps shallow: give two layers"),
        (("shallow", "stage4_block1", "deep"), "give two layers"),
    ],
)
def test_taps_that_do_not_fit_are_one_sentence(taps, words):
    with pytest.raises(InputError, match=words) as error:
        build_backbone("residual_small", 96, taps=taps)
    assert "\n" not in str(error.value)


def test_a_tap_that_fits_neither_way_is_named_as_the_network_is_built():
    with pytest.raises(InputError, match=r"--taps conv_pw_3_relu: its map has a stride of 4 pixels in mobilenet_0.25"):
        build_backbone(SMALL, 96, taps=("conv_pw_3_relu", "conv_pw_11_relu"))


def test_a_tap_without_a_map_is_one_sentence(monkeypatch):
    def build(*, input_tensor, weights=None):
        x = layers.Conv2D(4, 3, 8, padding="same", name="conv")(input_tensor)
        return keras.Model(input_tensor, layers.GlobalAveragePooling2D(name="mean")(x))

    monkeypatch.setitem(BACKBONES, "flat", dataclasses.replace(BACKBONES["residual_small"], build=build))
    with pytest.raises(InputError, match=r"--taps mean.*no map"):
        build_backbone("flat", 64, taps=("conv", "mean"))


# === Pixels ===


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_preprocessing_is_that_of_keras(mode):
    images = pictures(2, 5, 7)
    expected = preprocess_input(images.astype("float32"), data_format="channels_last", mode=mode)
    np.testing.assert_allclose(np.array(Preprocessing(mode)(images)), expected, rtol=1e-5, atol=1e-4)


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
        ("vgg19", "vgg19"),
        ("resnet50", "resnet"),
        ("resnet101_v2", "resnet_v2"),
        ("mobilenet", "mobilenet"),
        ("mobilenet_v2_0.35", "mobilenet_v2"),
        ("densenet169", "densenet"),
        ("nasnet_mobile", "nasnet"),
    ],
)
def test_the_table_names_what_each_pretrained_backbone_expects(name, module):
    images = pictures(1, 4, 4).astype("float32")
    expected = getattr(keras.applications, module).preprocess_input(images.copy())
    np.testing.assert_allclose(np.array(Preprocessing(BACKBONES[name].preprocessing)(images)), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "constructor"),
    [
        ("mobilenet_v3_small", "MobileNetV3Small"),
        pytest.param("mobilenet_v3_large", "MobileNetV3Large", marks=pytest.mark.slow),
        pytest.param("efficientnet_v2_b0", "EfficientNetV2B0", marks=pytest.mark.slow),
        pytest.param("efficientnet_v2_b3", "EfficientNetV2B3", marks=pytest.mark.slow),
        pytest.param("efficientnet_v2_s", "EfficientNetV2S", marks=pytest.mark.slow),
        pytest.param("efficientnet_v2_m", "EfficientNetV2M", marks=pytest.mark.slow),
        pytest.param("convnext_base", "ConvNeXtBase", marks=pytest.mark.slow),
    ],
)
def test_the_table_does_what_keras_does_inside_some_networks(name, constructor):
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


def test_the_backbone_sees_preprocessed_pixels():
    """VGG's first map is the one of Keras' own network with Keras' own preprocessing."""
    model = build_backbone("vgg16", 32)
    reference = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    reference.set_weights(model.get_layer("backbone").get_weights()[: len(reference.weights)])
    image = pictures(1, 32, 32).astype("float32")
    expected = keras.Model(reference.input, reference.get_layer("block4_conv3").output)(
        keras.applications.vgg16.preprocess_input(image.copy())
    )
    np.testing.assert_allclose(np.array(model(image)[0]), np.array(expected), rtol=1e-3, atol=1e-3)


def test_preprocessing_can_be_chosen():
    asked = [None, "ssd", "none"]
    models = [build_backbone("residual_small", 32, preprocessing=mode) for mode in asked]
    assert [model.get_layer("preprocessing").mode for model in models] == ["tf", "ssd", "none"]
    with pytest.raises(InputError, match="preprocessing 'bgr' does not exist") as error:
        build_backbone("residual_small", 32, preprocessing="bgr")
    assert all(mode in str(error.value) for mode in PREPROCESSING)


# === VGG as detectors use it ===


def test_vgg_beyond_the_last_block_is_the_reduced_fc_form():
    """pool5, fc6 and fc7 against sums written out in NumPy."""
    body = build_backbone("vgg16", 96).get_layer("backbone")
    for name in ("fc6", "fc7"):  # biases begin at zero
        kernel, bias = body.get_layer(name).get_weights()
        body.get_layer(name).set_weights([kernel, np.random.default_rng(1).normal(size=bias.shape)])
    (conv5,), (fc7,) = maps_of(body, ["block5_conv3", "fc7"], noise(96))
    x = np.pad(conv5, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    side = x.shape[0] - 2
    x = np.max([x[i : i + side, j : j + side] for i in range(3) for j in range(3)], axis=0)
    x = np.pad(x, ((6, 6), (6, 6), (0, 0)))
    kernel, bias = body.get_layer("fc6").get_weights()
    x = sum(x[6 * i : 6 * i + side, 6 * j : 6 * j + side] @ kernel[i, j] for i in range(3) for j in range(3)) + bias
    kernel, bias = body.get_layer("fc7").get_weights()
    expected = np.maximum(np.maximum(x, 0) @ kernel[0, 0] + bias, 0)
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(fc7, expected, atol=1e-5 * np.abs(expected).max())


def test_only_the_third_pooling_of_vgg_rounds_up():
    shallow, deep = build_backbone("vgg16", 300).outputs
    assert (shallow.shape[1], deep.shape[1]) == (38, 19)  # 300, 150, 75, 38, 19
    assert build_backbone("vgg16", 36).outputs[1].shape[1] == 2  # 36, 18, 9, 5, 2


def test_vgg_equals_the_released_code():
    """Maps of the official PyTorch network, with weights made from their names."""
    folder = shared("golden", "m2det")
    source = types.ModuleType("weights_from_names")
    exec((folder / "weights_from_names.py").read_text(encoding="utf-8"), source.__dict__)
    description = source.load(folder / "vgg_small.shapes.json")
    body = build_backbone("vgg16", description["input_size"]).get_layer("backbone")
    convolutions = [layer for layer in body.layers if isinstance(layer, layers.Conv2D)]
    numbers = sorted({int(name.split(".")[1]) for name in description["tensors"] if name.startswith("base.")})
    for layer, number in zip(convolutions, numbers, strict=True):
        kernel, bias = (
            source.array(name, description["tensors"][name]["shape"])
            for name in (f"base.{number}.weight", f"base.{number}.bias")
        )
        layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    maps = body([source.input_image(description["input_size"]).transpose(0, 2, 3, 1)])
    golden = np.load(folder / "vgg_small.npz")
    for name, actual in zip(("base0", "base1"), maps, strict=True):
        actual = np.array(actual).transpose(0, 3, 1, 2)
        expected, actual = golden[name], source.subsample(actual, description["outputs"][name]["strides"])
        assert actual.shape == expected.shape
        assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-5


def random_top(outputs: int = 4096, inputs: int = 512) -> tuple[list[np.ndarray], list[np.ndarray]]:
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
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_vgg_takes_the_convolutions_of_a_file_without_the_top(suffix, tmp_path, capsys):
    source, file = published_vgg(), tmp_path / f"vgg{suffix}"
    (source.save_weights if suffix == ".weights.h5" else source.save)(file)
    model = build_backbone("vgg16", 64, str(file)).get_layer("backbone")
    for layer in source.layers:
        for theirs, path in zip(layer.get_weights(), ("kernel", "bias"), strict=False):
            np.testing.assert_array_equal(np.array(getattr(model.get_layer(layer.name), path)), theirs)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert str(file) in printed
    assert "fc6 and fc7 of vgg16 begin with random values" in printed
    assert np.array(model.get_layer("fc6").kernel).std() > 0


def published_vgg() -> keras.Model:
    return keras.applications.VGG16(include_top=False, weights=None, input_shape=(64, 64, 3))


def test_vgg_takes_a_file_of_its_own_form(tmp_path, capsys):
    image = keras.Input((32, 32, 3))
    first, second = (BACKBONES["vgg16"].build(input_tensor=image) for _ in range(2))
    first.save_weights(tmp_path / "own.weights.h5")
    load_vgg("VGG16", second, str(tmp_path / "own.weights.h5"))
    for a, b in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("forget_models")
@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_vgg_makes_fc6_and_fc7_of_a_file_with_the_top(suffix, tmp_path, capsys):
    source, file = keras.applications.VGG16(weights=None), tmp_path / f"vgg{suffix}"
    (source.save_weights if suffix == ".weights.h5" else source.save)(file)
    body = build_backbone("vgg16", 64, str(file)).get_layer("backbone")
    np.testing.assert_array_equal(*(np.array(m.get_layer("block5_conv3").kernel) for m in (source, body)))
    fc1, fc2 = (source.get_layer(name).get_weights() for name in ("fc1", "fc2"))
    for name, values in zip(("fc6", "fc7"), reduce_fully_connected(fc1, fc2), strict=True):
        for ours, expected in zip(body.get_layer(name).get_weights(), values, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert capsys.readouterr().out == ""


def test_vgg_of_imagenet_comes_with_its_top(monkeypatch, capsys):
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
    assert capsys.readouterr().out == ""


# === --backbone_weights FILE ===


@pytest.fixture(scope="module")
def mobilenet():
    return keras.applications.MobileNet(include_top=False, alpha=0.25, weights=None, input_shape=(96, 96, 3))


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_weights_of_a_file_are_loaded(mobilenet, suffix, tmp_path):
    file = tmp_path / f"body{suffix}"
    (mobilenet.save_weights if suffix == ".weights.h5" else mobilenet.save)(file)
    wanted = {weight.path: np.array(weight) for weight in mobilenet.weights}
    loaded = build_backbone(SMALL, 64, str(file)).weights
    assert len(loaded) > 50
    for weight in loaded:
        np.testing.assert_array_equal(np.array(weight), wanted[weight.path])


@pytest.mark.usefixtures("forget_models")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "constructor"),
    [
        ("resnet50", "ResNet50"),
        ("resnet50_v2", "ResNet50V2"),
        ("mobilenet", "MobileNet"),
        ("mobilenet_v2", "MobileNetV2"),
        ("mobilenet_v3_small", "MobileNetV3Small"),
        ("densenet121", "DenseNet121"),
        ("efficientnet_v2_b0", "EfficientNetV2B0"),
        ("convnext_tiny", "ConvNeXtTiny"),
        ("nasnet_mobile", "NASNetMobile"),
    ],
)
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_files_of_every_family_are_loaded(name, constructor, suffix, tmp_path):
    """Files of `keras.applications` as Keras builds it by default, with preprocessing inside where it has one."""
    source, file = getattr(keras.applications, constructor)(include_top=False, weights=None), tmp_path / f"b{suffix}"
    (source.save_weights if suffix == ".weights.h5" else source.save)(file)
    wanted = [np.array(weight) for weight in source.weights]
    loaded = build_backbone(name, 64, str(file)).get_layer("backbone").weights
    assert len(loaded) == len(wanted)
    for ours, theirs in zip(loaded, wanted, strict=True):
        np.testing.assert_array_equal(np.array(ours), theirs)


def test_a_file_of_our_own_backbone_is_loaded(tmp_path):
    file = tmp_path / "small.weights.h5"
    image = keras.Input((64, 64, 3))
    body = BACKBONES["residual_small"].build(input_tensor=image)
    body.save_weights(file)
    first = np.array(body.get_layer("stem_conv").kernel)
    loaded = build_backbone("residual_small", 96, str(file))
    assert any(weight.shape == first.shape and np.array_equal(np.array(weight), first) for weight in loaded.weights)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".weights.h5", "cut"),
        (".weights.h5", "other architecture"),
        (".h5", "garbage"),
        (".h5", "other architecture"),
        (".keras", "empty"),
        (".keras", "cut"),
        (".keras", "other architecture"),
        (".txt", "garbage"),
    ],
)
@pytest.mark.parametrize("name", named(["residual_small", SMALL, "vgg16"], ["residual_small"]))
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_file_that_does_not_fit_is_one_sentence(name, suffix, damage, tmp_path, recwarn):
    file = tmp_path / f"body{suffix}"
    if damage in ("empty", "garbage"):
        file.write_bytes(b"" if damage == "empty" else b"no weights" * 100)
    else:
        other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.Conv2D(2, 1)])
        (other.save_weights if suffix == ".weights.h5" else other.save)(file)
        if damage == "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    recwarn.clear()
    with pytest.raises(InputError) as error:
        build_backbone(name, 64, str(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(file))
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize("file", ["missing.weights.h5", "."])
@pytest.mark.parametrize("name", ["residual_small", "vgg16"])
def test_a_missing_file_is_one_sentence(name, file, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        build_backbone(name, 64, str(tmp_path / file))


# === --backbone_weights imagenet ===


def test_imagenet_is_passed_on(monkeypatch):
    asked, original = [], keras.applications.MobileNet

    def constructor(*, weights, **options):
        asked.append((weights, options["alpha"], options["include_top"]))
        return original(weights=None, **options)

    monkeypatch.setattr(keras.applications, "MobileNet", constructor)
    build_backbone(SMALL, 64, "imagenet")
    build_backbone("mobilenet_0.5", 64, "none")
    assert asked == [("imagenet", 0.25, False), (None, 0.5, False)]


@pytest.mark.parametrize("error", [Exception("URL fetch failure on https://host/file: None -- refused"), OSError("x")])
def test_a_failed_download_is_one_sentence(monkeypatch, error):
    def constructor(**options):
        raise error

    monkeypatch.setattr(keras.applications, "MobileNet", constructor)
    with pytest.raises(InputError, match=r"--backbone_weights imagenet.*could not be downloaded"):
        build_backbone(SMALL, 64, "imagenet")


def test_imagenet_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="residual_small"):
        build_backbone("residual_small", 64, "imagenet")


# === Frozen weights and frozen batch norm ===


def one_step(*, weights: bool, batch_norm: bool, whole: bool = False) -> dict[str, list[bool]]:
    """Trains a step after `freeze` of the backbone, or of the whole network, and says of each tensor if it changed.

    Returns:
        Lists for `backbone` and `rest`, and of batch norms only for `backbone_norm` and `rest_norm`.
    """
    settings = tiny_settings()
    network = network_from_settings(settings)
    body = network.get_layer("residual_small")
    freeze(network if whole else body, weights=weights, batch_norm=batch_norm)
    trainer = DetectionTrainer(network, settings["anchors"])
    trainer.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    before = [np.array(weight) for weight in network.weights]
    trainer.train_on_batch(pictures(2), TRUTH)
    changed, inside = {}, {id(weight) for weight in body.weights}
    norms = {id(w) for x in all_layers(network) if isinstance(x, layers.BatchNormalization) for w in x.weights}
    for weight, old in zip(network.weights, before, strict=True):
        place = "backbone" if id(weight) in inside else "rest"
        place += "_norm" if id(weight) in norms else ""
        changed.setdefault(place, []).append(not np.array_equal(np.array(weight), old))
    return changed


def test_without_freezing_everything_moves():
    changed = one_step(weights=False, batch_norm=False)
    assert set(changed) == {"backbone", "backbone_norm", "rest", "rest_norm"}
    assert all(np.mean(moved) > 0.8 for moved in changed.values())


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_frozen_backbone_stays_bit_by_bit(batch_norm):
    changed = one_step(weights=True, batch_norm=batch_norm)
    assert not any(changed["backbone"] + changed["backbone_norm"])  # moving statistics, too
    assert np.mean(changed["rest"] + changed["rest_norm"]) > 0.8


def test_frozen_batch_norms_stay_bit_by_bit_and_kernels_move():
    changed = one_step(weights=False, batch_norm=True)
    assert not any(changed["backbone_norm"])
    assert np.mean(changed["backbone"]) > 0.8
    assert np.mean(changed["rest_norm"]) > 0.8


def test_batch_norms_of_the_whole_network_can_be_frozen():
    changed = one_step(weights=False, batch_norm=True, whole=True)
    assert not any(changed["backbone_norm"] + changed["rest_norm"])
    assert np.mean(changed["backbone"] + changed["rest"]) > 0.8


@pytest.mark.parametrize("what", ["weights", "batch_norm"])
def test_frozen_batch_norm_uses_its_moving_statistics_in_training(what, tmp_path):
    model = build_backbone("residual_small", 32)
    maps = {}
    for frozen in (False, True):
        if frozen:
            freeze(model, **{what: True})
            assert (model.trainable_weights == []) == (what == "weights")
        for training in (False, True):
            maps[frozen, training] = np.array(model(pictures(2, 32, 32), training=training)[1])
    assert np.abs(maps[False, True] - maps[False, False]).max() > 1e-3
    np.testing.assert_array_equal(maps[True, True], maps[True, False])


def test_batch_norms_forget_sooner_where_nothing_is_pretrained(mobilenet, tmp_path):
    mobilenet.save_weights(tmp_path / "body.weights.h5")
    for weights, momentum in (("none", 0.97), (str(tmp_path / "body.weights.h5"), 0.99)):
        found = {
            layer.momentum
            for layer in all_layers(build_backbone(SMALL, 64, weights))
            if isinstance(layer, layers.BatchNormalization)
        }
        assert found == {momentum}
