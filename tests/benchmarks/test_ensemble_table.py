"""The table of an ensemble shows the numbers of a06 and the metric."""

import pytest

import a06_ensemble as a06
from benchmarks import ensemble_table
from oid.files import InputError
from oid.metric.challenge import Selection, evaluate
from oid.metric.ground_truth import find_ground_truth
from oid.predictions.files import read_predictions
from tests.helpers.ensemble_case import make_ensemble_case


@pytest.fixture
def case(tmp_path):
    options = {"predictions": make_ensemble_case(tmp_path, 20), "dataset_path": str(tmp_path / "data")}
    return options | {"split": "validation", "folds": 2, "draws": 20}


def table_rows(text):
    """{first cell: other cells} of the printed Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    return {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines}


def test_every_model_and_method_is_measured_as_the_metric_does(case, tmp_path, capsys):
    ensemble_table.main(trials=0, **case)
    rows = table_rows(capsys.readouterr().out)
    assert list(rows) == ["good", "bad", *ensemble_table.FUSIONS]
    assert (rows["good"][0], rows["bad"][0], float(rows["bad"][3])) == ("1.0000", "0.0000", -1.0)
    truth, report, _ = find_ground_truth(case["dataset_path"], "validation").read()
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
