"""The generated data set: complete Open Images layout, tight boxes, consistent labels, the same bytes from one seed."""

import csv
import hashlib
from collections import defaultdict

import cv2
import numpy as np
import pytest

from demo import backgrounds, make_data_set, scenes, shapes
from oid.annotations import read_class_descriptions
from oid.columns import BOX_COLUMNS
from oid.files import InputError
from oid.hierarchy import read_hierarchy
from tests.helpers.project import run_script


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data_set"
    make_data_set.main(dataset_path=str(folder), images=120, seed=5)
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder):
    return {p.relative_to(folder): hashlib.md5(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(data_set, tmp_path):
    make_data_set.main(dataset_path=str(tmp_path / "again"), images=120, seed=5)
    make_data_set.main(dataset_path=str(tmp_path / "other"), images=30, seed=6)
    assert digests(tmp_path / "again") == digests(data_set)
    names = {p.name for p in data_set.rglob("*.jpg")}
    assert not names & {p.name for p in (tmp_path / "other").rglob("*.jpg")}


def test_layout_and_ids(data_set):
    for split, count in {"train": 96, "validation": 20, "test": 4}.items():
        ids = {p.stem for p in (data_set / split).iterdir()}
        assert len(ids) == count
        assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)
        if split != "test":
            boxes = rows(data_set / f"annotations/{split}-annotations-bbox.csv")
            labels = rows(data_set / f"annotations/{split}-annotations-human-imagelabels-boxable.csv")
            assert tuple(boxes[0]) == BOX_COLUMNS
            assert {r["ImageID"] for r in labels} == ids
            assert {r["ImageID"] for r in boxes} < ids  # some images have no objects
    assert not list(data_set.parent.glob(".*"))


def test_hierarchy_has_three_levels_and_one_class_with_two_parents(data_set):
    hierarchy = read_hierarchy(data_set / "annotations/bbox_labels_600_hierarchy.json")
    assert max(map(hierarchy.height, hierarchy.labels)) >= 3
    parents = {label: [a for a in hierarchy.labels if label in hierarchy.children(a)] for label in hierarchy.labels}
    assert [label for label, above in parents.items() if len(above) > 1] == [make_data_set.LABELS["Star"]]
    described = read_class_descriptions(data_set / "annotations/class-descriptions-boxable.csv")
    assert set(described) == set(hierarchy.labels)


def test_boxes_are_valid_and_verified(data_set):
    boxes = rows(data_set / "annotations/train-annotations-bbox.csv")
    verified = defaultdict(dict)
    for row in rows(data_set / "annotations/train-annotations-human-imagelabels-boxable.csv"):
        assert row["LabelName"] not in verified[row["ImageID"]]
        verified[row["ImageID"]][row["LabelName"]] = row["Confidence"]
    for row in boxes:
        x0, x1, y0, y1 = (float(row[k]) for k in ("XMin", "XMax", "YMin", "YMax"))
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert verified[row["ImageID"]][row["LabelName"]] == "1"
    boxed = {(r["ImageID"], r["LabelName"]) for r in boxes}
    positive = {(i, label) for i, found in verified.items() for label, sign in found.items() if sign == "1"}
    assert boxed == positive
    for flag in ("IsOccluded", "IsTruncated"):
        assert {r[flag] for r in boxes} == {"0", "1"}


def test_no_negative_label_contradicts_a_box():
    """A class that is verified as absent is not drawn, nor is a class below it."""
    names = {label: name for name, label in make_data_set.LABELS.items()}
    parent_only = unverified = inner_negative = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        drawn = [str(name) for name in rng.choice(list(shapes.SHAPES), rng.integers(0, 5))]
        things = [scenes.SceneObject(name, (0.1, 0.1, 0.3, 0.3), False, False, False) for name in drawn]
        boxes, labels = make_data_set.annotate(rng, "0" * 16, things, 0.04)
        boxed = [line.split(",")[2] for line in boxes]
        negative = {line.split(",")[2] for line in labels if line.endswith(",0")}
        absent = set().union(*map(make_data_set.leaves_below, negative))
        assert not absent & {make_data_set.LABELS[name] for name in drawn}
        assert not negative & set(boxed)
        parent_only += any(names[label] not in shapes.SHAPES for label in boxed)
        unverified += len(boxed) < len(drawn)
        inner_negative += any(names[label] not in shapes.SHAPES for label in negative)
    assert min(parent_only, unverified, inner_negative) > 0


def test_unverified_share_removes_one_visible_class_and_nothing_else(tmp_path):
    found = {}
    for share in (0.0, 1.0):
        folder = tmp_path / str(share)
        make_data_set.main(dataset_path=str(folder), images=60, seed=5, unverified_share=share)
        boxes, labels = defaultdict(set), defaultdict(set)
        for row in rows(folder / "annotations/train-annotations-bbox.csv"):
            boxes[row["ImageID"]].add(row["LabelName"])
        for row in rows(folder / "annotations/train-annotations-human-imagelabels-boxable.csv"):
            labels[row["ImageID"]].add(row["LabelName"])
        pictures = {path: digest for path, digest in digests(folder).items() if path.suffix == ".jpg"}
        found[share] = boxes, labels, pictures
    (complete, _, pictures), (fewer, labels, same_pictures) = found[0.0], found[1.0]
    assert pictures == same_pictures
    for image_id, classes in complete.items():
        lost = classes - fewer[image_id]
        assert len(lost) == (len(classes) > 1)
        assert not lost & labels[image_id]


def test_boxes_are_tight_around_the_drawn_object():
    for seed in range(20):
        canvas = scenes._Canvas(np.random.default_rng(seed), np.full((240, 320, 3), 128, np.float32))
        scenes._add_object(canvas)
        (thing,) = scenes._annotate(canvas)
        visible = np.abs(canvas.picture - 128).max(axis=2) > 25
        y, x = np.nonzero(visible)
        expected = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(np.array(thing.box) * (320, 240, 320, 240) - expected).max() <= 2


def test_a_hidden_object_is_occluded_and_its_box_shrinks():
    canvas = scenes._Canvas(np.random.default_rng(0), np.full((100, 100, 3), 128, np.float32))
    canvas.placed = [scenes._Placed("Square", False, 400, 400), scenes._Placed("Disc", False, 50, 100)]
    canvas.owner[10:30, 10:30] = 0
    canvas.owner[10:30, 10:20] = 1
    square, disc = scenes._annotate(canvas)
    assert square.box == (0.2, 0.1, 0.3, 0.3)
    assert square.occluded
    assert not square.truncated
    assert disc.truncated


def test_scenes_are_mixed():
    photos = backgrounds.photographs()
    found = [scenes.scene(np.random.default_rng(seed), photos) for seed in range(100)]
    sizes = {picture.shape[:2] for picture, _ in found}
    assert all(240 <= side <= 480 for size in sizes for side in size)
    assert any(h > w for h, w in sizes)
    assert any(h < w for h, w in sizes)
    assert any(not things for _, things in found)
    things = [thing for _, things in found for thing in things]
    assert {thing.name for thing in things} == set(shapes.SHAPES)
    assert any(thing.group_of for thing in things)
    assert any(thing.occluded and not thing.group_of for thing in things)


def test_colours_differ_clearly():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        below = rng.uniform(0, 255, 3)
        lab = cv2.cvtColor(np.float32([[below, shapes.random_colour(rng, [below])]]) / 255, cv2.COLOR_RGB2LAB)[0]
        assert np.linalg.norm(lab[0] - lab[1]) >= 40


def test_the_same_command_changes_nothing_and_other_folders_are_refused(data_set, tmp_path, capsys):
    before = digests(data_set)
    make_data_set.main(dataset_path=str(data_set), images=120, seed=5)
    assert "already there" in capsys.readouterr().out
    assert digests(data_set) == before
    with pytest.raises(InputError, match="was made from"):
        make_data_set.main(dataset_path=str(data_set), images=120, seed=6)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(InputError, match="was made from something else"):
        make_data_set.main(dataset_path=str(tmp_path), images=30)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--images", "3"], "at least 30"),
        (["--seed", "-1"], "--seed is -1: give 0 or more"),
        (["--unverified_share", "2"], "give a number from 0 to 1"),
        (["--image", "30"], "did you mean --images"),
        (["--dataset_path", "."], "give the name of a new folder"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, flags, words):
    done = run_script("demo.make_data_set", "--dataset_path", tmp_path / "new", *flags)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
