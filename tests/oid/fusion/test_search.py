"""The search of fusion settings finds a gain that is there, keeps equal weights where there is none, and never looks at
the images that it is measured on."""

import dataclasses

import numpy as np
import pytest

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES, Boxes
from oid.fusion.model_files import ModelFiles
from oid.fusion.resampling import Curves, mean_of_folds
from oid.fusion.search import IOU_RANGE, SMALLEST_WEIGHT, Gain, boxes_that_count, divide, draw_trials, fuse_all, tune
from oid.fusion.tuned_settings import FusionSettings, SearchOptions
from oid.metric.challenge import GroundTruth, evaluate, match
from oid.predictions.files import Predictions

CLASSES = 3
LABELS = [f"/m/{c}" for c in range(CLASSES)]
CELLS = 4  # an image is divided into 4 x 4 cells, each with at most one object: objects never overlap


class InMemory:
    """Predictions with the interface of a PredictionFile."""

    def __init__(self, predictions: Predictions):
        self.predictions, self.image_ids, self.labels = predictions, predictions.image_ids, predictions.labels

    def read(self, positions):
        offsets = self.predictions.offsets()
        rows = np.concatenate([np.zeros(0, int), *(np.arange(offsets[p], offsets[p + 1]) for p in positions)])
        columns = (getattr(self.predictions, name)[rows] for name in ("label_index", "scores", "boxes"))
        index = np.repeat(np.arange(len(positions)), np.diff(offsets)[positions])
        return Predictions([self.image_ids[p] for p in positions], self.predictions.labels, index, *columns)


def ground_truth(images: int, seed: int = 0) -> GroundTruth:
    """Five objects in each image; every class is verified everywhere."""
    rng = np.random.default_rng(seed)
    cell = np.concatenate([rng.permutation(CELLS**2)[:5] for _ in range(images)])
    corner = np.stack([cell % CELLS, cell // CELLS], axis=1) / CELLS
    boxes = np.concatenate([corner + 0.02, corner + 0.02 + rng.uniform(0.1, 0.2, (len(cell), 2))], axis=1)
    image, label = np.repeat(np.arange(images), 5), rng.integers(0, CLASSES, len(cell))
    verified = np.divmod(np.arange(images * CLASSES), CLASSES)
    return GroundTruth(
        tuple(f"{k:04d}" for k in range(images)), image, label, boxes, np.zeros(len(cell), bool), *verified
    )


def detector(truth: GroundTruth, seed: int, found: float = 0.8, error: float = 0.08, false: int = 3) -> Predictions:
    """Finds a share of the objects, each with an error relative to its size, and `false` others in each image."""
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
    """Finds nothing, with high scores."""
    predictions = detector(truth, seed, found=0.0, false=8)
    return dataclasses.replace(predictions, scores=np.random.default_rng(seed).beta(8, 2, len(predictions.scores)))


def base(models: int) -> FusionSettings:
    return FusionSettings((1.0,) * models, 0.55)


def opened(models: list[Predictions], truth: GroundTruth) -> ModelFiles:
    return ModelFiles([InMemory(model) for model in models], truth.image_ids)


def search(models: list[Predictions], truth: GroundTruth, start: FusionSettings | None = None, **options):
    options = SearchOptions(**({"trials": 60} | options))
    return tune(opened(models, truth), truth, LABELS, start or base(len(models)), options)


def mean_average_precision(truth: GroundTruth, models: list[Predictions], settings: FusionSettings) -> float:
    """mAP of all boxes, fused with the settings as a06 does it."""
    boxes = [Boxes(model.boxes, model.scores, model.label_index, model.offsets()) for model in models]
    return evaluate(truth, fuse_all(boxes, settings), num_classes=CLASSES).mean_average_precision


def fold_gain(truth: GroundTruth, models: list[Predictions], settings_of_fold: list[FusionSettings]) -> float:
    """Gain over the base of the mean over the folds."""
    boxes, fold = boxes_that_count(opened(models, truth), truth, LABELS), divide(len(truth.image_ids), 5, 0)

    def curves(settings: FusionSettings, images: np.ndarray) -> Curves:
        return Curves(match(truth, fuse_all(boxes, settings), num_classes=CLASSES), images)

    pairs = [[curves(one, fold == f) for one in (base(3), settings)] for f, settings in enumerate(settings_of_fold)]
    before, after = (mean_of_folds(folds) for folds in zip(*pairs, strict=True))
    return after - before


@pytest.fixture(scope="module")
def noisy():
    """Two detectors and one that is noise: truth, models, result."""
    truth = ground_truth(60)
    models = [detector(truth, 1), noise(truth, 2), detector(truth, 3)]
    return truth, models, search(models, truth)


def test_a_model_that_is_noise_gets_little_weight(noisy):
    _, _, tuning = noisy
    free, equal = tuning.free_weights, tuning.equal_weights
    assert (tuning.verdict, tuning.kept.settings) == ("gain", free.settings)
    for weights in (one.weights for one in (free.settings, *free.fold_settings)):
        assert weights[1] < min(weights[0], weights[2])
    assert {one.weights for one in (equal.settings, *equal.fold_settings)} == {(1.0, 1.0, 1.0)}
    assert 0.05 < tuning.kept.interval_95[0] < tuning.kept.out_of_fold < tuning.kept.interval_95[1]
    assert 0.0 < free.interval_95[0] < free.out_of_fold
    assert all(gain > 0.0 for gain in tuning.kept.folds)


def test_the_expected_gain_is_what_other_images_show(noisy):
    _, _, tuning = noisy
    truth = ground_truth(200, seed=9)
    models = [detector(truth, 11), noise(truth, 12), detector(truth, 13)]
    gain = mean_average_precision(truth, models, tuning.kept.settings) - mean_average_precision(truth, models, base(3))
    assert gain == pytest.approx(tuning.kept.out_of_fold, abs=0.08)


def test_reported_gains_are_those_of_fusion_and_metric(noisy):
    truth, models, tuning = noisy
    assert tuning.base_map == pytest.approx(mean_average_precision(truth, models, base(3)), abs=1e-12)
    for gain in (tuning.equal_weights, tuning.kept):
        found = mean_average_precision(truth, models, gain.settings)
        assert gain.in_fold == pytest.approx(found - tuning.base_map, abs=1e-12)
        assert gain.out_of_fold == pytest.approx(fold_gain(truth, models, gain.fold_settings), abs=1e-12)
    lines = tuning.lines()
    assert f"expected gain {tuning.kept}" in lines
    for gain in (tuning.equal_weights, tuning.free_weights):  # the gain in fold is never called the expected one
        assert all(f"in fold {gain.in_fold:+.4f}" in line for line in lines if f"{gain.in_fold:+.4f}" in line)
    before = tuning.equal_weights.out_of_fold if tuning.equal_weights.is_beyond_noise() else 0.0
    assert tuning.free_weights.out_of_fold == pytest.approx(tuning.kept.out_of_fold - before)


def test_a_gain_inside_the_noise_is_not_kept():
    """Three detectors that differ by chance only, at a good IoU: the search fits the images it sees."""
    truth = ground_truth(30)
    models = [detector(truth, seed, error=0.25, false=5) for seed in (20, 21, 22)]
    good = dataclasses.replace(base(3), iou_threshold=0.36)
    tuning = search(models, truth, good)
    assert tuning.free_weights.in_fold > 0.005
    assert tuning.free_weights.interval_95[0] < 0.0
    assert tuning.kept.settings == good != tuning.free_weights.settings
    assert tuning.kept.out_of_fold == 0.0
    assert f"inside the noise; kept: {good}" in tuning.lines()


def test_equal_models_can_gain_by_other_settings_but_not_by_weights():
    truth = ground_truth(60)
    models = [detector(truth, seed, error=0.15, false=8) for seed in (1, 2, 3)]
    tuning = search(models, truth, dataclasses.replace(base(3), iou_threshold=0.8))
    assert (tuning.verdict, tuning.kept) == ("gain with equal weights", tuning.equal_weights)
    assert tuning.kept.settings.weights == (1.0, 1.0, 1.0)
    assert tuning.kept.settings.iou_threshold < 0.65
    assert tuning.kept.out_of_fold > tuning.kept.interval_95[0] > 0.05


@pytest.mark.parametrize(
    ("interval", "folds", "certain"),
    [
        ((0.01, 0.03), (0.02, 0.02, -0.01), True),
        ((0.0, 0.03), (0.02, 0.02, 0.02), False),
        ((1e-17, 1e-16), (1e-16, 1e-16, 1e-16), False),
        ((0.01, 0.03), (0.06, 0.0, 0.0), False),
        ((0.01, 0.03), (0.04, 0.04, 0.0, 0.0), False),
        ((0.01, 0.03), (0.04, 0.04, 0.0, None), True),
    ],
)
def test_a_gain_beyond_noise_needs_its_interval_and_most_folds(interval, folds, certain):
    assert Gain(base(2), (), 0.1, 0.02, interval, folds).is_beyond_noise() is certain


def test_a_fold_has_no_part_in_what_is_chosen_for_it(noisy):
    """In the images of one fold the noise is made true: the choice for that fold stays, all others change."""
    truth, models, tuning = noisy
    boxes, classes = truth.boxes.copy(), truth.box_class.copy()
    for image in np.flatnonzero(divide(60, 5, 0) == 2):  # five objects in each image; the noise has eight boxes
        boxes[5 * image : 5 * image + 5] = models[1].boxes[8 * image : 8 * image + 5]
        classes[5 * image : 5 * image + 5] = models[1].label_index[8 * image : 8 * image + 5]
    changed = search(models, dataclasses.replace(truth, boxes=boxes, box_class=classes))
    for gain, before in ((changed.equal_weights, tuning.equal_weights), (changed.free_weights, tuning.free_weights)):
        assert gain.fold_settings[2] == before.fold_settings[2]
    assert changed.free_weights.fold_settings != tuning.free_weights.fold_settings
    assert changed.free_weights.folds[2] < 0.0 < tuning.free_weights.folds[2]


def test_the_same_input_gives_the_same_result_and_the_seed_another(noisy):
    truth, models, tuning = noisy
    again = search(models, truth, threads=2)
    assert dataclasses.replace(again, options=tuning.options) == tuning
    other = search(models, truth, trials=12, seed=1)
    assert other.free_weights.folds != tuning.free_weights.folds


def with_more(model: Predictions) -> Predictions:
    """The same in another order of images and labels, with 2 boxes on another image and 3 of another class."""
    ids, labels = ["elsewhere", *model.image_ids[::-1]], ["/m/other", *LABELS]
    image = np.concatenate([len(model.image_ids) - model.image_index, [0, 0, 1, 1, 2]])
    label = np.concatenate([model.label_index + 1, [1, 2, 0, 0, 0]])
    scores = np.concatenate([model.scores, np.full(5, 0.99)])
    boxes = np.concatenate([model.boxes, np.tile([0.1, 0.1, 0.9, 0.9], (5, 1))])
    order = np.argsort(image, kind="stable")
    return Predictions(ids, labels, image[order], label[order], scores[order], boxes[order])


def test_boxes_that_cannot_count_change_nothing_and_are_left_out_before_fusion():
    truth = ground_truth(20)
    some = truth.label_image % 3 != truth.label_class
    truth = dataclasses.replace(truth, label_image=truth.label_image[some], label_class=truth.label_class[some])
    models = [detector(truth, seed, false=20) for seed in (1, 2)]
    settings = FusionSettings((1.0, 0.4), 0.4, 0.2, "box_and_model_avg")
    data = boxes_that_count(opened([with_more(model) for model in models], truth), truth, LABELS)
    found = evaluate(truth, fuse_all(data, settings), num_classes=CLASSES)
    assert found.mean_average_precision == pytest.approx(mean_average_precision(truth, models, settings), abs=1e-12)
    assert found.dropped["unverified_class"] == 0
    assert all(0 < len(kept.scores) < len(model.scores) for model, kept in zip(models, data, strict=True))


def with_boxes(truth: GroundTruth, kept: np.ndarray | slice) -> GroundTruth:
    """The same ground truth with only some of its boxes."""
    columns = {name: getattr(truth, name)[kept] for name in ("box_image", "box_class", "boxes", "box_group_of")}
    return dataclasses.replace(truth, **columns)


def test_input_that_cannot_be_tuned_is_refused():
    truth = ground_truth(10)
    model = detector(truth, 1)
    elsewhere = dataclasses.replace(model, image_ids=[f"x{name}" for name in model.image_ids])
    other_classes = dataclasses.replace(model, labels=["x", "y", "z"])
    for models, known, folds, said in (
        ([model, elsewhere], truth, 5, "prediction file 2 has no image of the ground truth"),
        ([other_classes], truth, 5, "no prediction file has a box of a class that is"),
        ([model], with_boxes(truth, slice(0)), 5, "the ground truth has no box"),
        ([model], truth, 11, "10 images cannot be divided into 11 folds"),
    ):
        with pytest.raises(InputError, match=said):
            search(models, known, folds=folds)
    assert sorted(np.bincount(divide(11, 3, 0))) == [3, 4, 4]


def test_one_trial_is_the_base_and_one_model_has_weight_1():
    truth = ground_truth(20)
    tuning = search([detector(truth, 1)], truth, trials=1, folds=2)
    assert {tuning.kept.settings, tuning.free_weights.settings, *tuning.free_weights.fold_settings} == {base(1)}
    assert search([detector(truth, 1)], truth, trials=10, folds=2).free_weights.settings.weights == (1.0,)


def test_a_fold_without_ground_truth_has_no_gain():
    truth = ground_truth(10)
    few = with_boxes(truth, truth.box_image == 0)
    tuning = search([detector(truth, 1), detector(truth, 2)], few, trials=12)
    assert tuning.free_weights.folds.count(None) == 4
    assert tuning.free_weights.fold_settings[divide(10, 5, 0)[0]] == base(2)
    assert tuning.verdict == "inside the noise"


def test_trials_are_valid_settings_with_equal_weights_in_every_second_one():
    scores = np.random.default_rng(0).random(100)
    trials = draw_trials(base(3), 200, scores, seed=1)
    assert (len(set(trials)), trials[0]) == (200, base(3))
    assert trials == draw_trials(base(3), 200, scores, seed=1)
    assert sum(trial.weights == (1.0, 1.0, 1.0) for trial in trials) == 100
    assert sum(0.0 in trial.weights for trial in trials) > 10
    for trial in trials:
        assert max(trial.weights) == 1.0
        assert all(weight == 0.0 or weight >= SMALLEST_WEIGHT for weight in trial.weights)
        assert IOU_RANGE[0] <= trial.iou_threshold <= IOU_RANGE[1]
        assert 0.0 <= trial.skip_box_threshold < 1.0
    assert {trial.conf_type for trial in trials} == set(CONF_TYPES)
