"""Proves the rules of a01, each on a case worked out by hand; test_rules_together.py has all of them at once."""

from pathlib import Path

import pytest

from a01_create_training_files import main
from oid import paths
from oid.annotations import read_class_descriptions
from tests.helpers.small_open_images import (
    BIG,
    CLASSES,
    LEFT,
    ONE_OF_EACH,
    RIGHT,
    V6_COLUMNS,
    Result,
    box,
    make_data_set,
    write_rows,
)


def run(tmp_path: Path, level: str, *arguments, **options) -> Result:
    """Makes a data set, runs a01 for one level, and reads the training files."""
    flags = ("min_boxes", "rare_below", "labels_filter", "parent_label")
    settings_ = {name: options.pop(name) for name in flags if name in options}
    data_set = make_data_set(tmp_path / "data", *arguments, **options)
    main(dataset_path=str(data_set), output_path=str(tmp_path / "out"), levels=(level,), **settings_)
    return Result(tmp_path / "out", level)


# === Classes and levels ==============================================================================================
@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("1", ["wheel", "tomato", "apple", "car", "carrot"]),
        ("2", ["vegetable", "fruit"]),
        ("3", ["food"]),
        ("all", list(CLASSES)),
    ],
)
def test_levels_are_heights_in_the_order_of_the_description_file(tmp_path, level, expected):
    result = run(tmp_path, level, ONE_OF_EACH)
    assert list(result.classes) == expected
    assert result.classes[expected[0]] == f"{expected[0]}, all"  # the comma survived


def test_challenge_classes_contract_the_tree(tmp_path):
    kept = ("carrot", "food", "apple", "unicorn")  # fruit and vegetable are gone, so food is directly above the leaves
    result = run(tmp_path, "2", ONE_OF_EACH, challenge=kept)
    assert list(result.classes.items()) == [("food", "Food")]
    assert result.shown() == [("i2", "food"), ("i3", "food"), ("i6", "food")]
    main(dataset_path=str(tmp_path / "data"), output_path=str(tmp_path / "out"), levels=("1", "all"))
    assert list(Result(tmp_path / "out", "1").classes) == ["carrot", "apple"]
    assert list(Result(tmp_path / "out", "all").classes) == ["carrot", "food", "apple"]


def test_classes_outside_hierarchy_or_descriptions(tmp_path, capsys):
    rows = [box("a", "unicorn"), box("b", "dragon"), box("c", "car"), box("d", "entity")]
    result = run(tmp_path, "1", rows, rows[2:3], classes=("unicorn", "car", "entity"))
    assert list(result.classes) == ["unicorn", "car"]
    assert result.shown() == [("a", "unicorn"), ("c", "car")]
    printed = capsys.readouterr().out
    assert "taken as leaves without ancestors: 1 (unicorn, all)" in printed
    assert "root or not in class-descriptions-boxable.csv: 1 (entity, all)" in printed
    assert "4 rows, 0 of excluded classes, 2 of unknown labels dropped" in printed
    assert "unknown labels: 2 (dragon, entity)" in printed


def test_classes_with_too_few_boxes_are_left_out_and_named(tmp_path, capsys):
    rows = [box("a", "apple"), box("a", "apple", RIGHT), box("b", "apple"), box("c", "tomato"), box("c", "tomato")]
    result = run(tmp_path, "1", rows, [box("v", "carrot"), box("w", "apple")], min_boxes=2)
    assert list(result.classes) == ["apple"]  # tomato's two rows are one box
    assert "left out, fewer than --min_boxes 2: 4 (wheel, all, tomato, all, car, all, carrot, all)" in (
        " ".join(capsys.readouterr().out.split())
    )
    left_out = read_class_descriptions(paths.level_folder(tmp_path / "out", "1") / "left-out-classes-level-1.csv")
    assert list(left_out) == ["wheel", "tomato", "car", "carrot"]
    assert Result(tmp_path / "out", "1", "validation").shown() == [("w", "apple")]  # classes are chosen on train


def test_a_class_left_out_still_counts_for_its_ancestors(tmp_path):
    rows = [box("a", "apple"), box("b", "fruit"), box("c", "tomato"), box("d", "tomato"), box("e", "wheel")]
    result = run(tmp_path, "all", rows, min_boxes=2)
    assert list(result.classes) == ["tomato", "food", "vegetable", "fruit"]
    shown = [found for found in result.shown() if found[0] in "ac"]
    assert shown == [("a", "food"), ("a", "fruit"), *(("c", name) for name in result.classes)]


def test_rare_classes(tmp_path):
    # boxes as in `all`: apple 1, tomato 2, fruit 3, vegetable 2, food 3; the others have none
    rows = [box("a", "apple"), box("b", "tomato"), box("c", "tomato")]
    result = run(tmp_path, "rare", rows, rare_below=3)
    assert list(result.classes) == ["tomato", "apple", "vegetable"]
    expected = [("a", "apple"), ("b", "tomato"), ("b", "vegetable"), ("c", "tomato"), ("c", "vegetable")]
    assert result.shown() == expected


# === A part of the classes ===========================================================================================
def test_labels_filter_excludes_all_others(tmp_path):
    rows = [box("a", "apple"), box("b", "tomato"), box("c", "car"), box("d", "food"), box("e", "wheel")]
    labels = [("f", "fruit", "0"), ("g", "car", "1"), ("h", "wheel", "0")]
    result = run(tmp_path, "all", rows, None, labels, labels_filter=("fruit,apple", "car"))
    assert list(result.classes) == ["apple", "car", "fruit"]
    assert result.shown() == [("a", "apple"), ("a", "fruit"), ("c", "car")]
    assert result.ignored() == [
        ("b", "fruit", "excluded_class"),  # a fruit that the part does not have
        ("d", "food", "ancestor_class"),  # apple and fruit are below, tomato is not of the part
    ]
    assert result.image_labels == [("f", "apple", "0"), ("f", "fruit", "0"), ("g", "car", "1")]
    assert [row[0] for row in result.negatives] == ["f", "g"]  # e and h have nothing of the part
    assert result.image_ids == [f"train/{image}" for image in "abcdfg"] + ["validation/a"]


def test_parent_label_keeps_all_below(tmp_path):
    found = run(tmp_path / "part", "all", ONE_OF_EACH, challenge=("food", "carrot", "car"), parent_label="food")
    assert list(found.classes.values()) == ["Food", "Carrot"]
    rows = [box("a", "tomato"), box("b", "fruit"), box("c", "car"), box("d", "carrot")]
    result = run(tmp_path, "all", rows, parent_label="Vegetable, ALL", min_boxes=0)  # 0 keeps every class
    assert list(result.classes) == ["tomato", "vegetable", "carrot"]
    expected = [("a", "tomato"), ("a", "vegetable"), ("d", "vegetable"), ("d", "carrot")]
    assert result.shown() == expected
    assert result.ignored() == [("b", "fruit", "ancestor_class")]


def test_a_part_has_the_heights_that_are_left(tmp_path, capsys):
    data_set = make_data_set(tmp_path / "data", ONE_OF_EACH)
    place = {"dataset_path": str(data_set), "output_path": str(tmp_path / "out")}
    main(**place, levels=("1", "2", "3", "all"), parent_label="fruit")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"level_{level}_files" for level in ("1", "2", "all")
    }
    assert "left out, because no class has them: 1 (3)" in capsys.readouterr().out
    assert list(Result(tmp_path / "out", "1").classes) == ["tomato", "apple"]
    assert list(Result(tmp_path / "out", "2").classes) == ["fruit"]


# === Boxes ===========================================================================================================
def test_a_box_counts_for_the_classes_above_it_once(tmp_path):
    rows = [
        box("a", "tomato"),  # fruit and vegetable, in the order of the description file
        box("a", "apple", RIGHT),
        box("a", "apple", ("0.6", "0.90", ".1", "5e-1"), source="second"),  # the same numbers: the first row stays
        box("a", "fruit", RIGHT),  # child and ancestor both annotated: one fruit
        box("a", "apple", BIG),
        box("b", "apple", BIG),
        box("b", "food", LEFT),  # above the level
    ]
    result = run(tmp_path, "2", rows)
    assert result.boxes == [
        box("a", "vegetable"),
        box("a", "fruit"),
        box("a", "fruit", RIGHT),
        box("a", "fruit", BIG),
        box("b", "fruit", BIG),
    ]


@pytest.mark.parametrize(("newline", "encoding"), [("\n", "utf-8"), ("\r\n", "utf-8-sig")])
def test_text_of_v6_files_stays_as_it_is(tmp_path, newline, encoding):
    rectangle = ("0.23454899999999998", "1.000000", "1e-05", "00.50")
    rows = [
        (*box("007", "apple", rectangle), *["-1.000000"] * 8),
        (*box("1e5", "apple", rectangle), *["0.5"] * 8),
        (*box("0x,1", "apple", rectangle), *["0.5"] * 8),
    ]
    data_set = make_data_set(tmp_path / "data", rows, header=V6_COLUMNS)
    write_rows(paths.box_annotations(data_set, "train"), V6_COLUMNS, rows, newline, encoding)
    main(dataset_path=str(data_set), output_path=str(tmp_path / "out"), levels=("1",))
    result = Result(tmp_path / "out", "1")
    assert result.boxes == [row[:13] for row in rows]
    assert result.image_ids == ["train/007", "train/0x,1", "train/1e5", "validation/007"]


# === Ignored regions =================================================================================================
def test_group_of_boxes_are_ignored_for_their_class_and_all_above(tmp_path):
    rows = [box("a", "apple"), box("b", "apple", RIGHT, group="1"), box("c", "apple", group="-1")]
    result = run(tmp_path, "all", rows)
    assert [found for found in result.shown() if found[0] == "b"] == []
    assert [found for found in result.shown() if found[1] == "apple"] == [("a", "apple"), ("c", "apple")]
    assert result.regions == [("b", name, *RIGHT, "group_of") for name in ("food", "apple", "fruit")]


REGION_CASES = {  # name: rows, regions of level 1
    "a label without a class of the level below is no region": (  # no box of a carrot or a tomato: they are left out
        [box("a", "apple"), box("b", "vegetable"), box("c", "food"), box("d", "food", RIGHT), box("d", "fruit")],
        [("c", "food", *LEFT), ("d", "food", *RIGHT), ("d", "fruit", *LEFT)],
    ),
    "equal coarse boxes are one row": (
        [box("a", "apple"), box("b", "fruit", group="1"), box("b", "fruit"), box("b", "fruit", BIG)],
        [("b", "fruit", *LEFT), ("b", "fruit", *BIG)],
    ),
    "an equal box with a class below says what a box is": (  # c: another rectangle; d: not a class below
        [
            *(box("a", name) for name in ("apple", "tomato", "carrot")),
            *(box("b", "apple"), box("b", "fruit", ("0.10", "0.4", "0.1", "0.5"))),
            *(box("c", "apple"), box("c", "fruit", RIGHT), box("d", "carrot"), box("d", "fruit")),
        ],
        [("c", "fruit", *RIGHT), ("d", "fruit", *LEFT)],
    ),
}


@pytest.mark.parametrize(("rows", "expected"), REGION_CASES.values(), ids=REGION_CASES)
def test_regions(tmp_path, rows, expected):
    result = run(tmp_path, "1", rows)
    assert result.regions == [(*row, "ancestor_class") for row in expected]
    images = {row[0] for row in (*result.boxes, *result.regions)}
    assert result.image_ids == [f"train/{image}" for image in sorted(images)] + ["validation/a"]


def test_the_first_reason_that_applies_is_written_once_and_a_coarse_row_beside_it(tmp_path):
    rows = [box("a", "apple"), box("b", "fruit"), box("b", "apple", RIGHT, group="1"), box("b", "fruit", RIGHT)]
    rows += [box("c", "tomato"), box("c", "apple", group="1"), box("c", "food")]
    result = run(tmp_path, "all", rows, challenge=("apple", "fruit", "food"))
    assert [row for row in result.ignored() if row[0] == "b"] == [
        ("b", "fruit", "ancestor_class"),
        ("b", "apple", "group_of"),
        ("b", "fruit", "group_of"),
        ("b", "food", "group_of"),
    ]  # the second fruit's rectangle is that of an apple
    assert {row for row in result.ignored() if row[0] == "c"} == {
        ("c", name, "group_of") for name in ("apple", "fruit", "food")
    }


# === Image labels and negatives ======================================================================================
def test_image_labels_are_expanded_and_restricted_to_the_level(tmp_path):
    labels = [("b", "fruit", "0"), ("a", "tomato", "1"), ("b", "car", "1"), ("a", "car", "0")]
    result = run(tmp_path, "all", ONE_OF_EACH, None, labels)
    assert result.image_labels == [
        ("b", "tomato", "0"),
        ("b", "apple", "0"),
        ("b", "car", "1"),
        ("b", "fruit", "0"),
        *(("a", name, "1") for name in ("tomato", "food", "vegetable")),
        ("a", "car", "0"),
        ("a", "fruit", "1"),
    ]


def test_a_positive_label_wins_over_a_negative_one(tmp_path, capsys):
    labels = [("a", "food", "0"), ("a", "apple", "1"), ("a", "apple", "1"), ("b", "apple", "1"), ("b", "apple", "0")]
    result = run(tmp_path, "all", ONE_OF_EACH, None, labels)
    assert [row[1:] for row in result.image_labels if row[0] == "a"] == [
        ("tomato", "0"),
        ("food", "1"),
        ("apple", "1"),
        ("vegetable", "0"),
        ("carrot", "0"),
        ("fruit", "1"),
    ]
    assert [row[1:] for row in result.image_labels if row[0] == "b"] == [("food", "1"), ("apple", "1"), ("fruit", "1")]
    assert "positive against negative 4 0" in " ".join(capsys.readouterr().out.split())  # a: 3, b: 1


def test_negatives_have_a_verified_label_and_neither_box_nor_region(tmp_path):
    rows = [box("boxed", "apple"), box("group", "apple", group="1"), box("fruit", "fruit"), box("car", "car")]
    images = ("unlabelled-elsewhere", "zebra", "boxed", "group", "fruit", "car", "absent")
    labels = [(image, "apple", "0") for image in images] + [("other", "wheel", "0"), ("unboxed", "apple", "1")]
    result = run(tmp_path, "1", rows, None, labels)
    assert list(result.classes) == ["apple", "car"]  # no wheel: `other` has no verified label of the level
    empty = ("",) * 12
    names = ("unlabelled-elsewhere", "zebra", "absent", "unboxed")
    assert result.negatives == [(name, *empty) for name in names]
    assert result.image_ids == [f"train/{name}" for name in sorted((*names, "boxed", "group", "fruit", "car"))] + [
        "validation/boxed"
    ]
    higher = run(tmp_path / "2", "2", rows, None, [("car", "fruit", "0"), ("car", "car", "1")])
    assert [row[0] for row in higher.negatives] == ["car"]  # it has a box, but of another level
    text = paths.level_boxes(tmp_path / "out", "1", "train").read_text()
    assert text.endswith("zebra,,,,,,,,,,,,\nabsent,,,,,,,,,,,,\nunboxed,,,,,,,,,,,,\n")


def test_without_image_labels_there_are_no_negatives(tmp_path, capsys):
    result = run(tmp_path, "1", [box("a", "apple")], None, None, [("n", "apple", "0")])
    assert result.image_labels == []
    assert result.negatives == []
    assert Result(tmp_path / "out", "1", "validation").negatives == [("n", *("",) * 12)]
    printed = capsys.readouterr().out
    assert "train gets no image labels and no negative images" in printed
    assert "validation gets no image labels" not in printed
