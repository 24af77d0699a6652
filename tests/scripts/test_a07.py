"""Proves a07: flags, which files it takes by default, what it prints and writes, and that a mistake is one sentence."""

import gzip
import json
import re
from pathlib import Path

import pytest

import a07_evaluate
from oid import paths
from oid.annotations import read_class_descriptions
from oid.files import InputError
from tests.helpers.project import run_script, shared
from tests.oid.metric.test_challenge import EDGE_CASES

BOX_HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
LABEL_HEADER = "ImageID,LabelName,Confidence"
ROW_HEADER = "ImageID,LabelName,Score,XMin,XMax,YMin,YMax"
# Two images, a parent P of A and B, one more class outside the class list
TREE = {"LabelName": "root", "Subcategory": [{"LabelName": "P", "Subcategory": [{"LabelName": x} for x in "ABX"]}]}
BOXES = ("1,A,0,0.5,0,0.5,0", "1,B,0.5,1,0.5,1,0", "2,A,0,0.4,0,0.4,1")
LABELS = ("1,A,1", "2,B,0")
PERFECT = ("1,A,0.9,0,0.5,0,0.5", "1,P,0.9,0,0.5,0,0.5", "1,B,0.8,0.5,1,0.5,1", "1,P,0.8,0.5,1,0.5,1")
CLASSES = "A,Apple\nB,Banana\nP,Plant\n"


def written(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def small_data_set(tmp_path: Path) -> dict[str, str]:
    """A data set in Open Images layout with perfect predictions but for image 2; the flags that name its folders."""
    root, output = tmp_path / "data", tmp_path / "output"
    written(paths.box_annotations(root, "validation"), BOX_HEADER, *BOXES)
    written(paths.image_label_annotations(root, "validation"), LABEL_HEADER, *LABELS)
    written(paths.annotation_file(root, paths.HIERARCHY), json.dumps(TREE))
    written(paths.annotation_file(root, paths.CLASS_DESCRIPTIONS), CLASSES.strip())
    written(paths.submission(output, "validation"), ROW_HEADER, *PERFECT)
    return {"dataset_path": str(root), "output_path": str(output), "split": "validation"}


@pytest.fixture
def data_set(tmp_path) -> dict[str, str]:
    return small_data_set(tmp_path)


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


def result_of(path: Path) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def assert_user_mistake(process, pattern: str):
    """Exit code 2, one sentence, no traceback."""
    assert process.returncode == 2, process.stdout + process.stderr
    assert "Traceback" not in process.stderr
    assert len(process.stderr.strip().splitlines()) == 1
    assert re.search(pattern, process.stderr), process.stderr


# === Defaults, output =================================================================================================


def test_everything_from_the_data_set(data_set):
    """As a user runs it: files from the data set, mAP in the last line, the JSON beside the predictions."""
    process = run_script("a07_evaluate.py", *flags(data_set))
    assert process.returncode == 0, process.stderr
    # the group-of box of image 2 is missed: A has one of two, P two of three, B its only one
    assert process.stdout.splitlines()[-1] == f"mAP@0.5 = {(1 / 2 + 1 + 2 / 3) / 3:.6f}"
    assert "2 images, 3 classes" in process.stdout
    assert "3 boxes, 6 with the copies" in process.stdout
    assert "2 image-level labels, 3 with the copies" in process.stdout
    assert result_of(Path(data_set["output_path"]) / "predictions" / "validation" / "submission.metrics.json") == {
        "mAP": pytest.approx((1 / 2 + 1 + 2 / 3) / 3, abs=1e-12),
        "AP": {"A": 0.5, "B": 1.0, "P": pytest.approx(2 / 3, abs=1e-12)},
        "num_gt": {"A": 2.0, "B": 1.0, "P": 3.0},
        "group_of_weight": 1.0,
        "iou": 0.5,
        "images": 2,
    }


def test_what_each_rule_drops_is_printed(data_set, tmp_path, capsys):
    predictions = written(
        tmp_path / "p.csv",
        ROW_HEADER,
        *PERFECT,
        "9,A,0.9,0,1,0,1",
        "1,X,0.9,0,1,0,1",
        "1,nowhere,0.9,0,1,0,1",
        "2,A,0.9,0,0,0,1",
        "2,A,0.9,0.5,0.4,0,1",
        "2,A,-10,0,1,0,1",
    )
    extra_boxes = written(tmp_path / "b.csv", BOX_HEADER, *BOXES, "2,X,0,1,0,1,0", "3,,,,,,")
    a07_evaluate.main(**data_set, predictions=str(predictions), boxes=str(extra_boxes))
    printed = capsys.readouterr().out
    for line in (
        "3 images, 3 classes",
        "dropped 1 boxes of 1 classes that are in the hierarchy only, for example X",
        "10 predicted boxes on 3 images",
        "dropped 1 on images without a row in the ground truth",
        "dropped 2 of a class that is not in the class list",
        "dropped 0 of a class that is not verified in the image",
        "dropped 2 without area",
        "dropped 1 with a score of -10 or less",
        "dropped 0 beyond 10,000 per image and class",
        "4 remain",
    ):
        assert line in printed
    assert "image_labels: none" in printed  # those of the data set belong to other boxes


def test_image_labels_of_the_data_set_only_with_its_boxes(data_set, tmp_path, capsys):
    own = paths.box_annotations(data_set["dataset_path"], "validation")
    for boxes, used in ((own, True), (written(tmp_path / "b.csv", *own.read_text().splitlines()), False)):
        a07_evaluate.main(**data_set, boxes=str(boxes))
        assert ("image_labels: none" not in capsys.readouterr().out) == used


def test_hierarchy_none(data_set, tmp_path, capsys):
    a07_evaluate.main(**data_set, hierarchy="none", metrics=str(tmp_path / "m.json"))
    assert "3 boxes, 3 with the copies" in capsys.readouterr().out
    assert result_of(tmp_path / "m.json")["AP"] == {"A": 0.5, "B": 1.0, "P": None}


def test_bare_minimum(tmp_path, capsys):
    """Boxes and predictions alone: the classes that occur, as they stand, verified by boxes only."""
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, *BOXES)
    predictions = written(tmp_path / "mine.csv", ROW_HEADER, *PERFECT)
    a07_evaluate.main(dataset_path=str(tmp_path / "no"), predictions=str(predictions), boxes=str(boxes))
    printed = capsys.readouterr().out
    assert "hierarchy: none" in printed
    assert "class_descriptions: none" in printed
    assert result_of(tmp_path / "mine.metrics.json")["AP"] == {"A": 0.5, "B": 1.0}


def test_challenge_classes_come_first(data_set, capsys):
    written(paths.annotation_file(data_set["dataset_path"], paths.CHALLENGE_CLASS_DESCRIPTIONS), "B,Banana")
    a07_evaluate.main(**data_set)
    printed = capsys.readouterr().out
    assert "2 images, 1 classes" in printed
    assert "dropped 2 boxes of 1 classes" in printed


def test_forgotten_ancestors_are_named(data_set, tmp_path, capsys):
    predictions = written(tmp_path / "p.csv", ROW_HEADER, *(line for line in PERFECT if ",P," not in line))
    for path, said in ((predictions, True), (paths.submission(data_set["output_path"], "validation"), False)):
        a07_evaluate.main(**data_set, predictions=str(path))
        assert ("1 classes have ground truth but no predicted box, for example P" in capsys.readouterr().out) == said


def test_iou_and_weight_are_in_text_and_file(data_set, tmp_path, capsys):
    a07_evaluate.main(**data_set, iou=0.75, group_of_weight=0.0, metrics=str(tmp_path / "new" / "m.json"))
    assert capsys.readouterr().out.splitlines()[-1] == "mAP@0.75 = 1.000000"
    result = result_of(tmp_path / "new" / "m.json")
    assert (result["iou"], result["group_of_weight"], result["num_gt"]["A"]) == (0.75, 0.0, 1.0)


def test_undefined_map_is_null(data_set, tmp_path, capsys):
    boxes = written(tmp_path / "b.csv", BOX_HEADER, "2,A,0,0.4,0,0.4,1")
    a07_evaluate.main(**data_set, boxes=str(boxes), group_of_weight=0.0, metrics=str(tmp_path / "m.json"))
    assert capsys.readouterr().out.splitlines()[-1] == "mAP@0.5 = nan"
    assert result_of(tmp_path / "m.json")["mAP"] is None


def test_no_predicted_box_and_no_matching_image(data_set, tmp_path, capsys):
    for lines, hint in (
        ([ROW_HEADER], False),
        (["ImageId,PredictionString", "1,"], False),
        ([ROW_HEADER, "7," + PERFECT[0][2:]], True),
    ):
        predictions = written(tmp_path / "p.csv", *lines)
        a07_evaluate.main(**data_set, predictions=str(predictions))
        printed = capsys.readouterr().out
        assert printed.splitlines()[-1] == "mAP@0.5 = 0.000000"
        assert ("not one predicted box remains" in printed) == hint


@pytest.mark.parametrize("weight", [1, 0])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_edge_cases_from_files(name: str, weight: int, tmp_path):
    """The micro cases written as CSV, predictions in the Kaggle form with every image."""
    images, *expected = EDGE_CASES[name]
    boxes, labels, kaggle = [BOX_HEADER], [LABEL_HEADER], ["ImageId,PredictionString"]
    for image, (gt, detections, verified) in enumerate(images):
        boxes += [f"{image},{'AB'[c]},{b[1]},{b[3]},{b[0]},{b[2]},{group}" for c, b, group in gt]
        labels += [f"{image},{'AB'[c]},0" for c in verified]
        tokens = [f"{'AB'[c]} {score} {b[1]} {b[0]} {b[3]} {b[2]}" for c, b, score in detections]
        kaggle.append(f"{image},{' '.join(tokens)}")
    a07_evaluate.main(
        predictions=str(written(tmp_path / "p.csv", *kaggle)),
        boxes=str(written(tmp_path / "boxes.csv", *boxes)),
        image_labels=str(written(tmp_path / "labels.csv", *labels)),
        class_descriptions=str(written(tmp_path / "classes.csv", "A,a", "B,b")),
        hierarchy="none",
        group_of_weight=weight,
    )
    result = result_of(tmp_path / "p.metrics.json")
    average_precision, num_gt, _, _ = expected[1 - weight]
    assert result["AP"] == {"A": average_precision, "B": None}
    assert result["num_gt"] == {"A": num_gt, "B": 0}
    assert result["mAP"] == average_precision


# === Mistakes =========================================================================================================


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iou": 0.0}, "--iou is 0"),
        ({"iou": float("nan")}, "--iou is nan"),
        ({"group_of_weight": 1.5}, "--group_of_weight is 1.5"),
        ({"predictions": "nowhere.csv"}, "nowhere.csv does not exist.*--predictions"),
        ({"boxes": "nowhere.csv"}, "nowhere.csv does not exist.*--boxes"),
        ({"image_labels": "nowhere.csv"}, "nowhere.csv does not exist.*--image_labels none"),
        ({"hierarchy": "nowhere.json"}, "nowhere.json does not exist.*--hierarchy none"),
        ({"class_descriptions": "nowhere.csv"}, "nowhere.csv does not exist.*--class_descriptions none"),
        ({"metrics": "."}, "is a folder: give another place by --metrics"),
        ({"split": "train"}, "train.*does not exist"),
        ({"classes_shown": -1}, "--classes_shown is -1"),
        ({"curve": ("Appel",)}, "--curve 'Appel' is no class: did you mean 'Apple'"),
        ({"curve": ("X",)}, "--curve 'X' is no class"),
        ({"split": "test", "predictions": "PERFECT"}, "the test split has no ground truth"),
    ],
)
def test_mistakes(data_set, change: dict, message: str, tmp_path):
    if change.get("predictions") == "PERFECT":
        change = change | {"predictions": str(paths.submission(data_set["output_path"], "validation"))}
    with pytest.raises(InputError, match=message):
        a07_evaluate.main(**(data_set | change))
    assert not list(tmp_path.rglob("*.metrics.json"))


def test_mistake_on_the_command_line_is_one_sentence(data_set, tmp_path):
    boxes = written(tmp_path / "b.csv", BOX_HEADER, *BOXES, "1,unheard,0,1,0,1,0")
    assert_user_mistake(
        run_script("a07_evaluate.py", *flags(data_set | {"boxes": boxes})), r"b\.csv, line 5: the label 'unheard'"
    )
    assert_user_mistake(run_script("a07_evaluate.py", "--prediction", "x.csv"), "did you mean --predictions")
    assert not list(tmp_path.rglob("*.json.*"))
    assert not list(tmp_path.rglob("*.metrics.json"))


# === The reference's answers ==========================================================================================


def reference_flags(case: str, predictions: Path) -> dict[str, object]:
    folder = shared("metric_cases", case)
    return {
        "predictions": predictions,
        "boxes": folder / "gt_boxes.csv",
        "image_labels": folder / "gt_labels.csv",
        "hierarchy": folder / "hierarchy.json",
        "class_descriptions": folder / "classes.csv",
    }


@pytest.mark.parametrize(
    ("case", "file", "weight", "compressed"),
    [
        ("c1", "pred_noties.csv", 1, False),
        ("c3", "pred_noties.csv", 0, False),
        ("c3", "pred.csv", 1, False),
        ("c3", "pred_unexpanded.csv", 1, True),
    ],
)
def test_equals_the_reference(case: str, file: str, weight: int, compressed: bool, tmp_path, capsys):
    predictions = copied(shared("metric_cases", case, file), tmp_path, compressed)
    arguments = reference_flags(case, predictions)
    a07_evaluate.main(**{name: str(value) for name, value in arguments.items()}, group_of_weight=float(weight))
    assert_equals_the_reference(case, file, weight, tmp_path, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("file", "weight", "compressed"), [("pred_noties.csv", 1, False), ("pred_kaggle.csv", 0, True)]
)
def test_equals_the_reference_as_a_user_runs_it(file: str, weight: int, compressed: bool, tmp_path):
    predictions = copied(shared("metric_cases", "c3", file), tmp_path, compressed)
    process = run_script("a07_evaluate.py", *flags(reference_flags("c3", predictions)), "--group_of_weight", weight)
    assert process.returncode == 0, process.stderr
    assert_equals_the_reference("c3", file, weight, tmp_path, process.stdout)


def copied(source: Path, folder: Path, compressed: bool) -> Path:
    target = folder / (source.name + ".gz" * compressed)
    target.write_bytes(gzip.compress(source.read_bytes()) if compressed else source.read_bytes())
    return target


def assert_equals_the_reference(case: str, file: str, weight: int, folder: Path, printed: str):
    name = f"{file.removesuffix('.csv').removesuffix('_kaggle')}_w{weight}"
    expected = json.loads(shared("metric_cases", case, "expected.json").read_text(encoding="utf-8"))[name]
    result = result_of(folder / f"{Path(file).stem}.metrics.json")
    exact = "noties" in file
    assert result["mAP"] == pytest.approx(expected["mAP"], abs=1e-9 if exact else 2e-3)
    assert printed.splitlines()[-1] == f"mAP@0.5 = {result['mAP']:.6f}"
    assert list(result["AP"]) == list(read_class_descriptions(shared("metric_cases", case, "classes.csv")))
    assert result["num_gt"] == expected["num_gt"]
    assert result["images"] == expected["images"]
    if exact:
        assert result["AP"] == pytest.approx(expected["AP"], abs=1e-9)


def test_group_of_rows_left_out_of_the_file(tmp_path):
    lines = shared("metric_cases", "c3", "gt_boxes.csv").read_text(encoding="utf-8").splitlines()
    boxes = written(tmp_path / "boxes.csv", *(line for line in lines if not line.endswith(",1")))
    predictions = shared("metric_cases", "c3", "pred_noties.csv")
    arguments = reference_flags("c3", predictions) | {"boxes": boxes, "metrics": tmp_path / "m.json"}
    a07_evaluate.main(**{name: str(value) for name, value in arguments.items()})
    expected = json.loads(shared("metric_cases", "c3", "expected.json").read_text(encoding="utf-8"))
    result = result_of(tmp_path / "m.json")
    assert result["AP"] == pytest.approx(expected["pred_noties_no_groupof"]["AP"], abs=1e-9)
