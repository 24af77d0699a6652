"""Proves that the benchmark's files are what they claim, and a01 on some of their size: batches, threads, a peer."""

import csv

import polars as pl
import pytest

from a01_create_training_files import main
from benchmarks.training_files import CLASSES, CLICK_COLUMNS, DEPTH, INNER, in_the_ancestors_way, make_data_set
from oid import paths
from oid.annotations import BOX_COLUMNS, read_boxes, read_class_descriptions, read_image_labels
from oid.hierarchy import read_hierarchy
from tests.helpers.project import run_script, shared


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    """A hundredth of Open Images."""
    folder = tmp_path_factory.mktemp("hundredth")
    make_data_set(folder, size=0.01)
    return folder


def test_files_are_those_of_open_images(data_set):
    boxes = read_boxes(paths.box_annotations(data_set, "train"))
    assert (len(boxes), boxes["ImageID"].n_unique()) == (146_102, 17_430)
    assert boxes["ImageID"].is_sorted()
    assert set(boxes["ImageID"].str.len_bytes()) == {16}
    assert 0.05 < boxes["group_of"].mean() < 0.07
    shared_rectangles = boxes.filter(pl.len().over("rectangle") > 1)
    assert 0.02 < len(shared_rectangles) / len(boxes) < 0.05
    labels = read_image_labels(paths.image_label_annotations(data_set, "train"))
    assert (len(labels), labels["ImageID"].n_unique()) == (90_000, 17_430)
    assert 0.4 < labels["positive"].mean() < 0.7
    counts = boxes["LabelName"].value_counts()["count"].sort()
    assert counts[-1] > 30 * counts.median()  # a long tail


def test_a_made_hierarchy_has_the_official_size(data_set):
    hierarchy = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    assert len(hierarchy.labels) == CLASSES
    assert sum(bool(hierarchy.children(label)) for label in hierarchy.labels) <= INNER
    assert max(hierarchy.height(label) for label in hierarchy.labels) <= DEPTH


@pytest.mark.parametrize("metadata", [None, "official"])
def test_files_follow_from_the_seed(tmp_path, metadata):
    metadata = metadata and str(shared("data", "oid_metadata"))
    texts = []
    for number, seed in enumerate((3, 3, 4)):
        make_data_set(tmp_path / str(number), size=0.0005, v6=True, metadata=metadata, seed=seed)
        texts.append([path.read_bytes() for path in sorted((tmp_path / str(number)).rglob("*train*.csv"))])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]
    with open(paths.box_annotations(tmp_path / "0", "train"), newline="") as file:
        rows = csv.reader(file)
        assert next(rows) == [*BOX_COLUMNS, *CLICK_COLUMNS]
        assert len(next(rows)) == 21


def test_several_batches_give_the_same_on_any_number_of_threads(data_set, tmp_path):
    found = []
    for threads in ("1", "2"):
        output = tmp_path / threads
        done = run_script(
            "a01_create_training_files.py",
            *("--dataset_path", data_set, "--output_path", output, "--levels", "1", "all"),
            environment={"POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads},
        )
        assert (done.returncode, done.stderr) == (0, "")
        found.append({str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*.*")})
    assert found[0] == found[1]
    assert len(found[0]) == 2 * 9


def test_level_1_has_the_boxes_of_the_ancestors_way(data_set, tmp_path):
    main(dataset_path=str(data_set), output_path=str(tmp_path), levels=("1",))
    classes = paths.level_class_descriptions(tmp_path, "1")
    assert 400 < len(read_class_descriptions(classes)) <= CLASSES - INNER // 2
    in_the_ancestors_way(str(paths.box_annotations(data_set, "train")), str(classes), str(tmp_path / "peer.csv"))
    ours, theirs = (
        pl.read_csv(path, infer_schema=False).filter(pl.col("LabelName").is_not_null())
        for path in (paths.level_boxes(tmp_path, "1", "train"), tmp_path / "peer.csv")
    )
    box = ["ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax"]
    numbers = [pl.col(name).cast(pl.Float64) for name in box[2:]]  # pandas writes 0.5 for 0.500000
    ours, theirs = (rows.select(*box[:2], *numbers) for rows in (ours, theirs))
    assert ours.equals(theirs.unique(maintain_order=True))
