"""Runs the whole pipeline on generated data, with the scripts and flags that a user types.

Reads:  nothing.
Writes: DEMO_PATH/data_set (generated), output (everything from a01 to a07), results.csv and page.html.
Takes:  at most 8 minutes on 2 CPU cores. A second run continues where the first stopped.

    python -m demo.run_demo
    python -m demo.run_demo --demo_path demo_data/tiny --epochs 1 --steps_per_epoch 5
"""

import csv
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from demo.make_data_set import MARK
from oid import paths
from oid.command_line import check_flag, run_script
from oid.files import InputError, replacing

ROOT = Path(__file__).resolve().parent.parent  # the folder of the numbered scripts
SPLIT = "validation"
LEVELS = ("1", "2", "all")
HEADER = ("model", "images/s", "minutes", "mAP@0.5")
ROW = "{:24} {:>8} {:>8} {:>8}"


class Step(NamedTuple):
    """A command with its input and output files. Without `writes` the script itself finds out what is left to do."""

    command: list[str]
    reads: Sequence[Path] = ()
    writes: Sequence[Path] = ()

    def is_done(self) -> bool:
        """Whether every output exists and none is older than an input."""
        if not self.writes or not all(path.exists() for path in [*self.reads, *self.writes]):
            return False
        newest = max((path.stat().st_mtime for path in self.reads), default=0)
        return newest <= min(path.stat().st_mtime for path in self.writes)


def main(
    *,
    demo_path: str = "demo_data",
    seed: int = 0,
    backbones: tuple[str, ...] = ("residual_small", "vgg_small"),
    image_size: int = 128,
    epochs: int = 8,
    steps_per_epoch: int = 100,
    batch_size: int = 8,
) -> None:
    """Prints each command before it runs; a command that fails ends the demo with its own message and exit code.

    Args:
        demo_path: the folder for the data set and all results; `make clean-demo` removes the default one.
        seed: of the data set and of the training.
        backbones: one network is trained for each; at least two different ones.
        image_size: side of the networks' square input in pixels.
        epochs: see a03.
        steps_per_epoch: see a03.
        batch_size: see a03.
    """
    different = len(set(backbones)) == len(backbones) >= 2
    check_flag(different, "backbones", backbones, "two or more different ones")
    if Path.cwd() != ROOT:
        raise InputError(f"the demo runs in the project's folder only: cd {ROOT}")
    began = time.monotonic()
    demo = Path(demo_path)
    training = {"level": LEVELS[0], "image_size": image_size, "epochs": epochs, "steps_per_epoch": steps_per_epoch}
    training |= {"batch_size": batch_size, "backbone_weights": "none", "seed": seed}
    for step in pipeline(demo, backbones, training):
        run(step)
    rows = [HEADER, *results(demo, backbones)]
    with replacing(demo / "results.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print("", *(ROW.format(*row).rstrip() for row in rows), sep="\n")
    print(f"\n{(time.monotonic() - began) / 60:.1f} minutes in all. Pictures with boxes: {demo / 'page.html'}")


# === The steps =======================================================================================================
def pipeline(demo: Path, backbones: Sequence[str], training: dict[str, object]) -> list[Step]:
    """Every step from the data set to the page with pictures; `training` are flags of a03."""
    output, made = demo / "output", [demo / "data_set" / MARK]
    levels = [paths.level_class_descriptions(output, level) for level in LEVELS]
    tables = [paths.image_params(output, split) for split in ("train", "validation", "test")]
    steps = [
        Step(_python("-m", "demo.make_data_set", dataset_path=demo / "data_set", seed=training["seed"])),
        Step(_python("a01_create_training_files.py", **_paths(demo), levels=LEVELS), made, levels),
        Step(_python("a02_find_image_parameters.py", **_paths(demo)), made, tables),
    ]
    for backbone in backbones:
        steps += train_and_predict(demo, backbone, training)
    expanded, fused = _predictions(demo, backbones)
    fuse = _python("a06_ensemble.py", output_path=output, predictions=expanded, ensemble=fused)
    page = _python("-m", "demo.page", **_paths(demo), predictions=[*expanded, fused], page=demo / "page.html")
    return [*steps, Step(fuse, expanded, [fused]), evaluate(demo, fused), Step(page)]


def train_and_predict(demo: Path, run_name: str, training: dict[str, object]) -> list[Step]:
    """The steps of one network, from training to the metric; the run has the name of its backbone."""
    model = paths.run_folder(demo / "output", run_name) / "model.keras"
    found = paths.run_predictions(demo / "output", SPLIT, run_name)
    expanded = paths.expanded_predictions(found)
    train = _python("a03_train_m2det.py", **_paths(demo), backbone=run_name, run=run_name, **training)
    predict = _python("a04_inference.py", **_paths(demo), run=run_name, split=SPLIT)
    expand = _python("a05_expand_hierarchy.py", **_paths(demo), run=run_name, split=SPLIT)
    steps = [Step(train), Step(predict, [model], [found]), Step(expand, [found], [expanded])]
    return [*steps, evaluate(demo, expanded)]


def evaluate(demo: Path, predictions: Path) -> Step:
    """The metric of one prediction file."""
    command = _python("a07_evaluate.py", **_paths(demo), split=SPLIT, predictions=predictions)
    return Step(command, [predictions], [paths.metrics_file(predictions)])


def _python(*script: str, **flags: object) -> list[str]:
    """The command line that runs a script with this Python; a list or tuple becomes several values."""
    command = [os.path.relpath(sys.executable), *script]
    for name, value in flags.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return command


def _paths(demo: Path) -> dict[str, Path]:
    return {"dataset_path": demo / "data_set", "output_path": demo / "output"}


def _predictions(demo: Path, backbones: Sequence[str]) -> tuple[list[Path], Path]:
    """The expanded predictions of each network, and the fused predictions."""
    output = demo / "output"
    single = [paths.expanded_predictions(paths.run_predictions(output, SPLIT, name)) for name in backbones]
    return single, paths.submission(output, SPLIT)


# === Running and reporting ===========================================================================================
def run(step: Step) -> None:
    """Prints a command and runs it, unless it is done already.

    Raises:
        SystemExit: the command failed; the exit code is the command's.
    """
    shown = shlex.join(step.command)
    print(f"\n$ {shown}", flush=True)
    if step.is_done():
        print(f"skipped: {', '.join(path.name for path in step.writes)} already there", flush=True)
    elif code := subprocess.run(step.command, check=False).returncode:
        print(f"\nthe demo stopped: exit code {code} of\n{shown}", file=sys.stderr)
        sys.exit(code if code > 0 else 1)


def results(demo: Path, backbones: Sequence[str]) -> list[tuple[str, ...]]:
    """The rows of the final table, the ensemble last."""
    import polars as pl  # imported here: --help is fast without it

    expanded, fused = _predictions(demo, backbones)
    rows = []
    for backbone, path in zip(backbones, expanded, strict=True):
        history = pl.read_csv(paths.run_folder(demo / "output", backbone) / "history.csv")
        speed, minutes = history["images_per_second"].median(), history["seconds"].sum() / 60
        rows.append((backbone, f"{speed:.1f}", f"{minutes:.1f}", _map(path)))
    return [*rows, ("ensemble", "", "", _map(fused))]


def _map(predictions: Path) -> str:
    return f"{json.loads(paths.metrics_file(predictions).read_text())['mAP']:.4f}"


if __name__ == "__main__":
    run_script(main)
