"""Proves that fine-tuning takes over what means the same, layer by layer and class by class, and names the rest."""

import inspect
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import a03_train_m2det as a03
from models.backbones import all_layers
from models.detector import network_from_settings
from models.legacy_checkpoint import BLOCKS
from oid.anchors.grids import anchor_settings, settings_of_sizes
from tests.helpers.tiny_network import pictures, targets, tiny_settings, write_settings
from training import loop, plan
from training.detectors import OF_NETWORK, anchors_of, network_settings, with_source
from training.fine_tuning import same_classes, take_over_weights
from training.trainer import DetectionTrainer

DEFAULTS = {name: parameter.default for name, parameter in inspect.signature(a03.main).parameters.items()}
OTHERS = [{"label": f"/m/{index}", "name": str(index)} for index in range(3)]
CLASSIFIER = ["classes1", "classes2", "classes3"]


def take_over(old: dict, new: dict):
    """What is taken over between networks of two settings; the old one has sevens everywhere."""
    source, target = network_from_settings(old), network_from_settings(new)
    for weight in source.weights:
        weight.assign(np.full(weight.shape, 7.0))
    before = {layer.name: layer.get_weights() for layer in target._flatten_layers(include_self=False)}
    found = take_over_weights(SimpleNamespace(model=source, settings=old), target, new)
    taken = []
    for layer in target._flatten_layers(include_self=False):
        if layer.weights and not hasattr(layer, "layers"):
            values = layer.get_weights()
            same = all(np.array_equal(a, b) for a, b in zip(values, before[layer.name], strict=True))
            sevens = all((value == 7.0).all() for value in values)
            if layer.name not in found.partly:
                assert (same, sevens) == ((True, False) if layer.name in found.anew else (False, True)), layer.name
                taken += [layer.name] if sevens else []
    assert found.layers == len(taken)
    return taken, found


@pytest.mark.parametrize(
    ("old", "new", "anew", "partly"),
    [
        ({}, {}, [], []),
        ({}, {"classes": OTHERS}, CLASSIFIER, []),
        ({"classes": OTHERS}, {"classes": OTHERS[::-1]}, [], CLASSIFIER),
        ({"classes": OTHERS}, {"classes": OTHERS[:2]}, [], CLASSIFIER),
        ({"head": "shared"}, {"head": "shared", "classes": OTHERS}, ["classes_output"], []),
        ({"box_coding": "ssd"}, {}, ["boxes1", "boxes2", "boxes3"], []),
        # softmax has an output for the background in front: the first class's is another
        ({"score_activation": "softmax", "classes": OTHERS[:2]}, {"classes": OTHERS}, CLASSIFIER, []),
    ],
    ids=["same", "other classes", "other order", "fewer classes", "shared head", "box coding", "score activation"],
)
def test_matching_layers_are_taken_over_and_the_others_are_named(old, new, anew, partly):
    taken, found = take_over(tiny_settings(**old), tiny_settings(**new))
    assert (found.anew, found.partly) == (anew, partly)
    assert {"stem_conv", "tum1_down1_bn", "sfam1_excite"} <= set(taken)


def test_layers_of_other_shapes_are_skipped_by_name():
    _, found = take_over(tiny_settings(), tiny_settings(channels=32, classes=OTHERS))
    assert {"tum1_down1_conv", *CLASSIFIER} <= set(found.anew)
    assert "stem_conv" not in found.anew
    assert not found.partly


@pytest.mark.parametrize("anchors", ["square", "official"])
def test_classes_that_both_runs_have_keep_their_scores(anchors):
    """One that the old run lacks begins at the prior, beside two in another order, one of them known by its name."""
    old_classes = [{"label": "/m/b", "name": "Bee"}, {"label": "/m/a", "name": "Ant"}, {"label": "/m/c", "name": "Cat"}]
    new_classes = [{"label": "/m/a", "name": "Ant"}, {"label": "/m/z", "name": "Zebra"}, {"label": "x", "name": "cat"}]
    shape = {"anchors": anchor_settings(64, 3, anchors=anchors)}
    old, new = (tiny_settings(classes=classes, **shape) for classes in (old_classes, new_classes))
    keras.utils.set_random_seed(1)
    source, target = network_from_settings(old), network_from_settings(new)
    rng = np.random.default_rng(0)
    for layer in CLASSIFIER:
        for weight in source.get_layer(layer).weights:
            weight.assign(rng.normal(0, 1, weight.shape))
    found = take_over_weights(SimpleNamespace(model=source, settings=old), target, new)
    assert found.classes == [(0, 1), (2, 2)]
    images = pictures(2)
    before, after = (np.asarray(network(images)["classes"]) for network in (source, target))
    np.testing.assert_allclose(after[..., [0, 2]], before[..., [1, 2]], rtol=1e-4, atol=1e-5)
    assert np.abs(before[..., 1] - before[..., 2]).mean() > 0.1
    assert before[..., [1, 2]].min() > -3 > after[..., 1].max()  # the new class begins at its prior


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        ("a:Ant b:Bee", "b:Bee a:Ant", [(0, 1), (1, 0)]),
        ("a:Ant b:Bee", "x:BEE y:wasp", [(0, 1)]),
        ("a:Ant b:Ant", "x:Ant", []),  # which of them?
        ("a:Ant", "x:ant y:Ant", []),
        ("a:Ant b:Ant", "b:Ant", [(0, 1)]),  # the label says it
        ("a:Ant b:Bee", "b:Ant", [(0, 1)]),  # before the name
        ("a:Ant", "b:Bee", []),
    ],
)
def test_classes_are_the_same_by_label_or_by_a_name_that_is_clear(old, new, pairs):
    def classes(text):
        return [dict(zip(("label", "name"), part.split(":"), strict=True)) for part in text.split()]

    assert same_classes(classes(old), classes(new)) == pairs


def test_a_converted_checkpoint_keeps_the_scores_of_the_classes_that_it_knows():
    shape = {"detector": "legacy_retinanet", "backbone": "legacy_resnet50", "padding": "explicit", "clip": "pixels"}
    shape |= {"anchors": anchors_of("legacy_retinanet", 96, 5, "official"), "box_coding": "corners", "image_size": 96}
    new = tiny_settings(**shape)  # Apple and Pear, green
    old = new | {"classes": [*OTHERS, {"label": "/m/apple", "name": "Apple"}], "image_size": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BLOCKS, 50, (1, 1, 1, 1))
        source, target = network_from_settings(old), network_from_settings(new)
    rng = np.random.default_rng(0)
    for layer in all_layers(source):
        layer.set_weights([np.abs(rng.normal(0, 0.1, array.shape)) for array in layer.get_weights()])
    found = take_over_weights(SimpleNamespace(model=source, settings=old), target, new)
    assert (found.anew, found.partly, found.classes) == ([], ["classes_output"], [(0, 3)])
    before, after = (network(pictures(1, 96, 96)) for network in (source, target))
    np.testing.assert_allclose(after["classes"][..., 0], before["classes"][..., 3], rtol=1e-4)
    np.testing.assert_allclose(after["boxes"], before["boxes"], rtol=1e-4)
    frozen = DetectionTrainer(target, new["anchors"], box_coding="corners").always_frozen
    assert len(frozen) == sum(isinstance(layer, keras.layers.BatchNormalization) for layer in all_layers(target)) == 17


def test_layers_frozen_by_the_network_stay_frozen_when_the_backbone_thaws():
    network = network_from_settings(tiny_settings())
    frozen, free = (network.get_layer(name) for name in ("tum1_down1_bn", "tum1_down2_bn"))
    frozen.trainable = False
    trainer = DetectionTrainer(network, tiny_settings()["anchors"])
    assert trainer.always_frozen == (frozen,)
    flags = DEFAULTS | {"freeze_backbone_epochs": 1, "learning_rate": 0.1, "weight_decay": 0.03}
    state = {"steps": 1, "average_over": 2, "schedule": loop.new_schedule(flags, 0.1, 2)}
    before, still = free.get_weights(), frozen.get_weights()
    for epoch in range(2):
        loop.compile_for(trainer, state, flags, backbone="residual_small", epoch=epoch)
        trainer.run_eagerly = True  # a graph takes longer to build than a step
        assert network.get_layer("residual_small").trainable == bool(epoch)
        assert (frozen.trainable, free.trainable) == (False, True)
        trainer.train_on_batch(pictures(2), targets([[(0, 0.1, 0.1, 0.6, 0.6)]] * 2))
    np.testing.assert_equal(frozen.get_weights(), still)
    assert not any(np.array_equal(a, b) for a, b in zip(free.get_weights(), before, strict=True))


# === Open network flags come from the run ============================================================================
def chosen_for(run, source: dict | None, **flags: object) -> tuple[dict, dict, list[str]]:
    """What a03 makes of its defaults and `flags`: those of `with_source`, the network's settings, the reasons."""
    if source:
        write_settings(run, source)
        flags = {"init_from": str(run)} | flags
    network, reasons = with_source(DEFAULTS | flags)
    machine = plan.Facts(images=500, accelerator=False, cores=2, free_memory=2**30)
    chosen, _ = plan.fill_in(network, machine)
    anchors = anchors_of(chosen["detector"], chosen["image_size"], chosen["scales"], network["anchors"])
    return network, network_settings(network, chosen, 2) | {"anchors": anchors}, reasons


OTHER = {"backbone": "mobilenet_v2_0.35", "image_size": 128, "tums": 3, "channels": 32, "head": "shared"}
RETINANET = {"detector": "retinanet", "backbone": "vgg16", "image_size": 160, "scales": 4, "channels": 48}
RETINANET |= {"head": "light", "anchors": anchors_of("retinanet", 160, 4, "official")}
SOURCES = {
    "m2det": tiny_settings(**OTHER),
    "released": tiny_settings(variant="released", sfam=False, anchors=anchor_settings(64, 3, anchors="official")),
    "taps": tiny_settings(backbone="resnet50", taps=["conv3_block4_out", "conv4_block6_out"], sfam=False),
    "retinanet": {name: value for name, value in tiny_settings(**RETINANET).items() if name not in ("tums", "variant")},
    "own anchors": tiny_settings(anchors=settings_of_sizes([[[0.1, 0.2]], [[0.3, 0.2]], [[0.5, 0.5]]], [8, 4, 2])),
}


@pytest.mark.parametrize("name", SOURCES)
def test_open_network_flags_are_taken_from_the_run(tmp_path, name):
    source = SOURCES[name]
    detector = source.get("detector", "m2det")
    _, network, (reason,) = chosen_for(tmp_path / "run", source, detector=detector)
    names = ["backbone", "image_size", "scales", "channels", "head", "taps", "anchors"]
    names += ["variant", "tums", "sfam"] if detector == "m2det" else []
    assert {name: network[name] for name in names} == {name: source[name] for name in names}
    assert reason.startswith(f"backbone {source['backbone']}, image_size {source['image_size']}, ")
    assert reason.endswith(f", because the weights of {tmp_path / 'run'} are for these")
    _, from_checkpoint, _ = chosen_for(tmp_path, None, detector=detector, init_from=str(tmp_path / "run/checkpoint"))
    assert from_checkpoint == network


def test_with_open_flags_every_layer_fits(tmp_path):
    source = SOURCES["released"]
    _, network, _ = chosen_for(tmp_path, source)
    taken, found = take_over(source, source | network)
    assert (found.anew, found.partly) == ([], [])
    assert len(taken) > 20


@pytest.mark.parametrize(
    "given",
    [
        {"backbone": "vgg16"},
        {"channels": 64, "tums": 1},
        {"head": "light", "sfam": False, "variant": "released"},
        {"anchors": "square", "scales": 2},
    ],
    ids=str,
)
def test_given_network_flags_win(tmp_path, given):
    source = SOURCES["m2det"] | {"anchors": anchor_settings(128, 3, anchors="official")}
    network, settings, (reason,) = chosen_for(tmp_path, source, **given)
    others = set(OF_NETWORK) - set(given)
    assert {name: settings[name] for name in others} == {name: source[name] for name in others}
    assert {name: network[name] for name in given} == given
    assert not any(f"{name} " in reason for name in given)
    if "anchors" in given:
        assert settings["anchors"] == anchor_settings(128, 2)


def test_another_size_keeps_the_set_of_anchors_and_the_maps_that_fit(tmp_path):
    source = SOURCES["m2det"] | {"scales": 5, "anchors": anchor_settings(128, 5, anchors="official")}
    _, network, _ = chosen_for(tmp_path, source, image_size=64)
    assert network["scales"] == 4
    assert network["anchors"] == anchor_settings(64, 4, anchors="official")
    _, network, _ = chosen_for(tmp_path, SOURCES["own anchors"], image_size=96)
    assert network["anchors"]["sizes"] == SOURCES["own anchors"]["anchors"]["sizes"]
    assert network["anchors"]["feature_map_sides"] == [12, 6, 3]
    _, network, (reason,) = chosen_for(tmp_path, SOURCES["own anchors"], scales=2)
    assert network["anchors"] == anchor_settings(64, 2)  # its sizes are for three maps
    assert "anchors" not in reason


def test_a_run_of_the_other_detector_gives_its_backbone_and_its_size(tmp_path):
    network, settings, (reason,) = chosen_for(tmp_path, SOURCES["retinanet"])
    assert (settings["backbone"], settings["image_size"]) == ("vgg16", 160)
    assert reason == f"backbone vgg16, image_size 160, because the weights of {tmp_path} are for these"
    assert {name: settings[name] for name in ("tums", "channels")} == {"tums": 2, "channels": 64}
    assert (network["anchors"], network["variant"], network["taps"]) == ("square", "paper", None)


def test_pixels_are_prepared_as_the_backbones_weights_expect(tmp_path):
    source = tiny_settings(preprocessing={**tiny_settings()["preprocessing"], "normalisation": "ssd"}, backbone="vgg16")
    for detector in ("m2det", "retinanet"):
        assert chosen_for(tmp_path, source, detector=detector)[0]["normalisation"] == "ssd"
    assert chosen_for(tmp_path, source, backbone="vgg19")[0]["normalisation"] is None


def test_without_a_run_nothing_is_said():
    network, reasons = with_source(DEFAULTS)
    assert reasons == []
    assert network == DEFAULTS | {"variant": "paper", "anchors": "square", "normalisation": None}
