"""What each ingredient of the training brings, with the uncertainty of the answer.

    python benchmarks/ablation.py --voc ../BCCD_Dataset/BCCD
    python benchmarks/ablation.py --voc ../BCCD_Dataset/BCCD --variants ciou --seeds 0 --epochs 1 --steps_per_epoch 5

Trains every variant with every seed by a03: on the trainval split of a data set in Pascal VOC's layout (`--voc`), on
one in Open Images' layout (`--oid`), or on the demonstration's generated data, whose labels are incomplete as Open
Images' are (`--demo`). Nothing is chosen on the images that measure: the weights after the last step count. The
difference of a variant to `base` is bootstrapped over images, paired: the same images are drawn for both, and the seeds
are averaged. A training is never the same twice, either: by how much the difference varies from seed to seed, pooled
over all variants, widens the interval. An interval that holds 0 is noise.

Finished runs are not repeated: it goes on where it was stopped, and another `--variants` adds to what is there.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.training_runs import VOC_FLAGS, length_options, measure, run, score, train_and_predict
from oid.command_line import check_flag, run_script
from oid.files import InputError
from oid.fusion.resampling import Curves
from training.options import LengthOptions, Options, Recipe, recipe_of

VARIANTS: dict[str, dict[str, object]] = {  # name -> fields of the options, or else of the recipe, that differ
    "base": {},
    "giou": {"box_loss": "giou"},
    "ciou": {"box_loss": "ciou"},
    "smooth_l1": {"box_loss": "smooth_l1"},
    "max_iou": {"assignment": "max_iou"},
    "focal, max_iou": {"class_loss": "focal", "assignment": "max_iou"},
    "published": {"recipe": "published"},
    "no mosaic": {"mosaic": 0.0},
    "more mosaic": {"mosaic": 1.0},
    "ssd crops": {"crop": "ssd"},
    "warp": {"resize": "warp"},
    "sampling classes": {"sampling": "classes"},
    "sgd, steps": {"optimizer": "sgd", "schedule": "steps", "weight_decay": 5e-4},
    "bfloat16": {"precision": "bfloat16"},
    "no label rules": {"rules": ()},
    "verified only": {"rules": ("verified",)},
    "regions only": {"rules": ("regions",)},
}


def main(
    *,
    voc: str | None = None,
    oid: str | None = None,
    demo: bool = False,
    folder: str = "ablation",
    variants: tuple[str, ...] = ("base",),
    seeds: tuple[int, ...] = (0, 1),
    time_budget: str = "8m",
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    resamples: int = 2000,
) -> None:
    """Trains what is missing, then prints the table.

    Args:
        voc: folder of a data set in Pascal VOC's layout, with the splits trainval and test
        oid: folder of a data set in Open Images' layout, with the splits train and validation
        demo: the demonstration's data
        folder: for data and runs
        variants: names of VARIANTS in this file, or all; base is always among them
        seeds: of the training
        time_budget: of each training
        epochs: instead of a time budget, so that other work on the machine changes nothing
        steps_per_epoch: with --epochs
        resamples: of the bootstrap
    """
    if sum(map(bool, (voc, oid, demo))) != 1:
        raise InputError("give --voc, --oid or --demo: one data set to measure on")
    names = list(dict.fromkeys(["base", *(VARIANTS if variants == ("all",) else variants)]))
    for name in names:
        check_flag(name in VARIANTS, "variants", name, f"some of {', '.join(VARIANTS)}, or all")
    length = length_options(time_budget, epochs, steps_per_epoch)
    data_set, output = Path(oid or Path(folder) / "data_set").absolute(), Path(folder) / "output"
    prepare(voc, demo, data_set, output)
    found: dict[str, list[list[Curves]]] = {}
    for seed in seeds:
        for name in names:
            run_name = f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            expanded, _ = train_and_predict(data_set, output, run_name, *make_variant(name, length, seed))
            found.setdefault(name, []).append(measure(data_set, expanded))
            at_50, at_all = score(found[name][-1:])
            print(f"{name}, seed {seed}: mAP@.5 {at_50:.4f}, mAP@.5:.95 {at_all:.4f}", flush=True)
    print_table(found, resamples)


def make_variant(name: str, length: LengthOptions, seed: int) -> tuple[Options, Recipe]:
    """The options and the recipe of a variant."""
    options, of_recipe = Options(length=length), {}
    options = dataclasses.replace(options, machine=dataclasses.replace(options.machine, seed=seed))
    for field, value in VARIANTS[name].items():
        group = next((group for group, part in vars(options).items() if hasattr(part, field)), None)
        if group is None:
            of_recipe[field] = value
        else:
            changed = dataclasses.replace(getattr(options, group), **{field: value})
            options = dataclasses.replace(options, **{group: changed})
    return options, dataclasses.replace(recipe_of(options), **of_recipe)


def prepare(voc: str | None, demo: bool, data_set: Path, output: Path) -> None:
    """The data set, and a01's files of level 1."""
    source = VOC_FLAGS | {"source_path": Path(voc).absolute()} if voc else {}
    if demo:
        run("-m", "demo.make_data_set", dataset_path=data_set)
    run("a01_create_training_files.py", dataset_path=data_set, output_path=output, levels="1", **source)


def print_table(found: dict[str, list[list[Curves]]], resamples: int) -> None:
    """A row per variant: both means, and the difference to base with its 95 % interval."""
    count = found["base"][0][0].num_images
    rng = np.random.default_rng(0)
    draws = [np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(resamples)]
    base = np.array([score(found["base"], draw) for draw in draws])  # [resamples,2]
    deviation, seeds = deviation_of_differences(found), len(found["base"])
    print(f"\n{count} images, {seeds} seeds, {resamples} resamples; differences to base in mAP points")
    if deviation is None:
        if len(found) > 1:
            print("one seed cannot tell how much a training varies: the intervals are those of the images alone")
        deviation = np.zeros(2)
    else:
        at_50, at_all = 100 * deviation
        print(f"standard deviation of a difference from seed to seed: {at_50:.1f} at .5, {at_all:.1f} at .5:.95")
    print("| variant | mAP@.5 | difference (95 %) | | mAP@.5:.95 | difference (95 %) | |")
    print("|---|---|---|---|---|---|---|")
    for name, runs in found.items():
        cells = []
        if name != "base":
            differences = np.array([score(runs, draw) for draw in draws]) - base
            differences += deviation / seeds**0.5 * rng.standard_normal(differences.shape)
        for column, (mean, reference) in enumerate(zip(score(runs), score(found["base"]), strict=True)):
            if name == "base":
                cells += [f"{mean:.4f}", "", ""]
                continue
            low, high = np.quantile(differences[:, column], [0.025, 0.975])
            verdict = "gain" if low > 0 else "loss" if high < 0 else "noise"
            difference = 100 * (mean - reference)
            cells += [f"{mean:.4f}", f"{difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})", verdict]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def deviation_of_differences(found: dict[str, list[list[Curves]]]) -> np.ndarray | None:
    """Standard deviation `(2,)`, over the seeds, of the differences of both mAPs to base, pooled over the variants.

    Those of the same seed are compared: they begin with the same weights and see the same pictures.
    None where there is one seed.
    """
    if len(found["base"]) < 2 or len(found) < 2:
        return None
    scores = {name: np.array([score([run]) for run in runs]) for name, runs in found.items()}  # [seeds,2]
    base = scores.pop("base")
    return np.sqrt(np.mean([(of_variant - base).var(axis=0, ddof=1) for of_variant in scores.values()], axis=0))


if __name__ == "__main__":
    run_script(main)
