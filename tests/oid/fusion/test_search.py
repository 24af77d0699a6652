"""Proves the search of fusion settings: it finds a gain that is there, keeps equal weights where there is none, and
never looks at the images that it is measured on."""

import dataclasses

import numpy as np
import pytest

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES, fuse
from oid.fusion.measured import MeasuredFusion, gather
from oid.fusion.search import Tuning, divide, is_certain, print_tuning, tune
from oid.fusion.trials import IOU_RANGE, SMALLEST_WEIGHT, draw_trials, has_equal_weights, neighbour, skip_thresholds
from oid.fusion.tuned_settings import FusionSettings, read_tuned_settings, write_tuned_settings
from oid.metric.challenge import Detections, GroundTruth, evaluate
from oid.predictions.files import PredictionFile, Predictions, write_predictions

CLASSES = 3
LABELS = [f"/m/{c}" for c in range(CLASSES)]
CELLS = 4  # a picture is divided into 4 x 4 cells, at most one object in each: objects never overlap
NO_BOX = np.zeros(0, np.int64)


def pictures(images: int, seed: int = 0) -> GroundTruth:
    """Five objects in each picture; every class is verified everywhere."""
    rng = np.random.default_rng(seed)
    cell = np.concatenate([rng.permutation(CELLS**2)[:5] for _ in range(images)])
    corner = np.stack([cell % CELLS, cell // CELLS], axis=1) / CELLS
    sizes = rng.uniform(0.1, 0.2, (len(cell), 2))
    boxes = np.concatenate([corner + 0.02, corner + 0.02 + sizes], axis=1)
    verified = np.divmod(np.arange(images * CLASSES), CLASSES)
    image, label = np.repeat(np.arange(images), 5), rng.integers(0, CLASSES, len(cell))
    ids = tuple(f"{k:04d}" for k in range(images))
    return GroundTruth(ids, image, label, boxes, np.zeros(len(cell), bool), *verified)


def detector(truth: GroundTruth, seed: int, found: float = 0.8, error: float = 0.08, false: int = 3) -> Predictions:
    """Finds a share of the objects, each with an error relative to its size, and so many others in each picture."""
    rng = np.random.default_rng(seed)
    hits = np.flatnonzero(rng.random(len(truth.boxes)) < found)
    sides = np.tile(truth.boxes[hits, 2:] - truth.boxes[hits, :2], 2)
    near = np.clip(truth.boxes[hits] + rng.normal(0.0, error, (len(hits), 4)) * sides, 0.0, 1.0)
    number = len(truth.image_ids)
    corner = rng.uniform(0.0, 0.8, (false * number, 2))
    boxes = np.concatenate([near, np.concatenate([corner, corner + 0.15], axis=1)])
    image = np.concatenate([truth.box_image[hits], np.repeat(np.arange(number), false)])
    label = np.concatenate([truth.box_class[hits], rng.integers(0, CLASSES, false * number)])
    scores = np.concatenate([rng.beta(4, 2, len(hits)), rng.beta(2, 4, false * number)])
    order = np.argsort(image, kind="stable")
    return Predictions(list(truth.image_ids), LABELS, image[order], label[order], scores[order], boxes[order])


def noise(truth: GroundTruth, seed: int) -> Predictions:
    """Finds nothing, and is sure of it."""
    predictions = detector(truth, seed, found=0.0, false=8)
    return dataclasses.replace(predictions, scores=np.random.default_rng(seed).beta(8, 2, len(predictions.scores)))


def base(models: int) -> FusionSettings:
    return FusionSettings((1.0,) * models, 0.55)


def mean_average_precision(truth: GroundTruth, models: list[Predictions], settings: FusionSettings) -> float:
    """mAP of what `oid.fusion.fuse.fuse` makes of each image: the slow way."""
    parts = []
    for image in range(len(truth.image_ids)):
        rows = [model.image_index == image for model in models]
        columns = [
            [getattr(model, name)[row] for model, row in zip(models, rows, strict=True)]
            for name in ("boxes", "scores", "label_index")
        ]
        options = {"iou_threshold": settings.fusion_iou, "skip_box_threshold": settings.skip_box_threshold}
        boxes, scores, labels = fuse("wbf", *columns, weights=settings.weights, conf_type=settings.conf_type, **options)
        parts.append((np.full(len(scores), image), labels, scores, boxes))
    detections = Detections(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return evaluate(truth, detections, num_classes=CLASSES).mean_average_precision


@pytest.fixture(scope="module")
def noisy():
    """Two detectors and one that is noise: truth, models, result."""
    truth = pictures(60)
    models = [detector(truth, 1), noise(truth, 2), detector(truth, 3)]
    return truth, models, tune(models, truth, LABELS, base=base(3), trials=60)


def test_a_model_that_is_noise_is_left_out_and_the_gain_is_found_out_of_fold(noisy):
    _, _, tuning = noisy
    assert tuning.verdict == "gain"
    assert tuning.settings == tuning.free.settings != tuning.equal.settings
    assert tuning.settings.weights[1] <= 0.2
    assert min(tuning.settings.weights[0], tuning.settings.weights[2]) >= 0.4
    assert tuning.expected_gain == tuning.free.out_of_fold
    assert 0.05 < tuning.free.interval[0] < tuning.expected_gain < tuning.free.interval[1]
    assert 0.0 < tuning.by_weights_interval[0] < tuning.by_weights < tuning.by_weights_interval[1]
    assert all(gain > 0.0 for gain in tuning.free.folds)
    for settings in tuning.free.fold_settings:
        assert settings.weights[1] < 0.5 * min(settings.weights[0], settings.weights[2])
    assert all(has_equal_weights(settings) for settings in (tuning.equal.settings, *tuning.equal.fold_settings))


def test_the_gain_out_of_fold_is_what_other_images_show(noisy):
    """The settings are applied to images that the search never had."""
    _, _, tuning = noisy
    truth = pictures(200, seed=9)
    models = [detector(truth, 11), noise(truth, 12), detector(truth, 13)]
    gain = mean_average_precision(truth, models, tuning.settings) - mean_average_precision(truth, models, base(3))
    assert gain == pytest.approx(tuning.expected_gain, abs=0.08)


def test_what_is_reported_is_what_fusion_and_metric_give(noisy):
    """In fold: all images. Out of fold: each fold measured alone, classes weighted by what there is to find."""
    truth, models, tuning = noisy
    fold = divide(60, 5, 0)

    def over_folds(choices):
        ap, num_gt = zip(*(measured(truth, models, fold == f, choices[f]) for f in range(5)), strict=True)
        return np.mean(np.nansum(np.multiply(ap, num_gt), axis=0) / np.sum(num_gt, axis=0))

    assert tuning.base_map == pytest.approx(mean_average_precision(truth, models, base(3)), abs=1e-12)
    assert tuning.fold_base_map == pytest.approx(over_folds([base(3)] * 5), abs=1e-12)
    for gain in (tuning.equal, tuning.free):
        found = mean_average_precision(truth, models, gain.settings)
        assert gain.in_fold == pytest.approx(found - tuning.base_map, abs=1e-12)
        expected = over_folds(gain.fold_settings) - tuning.fold_base_map
        assert gain.out_of_fold == pytest.approx(expected, abs=1e-12)
        assert gain.deviation == pytest.approx(np.std(gain.folds, ddof=1))
    simpler = tuning.equal.out_of_fold if tuning.equal.interval[0] > 0.0 else 0.0
    assert tuning.by_weights == pytest.approx(tuning.free.out_of_fold - simpler)


def measured(truth, models, chosen, settings):
    """AP and number of ground truth of each class on the chosen images, all others being empty."""
    fused = MeasuredFusion(gather(models, truth, LABELS), truth, num_classes=CLASSES).fused(settings)
    kept, boxes = chosen[fused.image], chosen[truth.box_image]
    columns = (getattr(truth, name)[boxes] for name in ("box_image", "box_class", "boxes", "box_group_of"))
    some = GroundTruth(truth.image_ids, *columns, truth.label_image, truth.label_class)
    result = evaluate(some, Detections(*(column[kept] for column in vars(fused).values())), num_classes=CLASSES)
    return result.average_precision, result.num_gt


def printed(tuning: Tuning, capsys) -> str:
    print_tuning(tuning, [f"model {k}" for k in range(len(tuning.base.weights))])
    return capsys.readouterr().out


def test_models_that_are_equal_keep_equal_weights(capsys):
    """Three times the same file with boxes that do not overlap: no setting is better, so not one leaves the base."""
    truth = pictures(40)
    tuning = tune([detector(truth, 1, error=0.25, false=0)] * 3, truth, LABELS, base=base(3), trials=40)
    assert 0.1 < tuning.base_map < 0.9
    for gain in (tuning.equal, tuning.free):
        assert gain.in_fold == gain.out_of_fold == 0.0
        assert {gain.settings, *gain.fold_settings} == {base(3)}
    assert tuning.verdict == "inside the noise"
    assert tuning.settings == base(3)
    assert "inside the noise: equal weights and the default settings are kept" in printed(tuning, capsys)


def test_a_gain_in_fold_inside_the_noise_is_not_kept(tmp_path, capsys):
    """Three detectors that differ by chance only, at a good IoU: the search fits the images it sees."""
    truth = pictures(30)
    models = [detector(truth, seed, error=0.25, false=5) for seed in (20, 21, 22)]
    good = dataclasses.replace(base(3), fusion_iou=0.36)
    tuning = tune(models, truth, LABELS, base=good, trials=40)
    assert tuning.free.in_fold > 0.02
    assert tuning.free.interval[0] < 0.0 < tuning.free.interval[1]
    assert tuning.settings == tuning.base == good != tuning.free.settings
    assert tuning.verdict == "inside the noise"
    assert tuning.expected_gain == 0.0
    said = printed(tuning, capsys)
    assert "inside the noise: equal weights and the default settings are kept" in said
    assert "expected gain" not in said
    assert f"gain in fold {tuning.free.in_fold:+.4f}: not to be expected" in said
    assert "95% interval -0.0300 to -0.0100: a loss" in printed(
        dataclasses.replace(tuning, by_weights_interval=(-0.03, -0.01)), capsys
    )
    write_tuned_settings(tmp_path / "x.json", ["a", "b", "c"], tuning.settings, tuning.verdict, tuning.measured())
    assert read_tuned_settings(tmp_path / "x.json", ["a", "b", "c"]) == good


def test_equal_models_get_better_settings_but_no_weights(capsys):
    """At a bad IoU there is a gain to be had, which says nothing for weights."""
    truth = pictures(60)
    models = [detector(truth, seed, error=0.15, false=8) for seed in (1, 2, 3)]
    tuning = tune(models, truth, LABELS, base=dataclasses.replace(base(3), fusion_iou=0.8), trials=60)
    assert tuning.verdict == "gain with equal weights"
    assert tuning.settings == tuning.equal.settings
    assert tuning.settings.weights == (1.0, 1.0, 1.0)
    assert tuning.settings.fusion_iou < 0.6
    assert tuning.expected_gain == tuning.equal.out_of_fold > tuning.equal.interval[0] > 0.05
    said = printed(tuning, capsys)
    assert "by the weights" in said
    assert "equal weights are kept" in said


@pytest.mark.parametrize(
    ("interval", "folds", "certain"),
    [
        ((0.01, 0.03), (0.02, 0.02, 0.02), True),
        ((0.01, 0.03), (0.02, 0.02, -0.01), True),
        ((0.0, 0.03), (0.02, 0.02, 0.02), False),
        ((-0.01, 0.03), (0.02, 0.02, 0.02), False),
        ((1e-17, 1e-16), (1e-16, 1e-16, 1e-16), False),
        ((0.01, 0.03), (0.06, 0.0, 0.0), False),
        ((0.01, 0.03), (0.04, 0.04, 0.0, 0.0), False),
        ((0.01, 0.03), (0.04, 0.04, 0.0, np.nan), True),
    ],
)
def test_a_gain_needs_its_interval_and_most_folds(interval, folds, certain):
    """One fold alone, rounding, or an interval that reaches down to 0 is noise."""
    assert is_certain(interval, folds) is certain


def test_the_gain_in_fold_is_never_the_expected_one(noisy, capsys):
    _, _, tuning = noisy
    in_fold = {tuning.equal.in_fold, tuning.free.in_fold}
    assert in_fold.isdisjoint({tuning.equal.out_of_fold, tuning.free.out_of_fold})
    content = tuning.measured()
    assert content["expected_gain"] == tuning.free.out_of_fold
    assert content["expected_gain_interval_95"] == list(tuning.free.interval)
    parts = [content, content["equal_weights"], content["free_weights"]]
    names = [name for part in parts for name, value in part.items() if isinstance(value, float) and value in in_fold]
    assert names == ["in_fold_gain_not_to_be_expected"] * 2
    low, high = tuning.free.interval
    said = printed(tuning, capsys).splitlines()
    assert f"expected gain {tuning.free.out_of_fold:+.4f}, 95% interval {low:+.4f} to {high:+.4f}" in said
    for gain in (tuning.equal, tuning.free):
        low, high = gain.interval
        assert f"  gain out of fold {gain.out_of_fold:+.4f}, 95% interval {low:+.4f} to {high:+.4f}" in said
        lines = [line for line in said if f"{gain.in_fold:+.4f}" in line]
        assert len(lines) == 1
        assert "gain in fold" in lines[0]
        assert "not to be expected" in lines[0]


def test_a_fold_that_is_held_out_has_no_part_in_what_is_chosen(noisy):
    """On its images the noise is made true: the others choose the same for it as before, and choose badly; for all
    other folds the choice is another one."""
    truth, models, tuning = noisy
    held_out = divide(60, 5, 0)[truth.box_image] == 2
    rows = np.flatnonzero(held_out[::5])  # five objects a picture; the noise has eight boxes
    boxes, classes = truth.boxes.copy(), truth.box_class.copy()
    for image in rows:
        boxes[5 * image : 5 * image + 5] = models[1].boxes[8 * image : 8 * image + 5]
        classes[5 * image : 5 * image + 5] = models[1].label_index[8 * image : 8 * image + 5]
    changed = tune(models, dataclasses.replace(truth, boxes=boxes, box_class=classes), LABELS, base=base(3), trials=60)
    for gain, before in ((changed.equal, tuning.equal), (changed.free, tuning.free)):
        assert gain.fold_settings[2] == before.fold_settings[2]
        assert gain.folds[2] != before.folds[2]
        assert gain.fold_settings != before.fold_settings
    assert changed.free.folds[2] < 0.0 < tuning.free.folds[2]


def test_the_same_input_gives_the_same_result(noisy, tmp_path):
    """In memory or from files, on one thread or on two; the seed moves the folds."""
    truth, models, tuning = noisy
    assert tune(models, truth, LABELS, base=base(3), trials=60, threads=2) == tuning
    paths = [tmp_path / f"{name}.csv" for name in "abc"]
    for path, model in zip(paths, models, strict=True):
        write_predictions(path, model)
    one, two = (
        tune((PredictionFile(path) for path in paths), truth, LABELS, base=base(3), trials=12) for _ in range(2)
    )
    assert one == two
    other = tune(models, truth, LABELS, base=base(3), trials=12, seed=1)
    assert other.free.folds != one.free.folds
    assert other.base_map == pytest.approx(one.base_map, abs=1e-3)  # files have 6 decimals


def with_more(model: Predictions) -> Predictions:
    """The same in another order of images and labels, with 2 boxes on another image and 3 of another class."""
    ids, labels = ["elsewhere", *model.image_ids[::-1]], ["/m/other", *LABELS]
    image = np.concatenate([len(model.image_ids) - model.image_index, [0, 0, 1, 1, 2]])
    label = np.concatenate([model.label_index + 1, [1, 2, 0, 0, 0]])
    scores = np.concatenate([model.scores, np.full(5, 0.99)])
    boxes = np.concatenate([model.boxes, np.tile([0.1, 0.1, 0.9, 0.9], (5, 1))])
    order = np.argsort(image, kind="stable")
    return Predictions(ids, labels, image[order], label[order], scores[order], boxes[order])


@pytest.mark.parametrize("conf_type", CONF_TYPES)
def test_boxes_that_cannot_count_are_left_out_before_fusion(conf_type):
    """Images and classes that are not evaluated, and classes that are not verified, change nothing, and are counted."""
    truth = pictures(20)
    some = truth.label_image % 3 != truth.label_class
    truth = dataclasses.replace(truth, label_image=truth.label_image[some], label_class=truth.label_class[some])
    models = [detector(truth, seed, false=20) for seed in (1, 2)]
    settings = FusionSettings((1.0, 0.4), 0.4, 0.2, conf_type)
    data = gather(map(with_more, models), truth, LABELS)
    found = evaluate(truth, MeasuredFusion(data, truth, num_classes=CLASSES).fused(settings), num_classes=CLASSES)
    assert found.mean_average_precision == pytest.approx(mean_average_precision(truth, models, settings), abs=1e-12)
    assert found.dropped["unverified_class"] == 0
    for model, scores, dropped in zip(models, data.scores, data.dropped, strict=True):
        assert list(dropped.values())[:2] == [2, 3]
        assert list(dropped.values())[2] == len(model.scores) - len(scores) > 0


def test_what_is_dropped_and_missing_is_printed(capsys):
    truth = pictures(10)
    models = [with_more(detector(truth, 1)), detector(truth, 2)]
    first = models[1].image_index > 0
    columns = (getattr(models[1], name)[first] for name in ("label_index", "scores", "boxes"))
    models[1] = Predictions(models[1].image_ids[1:], LABELS, models[1].image_index[first] - 1, *columns)
    said = printed(tune(models, truth, LABELS, base=base(2), trials=2, folds=2), capsys)
    one, two = said.split("model 1:")
    assert "dropped 2 on images without ground truth" in one
    assert "dropped 3 of classes that are not evaluated" in one
    assert "missing" not in one
    assert "1 images are missing: no boxes there" in two
    assert "dropped" not in two


@pytest.mark.parametrize(("images", "folds"), [(10, 5), (11, 3), (7, 7), (50, 2)])
def test_folds_divide_the_images(images, folds):
    fold = divide(images, folds, 0)
    sizes = np.bincount(fold)
    assert len(fold) == images
    assert len(sizes) == folds
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(fold, divide(images, folds, 0))
    assert images < 10 or np.any(fold != divide(images, folds, 1))


@pytest.mark.parametrize(("images", "folds"), [(3, 4), (10, 1), (1, 2), (5, 0)])
def test_folds_that_cannot_be_made_are_refused(images, folds):
    with pytest.raises(InputError, match=f"{images} images cannot be divided into {folds} folds"):
        divide(images, folds, 0)


def test_input_that_cannot_be_tuned_is_refused():
    truth = pictures(10)
    model = detector(truth, 1)
    elsewhere = dataclasses.replace(model, image_ids=[f"x{name}" for name in model.image_ids])
    with pytest.raises(InputError, match=r"prediction file 2 has no image of the ground truth: do --predictions"):
        tune([model, elsewhere], truth, LABELS, base=base(2), trials=2)
    with pytest.raises(InputError, match="no prediction file has a box of a class that is verified in its image"):
        tune([model], truth, [f"x{label}" for label in LABELS], base=base(1), trials=2)
    columns = (column[:0] for column in (truth.box_image, truth.box_class, truth.boxes, truth.box_group_of))
    nothing = GroundTruth(truth.image_ids, *columns, truth.label_image, truth.label_class)
    with pytest.raises(InputError, match="no box that counts"):
        tune([model], nothing, LABELS, base=base(1), trials=2)
    for wrong, trials in ((FusionSettings((1.0, 0.5), 0.5), 2), (base(2), 0), (base(3), 2)):
        with pytest.raises(ValueError, match="weights"):
            tune([model, model], truth, LABELS, base=wrong, trials=trials)


def test_one_trial_is_the_base_and_one_model_has_weight_1():
    truth = pictures(20)
    tuning = tune([detector(truth, 1)], truth, LABELS, base=base(1), trials=1, folds=2)
    assert {tuning.free.settings, *tuning.free.fold_settings} == {base(1)}
    assert tuning.verdict == "inside the noise"
    again = tune([detector(truth, 1)], truth, LABELS, base=base(1), trials=30, folds=2)
    assert again.free.settings == again.equal.settings
    assert again.free.settings.weights == (1.0,)


def test_a_fold_without_anything_to_find_has_no_gain():
    """The only objects are in one image: the other folds cannot be measured, and JSON says so."""
    truth = pictures(10)
    first = truth.box_image == 0
    columns = (column[first] for column in (truth.box_image, truth.box_class, truth.boxes, truth.box_group_of))
    few = GroundTruth(truth.image_ids, *columns, truth.label_image, truth.label_class)
    tuning = tune([detector(truth, 1), detector(truth, 2)], few, LABELS, base=base(2), trials=12)
    assert np.isnan(tuning.free.folds).sum() == 4
    assert tuning.free.fold_settings[divide(10, 5, 0)[0]] == base(2)
    assert tuning.measured()["free_weights"]["out_of_fold_gain_of_each_fold"].count(None) == 4
    assert tuning.verdict == "inside the noise"


def test_trials_are_settings_that_fusion_takes():
    rng = np.random.default_rng(0)
    skips = skip_thresholds([rng.random(100), NO_BOX, rng.random(50)])
    assert skips[0] == 0.0
    assert np.all(np.diff(skips) >= 0.0)
    trials = draw_trials(base(3), 200, skips, np.random.default_rng(1))
    assert len(set(trials)) == len(trials) == 200
    assert trials[0] == base(3)
    assert {(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)} <= {trial.weights for trial in trials}
    assert trials == draw_trials(base(3), 200, skips, np.random.default_rng(1))
    assert draw_trials(base(3), 2, skips, np.random.default_rng(1)) == trials[:2]
    assert 60 <= sum(map(has_equal_weights, trials)) <= 80
    steps = [neighbour(trial, skips, scale, rng, free_weights=False) for trial in trials for scale in (1.0, 0.1)]
    assert all(step.weights == trial.weights for step, trial in zip(steps[::2], trials, strict=True))
    steps += [neighbour(trial, skips, 1.0, rng, free_weights=True) for trial in trials]
    assert sum(step.weights != trial.weights for step, trial in zip(steps[400:], trials, strict=True)) > 190
    for settings in [*trials, *steps]:
        assert max(settings.weights) == 1.0
        assert all(weight == 0.0 or weight >= SMALLEST_WEIGHT for weight in settings.weights)
        assert IOU_RANGE[0] <= settings.fusion_iou <= IOU_RANGE[1]
        assert 0.0 <= settings.skip_box_threshold <= skips[-1] * 1.01
    assert {settings.conf_type for settings in trials} == set(CONF_TYPES)
    far, near = (
        np.mean([abs(a.fusion_iou - b.fusion_iou) for a, b in zip(trials, steps[k:400:2], strict=True)]) for k in (0, 1)
    )
    assert near < far / 3
