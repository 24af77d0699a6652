"""Makes the figures of the README again: trains, predicts, measures, and writes the tables into the README.

    python benchmarks/results.py --demo true
    python benchmarks/results.py --voc ../BCCD_Dataset/BCCD
    python benchmarks/results.py --oid fruit_oid --epochs 30 --steps_per_epoch 250

The demonstration for three seeds takes 25 minutes; a data set takes `--time_budget` for each seed, or the epochs that
are given. No epoch is chosen on the images that measure: the weights after the last step count. Finished runs are not
repeated. A table stands in the README between two lines `<!-- NAME -->` and `<!-- end of NAME -->`; with
`--readme none` it is only printed.
"""

import csv
import datetime
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.training_runs import (
    ROOT,
    VOC_FLAGS,
    Cost,
    length_options,
    measure,
    run,
    score,
    train_and_predict,
)
from oid.command_line import run_script
from oid.files import InputError, replacing, require_file
from oid.images.find import find_images
from oid.images.read import read_image
from training.options import LengthOptions, MachineOptions, Options

BATCH = 16  # images at a time where inference is timed


def main(
    *,
    demo: bool = False,
    voc: str | None = None,
    oid: str | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    time_budget: str = "20m",
    epochs: int | None = None,
    steps_per_epoch: int | None = None,
    folder: str = "results",
    readme: str = "README.md",
) -> None:
    """Prints a table for each thing that is asked for.

    Args:
        demo: the demonstration, with its ensemble
        voc: folder of a data set in Pascal VOC's layout, with the splits trainval and test
        oid: folder of a data set in Open Images' layout, with the splits train and validation
        seeds: of data and training
        time_budget: of each training of --voc and --oid
        epochs: instead of a time budget, so that other work on the machine changes nothing
        steps_per_epoch: with --epochs
        folder: for data and runs
        readme: file whose tables are replaced; none = print only
    """
    if not (demo or voc or oid):
        raise InputError("give --demo true, --voc or --oid: what to measure")
    wanted = {"demonstration": demo, "Pascal VOC": voc, "photographs": oid}
    if readme != "none":
        for name in (name for name, given in wanted.items() if given):
            find_table(Path(readme), name)  # before hours of training
    folder = Path(folder).absolute()
    length = length_options(time_budget, epochs, steps_per_epoch)
    tables = {}
    if demo:
        tables["demonstration"] = demonstration(folder / "demo", seeds)
    if voc:
        flags = {"dataset_path": folder / "voc" / "data_set", **VOC_FLAGS, "source_path": Path(voc).absolute()}
        tables["Pascal VOC"] = data_set_table(flags, folder / "voc" / "output", seeds, length)
    if oid:
        flags = {"dataset_path": Path(oid).absolute()}
        tables["photographs"] = data_set_table(flags, folder / "oid" / "output", seeds, length)
    for name, rows in tables.items():
        text = "\n".join([*rows, "", f"Made by `{command()}`, {machine()}, {datetime.date.today()}."])
        print(f"\n{name}\n{text}", flush=True)
        if readme != "none":
            replace_table(Path(readme), name, text)


# === The tables ===


def demonstration(folder: Path, seeds: tuple[int, ...]) -> list[str]:
    """A row per seed: speed, minutes and mAP of each network, and the mAP of the ensemble."""
    rows = []
    for seed in seeds:
        run("-m", "demo.run_demo", demo_path=folder / f"seed_{seed}", seed=seed)
        with open(folder / f"seed_{seed}" / "results.csv", newline="", encoding="utf-8") as file:
            *networks, ensemble = csv.DictReader(file)
        if not rows:
            titles = [f"{row['model']}: images/s, minutes, mAP@0.5" for row in networks]
            rows += [f"| seed | {' | '.join(titles)} | fused |", "|---" * (len(networks) + 2) + "|"]
        cells = [f"{row['images/s']}, {row['minutes']}, {float(row['mAP@0.5']):.3f}" for row in networks]
        rows.append(f"| {seed} | {' | '.join(cells)} | {float(ensemble['mAP@0.5']):.3f} |")
    return rows


def data_set_table(flags: dict[str, object], output: Path, seeds: tuple[int, ...], length: LengthOptions) -> list[str]:
    """A row per seed: what the training cost, what the network finds, and what it costs to use; then their mean.

    `flags` are a01's that say where the data set is, or how it is made.
    """
    run("a01_create_training_files.py", output_path=output, levels="1", **flags)
    data_set = flags["dataset_path"]
    rows = [
        "| seed | minutes, CPU minutes | mAP@0.5 | mAP@0.5:0.95 | CPU ms from picture to boxes |",
        "|---|---|---|---|---|",
    ]
    scores = []
    for seed in seeds:
        name = f"seed_{seed}"
        options = Options(length=length, machine=MachineOptions(seed=seed))
        begun = (output / "weights" / name).exists()
        expanded, cost = train_and_predict(data_set, output, name, options)
        spent = remembered(output / f"{name}.cost.json", None if begun else cost)
        scores.append(score([measure(data_set, expanded)]))
        milliseconds = 1e3 * inference_seconds(output / "weights" / name, data_set / "validation")
        minutes = f"{spent.wall / 60:.1f}, {spent.cpu / 60:.1f}" if spent else "not known: it was stopped on its way"
        cells = [minutes, *(f"{value:.3f}" for value in scores[-1])]
        rows.append(f"| {seed} | {' | '.join(cells)} | {milliseconds:.1f} |")
        print(rows[-1], flush=True)
    if len(seeds) > 1:
        mean, spread = np.mean(scores, axis=0), np.std(scores, axis=0, ddof=1)
        rows.append(f"| mean (spread) | | {mean[0]:.3f} ({spread[0]:.3f}) | {mean[1]:.3f} ({spread[1]:.3f}) | |")
    return rows


def remembered(path: Path, cost: Cost | None) -> Cost | None:
    """The cost of a training: None for one that had begun before, whose beginning nobody measured.

    What was measured is kept, as a repetition that finds the training finished must not forget it.
    """
    if path.is_file():
        return Cost(**json.loads(path.read_text()))
    if cost:
        path.write_text(json.dumps(vars(cost)))
    return cost


def inference_seconds(run_folder: Path, images: Path) -> float:
    """CPU seconds of one image from its pixels to its boxes: resizing, network, decoding, suppression."""
    from models import load_model
    from models.suppression import DetectionOptions

    detector, options = load_model(run_folder, checkpoint=True), DetectionOptions(mirror=False)
    pictures = [read_image(path, orientation="stored") for path in find_images(images).values()]
    times = []
    for begin in [0, *range(0, len(pictures) - BATCH + 1, BATCH)]:  # the first is there twice: it compiles
        before = time.process_time()
        detector.predict_on_batch(pictures[begin : begin + BATCH], options)
        times.append((time.process_time() - before) / BATCH)
    return float(np.median(times[1:]))


# === The README ===


def find_table(path: Path, name: str) -> tuple[str, str]:
    """The file's text up to the table of that name, with its first mark, and from its last mark on.

    Raises:
        InputError: the file has no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = require_file(path, "name the file with the tables by --readme").read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(begin) > whole.index(end):
        raise InputError(f"{path} has no place for the table: it needs the lines {begin} and {end}, once each")
    return whole[: whole.index(begin) + len(begin)], whole[whole.index(end) :]


def replace_table(path: Path, name: str, text: str) -> None:
    """Writes `text` between the lines that mark the table of that name; see `find_table`."""
    before, after = find_table(path, name)
    with replacing(path) as temporary:
        temporary.write_text(f"{before}\n{text}\n{after}", encoding="utf-8")


def command() -> str:
    """What was typed."""
    return " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *map(os.path.basename, sys.argv[1:])])


def machine() -> str:
    """The processor's name and how many cores of it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{len(os.sched_getaffinity(0))} cores of {names[0] if names else 'an unknown processor'}"


if __name__ == "__main__":
    run_script(main)
