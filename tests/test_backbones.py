"""Each backbone gives two maps, trains, saves and loads; weights come from where the user says, without a download."""

import keras
import numpy as np
import pytest
from keras.applications.imagenet_utils import preprocess_input
from tiny_network import pictures, targets, tiny_settings

from models.backbones import BACKBONES, Preprocessing, build_backbone, find_backbone
from models.detector import network_from_settings
from oid.files import InputError
from training.trainer import DetectionTrainer

FAMILIES = ["residual_small", "vgg16", "mobilenet_v2_0.35", "resnet50", "densenet121"]
TRUTH = targets([[(0, 0.1, 0.1, 0.5, 0.6)], [(1, 0.4, 0.4, 1, 1)]], [[], [(0, 0, 0, 0.3, 0.3)]])
SMALL = "mobilenet_v2_0.35"


def named(names):
    return [name if name in FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", named(BACKBONES))
def test_builds_trains_a_step_saves_and_loads(name, tmp_path):
    settings = tiny_settings(backbone=name, channels=4)
    network = network_from_settings(settings)
    body = next(layer for layer in network.layers if layer.name == name)
    assert [output.shape[1:3] for output in body.outputs] == [(8, 8), (4, 4)]

    trainer = DetectionTrainer(network, settings["anchors"])
    trainer.compile(optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)  # eager: no graph to trace for one step
    before = [np.array(weight) for weight in network.trainable_weights]
    loss = trainer.train_on_batch(pictures(2), TRUTH)
    assert np.isfinite(loss).all()
    moved = [np.any(np.array(w) != b) for w, b in zip(network.trainable_weights, before, strict=True)]
    assert moved[0]  # the first kernel of the backbone
    assert np.mean(moved) > 0.8  # not all: ReLUs in the tiny squeeze-and-excitation may be dead

    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras", compile=False)
    for output, values in network(pictures(1)).items():
        np.testing.assert_array_equal(np.array(again(pictures(1))[output]), np.array(values))


@pytest.mark.parametrize(
    "name", [n if n in FAMILIES[:3] else pytest.param(n, marks=pytest.mark.slow) for n in BACKBONES]
)
@pytest.mark.parametrize("image_size", [32, 165])
def test_the_maps_have_strides_8_and_16_at_any_size(name, image_size):
    shallow, deep = build_backbone(name, image_size).outputs
    for tap, stride in ((shallow, 8), (deep, 16)):
        assert tap.shape[1] == tap.shape[2]
        assert image_size // stride <= tap.shape[1] <= -(-image_size // stride)


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_preprocessing_is_that_of_keras(mode):
    images = pictures(2, 5, 7)
    expected = preprocess_input(images.astype("float32"), data_format="channels_last", mode=mode)
    np.testing.assert_allclose(np.array(Preprocessing(mode)(images)), expected, rtol=1e-5, atol=1e-4)


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
        ("resnet101", "resnet"),
        (SMALL, "mobilenet_v2"),
        ("densenet121", "densenet"),
    ],
)
def test_the_table_names_what_each_pretrained_backbone_expects(name, module):
    images = pictures(1, 4, 4).astype("float32")
    expected = getattr(keras.applications, module).preprocess_input(images.copy())
    np.testing.assert_allclose(np.array(Preprocessing(BACKBONES[name].preprocessing)(images)), expected, atol=1e-4)


def test_the_backbone_sees_preprocessed_pixels():
    """VGG's first map is the one of Keras' own network with Keras' own preprocessing."""
    model = build_backbone("vgg16", 32)
    reference = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    taps = next(layer for layer in model.layers if isinstance(layer, keras.Model))
    weights = taps.get_weights()
    reference.set_weights(weights)
    image = pictures(1, 32, 32).astype("float32")
    expected = keras.Model(reference.input, reference.get_layer("block4_conv3").output)(
        keras.applications.vgg16.preprocess_input(image.copy())
    )
    np.testing.assert_allclose(np.array(model(image)[0]), np.array(expected), rtol=1e-3, atol=1e-3)


def test_a_wrong_name_lists_the_valid_ones():
    with pytest.raises(InputError) as error:
        find_backbone("vgg")
    assert "'vgg'" in str(error.value)
    assert all(name in str(error.value) for name in BACKBONES)


# === --backbone_weights FILE ===


@pytest.fixture(scope="module")
def mobilenet():
    return keras.applications.MobileNetV2(include_top=False, alpha=0.35, weights=None, input_shape=(96, 96, 3))


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
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_file_that_does_not_fit_is_one_sentence(suffix, damage, tmp_path, recwarn):
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
        build_backbone("residual_small", 64, str(file))
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(file))
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize("file", ["missing.weights.h5", "."])
def test_a_missing_file_is_one_sentence(file, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        build_backbone("residual_small", 64, str(tmp_path / file))


# === --backbone_weights imagenet ===


def test_imagenet_is_passed_on(monkeypatch):
    asked, original = [], keras.applications.MobileNetV2

    def constructor(*, weights, **options):
        asked.append((weights, options["alpha"], options["include_top"]))
        return original(weights=None, **options)

    monkeypatch.setattr(keras.applications, "MobileNetV2", constructor)
    build_backbone(SMALL, 64, "imagenet")
    build_backbone("mobilenet_v2_0.5", 64, "none")
    assert asked == [("imagenet", 0.35, False), (None, 0.5, False)]


@pytest.mark.parametrize("error", [Exception("URL fetch failure on https://host/file: None -- refused"), OSError("x")])
def test_a_failed_download_is_one_sentence(monkeypatch, error):
    def constructor(**options):
        raise error

    monkeypatch.setattr(keras.applications, "MobileNetV2", constructor)
    with pytest.raises(InputError, match=r"--backbone_weights imagenet.*could not be downloaded"):
        build_backbone(SMALL, 64, "imagenet")


def test_imagenet_is_refused_where_there_is_none():
    with pytest.raises(InputError, match="residual_small"):
        build_backbone("residual_small", 64, "imagenet")
