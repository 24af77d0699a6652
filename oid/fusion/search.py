"""Random search of the settings of weighted boxes fusion, with an estimate of the gain on other images.

Each trial draws model weights, fusion IoU, skip threshold and conf_type at random. The first trial is the base: equal
weights and the caller's defaults. Half of the trials have equal weights.

The images are divided into folds. For each fold, the best trial on all other images is chosen and measured on the fold.
This is the gain out of fold: what to expect on other images. The settings to apply are the best trial on all images.
Their gain on these images, the gain in fold, is too high by construction. The 95 % interval comes from a paired
bootstrap of the images. It ignores how much the choice of settings varies, so it is too narrow on few images.

Settings replace simpler ones only if their gain out of fold is beyond noise: the interval is above 0, and more than
half of the folds gain. First, the best trial with equal weights must gain over the base. Then the best trial of all
must gain over what has been kept so far.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES, Boxes, fuse
from oid.fusion.model_files import ModelFiles
from oid.fusion.resampling import Curves, bootstrap, interval_95, mean_of_folds
from oid.fusion.tuned_settings import FusionSettings, SearchOptions
from oid.metric.challenge import Detections, Entries, GroundTruth, score

IOU_RANGE = (0.3, 0.9)
SMALLEST_WEIGHT = 0.1  # a smaller weight becomes 0: the model is left out
LARGEST_SKIP = 0.9  # share of all boxes that the skip threshold may remove
IMAGES_PER_BLOCK = 4096
DRAWS = 400  # of the bootstrap: a standard deviation to 4 %
ROUNDING = 1e-9  # smaller differences of mAP are rounding errors
VERDICTS = {  # and what is kept
    "inside the noise": "equal weights and the default settings",
    "gain with equal weights": "equal weights",
    "gain": "these weights",
}


@dataclasses.dataclass(frozen=True)
class Gain:
    """What the best trial gains in mAP.

    Attributes:
        settings: the best trial on all images.
        in_fold: gain over the base on all images, which chose the trial. Not to be expected elsewhere.
        out_of_fold, interval_95: the expected gain, and its interval.
        folds: gain in each fold; None for a fold without ground truth.
        fold_settings: for each fold, the best trial on all other images.
    """

    settings: FusionSettings
    in_fold: float
    out_of_fold: float
    interval_95: tuple[float, float]
    folds: tuple[float | None, ...]
    fold_settings: tuple[FusionSettings, ...]

    def __str__(self) -> str:
        return f"{self.out_of_fold:+.4f}, 95% interval {self.interval_95[0]:+.4f} to {self.interval_95[1]:+.4f}"

    def is_beyond_noise(self) -> bool:
        """Whether the interval lies above 0 and more than half of the folds gain."""
        known = [gain for gain in self.folds if gain is not None]
        return self.interval_95[0] > ROUNDING and 2 * sum(gain > ROUNDING for gain in known) > len(known)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        settings, verdict: what to apply, and why: one of `VERDICTS`.
        expected: the gain of `settings` over the base on other images; None = the base is kept.
        options: as given.
        base, base_map: equal weights and the defaults, and their mAP on all images.
        equal_weights, free_weights: the best trial with equal weights, and the best of all; gains over the base.
        by_weights: gain of `free_weights` over `equal_weights` if these are beyond noise, else over the base.
        boxes, missing: per model, the boxes that take part, and the images that its file does not have.
    """

    settings: FusionSettings
    verdict: str
    expected: Gain | None
    options: SearchOptions
    base: FusionSettings
    base_map: float
    equal_weights: Gain
    free_weights: Gain
    by_weights: Gain
    boxes: tuple[int, ...]
    missing: tuple[int, ...]

    def lines(self, names: Sequence[str]) -> list[str]:
        """The result in words; the last lines say what is expected and kept. `names` are those of the models."""
        models = zip(names, self.boxes, self.missing, strict=True)
        lines = [f"{name}: {boxes} boxes take part, {missing} images are missing" for name, boxes, missing in models]
        lines.append(f"base, mAP {self.base_map:.4f}: {self.base}")
        for title, gain in (("equal", self.equal_weights), ("free", self.free_weights)):
            folds = " ".join("none" if value is None else f"{value:+.4f}" for value in gain.folds)
            lines += [
                f"best with {title} weights: {gain.settings}",
                f"  gain in fold {gain.in_fold:+.4f}: not to be expected, because these images chose the settings",
                f"  gain out of fold {gain}; in each fold {folds}",
            ]
        lines.append(f"gain out of fold by the weights {self.by_weights}")
        lines += [f"expected gain {self.expected}"] if self.expected else []
        lines.append(f"{self.verdict}: {VERDICTS[self.verdict]} are kept")
        lines += [f"  weight {weight:g} {name}" for name, weight in zip(names, self.settings.weights, strict=True)]
        return [*lines, f"settings: {self.settings}"]


def tune(
    files: ModelFiles,
    truth: GroundTruth,
    labels: Sequence[str],
    base: FusionSettings,
    options: SearchOptions,
    progress: Callable[[Sequence[FusionSettings]], Iterable[FusionSettings]] = iter,
) -> Tuning:
    """Searches settings on the images of the ground truth and estimates their gain on other images.

    Args:
        files: the prediction files, opened for the images of the ground truth.
        truth: the ground truth, expanded.
        labels: its class list.
        base: equal weights, one per model, and the default settings.
        options: see `SearchOptions`.
        progress: wraps the trials, for a progress bar.

    Raises:
        InputError: more folds than images, no ground truth, a file has no image of it, or no file a box that counts.
    """
    fold = divide(len(truth.image_ids), options.folds, options.seed)
    models = boxes_that_count(files, truth, labels)
    metric = {"num_classes": len(labels), "group_of_weight": options.group_of_weight}

    @functools.lru_cache(maxsize=1)
    def matched(settings: FusionSettings) -> Entries:
        return score(truth, fuse_all(models, settings, options.threads), **metric)[0]

    settings = draw_trials(base, options.trials, np.concatenate([model.scores for model in models]), options.seed)
    choices = [*(fold != f for f in range(options.folds)), np.ones(len(fold), dtype=bool)]
    maps = []
    for trial in progress(settings):
        curves = Curves(matched(trial), truth, **metric)
        maps.append([curves.mean_average_precision(images) for images in choices])
    maps = np.nan_to_num(maps)
    has_equal = np.array([len(set(trial.weights)) == 1 for trial in settings])[:, None]
    best, columns = [], []  # of the base, of equal weights, of all: the first best trial for each choice of images
    for values in (maps[:1], np.where(has_equal, maps, -1.0), maps):
        best.append(np.argmax(values >= values.max(axis=0) - ROUNDING, axis=0))
        of_folds = enumerate(best[-1][:-1])
        columns.append([Curves(matched(settings[i]), truth, images=fold == f, **metric) for f, i in of_folds])
    draws = bootstrap(lambda times: [mean_of_folds(column, times) for column in columns], fold, DRAWS, options.seed)

    def gain(column: int, over: int = 0) -> Gain:
        *of_folds, of_all = best[column]
        mean = mean_of_folds(columns[column]) - mean_of_folds(columns[over])
        pairs = zip(columns[column], columns[over], strict=True)
        each = (one.mean_average_precision() - other.mean_average_precision() for one, other in pairs)
        return Gain(
            settings=settings[of_all],
            in_fold=float(maps[of_all, -1] - maps[0, -1]),
            out_of_fold=mean,
            interval_95=interval_95(mean, draws[:, column] - draws[:, over]),
            folds=tuple(None if np.isnan(value) else value for value in each),
            fold_settings=tuple(settings[trial] for trial in of_folds),
        )

    candidates = [gain(0), gain(1), gain(2)]
    kept = int(candidates[1].is_beyond_noise())
    by_weights = gain(2, over=kept)
    if by_weights.is_beyond_noise() and not has_equal[best[2][-1]]:
        kept = 2
    return Tuning(
        settings=candidates[kept].settings,
        verdict=list(VERDICTS)[kept],
        expected=candidates[kept] if kept else None,
        options=options,
        base=base,
        base_map=float(maps[0, -1]),
        equal_weights=candidates[1],
        free_weights=candidates[2],
        by_weights=by_weights,
        boxes=tuple(len(model.scores) for model in models),
        missing=tuple(files.missing),
    )


def boxes_that_count(files: ModelFiles, truth: GroundTruth, labels: Sequence[str]) -> list[Boxes]:
    """Reads the boxes of each model whose class is verified in their image; the metric ignores all others.

    Args:
        files: the prediction files, opened for the images of the ground truth.
        truth: the ground truth, expanded.
        labels: its class list.

    Returns:
        The boxes of each model; their labels are class indices.

    Raises:
        InputError: a file has no image of the ground truth, or no file has a box that counts.
    """
    num_images = len(truth.image_ids)
    if not len(truth.boxes):
        raise InputError("the ground truth has no box")
    if num_images in files.missing:
        raise InputError(f"prediction file {files.missing.index(num_images) + 1} has no image of the ground truth")
    class_of = {label: index for index, label in enumerate(labels)}
    classes = np.array([class_of.get(label, -1) for label in files.labels], dtype=np.int64)
    verified = np.zeros((num_images, len(labels) + 1), dtype=bool)  # the last column stands for all other labels
    verified[truth.box_image, truth.box_class] = True
    verified[truth.label_image, truth.label_class] = True
    parts = [[] for _ in files.missing]
    for images, models in files.blocks(IMAGES_PER_BLOCK):
        for part, (boxes, scores, label, offsets) in zip(parts, models, strict=True):
            image = np.repeat(np.arange(images.start, images.stop), np.diff(offsets))
            kept = verified[image, classes[label]]
            part.append((boxes[kept], scores[kept], classes[label][kept], image[kept]))
    found = []
    for part in parts:
        *columns, image = (np.concatenate(column) for column in zip(*part, strict=True))
        found.append(Boxes(*columns, np.searchsorted(image, np.arange(num_images + 1))))
    if not any(len(model.scores) for model in found):
        raise InputError("no prediction file has a box of a class that is verified in its image")
    return found


def fuse_all(models: Sequence[Boxes], settings: FusionSettings, threads: int = 1) -> Detections:
    """Fuses all images by weighted boxes fusion."""
    return as_detections(fuse("wbf", *zip(*models, strict=True), threads=threads, **vars(settings)))


def as_detections(found: Boxes) -> Detections:
    """The same boxes, as the metric takes them."""
    image = np.repeat(np.arange(len(found.offsets) - 1), np.diff(found.offsets))
    return Detections(image, found.labels, found.scores, found.boxes)


def draw_trials(base: FusionSettings, count: int, scores: np.ndarray, seed: int) -> list[FusionSettings]:
    """Draws `count` settings at random, the base first.

    Args:
        base: the settings of the first trial.
        scores: `(N,)` of all boxes. Skip thresholds are quantiles of them, since each detector has its own scale.
    """
    rng, scores = np.random.default_rng([seed, 0]), np.sort(scores)
    trials = [base]
    while len(trials) < count:
        weights = rng.random(len(base.weights)) if len(trials) % 2 else np.ones(len(base.weights))
        weights = np.where(weights < SMALLEST_WEIGHT * weights.max(), 0.0, weights / weights.max()).round(3)
        share = max(rng.uniform(-LARGEST_SKIP / 2, LARGEST_SKIP), 0.0)  # a third skips nothing
        skip = float(f"{scores[int(share * len(scores))]:.3g}") if share else 0.0
        iou, conf_type = round(rng.uniform(*IOU_RANGE), 3), CONF_TYPES[rng.integers(len(CONF_TYPES))]
        trials.append(FusionSettings(tuple(weights.tolist()), iou, skip, conf_type))
    return trials


def divide(num_images: int, folds: int, seed: int) -> np.ndarray:
    """`(num_images,)` int64, the fold of each image, at random.

    Raises:
        InputError: fewer than 2 folds, or fewer images than folds.
    """
    if not 2 <= folds <= num_images:
        raise InputError(f"{num_images} images cannot be divided into {folds} folds")
    return np.random.default_rng([seed, 1]).permutation(np.arange(num_images) % folds)
