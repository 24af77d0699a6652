"""Proves a07: flags, which files it takes by default, what it prints and writes, and that a mistake is one sentence."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest

import a07_evaluate
from oid import paths
from oid.annotations import read_class_descriptions
from oid.files import InputError
from oid.metric.coco import NAMES
from oid.metric.errors import KINDS
from tests.helpers.project import ROOT, run_script, shared

BOX_HEADER = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"
LABEL_HEADER = "ImageID,LabelName,Confidence"
ROW_HEADER = "ImageID,LabelName,Score,XMin,XMax,YMin,YMax"
SIZE_HEADER = "id,width,height,channel,size,md5"
# Two images, a parent P of A and B, one more class outside the class list
TREE = {"LabelName": "root", "Subcategory": [{"LabelName": "P", "Subcategory": [{"LabelName": x} for x in "ABX"]}]}
BOXES = ("1,A,0,0.5,0,0.5,0", "1,B,0.5,1,0.5,1,0", "2,A,0,0.4,0,0.4,1")
LABELS = ("1,A,1", "2,B,0")
PERFECT = ("1,A,0.9,0,0.5,0,0.5", "1,P,0.9,0,0.5,0,0.5", "1,B,0.8,0.5,1,0.5,1", "1,P,0.8,0.5,1,0.5,1")


def written(path: Path, *lines: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def data_set(tmp_path) -> dict[str, str]:
    """A data set in Open Images layout with perfect predictions but for image 2; the flags that name its folders."""
    root, output = tmp_path / "data", tmp_path / "output"
    written(paths.box_annotations(root, "validation"), BOX_HEADER, *BOXES)
    written(paths.image_label_annotations(root, "validation"), LABEL_HEADER, *LABELS)
    written(paths.annotation_file(root, paths.HIERARCHY), json.dumps(TREE))
    written(paths.annotation_file(root, paths.CLASS_DESCRIPTIONS), "A,Apple", "B,Banana", "P,Plant")
    written(paths.submission(output, "validation"), ROW_HEADER, *PERFECT)
    written(
        paths.image_params(output, "validation"), SIZE_HEADER, "2,64,64,3,1,x", "1,100,200,3,1,x", "other,1,1,3,1,x"
    )
    return {"dataset_path": str(root), "output_path": str(output), "split": "validation"}


def flags(arguments: dict[str, object]) -> list[str]:
    return [part for name, value in arguments.items() for part in (f"--{name}", str(value))]


def result_of(path: Path) -> dict:
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# === mAP ==============================================================================================================


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
    others = ("9,A,0.9,0,1,0,1", "1,X,0.9,0,1,0,1", "1,nowhere,0.9,0,1,0,1", "2,A,0.9,0,0,0,1", "2,A,0.9,0.5,0.4,0,1")
    predictions = written(tmp_path / "p.csv", ROW_HEADER, *PERFECT, *others, "2,A,-10,0,1,0,1")
    extra_boxes = written(tmp_path / "b.csv", BOX_HEADER, *BOXES, "2,X,0,1,0,1,0", "3,,,,,,")
    a07_evaluate.main(**data_set, predictions=predictions, boxes=extra_boxes)
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
        "image_labels: none",  # those of the data set belong to other boxes
    ):
        assert line in printed


def test_bare_minimum(tmp_path, capsys):
    """Boxes and predictions alone: the classes that occur, as they stand, verified by boxes only."""
    boxes = written(tmp_path / "boxes.csv", BOX_HEADER, *BOXES)
    predictions = written(tmp_path / "mine.csv", ROW_HEADER, *PERFECT)
    a07_evaluate.main(dataset_path=str(tmp_path / "no"), predictions=predictions, boxes=boxes)
    printed = capsys.readouterr().out
    assert "hierarchy: none" in printed
    assert "class_descriptions: none" in printed
    assert result_of(tmp_path / "mine.metrics.json")["AP"] == {"A": 0.5, "B": 1.0}


def test_challenge_classes_and_labels_of_the_data_set_are_the_default(data_set, capsys):
    root = data_set["dataset_path"]
    written(paths.annotation_file(root, paths.CHALLENGE_CLASS_DESCRIPTIONS), "B,Banana")
    a07_evaluate.main(**data_set, boxes=str(paths.box_annotations(root, "validation")))
    printed = capsys.readouterr().out
    assert "2 images, 1 classes" in printed
    assert "dropped 2 boxes of 1 classes" in printed
    assert "image_labels: none" not in printed  # the named boxes are those of the data set
    assert "no predicted box" not in printed


def test_forgotten_ancestors_are_named(data_set, tmp_path, capsys):
    predictions = written(tmp_path / "p.csv", ROW_HEADER, *(line for line in PERFECT if ",P," not in line))
    a07_evaluate.main(**data_set, predictions=predictions)
    assert "1 classes have ground truth but no predicted box, for example P" in capsys.readouterr().out


def test_iou_and_weight_are_in_text_and_file_and_undefined_map_is_null(data_set, tmp_path, capsys):
    only_group_of = written(tmp_path / "b.csv", BOX_HEADER, "2,A,0,0.4,0,0.4,1")
    for boxes, text, number in ((None, "1.000000", 1.0), (only_group_of, "nan", None)):
        target = tmp_path / "new" / "m.json"
        a07_evaluate.main(**data_set, boxes=boxes, iou=0.75, group_of_weight=0.0, metrics=str(target))
        assert capsys.readouterr().out.splitlines()[-1] == f"mAP@0.75 = {text}"
        result = result_of(target)
        assert (result["mAP"], result["iou"], result["group_of_weight"]) == (number, 0.75, 0.0)


@pytest.mark.parametrize(
    ("lines", "hint"),
    [([ROW_HEADER], False), (["ImageId,PredictionString", "1,"], False), ([ROW_HEADER, "7" + PERFECT[0][1:]], True)],
)
def test_no_predicted_box_and_no_matching_image(data_set, tmp_path, capsys, lines: list[str], hint: bool):
    a07_evaluate.main(**data_set, predictions=written(tmp_path / "p.csv", *lines))
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "mAP@0.5 = 0.000000"
    assert ("not one predicted box remains" in printed) == hint


# === Tables, COCO's numbers, kinds of error, curves ===================================================================


def test_table_of_classes(data_set, capsys):
    """Sorted by cost: A misses one of two boxes, P one of three."""
    a07_evaluate.main(**data_set, classes_shown=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith(("(A)", "(B)", "(P)"))]
    assert [line.split()[-2:] for line in lines] == [["Apple", "(A)"], ["Plant", "(P)"]]
    rows = rows_of(Path(data_set["output_path"]) / "predictions" / "validation" / "submission.classes.csv")
    assert [(row["label"], row["name"], row["num_gt"], row["predicted"]) for row in rows] == [
        ("A", "Apple", "2.0", "1"),
        ("P", "Plant", "3.0", "2"),
        ("B", "Banana", "1.0", "1"),
    ]
    assert [float(row["cost"]) for row in rows] == pytest.approx([1 / 6, 1 / 9, 0])


def test_coco(data_set, tmp_path, capsys):
    """Perfect but for the group-of box, which is a crowd. In images of 10 x 10 pixels the same boxes are small."""
    small = written(tmp_path / "sizes.csv", "id,width,height", "1,10,10", "2,10,10")
    for sizes, area, others in ((None, "medium", ("small", "large")), (small, "small", ("medium", "large"))):
        a07_evaluate.main(**data_set, coco=True, image_params=sizes, metrics=str(tmp_path / "m.json"))
        result = result_of(tmp_path / "m.json")["coco"]
        assert list(result) == list(NAMES)
        # the one box of A, and of B, and the best of the two of P: each image and class has one detection in AR_1
        expected = dict.fromkeys(("AP", "AP50", "AP75", f"AP_{area}", "AR_10", "AR_100", f"AR_{area}"), 1)
        expected |= dict.fromkeys([f"{kind}_{other}" for kind in ("AP", "AR") for other in others])
        assert result == pytest.approx(expected | {"AR_1": (1 + 1 + 1 / 2) / 3})
        assert f"AP        {result['AP']:.6f}    AR_1      {result['AR_1']:.6f}" in capsys.readouterr().out


def test_in_coco_every_class_counts_in_every_image(data_set, tmp_path, capsys):
    """A banana in image 2, where nobody looked for one: no error in the challenge, the best detection of all here."""
    predictions = written(tmp_path / "p.csv", ROW_HEADER, *PERFECT, "2,B,0.95,0.5,0.9,0.5,0.9")
    labels = written(tmp_path / "l.csv", LABEL_HEADER, "1,A,1")
    a07_evaluate.main(**data_set, predictions=predictions, image_labels=labels, coco=True)
    assert "(1 boxes of unverified classes count)" in capsys.readouterr().out
    result = result_of(tmp_path / "p.metrics.json")
    assert result["AP"]["B"] == 1
    assert result["coco_AP"] == pytest.approx({"A": 1, "B": 1 / 2, "P": 1})
    assert result["coco"]["AP_medium"] == pytest.approx(1)  # of 26 x 26 pixels, so no medium box is wrong


def test_kinds_of_error(data_set, tmp_path, capsys):
    """An apple that is called a banana, where bananas were looked for; its copy as a plant is right."""
    predictions = written(tmp_path / "p.csv", ROW_HEADER, "1,B,0.9,0,0.5,0,0.5", "1,P,0.9,0,0.5,0,0.5")
    a07_evaluate.main(**data_set, predictions=predictions, errors=True)
    result = result_of(tmp_path / "p.metrics.json")["errors"]
    assert {kind: result[kind]["count"] for kind in KINDS} == {
        **dict.fromkeys(KINDS, 0),
        "classification": 1,
        "missed": 4,  # the banana and its copy as a plant, the group-of box and its copy; the apple needs a class only
    }
    # fixed, half of the apples are found: AP 1/2 for one of three classes
    assert result["classification"]["dAP"] == pytest.approx(1 / 2 / 3)
    assert sum(result[kind]["share"] for kind in KINDS) == pytest.approx(1)
    assert [list(row.values()) for row in rows_of(tmp_path / "p.confusions.csv")] == [
        ["B", "Banana", "A", "Apple", "1", "0.9"]
    ]
    assert "Banana -> Apple  1  0.900" in capsys.readouterr().out


def test_curves(data_set):
    """By label, by name; nothing of it without the flag."""
    folder = Path(data_set["output_path"]) / "predictions" / "validation"
    a07_evaluate.main(**data_set)
    assert not list(folder.glob("*.curve.*"))
    a07_evaluate.main(**data_set, curve=("A", "plant"))
    assert len(list(folder.glob("*.png"))) == 2
    assert rows_of(folder / "submission.curve.Apple.A.csv") == [{"score": "0.9", "precision": "1.0", "recall": "0.5"}]
    assert [row["recall"] for row in rows_of(folder / "submission.curve.Plant.P.csv")] == [str(1 / 3), str(2 / 3)]


def test_blocks_do_not_matter(data_set, monkeypatch, tmp_path):
    """One image at a time gives what all at once gives."""
    results = []
    for images in (1, 1000):
        monkeypatch.setattr(a07_evaluate, "IMAGES_PER_BLOCK", images)
        a07_evaluate.main(**data_set, coco=True, errors=True, metrics=str(tmp_path / f"{images}.json"))
        results.append(result_of(tmp_path / f"{images}.json"))
    assert results[0] == results[1]


def test_help_waits_for_nothing_heavy():
    """Flags are there before NumPy, polars and numba are."""
    program = "import sys, a07_evaluate; print(*{'numpy', 'polars', 'numba', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# === Mistakes =========================================================================================================


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iou": 0.0}, "--iou is 0"),
        ({"iou": float("nan")}, "--iou is nan"),
        ({"group_of_weight": 1.5}, "--group_of_weight is 1.5"),
        ({"classes_shown": -1}, "--classes_shown is -1"),
        ({"predictions": "nowhere.csv"}, "nowhere.csv does not exist.*--predictions"),
        ({"boxes": "nowhere.csv"}, "nowhere.csv does not exist: give another file by --boxes$"),
        ({"image_labels": "nowhere.csv"}, "nowhere.csv does not exist: give another file by --image_labels$"),
        ({"hierarchy": "nowhere.json"}, "nowhere.json does not exist: give another file by --hierarchy$"),
        ({"class_descriptions": "no.csv"}, "no.csv does not exist: give another file by --class_descriptions$"),
        ({"metrics": "."}, "is a folder: give another place by --metrics"),
        ({"split": "train", "predictions": "SUBMISSION"}, "train.*does not exist.*--split"),
        ({"split": "test", "predictions": "SUBMISSION"}, "the test split has no ground truth.*--split"),
        ({"curve": ("Appel",)}, r"name or label Appel, did you mean Apple\? Give --curve"),
        ({"curve": ("Banana",), "boxes": "APPLES"}, "--curve is Banana: give a class with ground truth"),
        ({"coco": True, "image_params": "no.csv"}, "no.csv does not exist.*run a02_find_image_parameters"),
    ],
)
def test_mistakes(data_set, change: dict, message: str, tmp_path):
    known = {
        "SUBMISSION": str(paths.submission(data_set["output_path"], "validation")),
        "APPLES": written(tmp_path / "b.csv", BOX_HEADER, BOXES[0]),
    }
    change = {flag: known.get(value, value) if isinstance(value, str) else value for flag, value in change.items()}
    with pytest.raises(InputError, match=message):
        a07_evaluate.main(**(data_set | change))
    assert not list(tmp_path.rglob("*.metrics.json"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,10,10,3,1,x"], r"has no size of 1 of the 2 evaluated images, for example '2': run a02_find_image_param"),
        (["1,10,10,3,1,x", "2,0,10,3,1,x"], r"line 3: width or height of '2' is not a positive number: run a02"),
        (["1,wide,10,3,1,x", "2,5,10,3,1,x"], r"line 2: width or height of '1' is not a positive number: run a02"),
    ],
)
def test_images_without_sizes(data_set, rows: list[str], message: str, tmp_path):
    sizes = written(tmp_path / "sizes.csv", SIZE_HEADER, *rows)
    with pytest.raises(InputError, match=message):
        a07_evaluate.main(**data_set, coco=True, image_params=sizes)


# === The reference's answers ==========================================================================================


@pytest.mark.parametrize(
    ("case", "file", "weight", "compressed"),
    [
        ("c1", "pred_noties.csv", 1, False),
        ("c3", "pred.csv", 1, False),
        ("c3", "pred_kaggle.csv", 0, True),
        ("c3", "pred_unexpanded.csv", 1, True),
    ],
)
def test_equals_the_reference(case: str, file: str, weight: int, compressed: bool, tmp_path, capsys):
    folder = shared("metric_cases", case)
    predictions, content = tmp_path / (file + ".gz" * compressed), (folder / file).read_bytes()
    predictions.write_bytes(gzip.compress(content) if compressed else content)
    a07_evaluate.main(
        predictions=str(predictions),
        boxes=str(folder / "gt_boxes.csv"),
        image_labels=str(folder / "gt_labels.csv"),
        hierarchy=str(folder / "hierarchy.json"),
        class_descriptions=str(folder / "classes.csv"),
        group_of_weight=float(weight),
    )
    name = f"{file.removesuffix('.csv').removesuffix('_kaggle')}_w{weight}"
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))[name]
    result, exact = result_of(tmp_path / f"{Path(file).stem}.metrics.json"), "noties" in file
    assert result["mAP"] == pytest.approx(expected["mAP"], abs=1e-9 if exact else 2e-3)
    assert capsys.readouterr().out.splitlines()[-1] == f"mAP@0.5 = {result['mAP']:.6f}"
    assert list(result["AP"]) == list(read_class_descriptions(folder / "classes.csv"))
    assert (result["num_gt"], result["images"]) == (expected["num_gt"], expected["images"])
    if exact:
        assert result["AP"] == pytest.approx(expected["AP"], abs=1e-9)
