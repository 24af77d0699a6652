"""Proves that fine-tuning takes over what means the same, layer by layer and class by class, and names the rest."""

import inspect
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from tiny_network import pictures, targets, tiny_settings

import a03_train_m2det as a03
from models.anchors import anchor_settings
from models.backbones import all_layers
from models.detector import network_from_settings
from models.legacy_checkpoint import BLOCKS
from training import loop
from training.detectors import anchors_of
from training.fine_tuning import same_classes, take_over_weights
from training.trainer import DetectionTrainer

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
    ],
    ids=["the same", "other classes", "another order", "fewer classes", "shared head", "other box coding"],
)
def test_what_means_the_same_is_taken_over_and_the_rest_is_named(old, new, anew, partly):
    taken, found = take_over(tiny_settings(**old), tiny_settings(**new))
    assert (found.anew, found.partly) == (anew, partly)
    assert {"stem_conv", "tum1_down1_bn", "sfam1_excite"} <= set(taken)


def test_layers_of_other_shapes_are_skipped_by_name():
    _, found = take_over(tiny_settings(), tiny_settings(channels=32, classes=OTHERS))
    assert {"tum1_down1_conv", *CLASSIFIER} <= set(found.anew)
    assert "stem_conv" not in found.anew
    assert not found.partly


def test_a_classifier_whose_scores_mean_something_else_begins_anew():
    """Softmax has an output for the background in front: the first class's is another."""
    _, found = take_over(tiny_settings(score_activation="softmax", classes=OTHERS[:2]), tiny_settings(classes=OTHERS))
    assert (found.anew, found.partly) == (CLASSIFIER, [])


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
    """Its network sees pictures of any shape, the new one squares; all else is the same, batch norm is frozen."""
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


def test_what_a_network_was_built_with_as_frozen_stays_so_when_the_rest_thaws():
    """The published checkpoints' batch norm: neither its weights nor its statistics move, the others' do."""
    network = network_from_settings(tiny_settings())
    frozen, free = (network.get_layer(name) for name in ("tum1_down1_bn", "tum1_down2_bn"))
    frozen.trainable = False
    trainer = DetectionTrainer(network, tiny_settings()["anchors"])
    assert trainer.always_frozen == (frozen,)
    flags = {name: parameter.default for name, parameter in inspect.signature(a03.main).parameters.items()}
    flags |= {"freeze_backbone_epochs": 1, "learning_rate": 0.1}
    state = {"steps": 1, "average_over": 2, "schedule": loop.new_schedule(flags, 0.1, 2)}
    before = [layer.get_weights() for layer in (frozen, free)]
    for epoch in range(2):
        loop.compile_for(trainer, state, flags, backbone="residual_small", epoch=epoch)
        assert network.get_layer("residual_small").trainable == bool(epoch)
        assert (frozen.trainable, free.trainable) == (False, True)
        trainer.train_on_batch(pictures(2), targets([[(0, 0.1, 0.1, 0.6, 0.6)]] * 2))
    after = [layer.get_weights() for layer in (frozen, free)]
    assert all(np.array_equal(a, b) for a, b in zip(after[0], before[0], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(after[1], before[1], strict=True))
