"""What a training chooses where an option is open, and that it says why."""

import functools
import json
import os

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backbones import BACKBONES, all_layers, build_backbone
from models.heads import default_head
from models.run_settings import DetectionClass, RunSettings
from oid.anchors.grids import grids_of_sizes, m2det_anchors, retinanet_anchors, smallest_image
from tests.helpers.project import refused
from tests.helpers.tiny_network import tiny_settings
from tests.training.test_options import with_options
from training import choose
from training.choose import LARGE, SIZES, SMALL, Facts, choose_run
from training.options import recipe_of

GIVEN = {"backbone": "resnet50", "image_size": 256, "tums": 3, "scales": 2, "channels": 48}
GIVEN |= {"batch_size": 5, "learning_rate": 0.123, "precision": "float32"}
CPU, GPU = Facts(500, False, 4), Facts(20_000, True, 4)


def chosen(facts: Facts = CPU, source: RunSettings | None = None, classes: int = 3, **fields: object):
    """The run, its training and the reasons for the default options with `fields`."""
    options = with_options(**fields)
    names = tuple(DetectionClass(f"/m/{number}", str(number)) for number in range(classes))
    return choose_run(options, recipe_of(options), names, facts, source)


def sizes(network) -> dict[str, object]:
    return {name: getattr(network, name) for name in SIZES}


# === Network ===
@pytest.mark.parametrize(
    ("images", "accelerator", "weights", "network", "batch_size"),
    [
        (500, False, "none", SMALL, 8),
        (1_700_000, False, "none", SMALL, 8),  # a processor would need years for the paper's
        (9_999, True, "none", SMALL, 32),
        (10_000, True, "imagenet", LARGE["m2det"], 32),
    ],
)
def test_open_options_follow_from_images_and_machine(images, accelerator, weights, network, batch_size):
    run, training, reasons = chosen(Facts(images, accelerator, 4), backbone_weights=weights)
    assert sizes(run.network) == sizes(network)
    assert training.batch_size == batch_size
    machine = "an accelerator" if accelerator else "4 CPU cores"
    kind = "a small network" if network is SMALL else "the paper's network"
    assert reasons[0].startswith(f"{kind} (backbone {network.backbone}, image_size ")
    assert reasons[0].endswith(f"for {images} images on {machine}")
    assert f"batches of {batch_size} on {machine}" in reasons
    assert len(reasons) == 5


@pytest.mark.parametrize("detector", ["m2det", "retinanet"])
@pytest.mark.parametrize("weights", ["none", "imagenet"])
@pytest.mark.parametrize("facts", [CPU, GPU], ids=["small", "large"])
def test_an_open_backbone_can_begin_with_the_weights_that_are_asked_for(detector, weights, facts):
    """A backbone has ImageNet weights, or else batch norm, without which random weights hardly learn."""
    run, _, reasons = chosen(facts, detector=detector, backbone_weights=weights)
    name, usual = run.network.backbone, (LARGE[detector] if facts is GPU else SMALL).backbone
    assert sum(reason.startswith(f"backbone {name}, because ") for reason in reasons) == (name != usual)
    assert BACKBONES[name].pretrained if weights == "imagenet" else has_batch_norm(name)
    assert (run.network.tums is None) == (run.network.variant is None) == (detector == "retinanet")


@functools.cache
def has_batch_norm(backbone: str) -> bool:
    return any(isinstance(layer, keras.layers.BatchNormalization) for layer in all_layers(build_backbone(backbone, 64)))


def test_a_file_of_weights_needs_its_backbone():
    with refused("file.h5 needs a backbone: name the one whose weights they are"):
        chosen(backbone_weights="file.h5")
    assert chosen(backbone_weights="file.h5", backbone="vgg16")[0].network.backbone == "vgg16"


@given(
    names=st.sets(st.sampled_from(sorted(GIVEN))),
    images=st.integers(1, 2_000_000),
    accelerator=st.booleans(),
    weights=st.sampled_from(["none", "imagenet"]),
)
def test_given_options_are_never_overridden(names, images, accelerator, weights):
    fields = {name: GIVEN[name] for name in names}
    run, training, reasons = chosen(Facts(images, accelerator, 4), backbone_weights=weights, **fields)
    found = sizes(run.network) | vars(training)
    assert {name: found[name] for name in names} == fields
    assert not any(f"{name} {fields[name]}" in reason for name in names for reason in reasons)
    if len(names) == len(GIVEN):
        assert reasons == ["anchors per cell: 1, because the assignment finds the size"]


@given(image_size=st.integers(smallest_image(1), 900), facts=st.sampled_from([CPU, GPU]))
def test_open_scales_fit_the_image_that_was_given(image_size, facts):
    scales = chosen(facts, image_size=image_size)[0].network.scales
    assert smallest_image(scales) <= image_size
    assert scales == (LARGE["m2det"] if facts is GPU else SMALL).scales or smallest_image(scales + 1) > image_size


@pytest.mark.parametrize(
    ("fields", "classes", "head"),
    [
        ({}, 3, "light"),
        ({}, 101, "shared"),
        ({"channels": 64}, 3, "conv"),  # who chooses the network gets the published head
        ({"variant": "released"}, 3, "conv"),
        ({"detector": "retinanet"}, 3, "light"),
        ({"detector": "retinanet", "channels": 64}, 3, "shared"),
        ({"head": "conv"}, 101, "conv"),
    ],
)
def test_the_small_network_has_the_light_head(fields, classes, head):
    assert chosen(classes=classes, **fields)[0].network.head == head
    assert default_head(classes) == ("shared" if classes > choose.MANY_CLASSES else "conv")


# === Steps ===
@pytest.mark.parametrize(
    "fields", [{}, {"backbone_weights": "imagenet"}, {"backbone_weights": "x", "backbone": "vgg16"}]
)
@pytest.mark.parametrize(("recipe", "optimizer", "rate"), [("own", "adamw", 2e-3), ("published", "sgd", 2e-2)])
def test_weights_that_have_learned_are_changed_less(fields, recipe, optimizer, rate):
    rate, why = (rate / 10, "have learned already") if fields else (rate, "begin at random")
    _, training, reasons = chosen(recipe=recipe, **fields)
    assert training.learning_rate == pytest.approx(rate)
    assert f"learning rate {rate:g} for {optimizer}, because the weights {why}" in reasons


@pytest.mark.parametrize(("has_it", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_the_precision_is_what_the_machine_is_fast_in(has_it, precision):
    _, training, reasons = chosen(Facts(500, False, 4, bfloat16=has_it))
    assert training.precision == precision
    assert sum(f"precision {precision}, because this machine has" in reason for reason in reasons) == 1
    assert choose.processor_has_bfloat16() in (True, False)


def test_batches_can_be_shared_by_the_devices():
    assert chosen(Facts(500, False, 4, devices=3))[1].batch_size == 9


# === Recipes and anchors ===
@pytest.mark.parametrize(
    ("fields", "deltas", "scores", "resize", "per_cell"),
    [
        ({}, "distances", "sigmoid", "letterbox", 1),
        ({"recipe": "published"}, "ssd", "softmax", "warp", 6),
        ({"recipe": "published", "detector": "retinanet"}, "corners", "sigmoid", "warp", 9),
        ({"recipe": "published", "anchors": "square"}, "ssd", "softmax", "warp", 1),
        ({"detector": "retinanet", "anchors": "official"}, "distances", "sigmoid", "letterbox", 9),
    ],
)
def test_outputs_mean_what_the_recipe_trains(fields, deltas, scores, resize, per_cell):
    run, training, _ = chosen(**fields)
    assert (run.box_deltas, run.scores, run.inputs.resize, run.anchors.per_cell) == (deltas, scores, resize, per_cell)
    assert run.num_outputs == 3 + (scores == "softmax")
    assert training.recipe == recipe_of(training.options)


def test_anchors_of_a_file_are_for_the_images_that_they_were_made_for(tmp_path):
    pairs = [[[0.1, 0.2], [0.2, 0.1]], [[0.5, 0.4], [0.4, 0.6]]]
    file = tmp_path / "anchors.json"
    file.write_text(json.dumps({"sizes": pairs, "resize": "letterbox"}))
    fields = {"anchors": str(file), "scales": 2}
    run, _, reasons = chosen(**fields)
    assert run.anchors.sizes == tuple(tuple(map(tuple, level)) for level in pairs)
    assert f"anchors per cell: 2, from {file}" in reasons
    with refused("holds anchors for the resizing 'letterbox', but this training has 'warp': make the file again"):
        chosen(recipe="published", **fields)
    with refused("has sizes for 2 maps, not for 3: take 2 scales"):
        chosen(**fields | {"scales": 3})


# === A run whose weights are taken over ===
OTHER = tiny_settings(backbone="mobilenet_v2_0.35", image_size=128, tums=3, channels=32, head="shared")
OFFICIAL = tiny_settings(image_size=128, scales=5, anchors=m2det_anchors(128, 5, "official"))
RETINANET = tiny_settings(detector="retinanet", backbone="vgg16", image_size=160, scales=4, anchors="official")
OWN_SIZES = (((0.1, 0.2),), ((0.3, 0.2),), ((0.5, 0.5),))
SOURCES = {
    "m2det": OTHER,
    "released": tiny_settings(variant="released", anchors="official"),
    "retinanet": RETINANET,
    "own anchors": tiny_settings(anchors=grids_of_sizes(OWN_SIZES, [8, 4, 2])),
}


@pytest.mark.parametrize("name", SOURCES)
def test_open_options_of_the_network_are_as_in_the_source(name):
    source = SOURCES[name]
    run, _, reasons = chosen(source=source, init_from="there", detector=source.network.detector)
    assert run.network == source.network
    assert run.anchors == source.anchors
    assert reasons[0].startswith(f"backbone {source.network.backbone}, image_size {source.network.image_size}, ")
    assert reasons[0].endswith(", because the weights of there are for these")


@pytest.mark.parametrize(
    "given_fields",
    [{"backbone": "vgg16"}, {"channels": 64, "tums": 1}, {"head": "light", "variant": "released"}, {"scales": 2}],
    ids=str,
)
def test_given_options_of_the_network_win_over_the_source(given_fields):
    run, _, reasons = chosen(source=OTHER, init_from="there", **given_fields)
    found = vars(run.network)
    assert found == vars(OTHER.network) | given_fields
    assert not any(f"{name} " in reasons[0].split(", because")[0].split(", ") for name in given_fields)


def test_another_size_keeps_the_set_of_anchors_and_the_maps_that_fit():
    run, _, _ = chosen(source=OFFICIAL, init_from="there", image_size=64)
    assert (run.network.scales, run.anchors) == (4, m2det_anchors(64, 4, "official"))
    own = SOURCES["own anchors"]
    assert chosen(source=own, init_from="there", image_size=96)[0].anchors == grids_of_sizes(OWN_SIZES, [12, 6, 3])
    assert chosen(source=own, init_from="there", scales=2)[0].anchors == m2det_anchors(64, 2)  # sizes are for 3 maps


def test_a_source_of_the_other_detector_gives_its_backbone_and_its_size():
    run, _, reasons = chosen(source=RETINANET, init_from="there")
    assert reasons[1] == "backbone vgg16, image_size 160, because the weights of there are for these"
    assert (run.network.tums, run.network.channels, run.network.variant) == (2, 64, "paper")
    assert run.anchors == m2det_anchors(160, run.network.scales)


def test_pixels_are_prepared_as_the_weights_of_the_source_expect():
    source = tiny_settings(normalisation="ssd", backbone="vgg16")
    for detector in ("m2det", "retinanet"):
        assert chosen(source=source, init_from="x", detector=detector)[0].network.normalisation == "ssd"
    assert chosen(source=source, init_from="x", backbone="vgg19")[0].network.normalisation is None


CONVERTED = tiny_settings(
    detector="keras_retinanet",
    backbone="resnet50",
    image_size=None,
    scales=5,
    channels=256,
    head="shared",
    normalisation="caffe",
    padding="valid",
    clip="side",
    resize="sides",
    anchors=None,
    box_deltas="corners",
)


def test_a_converted_checkpoint_decides_everything_unless_a_backbone_is_asked_for():
    run, _, reasons = chosen(source=CONVERTED, init_from="there", detector="retinanet")
    assert vars(run.network) == vars(CONVERTED.network) | {"image_size": 512}
    assert (run.box_deltas, run.anchors) == ("corners", retinanet_anchors(512, 5, "official"))
    assert reasons[0] == "keras_retinanet on resnet50, because the weights of there are for it"
    run, *_ = chosen(source=CONVERTED, init_from="there", detector="retinanet", backbone="vgg16")
    assert (run.network.detector, run.network.backbone) == ("retinanet", "vgg16")
    assert chosen(source=CONVERTED, init_from="there")[0].network.backbone == SMALL.backbone
    for name, value in (("channels", 64), ("scales", 4), ("head", "light"), ("anchors", "mine.json")):
        with refused(f"{name} {value} would change the network of there: leave it out"):
            chosen(source=CONVERTED, init_from="there", detector="retinanet", **{name: value})


# === Machine ===
THREADS = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"


@pytest.mark.parametrize(
    ("before", "channels", "cores", "expected"),
    [
        ({}, None, 2, ("1", "2")),
        ({}, 64, 4, ("1", "4")),
        ({}, 64, 8, (None, None)),
        ({}, 128, 2, (None, None)),
        (dict(zip(THREADS, ("3", "5"), strict=True)), None, 2, ("3", "5")),  # the user's own stay
    ],
)
def test_few_cores_are_shared_by_the_layers_of_a_thin_network(monkeypatch, before, channels, cores, expected):
    for name in THREADS:
        monkeypatch.setenv(name, before.get(name, ""))  # monkeypatch restores what is set below
        if name not in before:
            monkeypatch.delenv(name)
    choose.share_few_cores(channels, cores)
    assert tuple(os.environ.get(name) for name in THREADS) == expected
