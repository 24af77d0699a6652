"""Boxes are read as the network sees them, with what is left out counted, and sampled with equal probability."""

import numpy as np
import polars as pl
import pytest

from oid.anchors.sampled_boxes import sample_boxes
from oid.columns import BOX_COLUMNS, CORNERS
from oid.files import InputError
from oid.images.table import read_image_sizes


def write_boxes(path, rows):
    """Writes rows of (image, label, box)."""
    names = ("ImageID", "LabelName", *CORNERS)
    columns = {name: [] for name in BOX_COLUMNS}
    for image, label, box in rows:
        values = dict(zip(names, (image, label, *box), strict=True))
        for name, column in columns.items():
            column.append(str(values.get(name, "0")))
    pl.DataFrame(columns).write_csv(path)


def image_sizes(**sizes):
    rows = [(name, *size) for name, size in sizes.items()]
    return pl.DataFrame(rows, schema={"id": pl.String, "width": pl.UInt32, "height": pl.UInt32}, orient="row")


def sample(path, sizes, labels=("/m/a", "/m/b"), **options):
    how = {"image_size": 100, "resize": "letterbox", "most_per_class": 10**6, "seed": 0} | options
    return sample_boxes(path, labels, sizes, **how)


def test_boxes_have_their_classes_and_those_left_out_are_counted(tmp_path):
    path = tmp_path / "boxes.csv"
    wide = (0.0, 0.0, 0.5, 1.0)
    rows = [("one", "/m/b", wide), ("two", "/m/a", wide), ("none", "/m/a", wide), ("two", "/m/a", (0.5, 0, 0.5, 1))]
    write_boxes(path, [*rows, ("two", "", (0, 0, 0, 0)), ("two", "/m/other", wide)])
    sizes = image_sizes(one=(200, 100), two=(50, 100))
    found = sample(path, sizes)
    np.testing.assert_allclose(found.boxes, [[0, 0.25, 0.5, 0.75], [0.25, 0, 0.5, 1]])
    assert found.classes.tolist() == [1, 0]
    assert found.counts.tolist() == [3, 1]
    assert (found.without_size, found.without_area) == (1, 1)
    assert found.weights.tolist() == [1.0, 3.0]
    np.testing.assert_allclose(sample(path, sizes, resize="warp").boxes, [wide, wide])


def test_a_sample_keeps_rare_classes_whole_and_limits_the_others(tmp_path):
    path = tmp_path / "boxes.csv"
    corners = np.random.default_rng(0).uniform(0, 1, (3000, 2, 2))
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    write_boxes(path, [("one", "/m/a" if k % 100 else "/m/b", box) for k, box in enumerate(boxes)])
    sizes = image_sizes(one=(640, 480))
    found = sample(path, sizes, most_per_class=300)
    assert found.counts.tolist() == [2970, 30]
    assert found.sampled[1] == 30
    assert 240 < found.sampled[0] < 360
    assert found.weights.sum() == pytest.approx(3000)
    again, other = (sample(path, sizes, most_per_class=300, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(found.boxes, again.boxes)
    assert len(other.boxes) != len(found.boxes) or not np.array_equal(other.boxes, found.boxes)
    means = [np.average(sampled.sizes[:, 0], weights=sampled.weights) for sampled in (found, sample(path, sizes))]
    assert means[0] == pytest.approx(means[1], rel=0.2)


@pytest.mark.parametrize("value", ["x", "", "nan"])
def test_the_line_of_a_bad_number_is_named(tmp_path, value):
    boxes, sizes = tmp_path / "boxes.csv", tmp_path / "params.csv"
    write_boxes(boxes, [("one", "/m/a", (0, 0, 1, 1)), ("one", "/m/a", (0, 0, value, 1))])
    with pytest.raises(InputError, match="line 3: the coordinates are not four numbers"):
        sample(boxes, image_sizes(one=(9, 9)))
    sizes.write_text(f"id,width,height,channel,size,md5\na,5,6,3,1,\nb,{value},6,3,1,\n")
    with pytest.raises(InputError, match="line 3: width or height of 'b'"):
        read_image_sizes(sizes)
