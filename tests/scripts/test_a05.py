"""Proves a05: every label gets its ancestors, once each; suppression where boxes were gained; nothing else moves."""

import json

import pytest

import a05_expand_hierarchy as a05
from oid import paths
from oid.files import InputError
from oid.predictions.files import read_predictions
from tests.helpers.project import run_script, shared

# Food over Fruit over Apple and Banana; Fruit is below Plant, too.
FRUIT = {"LabelName": "Fruit", "Subcategory": [{"LabelName": "Apple"}, {"LabelName": "Banana"}]}
TREE = {
    "LabelName": "Entity",
    "Subcategory": [
        {"LabelName": "Food", "Subcategory": [FRUIT, {"LabelName": "Bread"}]},
        {"LabelName": "Plant", "Subcategory": [FRUIT]},
        {"LabelName": "Car", "Part": [{"LabelName": "Wheel"}]},
    ],
}
CLASSES = ("Food", "Fruit", "Apple", "Banana", "Bread", "Plant", "Car", "Wheel")
A, B = "0.100000 0.100000 0.300000 0.300000", "0.600000 0.600000 0.900000 0.900000"


def files(folder, rows, classes=CLASSES):
    """Writes a05's inputs and returns the flags that name them."""
    text = "ImageId,PredictionString\n" + "".join(f"{image_id},{boxes}\n" for image_id, boxes in rows.items())
    (folder / "in.csv").write_text(text)
    (folder / "tree.json").write_text(json.dumps(TREE))
    (folder / "classes.csv").write_text("".join(f"{label},{label.lower()}\n" for label in classes))
    names = {"predictions": "in.csv", "expanded": "out.csv", "hierarchy": "tree.json"}
    return {flag: str(folder / name) for flag, name in (names | {"class_descriptions": "classes.csv"}).items()}


@pytest.fixture
def expand(tmp_path):
    """Calls a05 on {image: its boxes as texts} and returns the same of the result."""

    def call(rows, classes=CLASSES, **options):
        a05.main(**files(tmp_path, {image_id: " ".join(boxes) for image_id, boxes in rows.items()}, classes), **options)
        result = {}
        for line in (tmp_path / "out.csv").read_text().splitlines()[1:]:
            image_id, _, text = line.partition(",")
            tokens = text.split()
            result[image_id] = [" ".join(tokens[first : first + 6]) for first in range(0, len(tokens), 6)]
        return result

    return call


@pytest.mark.parametrize(
    ("boxes", "added"),
    [
        ([f"Apple 0.25 {A}"], [f"{label} 0.25 {A}" for label in ("Fruit", "Food", "Plant")]),  # never the root
        ([f"Fruit 0.25 {A}", f"Plant 0.5 {B}"], [f"Food 0.25 {A}", f"Plant 0.25 {A}"]),  # an inner class
        # two boxes of Fruit with IoU 1: the better one stays
        ([f"Apple 0.2 {A}", f"Banana 0.5 {A}"], [f"{label} 0.5 {A}" for label in ("Fruit", "Food", "Plant")]),
        # classes that gained nothing keep equal boxes, and an order that is not that of the scores
        (
            [f"Apple 0.2 {A}", f"Car 0.1 {A}", f"Apple 0.3 {A}", f"Car 0.4 {A}"],
            [f"{label} 0.3 {A}" for label in ("Fruit", "Food", "Plant")],
        ),
    ],
)
def test_every_box_gets_all_ancestors_once(expand, boxes, added):
    result = expand({"i": boxes})["i"]
    assert result[: len(boxes)] == boxes
    assert sorted(result[len(boxes) :]) == sorted(added)


def test_images_keep_their_rows_and_do_not_touch_each_other(expand):
    doubled = [f"Fruit 0.9 {A}", f"Fruit 0.8 {A}"]
    result = expand({"b": [], "007": [f"Apple 0.5 {B}"], "1e5": doubled})
    assert list(result) == ["b", "007", "1e5"]
    assert result["1e5"] == [*doubled, f"Food 0.9 {A}", f"Plant 0.9 {A}"]


def test_only_new_writes_the_added_boxes_that_survive_against_the_old_ones(expand):
    rows = {"i": [f"Fruit 0.9 {A}", f"Apple 0.5 {A}", f"Apple 0.4 {B}"], "j": [], "k": [f"Car 0.5 {A}"]}
    of_b = [f"{label} 0.4 {B}" for label in ("Fruit", "Food", "Plant")]
    assert expand(rows, only_new=True) == {"i": [f"Food 0.9 {A}", f"Plant 0.9 {A}", *of_b], "j": [], "k": []}


def test_only_described_classes_are_written_and_the_rest_is_counted(expand, capsys):
    """A box of a class that does not count still is a box of its ancestors, also over an ancestor that does not."""
    boxes = [f"Apple 0.25 {A}", f"Apple 0.5 {B}", f"Wheel 0.5 {A}"]
    assert expand({"i": boxes}, classes=("Food", "Car")) == {"i": [f"Food 0.25 {A}", f"Food 0.5 {B}"]}
    output = capsys.readouterr().out
    assert (
        "3 boxes are dropped, not in the class descriptions (their ancestors are added): Apple 2, Wheel 1\n" in output
    )
    assert "2 boxes are of ancestor classes: Food 2\n" in output


def test_labels_outside_of_the_hierarchy_stay_without_ancestors(expand, capsys):
    """Wheel is only a `Part` there, and the root is no class of it."""
    boxes = [f"Wheel 0.5 {A}", f"Entity 0.4 {A}", f"Kiwi 0.3 {A}"]
    assert expand({"i": boxes}, classes=(*CLASSES, "Entity", "Kiwi")) == {"i": boxes}
    assert "3 boxes have no ancestors in the hierarchy: Wheel 1, Entity 1, Kiwi 1\n" in capsys.readouterr().out


# === On real data ====================================================================================================
def rows_of(file) -> list[tuple]:
    found = read_predictions(file)
    images, labels = [found.image_ids[i] for i in found.image_index], [found.labels[i] for i in found.label_index]
    return list(zip(images, labels, found.scores, map(tuple, found.boxes), strict=True))


@pytest.mark.parametrize(
    ("descriptions", "expected"),
    [
        (paths.CLASS_DESCRIPTIONS, ["/m/014j1m", "/m/02xwb", "/m/02wbm"]),
        (paths.CHALLENGE_CLASS_DESCRIPTIONS, ["/m/014j1m", "/m/02xwb"]),
    ],
)
def test_the_real_hierarchy(tmp_path, descriptions, expected):
    """Apple is a fruit and food; the challenge's 500 classes leave out food."""
    metadata = shared("data", "oid_metadata")
    flags = files(tmp_path, {"a": f"/m/014j1m 0.5 {A}"})
    flags |= {"hierarchy": str(metadata / paths.HIERARCHY), "class_descriptions": str(metadata / descriptions)}
    a05.main(**flags)
    assert [label for _, label, *_ in rows_of(tmp_path / "out.csv")] == expected


def test_without_suppression_the_expansion_is_the_references(tmp_path):
    case, out = shared("metric_cases", "c1"), tmp_path / "out.csv"
    flags = {"predictions": "pred_unexpanded.csv", "hierarchy": "hierarchy.json", "class_descriptions": "classes.csv"}
    a05.main(**{flag: str(case / name) for flag, name in flags.items()}, expanded=str(out), nms_iou=1.0)
    assert sorted(rows_of(out)) == sorted(rows_of(case / "pred.csv"))


# === As a user calls it ===============================================================================================
@pytest.fixture
def two_runs(tmp_path):
    """Flags of a05 for a data set and two finished runs with predictions, "one" and "two"."""
    dataset, output = tmp_path / "oid", tmp_path / "out"
    (dataset / "annotations").mkdir(parents=True)
    (dataset / "annotations" / paths.HIERARCHY).write_text(json.dumps(TREE))
    (dataset / "annotations" / paths.CLASS_DESCRIPTIONS).write_text("Apple,apple\nFruit,fruit\nFood,food\n")
    for run in ("one", "two"):
        (output / "weights" / run).mkdir(parents=True)
        for name in ("settings.json", "model.keras"):
            (output / "weights" / run / name).write_text("")
        source = paths.run_predictions(output, "test", run)
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_text(f"ImageId,PredictionString\n{run},Apple 0.5 {A}\n")
    return {"dataset_path": str(dataset), "output_path": str(output), "split": "test"}


def written(flags) -> dict[str, str]:
    return {path.name: path.read_text() for path in paths.all_expanded_predictions(flags["output_path"], "test")}


@pytest.mark.parametrize(("given", "runs"), [([], ["one", "two"]), (["--run", "two"], ["two"])])
def test_the_script_expands_the_finished_runs_or_those_that_are_named(two_runs, given, runs):
    arguments = [text for flag, value in two_runs.items() for text in (f"--{flag}", value)]
    done = run_script("a05_expand_hierarchy.py", *arguments, *given)
    assert done.returncode == 0, done.stderr
    result = f"Apple 0.5 {A} Fruit 0.5 {A} Food 0.5 {A}\n"
    assert written(two_runs) == {f"{run}.expanded.csv": f"ImageId,PredictionString\n{run},{result}" for run in runs}
    assert done.stdout.count("1 images, 3 boxes") == len(runs)
    assert "%|" not in done.stderr  # no progress bar outside of a terminal


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"expanded": "x.csv"}, "--expanded is x.csv: give it together with one run by --run"),
        ({"run": ("one", "three")}, "three.csv does not exist: run a04 first, or name a prediction file"),
        ({"run": ("one",), "predictions": "x.csv"}, "--run is one: give it without --predictions"),
        ({"output_path": "nowhere"}, "no run that has finished its training: run a03 and a04 first, or"),
    ],
)
def test_mistakes_in_runs_leave_nothing_behind(two_runs, change, match):
    with pytest.raises(InputError, match=match):
        a05.main(**(two_runs | change))
    assert not written(two_runs)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"nms_iou": 1.5}, "--nms_iou is 1.5: give a number from 0 to 1"),
        ({"nms_iou": float("nan")}, "--nms_iou is nan"),
        ({"expanded": "in.csv"}, "--expanded is in.csv: give a file that is not read"),
        ({"predictions": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"hierarchy": "nowhere.json"}, "nowhere.json does not exist.*: choose by --hierarchy"),
        ({"class_descriptions": "nowhere.csv"}, "nowhere.csv does not exist.*: choose by --class_descriptions"),
    ],
)
def test_mistakes_in_flags(tmp_path, monkeypatch, change, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=match):
        a05.main(**(files(tmp_path, {"i": ""}) | change))
    assert not (tmp_path / "out.csv").exists()


def test_a_mistake_in_a_late_block_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(a05, "IMAGES_PER_BLOCK", 2)
    flags = files(tmp_path, {f"i{k}": f"Apple 0.5 {A}" for k in range(9)} | {"last": f"Apple nan {A}"})
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"in\.csv, line 11, token 2: the score 'nan' is not finite$"):
        a05.main(**flags)
    assert sorted(tmp_path.iterdir()) == before


def test_neither_blocks_nor_threads_change_the_result(tmp_path, monkeypatch):
    flags = files(tmp_path, {f"i{k}": f"Apple 0.{k} {A} Fruit 0.5 {A} Car 0.2 {B}" for k in range(1, 9)})
    results = []
    for size in (1, 3, 1000):
        monkeypatch.setattr(a05, "IMAGES_PER_BLOCK", size)
        a05.main(**flags)
        results.append((tmp_path / "out.csv").read_bytes())
    assert results == results[:1] * 3
