"""Proves a05: every label gets its ancestors, once each; suppression where boxes were gained; nothing else moves."""

import json

import numpy as np
import pytest

import a05_expand_hierarchy as a05
from oid import paths
from oid.boxes.suppression import iou_matrix
from oid.files import InputError
from oid.hierarchy import read_hierarchy
from oid.predictions.files import read_predictions
from tests.helpers.project import run_script, shared

# Food over Fruit over Apple and Banana; Fruit is below Plant, too.
FRUIT = {"LabelName": "Fruit", "Subcategory": [{"LabelName": "Apple"}, {"LabelName": "Banana"}]}
TREE = {
    "LabelName": "Entity",
    "Subcategory": [
        {"LabelName": "Food", "Subcategory": [FRUIT, {"LabelName": "Bread"}]},
        {"LabelName": "Plant", "Subcategory": [FRUIT]},
        {"LabelName": "Car", "Part": [{"LabelName": "Wheel"}]},
    ],
}
CLASSES = ("Food", "Fruit", "Apple", "Banana", "Bread", "Plant", "Car", "Wheel")
A, B = "0.100000 0.100000 0.300000 0.300000", "0.600000 0.600000 0.900000 0.900000"


@pytest.fixture
def expand(tmp_path):
    """Calls a05 on rows {image: prediction string} and returns {image: [its boxes as text]}."""

    def call(rows, classes=CLASSES, **options):
        arguments = files(tmp_path, rows, classes)
        a05.main(**arguments, **options)
        result = {}
        for line in (tmp_path / "out.csv").read_text().splitlines()[1:]:
            image_id, _, text = line.partition(",")
            tokens = text.split()
            result[image_id] = [" ".join(tokens[first : first + 6]) for first in range(0, len(tokens), 6)]
        return result

    return call


def files(folder, rows, classes=CLASSES):
    """Writes a05's inputs and returns the flags that name them."""
    text = "ImageId,PredictionString\n" + "".join(f"{image_id},{boxes}\n" for image_id, boxes in rows.items())
    (folder / "in.csv").write_text(text)
    (folder / "tree.json").write_text(json.dumps(TREE))
    (folder / "classes.csv").write_text("".join(f"{label},{label.lower()}\n" for label in classes))
    names = {"predictions": "in.csv", "expanded": "out.csv", "hierarchy": "tree.json"}
    return {flag: str(folder / name) for flag, name in (names | {"class_descriptions": "classes.csv"}).items()}


def test_a_leaf_gets_all_ancestors_once_and_never_the_root(expand):
    result = expand({"i": f"Apple 0.25 {A}"})
    assert result == {"i": [f"{label} 0.25 {A}" for label in ("Apple", "Fruit", "Food", "Plant")]}


def test_an_inner_class_gets_its_ancestors_too(expand):
    result = expand({"i": f"Fruit 0.25 {A} Plant 0.5 {B}"})
    assert result == {"i": [f"Fruit 0.25 {A}", f"Plant 0.5 {B}", f"Food 0.25 {A}", f"Plant 0.25 {A}"]}


def test_boxes_of_several_descendants_meet_in_the_ancestor(expand):
    """Apple and Banana at the same place: two boxes of Fruit with IoU 1, the better one stays."""
    result = expand({"i": f"Apple 0.25 {A} Banana 0.5 {A}"})["i"]
    assert result[:2] == [f"Apple 0.25 {A}", f"Banana 0.5 {A}"]
    assert sorted(result[2:]) == [f"Food 0.5 {A}", f"Fruit 0.5 {A}", f"Plant 0.5 {A}"]


def test_boxes_that_were_there_take_part_in_suppression(expand):
    better_old = expand({"i": f"Fruit 0.9 {A} Apple 0.5 {A}"})["i"]
    assert [box for box in better_old if box.startswith("Fruit")] == [f"Fruit 0.9 {A}"]
    worse_old = expand({"i": f"Fruit 0.1 {A} Apple 0.5 {A}"})["i"]
    assert [box for box in worse_old if box.startswith("Fruit")] == [f"Fruit 0.5 {A}"]
    equal = expand({"i": f"Apple 0.5 {A} Fruit 0.5 {A} Banana 0.2 {B}"})["i"]
    assert equal[1] == f"Fruit 0.5 {A}"  # of equal scores the box that was there stays, at its place


def test_classes_that_gained_nothing_are_left_as_they_are(expand):
    """Two equal boxes of Apple, and of Car, stay; so does their order, which is not that of the scores."""
    boxes = [f"Apple 0.2 {A}", f"Car 0.1 {A}", f"Apple 0.3 {A}", f"Car 0.4 {A}"]
    result = expand({"i": " ".join(boxes)})["i"]
    assert result[:4] == boxes
    assert sorted(result[4:]) == [f"Food 0.3 {A}", f"Fruit 0.3 {A}", f"Plant 0.3 {A}"]


def test_what_an_image_gains_does_not_touch_another_image(expand):
    doubled = f"Fruit 0.9 {A} Fruit 0.8 {A}"
    result = expand({"i": f"Apple 0.5 {B}", "j": doubled})
    assert result["j"][:2] == [f"Fruit 0.9 {A}", f"Fruit 0.8 {A}"]
    assert result["j"][2:] == [f"Food 0.9 {A}", f"Plant 0.9 {A}"]


def test_only_new_writes_the_added_boxes_that_survive_against_the_old_ones(expand):
    result = expand({"i": f"Fruit 0.9 {A} Apple 0.5 {A} Apple 0.4 {B}", "j": "", "k": f"Car 0.5 {A}"}, only_new=True)
    of_b = [f"{label} 0.4 {B}" for label in ("Fruit", "Food", "Plant")]
    assert result == {"i": [f"Food 0.9 {A}", f"Plant 0.9 {A}", *of_b], "j": [], "k": []}


def test_only_described_classes_are_written_and_the_rest_is_counted(expand, capsys):
    """A box of a class that does not count still is a box of its ancestors, also over an ancestor that does not."""
    result = expand({"i": f"Apple 0.25 {A} Apple 0.5 {B} Wheel 0.5 {A}"}, classes=("Food", "Car"))
    assert result == {"i": [f"Food 0.25 {A}", f"Food 0.5 {B}"]}
    output = capsys.readouterr().out
    assert "3 boxes dropped, their label is not in the class descriptions" in output
    assert "Apple 2, Wheel 1" in output


def test_labels_outside_of_the_hierarchy_stay_without_ancestors(expand, capsys):
    """Wheel is only a `Part` there, and the root is no class of it."""
    boxes = [f"Wheel 0.5 {A}", f"Entity 0.4 {A}", f"Kiwi 0.3 {A}"]
    assert expand({"i": " ".join(boxes)}, classes=(*CLASSES, "Entity", "Kiwi")) == {"i": boxes}
    assert "3 boxes without ancestors, their label is not in the hierarchy: Wheel 1" in capsys.readouterr().out


def test_every_image_keeps_its_row_in_its_order(expand):
    rows = {"b": "", "007": f"Apple 0.5 {A}", "a": "", "1e5": ""}
    assert list(expand(rows)) == ["b", "007", "a", "1e5"]


def test_ancestor_boxes_that_hardly_overlap_all_stay(expand):
    """IoU at most 0.2; suppression that adds one pixel to boxes in [0, 1] would take most of them for duplicates."""
    corners = [(0.0, 0.0), (0.07, 0.0), (0.0, 0.07), (0.07, 0.07)]
    boxes = [f"{x:.6f} {y:.6f} {x + 0.1:.6f} {y + 0.1:.6f}" for x, y in corners]
    result = expand({"i": " ".join(f"Apple 0.{9 - k} {box}" for k, box in enumerate(boxes))})["i"]
    for label in ("Fruit", "Food", "Plant"):
        assert [box for box in result if box.startswith(label)] == [f"{label} 0.{9 - k} {boxes[k]}" for k in range(4)]


def test_suppression_is_by_the_given_iou_and_off_at_1(expand):
    half = "0.100000 0.100000 0.300000 0.200000"  # IoU 0.5 with A
    boxes = f"Apple 0.5 {A} Apple 0.4 {half}"
    for nms_iou, scores in ((0.75, 2), (0.4, 1), (1.0, 2)):
        result = expand({"i": boxes}, nms_iou=nms_iou)["i"]
        assert sum(box.startswith("Food") for box in result) == scores
    assert len(expand({"i": f"Apple 0.5 {A} Banana 0.5 {A}"}, nms_iou=1.0)["i"]) == 8


def test_properties_on_random_predictions(tmp_path):
    rng = np.random.default_rng(0)
    rows = {}
    for image in range(40):
        n = rng.integers(0, 25)
        corners = np.sort(rng.integers(0, 6, (n, 2, 2)) / 5, axis=1).reshape(n, 4)
        labels, scores = rng.choice(CLASSES, n), rng.integers(0, 10, n) / 10
        rows[f"i{image}"] = " ".join(
            " ".join([label, f"{score:g}", *(f"{c:.6f}" for c in box)])
            for label, score, box in zip(labels, scores, corners, strict=True)
        )
    arguments = files(tmp_path, rows)
    a05.main(**arguments, nms_iou=0.6)
    tree = read_hierarchy(arguments["hierarchy"])
    before, after = (
        by_image(read_predictions(arguments["predictions"])),
        by_image(read_predictions(arguments["expanded"])),
    )
    assert list(before) == list(after) == list(rows)
    for image_id, old in before.items():
        new = after[image_id]
        gained = {ancestor for label, *_ in old if label in tree for ancestor in tree.ancestors(label)}
        untouched = [box for box in old if box[0] not in gained]
        assert [box for box in new if box[0] not in gained] == untouched
        for label, score, box in old:
            for target in (label, *tree.ancestors(label)) if label in tree else ():
                assert any(n == target and s >= score and is_covered(box, b) for n, s, b in new)
        for label in gained:
            boxes = np.array([box for name, _, box in new if name == label])
            assert iou_matrix(boxes, boxes)[~np.eye(len(boxes), dtype=bool)].max(initial=0) <= 0.6


def is_covered(box, other):
    return box == other or iou_matrix([box], [other])[0, 0] > 0.6


def by_image(predictions):
    offsets = predictions.offsets()
    return {
        image_id: [
            (predictions.labels[predictions.label_index[i]], predictions.scores[i], tuple(predictions.boxes[i]))
            for i in range(offsets[row], offsets[row + 1])
        ]
        for row, image_id in enumerate(predictions.image_ids)
    }


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (paths.CLASS_DESCRIPTIONS, ["/m/014j1m", "/m/02xwb", "/m/02wbm"]),
        (paths.CHALLENGE_CLASS_DESCRIPTIONS, ["/m/014j1m", "/m/02xwb"]),
    ],
)
def test_the_real_hierarchy(tmp_path, descriptions, expected):
    """Apple is a fruit and food; the challenge's 500 classes leave out food."""
    (tmp_path / "in.csv").write_text(f"ImageId,PredictionString\na,/m/014j1m 0.5 {A}\n")
    metadata = shared("data", "oid_metadata")
    arguments = {"predictions": str(tmp_path / "in.csv"), "expanded": str(tmp_path / "out.csv")}
    hierarchy, classes = str(metadata / paths.HIERARCHY), str(metadata / descriptions)
    a05.main(**arguments, hierarchy=hierarchy, class_descriptions=classes)
    assert [label for label, *_ in by_image(read_predictions(tmp_path / "out.csv"))["a"]] == expected


def test_without_suppression_the_expansion_is_the_references(tmp_path):
    case = shared("metric_cases", "c1")
    out = tmp_path / "out.csv"
    options = {
        "hierarchy": str(case / "hierarchy.json"),
        "class_descriptions": str(case / "classes.csv"),
        "nms_iou": 1.0,
    }
    a05.main(predictions=str(case / "pred_unexpanded.csv"), expanded=str(out), **options)
    expected, result = by_image(read_predictions(case / "pred.csv")), by_image(read_predictions(out))
    assert {image_id: sorted(boxes) for image_id, boxes in result.items()} == {
        image_id: sorted(boxes) for image_id, boxes in expected.items()
    }


# === As a user calls it ===============================================================================================


def test_the_script_finds_its_files_by_the_layout(tmp_path):
    dataset, output = tmp_path / "oid", tmp_path / "out"
    (dataset / "annotations").mkdir(parents=True)
    (dataset / "annotations" / paths.HIERARCHY).write_text(json.dumps(TREE))
    (dataset / "annotations" / paths.CLASS_DESCRIPTIONS).write_text("Apple,apple\nFruit,fruit\nFood,food\n")
    source = paths.run_predictions(output, "test", "my_run")
    source.parent.mkdir(parents=True)
    source.write_text(f"ImageId,PredictionString\ni,Apple 0.5 {A}\n")
    arguments = ("--dataset_path", dataset, "--output_path", output, "--run", "my_run", "--split", "test")
    done = run_script("a05_expand_hierarchy.py", *arguments)
    assert done.returncode == 0, done.stderr
    expected = f"ImageId,PredictionString\ni,Apple 0.5 {A} Fruit 0.5 {A} Food 0.5 {A}\n"
    assert paths.expanded_predictions(source).read_text() == expected
    assert "1 images, 3 boxes" in done.stdout
    assert "%|" not in done.stderr  # no progress bar outside of a terminal


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path):
    arguments = files(tmp_path, {"i": f"Apple nan {A}"})
    done = run_script("a05_expand_hierarchy.py", *(x for flag, name in arguments.items() for x in (f"--{flag}", name)))
    assert done.returncode == 2
    assert done.stderr == f"error: {arguments['predictions']}, line 2, token 2: the score 'nan' is not finite\n"
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nms_iou": 1.5}, "--nms_iou 1.5"),
        ({"nms_iou": float("nan")}, "--nms_iou nan"),
        ({"predictions": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"hierarchy": "nowhere.json"}, "nowhere.json does not exist"),
        ({"class_descriptions": "nowhere.csv"}, "nowhere.csv does not exist"),
    ],
)
def test_mistakes_in_flags(tmp_path, change, match):
    with pytest.raises(InputError, match=match):
        a05.main(**(files(tmp_path, {"i": ""}) | change))
    assert not (tmp_path / "out.csv").exists()


def test_the_input_is_never_overwritten(tmp_path):
    arguments = files(tmp_path, {"i": ""})
    with pytest.raises(InputError, match="is the file that is read"):
        a05.main(**(arguments | {"expanded": arguments["predictions"]}))
