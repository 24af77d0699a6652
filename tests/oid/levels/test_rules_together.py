"""Proves the rules of a01 all together against a slow reference, on random rows and on real ones; and that the regions
silence the same classes as one row for each class below a coarse box would."""

import csv
import functools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from a01_create_training_files import main
from oid import paths
from oid.annotations import read_class_descriptions
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.images.find import ImageList
from oid.levels import rows as annotation_rows
from oid.levels import write as level_files
from tests.helpers.project import shared
from tests.helpers.small_open_images import CLASSES, LEFT, RIGHT, TREE, Result, box, make_data_set
from training.data_set import read_classes, read_data_set


def reference(rows, labels, kept, level_classes, hierarchy):
    """(boxes, regions, image labels, negatives, silenced) as sets, straight from the rules, one row at a time.

    Silenced are (image, class, rectangle) that must give no gradient: every class below a coarse box by itself.
    """

    level = set(level_classes)

    @functools.cache
    def selves(label):
        return {label, *hierarchy.ancestors(label)} & level

    @functools.cache
    def below(label):
        return set(hierarchy.descendants(label)) & level

    rectangles = {}
    for image, label, rectangle, _ in rows:
        rectangles.setdefault((image, rectangle), set()).add(label)
    boxes, regions, coarse, silenced = set(), {}, set(), set()
    order = ("group_of", "excluded_class")
    for image, label, rectangle, group in rows:
        if label in kept and not group:
            boxes |= {(image, name, *rectangle) for name in selves(label)}
        else:
            for name in selves(label):
                regions.setdefault((image, name, *rectangle), set()).add("group_of" if label in kept else order[1])
        described = any(label in hierarchy.ancestors(other) for other in rectangles[image, rectangle])
        if below(label) and not described:
            coarse.add((image, label, *rectangle, "ancestor_class"))
            silenced |= {(image, name, *rectangle) for name in below(label)}
    silenced |= set(regions)
    regions = {(*place, min(reasons, key=order.index)) for place, reasons in regions.items()} | coarse
    verified = {}
    for image, label, positive in labels:
        names = selves(label) if positive else below(label) | ({label} & level)
        for name in names:
            verified[image, name] = max(positive, verified.get((image, name), 0))
    shown = {row[0] for row in boxes | regions}
    negatives = {image for image, _ in verified} - shown
    verified = {(*place, str(positive)) for place, positive in verified.items()}
    return boxes, regions, verified, negatives, silenced


def read_silenced(data_set, output, level) -> set[tuple]:
    """(image, class, rectangle) that a training leaves without gradient, by its own reading of the files."""
    labels, made = list(read_classes(output, level)), Result(output, level)
    rows = made.regions
    ids = dict.fromkeys(row[0] for row in rows)
    with pytest.MonkeyPatch.context() as patch:  # there are no pictures
        files = ImageList("", sorted({f"{row[0]}.jpg" for row in [*made.boxes, *rows]}), [])
        patch.setattr("training.data_set.list_images", lambda folder: files)
        data = read_data_set(data_set, output, level, "train")
    assert data.region_classes.shape[1] == len(labels)
    assert len(data.regions.labels) == len(rows)
    by_image = {image: [row for row in rows if row[0] == image] for image in ids}
    silenced = set()
    for number, image in enumerate(data.image_ids):
        for label, row in zip(data.regions.of(number)[1], by_image.get(image, []), strict=True):
            meant = np.flatnonzero(data.region_classes[label])
            silenced |= {(image, labels[k], *row[2:6]) for k in meant}
    return silenced


some_rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(CLASSES), st.sampled_from([LEFT, RIGHT]), st.booleans()),
    min_size=1,
    max_size=12,
)
some_labels = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(CLASSES), st.sampled_from([0, 1])), max_size=8
)


def run(folder, rows, level, kept=CLASSES, labels=None, tree=TREE) -> Result:
    """Makes DATASET in `folder / "data"`, and the files of a level in `folder / "out"`."""
    text = [box(image, label, rectangle, str(int(group))) for image, label, rectangle, group in rows]
    challenge = [label for label in CLASSES if label in kept]
    data_set = make_data_set(folder / "data", text, None, labels, challenge=challenge)
    (data_set / "annotations" / paths.HIERARCHY).write_text(json.dumps(tree))
    main(dataset_path=str(data_set), output_path=str(folder / "out"), levels=(level,), min_boxes=0)
    return Result(folder / "out", level)


def check(folder, level: str, result: Result, expected: tuple) -> None:
    """Compares a level, and what a training leaves without gradient, with `reference`."""
    found = (
        [(row[0], row[2], *row[4:8]) for row in result.boxes],
        result.regions,
        result.image_labels,
        [row[0] for row in result.negatives],
    )
    for rows_found, rows_expected in zip(found, expected[:4], strict=True):
        assert set(rows_found) == rows_expected
        assert len(rows_found) == len(rows_expected)  # nothing twice
    used = {row[0] for row in (*result.boxes, *result.regions, *result.negatives)}
    assert {line for line in result.image_ids if line.startswith("train/")} == {f"train/{image}" for image in used}
    assert read_silenced(folder / "data", folder / "out", level) == expected[-1]


some_classes, some_levels = st.sets(st.sampled_from(CLASSES), min_size=1), st.sampled_from(["1", "all"])


@settings(max_examples=20, deadline=None)
@given(some_rows, some_labels, some_classes, some_levels, st.sampled_from([1, 3, 100]))
def test_against_the_rules_row_by_row(tmp_path_factory, rows, labels, kept, level, batch):
    folder = tmp_path_factory.mktemp("case")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_rows, "BLOCK", batch)
        patch.setattr(level_files, "IMAGES", batch)
        result = run(folder, rows, level, kept, labels)
    contracted = Hierarchy(TREE).contract(kept)
    expected = [label for label in CLASSES if label in kept and (level == "all" or contracted.height(label) == 1)]
    assert list(result.classes) == expected
    check(folder, level, result, reference(rows, labels, kept, expected, Hierarchy(TREE)))


@st.composite
def trees(draw) -> dict:
    """Any hierarchy of CLASSES, in which classes may be at a second place, without the classes below them."""
    root = {"LabelName": "entity", "Subcategory": []}
    nodes = [root]
    for label in draw(st.permutations(CLASSES)):
        node = {"LabelName": label, "Subcategory": []}
        draw(st.sampled_from(nodes))["Subcategory"].append(node)
        if len(nodes) > 1 and draw(st.booleans()):
            draw(st.sampled_from(nodes[1:]))["Subcategory"].append({"LabelName": label})
        nodes.append(node)
    return root


@settings(max_examples=20, deadline=None)
@given(trees(), some_rows, some_classes, some_levels)
def test_under_any_hierarchy_the_regions_silence_what_a_row_for_each_class_would(
    tmp_path_factory, tree, rows, kept, level
):
    folder = tmp_path_factory.mktemp("case")
    result = run(folder, rows, level, kept, [], tree)
    check(folder, level, result, reference(rows, [], kept, list(result.classes), Hierarchy(tree)))


@settings(max_examples=10, deadline=None)
@given(some_rows, st.sampled_from(["1", "2", "all"]))
def test_a_source_that_is_expanded_already_gives_the_same(tmp_path_factory, rows, level):
    above = Hierarchy(TREE).ancestors
    expanded = [(image, name, *rest) for image, label, *rest in rows for name in (label, *above(label))]
    first, second = (run(tmp_path_factory.mktemp("case"), case, level) for case in (rows, expanded))
    assert (first.boxes, first.regions) == (second.boxes, second.regions)


# === Real rows =======================================================================================================
@pytest.mark.parametrize("level", ["1", "2", "all"])
def test_real_boxes_under_the_real_hierarchy(tmp_path, level):
    """The coordinates, groups and repetitions of real rows, their six classes taken for others that are related."""
    source = shared("data", "oid_rows", "six_classes") / "train-annotations-bbox.csv"
    path = shared("data", "oid_metadata", paths.HIERARCHY)
    names = read_class_descriptions(shared("data", "oid_metadata", paths.CLASS_DESCRIPTIONS))
    label_of = {name: label for label, name in names.items()}
    taken = ("Helmet", "Tomato", "Fruit", "Clothing", "Bicycle helmet", "Vegetable")  # Helmet and Tomato: two parents
    with open(source, newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)][1::4]
    others = dict(zip(sorted({row[2] for row in rows}), (label_of[name] for name in taken), strict=True))
    rows = [(*row[:2], others[row[2]], *row[3:]) for row in rows]
    rows += [(*row[:2], label_of["Food"], *row[3:]) for row in rows[::50]]  # child and ancestor both annotated
    labels = [(row[0], row[2], str(number % 2)) for number, row in enumerate(rows[::7])]
    labels += [(f"unboxed {number}", label_of[name], "0") for number, name in enumerate(taken)]
    kept = [label for label in names if label != label_of["Fruit"]]  # an excluded class between
    data_set = make_data_set(tmp_path / "data", rows, None, labels, challenge=kept, classes=names)
    shutil.copy(path, data_set / "annotations" / paths.HIERARCHY)
    main(dataset_path=str(data_set), output_path=str(tmp_path / "out"), levels=(level,), min_boxes=0)
    result = Result(tmp_path / "out", level)
    hierarchy = read_hierarchy(path)
    contracted = hierarchy.contract(kept)
    heights = {label: str(contracted.height(label)) if label in contracted else "1" for label in kept}
    assert list(result.classes) == [label for label in kept if level in (heights[label], "all")]
    plain = [(row[0], row[2], row[4:8], row[10] == "1") for row in rows]
    verified = [(image, label, int(confidence)) for image, label, confidence in labels]
    found = reference(plain, verified, set(kept), list(result.classes), hierarchy)
    check(tmp_path, level, result, found)
    assert len(result.boxes) > 1000
    assert len(result.regions) > 1000
