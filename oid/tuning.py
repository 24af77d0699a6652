"""Searches the settings of weighted boxes fusion on validation images, and says honestly what they gain.

What a06 does with it:

    names = model_names(paths)                                   # of oid.tuned_settings, also before read_...
    base = FusionSettings((1.0,) * len(paths), fusion_iou, skip_box_threshold, conf_type)
    models = (PredictionFile(path) for path in paths)            # one after another, each is reduced at once
    tuning = tune(models, truth, report.labels, base=base)       # truth, report: oid.ground_truth.read_ground_truth
    print_tuning(tuning, names)
    write_tuned_settings(path, names, tuning.settings, tuning.verdict, tuning.measured())
    settings = read_tuned_settings(path, names)                  # a06 --settings

**The search.** A trial is one choice of model weights, IoU, skip threshold and conf_type. Some trials are drawn before
anything is measured: the base (equal weights, the caller's defaults), the other conf_types, each model left out, and a
Latin hypercube. The rest are small steps from the best trial so far. Everything is seeded: the same input, the same
result.

**What is expected of it.** The images are divided into folds at random. For each fold the search runs on the other
folds alone; its steps are its own, too, because a step that was taken after a look at the held-out images would know
them. What the search chose is measured on the held-out images: the gain out of fold. The settings to be used come from
the same search on all images, whose gain on these images is the gain in fold, which is too high by construction and is
never called the expected one.

mAP is no mean over images, so "out of fold" needs a definition. Here each fold is ranked by itself, and the AP of a
class is the mean of its APs in the folds, weighted by the ground truth there (`oid.resampling`, folds as strata). One
ranking over all images would be unjust: each fold is fused with other settings, whose scores differ in scale (a lone
box of three models has a third of its score with "avg", all of it with "max"), although a user applies one setting to
all images. Base and chosen settings are measured in this way, so that their difference means something; the level is a
little above the mAP of all images ranked together. The gain in fold is the ordinary one, which a07 would show.

The interval is the 95 % percentile interval of a paired bootstrap: images are drawn with replacement within their fold,
and base and chosen settings are measured on the same draw. An interval that reaches down to 0 means that the gain is
inside the noise; then the base is kept.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from oid.files import InputError
from oid.fusion import fuse_images
from oid.fusion_trials import draw_trials, neighbour, skip_thresholds
from oid.metric import Detections, Entries, GroundTruth, score
from oid.predictions import PredictionFile, Predictions
from oid.resampling import Curves, curves
from oid.tuned_settings import METHOD, FusionSettings

STEPS = 0.36  # the share of trials that are steps from the best so far
DRAWS = 1000  # of the bootstrap
SAME = 1e-9  # a smaller difference of mAP is rounding
GAIN, NOISE = "gain", "inside the noise"


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        settings: what to apply: `found`, or `base` where its gain is inside the noise.
        base: equal weights and the defaults.
        found: the best of the search on all images.
        verdict: "gain" or "inside the noise".
        base_map: mAP of `base` on all images, as a07 measures it.
        found_map: mAP of `found` on all images, which chose it.
        fold_base_map: mAP of `base` as the mean of the folds, see the module's docstring.
        out_of_fold_map: the same, each fold with what was chosen on the others.
        interval: 95 % interval of the gain out of fold.
        fold_settings: for each fold, what was chosen on the others.
        fold_gains: for each fold, its mAP with that less its mAP with `base`; nan where there is nothing to find.
        num_images, trials, seed: as used.
        iou_threshold, group_of_weight: of the metric.
    """

    settings: FusionSettings
    base: FusionSettings
    found: FusionSettings
    verdict: str
    base_map: float
    found_map: float
    fold_base_map: float
    out_of_fold_map: float
    interval: tuple[float, float]
    fold_settings: tuple[FusionSettings, ...]
    fold_gains: tuple[float, ...]
    num_images: int
    trials: int
    seed: int
    iou_threshold: float
    group_of_weight: float

    @property
    def in_fold_gain(self) -> float:
        return self.found_map - self.base_map

    @property
    def out_of_fold_gain(self) -> float:
        return self.out_of_fold_map - self.fold_base_map

    @property
    def expected_gain(self) -> float:
        """What `settings` are expected to gain on other images: measured out of fold, 0 where the base is kept."""
        return self.out_of_fold_gain if self.verdict == GAIN else 0.0

    @property
    def fold_deviation(self) -> float:
        """Standard deviation of the folds' gains."""
        return float(np.nanstd(self.fold_gains, ddof=1)) if np.sum(np.isfinite(self.fold_gains)) > 1 else 0.0

    def measured(self) -> dict[str, object]:
        """The numbers as JSON has them."""
        return {
            "expected_gain": self.expected_gain,
            "out_of_fold_gain": self.out_of_fold_gain,
            "out_of_fold_interval_95": list(self.interval),
            "out_of_fold_gain_of_each_fold": [None if np.isnan(gain) else gain for gain in self.fold_gains],
            "in_fold_gain_not_to_be_expected": self.in_fold_gain,
            "mAP_equal_weights": self.base_map,
            "found_in_fold": dataclasses.asdict(self.found),
            "images": self.num_images,
            "folds": len(self.fold_gains),
            "trials": self.trials,
            "seed": self.seed,
            "iou": self.iou_threshold,
            "group_of_weight": self.group_of_weight,
        }


@dataclasses.dataclass(frozen=True)
class ValidationBoxes:
    """The boxes that can count: of each model those of evaluated images and verified classes, image after image.

    The others change nothing: classes are fused each by itself, and the metric drops what is fused of a class that is
    not verified in its image.

    Attributes:
        boxes: per model `(N_i, 4)` float64, xyxy.
        scores: per model `(N_i,)` float64.
        class_index: per model `(N_i,)` int64.
        offsets: per model `(images + 1,)` int64, image k has its boxes from offsets[k] to offsets[k + 1].
    """

    boxes: list[np.ndarray]
    scores: list[np.ndarray]
    class_index: list[np.ndarray]
    offsets: list[np.ndarray]


def tune(
    models: Iterable[PredictionFile | Predictions],
    truth: GroundTruth,
    labels: Sequence[str],
    *,
    base: FusionSettings,
    trials: int = 200,
    folds: int = 5,
    seed: int = 0,
    group_of_weight: float = 1.0,
    iou_threshold: float = 0.5,
    threads: int = 1,
) -> Tuning:
    """Searches settings on all images of the ground truth and measures out of fold what they gain, with a progress bar.

    Args:
        models: the models' predictions of the validation images, expanded as a07 needs them; read when they are needed,
            one after another. Images and classes that the ground truth does not have are left out.
        truth: the ground truth, expanded; its images are divided into folds.
        labels: the class list of the ground truth.
        base: equal weights, one per model, and the settings that are used unless a search does better.
        trials: how many settings are tried in all.
        folds: from 2 to the number of images.
        seed: of folds, trials and bootstrap.
        group_of_weight, iou_threshold: of the metric.
        threads: images are shared out to so many; the result is the same.

    Returns:
        `Tuning`.

    Raises:
        InputError: too few images for the folds, or nothing to find in them, or no model has a box that counts.
        ValueError: unequal weights in `base`, another number of models, or less than one trial.
    """
    if len(set(base.weights)) != 1 or trials < 1:
        raise ValueError(f"the base has the weights {base.weights}, which must be equal, and {trials} trials are made")
    num_images = len(truth.image_ids)
    fold = divide(num_images, folds, seed)
    data = gather(models, truth, labels)
    if len(data.boxes) != len(base.weights):
        raise ValueError(f"{len(data.boxes)} models for {len(base.weights)} weights")
    options = {"num_classes": len(labels), "group_of_weight": group_of_weight, "iou_threshold": iou_threshold}
    measure = _Measure(data, truth, options, threads)
    seen = [fold != f for f in range(folds)] + [np.ones(num_images, dtype=bool)]
    base_map = measure.maps(base, seen[-1:])[0]
    if np.isnan(base_map):
        raise InputError("the ground truth has no box that counts, so that there is nothing to tune for")
    *fold_settings, found = _search(measure, base, seen, trials, seed)

    base_curves = measure.curves(base, fold)
    chosen_curves = measure.curves_by_fold(fold_settings, fold)
    gains = _bootstrap(base_curves, chosen_curves, fold, seed)
    interval = tuple(np.nanpercentile(gains, [2.5, 97.5]).tolist())
    verdict = GAIN if interval[0] > SAME else NOISE
    return Tuning(
        settings=found if verdict == GAIN else base,
        base=base,
        found=found,
        verdict=verdict,
        base_map=base_map,
        found_map=measure.maps(found, seen[-1:])[0],
        fold_base_map=base_curves.mean_average_precision(),
        out_of_fold_map=chosen_curves.mean_average_precision(),
        interval=interval,
        fold_settings=tuple(fold_settings),
        fold_gains=tuple(
            chosen_curves.mean_average_precision(fold == f) - base_curves.mean_average_precision(fold == f)
            for f in range(folds)
        ),
        num_images=num_images,
        trials=trials,
        seed=seed,
        iou_threshold=iou_threshold,
        group_of_weight=group_of_weight,
    )


def print_tuning(tuning: Tuning, names: Sequence[str]) -> None:
    """Prints what was measured; the last lines say what is expected and what is kept."""
    print(f"{tuning.num_images} images in {len(tuning.fold_gains)} folds, {tuning.trials} trials")
    for number, (settings, gain) in enumerate(zip(tuning.fold_settings, tuning.fold_gains, strict=True), start=1):
        print(f"  fold {number}: {gain:+.4f} by what the others chose: {describe(settings)}")
    print(
        f"gain in fold {tuning.in_fold_gain:+.4f}, mAP {tuning.base_map:.4f} to {tuning.found_map:.4f} on all images: "
        "not to be expected, because these images chose the settings"
    )
    low, high = tuning.interval
    print(
        f"gain out of fold {tuning.out_of_fold_gain:+.4f}, mAP {tuning.fold_base_map:.4f} to "
        f"{tuning.out_of_fold_map:.4f} as the mean of the folds; 95% interval {low:+.4f} to {high:+.4f}, "
        f"standard deviation of the folds {tuning.fold_deviation:.4f}"
    )
    if tuning.verdict == GAIN:
        print(f"expected gain {tuning.expected_gain:+.4f}")
        for name, weight in zip(names, tuning.settings.weights, strict=True):
            print(f"  weight {weight:g} {name}")
    else:
        print("inside the noise: the interval does not lie above 0, so equal weights and the default settings are kept")
    print(f"settings: {describe(tuning.settings)}")


def describe(settings: FusionSettings) -> str:
    """Settings in one line."""
    weights = " ".join(f"{weight:g}" for weight in settings.weights)
    rest = f"IoU {settings.fusion_iou:g}, skip below {settings.skip_box_threshold:g}, {settings.conf_type}"
    return f"weights {weights}, {rest}"


def divide(num_images: int, folds: int, seed: int) -> np.ndarray:
    """`(num_images,)` int64, the fold of each image, at random: images are what is drawn when new ones come.

    Raises:
        InputError: fewer than 2 folds, or fewer images than folds.
    """
    if not 2 <= folds <= num_images:
        raise InputError(
            f"{num_images} images cannot be divided into {folds} folds: from 2 to one per image are possible"
        )
    from sklearn.model_selection import KFold  # takes a second, which those who do not tune need not wait for

    fold = np.empty(num_images, dtype=np.int64)
    for index, (_, held_out) in enumerate(KFold(folds, shuffle=True, random_state=seed).split(fold)):
        fold[held_out] = index
    return fold


def gather(
    models: Iterable[PredictionFile | Predictions], truth: GroundTruth, labels: Sequence[str]
) -> ValidationBoxes:
    """Takes from each model what can count; the arguments are those of `tune`.

    Raises:
        InputError: no model has a box of a verified class on an image of the ground truth.
    """
    images = {image_id: index for index, image_id in enumerate(truth.image_ids)}
    classes = {label: index for index, label in enumerate(labels)}
    verified = np.zeros((len(images), len(classes)), dtype=bool)
    verified[truth.box_image, truth.box_class] = True
    verified[truth.label_image, truth.label_class] = True
    data = ValidationBoxes([], [], [], [])
    for model in models:
        blocks = []
        for block in [model] if isinstance(model, Predictions) else model.blocks():
            image = np.array([images.get(name, -1) for name in block.image_ids], dtype=np.int64)[block.image_index]
            label = np.array([classes.get(name, -1) for name in block.labels], dtype=np.int64)[block.label_index]
            kept = np.flatnonzero((image >= 0) & (label >= 0))
            kept = kept[verified[image[kept], label[kept]]]
            blocks.append((image[kept], block.boxes[kept], block.scores[kept], label[kept]))
        image, *columns = (np.concatenate(column) for column in zip(*blocks, strict=True))
        order = np.argsort(image, kind="stable")
        for column, place in zip(columns, (data.boxes, data.scores, data.class_index), strict=True):
            place.append(column[order])
        data.offsets.append(np.searchsorted(image[order], np.arange(len(images) + 1)))
    if not sum(len(scores) for scores in data.scores):
        raise InputError(
            "no prediction file has a box of a verified class on an image of the ground truth: "
            "do --predictions and --boxes belong to the same split?"
        )
    return data


class _Measure:
    """Fuses and matches; what is fused is forgotten, what is matched can be measured on any images."""

    def __init__(self, data: ValidationBoxes, truth: GroundTruth, options: dict[str, object], threads: int):
        self.data, self.truth, self.options, self.threads = data, truth, options, threads

    def entries(self, settings: FusionSettings) -> Entries:
        return score(self.truth, fuse_all(self.data, settings, self.threads), **self.options)[0]

    def curves(self, settings: FusionSettings, fold: np.ndarray | None = None) -> Curves:
        return self._sorted(self.entries(settings), fold)

    def curves_by_fold(self, settings: Sequence[FusionSettings], fold: np.ndarray) -> Curves:
        """Each fold fused with its own settings."""
        of_settings = {one: self.entries(one) for one in dict.fromkeys(settings)}
        parts = []
        for f, one in enumerate(settings):
            entries = of_settings[one]
            kept = fold[entries.image] == f
            parts.append([getattr(entries, field.name)[kept] for field in dataclasses.fields(Entries)])
        return self._sorted(Entries(*(np.concatenate(column) for column in zip(*parts, strict=True))), fold)

    def maps(self, settings: FusionSettings, seen: Sequence[np.ndarray]) -> list[float]:
        """mAP on each choice of images, `(images,)` bool."""
        matched = self.curves(settings)
        return [matched.mean_average_precision(images) for images in seen]

    def _sorted(self, entries: Entries, fold: np.ndarray | None) -> Curves:
        options = {name: self.options[name] for name in ("num_classes", "group_of_weight")}
        return curves(entries, self.truth, stratum=fold, **options)


def fuse_all(data: ValidationBoxes, settings: FusionSettings, threads: int = 1) -> Detections:
    """Fuses every image as a06 does."""
    boxes, scores, labels, offsets = fuse_images(
        METHOD,
        data.boxes,
        data.scores,
        data.class_index,
        data.offsets,
        weights=settings.weights,
        iou_threshold=settings.fusion_iou,
        skip_box_threshold=settings.skip_box_threshold,
        conf_type=settings.conf_type,
        threads=threads,
    )
    return Detections(np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), labels, scores, boxes)


def _search(
    measure: _Measure, base: FusionSettings, seen: Sequence[np.ndarray], trials: int, seed: int
) -> list[FusionSettings]:
    """Runs one search for each choice of images in `seen` and returns what each chose.

    The trials that are drawn before anything is measured are common to all searches. A step from the best so far is
    known only to the search that took it.
    """
    steps = int(STEPS * trials) // len(seen)
    skips = skip_thresholds(measure.data.scores)
    common = draw_trials(base, trials - steps * len(seen), skips, np.random.default_rng([seed, 0]))
    with tqdm(total=len(common) + steps * len(seen), desc="tuning", unit="trial", disable=None) as bar:
        found = []
        for settings in common:
            found.append(measure.maps(settings, seen))
            bar.update()
        chosen = []
        for number, (images, column) in enumerate(zip(seen, zip(*found, strict=True), strict=True)):
            column = np.nan_to_num(column)  # where there is nothing to find, all are as good as the base
            best = int(np.flatnonzero(column >= column.max() - SAME)[0])
            settings, reached = common[best], column[best]
            rng = np.random.default_rng([seed, 1, number])
            for step in range(steps):
                other = neighbour(settings, skips, 0.5 ** (3.0 * step / steps), rng)
                value = measure.maps(other, [images])[0]
                if value > reached + SAME:
                    settings, reached = other, value
                bar.update()
            chosen.append(settings)
    return chosen


def _bootstrap(base: Curves, chosen: Curves, fold: np.ndarray, seed: int) -> np.ndarray:
    """`(DRAWS,)` gains of one set of curves over another, each on images drawn with replacement in every fold."""
    rng = np.random.default_rng([seed, 2])
    members = [np.flatnonzero(fold == f) for f in range(fold.max() + 1)]
    gains = np.empty(DRAWS)
    for draw in range(DRAWS):
        images = np.concatenate([rng.choice(member, len(member)) for member in members])
        times = np.bincount(images, minlength=len(fold))
        gains[draw] = chosen.mean_average_precision(times) - base.mean_average_precision(times)
    return gains
