"""Searches the settings of weighted boxes fusion on validation images, and says honestly what they gain.

What a06 does with it:

    names = model_names(paths)                                   # of oid.fusion.tuned_settings
    base = FusionSettings((1.0,) * len(paths), fusion_iou, skip_box_threshold, conf_type)
    models = (PredictionFile(path) for path in paths)            # one after another, each is reduced at once
    tuning = tune(models, truth, report.labels, base=base)
    print_tuning(tuning, names)
    write_tuned_settings(path, names, tuning.settings, tuning.verdict, tuning.measured())
    settings = read_tuned_settings(path, names)                  # a06 --settings

**The search.** A trial is one choice of model weights, IoU, skip threshold and conf_type. Some trials are drawn before
anything is measured: the base (equal weights, the caller's defaults), the other conf_types, each model left out, and
random ones. The rest are small steps from the best so far. Everything is seeded: the same input, the same result.

Each search has two results: the best with equal weights, and the best of all. A search that moves everything at once
finds unequal weights even for equal models, if only the other settings are better there; so weights must gain something
over the best that equal weights reach.

**What is expected of it.** The images are divided into folds at random. For each fold the search runs on the other
folds alone; its steps are its own, too, because a step that was taken after a look at the held-out images would know
them. What the search chose is measured on the held-out images: the gain out of fold. The settings to be used come from
the same search on all images, whose gain on these images is the gain in fold, which is too high by construction and is
never called the expected one.

mAP is no mean over images, so "out of fold" needs a definition. Here each fold is ranked by itself, and the AP of a
class is the mean of its APs in the folds, weighted by the ground truth there (`oid.fusion.resampling`). One
ranking over all images would be unjust: each fold is fused with other settings, whose scores differ in scale (a lone
box of three models has a third of its score with "avg", all of it with "max"), although a user applies one setting to
all images. Base and chosen settings are measured in this way, so that their difference means something; the level is a
little above the mAP of all images ranked together. The gain in fold is the ordinary one, which a07 would show.

Intervals of 95 % are the gain plus and minus 1.96 standard deviations in a paired bootstrap: images are drawn with
replacement within their fold, and all settings are measured on the same draw. (Not the percentiles of the draws: images
that repeat shift AP as a whole, so that their middle lies beside the gain.) The draws vary the images, not the choice
that was made on them, so with few images the gain on new ones lies outside more often than one time in 20.

A gain is inside the noise when its interval reaches down to 0, or when no more than half of the folds gain: the draws
cannot know how much the choice varies, the folds show it. First the best with equal weights must gain over the base,
then the best of all over what is kept until then; what does not, is not kept.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from oid.files import InputError
from oid.fusion.measured import MeasuredFusion, gather
from oid.fusion.resampling import Curves
from oid.fusion.trials import draw_trials, has_equal_weights, neighbour, skip_thresholds
from oid.fusion.tuned_settings import FusionSettings
from oid.metric.challenge import GroundTruth
from oid.predictions.files import PredictionFile, Predictions

STEPS = 0.36  # the share of trials that are steps from the best so far
DRAWS = 1000  # of the bootstrap
SAME = 1e-9  # a smaller difference of mAP is rounding
GAIN, EQUAL, NOISE = "gain", "gain with equal weights", "inside the noise"


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a search has chosen, and what that gains over the base.

    Attributes:
        settings: the choice on all images.
        in_fold: gain of `settings` on all images, which chose them. Not to be expected.
        out_of_fold: gain of `fold_settings`, each on the fold that had no part in the choice.
        interval: 95 % interval of `out_of_fold`.
        fold_settings: for each fold the choice on all others.
        folds: for each fold the gain there; nan where there is nothing to find.
    """

    settings: FusionSettings
    in_fold: float
    out_of_fold: float
    interval: tuple[float, float]
    fold_settings: tuple[FusionSettings, ...]
    folds: tuple[float, ...]

    @property
    def deviation(self) -> float:
        """Standard deviation of the folds' gains; 0 where there is only one."""
        return float(np.nanstd(self.folds, ddof=1)) if np.sum(np.isfinite(self.folds)) > 1 else 0.0

    def measured(self) -> dict[str, object]:
        """The numbers as JSON has them."""
        return {
            "out_of_fold_gain": self.out_of_fold,
            "out_of_fold_interval_95": list(self.interval),
            "out_of_fold_gain_of_each_fold": [None if np.isnan(gain) else gain for gain in self.folds],
            "in_fold_gain_not_to_be_expected": self.in_fold,
            "settings": dataclasses.asdict(self.settings),
        }


@dataclasses.dataclass(frozen=True)
class Tuning:
    """The result of `tune`.

    Attributes:
        settings: what to apply: those of `free` or of `equal`, or `base`.
        verdict: "gain", "gain with equal weights" or "inside the noise", which keeps the base.
        base: equal weights and the defaults.
        base_map: mAP of the base on all images, as a07 measures it.
        fold_base_map: the same as the mean of the folds, see the module's docstring.
        equal: the best with equal weights, against the base.
        free: the best of all, against the base.
        by_weights: gain out of fold of `free` over what would be kept with equal weights.
        by_weights_interval: its 95 % interval.
        boxes: per model the number of boxes that take part.
        dropped: per model {rule: number of boxes that it left out}.
        missing: per model the number of images that it does not have.
        num_images, trials, seed, iou_threshold, group_of_weight: as used.
    """

    settings: FusionSettings
    verdict: str
    base: FusionSettings
    base_map: float
    fold_base_map: float
    equal: Gain
    free: Gain
    by_weights: float
    by_weights_interval: tuple[float, float]
    boxes: tuple[int, ...]
    dropped: tuple[dict[str, int], ...]
    missing: tuple[int, ...]
    num_images: int
    trials: int
    seed: int
    iou_threshold: float
    group_of_weight: float

    @property
    def kept(self) -> Gain | None:
        """Where `settings` come from; None: the base."""
        return {GAIN: self.free, EQUAL: self.equal, NOISE: None}[self.verdict]

    @property
    def expected_gain(self) -> float:
        """What `settings` are expected to gain on other images: measured out of fold, 0 where the base is kept."""
        return 0.0 if self.kept is None else self.kept.out_of_fold

    def measured(self) -> dict[str, object]:
        """All numbers as JSON has them, for `oid.fusion.tuned_settings.write_tuned_settings`."""
        return {
            "expected_gain": self.expected_gain,
            "expected_gain_interval_95": None if self.kept is None else list(self.kept.interval),
            "mAP_of_base": self.base_map,
            "base": dataclasses.asdict(self.base),
            "equal_weights": self.equal.measured(),
            "free_weights": self.free.measured(),
            "out_of_fold_gain_by_weights": self.by_weights,
            "out_of_fold_gain_by_weights_interval_95": list(self.by_weights_interval),
            "images": self.num_images,
            "folds": len(self.free.folds),
            "trials": self.trials,
            "seed": self.seed,
            "iou": self.iou_threshold,
            "group_of_weight": self.group_of_weight,
        }


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
        InputError: too few images for the folds, or nothing to find in them, a model without any of them, or no model
            has a box that counts.
        ValueError: unequal weights in `base`, another number of models, or less than one trial.
    """
    if not has_equal_weights(base) or trials < 1:
        raise ValueError(f"the base has the weights {base.weights}, which must be equal, and {trials} trials are made")
    fold = divide(len(truth.image_ids), folds, seed)
    data = gather(models, truth, labels)
    if len(data.boxes) != len(base.weights):
        raise ValueError(f"{len(data.boxes)} models for {len(base.weights)} weights")
    metric = {"group_of_weight": group_of_weight, "iou_threshold": iou_threshold}
    fusion = MeasuredFusion(data, truth, num_classes=len(labels), threads=threads, **metric)
    everything = np.ones(len(fold), dtype=bool)
    base_map = fusion.maps(base, [everything])[0]
    if np.isnan(base_map):
        raise InputError("the ground truth has no box that counts, so that there is nothing to tune for")

    found = _search(fusion, base, [*(fold != f for f in range(folds)), everything], trials, seed)
    return Tuning(
        **_compared(fusion, base, base_map, found, fold, seed),
        base=base,
        base_map=base_map,
        boxes=tuple(len(boxes) for boxes in data.boxes),
        dropped=tuple(data.dropped),
        missing=tuple(data.missing),
        num_images=len(fold),
        trials=trials,
        seed=seed,
        **metric,
    )


def print_tuning(tuning: Tuning, names: Sequence[str]) -> None:
    """Prints what was measured; the last lines say what is expected and what is kept."""
    for name, boxes, dropped, missing in zip(names, tuning.boxes, tuning.dropped, tuning.missing, strict=True):
        print(f"{name}: {boxes} boxes take part")
        if missing:
            print(f"  {missing} images are missing: no boxes there")
        for rule, count in dropped.items():
            if count:
                print(f"  dropped {count} {rule}")
    print(f"{tuning.num_images} images in {len(tuning.free.folds)} folds, {tuning.trials} trials")
    print(f"base, mAP {tuning.base_map:.4f}: {describe(tuning.base)}")
    for title, gain in (("best with equal weights", tuning.equal), ("best with free weights", tuning.free)):
        print(f"{title}: {describe(gain.settings)}")
        print(f"  gain in fold {gain.in_fold:+.4f}: not to be expected, because these images chose the settings")
        folds = " ".join("none" if np.isnan(value) else f"{value:+.4f}" for value in gain.folds)
        print(f"  gain out of fold {spread(gain.out_of_fold, gain.interval)}")
        print(f"  in each fold {folds}, standard deviation {gain.deviation:.4f}")
    what = "kept" if tuning.verdict == GAIN else "a loss" if tuning.by_weights_interval[1] < 0.0 else "inside the noise"
    print(f"gain out of fold by the weights {spread(tuning.by_weights, tuning.by_weights_interval)}: {what}")
    if tuning.kept is None:
        print("inside the noise: equal weights and the default settings are kept")
    else:
        print(f"expected gain {spread(tuning.expected_gain, tuning.kept.interval)}")
        if tuning.verdict == EQUAL:
            print("equal weights are kept")
    for name, weight in zip(names, tuning.settings.weights, strict=True):
        print(f"  weight {weight:g} {name}")
    print(f"settings: {describe(tuning.settings)}")


def describe(settings: FusionSettings) -> str:
    """Settings in one line."""
    weights = " ".join(f"{weight:g}" for weight in settings.weights)
    rest = f"IoU {settings.fusion_iou:g}, skip below {settings.skip_box_threshold:g}, {settings.conf_type}"
    return f"weights {weights}, {rest}"


def spread(gain: float, interval: tuple[float, float]) -> str:
    """A gain and its interval, as they are printed."""
    return f"{gain:+.4f}, 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}"


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


def _search(
    fusion: MeasuredFusion, base: FusionSettings, choices: Sequence[np.ndarray], trials: int, seed: int
) -> list[tuple[FusionSettings, FusionSettings]]:
    """Runs one search on each choice of images, `(images,)` bool; what each found: with equal weights, and of all.

    The trials that are drawn before anything is measured are common to all searches. A step from the best so far is
    known only to the search that took it.
    """
    steps = int(STEPS * trials) // len(choices)
    skips = skip_thresholds(fusion.data.scores)
    common = draw_trials(base, trials - steps * len(choices), skips, np.random.default_rng([seed, 0]))
    with tqdm(total=len(common) + steps * len(choices), desc="tuning", unit="trial", disable=None) as bar:
        table = []
        for settings in common:
            table.append(fusion.maps(settings, choices))
            bar.update()
        found = []
        for number, (images, column) in enumerate(zip(choices, zip(*table, strict=True), strict=True)):
            trial = list(zip(common, np.nan_to_num(column).tolist(), strict=True))  # nothing to find: all are equal
            rng = np.random.default_rng([seed, 1, number])
            for step in range(steps):
                free_weights = step % 2 == 1 and len(base.weights) > 1
                best = _best(trial if free_weights else [pair for pair in trial if has_equal_weights(pair[0])])
                other = neighbour(best, skips, 0.5 ** (3.0 * step / steps), rng, free_weights=free_weights)
                trial.append((other, float(np.nan_to_num(fusion.maps(other, [images])[0]))))
                bar.update()
            found.append((_best([pair for pair in trial if has_equal_weights(pair[0])]), _best(trial)))
    return found


def _compared(
    fusion: MeasuredFusion,
    base: FusionSettings,
    base_map: float,
    found: Sequence[tuple[FusionSettings, FusionSettings]],
    fold: np.ndarray,
    seed: int,
) -> dict[str, object]:
    """The fields of `Tuning` that say what is gained and kept; `found` is from `_search`, one pair for each fold and
    one for all images."""
    folds, everything = len(found) - 1, np.ones(len(fold), dtype=bool)
    choices = list(zip(*found[:-1], strict=True))  # with equal weights and of all, for each fold
    columns = [fusion.by_fold(settings, fold) for settings in ((base,) * folds, *choices)]
    draws = _bootstrap(columns, fold, seed)

    def in_each(number: int, other: int) -> tuple[float, ...]:
        return tuple(_gain_in(columns[number], columns[other], fold == f) for f in range(folds))

    gains = []
    for number, (settings, choice) in enumerate(zip(found[-1], choices, strict=True), start=1):
        in_fold = fusion.maps(settings, [everything])[0] - base_map
        gains.append(Gain(settings, in_fold, *_gain(columns, draws, number, 0), choice, in_each(number, 0)))
    equal, free = gains
    simpler = 1 if is_certain(equal.interval, equal.folds) else 0
    by_weights, by_weights_interval = _gain(columns, draws, 2, simpler)
    counts = is_certain(by_weights_interval, in_each(2, simpler)) and not has_equal_weights(free.settings)
    verdict = GAIN if counts else EQUAL if simpler else NOISE
    return {
        "settings": {GAIN: free.settings, EQUAL: equal.settings, NOISE: base}[verdict],
        "verdict": verdict,
        "fold_base_map": columns[0].mean_average_precision(),
        "equal": equal,
        "free": free,
        "by_weights": by_weights,
        "by_weights_interval": by_weights_interval,
    }


def _best(trial: Sequence[tuple[FusionSettings, float]]) -> FusionSettings:
    """The first of the best: the base where nothing is better."""
    highest = max(value for _, value in trial)
    return next(settings for settings, value in trial if value >= highest - SAME)


def _bootstrap(columns: Sequence[Curves], fold: np.ndarray, seed: int) -> np.ndarray:
    """`(DRAWS, len(columns))` mAPs, each row on the same images, drawn with replacement in every fold."""
    rng = np.random.default_rng([seed, 2])
    members = [np.flatnonzero(fold == f) for f in range(fold.max() + 1)]
    maps = np.empty((DRAWS, len(columns)))
    for draw in maps:
        images = np.concatenate([member[rng.integers(len(member), size=len(member))] for member in members])
        times = np.bincount(images, minlength=len(fold))
        draw[:] = [matched.mean_average_precision(times) for matched in columns]
    return maps


def _gain(columns: Sequence[Curves], draws: np.ndarray, number: int, other: int) -> tuple[float, tuple[float, float]]:
    """Gain of one of the columns over another, and its 95 % interval."""
    gain = _gain_in(columns[number], columns[other], None)
    reach = 1.96 * float(np.nanstd(draws[:, number] - draws[:, other], ddof=1))
    return gain, (gain - reach, gain + reach)


def is_certain(interval: tuple[float, float], in_each: Sequence[float]) -> bool:
    """Whether a gain is above the noise: its interval lies above 0, and more than half of the folds gain."""
    known = [gain for gain in in_each if not np.isnan(gain)]
    return interval[0] > SAME and 2 * sum(gain > SAME for gain in known) > len(known)


def _gain_in(matched: Curves, other: Curves, images: np.ndarray | None) -> float:
    return matched.mean_average_precision(images) - other.mean_average_precision(images)
