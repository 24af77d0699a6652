"""a06: the images and labels of the fused file, the effect of every flag, and the messages for mistakes."""

import json

import numpy as np
import pytest

import a06_ensemble as a06
from oid import paths
from oid.files import InputError
from oid.fusion.fuse import METHODS, fuse
from oid.predictions.files import read_predictions
from oid.predictions.files import write_predictions as write_file
from tests.helpers.ensemble_case import make_ensemble_case
from tests.helpers.ensemble_case import write_predictions as write
from tests.helpers.prediction_cases import predictions_of
from tests.helpers.project import run_script

A, B = "0.100000 0.100000 0.300000 0.300000", "0.600000 0.600000 0.900000 0.900000"


def read(path):
    return dict(line.split(",") for line in path.read_text().splitlines()[1:])


def random_files(folder, num_images=8):
    """Three prediction files of the same images in another order each: paths, ids, labels, [model][image] of lists."""
    rng = np.random.default_rng(0)
    ids, labels = [f"i{k}" for k in range(num_images)], ["x", "y", "z"]
    file_paths, models = tuple(str(folder / f"{index}.csv") for index in range(3)), []
    for path in file_paths:
        images = []
        for n in rng.integers(0, 20, num_images):
            boxes = np.sort(rng.random((n, 2, 2)), axis=1).reshape(n, 4).round(6)
            images.append((rng.integers(0, 3, n), rng.random(n).round(9), boxes))
        models.append(images)
        order = rng.permutation(num_images)
        write_file(path, predictions_of([ids[k] for k in order], labels, [images[k] for k in order]))
    return file_paths, ids, labels, models


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
    assert "model0.csv: 1 boxes\n  2 images of other files are missing here" in output
    assert "model1.csv: 2 boxes\n  1 images of other files are missing here" in output


def test_labels_are_any_text_and_are_matched_by_text_not_by_position(ensemble):
    result = ensemble({"i": f"x 0.8 {A} ünï/1 0.4 {B}"}, {"i": f"ünï/1 0.4 {B} x 0.8 {A}"})
    assert result["i"] == f"x 0.8 {A} ünï/1 0.4 {B}".replace("0.8", "0.800000012").replace("0.4", "0.400000006")


@pytest.mark.parametrize("method", METHODS)
def test_the_result_is_that_of_the_fusion_module_image_by_image(tmp_path, method):
    file_paths, ids, labels, models = random_files(tmp_path)
    own = {"wbf": {"allows_overflow": True}, "soft_nms_gaussian": {"sigma": 0.2, "score_threshold": 0.05}}
    options = {"weights": (2.0, 1.0, 0.5), "skip_box_threshold": 0.1} | own.get(method, {})
    out = str(tmp_path / "out.csv")
    a06.main(predictions=file_paths, ensemble=out, method=method, fusion_iou=0.4, limit=9, **options)
    result = read_predictions(out)
    offsets = result.offsets()
    for row, image_id in enumerate(result.image_ids):
        parts = [model[ids.index(image_id)] for model in models]
        arguments = ([p[2] for p in parts], [p[1] for p in parts], [p[0] for p in parts])
        boxes, scores, label_index, _ = fuse(method, *arguments, iou_threshold=0.4, limit=9, **options)
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
    for what in ("reach out of the image", "have no area in the image", "have a score below the skip threshold"):
        assert f"  1 boxes {what}" in output


@pytest.mark.parametrize("method", METHODS)
def test_neither_blocks_nor_threads_change_the_file(tmp_path, monkeypatch, capsys, method):
    file_paths, *_ = random_files(tmp_path, num_images=30)
    results = set()
    for images, threads in ((1000, 1), (1000, 3), (7, 2), (1, 1)):
        monkeypatch.setattr(a06, "IMAGES_PER_BLOCK", images)
        capsys.readouterr()
        a06.main(predictions=file_paths, ensemble=str(tmp_path / "out.csv"), method=method, threads=threads)
        results.add(((tmp_path / "out.csv").read_bytes(), capsys.readouterr().out))
    assert len(results) == 1


@pytest.mark.parametrize("score", ["1e308", "-1e10"])
def test_a_score_beyond_the_range_of_fusion_is_named(ensemble, score):
    with pytest.raises(InputError, match=r"model1.csv: the score -?1e\+\d+ of image 'j' is not from -1e\+09 to 1e\+09"):
        ensemble({"i": ""}, {"i": f"x 1e9 {A}", "j": f"x {score} {A}"}, weights=(1e6, 1e6), skip_box_threshold=-1e9)


def test_one_file_and_files_without_any_image_or_box(ensemble):
    assert ensemble({"i": f"x 0.5 {A} y 0.75 {B}", "j": ""}) == {"i": f"y 0.75 {B} x 0.5 {A}", "j": ""}
    assert ensemble({}, {}) == {}
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
        ({"weights": (1.0,)}, "--weights is 1.0: give 2 numbers, one per file"),
        ({"weights": (0.0, 0.0)}, "--weights is 0.0 0.0: give 2 numbers, one per file, not all 0"),
        ({"weights": (1.0, -1.0)}, "--weights is -1.0: give a number from 0"),
        ({"weights": (1.0, float("nan"))}, "--weights is nan"),
        ({"fusion_iou": 1.01}, "--fusion_iou is 1.01: give a number from 0 to 1"),
        ({"skip_box_threshold": float("inf")}, "--skip_box_threshold is inf"),
        ({"limit": -1}, "--limit is -1"),
        ({"method": "soft_nms_gaussian", "sigma": 0.0}, "--sigma is 0.0"),
        ({"method": "soft_nms_linear", "score_threshold": float("nan")}, "--score_threshold is nan"),
        ({"method": "soft_nms_linear", "skip_box_threshold": -0.1}, "--skip_box_threshold is -0.1"),
        ({"method": "nms", "conf_type": "max"}, "--conf_type is max: give it only with --method wbf"),
        ({"sigma": 0.1}, "--sigma is 0.1: give it only with --method soft_nms_gaussian"),
        ({"conf_type": "max", "allows_overflow": True}, "--allows_overflow is True: give it only with --conf_type avg"),
        ({"threads": -1}, "--threads is -1"),
        ({"trials": 10}, "--trials is 10: give it only with --tune"),
        ({"boxes": "gt.csv"}, "--boxes is gt.csv: give it only with --tune"),
        ({"group_of_weight": 0.5}, "--group_of_weight is 0.5: give it only with --tune"),
        ({"tune": True, "group_of_weight": 2.0}, "--group_of_weight is 2.0: give a number from 0 to 1"),
        ({"tune": True, "method": "nms"}, "--method is nms: give it only without --tune"),
        ({"tune": True, "limit": 5}, "--limit is 5: give it only without --tune"),
        ({"tune": True, "folds": 1}, "--folds is 1: give a number of at least 2"),
        ({"settings": "x.tuned.json", "weights": (1.0, 2.0)}, "--weights is 1.0 2.0: give it only without --settings"),
        ({"settings": "x.tuned.json", "fusion_iou": 0.5}, "--fusion_iou is 0.5: give it only without --settings"),
        ({"settings": "x.tuned.json"}, "x.tuned.json cannot be read .*write the file again by --tune"),
    ],
)
def test_mistakes_in_flags(ensemble, tmp_path, options, match):
    with pytest.raises(InputError, match=match):
        ensemble({"i": ""}, {"i": ""}, **options)
    assert not (tmp_path / "out.csv").exists()


def test_the_input_is_never_overwritten_and_must_exist(tmp_path):
    path = write(tmp_path, "a.csv", {"i": ""})
    with pytest.raises(InputError, match="give a file that is not read"):
        a06.main(predictions=(path,), ensemble=path)
    with pytest.raises(InputError, match=r"no \*.expanded.csv in .*: run a05_expand_hierarchy.py first"):
        a06.main(output_path=str(tmp_path))


# === Tuned settings ===================================================================================================


def test_tuned_settings_are_found_saved_and_applied(tmp_path, capsys):
    file_paths = make_ensemble_case(tmp_path)
    settings, out = tmp_path / "best.tuned.json", tmp_path / "out.csv"
    shared = {"predictions": file_paths, "settings": str(settings), "ensemble": str(out)}
    a06.main(dataset_path=str(tmp_path / "data"), split="validation", tune=True, trials=40, **shared)
    output = capsys.readouterr().out
    assert "\nexpected gain +" in output
    assert f"wrote {settings}" in output
    assert not out.exists()
    found = json.loads(settings.read_text())
    assert found["models"] == ["good", "bad"]
    flags = found["settings"]
    assert flags["weights"][0] > flags["weights"][1]

    a06.main(**shared)
    flags = flags | {"weights": tuple(flags["weights"]), "fusion_iou": flags.pop("iou_threshold")}
    by_settings = out.read_bytes()
    a06.main(predictions=file_paths, ensemble=str(out), **flags)
    assert out.read_bytes() == by_settings
    with pytest.raises(InputError, match=r"models are \['good', 'bad'\], they must be .*: give --predictions"):
        a06.main(**(shared | {"predictions": file_paths[::-1]}))


def test_group_of_weight_reaches_the_metric_of_the_search(tmp_path):
    """A group-of box that nobody finds costs AP, unless it counts 0."""
    file_paths, found = make_ensemble_case(tmp_path), {}
    boxes = paths.box_annotations(tmp_path / "data", "validation")
    boxes.write_text(boxes.read_text() + "i0,/m/x,0.9,0.95,0.9,0.95,1\n" * 40)
    settings = tmp_path / "best.tuned.json"
    shared = {"predictions": file_paths, "settings": str(settings), "ensemble": str(tmp_path / "out.csv"), "trials": 1}
    for weight in (0.0, 1.0):
        a06.main(dataset_path=str(tmp_path / "data"), split="validation", tune=True, group_of_weight=weight, **shared)
        found[weight] = json.loads(settings.read_text())["measured"]
    assert [measured["options"]["group_of_weight"] for measured in found.values()] == [0.0, 1.0]
    assert found[1.0]["base_map"] == pytest.approx(found[0.0]["base_map"] / 2)


def test_tuning_without_ground_truth_says_so(tmp_path):
    path = write(tmp_path, "a.csv", {"i": ""})
    options = {"predictions": (path,), "ensemble": str(tmp_path / "out.csv"), "tune": True}
    with pytest.raises(
        InputError, match=r"annotations-bbox\.csv does not exist.*: choose by --dataset_path, --split or"
    ):
        a06.main(dataset_path=str(tmp_path), **options)
    with pytest.raises(InputError, match=r"no\.csv does not exist: give another file by --image_labels$"):
        a06.main(boxes=path, image_labels=str(tmp_path / "no.csv"), **options)


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


def test_the_flags_of_the_contract(tmp_path):
    file_paths = [write(tmp_path, name, {"i": f"x {score} {A}"}) for name, score in (("a.csv", 0.75), ("b.csv", 0.5))]
    out = tmp_path / "new" / "fused.csv"
    flags = ["--weights", 1, 1, "--fusion_iou", 0.55, "--skip_box_threshold", 0.0, "--method", "wbf", "--limit", 0]
    flags += ["--conf_type", "avg", "--allows_overflow", "false", "--threads", 2]
    done = run_script("a06_ensemble.py", "--predictions", *file_paths, "--ensemble", out, *flags)
    assert done.returncode == 0, done.stderr
    assert read(out) == {"i": f"x 0.625 {A}"}
