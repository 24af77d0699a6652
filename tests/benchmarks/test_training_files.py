"""Proves that the benchmark's files are what they claim, and that its peer writes the boxes that a01 writes."""

import polars as pl
import pytest

from a01_create_training_files import main
from benchmarks.training_files import CLASSES, INNER, make_data_set, with_polars
from oid import paths
from oid.annotations import read_boxes, read_image_labels
from oid.columns import CORNERS
from oid.hierarchy import read_hierarchy
from tests.helpers.project import shared


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
    assert 0.05 < (boxes["IsGroupOf"] == "1").mean() < 0.07
    rectangles = read_boxes(paths.box_annotations(data_set, "train"), ["ImageID", *CORNERS])
    shared_rectangles = rectangles.filter(rectangles.is_duplicated())
    assert 0.02 < len(shared_rectangles) / len(boxes) < 0.05
    labels = read_image_labels(paths.image_label_annotations(data_set, "train"))
    assert (len(labels), labels["ImageID"].n_unique()) == (90_000, 17_430)
    assert 0.4 < (labels["Confidence"] == "1").mean() < 0.7
    counts = boxes["LabelName"].value_counts()["count"].sort()
    assert counts[-1] > 30 * counts.median()  # a long tail


def test_a_made_hierarchy_has_the_official_size(data_set):
    hierarchy = read_hierarchy(paths.annotation_file(data_set, paths.HIERARCHY))
    assert len(hierarchy.labels) == CLASSES
    assert sum(bool(hierarchy.children(label)) for label in hierarchy.labels) <= INNER
    assert {hierarchy.height(label) for label in hierarchy.labels} == {1, 2, 3}


@pytest.mark.parametrize("metadata", [None, "official"])
def test_files_follow_from_the_seed(tmp_path, metadata):
    metadata = metadata and str(shared("data", "oid_metadata"))
    texts = []
    for number, seed in enumerate((3, 3, 4)):
        make_data_set(tmp_path / str(number), size=0.0005, metadata=metadata, seed=seed)
        texts.append([path.read_bytes() for path in sorted((tmp_path / str(number)).rglob("*train*.csv"))])
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_level_1_has_the_boxes_of_the_peer_in_polars(data_set, tmp_path):
    main(dataset_path=str(data_set), output_path=str(tmp_path), levels=("1",))
    classes = paths.level_class_descriptions(tmp_path, "1")
    with_polars(str(paths.box_annotations(data_set, "train")), str(classes), str(tmp_path / "peer.csv"))
    files = paths.level_boxes(tmp_path, "1", "train"), tmp_path / "peer.csv"
    numbers = pl.col(CORNERS).cast(pl.Float64)  # polars writes 0.5 for 0.500000
    ours, theirs = (
        pl.read_csv(path, infer_schema=False).drop_nulls("LabelName").select("ImageID", "LabelName", numbers)
        for path in files
    )
    assert ours.equals(theirs.unique(maintain_order=True))
