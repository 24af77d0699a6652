"""Proves a06: which images and labels the fused file has, that every flag arrives, and that mistakes are said."""

import json

import numpy as np
import pytest

import a06_ensemble as a06
from benchmarks import ensemble_table
from oid import paths
from oid.files import InputError
from oid.fusion.fuse import METHODS, clean_boxes, count_unusual, fuse
from oid.metric.challenge import Selection, evaluate
from oid.metric.ground_truth import find_ground_truth
from oid.predictions.files import Predictions, read_predictions, write_predictions
from tests.helpers.project import run_script

A, B = "0.100000 0.100000 0.300000 0.300000", "0.600000 0.600000 0.900000 0.900000"


def write(folder, name, rows):
    path = folder / name
    path.write_text("ImageId,PredictionString\n" + "".join(f"{image_id},{text}\n" for image_id, text in rows.items()))
    return str(path)


def read(path):
    return dict(line.split(",") for line in path.read_text().splitlines()[1:])


def random_files(folder, num_images=8):
    """Three prediction files of the same images in another order each: paths, ids, labels, [model][image] of lists."""
    rng = np.random.default_rng(0)
    ids, labels = [f"i{k}" for k in range(num_images)], ["x", "y", "z"]
    models, file_paths = [], []
    for index in range(3):
        images = []
        for _ in ids:
            n = rng.integers(0, 20)
            boxes = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4).round(6)
            images.append((rng.integers(0, 3, n), rng.random(n).round(9), boxes))
        models.append(images)
        order = rng.permutation(num_images)
        shuffled = Predictions.from_images([ids[k] for k in order], labels, [images[k] for k in order])
        file_paths.append(str(folder / f"{index}.csv"))
        write_predictions(file_paths[-1], shuffled)
    return tuple(file_paths), ids, labels, models


@pytest.fixture
def ensemble(tmp_path):
    """Writes the rows {image: prediction string} of each model, calls a06 and returns the rows of the result."""

    def call(*models, **options):
        file_paths = [write(tmp_path, f"model{index}.csv", rows) for index, rows in enumerate(models)]
        a06.main(predictions=tuple(file_paths), ensemble=str(tmp_path / "out.csv"), **options)
        return read(tmp_path / "out.csv")

    return call


def test_images_of_the_first_file_come_first_then_new_ones(ensemble, capsys):
    first, second = {"c": f"x 0.5 {A}", "a": ""}, {"007": f"x 0.5 {A}", "c": f"x 0.5 {A}", "b": ""}
    result = ensemble(first, second)
    assert list(result.items()) == [("c", f"x 0.5 {A}"), ("a", ""), ("007", f"x 0.25 {A}"), ("b", "")]
    output = capsys.readouterr().out
    assert "2 images of other files are missing here" in output
    assert "1 images of other files are missing here" in output


def test_labels_are_any_text_and_are_matched_by_text_not_by_position(ensemble):
    result = ensemble({"i": f"x 0.8 {A} ünï/1 0.4 {B}"}, {"i": f"ünï/1 0.4 {B} x 0.8 {A}"})
    assert result["i"] == f"x 0.8 {A} ünï/1 0.4 {B}".replace("0.8", "0.800000012").replace("0.4", "0.400000006")


def test_one_file_alone_works(ensemble):
    assert ensemble({"i": f"x 0.5 {A} y 0.75 {B}", "j": ""}) == {"i": f"y 0.75 {B} x 0.5 {A}", "j": ""}


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_that_of_the_fusion_module_image_by_image(tmp_path, method):
    file_paths, ids, labels, models = random_files(tmp_path)
    options = {"weights": (2.0, 1.0, 0.5), "skip_box_threshold": 0.1}
    if method == "wbf":
        options |= {"conf_type": "avg", "allows_overflow": True}
    if method == "soft_nms_gaussian":
        options |= {"sigma": 0.2, "score_threshold": 0.05}
    out = str(tmp_path / "out.csv")
    a06.main(predictions=file_paths, ensemble=out, method=method, fusion_iou=0.4, limit=9, **options)
    result = read_predictions(out)
    offsets = result.offsets()
    for row, image_id in enumerate(result.image_ids):
        parts = [model[ids.index(image_id)] for model in models]
        arguments = ([p[2] for p in parts], [p[1] for p in parts], [p[0] for p in parts])
        boxes, scores, label_index = (part[:9] for part in fuse(method, *arguments, iou_threshold=0.4, **options))
        found = slice(offsets[row], offsets[row + 1])
        assert [result.labels[k] for k in result.label_index[found]] == [labels[k] for k in label_index]
        np.testing.assert_allclose(result.scores[found], scores, rtol=1e-8)
        np.testing.assert_allclose(result.boxes[found], boxes, atol=1e-6)


def test_weights_and_methods(ensemble):
    models = {"i": f"x 0.9 {A}"}, {"i": f"y 0.6 {B}"}
    assert ensemble(*models, weights=(3.0, 1.0)) == {"i": f"x 0.675 {A} y 0.15 {B}"}
    assert ensemble(*models, method="nms") == {"i": f"x 0.9 {A} y 0.6 {B}"}
    assert ensemble(*models, method="nms", weights=(3.0, 1.0)) == {"i": f"x 0.675 {A} y 0.15 {B}"}
    assert ensemble(*models, weights=(0.0, 1.0), limit=1) == {"i": f"y 0.6 {B}"}


def test_what_fusion_leaves_out_is_counted(ensemble, capsys):
    flat, outside = "0.2 0.2 0.2 0.9", "-0.500000 0.000000 0.500000 1.500000"
    result = ensemble({"i": f"x 0.9 {flat} y 0.8 {outside} z 0.1 {A}"}, skip_box_threshold=0.2)
    assert result == {"i": "y 0.8 0.000000 0.000000 0.500000 1.000000"}
    output = capsys.readouterr().out
    for line in ("1 boxes have no area", "1 boxes reach out of the image", "1 boxes have a score below 0.2"):
        assert line in output


def test_the_counts_are_those_of_clean_boxes():
    rng = np.random.default_rng(0)
    boxes = rng.choice([-0.5, 0.0, 0.25, 0.5, 1.0, 1.5], (500, 4))
    scores = rng.choice([0.0, 0.2, 0.4], 500)
    outside, without_area, below = count_unusual(boxes, scores, 0.2)
    assert outside == np.any((boxes < 0) | (boxes > 1), axis=1).sum()
    assert without_area == (~clean_boxes(boxes)[1]).sum()
    assert below == (scores == 0.0).sum()


@pytest.mark.parametrize("method", METHODS)
def test_neither_blocks_nor_threads_change_the_file(tmp_path, monkeypatch, capsys, method):
    """Also the counts on the screen are the same; labels become known in another order in each file and block."""
    file_paths, *_ = random_files(tmp_path, num_images=30)
    results = set()
    for images, threads in ((1000, 1), (1000, 3), (7, 2), (1, 1)):
        monkeypatch.setattr(a06, "IMAGES_PER_BLOCK", images)
        capsys.readouterr()
        a06.main(predictions=file_paths, ensemble=str(tmp_path / "out.csv"), method=method, threads=threads)
        results.add(((tmp_path / "out.csv").read_bytes(), capsys.readouterr().out))
    assert len(results) == 1


def test_files_without_any_image_or_box(ensemble):
    assert ensemble({}, {}) == {}
    assert ensemble({"a": ""}, {}) == {"a": ""}
    assert ensemble({"a": ""}, {"b": ""}, method="soft_nms_linear") == {"a": "", "b": ""}


def test_a_mistake_in_a_late_block_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(a06, "IMAGES_PER_BLOCK", 2)
    rows = {f"i{k}": f"x 0.5 {A}" for k in range(9)}
    path = write(tmp_path, "a.csv", rows | {"i9": "x 0.5 0.1"})
    with pytest.raises(InputError, match="line 11: 3 tokens"):
        a06.main(predictions=(path,), ensemble=str(tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"weights": (1.0,)}, "1 weights for 2 prediction files"),
        ({"weights": (0.0, 0.0)}, "--weights 0 0: at least one"),
        ({"weights": (1.0, -1.0)}, "--weights 1 -1: .* from 0 to 1000000"),
        ({"weights": (1.0, float("nan"))}, "--weights 1 nan"),
        ({"fusion_iou": 1.01}, "--fusion_iou 1.01"),
        ({"skip_box_threshold": float("inf")}, "--skip_box_threshold inf"),
        ({"limit": -1}, "--limit -1"),
        ({"method": "soft_nms_gaussian", "sigma": 0.0}, "--sigma 0.0: it must be above 0"),
        ({"method": "soft_nms_linear", "score_threshold": float("nan")}, "--score_threshold nan"),
        ({"method": "soft_nms_linear", "skip_box_threshold": -0.1}, "takes no negative scores"),
        ({"method": "nms", "conf_type": "max"}, "--conf_type has no effect with --method nms, only with wbf"),
        ({"sigma": 0.1}, "--sigma has no effect with --method wbf, only with soft_nms_gaussian"),
        ({"conf_type": "max", "allows_overflow": True}, "--allows_overflow has no effect with --conf_type max"),
        ({"threads": -1}, "--threads is -1"),
        ({"trials": 10}, "--trials has no effect without --tune"),
        ({"boxes": "gt.csv"}, "--boxes has no effect without --tune"),
        ({"tune": True, "method": "nms"}, "--method cannot be given with --tune"),
        ({"tune": True, "limit": 5}, "--limit cannot be given with --tune"),
        ({"tune": True, "folds": 1}, "--folds is 1: it must be at least 2"),
        ({"settings": "x.tuned.json", "weights": (1.0, 2.0)}, "--weights cannot be given with --settings"),
        ({"settings": "x.tuned.json", "fusion_iou": 0.5}, "--fusion_iou cannot be given with --settings"),
        ({"settings": "x.tuned.json"}, "x.tuned.json does not exist: a06_ensemble.py --tune writes it"),
    ],
)
def test_mistakes_in_flags(ensemble, tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        ensemble({"i": ""}, {"i": ""}, **options)
    assert not (tmp_path / "out.csv").exists()


def test_the_input_is_never_overwritten(tmp_path):
    path = write(tmp_path, "a.csv", {"i": ""})
    with pytest.raises(InputError, match="one of the files that are read"):
        a06.main(predictions=(path,), ensemble=path)


# === Tuned settings ===================================================================================================


def tuning_case(folder, num_images=40):
    """A data set's folder with ground truth, and two files: one finds every box, the other finds others at 0.99."""
    rng = np.random.default_rng(0)
    rows, good, bad = [], {}, {}
    for k in range(num_images):
        x, y = rng.random(2).round(3) * 0.5
        rows.append(f"i{k},xclick,/m/x,1,{x:.6f},{x + 0.3:.6f},{y:.6f},{y + 0.3:.6f},0,0,0,0,0")
        good[f"i{k}"] = f"/m/x {rng.random() * 0.5 + 0.3:.4f} {x:.6f} {y:.6f} {x + 0.3:.6f} {y + 0.3:.6f}"
        bad[f"i{k}"] = f"/m/x {rng.random() * 0.1 + 0.85:.4f} {1 - x - 0.05:.6f} {y:.6f} {1 - x:.6f} {y + 0.05:.6f}"
    boxes = paths.box_annotations(folder / "data", "validation")
    boxes.parent.mkdir(parents=True)
    columns = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction"
    boxes.write_text(columns + ",IsInside\n" + "\n".join(rows) + "\n")
    return write(folder, "good.csv", good), write(folder, "bad.csv", bad)


def test_tuned_settings_are_found_saved_and_applied(tmp_path, capsys):
    file_paths = tuning_case(tmp_path)
    settings, out = tmp_path / "best.tuned.json", tmp_path / "out.csv"
    shared = {"predictions": file_paths, "settings": str(settings), "ensemble": str(out)}
    a06.main(dataset_path=str(tmp_path / "data"), split="validation", tune=True, trials=40, **shared)
    output = capsys.readouterr().out
    assert "gain out of fold +" in output
    assert f"wrote {settings}" in output
    assert not out.exists()
    found = json.loads(settings.read_text())
    assert found["models"] == ["good", "bad"]
    assert found["weights"][0] > found["weights"][1]

    a06.main(**shared)
    names = {"weights": tuple(found["weights"]), "fusion_iou": found["fusion_iou"], "conf_type": found["conf_type"]}
    by_settings = out.read_bytes()
    skip = found["skip_box_threshold"]
    a06.main(predictions=file_paths, ensemble=str(out), skip_box_threshold=skip, **names)
    assert out.read_bytes() == by_settings
    with pytest.raises(InputError, match="give --predictions files of these names in this order: good bad"):
        a06.main(**(shared | {"predictions": file_paths[::-1]}))


def test_tuning_without_ground_truth_says_so(tmp_path):
    path = write(tmp_path, "a.csv", {"i": ""})
    options = {"predictions": (path,), "ensemble": str(tmp_path / "out.csv"), "tune": True}
    with pytest.raises(InputError, match="give --boxes, or the folder of Open Images with --dataset_path"):
        a06.main(dataset_path=str(tmp_path), **options)
    with pytest.raises(InputError, match="expected a file for image_labels, or none"):
        a06.main(boxes=path, image_labels=str(tmp_path / "none.csv"), **options)


# === The table of an ensemble =========================================================================================


def table_rows(text):
    """{first cell: other cells} of the Markdown table in what was printed."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    return {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines}


def test_the_table_has_a_row_for_each_model_and_method_measured_as_the_metric_does(tmp_path, capsys):
    file_paths, data = tuning_case(tmp_path), str(tmp_path / "data")
    options = {"dataset_path": data, "split": "validation", "predictions": file_paths, "folds": 2, "draws": 20}
    ensemble_table.main(trials=0, **options)
    rows = table_rows(capsys.readouterr().out)
    assert list(rows) == ["good", "bad", *ensemble_table.FUSIONS]
    assert rows["good"][0] == "1.0000"
    assert rows["bad"][0] == "0.0000"
    assert float(rows["bad"][3]) == -1.0  # the gain over the best model
    truth, report, _ = find_ground_truth(data, "validation").read()
    for name, (method, _) in ensemble_table.FUSIONS.items():
        a06.main(predictions=file_paths, ensemble=str(tmp_path / "out.csv"), method=method)
        detections = Selection(truth, report.labels).take(read_predictions(tmp_path / "out.csv"))
        expected = evaluate(truth, detections, num_classes=len(report.labels)).mean_average_precision
        assert float(rows[name][0]) == pytest.approx(expected, abs=1e-3), name


def test_the_tuned_rows_of_the_table_have_only_the_mean_of_the_folds(tmp_path, capsys):
    file_paths, data = tuning_case(tmp_path), str(tmp_path / "data")
    options = {"dataset_path": data, "split": "validation", "predictions": file_paths, "folds": 2, "draws": 20}
    ensemble_table.main(trials=30, **options)
    rows = table_rows(capsys.readouterr().out)
    tuned = rows["WBF tuned, out of fold"]
    assert tuned[:2] == ["", ""]
    assert float(tuned[2]) > float(rows["WBF"][2])
    with pytest.raises(InputError, match="1 prediction files: name two or more"):
        ensemble_table.main(**(options | {"predictions": file_paths[:1]}))


# === As a user calls it ===============================================================================================


def test_without_predictions_it_fuses_all_expanded_ones_of_the_split(tmp_path):
    folder = paths.submission(tmp_path, "test").parent
    folder.mkdir(parents=True)
    for name in ("b.expanded.csv", "a.expanded.csv", "a.csv"):
        write(folder, name, {name[0]: f"{name[0]} 0.5 {A}"})
    done = run_script("a06_ensemble.py", "--output_path", tmp_path, "--split", "test")
    assert done.returncode == 0, done.stderr
    assert read(paths.submission(tmp_path, "test")) == {"a": f"a 0.25 {A}", "b": f"b 0.25 {A}"}
    assert "%|" not in done.stderr  # no progress bar outside of a terminal


def test_without_predictions_and_without_files_it_says_what_to_run(tmp_path):
    done = run_script("a06_ensemble.py", "--output_path", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no *.expanded.csv in ")
    assert "run a05_expand_hierarchy.py first" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_flags_of_the_contract(tmp_path):
    file_paths = [write(tmp_path, name, {"i": f"x {score} {A}"}) for name, score in (("a.csv", 0.75), ("b.csv", 0.5))]
    out = tmp_path / "new" / "fused.csv"
    flags = ["--weights", 1, 1, "--fusion_iou", 0.55, "--skip_box_threshold", 0.0, "--method", "wbf", "--limit", 0]
    flags += ["--conf_type", "avg", "--allows_overflow", "false", "--threads", 2]
    done = run_script("a06_ensemble.py", "--predictions", *file_paths, "--ensemble", out, *flags)
    assert done.returncode == 0, done.stderr
    assert read(out) == {"i": f"x 0.625 {A}"}

    bad = write(tmp_path, "bad.csv", {"i": "x 0.5 0.9 0.1 0.2 0.3"})
    done = run_script("a06_ensemble.py", "--predictions", file_paths[0], bad, "--ensemble", tmp_path / "none.csv")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {bad}, line 2, tokens 1 to 6: XMin 0.9 is greater than XMax 0.2")
    assert not (tmp_path / "none.csv").exists()
