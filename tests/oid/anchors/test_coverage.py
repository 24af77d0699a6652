"""Coverage: the best anchor is found at its place, boxes lie as the network sees them, k-means finds what there is."""

import csv
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import a02_find_image_parameters as a02
from oid import paths
from oid.anchors.clusters import cluster_sizes
from oid.anchors.coverage import best_ious, weighted_mean, weighted_quantiles
from oid.anchors.grids import anchor_settings, make_anchors, settings_of_sizes
from oid.anchors.sampled_boxes import letterboxed, read_image_sizes, sample_boxes
from oid.boxes.suppression import iou_matrix
from oid.files import InputError
from oid.images.letterbox import letterbox_frame
from training import plan


def random_boxes(count, seed=0, smallest=-7):
    rng = np.random.default_rng(seed)
    size = 2.0 ** rng.uniform(smallest, 0, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (1 - size)
    return np.concatenate([corner, corner + size], axis=1)


@pytest.mark.parametrize(
    "anchors",
    [
        anchor_settings(192, 4),
        anchor_settings(100, 3, anchors="official"),
        anchor_settings(320, 6, anchors="official"),  # centres beyond the image are cut to it
        anchor_settings(800, 6, anchors="official"),
        anchor_settings(16, 1),
        settings_of_sizes([[[0.02, 0.3], [0.4, 0.1]], [[2.0, 0.5], [0.01, 0.01]]], [7, 2]),
    ],
)
def test_the_best_anchor_is_that_of_all(anchors):
    boxes = np.concatenate(
        [random_boxes(60), [[0, 0, 1, 1], [0.99, 0.99, 1, 1], [-0.2, 0, 0.1, 0.1], [1, 1, 1.2, 1.1]]]
    )
    everywhere = make_anchors(anchors).astype("float64")
    np.testing.assert_allclose(best_ious(boxes, anchors), iou_matrix(boxes, everywhere).max(axis=1), atol=2e-6)


def test_no_boxes_at_all():
    assert best_ious(np.empty((0, 4)), anchor_settings(64, 2)).shape == (0,)


def test_by_hand():
    """One cell, one square of half the image: a box of a quarter of its area inside it, and one beside it."""
    anchors = settings_of_sizes([[[0.5, 0.5]]], [1])
    boxes = np.array([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.2, 0.2], [0.5, 0.25, 1.0, 0.75]])
    np.testing.assert_allclose(best_ious(boxes, anchors), [0.25, 1.0, 0.0, 1 / 3])


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 800))
@settings(max_examples=200, deadline=None)
def test_boxes_lie_in_the_square_as_the_network_has_them(width, height, side):
    x0, y0, x1, y1 = letterbox_frame(height, width, side, side)
    whole = letterboxed(np.array([[0.0, 0.0, 1.0, 1.0]]), np.array([float(width)]), np.array([float(height)]), side)
    np.testing.assert_allclose(whole[0] * side, (x0, y0, x1, y1), atol=1e-9)


# === Reading ==========================================================================================================
HEADER = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"


def write_boxes(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{i},x,{label},1,{x0},{x1},{y0},{y1},0,0,0,0,0" if label else f"{i},,,,,,,,,,,,"
        for i, label, (x0, y0, x1, y1) in rows
    ]
    path.write_text("\n".join([HEADER, *lines, ""]))


def image_sizes(**sizes):
    rows = [(name, *size) for name, size in sizes.items()]
    return pl.DataFrame(rows, schema={"id": pl.String, "width": pl.UInt32, "height": pl.UInt32}, orient="row")


def sample(path, sizes, labels=("/m/a", "/m/b"), **options):
    how = {"image_size": 100, "letterbox": True, "most_per_class": 10**6, "seed": 0} | options
    return sample_boxes(path, labels, sizes, **how)


def test_boxes_are_read_with_their_classes_and_what_is_left_out_is_counted(tmp_path):
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
    np.testing.assert_allclose(sample(path, sizes, letterbox=False).boxes, [wide, wide])


def test_a_sample_has_each_box_of_rare_classes_and_as_many_as_asked_of_others(tmp_path):
    path = tmp_path / "boxes.csv"
    boxes = random_boxes(3000)
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
def test_a_coordinate_that_is_no_number_is_named(tmp_path, value):
    path = tmp_path / "boxes.csv"
    write_boxes(path, [("one", "/m/a", (0, 0, 1, 1)), ("one", "/m/a", (0, 0, value, 1))])
    with pytest.raises(InputError, match="line 3: the coordinates are not four numbers"):
        sample(path, image_sizes(one=(9, 9)))


def test_a_size_that_is_no_number_is_named(tmp_path):
    path = tmp_path / "params.csv"
    path.write_text("id,width,height,channel,size,md5\na,5,6,3,1,\nb,0,6,3,1,\n")
    with pytest.raises(InputError, match="line 3: width or height of 'b'"):
        read_image_sizes(path)


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 4)), min_size=1, max_size=20))
@settings(deadline=None)
def test_weighted_figures_are_those_of_repeated_values(pairs):
    values, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    repeated = np.repeat(values, weights.astype(int))
    assert weighted_mean(values, weights) == pytest.approx(repeated.mean())
    shares = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    expected = np.quantile(repeated, shares, method="inverted_cdf")
    np.testing.assert_array_equal(weighted_quantiles(values, weights, shares), expected)


# === k-means ==========================================================================================================
def boxes_of_sizes(sizes, count, seed=0):
    rng = np.random.default_rng(seed)
    pairs = np.repeat(np.asarray(sizes), count, axis=0) * rng.uniform(0.97, 1.03, (count * len(sizes), 2))
    corner = rng.uniform(0, 1, pairs.shape) * (1 - pairs)
    return np.concatenate([corner, corner + pairs], axis=1)


def test_k_means_finds_the_sizes_that_there_are():
    """Three shapes for the finer map, three for the coarser one, each several of its cells wide."""
    made = [(0.1, 0.1), (0.05, 0.2), (0.2, 0.05), (0.6, 0.6), (0.35, 0.8), (0.8, 0.35)]
    boxes = boxes_of_sizes(made, 100)
    found = cluster_sizes(boxes, np.ones(len(boxes)), sides=[48, 12], anchors_per_cell=3, seed=0)
    for wanted, pairs in ((made[:3], found[0]), (made[3:], found[1])):
        np.testing.assert_allclose(sorted(pairs), sorted(wanted), rtol=0.02)
        areas = np.prod(pairs, axis=1)
        assert (np.diff(areas) >= 0).all()
    covered = best_ious(boxes, settings_of_sizes(found, [48, 12])) >= 0.5
    assert covered.all()


def test_k_means_is_the_same_for_the_same_seed_and_follows_the_weights():
    boxes = random_boxes(500, smallest=-4)
    options = {"sides": [24, 12], "anchors_per_cell": 2, "seed": 3}
    weights = np.where(boxes[:, 2] - boxes[:, 0] > boxes[:, 3] - boxes[:, 1], 1.0, 50.0)
    found = cluster_sizes(boxes, np.ones(500), **options)
    assert found == cluster_sizes(boxes, np.ones(500), **options)
    tall = cluster_sizes(boxes, weights, **options)
    ratio = [np.mean([h / w for pairs in sizes for w, h in pairs]) for sizes in (found, tall)]
    assert ratio[1] > ratio[0]


def test_a_map_without_boxes_has_its_neighbours_sizes_and_none_is_said():
    boxes = boxes_of_sizes([(0.1, 0.1)], 50)
    found = cluster_sizes(boxes, np.ones(50), sides=[20, 10, 5], anchors_per_cell=1, seed=0)
    np.testing.assert_allclose(np.ravel(found), np.repeat([0.1, 0.2, 0.4], 2), rtol=0.05)
    assert cluster_sizes(boxes[:1], np.ones(1), sides=[20, 10], anchors_per_cell=2, seed=0) is None
    assert cluster_sizes(boxes[:0], np.ones(0), sides=[20, 10], anchors_per_cell=1, seed=0) is None


# === a02 ==============================================================================================================
def test_the_small_network_is_that_of_a03():
    assert (plan.SMALL["image_size"], plan.SMALL["scales"]) == (a02.SMALL_IMAGE_SIZE, a02.SMALL_SCALES)


@pytest.fixture
def made(tmp_path):
    """A level of two classes and one without boxes, and images as black squares."""
    from PIL import Image

    data, output = tmp_path / "data", tmp_path / "out"
    for split in ("train", "validation"):
        (data / split).mkdir(parents=True)
        Image.new("RGB", (100, 50)).save(data / split / "one.png")
        thin = [("one", "/m/thin", (x, 0.1, x + 0.02, 0.9)) for x in (0.1, 0.2, 0.3)]
        square = [("one", "/m/square", (x, 0.1, x + 0.25, 0.6)) for x in (0.1, 0.2, 0.3, 0.4)]
        write_boxes(paths.level_boxes(output, "1", split), thin + square)
    classes = paths.level_class_descriptions(output, "1")
    classes.write_text("/m/square,Square\n/m/none,None\n/m/thin,Thin\n")
    return {"dataset_path": str(data), "output_path": str(output), "splits": ("train", "validation")}


def test_the_table_has_each_class_of_each_split_worst_first(made, capsys):
    a02.main(**made)
    with paths.level_coverage(made["output_path"], "1").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["name"]) for row in rows] == [
        (split, name) for split in ("train", "validation") for name in ("Thin", "Square", "None")
    ]
    thin, square, none = rows[:3]
    assert (thin["boxes"], thin["covered"], thin["median_width"], thin["median_height"]) == ("3", "0.0", "3.84", "76.8")
    assert (square["boxes"], square["covered"]) == ("4", "1.0")  # 48 x 48 pixels, among squares of 32 and 64
    assert (none["boxes"], none["covered"], none["median_width"]) == ("0", "", "")
    printed = capsys.readouterr().out
    assert "square, 1 per cell: 57.1% of train" in printed
    assert "level 1, train: 7 boxes" in printed


def test_the_page_needs_no_other_file_and_leaves_no_plot_empty(made):
    a02.main(**made)
    page = paths.data_set_page(made["output_path"]).read_text()
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page
    assert page.index("worst-covered classes") < page.index("sizes of the images")
    assert "<td>official</td><td>6</td>" in page
    a02.main(**made)
    assert paths.data_set_page(made["output_path"]).read_text() == page


def test_a_file_of_anchors_is_compared_and_a_level_that_is_missing_refused(made, tmp_path, capsys):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"sizes": [[[0.02, 0.4]]] * 2}))
    a02.main(**made, anchors=str(path), scales=2)
    assert "own.json, 1 per cell: 42.9% of train" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--levels 2: .* run a01 with --levels 2"):
        a02.main(**made, levels=("2",))
    with pytest.raises(InputError, match="neither square nor official"):
        a02.main(**made, anchors="hexagon")


def test_too_few_boxes_for_k_means_remove_an_older_file(made, capsys):
    a02.main(**made)
    assert paths.level_anchors(made["output_path"], "1").is_file()
    a02.main(**made, anchors_per_cell=9)
    assert not paths.level_anchors(made["output_path"], "1").exists()
    assert "no map has boxes of 9 different sizes" in capsys.readouterr().out


def test_a_later_run_on_one_split_says_the_same(made):
    """Anchors are made for train also when only validation was measured again."""
    a02.main(**made)
    files = [paths.level_anchors(made["output_path"], "1"), paths.level_coverage(made["output_path"], "1")]
    before = [path.read_bytes() for path in files]
    a02.main(**{**made, "splits": ("validation",)})
    assert [path.read_bytes() for path in files] == before
    assert "over train" in json.loads(before[0])["made_by"]


def test_statistics_can_be_left_out(made):
    a02.main(**made, statistics=False)
    assert not paths.data_set_page(made["output_path"]).exists()
    assert not paths.level_coverage(made["output_path"], "1").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scales": 9}, "9 scales do not fit 192 pixels"),
        ({"scales": 0}, "--scales 0"),
        ({"image_size": 0}, "--image_size 0"),
        ({"anchors_per_cell": 0}, "--anchors_per_cell 0"),
        ({"seed": -1}, "--seed is -1"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(made, change, words):
    with pytest.raises(InputError, match=words):
        a02.main(**made, **change)
    assert not paths.image_params(made["output_path"], "train").exists()
