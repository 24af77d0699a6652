"""The table of an ensemble shows the numbers of a06 and the metric."""

import numpy as np
import pytest

import a06_ensemble as a06
from benchmarks import ensemble_table
from oid import paths
from oid.files import InputError
from oid.metric.challenge import Selection, evaluate
from oid.metric.ground_truth import find_ground_truth
from oid.predictions.files import read_predictions


@pytest.fixture
def case(tmp_path):
    """The options of a data set and two prediction files: one finds every box, the other finds others at 0.9."""
    rng = np.random.default_rng(0)
    rows, found = ["ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf"], ["ImageId,PredictionString"]
    wrong = list(found)
    for k in range(20):
        x, y = rng.random(2).round(3) * 0.5
        rows.append(f"i{k},x,{x:.6f},{x + 0.3:.6f},{y:.6f},{y + 0.3:.6f},0")
        found.append(f"i{k},x {rng.random() * 0.5 + 0.3:.4f} {x:.6f} {y:.6f} {x + 0.3:.6f} {y + 0.3:.6f}")
        wrong.append(f"i{k},x {rng.random() * 0.1 + 0.85:.4f} {1 - x - 0.05:.6f} {y:.6f} {1 - x:.6f} {y + 0.05:.6f}")
    boxes = paths.box_annotations(tmp_path, "validation")
    boxes.parent.mkdir(parents=True)
    for path, lines in ((boxes, rows), (tmp_path / "good.csv", found), (tmp_path / "bad.csv", wrong)):
        path.write_text("\n".join(lines) + "\n")
    predictions = str(tmp_path / "good.csv"), str(tmp_path / "bad.csv")
    options = {"dataset_path": str(tmp_path), "split": "validation", "predictions": predictions}
    return options | {"folds": 2, "draws": 20}


def table_rows(text):
    """{first cell: other cells} of the printed Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    return {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines}


def test_every_model_and_method_is_measured_as_the_metric_does(case, tmp_path, capsys):
    ensemble_table.main(trials=0, **case)
    rows = table_rows(capsys.readouterr().out)
    assert list(rows) == ["good", "bad", *ensemble_table.FUSIONS]
    assert (rows["good"][0], rows["bad"][0], float(rows["bad"][3])) == ("1.0000", "0.0000", -1.0)
    truth, report, _ = find_ground_truth(str(tmp_path), "validation").read()
    for name, (method, _) in ensemble_table.FUSIONS.items():
        a06.main(predictions=case["predictions"], ensemble=str(tmp_path / "out.csv"), method=method)
        detections = Selection(truth, report.labels).take(read_predictions(tmp_path / "out.csv"))
        expected = evaluate(truth, detections, num_classes=len(report.labels)).mean_average_precision
        assert float(rows[name][0]) == pytest.approx(expected, abs=1e-3), name


def test_tuned_rows_have_only_the_mean_of_the_folds(case, capsys):
    ensemble_table.main(trials=30, **case)
    rows = table_rows(capsys.readouterr().out)
    tuned = rows["WBF tuned, out of fold"]
    assert tuned[:2] == ["", ""]
    assert float(tuned[2]) > float(rows["WBF"][2])
    with pytest.raises(InputError, match="1 prediction files: name two or more"):
        ensemble_table.main(**(case | {"predictions": case["predictions"][:1]}))
