"""Proves that the readers of other formats find every image and box of clean data, and that each of the usual faults is
corrected or left out, and reported with its place."""

import codecs
import json

import pytest

from oid.sources.coco import CocoReader
from oid.sources.csv_table import CsvReader
from oid.sources.kitti import KittiReader
from oid.sources.voc import VocReader
from tests.helpers.own_data import (
    COCO_TRAIN,
    GOOD,
    HEIGHT,
    TRAIN,
    WIDTH,
    coco_content,
    found,
    kitti_line,
    picture,
    read_clean,
    told,
    train_set,
    voc_file,
    voc_object,
    with_item,
    write_coco_source,
    write_csv_source,
    write_kitti_source,
    write_rows,
    write_voc_source,
)

OUT = "box left out"
NO_BOX = "box without a class or four numbers"
NAMELESS = ("images/a.png,3,5,9,10,", "<object></object>")
NO_ROW = "row that is not type truncated occluded alpha left top right bottom"
NO_CSV_ROW = "row that is not path,x1,y1,x2,y2,class_name"
UNKNOWN = "unknown image or category"
CUT, ORDER = "cut off at the border", "put in order"
FAULTS = [  # format, item, problem, what is done, corners of the box that remains
    ("csv", "images/a.png,10,20,3,5,cat", "swapped corners", ORDER, (3, 5, 10, 20)),
    ("csv", "images/a.png,-3,5,10,31,cat", "box reaches out of the image", CUT, (0, 5, 10, 30)),
    ("csv", "images/a.png,40,5,60,10,cat", "box outside the image", OUT, None),
    ("csv", "images/a.png,3,5,3,10,cat", "box without area", OUT, None),
    ("csv", "images/a.png,3,5,9,10,Cat", "unknown class", OUT, None),
    ("csv", "images/a.png,3,nan,9,10,cat", NO_BOX, OUT, None),
    ("csv", NAMELESS[0], NO_BOX, OUT, None),
    ("csv", "images/no.png,3,5,9,10,cat", "missing image", "image and its boxes left out", None),
    ("csv", "classes.csv,3,5,9,10,cat", "image that cannot be read", "image and its boxes left out", None),
    ("csv", "images/b.png,1,2,30,20,dog", "the same box again", "left out", None),
    ("csv", "images/a.png,3,5,9", NO_CSV_ROW, "left out", None),
    ("voc", voc_object("cat", (5, 6, 5, 6)), "box of a single pixel", "kept", (4, 5, 5, 6)),
    ("voc", voc_object("cat", (0, 1, 5, 6)), "box reaches out of the image", CUT, (0, 0, 5, 6)),
    ("voc", voc_object("cat", ("", 5, 5, 9)), NO_BOX, OUT, None),
    ("voc", NAMELESS[1], NO_BOX, OUT, None),
    ("coco", {"bbox": [10, 20, -7, -15]}, "swapped corners", ORDER, (3, 5, 10, 20)),
    ("coco", {"bbox": [1, 1, 5]}, NO_BOX, OUT, None),
    ("coco", {"bbox": [1, 1, "x", 5]}, NO_BOX, OUT, None),
    ("coco", {"bbox": [True, False, 1, 1]}, NO_BOX, OUT, None),
    ("coco", {"category_id": [4]}, UNKNOWN, OUT, None),
    ("coco", {"image_id": {}}, UNKNOWN, OUT, None),
    ("kitti", "Cyclist 0 0 0 1 2\n", NO_ROW, OUT, None),
    ("kitti", kitti_line("Cyclist", (1, 2, 9, 10), truncated="x"), NO_ROW, OUT, None),
]
PLACES = {"csv": "line 3", "voc": "object 1", "coco": "annotations[1] (id 11)", "kitti": "line 1"}


@pytest.mark.parametrize(("form", "item", "problem", "done", "remaining"), FAULTS)
def test_a_fault_is_reported_with_its_place(form, item, problem, done, remaining, tmp_path):
    reader = with_item(form, tmp_path, item)
    images = {image.name.rpartition("/")[2]: image for image in train_set(reader)}
    assert told(reader.problems) == [(PLACES[form], problem, done)]
    assert [box.corners for box in images["b"].boxes] == [GOOD[0][1]]
    assert [box.corners for box in images["a"].boxes] == ([remaining] if remaining else [])
    is_uncertain = done == OUT and problem != UNKNOWN and item not in NAMELESS
    name = "cyclist" if form == "kitti" else "cat"
    assert {name.lower() for name in images["a"].uncertain} == ({name} if is_uncertain else set())


# === CSV ===
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    ("header", "row"),
    [
        (None, "images/a.png,1.5,2,30.25,20,dog,extra"),
        ("path,x1,y1,x2,y2,class_name", "images/a.png,1.5,2,30.25,20,dog"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "images/a.png,40,30,dog,1.5,2,30.25,20"),
        ("class,image,x2,x1,y2,y1", "dog,images/a.png,30.25,1.5,20,2"),
        ("bild,links,oben,rechts,unten,klasse", "images/a.png,1.5,2,30.25,20,dog"),
    ],
)
def test_headers_delimiters_and_marks_of_other_programs(header, row, delimiter, mark, tmp_path):
    write_csv_source(tmp_path)
    text = "".join(f"{line}\r\n" for line in (header, row) if line).replace(",", delimiter)
    content = text.encode("utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-8")
    (tmp_path / "annotations.csv").write_bytes(mark + content)
    reader = CsvReader(tmp_path)
    assert found(train_set(reader)) == {"a": [("dog", (1.5, 2, 30.25, 20))]}
    assert told(reader.problems) == ([("line 1", "header row", "not taken as a box")] if header else [])


def test_paths_may_have_backslashes_be_absolute_or_lead_out_of_the_folder(tmp_path):
    path = picture(tmp_path / "elsewhere" / "it.png", "x")
    (tmp_path / "here").mkdir()
    spelled = (r"..\elsewhere\it.png", "../elsewhere/it.png", r".\..\elsewhere\it.png", path)
    rows = "".join(f"{p},1,2,{n},4,dog\n" for n, p in enumerate(spelled, 5))
    (tmp_path / "here" / "annotations.csv").write_text(rows)
    reader = CsvReader(tmp_path / "here" / "annotations.csv")
    images = train_set(reader)
    assert [len(image.boxes) for image in images] == [3, 1]
    assert all(image.path.samefile(path) for image in images)
    assert reader.problems == []


def test_the_class_file_gives_the_order_else_the_alphabet(tmp_path):
    write_rows(tmp_path / "annotations.csv", [("a.png", 1, 2, 3, 4, "zebra"), ("a.png", 1, 2, 3, 4, "ant")])
    reader = CsvReader(tmp_path)
    reader.read("annotations")
    assert reader.classes() == ["ant", "zebra"]
    write_rows(tmp_path / "classes.csv", [("class_name", "id"), ("b", 7), ("a", 3), ("b", 7)])
    assert CsvReader(tmp_path).classes() == ["a", "b"]


# === Pascal VOC ===
def test_voc_corners_are_pixels_from_one_with_the_last(tmp_path):
    corners = [(1, 1, WIDTH, HEIGHT), (3, 4, 4, 5), (7, 2, 7, 9), (7, 2, 9, 2)]
    reader = with_item("voc", tmp_path, "".join(voc_object("cat", own) for own in corners))
    edges = [(0, 0, WIDTH, HEIGHT), (2, 3, 4, 5), (6, 1, 7, 9), (6, 1, 9, 2)]  # xmin = xmax is one pixel wide
    assert found(train_set(reader))["a"] == [("cat", own) for own in edges]
    assert reader.problems == []


ENTITIES = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(12))  # a billion letters in a kilobyte


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<annotation><object></annotation>", "mismatched tag: line 1"),
        ("", "no element found"),
        (f'<!DOCTYPE a [<!ENTITY l0 "lol">{ENTITIES}]><a>&l12;</a>', "limit on input amplification"),
        (None, "No such file"),
    ],
)
def test_an_xml_file_that_cannot_be_used_costs_only_its_image(text, reason, tmp_path):
    path = write_voc_source(tmp_path) / "Annotations" / "b.xml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    reader = VocReader(tmp_path)
    assert found(read_clean(reader, "train")).keys() == TRAIN.keys() - {"b"}
    ((file, _, problem, value, done),) = reader.problems
    assert (file, problem, done) == (str(path), "annotation file missing or not well-formed XML", "image left out")
    assert value.startswith(reason)


def test_lists_of_single_classes_and_of_names_with_spaces(tmp_path):
    write_voc_source(tmp_path, {"cat_train": {"a": TRAIN["a"], "my photo": TRAIN["b"], "photo 1": TRAIN["b"]}})
    listing = tmp_path / "ImageSets" / "Main" / "cat_train.txt"
    listing.write_text("\ufeffa  1\nmy photo -1\n\nmy photo\nphoto 1 0\n", encoding="utf-8")
    reader = VocReader(tmp_path)
    assert [image.name for image in read_clean(reader, "cat_train")] == ["a", "my photo", "photo 1"]
    assert told(reader.problems) == [("line 4", "image listed twice", "taken once")]


def test_images_and_xml_files_in_one_folder(tmp_path):
    (tmp_path / "one.xml").write_text(voc_file(voc_object("cat", (1, 1, 5, 5))))
    (tmp_path / "two.xml").write_text(voc_file("<filename>C:\\photos\\other.png</filename>"))
    picture(tmp_path / "one.jpg", 1).rename(tmp_path / "one.JPEG")
    picture(tmp_path / "other.png", 2)
    reader = VocReader(tmp_path)
    assert reader.sets == ["train"]
    assert [image.path.name for image in read_clean(reader, "train")] == ["one.JPEG", "other.png"]
    assert reader.problems == []


# === COCO ===
@pytest.mark.parametrize("change", [{"file_name": None}, {"id": 0}, {"file_name": "a.png"}])
def test_a_bad_coco_image_is_reported_with_its_place(change, tmp_path):
    content = coco_content(TRAIN)
    content["images"][2] |= change
    write_coco_source(tmp_path, {"train": TRAIN})
    (tmp_path / COCO_TRAIN).write_text(json.dumps(content))
    reader = CocoReader(tmp_path)
    assert found(read_clean(reader, "train")).keys() == TRAIN.keys() - {"c"}
    ((_, place, problem, _, _),) = reader.problems
    assert (place.split(" ")[0], problem) == ("images[2]", "image without file_name and id of its own")


def test_crowds_are_groups_and_classes_without_boxes_count(tmp_path):
    content = coco_content(TRAIN)
    content["annotations"][1]["iscrowd"] = 1
    content["categories"] += [{"id": 5, "name": "cow"}, {"id": 1, "name": "ant"}, {"id": 9, "name": "cat"}]
    content["annotations"][0]["category_id"] = 9
    content["annotations"].append("no annotation")
    write_coco_source(tmp_path)
    (tmp_path / COCO_TRAIN).write_text(json.dumps(content))
    reader = CocoReader(tmp_path)
    images = read_clean(reader, "train")
    assert [box.group_of for box in images[0].boxes] == [0, 1]
    assert found(images)["a"] == TRAIN["a"]
    assert reader.classes() == ["ant", "dog", "cow", "cat"]
    assert [row.problem for row in reader.problems] == ["category name occurs twice", "element that is not an object"]


@pytest.mark.parametrize("place", ["annotations/instances_x.json", "x.json", "x/_annotations.coco.json"])
@pytest.mark.parametrize("images", ["x", "images/x", "images"])
def test_where_the_files_of_coco_may_lie(place, images, tmp_path):
    for name in TRAIN:
        picture(tmp_path / images / f"{name}.png", name)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_text("\ufeff" + json.dumps(coco_content(TRAIN)), encoding="utf-8")
    for path in (tmp_path, tmp_path / place):
        reader = CocoReader(path)
        assert found(train_set(reader)) == TRAIN
        assert reader.problems == []


# === KITTI ===
def test_kittis_official_folders(tmp_path):
    folder = write_kitti_source(tmp_path, {"training": TRAIN}) / "training"
    (folder / "images").rename(folder / "image_2")
    (folder / "labels").rename(folder / "label_2")
    picture(tmp_path / "testing" / "image_2" / "a.png", "t")
    for path, name in ((tmp_path, "training"), (folder, "train")):
        reader = KittiReader(path)
        assert reader.sets == [name]
        assert len(read_clean(reader, name)) == len(TRAIN)


def test_marks_areas_and_files_of_kitti(tmp_path):
    lines = [
        kitti_line("Car", (1.25, 2, 9.75, 10), truncated=0.4, occluded=2),
        kitti_line("Own_thing", (1, 2, 9, 10), occluded=3),
        kitti_line("DontCare", (20, 2, 30, 10), truncated=-1, occluded=-1),
        "\n",
    ]
    reader = with_item("kitti", tmp_path, "".join(lines))
    picture(tmp_path / "train" / "images" / "unlabelled.png", "u")
    (tmp_path / "train" / "labels" / "lost.txt").write_text(lines[0])
    boxes = read_clean(reader, "train")[0].boxes
    assert reader.classes() == ["Car", "Own_thing"]
    assert [(box.class_name, box.corners, box.truncated, box.occluded) for box in boxes] == [
        ("Car", (1.25, 2, 9.75, 10), 1, 1),
        ("Own_thing", (1, 2, 9, 10), 0, -1),
        ("DontCare", (20, 2, 30, 10), 0, -1),
    ]
    assert told(reader.problems) == [
        ("", "image without a label file", "image left out"),
        ("", "missing image", "image and its boxes left out"),
    ]
