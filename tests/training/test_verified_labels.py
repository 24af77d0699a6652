"""Ancestors, coarse classes and which label rules are in force."""

from types import SimpleNamespace

import numpy as np
import pytest

from oid import paths
from tests.helpers.project import refused
from tests.helpers.small_open_images import make_data_set
from training.verified_labels import ancestor_matrix, coarse_classes, rules_in_force


@pytest.fixture
def data_set(tmp_path):
    return make_data_set(tmp_path, [])


def test_ancestors_of_a_small_hierarchy(data_set):
    labels = ["wheel", "tomato", "food", "unknown", "apple", "vegetable", "car", "fruit"]
    matrix = ancestor_matrix(data_set, labels)
    assert matrix.dtype == np.float32
    above = {"tomato": {"food", "vegetable", "fruit"}, "apple": {"food", "fruit"}}
    above |= {"vegetable": {"food"}, "fruit": {"food"}}
    expected = [[float(other in above.get(label, ())) for other in labels] for label in labels]
    assert matrix.tolist() == expected


@pytest.mark.parametrize("labels", [["apple", "carrot", "car"], ["unknown"], ["food"]])
def test_unrelated_classes_have_no_ancestor_matrix(data_set, labels):
    assert ancestor_matrix(data_set, labels) is None


def test_without_a_hierarchy_there_are_no_relations(tmp_path):
    assert ancestor_matrix(tmp_path, ["apple", "fruit"]) is None
    assert coarse_classes(tmp_path, ["apple", "fruit"]) is None


def test_a_damaged_hierarchy_is_named(data_set):
    paths.annotation_file(data_set, paths.HIERARCHY).write_text("{")
    with refused(paths.HIERARCHY):
        ancestor_matrix(data_set, ["apple"])


def test_the_coarse_classes_of_a_level_and_what_is_below_them(data_set):
    coarse = coarse_classes(data_set, ["wheel", "tomato", "apple", "car"])
    assert coarse.labels == ("food", "fruit", "vegetable")  # the hierarchy's order
    assert coarse.names == ("food, all", "fruit, all", "vegetable, all")
    assert coarse.below.dtype == np.float32
    assert coarse.below.tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0]]
    coarse = coarse_classes(data_set, ["fruit", "food", "unknown"])
    assert (coarse.labels, coarse.below.tolist()) == (("food",), [[1, 0, 0]])
    paths.annotation_file(data_set, paths.CLASS_DESCRIPTIONS).write_text("fruit,Fruit\n")
    assert coarse_classes(data_set, ["apple"]).names == ("food", "Fruit")


@pytest.mark.parametrize(
    ("asked", "labels", "image_labels", "said", "regions"),
    [
        (("verified", "ancestors", "regions"), ["apple", "fruit"], True, "verified, ancestors, regions", "all"),
        (("verified", "ancestors", "regions"), ["apple", "carrot"], True, "verified, regions", "all"),
        (("verified", "ancestors"), ["apple", "fruit"], False, "ancestors", "none"),
        (("ancestors",), ["apple", "carrot"], True, "none", "none"),
        ((), ["apple", "fruit"], True, "none", "none"),
        (("depictions",), ["apple", "fruit"], True, "depictions", "depictions"),
        (("depictions", "regions"), ["apple", "fruit"], True, "depictions, regions", "all"),
    ],
)
def test_rules_in_force_are_those_that_the_data_can_follow(data_set, asked, labels, image_labels, said, regions):
    meant = np.eye(2, dtype="float32")
    data = SimpleNamespace(verified=[(0, 0)] * image_labels, region_classes=meant)
    rules, (first, *reasons) = rules_in_force(asked, data_set, labels, data)
    assert first == f"label rules: {said}"
    assert (rules.verified, rules.ancestors is not None) == tuple(rule in said for rule in ("verified", "ancestors"))
    assert rules.regions == regions
    assert rules.region_classes is (None if regions == "none" else meant)
    assert len(reasons) == len(set(asked) & {"verified", "ancestors"} - set(said.split(", ")))
