"""Proves training.data_set against a01's files read row by row, and what validation takes from it for the metric."""

import itertools
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oid import paths
from oid.columns import BOX_COLUMNS, IGNORED_REGION_COLUMNS, IMAGE_LABEL_COLUMNS
from oid.files import InputError
from tests.helpers.project import ROOT, refused
from tests.helpers.runs import copy_level, rows_of
from tests.helpers.small_open_images import Result
from training.data_set import distinct_pairs, read_classes, read_data_set
from training.validation import ground_truth


def corners(row: dict[str, str]) -> tuple[float, ...]:
    return tuple(float(np.float32(row[name])) for name in ("XMin", "YMin", "XMax", "YMax"))


MEASURE = """
import resource, sys
from pathlib import Path
from oid.images import find
from training import data_set
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
names = lambda folder: find.ImageList(str(folder), [f"{number:016x}.jpg" for number in range(int(sys.argv[2]))], [])
data_set.list_images = names
data = data_set.read_data_set(Path(sys.argv[1]), sys.argv[1], "1", "train")
print(len(data.objects.labels), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_has_a_bound_per_row(tmp_path):
    """All of Open Images, 14.6 million boxes of 1.7 million images, must fit into 1.5 GB: 100 bytes a box."""
    folder, images, boxes = tmp_path / "level_1_files", 150_000, 1_500_000
    folder.mkdir()
    (folder / "class-descriptions-boxable-level-1.csv").write_text("/m/a,A\n/m/b,B\n")
    for split in ("ignored-regions", "image-labels"):
        columns = IGNORED_REGION_COLUMNS if split == "ignored-regions" else IMAGE_LABEL_COLUMNS
        (folder / f"train-{split}-level-1.csv").write_text(",".join(columns) + "\n")
    ids = [f"{number:016x}" for number in range(images)]
    box = "xclick,/m/b,1,0.123456,0.523456,0.223456,0.823456,0,0,0,0,0"
    with (folder / "train-annotations-bbox-level-1.csv").open("w") as file:
        file.write(",".join(BOX_COLUMNS) + "\n")
        file.writelines(f"{ids[number * images // boxes]},{box}\n" for number in range(boxes))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, str(images)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    rows, kilobytes = map(int, done.stdout.split())
    assert rows == boxes
    assert kilobytes * 1024 < 60e6 + 100 * boxes


@pytest.mark.parametrize("split", ["train", "validation"])
def test_arrays_equal_a01s_files(photographs, split):
    data_set, output = photographs
    data = read_data_set(data_set, output, "1", split)
    classes = list(read_classes(output, "1"))
    boxes = [row for row in rows_of(paths.level_boxes(output, "1", split)) if row["LabelName"]]
    names = [*classes, *(name.removesuffix(", all") for name in data.coarse_names)]
    regions = rows_of(paths.level_ignored_regions(output, "1", split))
    labels = rows_of(paths.level_image_labels(output, "1", split))
    assert len(data.image_ids) == len(set(data.image_ids)) == len(data.paths)
    for index, image_id in enumerate(data.image_ids):
        assert data.paths[index].stem == image_id
        assert data.paths[index].parent == data_set / split
        for found, expected in ((data.objects.of(index), boxes), (data.regions.of(index), regions)):
            mine = [row for row in expected if row["ImageID"] == image_id]
            assert [tuple(box) for box in found[0].tolist()] == [corners(row) for row in mine]
            # of leaves: no label is a class and a coarse one
            assert [names[label] for label in found[1]] == [row["LabelName"] for row in mine]
    assert len(data.objects.labels) == len(boxes)
    assert len(data.regions.labels) == len(regions)
    grouped = sorted(row["ImageID"] for row in regions if row["Reason"] == "group_of")
    image = np.repeat(np.arange(len(data)), np.diff(data.regions.offsets))
    assert sorted(data.image_ids[index] for index in image[data.group_of]) == grouped
    verified = {(data.image_ids[i], classes[c]) for i, c in data.verified}
    assert verified == {(row["ImageID"], row["LabelName"]) for row in labels}
    assert data.missing == []
    assert data.objects.boxes.dtype == data.regions.boxes.dtype == np.float32
    assert data.objects.labels.dtype == np.int32


def test_verified_classes_are_those_with_a_label_or_a_box(photographs):
    data = read_data_set(*photographs, "1", "train")
    classes = list(read_classes(photographs[1], "1"))
    result = Result(photographs[1], "1")
    boxed = {(row[0], row[2]) for row in result.boxes}
    boxed |= {(row[0], row[1]) for row in result.regions if row[-1] == "group_of"}
    expected = {(row[0], row[1]) for row in result.image_labels} | boxed
    for index, image_id in enumerate(data.image_ids):
        found = data.verified_of(index)
        assert found.tolist() == sorted(classes.index(label) for image, label in expected if image == image_id)
        assert found.dtype == np.int32
    sizes = {image_id: len(data.verified_of(index)) for index, image_id in enumerate(data.image_ids)}
    # three image labels; a group-of box; two boxes; regions below a box of their ancestor alone
    assert (sizes["t_empty"], sizes["t_group"], sizes["t_flat"], sizes["t_kind"]) == (3, 1, 2, 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=40))
def test_distinct_pairs_are_a_sorted_set(rows):
    table = np.array(rows, "int64").reshape(-1, 2)
    image, classes = distinct_pairs(table[:, 0], table[:, 1].astype("int32"))
    assert list(zip(image.tolist(), classes.tolist(), strict=True)) == sorted(set(rows))


# === Regions below a coarse box ======================================================================================
def test_a_coarse_box_is_one_region_that_means_the_classes_below(photographs):
    """t_kind has a fruit: no tomato and no apple is denied there; classes are tomato, apple, carrot."""
    data = read_data_set(*photographs, "1", "train")
    assert data.coarse_names == ("food, all", "fruit, all", "vegetable, all")
    boxes, labels = data.regions.of(data.image_ids.index("t_kind"))
    assert boxes.shape == (1, 4)
    assert labels.tolist() == [4]
    assert labels.dtype == np.int32
    identity, below = [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[1, 1, 1], [1, 1, 0], [1, 0, 1]]
    assert data.region_classes.tolist() == identity + below
    assert data.region_classes.dtype == np.float32
    other = read_data_set(*photographs, "1", "validation")  # has no such box
    np.testing.assert_array_equal(other.region_classes, data.region_classes)
    assert other.coarse_names == data.coarse_names


@pytest.mark.parametrize("lost", ["the label", "the hierarchy"])
def test_a_coarse_region_needs_a_hierarchy_with_its_label(photographs, tmp_path, lost):
    data_set, output = shutil.copytree(photographs[0], tmp_path / "data"), copy_level(photographs[1], tmp_path)
    path, hierarchy = (
        paths.level_ignored_regions(output, "1", "train"),
        paths.annotation_file(data_set, paths.HIERARCHY),
    )
    if lost == "the label":
        path.write_text(re.sub(",fruit,(.*,ancestor_class)", r",dragon,\1", path.read_text()))
    else:
        hierarchy.unlink()
        assert read_data_set(data_set, output, "1", "validation").region_classes is None  # has no such region
    label = "dragon" if lost == "the label" else "fruit"
    with refused(
        f"classes below {label} in image ", f"{hierarchy} does not exist or has no class of the level below it"
    ):
        read_data_set(data_set, output, "1", "train")


# === Depictions ======================================================================================================
@pytest.fixture
def depicted(photographs, tmp_path):
    """Sets IsDepiction of each box of train to the next of the given values, in turn; returns the new OUTPUT."""

    def rewrite(*values: str):
        copy_level(photographs[1], tmp_path)
        path = paths.level_boxes(tmp_path, "1", "train")
        rows = rows_of(path)
        for row, value in zip([row for row in rows if row["LabelName"]], itertools.cycle(values), strict=False):
            row["IsDepiction"] = value
        path.write_text("\n".join(",".join(row) for row in (rows[0], *(row.values() for row in rows))) + "\n")
        return tmp_path

    return rewrite


@pytest.mark.parametrize("values", [("0", "1", "-1"), ("1",)], ids=["some", "all"])
def test_depictions_become_ignored_regions(photographs, depicted, values):
    """An image with nothing else stays."""
    output = depicted(*values)
    rows = [row for row in rows_of(paths.level_boxes(output, "1", "train")) if row["LabelName"]]
    plain = read_data_set(photographs[0], output, "1", "train")
    data = read_data_set(photographs[0], output, "1", "train", leave_out_depictions=True)
    assert data.image_ids == plain.image_ids
    classes = list(read_classes(output, "1"))
    for index, image_id in enumerate(data.image_ids):
        mine = [row for row in rows if row["ImageID"] == image_id]
        kept, left_out = ([row for row in mine if (row["IsDepiction"] == "1") == is_one] for is_one in (False, True))
        assert [tuple(box) for box in data.objects.of(index)[0].tolist()] == [corners(row) for row in kept]
        boxes, labels = data.regions.of(index)
        depiction = data.depiction[data.regions.offsets[index] : data.regions.offsets[index + 1]]
        assert [tuple(box) for box in boxes[depiction].tolist()] == [corners(row) for row in left_out]
        assert [classes[label] for label in labels[depiction]] == [row["LabelName"] for row in left_out]
        for found, expected in zip((boxes[~depiction], labels[~depiction]), plain.regions.of(index), strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(data.verified_of(index), plain.verified_of(index))
    assert 0 < data.depiction.sum() == len(plain.objects.labels) - len(data.objects.labels)
    assert data.group_of.sum() == plain.group_of.sum() == 1
    assert not (data.group_of & data.depiction).any()
    assert not plain.depiction.any()


def test_a_depiction_that_is_neither_yes_nor_no(photographs, depicted):
    output = depicted("0", "maybe")
    with refused("train-annotations-bbox-level-1.csv is damaged", "'IsDepiction'", "maybe"):
        read_data_set(photographs[0], output, "1", "train")


# === Missing images ==================================================================================================
def test_images_without_a_sound_file_are_left_out_and_listed(photographs, tmp_path):
    """One file is missing; a02 has listed another one, besides files that are no images."""
    data_set, output = shutil.copytree(photographs[0], tmp_path / "data"), copy_level(photographs[1], tmp_path)
    whole = read_data_set(*photographs, "1", "train")
    (data_set / "train" / whole.paths[3].name).unlink()
    damaged, notes = whole.paths[1], whole.paths[2].with_suffix(".txt")
    problems = f"path,reason\n{damaged},is cut short\n/elsewhere/other.jpg,is empty\n{notes},no image\n"
    paths.image_problems(output, "train").write_text(problems)
    part = read_data_set(data_set, output, "1", "train")
    assert part.missing == [whole.image_ids[k] for k in (1, 3)]
    assert part.image_ids == [image_id for image_id in whole.image_ids if image_id not in part.missing]
    for index, image_id in enumerate(part.image_ids):
        for found, expected in ((part.objects, whole.objects), (part.regions, whole.regions)):
            for mine, other in zip(found.of(index), expected.of(whole.image_ids.index(image_id)), strict=True):
                np.testing.assert_array_equal(mine, other)
    assert {part.image_ids[i] for i in part.verified[:, 0]}.isdisjoint(part.missing)


def test_a_folder_without_any_image_of_the_level(photographs, tmp_path):
    shutil.copytree(photographs[0] / "annotations", tmp_path / "annotations")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match="check the folder of the data set"):
        read_data_set(tmp_path, photographs[1], "1", "train")


def test_a_missing_level_names_the_remedy(photographs):
    for read in (lambda: read_classes(photographs[1], "9"), lambda: read_data_set(*photographs, "9", "train")):
        with pytest.raises(InputError, match=re.escape("run a01_create_training_files.py with --levels 9")):
            read()


@pytest.mark.parametrize(
    ("line", "old", "new", "message"),
    [
        (0, "XMin", "XMinimum", "is damaged"),
        (1, r",0\.", ",zero", "is damaged (could not parse `zero"),
        (1, r",0\.\d+", ",", "a box without coordinates"),
    ],
)
def test_damaged_files_are_named(photographs, tmp_path, line, old, new, message):
    path = paths.level_boxes(copy_level(photographs[1], tmp_path), "1", "train")
    lines = path.read_text().splitlines()
    lines[line] = re.sub(old, new, lines[line], count=1)
    path.write_text("\n".join(lines))
    with refused(path.name, message):
        read_data_set(photographs[0], tmp_path, "1", "train")


# === A part of the images ============================================================================================
def test_at_most_is_always_the_same_part(photographs):
    whole = read_data_set(*photographs, "1", "train")
    part, again = (read_data_set(*photographs, "1", "train", at_most=5) for _ in range(2))
    assert len(part) == 5
    assert part.image_ids == again.image_ids
    order = [whole.image_ids.index(image_id) for image_id in part.image_ids]
    assert order == sorted(order) != list(range(5))  # chosen at random, not the first
    for index, position in enumerate(order):
        np.testing.assert_array_equal(part.objects.of(index)[0], whole.objects.of(position)[0])
    for many in (0, len(whole), 1000):
        assert read_data_set(*photographs, "1", "train", at_most=many).image_ids == whole.image_ids


# === What the metric gets ============================================================================================
def test_ground_truth_has_boxes_group_of_boxes_and_verified_classes(photographs):
    data = read_data_set(*photographs, "1", "train")
    truth = ground_truth(data)
    classes = list(read_classes(photographs[1], "1"))
    result = Result(photographs[1], "1")
    assert list(truth.image_ids) == sorted(data.image_ids)
    found = sorted(
        (truth.image_ids[image], classes[label], *(f"{value:.6f}" for value in box))
        for image, label, box in zip(truth.box_image, truth.box_class, truth.boxes, strict=True)
    )
    rows = [(row[0], row[2], *row[4:8]) for row in result.boxes]
    rows += [row[:6] for row in result.regions if row[-1] == "group_of"]  # none that is ignored for another reason
    expected = [(row[0], row[1], *(f"{float(row[i]):.6f}" for i in (2, 4, 3, 5))) for row in rows]
    assert found == sorted(expected)
    assert [truth.image_ids[i] for i in truth.box_image[truth.box_group_of]] == ["t_group"]
    labels = sorted((truth.image_ids[i], classes[c]) for i, c in zip(truth.label_image, truth.label_class, strict=True))
    assert labels == sorted((row[0], row[1]) for row in result.image_labels)


def test_the_order_of_the_rows_does_not_matter(photographs, tmp_path):
    path = paths.level_boxes(copy_level(photographs[1], tmp_path), "1", "validation")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(lines)]) + "\n")
    turned, usual = (read_data_set(photographs[0], out, "1", "validation") for out in (tmp_path, photographs[1]))
    assert turned.image_ids != usual.image_ids
    a, b = ground_truth(turned), ground_truth(usual)
    assert a.image_ids == b.image_ids
    boxes = [sorted(zip(t.box_image, t.box_class, map(tuple, t.boxes), strict=True)) for t in (a, b)]
    assert boxes[0] == boxes[1]


def test_a_level_without_images_in_a_split_is_an_empty_data_set(photographs, tmp_path):
    data_set, output = photographs
    copy_level(output, tmp_path)
    for name in ("annotations-bbox", "ignored-regions", "image-labels"):
        path = tmp_path / "level_1_files" / f"validation-{name}-level-1.csv"
        path.write_text(path.read_text().splitlines()[0] + "\n")
    data = read_data_set(data_set, tmp_path, "1", "validation")
    assert len(data) == 0
    assert data.objects.boxes.shape == (0, 4)
    assert data.verified.shape == (0, 2)
