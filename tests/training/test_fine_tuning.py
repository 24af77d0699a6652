"""Fine-tuning takes over what means the same, layer by layer and class by class, and names the rest."""

import keras
import numpy as np
import pytest

from models.detector import build_network
from models.keras_internals import all_layers
from models.run_settings import DetectionClass
from oid.anchors.grids import retinanet_anchors
from tests.helpers.keras_retinanet_files import tiny_blocks
from tests.helpers.tiny_network import pictures, tiny_settings
from training.fine_tuning import TakenOver, same_boxes, same_classes, take_over_weights

OTHERS = tuple(DetectionClass(f"/m/{index}", str(index)) for index in range(3))
CLASSIFIER = ("classes1", "classes2", "classes3")
CONVERTED = {
    **{"detector": "keras_retinanet", "backbone": "resnet50", "scales": 5, "channels": 256, "head": "shared"},
    **{"padding": "valid", "clip": "side", "box_deltas": "corners"},
}


def take_over(old, new) -> TakenOver:
    """Takes over a network of sevens, and checks that each layer is as the result says."""
    source, target = build_network(old), build_network(new)
    for weight in source.weights:
        weight.assign(np.full(weight.shape, 7.0))
    before = {layer.name: layer.get_weights() for layer in all_layers(target)}
    taken = take_over_weights(source, old, target, new)
    for layer in all_layers(target):
        values = layer.get_weights()
        if values and layer.name not in taken.partly:
            same = all(np.array_equal(a, b) for a, b in zip(values, before[layer.name], strict=True))
            sevens = all((value == 7.0).all() for value in values)
            assert (same, sevens) == ((True, False) if layer.name in taken.anew else (False, True)), layer.name
            assert sevens == (layer.name in taken.whole)
    return taken


@pytest.mark.parametrize(
    ("old", "new", "anew", "partly"),
    [
        ({}, {}, (), ()),
        ({}, {"classes": OTHERS}, CLASSIFIER, ()),
        ({"classes": OTHERS}, {"classes": OTHERS[::-1]}, (), CLASSIFIER),
        ({"classes": OTHERS}, {"classes": OTHERS[:2]}, (), CLASSIFIER),
        ({"head": "shared"}, {"head": "shared", "classes": OTHERS}, ("classes_output",), ()),
        ({"box_deltas": "ssd"}, {}, ("boxes1", "boxes2", "boxes3"), ()),
        ({"scores": "softmax", "classes": OTHERS[:2]}, {"classes": OTHERS}, CLASSIFIER, ()),
        ({"scores": "softmax", "classes": OTHERS}, {"scores": "softmax", "classes": OTHERS[:2]}, (), CLASSIFIER),
    ],
    ids=["same", "other classes", "other order", "fewer classes", "shared head", "box deltas", "scores", "softmax"],
)
def test_matching_layers_are_taken_over_and_the_others_are_named(old, new, anew, partly):
    taken = take_over(tiny_settings(**old), tiny_settings(**new))
    assert (taken.anew, taken.partly) == (anew, partly)
    assert {"stem_conv", "tum1_down1_bn", "sfam1_excite"} <= set(taken.whole)


def test_layers_of_other_shapes_are_skipped_by_name():
    taken = take_over(tiny_settings(), tiny_settings(channels=32, classes=OTHERS))
    assert {"tum1_down1_conv", *CLASSIFIER} <= set(taken.anew)
    assert "stem_conv" in taken.whole
    assert not taken.partly


@pytest.mark.parametrize(("anchors", "scores"), [("square", "sigmoid"), ("official", "sigmoid"), ("square", "softmax")])
def test_classes_that_both_runs_have_keep_their_scores(anchors, scores):
    """One that the old run lacks begins at the prior, beside two in another order, one of them known by its name."""
    old_classes = DetectionClass("/m/b", "Bee"), DetectionClass("/m/a", "Ant"), DetectionClass("/m/c", "Cat")
    new_classes = DetectionClass("/m/a", "Ant"), DetectionClass("/m/z", "Zebra"), DetectionClass("x", "cat")
    old, new = (tiny_settings(classes=c, anchors=anchors, scores=scores) for c in (old_classes, new_classes))
    keras.utils.set_random_seed(1)
    source, target = build_network(old), build_network(new)
    rng = np.random.default_rng(0)
    for layer in CLASSIFIER:
        for weight in source.get_layer(layer).weights:
            weight.assign(rng.normal(0, 1, weight.shape))
    taken = take_over_weights(source, old, target, new)
    assert taken.classes == ((0, 1), (2, 2))
    before, after = (np.asarray(network(pictures(2))["classes"]) for network in (source, target))
    if scores == "softmax":
        np.testing.assert_allclose(after[..., 0], before[..., 0], rtol=1e-4, atol=1e-5)  # the background
        before, after = before[..., 1:], after[..., 1:]
    np.testing.assert_allclose(after[..., [0, 2]], before[..., [1, 2]], rtol=1e-4, atol=1e-5)
    assert np.abs(before[..., 1] - before[..., 2]).mean() > 0.1
    assert before[..., [1, 2]].min() > -3 > after[..., 1].max()  # the new class begins at its prior


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        ("a:Ant b:Bee", "b:Bee a:Ant", ((0, 1), (1, 0))),
        ("a:Ant b:Bee", "x:BEE y:wasp", ((0, 1),)),
        ("a:Ant b:Ant", "x:Ant", ()),  # which of them?
        ("a:Ant", "x:ant y:Ant", ()),
        ("a:Ant b:Ant", "b:Ant", ((0, 1),)),  # the label says it
        ("a:Ant b:Bee", "b:Ant", ((0, 1),)),  # before the name
        ("a:Ant", "b:Bee", ()),
    ],
)
def test_classes_are_the_same_by_label_or_by_a_name_that_is_clear(old, new, pairs):
    old, new = ([DetectionClass(*entry.split(":")) for entry in text.split()] for text in (old, new))
    assert same_classes(old, new) == pairs


def test_what_is_taken_over_is_told_in_a_sentence():
    taken = TakenOver(("a", "b"), tuple(f"layer{number}" for number in range(14)), ("classes1",), ((0, 1),))
    assert str(taken).startswith("2 layers taken over, 14 begin anew: layer0, ")
    assert str(taken).endswith("layer11 and 2 more; classes1 taken over for the 1 classes that both runs have")


def test_a_converted_checkpoint_keeps_the_scores_of_the_classes_that_it_knows():
    anchors = {"anchors": retinanet_anchors(96, 5, "official"), "image_size": 96}
    new = tiny_settings(**CONVERTED, **anchors)  # Apple and Pear, green
    classes = (*OTHERS, DetectionClass("/m/apple", "Apple"))
    old = tiny_settings(**CONVERTED, image_size=None, anchors=None, classes=classes)
    with pytest.MonkeyPatch.context() as patch:
        tiny_blocks(patch)
        source, target = build_network(old), build_network(new)
    rng = np.random.default_rng(0)
    for layer in all_layers(source):
        layer.set_weights([np.abs(rng.normal(0, 0.1, array.shape)) for array in layer.get_weights()])
    taken = take_over_weights(source, old, target, new)
    assert (taken.anew, taken.partly, taken.classes) == ((), ("classes_output",), ((0, 3),))
    before, after = (network(pictures(1, 96, 96)) for network in (source, target))
    np.testing.assert_allclose(after["classes"][..., 0], before["classes"][..., 3], rtol=1e-4)
    np.testing.assert_allclose(after["boxes"], before["boxes"], rtol=1e-4)


def test_box_outputs_mean_the_same_with_the_same_anchors_and_deltas():
    assert same_boxes(tiny_settings(), tiny_settings(classes=OTHERS))
    assert not same_boxes(tiny_settings(), tiny_settings(anchors="official"))
    sizes = (tiny_settings(**CONVERTED, image_size=side, anchors="official") for side in (96, 160))
    assert same_boxes(*sizes)
