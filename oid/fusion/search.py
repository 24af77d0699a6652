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
from typing import NamedTuple

import numpy as np

from oid.files import InputError
from oid.fusion.fuse import CONF_TYPES, Boxes, fuse
from oid.fusion.model_files import ModelFiles
from oid.fusion.resampling import Curves, bootstrap, interval_95, mean_of_folds
from oid.fusion.tuned_settings import FusionSettings, SearchOptions
from oid.metric.challenge import Detections, GroundTruth, Matcher, match

IOU_RANGE = (0.3, 0.9)
SMALLEST_WEIGHT = 0.1  # a smaller weight becomes 0: the model is left out
LARGEST_SKIP = 0.9  # share of all boxes that the skip threshold may remove
IMAGES_PER_BLOCK = 4096
DRAWS = 400  # of the bootstrap: a standard deviation to 4 %
ROUNDING = 1e-9  # smaller differences of mAP are rounding errors


@dataclasses.dataclass(frozen=True)
class Gain:
    """What the best of some trials gains in mAP over simpler settings."""

    settings: FusionSettings  # the best trial on all images
    fold_settings: tuple[FusionSettings, ...]  # for each fold, the best trial on all other images
    in_fold: float  # on all images, which chose the trial: not to be expected elsewhere
    out_of_fold: float  # the expected gain
    interval_95: tuple[float, float]  # of the expected gain
    folds: tuple[float | None, ...]  # in each fold; None for a fold without ground truth

    def __str__(self) -> str:
        return f"{self.out_of_fold:+.4f}, 95% interval {self.interval_95[0]:+.4f} to {self.interval_95[1]:+.4f}"

    def is_beyond_noise(self) -> bool:
        """Whether the interval lies above 0 and more than half of the folds gain."""
        known = [gain for gain in self.folds if gain is not None]
        return self.interval_95[0] > ROUNDING and 2 * sum(gain > ROUNDING for gain in known) > len(known)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of `tune`."""

    verdict: str  # why these settings are kept
    kept: Gain  # the settings to apply, and their gain over the base
    equal_weights: Gain  # the best trial with equal weights, compared with the base
    free_weights: Gain  # the best trial of all, compared with the best one before that is beyond noise
    base_map: float  # mAP of the base on all images
    options: SearchOptions

    def lines(self) -> list[str]:
        """The result in words; the last lines say what is expected and kept."""
        lines = [f"mAP with equal weights and the default settings {self.base_map:.4f}"]
        steps = {"equal weights over the base": self.equal_weights, "free weights over those kept": self.free_weights}
        for title, gain in steps.items():
            lines.append(f"best with {title}: {gain.settings}")
            lines.append(f"  gain in fold {gain.in_fold:+.4f}: not to be expected, because these images chose it")
            lines.append(f"  gain out of fold {gain}")
        return [*lines, f"{self.verdict}; kept: {self.kept.settings}", f"expected gain {self.kept}"]


class Choice(NamedTuple):
    """The best of some trials, as in `Gain`, and its mAP."""

    settings: FusionSettings
    fold_settings: tuple[FusionSettings, ...]
    in_fold: float
    out_of_fold: float
    folds: np.ndarray  # (folds,) in each fold; nan for one without ground truth
    draws: np.ndarray  # (DRAWS,) out of fold on the samples of the bootstrap

    def gain_over(self, other: "Choice") -> Gain:
        """Compares the mAPs of two choices."""
        out_of_fold = self.out_of_fold - other.out_of_fold
        return Gain(
            settings=self.settings,
            fold_settings=self.fold_settings,
            in_fold=float(self.in_fold - other.in_fold),
            out_of_fold=out_of_fold,
            interval_95=interval_95(out_of_fold, self.draws - other.draws),
            folds=tuple(None if np.isnan(value) else value for value in (self.folds - other.folds).tolist()),
        )


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
    trials = draw_trials(base, options.trials, np.concatenate([model.scores for model in models]), options.seed)

    @functools.lru_cache(maxsize=1)
    def matched(settings: FusionSettings) -> Matcher:
        found = fuse_all(models, settings, options.threads)
        return match(truth, found, num_classes=len(labels), group_of_weight=options.group_of_weight)

    others = [*(fold != f for f in range(options.folds)), None]
    curves_of_trials = (Curves(matched(trial)) for trial in progress(trials))
    maps = np.nan_to_num([[curves.mean_average_precision(of) for of in others] for curves in curves_of_trials])

    def best(allowed: Sequence[bool]) -> Choice:
        """The first of the best trials among the allowed ones."""
        values = np.where(np.array(allowed)[:, None], maps, -1.0)
        *of_folds, of_all = np.argmax(values >= values.max(axis=0) - ROUNDING, axis=0)
        curves = [Curves(matched(trials[i]), fold == f) for f, i in enumerate(of_folds)]
        measure = functools.partial(mean_of_folds, curves)
        folds = np.array([one.mean_average_precision() for one in curves])
        draws = bootstrap(measure, fold, DRAWS, options.seed)
        return Choice(trials[of_all], tuple(trials[i] for i in of_folds), maps[of_all, -1], measure(), folds, draws)

    start = kept = best([trial is base for trial in trials])
    gains, verdict = [], "inside the noise"
    candidates = {
        "gain with equal weights": [len(set(trial.weights)) == 1 for trial in trials],
        "gain": [True] * len(trials),
    }
    for name, allowed in candidates.items():
        choice = best(allowed)
        gains.append(choice.gain_over(kept))
        if gains[-1].is_beyond_noise():
            kept, verdict = choice, name
    return Tuning(verdict, kept.gain_over(start), *gains, start.in_fold, options)


def boxes_that_count(files: ModelFiles, truth: GroundTruth, labels: Sequence[str]) -> list[Boxes]:
    """Reads the boxes of each model whose class is verified in their image; the metric ignores all others.

    The arguments are those of `tune`. The labels of the boxes become class indices.

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
    columns = [[np.concatenate(column) for column in zip(*part, strict=True)] for part in parts]
    found = [Boxes(*rest, np.searchsorted(image, np.arange(num_images + 1))) for *rest, image in columns]
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

    Skip thresholds are quantiles of `scores`, `(N,)` of all boxes, since each detector has its own scale.
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
    """`(num_images,)` int64, the fold of each image, at random. Raises InputError unless each fold has an image."""
    if not 2 <= folds <= num_images:
        raise InputError(f"{num_images} images cannot be divided into {folds} folds")
    return np.random.default_rng([seed, 1]).permutation(np.arange(num_images) % folds)
