"""A backbone's weights come from where the user says, without a download here, and frozen ones stay as they are."""

import keras
import numpy as np
import pytest
from keras import layers

from models.backbones import BACKBONES, build_backbone, freeze
from models.detector import build_network
from models.keras_internals import all_layers
from oid.files import InputError
from tests.helpers.project import refused
from tests.helpers.tiny_network import pictures, saved, tiny_settings, train_a_step

pytestmark = pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
SMALL = "mobilenet_0.25"
SLOW = pytest.mark.slow

# === A file ==========================================================================================================


@pytest.fixture(scope="module")
def mobilenet():
    return keras.applications.MobileNet(include_top=False, alpha=0.25, weights=None, input_shape=(96, 96, 3))


@pytest.mark.parametrize(
    ("name", "constructor"),
    [
        ("residual_small", None),
        (SMALL, None),
        pytest.param("resnet50", "ResNet50", marks=SLOW),
        pytest.param("resnet50_v2", "ResNet50V2", marks=SLOW),
        pytest.param("mobilenet", "MobileNet", marks=SLOW),
        pytest.param("mobilenet_v2", "MobileNetV2", marks=SLOW),
        pytest.param("mobilenet_v3_small", "MobileNetV3Small", marks=SLOW),
        pytest.param("densenet121", "DenseNet121", marks=SLOW),
        pytest.param("efficientnet_v2_b0", "EfficientNetV2B0", marks=SLOW),
        pytest.param("convnext_tiny", "ConvNeXtTiny", marks=SLOW),
        pytest.param("nasnet_mobile", "NASNetMobile", marks=SLOW),
    ],
)
@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".keras"])
def test_weights_of_a_file_are_loaded(name, constructor, suffix, tmp_path):
    """Also of Keras' own networks, some of which have layers that normalise the pixels."""
    if constructor:
        source = getattr(keras.applications, constructor)(include_top=False, weights=None)
    else:
        source = BACKBONES[name].build(input_tensor=keras.Input((96, 96, 3)))
    file = saved(source, tmp_path / f"body{suffix}")
    wanted = [np.array(weight) for weight in source.weights]
    loaded = build_backbone(name, 64, str(file)).get_layer("backbone").weights
    file.unlink()  # large, and pytest would keep it
    assert len(loaded) == len(wanted)
    for ours, theirs in zip(loaded, wanted, strict=True):
        np.testing.assert_array_equal(np.array(ours), theirs)


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".weights.h5", "cut"),
        (".weights.h5", "other architecture"),
        (".h5", "garbage"),
        (".h5", "other architecture"),
        (".keras", "empty"),
        (".keras", "other architecture"),
        (".txt", "garbage"),
    ],
)
@pytest.mark.parametrize(
    "name", ["residual_small", *(pytest.param(name, marks=pytest.mark.slow) for name in (SMALL, "vgg16"))]
)
def test_a_file_that_does_not_fit_is_one_sentence(name, suffix, damage, tmp_path, recwarn):
    file = tmp_path / f"body{suffix}"
    if damage in ("empty", "garbage"):
        file.write_bytes(b"" if damage == "empty" else b"no weights" * 100)
    else:
        saved(keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3), layers.Conv2D(2, 1)]), file)
        if damage == "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    recwarn.clear()
    with refused(str(file), f"does not fit {name}" if damage == "other architecture" else "cannot be read"):
        build_backbone(name, 64, str(file))
    assert not [warning for warning in recwarn if issubclass(warning.category, UserWarning)]


@pytest.mark.parametrize(
    ("suffix", "name", "words"),
    [
        (".keras", "mobilenet_0.5", r"conv1 has the shape \(3, 3, 3, 16\), in the file \(3, 3, 3, 8\)"),
        (".h5", "mobilenet_0.5", r"conv1 has the shape \(3, 3, 3, 16\), in the file \(3, 3, 3, 8\)"),
        (".h5", "vgg16", r"it has 13 layers with weights, the file 54"),
        (".weights.h5", "vgg_small", r"stem_conv has the shape \(3, 3, 3, 32\), in the file \(3, 3, 3, 8\)"),
        (".weights.h5", "vgg16", r"block1_conv1 has 2 tensors, in the file 1"),
    ],
)
def test_the_first_difference_of_another_architecture_is_named(mobilenet, suffix, name, words, tmp_path):
    file = saved(mobilenet, tmp_path / f"body{suffix}")
    with pytest.raises(InputError, match=rf"weights file .*body{suffix} does not fit {name}: {words}"):
        build_backbone(name, 64, str(file))


def test_weights_that_are_not_there_are_one_sentence(tmp_path):
    for name in ("residual_small", "vgg16"):
        for place in (tmp_path / "missing.weights.h5", tmp_path):
            with refused("there is no weights file"):
                build_backbone(name, 64, str(place))
    with refused("residual_small"):
        build_backbone("residual_small", 64, "imagenet")


# === ImageNet ========================================================================================================


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
    with pytest.raises(InputError, match=r"the ImageNet weights of .* could not be downloaded"):
        build_backbone(SMALL, 64, "imagenet")


def test_other_errors_are_not_taken_for_a_failed_download(monkeypatch):
    def constructor(**options):
        raise TypeError("a mistake in the code")

    monkeypatch.setattr(keras.applications, "MobileNet", constructor)
    with pytest.raises(TypeError, match="a mistake in the code"):
        build_backbone(SMALL, 64, "imagenet")


# === Frozen weights and frozen batch norm ============================================================================


def one_step(*, weights: bool, batch_norm: bool, whole: bool = False) -> dict[str, list[bool]]:
    """Trains a step after `freeze` of the backbone or of the whole network: {part: whether each tensor changed}."""
    keras.utils.set_random_seed(0)
    settings = tiny_settings()
    network = build_network(settings)
    body = network.get_layer("residual_small")
    freeze(network if whole else body, weights=weights, batch_norm=batch_norm)
    before = [np.array(weight) for weight in network.weights]
    train_a_step(network, settings)
    changed, inside = {}, {id(weight) for weight in body.weights}
    norms = {id(w) for x in all_layers(network) if isinstance(x, layers.BatchNormalization) for w in x.weights}
    for weight, old in zip(network.weights, before, strict=True):
        place = "backbone" if id(weight) in inside else "rest"
        place += "_norm" if id(weight) in norms else ""
        changed.setdefault(place, []).append(not np.array_equal(np.array(weight), old))
    return changed


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        ({"weights": False, "batch_norm": False}, set()),
        ({"weights": True, "batch_norm": False}, {"backbone", "backbone_norm"}),  # moving statistics, too
        ({"weights": True, "batch_norm": True}, {"backbone", "backbone_norm"}),
        ({"weights": False, "batch_norm": True}, {"backbone_norm"}),
        ({"weights": False, "batch_norm": True, "whole": True}, {"backbone_norm", "rest_norm"}),
    ],
)
def test_frozen_weights_stay_bit_by_bit_and_the_others_move(options, frozen):
    changed = one_step(**options)
    assert set(changed) == {"backbone", "backbone_norm", "rest", "rest_norm"}
    for place, moved in changed.items():
        assert not any(moved) if place in frozen else np.mean(moved) > 0.5


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
        model = all_layers(build_backbone(SMALL, 64, weights))
        assert {x.momentum for x in model if isinstance(x, layers.BatchNormalization)} == {momentum}
