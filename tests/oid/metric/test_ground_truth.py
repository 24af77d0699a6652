"""Proves how ground truth is read and expanded: copies to ancestors and descendants, what is dropped, and that a
mistake in a file is named with its line."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.hierarchy import Hierarchy, read_hierarchy
from oid.metric.ground_truth import read_ground_truth
from tests.helpers.project import shared


def node(label: str, *children: dict) -> dict:
    return {"LabelName": label, "Subcategory": list(children)}


# The tree of the reference's own test: a(root){b, c{d, e, f{d}}, f{d}}
TREE = Hierarchy(node("a", node("b"), node("c", node("d"), node("e"), node("f", node("d"))), node("f", node("d"))))
CLASSES = list("bcdef")
BOX_HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
LABEL_HEADER = "ImageID,LabelName,Confidence"


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def box_rows(truth) -> list[tuple]:
    columns = (truth.box_image, truth.box_class, truth.box_group_of, truth.boxes.tolist())
    return [(truth.image_ids[i], CLASSES[c], bool(g), box) for i, c, g, box in zip(*columns, strict=True)]


def verified(truth) -> set[tuple[str, str]]:
    return {(truth.image_ids[i], CLASSES[c]) for i, c in zip(truth.label_image, truth.label_class, strict=True)}


def test_boxes_and_labels_of_the_reference(tmp_path):
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, "1,b,0,0.1,0.2,0.3,0", "1,d,0.0,.3,.5,.6,1")
    labels = written(tmp_path / "labels.csv", LABEL_HEADER, "1,b,0", "2,c,0", "3,d,1")
    truth, report = read_ground_truth(boxes, labels, TREE, CLASSES)
    assert truth.image_ids == ("1", "2", "3")
    b_box, d_box = [0, 0.2, 0.1, 0.3], [0.0, 0.5, 0.3, 0.6]
    assert box_rows(truth)[0] == ("1", "b", False, b_box)
    assert sorted(box_rows(truth)[1:]) == [("1", label, True, d_box) for label in "cdf"]
    assert verified(truth) == {("1", "b"), *(("2", label) for label in "cdfe"), *(("3", label) for label in "dfc")}
    assert (report.boxes, report.image_labels) == (2, 3)
    assert report.dropped_boxes == report.dropped_image_labels == {}


def test_copies_follow_their_row_and_nothing_is_merged(tmp_path):
    """A box of a child and the same box of its parent give the parent two; a class on two ways gives one."""
    same = "0,0.5,0,0.5,0"
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, f"1,e,{same}", f"1,c,{same}", f"1,e,{same}", f"1,d,{same}")
    truth, _ = read_ground_truth(boxes, None, TREE, CLASSES)
    assert [CLASSES[index] for index in truth.box_class] == ["e", "c", "c", "e", "c", "d", "c", "f"]
    assert len(truth.label_image) == 0


def test_classes_that_occur(tmp_path):
    """Sorted without a hierarchy, which leaves rows as they are; else with ancestors and descendants in its order."""
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, "1,e,0,1,0,1,0")
    labels = written(tmp_path / "labels.csv", LABEL_HEADER, "1,c,0")
    truth, report = read_ground_truth(boxes, labels)
    assert (report.labels, truth.box_class.tolist(), truth.label_class.tolist()) == (("c", "e"), [1], [0])
    assert read_ground_truth(boxes, None, TREE)[1].labels == ("c", "e")
    assert read_ground_truth(boxes, labels, TREE)[1].labels == ("c", "d", "e", "f")


def test_class_outside_the_list_is_dropped_with_its_copies(tmp_path):
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, "1,f,0,1,0,1,0", "2,d,0,1,0,1,0", "3,f,0,1,0,1,0")
    labels = written(tmp_path / "labels.csv", LABEL_HEADER, "1,f,1", "2,f,0", "2,e,1")
    truth, report = read_ground_truth(boxes, labels, TREE, list("bcde"))
    assert truth.image_ids == ("1", "2", "3")  # a row of any class makes an image an evaluated one
    assert [(i, "bcde"[c]) for i, c in zip(truth.box_image, truth.box_class, strict=True)] == [(1, "d"), (1, "c")]
    assert sorted("bcde"[c] for c in truth.label_class) == ["c", "e"]
    assert report.dropped_boxes == {"f": 2}
    assert report.dropped_image_labels == {"f": 2}
    assert (report.boxes, report.image_labels) == (1, 1)


def test_column_order_further_columns_ids_as_text_and_images_without_boxes(tmp_path):
    boxes = written(
        tmp_path / "boxes.csv",
        "\ufeffIsGroupOf,YMax,YMin,XMax,XMin,Confidence,LabelName,ImageID,Source",
        "1,0.4,0.3,0.2,0.1,1,b,007,xclick",
        ",,,,,,,1e5,",
        "",
        '0,"0.8", 0.7 ,0.6,0.5,1,b,7,xclick',
    )
    labels = written(tmp_path / "labels.csv", LABEL_HEADER + ",Source", "0x1F,b,0,verification", "nan,b,1,")
    truth, _ = read_ground_truth(boxes, labels, None, CLASSES)
    assert truth.image_ids == ("007", "0x1F", "1e5", "7", "nan")
    assert box_rows(truth) == [("007", "b", True, [0.1, 0.3, 0.2, 0.4]), ("7", "b", False, [0.5, 0.7, 0.6, 0.8])]
    assert verified(truth) == {("0x1F", "b"), ("nan", "b")}


def test_coordinates_are_read_exactly(tmp_path):
    numbers = np.random.default_rng(0).random((500, 2))
    numbers.sort(axis=1)
    lines = [f"1,b,{low!r},{high!r},{low:.20e},{high:.20e},0" for low, high in numbers.tolist()]
    truth, _ = read_ground_truth(written(tmp_path / "boxes.csv", BOX_HEADER, *lines))
    np.testing.assert_array_equal(truth.boxes, numbers[:, [0, 0, 1, 1]])


def test_unknown_group_of_counts_as_the_reference_has_it(tmp_path):
    boxes = written(tmp_path / "b.csv", BOX_HEADER, "1,b,0,1,0,1,-1", "1,b,0,1,0,1,0.0", "1,b,0,1,0,1,1.0")
    assert read_ground_truth(boxes)[0].box_group_of.tolist() == [True, False, True]


GOOD_BOX = "1,b,0,1,0,1,0"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([BOX_HEADER, GOOD_BOX, "1,b,0,x,0,1,0"], r"line 3: XMax is 'x'"),
        ([BOX_HEADER, GOOD_BOX, "", "1,b,0,1,0,,0"], r"line 4: YMax is empty"),
        ([BOX_HEADER, "1,b,0,nan,0,1,0"], r"line 2: XMax is 'nan'"),
        ([BOX_HEADER, "1,b,0,inf,0,1,0"], r"line 2: XMax is 'inf'"),
        ([BOX_HEADER, "1,b,0.9,0.1,0,1,0"], r"line 2: XMin is '0.9': greater than XMax"),
        ([BOX_HEADER, "1,b,0,1,0.5,0.4,0"], r"line 2: YMin is '0.5': greater than YMax"),
        ([BOX_HEADER, "1,b,0,1,0,1,2"], r"line 2: IsGroupOf is '2'"),
        ([BOX_HEADER, "1,b,0,1,0,1"], r"line 2: IsGroupOf is empty"),
        ([BOX_HEADER, ",b,0,1,0,1,0"], r"line 2: ImageID is empty"),
        ([BOX_HEADER, "1,,0,1,0,1,0"], r"line 2: LabelName is empty"),
        ([BOX_HEADER, GOOD_BOX, "1,b,0,1,0,1,0,9"], r"line 3: "),
        ([BOX_HEADER.replace(",IsGroupOf", ""), "1,b,0,1,0,1"], r"column IsGroupOf is missing"),
        ([BOX_HEADER, GOOD_BOX, "1,zz,0,1,0,1,0"], r"line 3: the label 'zz' is neither in the class desc.* hierarchy"),
        ([BOX_HEADER, GOOD_BOX, "1,new,0,1,0,1,0"], r"line 3: the label 'new' is in the class desc.* not in the hier"),
        ([BOX_HEADER, "1,a,0,1,0,1,0"], r"line 2: the label 'a' is neither"),  # the root is no class
        ([BOX_HEADER], r"not one row has a class that is evaluated"),
        ([BOX_HEADER, "1,,,,,,"], r"not one row has a class that is evaluated"),
        ([BOX_HEADER, "1,f,0,1,0,1,0"], r"not one row has a class that is evaluated"),
        ([""], r"is empty"),
    ],
)
def test_mistake_in_the_box_file(tmp_path, lines: list[str], message: str):
    with pytest.raises(InputError, match=message) as error:
        read_ground_truth(written(tmp_path / "boxes.csv", *lines), None, TREE, [*"bcde", "new"])
    assert str(tmp_path / "boxes.csv") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([LABEL_HEADER, "1,b,1", "1,b,0.7"], r"line 3: Confidence is '0.7'.*human-verified"),
        ([LABEL_HEADER, "1,b,1.0"], r"line 2: Confidence is '1.0'"),
        ([LABEL_HEADER, "1,b,"], r"line 2: Confidence is empty"),
        ([LABEL_HEADER, "1"], r"line 2: LabelName is empty"),
        ([LABEL_HEADER, "1,zz,0"], r"line 2: the label 'zz'"),
        (["ImageID,Label,Confidence", "1,b,0"], r"column LabelName is missing"),
    ],
)
def test_mistake_in_the_label_file(tmp_path, lines: list[str], message: str):
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, GOOD_BOX)
    with pytest.raises(InputError, match=message) as error:
        read_ground_truth(boxes, written(tmp_path / "labels.csv", *lines), TREE, CLASSES)
    assert str(tmp_path / "labels.csv") in str(error.value)


def test_files_that_do_not_fit(tmp_path):
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, GOOD_BOX)
    with pytest.raises(InputError, match=r"line 2: the label 'b' is not in the class descriptions"):
        read_ground_truth(boxes, None, None, ["c"])
    for path in (tmp_path / "nowhere.csv", tmp_path):
        for arguments in ((path,), (boxes, path)):
            with pytest.raises(InputError, match=r"does not exist|is a folder"):
                read_ground_truth(*arguments)
    binary = tmp_path / "binary.csv"
    for content in (gzip.compress(boxes.read_bytes()), (BOX_HEADER + "\n\xe9,b,0,1,0,1,0\n").encode("latin-1")):
        binary.write_bytes(content)
        with pytest.raises(InputError, match=r"binary\.csv.*UTF-8"):
            read_ground_truth(binary)


def test_real_rows_of_six_classes():
    folder = shared("data", "oid_rows", "six_classes")
    classes = list(read_class_descriptions(folder / "class-descriptions-boxable.csv"))
    hierarchy = read_hierarchy(shared("data", "oid_metadata", "bbox_labels_600_hierarchy.json"))
    path = folder / "test-annotations-bbox.csv"
    truth, report = read_ground_truth(path, None, hierarchy, classes)
    assert report.boxes == len(path.read_text(encoding="utf-8").splitlines()) - 1 == 2784
    assert truth.box_group_of.sum() >= 104
    assert len(truth.boxes) == 2784  # a foot is a Part of a body, not a Subcategory: no box gains an ancestor
