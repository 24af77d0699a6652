"""Proves what a07 can be asked for beside mAP: COCO's numbers, the table of classes, curves, kinds of error; and that
blocks of images change nothing, and --help waits for nothing heavy."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

import a07_evaluate
from oid import paths
from oid.files import InputError
from oid.metric import evaluation
from oid.metric.coco import NAMES
from oid.metric.errors import KINDS
from tests.helpers.project import ROOT
from tests.scripts.test_a07 import (
    BOX_HEADER,
    BOXES,
    LABEL_HEADER,
    PERFECT,
    ROW_HEADER,
    result_of,
    small_data_set,
    written,
)


@pytest.fixture
def data_set(tmp_path) -> dict[str, str]:
    return small_data_set(tmp_path)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def sizes_written(data_set: dict[str, str], *rows: str) -> Path:
    return written(paths.image_params(data_set["output_path"], "validation"), "id,width,height,channel,size,md5", *rows)


def test_table_of_classes(data_set, capsys):
    """Sorted by cost: A misses one of two boxes, P one of three."""
    a07_evaluate.main(**data_set, classes_shown=2)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.endswith(("(A)", "(B)", "(P)"))]
    assert [line.split()[-2:] for line in lines] == [["Apple", "(A)"], ["Plant", "(P)"]]
    rows = rows_of(Path(data_set["output_path"]) / "predictions" / "validation" / "submission.classes.csv")
    assert [(row["label"], row["name"], row["num_gt"], row["predicted"]) for row in rows] == [
        ("A", "Apple", "2.0", "1"),
        ("P", "Plant", "3.0", "2"),
        ("B", "Banana", "1.0", "1"),
    ]
    assert [float(row["cost"]) for row in rows] == pytest.approx([1 / 6, 1 / 9, 0])


def test_coco(data_set, tmp_path, capsys):
    """Perfect but for the group-of box, which is a crowd; image 2 is 64 x 64 pixels, so a box of 0.4 is a small one."""
    sizes_written(data_set, "2,64,64,3,1,x", "1,100,200,3,1,x", "unused,1,1,3,1,x")
    predictions = written(tmp_path / "p.csv", ROW_HEADER, *PERFECT)
    a07_evaluate.main(**data_set, predictions=str(predictions), coco=True)
    result = result_of(tmp_path / "p.metrics.json")["coco"]
    assert list(result) == list(NAMES)
    # the one box of A, and of B, and the best of the two of P: each image and class has one detection in AR_1
    expected = dict.fromkeys(("AP", "AP50", "AP75", "AP_medium", "AR_10", "AR_100", "AR_medium"), 1)
    expected |= dict.fromkeys(("AP_small", "AP_large", "AR_small", "AR_large")) | {"AR_1": (1 + 1 + 1 / 2) / 3}
    assert result == pytest.approx(expected)
    assert f"AP        {result['AP']:.6f}    AR_1      {result['AR_1']:.6f}" in capsys.readouterr().out


def test_in_coco_every_class_counts_in_every_image(data_set, tmp_path, capsys):
    """A banana in image 2, where nobody looked for one: no error in the challenge, the best detection of all here."""
    sizes_written(data_set, "1,100,200,3,1,x", "2,64,64,3,1,x")
    predictions = written(tmp_path / "p.csv", ROW_HEADER, *PERFECT, "2,B,0.95,0.5,0.9,0.5,0.9")
    labels = written(tmp_path / "l.csv", LABEL_HEADER, "1,A,1")
    a07_evaluate.main(**data_set, predictions=str(predictions), image_labels=str(labels), coco=True)
    assert "(1 boxes of unverified classes count)" in capsys.readouterr().out
    result = result_of(tmp_path / "p.metrics.json")
    assert result["AP"]["B"] == 1
    assert result["coco"]["AP"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert result["coco_AP"] == pytest.approx({"A": 1, "B": 1 / 2, "P": 1})
    assert result["coco"]["AP_medium"] == pytest.approx(1)  # of 26 x 26 pixels, so no medium box is wrong


def test_coco_by_another_table(data_set, tmp_path):
    """The same boxes in images of 10 x 10 pixels are small."""
    table = written(tmp_path / "sizes.csv", "id,width,height", "1,10,10", "2,10,10")
    a07_evaluate.main(**data_set, coco=True, image_params=str(table), metrics=str(tmp_path / "m.json"))
    result = result_of(tmp_path / "m.json")["coco"]
    assert result["AP_small"] == pytest.approx(result["AP"])
    assert result["AP_medium"] is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"validation_image_params.csv does not exist: run a02_find_image_parameters.py"),
        (["1,10,10,3,1,x"], r"has no size of 1 of the 2 evaluated images, for example '2': run a02_find_image_param"),
        (["1,10,10,3,1,x", "2,0,10,3,1,x"], r"line 3: width or height of '2' is not a positive number: run a02"),
        (["1,wide,10,3,1,x", "2,5,10,3,1,x"], r"line 2: width or height of '1' is not a positive number: run a02"),
    ],
)
def test_images_without_sizes(data_set, rows: list[str] | None, message: str, tmp_path):
    if rows is not None:
        sizes_written(data_set, *rows)
    with pytest.raises(InputError, match=message):
        a07_evaluate.main(**data_set, coco=True)
    assert not list(tmp_path.rglob("*.metrics.json"))


def test_kinds_of_error(data_set, tmp_path, capsys):
    """An apple that is called a banana, where bananas were looked for; its copy as a plant is right."""
    predictions = written(tmp_path / "p.csv", ROW_HEADER, "1,B,0.9,0,0.5,0,0.5", "1,P,0.9,0,0.5,0,0.5")
    a07_evaluate.main(**data_set, predictions=str(predictions), errors=True)
    result = result_of(tmp_path / "p.metrics.json")["errors"]
    assert {kind: result[kind]["count"] for kind in KINDS} == {
        **dict.fromkeys(KINDS, 0),
        "classification": 1,
        "missed": 4,  # the banana and its copy as a plant, the group-of box and its copy; the apple needs a class only
    }
    # fixed, half of the apples are found: AP 1/2 for one of three classes
    assert result["classification"]["dAP"] == pytest.approx(1 / 2 / 3)
    assert sum(result[kind]["share"] for kind in KINDS) == pytest.approx(1)
    assert rows_of(tmp_path / "p.confusions.csv") == [
        {"predicted": "B", "predicted_name": "Banana", "actual": "A", "actual_name": "Apple", "count": "1"}
        | {"mean_score": "0.9"}
    ]
    assert "Banana -> Apple  1  0.900" in capsys.readouterr().out


def test_curves(data_set, tmp_path):
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
    sizes_written(data_set, "1,100,200,3,1,x", "2,64,64,3,1,x")
    results = []
    for images in (1, 1000):
        monkeypatch.setattr(evaluation, "IMAGES_PER_BLOCK", images)
        a07_evaluate.main(**data_set, coco=True, errors=True, metrics=str(tmp_path / f"{images}.json"))
        results.append(result_of(tmp_path / f"{images}.json"))
    assert results[0] == results[1]


def test_help_waits_for_nothing_heavy():
    """Flags are there before NumPy, polars and numba are."""
    program = "import sys, a07_evaluate; print(*{'numpy', 'polars', 'numba', 'cv2'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_class_without_ground_truth_has_no_curve(data_set, tmp_path):
    boxes = written(tmp_path / "b.csv", BOX_HEADER, BOXES[0])
    with pytest.raises(InputError, match="--curve 'Banana' has no ground-truth box that counts"):
        a07_evaluate.main(**data_set, boxes=str(boxes), curve=("Banana",))
