"""Proves that the readers of other formats find every image and box of clean data, that each of the usual faults is
put right or left out and told with its place, and that box corners mean what the format says."""

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oid.files import InputError
from oid.images.read import turn
from oid.sources.clean import clean_boxes, measure, turn_back
from oid.sources.coco import CocoSource
from oid.sources.conversion import READERS
from oid.sources.csv_table import CsvSource
from oid.sources.kitti import KittiSource
from oid.sources.problems import Problems
from oid.sources.voc import VocSource
from tests.helpers.own_data import (
    HEIGHT,
    TRAIN,
    VALIDATION,
    WIDTH,
    WRITERS,
    coco_content,
    found,
    kitti_line,
    picture,
    told,
    voc_file,
    voc_object,
    write_coco_source,
    write_kitti_source,
    write_rows,
    write_voc_source,
)

ONE = {"train": {"a": TRAIN["a"]}}


def read(source, name):
    """The clean pictures of a set, and the problems."""
    problems = Problems()
    pictures = measure(source.read(name, problems), problems)
    classes = [*source.classes(), source.ignored_class]
    clean_boxes(pictures, classes, problems, corners_are_pixels=source.corners_are_pixels)
    return pictures, problems


def csv_source(folder, *rows, classes=(("dog", 0), ("cat", 1)), name="annotations.csv", encoding="utf-8", newline="\n"):
    """A folder with one CSV file of these lines of text, and images a.png and b.png."""
    for image in ("a", "b"):
        picture(folder / f"{image}.png", image)
    if classes:
        write_rows(folder / "classes.csv", classes)
    (folder / name).write_bytes("".join(row + newline for row in rows).encode(encoding))
    return CsvSource(folder)


@pytest.mark.parametrize("form", WRITERS)
def test_clean_data_comes_as_it_is(form, tmp_path):
    source = READERS[form](WRITERS[form](tmp_path / "source"))
    validation = next(name for name in source.sets if name.startswith("val"))
    train = next(name for name in source.sets if not name.startswith("val"))
    renamed = {"Car": "dog", "Cyclist": "cat"}
    for name, expected in ((train, TRAIN), (validation, VALIDATION)):
        pictures, problems = read(source, name)
        boxes = {i: [(renamed.get(label, label), box) for label, box in rows] for i, rows in found(pictures).items()}
        assert boxes == expected
        assert told(problems) == []
        assert all(p.size == (WIDTH, HEIGHT) and len(p.md5) == 32 and not p.uncertain for p in pictures)
    order = {"voc": ["cat", "dog"], "kitti": ["Car", "Cyclist"]}  # by the alphabet; by KITTI's list; else by the ids
    assert source.classes() == order.get(form, ["dog", "cat"])


# === CSV ===


@pytest.mark.parametrize(
    ("row", "problem", "done"),
    [
        ("a.png,10,20,3,5,cat", "swapped corners", "put in order"),
        ("a.png,3,20,10,5,cat", "swapped corners", "put in order"),
        ("a.png,-3,5,10,31,cat", "box reaches out of the image", "cut off at the border"),
        ("a.png,50,5,60,10,cat", "box outside the image", "box left out"),
        ("a.png,40,5,60,10,cat", "box outside the image", "box left out"),
        ("a.png,3,5,3,10,cat", "box without area", "box left out"),
        ("a.png,3,5,9,5,cat", "box without area", "box left out"),
        ("a.png,3,5,9,10,cow", "unknown class", "box left out"),
        ("a.png,3,5,9,10,Cat", "unknown class", "box left out"),
        ("a.png,3,five,9,10,cat", "corner that is no number", "box left out"),
        ("a.png,3,nan,9,10,cat", "corner that is no number", "box left out"),
        ("a.png,3,inf,9,10,cat", "corner that is no number", "box left out"),
        ("a.png,3,,9,10,cat", "corner that is no number", "box left out"),
        ("a.png,3,5,9,10,", "box without a class", "box left out"),
        ("no.png,3,5,9,10,cat", "missing image", "image and its boxes left out"),
        ("classes.csv,3,5,9,10,cat", "image that cannot be read", "image and its boxes left out"),
        ("b.png,1,2,30,20,dog", "the same box again", "left out"),
        (",3,5,9,10,cat", "row without all values: a row needs path,x1,y1,x2,y2,class_name", "left out"),
        ("a.png,3,5,9", "row without all values: a row needs path,x1,y1,x2,y2,class_name", "left out"),
    ],
)
def test_a_bad_row_is_told_with_its_line(row, problem, done, tmp_path):
    source = csv_source(tmp_path, "b.png,1,2,30,20,dog", "", row)
    pictures, problems = read(source, "annotations")
    assert told(problems) == [("line 3", problem, done)]
    assert problems.rows[0][0] == str(tmp_path / "annotations.csv")
    boxes = found(pictures)
    assert boxes["b"] == [("dog", (1, 2, 30, 20))]
    if done == "put in order":
        assert boxes["a"] == [("cat", (3, 5, 10, 20))]
    elif done == "cut off at the border":
        assert boxes["a"] == [("cat", (0, 5, 10, 30))]
    else:
        assert boxes.get("a", []) == []
    for p in pictures:  # of a lost box nobody can say that its class is not there
        lost = p.name == "a" and done == "box left out" and not row.endswith(",")
        assert p.uncertain == ({row.rsplit(",")[-1]} if lost else set())


def test_several_faults_of_one_box_are_all_told(tmp_path):
    _, problems = read(csv_source(tmp_path, "a.png,50,20,3,5,cat"), "annotations")
    assert [row[2] for row in problems.rows] == ["swapped corners", "box reaches out of the image"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_marks_and_delimiters_of_other_programs(encoding, delimiter, tmp_path):
    lines = [line.replace(",", delimiter) for line in ("a.png,1.5,2,30.25,20,dog,extra", "b.png,,,,,")]
    source = csv_source(tmp_path, *lines, encoding=encoding, newline="\r\n")
    pictures, problems = read(source, "annotations")
    assert found(pictures) == {"a": [("dog", (1.5, 2, 30.25, 20))], "b": []}
    assert told(problems) == []


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("path,x1,y1,x2,y2,class_name", "a.png,1,2,3,4,dog"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,40,30,dog,1,2,3,4"),
        ("class,image,x2,x1,y2,y1", "dog,a.png,3,1,4,2"),
        ("bild,links,oben,rechts,unten,klasse", "a.png,1,2,3,4,dog"),
    ],
)
def test_a_header_row_says_which_column_is_which(header, row, tmp_path):
    pictures, problems = read(csv_source(tmp_path, header, row), "annotations")
    assert found(pictures) == {"a": [("dog", (1, 2, 3, 4))]}
    assert told(problems) == [("line 1", "header row", "not taken as a box")]


def test_backslashes_separate_folders(tmp_path):
    picture(tmp_path / "in" / "it.png", "x")
    source = csv_source(tmp_path, r"in\it.png,1,2,3,4,dog", "in/it.png,5,6,7,8,cat", r".\in\it.png,9,9,10,10,cat")
    pictures, problems = read(source, "annotations")
    assert found(pictures) == {"it": [("dog", (1, 2, 3, 4)), ("cat", (5, 6, 7, 8)), ("cat", (9, 9, 10, 10))]}
    assert told(problems) == [("line 1", "path with backslashes", "read as slashes")]


def test_paths_may_be_absolute_or_beside_the_folder(tmp_path):
    elsewhere = picture(tmp_path / "elsewhere" / "x.png", "x")
    source = csv_source(tmp_path / "here", f"{elsewhere},1,2,3,4,dog", "../elsewhere/x.png,5,6,7,8,dog")
    pictures, problems = read(source, "annotations")
    assert [p.path.samefile(elsewhere) for p in pictures] == [True, True]
    assert told(problems) == []


def test_without_a_class_file_the_classes_are_those_that_occur(tmp_path):
    source = csv_source(tmp_path, "a.png,1,2,3,4,zebra", "a.png,1,2,3,4,ant", classes=None)
    assert len(read(source, "annotations")[0][0].boxes) == 2
    assert source.classes() == ["ant", "zebra"]


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ([("cat", 0), ("cat", 1)], r"line 2: the class 'cat' is there already"),
        ([("cat", 0), ("dog", 0)], r"line 2: the id 0 is there already"),
        ([("cat", 0), ("dog", "x")], r"line 2: 'dog,x' is not class_name,id"),
        ([("cat", 0), ("dog",)], r"line 2: 'dog' is not class_name,id"),
        ([("cat", -1)], r"line 1: 'cat,-1' is not class_name,id"),
        ([("name", "id")], r"has no class"),
    ],
)
def test_a_wrong_class_file_is_one_sentence(classes, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        csv_source(tmp_path, "a.png,1,2,3,4,dog", classes=classes)


def test_a_class_file_with_header_gives_the_order(tmp_path):
    source = csv_source(tmp_path, "a.png,1,2,3,4,dog", classes=[("class_name", "id"), ("b", 7), ("a", 3), ("b", 7)])
    assert source.classes() == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a.png,1,2,3,4,dog\na.png,1,2,3,4,d\xf6g\n", r"line 2: not UTF-8: save it as UTF-8"),
        (b"\xff\xfea\x00\x00", r"is not the UTF-16 that its first bytes say: save it"),
        (b'"a.png,1,2,3,4,dog\n', r"line 1: not CSV .*check the quotes"),
    ],
)
def test_a_file_that_is_no_text_is_one_sentence(content, sentence, tmp_path):
    source = csv_source(tmp_path)
    (tmp_path / "annotations.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        source.read("annotations", Problems())


# === Pascal VOC ===


def voc_source(folder, objects, size=(WIDTH, HEIGHT)):
    """Pascal VOC's layout with one image, `a`."""
    write_voc_source(folder, ONE)
    (folder / "Annotations" / "a.xml").write_text(voc_file(objects, size))
    return VocSource(folder)


def test_corners_are_pixels_from_one_with_the_last(tmp_path):
    whole, pixel = voc_object("cat", (1, 1, WIDTH, HEIGHT)), voc_object("dog", (3, 4, 4, 5))
    pictures, problems = read(voc_source(tmp_path, whole + pixel), "train")
    assert found(pictures) == {"a": [("cat", (0, 0, WIDTH, HEIGHT)), ("dog", (2, 3, 4, 5))]}
    assert told(problems) == []


def test_flags_of_an_object(tmp_path):
    text = "<truncated>1</truncated><occluded>1</occluded><difficult>1</difficult>"
    (picture_read,), _ = read(voc_source(tmp_path, voc_object("cat", (1, 1, 5, 5), text)), "train")
    (box,) = picture_read.boxes
    assert (box.truncated, box.occluded, box.difficult, box.group_of) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (voc_object("cat", (5, 5, 5, 9)), "box without area"),
        (voc_object("cat", (5, 5, 5, 5)), "box without area"),
        (voc_object("cat", (41, 5, 50, 9)), "box outside the image"),
        (voc_object("cat", ("", 5, 5, 9)), "corner that is missing or no number"),
        (voc_object("cat", ("x", 5, 5, 9)), "corner that is missing or no number"),
        ("<object><name>cat</name></object>", "corner that is missing or no number"),
        (voc_object("", (5, 5, 9, 9)), "box without a class"),
    ],
)
def test_a_bad_object_is_told_with_its_line_and_number(item, problem, tmp_path):
    good = voc_object("dog", (1, 1, 5, 5))
    pictures, problems = read(voc_source(tmp_path, f"{good}\n{item}"), "train")
    assert found(pictures) == {"a": [("dog", (0, 0, 5, 5))]}
    assert told(problems) == [("line 4, object 2", problem, "box left out")]


@pytest.mark.parametrize(
    ("size", "problem", "expected"),
    [
        ((0, 0), "size missing or not positive", (0, 0, 10, 20)),
        (("", "x"), "size missing or not positive", (0, 0, 10, 20)),
        ((41, 30), "size is not that of the image", (0, 0, 10, 20)),
        ((80, 60), "size is not that of the image", (0, 0, 5, 10)),  # the image was made smaller afterwards
        ((HEIGHT, WIDTH), "size is not that of the image", (0, 0, 10, 20)),
    ],
)
def test_a_wrong_size_is_told_and_the_images_counts(size, problem, expected, tmp_path):
    pictures, problems = read(voc_source(tmp_path, voc_object("cat", (1, 1, 10, 20)), size), "train")
    assert found(pictures) == {"a": [("cat", expected)]}
    assert [row[2] for row in problems.rows] == [problem]


def test_boxes_of_a_picture_that_its_exif_tag_turns_are_turned_back(tmp_path):
    """Drawn on the turned picture, as labelling tools show it; the pixels in the file lie on their side."""
    source = voc_source(tmp_path, voc_object("cat", (3, 5, 8, 10)), (HEIGHT, WIDTH))
    path = tmp_path / "JPEGImages" / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)
    pictures, problems = read(source, "train")
    assert told(problems) == [("", "size of the EXIF-turned image", "boxes turned back")]
    assert found(pictures) == {"a": [("cat", turn_back((2, 4, 8, 10), 6, (HEIGHT, WIDTH)))]}
    assert pictures[0].size == (WIDTH, HEIGHT)


@given(st.integers(1, 8), st.integers(0, 5), st.integers(0, 3))
def test_turning_back_undoes_turning(orientation, left, top):
    stored = np.zeros((6, 9, 1))
    stored[top : top + 2, left : left + 3] = 1
    turned = turn(stored, orientation)
    rows, columns = np.nonzero(turned[..., 0])
    corners = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert turn_back(corners, orientation, (turned.shape[1], turned.shape[0])) == (left, top, left + 3, top + 2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<annotation><object></annotation>", "not well-formed XML"),
        ("", "not well-formed XML"),
        ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "XML with a document type declaration"),
        (None, "missing annotation file"),
    ],
)
def test_an_annotation_that_cannot_be_used_costs_its_image_only(text, problem, tmp_path):
    write_voc_source(tmp_path)
    path = tmp_path / "Annotations" / "b.xml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    pictures, problems = read(VocSource(tmp_path), "train")
    assert found(pictures).keys() == TRAIN.keys() - {"b"}
    assert [row[::2] for row in problems.rows] == [(str(path), problem, "image left out")]


def test_entities_that_grow_are_not_read(tmp_path):
    """A bomb of a billion letters in a kilobyte; it would take minutes and all memory."""
    entities = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))
    bomb = f'<!DOCTYPE a [<!ENTITY l0 "lol">{entities}]><annotation>&l12;</annotation>'
    write_voc_source(tmp_path)
    (tmp_path / "Annotations" / "b.xml").write_text(bomb)
    _, problems = read(VocSource(tmp_path), "train")
    assert [row[2] for row in problems.rows] == ["XML with a document type declaration"]


def test_lists_of_single_classes_and_of_names_with_spaces(tmp_path):
    write_voc_source(tmp_path, {"cat_train": {"a": TRAIN["a"], "my photo": TRAIN["b"], "photo 1": TRAIN["b"]}})
    listing = tmp_path / "ImageSets" / "Main" / "cat_train.txt"
    listing.write_text("\ufeffa  1\nmy photo -1\n\nmy photo\nphoto 1 0\n", encoding="utf-8")
    pictures, problems = read(VocSource(tmp_path), "cat_train")
    assert [p.name for p in pictures] == ["a", "my photo", "photo 1"]
    assert told(problems) == [("line 4", "image listed twice", "taken once")]


def test_images_and_annotations_side_by_side(tmp_path, capsys):
    (tmp_path / "one.xml").write_text(voc_file(voc_object("cat", (1, 1, 5, 5))))
    (tmp_path / "two.xml").write_text(voc_file("<filename>C:\\photos\\other.png</filename>"))
    for name in ("one.JPEG", "other.png"):
        cv2.imwrite(str(tmp_path / name.replace("JPEG", "jpg")), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (tmp_path / "one.jpg").rename(tmp_path / "one.JPEG")
    source = VocSource(tmp_path)
    assert "are one set" in capsys.readouterr().out
    pictures, problems = read(source, "train")
    assert [p.path.name for p in pictures] == ["one.JPEG", "other.png"]
    assert told(problems) == []


# === COCO ===


def coco_source(folder, content, name="train"):
    write_coco_source(folder, {name: TRAIN})
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return CocoSource(folder)


@pytest.mark.parametrize(
    ("change", "problem", "done"),
    [
        ({"bbox": [10, 20, -10, -20]}, "swapped corners", "put in order"),
        ({"bbox": [-3, 0, 13, 20]}, "box reaches out of the image", "cut off at the border"),
        ({"bbox": [1, 1, 0, 5]}, "box without area", "box left out"),
        ({"bbox": [1, 1, 5]}, "bbox that is missing or no four numbers", "box left out"),
        ({"bbox": None}, "bbox that is missing or no four numbers", "box left out"),
        ({"bbox": [1, 1, "5", 5]}, "bbox that is missing or no four numbers", "box left out"),
        ({"bbox": [1, 1, float("nan"), 5]}, "bbox that is missing or no four numbers", "box left out"),
        ({"category_id": 4}, "unknown category", "box left out"),
        ({"category_id": [4]}, "unknown category", "box left out"),
        ({"image_id": 44}, "annotation of an unknown image", "left out"),
        ({"image_id": {}}, "annotation of an unknown image", "left out"),
    ],
)
def test_a_bad_annotation_is_told_with_its_place(change, problem, done, tmp_path):
    content = coco_content(TRAIN)
    content["annotations"][0] |= change
    pictures, problems = read(coco_source(tmp_path, content), "train")
    assert told(problems) == [("annotations[0] (id 10)", problem, done)]
    rest = found(pictures)["a"]
    assert (rest == TRAIN["a"]) if done in ("put in order", "cut off at the border") else (rest == TRAIN["a"][1:])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"file_name": None}, "image without file_name or id"),
        ({"id": None}, "image without file_name or id"),
        ({"id": 0}, "image id or file_name a second time"),
        ({"file_name": "a.png"}, "image id or file_name a second time"),
        ({"file_name": "nowhere.png"}, "missing image"),
    ],
)
def test_a_bad_image_is_told_with_its_place(change, problem, tmp_path):
    content = coco_content(TRAIN)
    content["images"][2] |= change
    pictures, problems = read(coco_source(tmp_path, content), "train")
    assert found(pictures).keys() == TRAIN.keys() - {"c"}
    assert [(row[1].partition(" (")[0], row[2]) for row in problems.rows] == [("images[2]", problem)]


def test_crowds_are_groups_and_classes_without_boxes_count(tmp_path):
    content = coco_content(TRAIN)
    content["annotations"][1]["iscrowd"] = 1
    content["categories"] += [{"id": 5, "name": "cow"}, {"id": 1, "name": "ant"}, {"id": 9, "name": "cat"}]
    content["annotations"][0]["category_id"] = 9
    content["annotations"].append("no annotation")
    source = coco_source(tmp_path, content)
    pictures, problems = read(source, "train")
    assert [box.group_of for box in pictures[0].boxes] == [0, 1]
    assert found(pictures)["a"] == TRAIN["a"]
    assert source.classes() == ["ant", "dog", "cow", "cat"]
    assert [row[2] for row in problems.rows] == ["category name a second time", "element that is no object"]


@pytest.mark.parametrize("place", ["annotations/instances_x.json", "x.json", "x/_annotations.coco.json"])
@pytest.mark.parametrize("images", ["x", "images/x", "images"])
def test_where_the_files_of_coco_may_lie(place, images, tmp_path):
    for name in TRAIN:
        picture(tmp_path / images / f"{name}.png", name)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("\ufeff" + json.dumps(coco_content(TRAIN)), encoding="utf-8")
    for path in (tmp_path, tmp_path / place):
        source = CocoSource(path)
        pictures, problems = read(source, source.sets[0])
        assert found(pictures) == TRAIN
        assert told(problems) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", r"instances_train.json, line 1: .*: it is not JSON"),
        ("[" * 100_000, "it is not JSON"),
        ("[]", "has no list 'images'"),
        ('{"images": [], "annotations": {}}', "has no list 'annotations'"),
        ('{"images": [], "annotations": [], "categories": [{"id": "x"}]}', r"categories\[0\].* needs a whole number"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            r"categories\[1\]: id 1 is there already",
        ),
    ],
)
def test_json_of_another_kind_is_one_sentence(text, sentence, tmp_path):
    write_coco_source(tmp_path)
    (tmp_path / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(InputError, match=sentence):
        CocoSource(tmp_path).read("train", Problems())


# === KITTI ===


def test_kittis_official_folders(tmp_path):
    write_kitti_source(tmp_path / "k", {"training": TRAIN})
    (tmp_path / "k" / "training" / "images").rename(tmp_path / "k" / "training" / "image_2")
    (tmp_path / "k" / "training" / "labels").rename(tmp_path / "k" / "training" / "label_2")
    picture(tmp_path / "k" / "testing" / "image_2" / "a.png", "t")
    for path, name in ((tmp_path / "k", "training"), (tmp_path / "k" / "training", "train")):
        source = KittiSource(path)
        assert source.sets == [name]
        assert len(read(source, name)[0]) == len(TRAIN)


def test_flags_areas_and_faults_of_kitti(tmp_path):
    write_kitti_source(tmp_path, {"train": {"a": [], "b": []}})
    lines = [
        kitti_line("Car", (1.25, 2, 9.75, 10), truncated=0.4, occluded=2),
        kitti_line("Own_thing", (1, 2, 9, 10), occluded=3),
        kitti_line("DontCare", (20, 2, 30, 10), truncated=-1, occluded=-1),
        kitti_line("Car", ("x", 2, 9, 10)),
        "Van 0 0 0 1 2\n",
        "\n",
    ]
    (tmp_path / "train" / "labels" / "a.txt").write_text("".join(lines))
    picture(tmp_path / "train" / "images" / "unlabelled.png", "u")
    (tmp_path / "train" / "labels" / "lost.txt").write_text(lines[0])
    source = KittiSource(tmp_path)
    pictures, problems = read(source, "train")
    assert source.classes() == ["Car", "Own_thing"]
    a, b = pictures
    assert [(x.class_name, x.corners, x.truncated, x.occluded) for x in a.boxes] == [
        ("Car", (1.25, 2, 9.75, 10), 1, 1),
        ("Own_thing", (1, 2, 9, 10), 0, -1),
        ("DontCare", (20, 2, 30, 10), 0, -1),
    ]
    assert b.boxes == []
    assert a.uncertain == {"Car", "Van"}
    wrong = "row that is not type truncated occluded alpha left top right bottom"
    assert told(problems) == [
        ("", "image without a label file", "image left out"),
        ("line 4", wrong, "box left out"),
        ("line 5", wrong, "box left out"),
        ("", "missing image", "image and its boxes left out"),
    ]
