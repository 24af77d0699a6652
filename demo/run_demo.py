"""Runs the whole pipeline on generated data, step by step, with the scripts and flags that a user types.

Reads:  nothing.
Writes: DEMO_PATH/data_set (generated), output (all that a01 to a07 write), results.csv and page.html.
Takes:  at most 8 minutes on 2 CPU cores. Stopped and started again it goes on where it was.

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
from dataclasses import dataclass
from pathlib import Path

from demo.make_data_set import MARK
from oid import paths
from oid.command_line import run_script
from oid.files import InputError, replacing

ROOT = Path(__file__).resolve().parent.parent  # the project's folder, where the numbered scripts are
SPLIT = "validation"
LEVEL = "1"
HEADER = ("model", "images/s", "minutes", "mAP@0.5")


@dataclass(frozen=True)
class Step:
    """A command, and when it need not run: when all of `writes` are there and none is older than any of `reads`.

    A step without `writes` always runs; it is then up to the script to find out what is left to do.
    """

    command: list[str]
    reads: Sequence[Path] = ()
    writes: Sequence[Path] = ()

    def is_done(self) -> bool:
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
    """Prints each command before it runs; a command that fails ends the demonstration with its own message.

    Args:
        demo_path: the folder for the data set and all results; `make clean-demo` removes the default one.
        seed: of the data set and of the training.
        backbones: one network is trained for each, two or more different ones.
        image_size: side of the networks' square input in pixels.
        epochs: see a03.
        steps_per_epoch: see a03.
        batch_size: see a03.
    """
    if len(set(backbones)) != len(backbones) or len(backbones) < 2:
        raise InputError(f"--backbones {' '.join(backbones)}: give two or more different ones")
    if Path.cwd() != ROOT:
        raise InputError(f"the scripts are found from the project's folder only: cd {ROOT}")
    began = time.monotonic()
    demo = Path(demo_path)
    training = {"level": LEVEL, "image_size": image_size, "epochs": epochs, "steps_per_epoch": steps_per_epoch}
    training |= {"batch_size": batch_size, "backbone_weights": "none", "seed": seed}
    for step in prepare(demo, seed):
        run(step)
    for backbone in backbones:
        for step in train_and_predict(demo, backbone, training):
            run(step)
    for step in combine(demo, backbones):
        run(step)
    rows = results(demo, backbones)
    with replacing(demo / "results.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])
    run(draw(demo, backbones))
    print(f"\n{aligned([HEADER, *rows])}\n\n{(time.monotonic() - began) / 60:.1f} minutes in all")
    print(f"Pictures of what was found: {demo / 'page.html'}")


# === The steps =======================================================================================================
def prepare(demo: Path, seed: int) -> list[Step]:
    """The data set, its training files, the sizes of its images."""
    data_set, output = demo / "data_set", demo / "output"
    levels = [paths.level_class_descriptions(output, level) for level in ("1", "2", "all")]
    tables = [paths.image_params(output, split) for split in ("train", "validation", "test")]
    made = [data_set / MARK]
    return [
        Step(_python("-m", "demo.make_data_set", dataset_path=data_set, seed=seed)),
        Step(_python("a01_create_training_files.py", **_paths(demo), levels=["1", "2", "all"]), made, levels),
        Step(_python("a02_find_image_parameters.py", **_paths(demo)), made, tables),
    ]


def train_and_predict(demo: Path, backbone: str, training: dict[str, object]) -> list[Step]:
    """One network from training to expanded predictions and their metric."""
    run_name = backbone
    model = paths.run_folder(demo / "output", run_name) / "model.keras"
    found = paths.run_predictions(demo / "output", SPLIT, run_name)
    train = _python("a03_train_m2det.py", **_paths(demo), backbone=backbone, run=run_name, **training)
    images = demo / "data_set" / SPLIT
    predict = _python("a04_inference.py", **_paths(demo), run=run_name, images=images, predictions=found)
    expanded = paths.expanded_predictions(found)
    expand = _python("a05_expand_hierarchy.py", **_paths(demo), predictions=found, expanded=expanded)
    return [
        Step(train),
        Step(predict, [model], [found]),
        Step(expand, [found], [expanded]),
        evaluate(demo, expanded),
    ]


def combine(demo: Path, backbones: Sequence[str]) -> list[Step]:
    """The fusion of all networks, and its metric."""
    expanded, fused = _predictions(demo, backbones)
    fuse = _python("a06_ensemble.py", output_path=demo / "output", predictions=expanded, ensemble=fused)
    return [Step(fuse, expanded, [fused]), evaluate(demo, fused)]


def evaluate(demo: Path, predictions: Path) -> Step:
    """The metric of one prediction file."""
    boxes = paths.box_annotations(demo / "data_set", SPLIT)
    labels = paths.image_label_annotations(demo / "data_set", SPLIT)
    files = {"predictions": predictions, "boxes": boxes, "image_labels": labels}
    command = _python("a07_evaluate.py", **_paths(demo), **files)
    return Step(command, [predictions, boxes, labels], [paths.metrics_file(predictions)])


def draw(demo: Path, backbones: Sequence[str]) -> Step:
    """The page with pictures."""
    expanded, fused = _predictions(demo, backbones)
    files = {"predictions": [*expanded, fused], "page": demo / "page.html", "table": demo / "results.csv"}
    return Step(_python("-m", "demo.page", **_paths(demo), **files))


# === Running and reporting ===========================================================================================
def run(step: Step) -> None:
    """Prints a command and runs it, unless what it writes is there already.

    Raises:
        SystemExit: the command failed; the exit code is the command's.
    """
    shown = shlex.join(step.command)
    if step.is_done():
        print(f"\n$ {shown}\nskipped: {', '.join(path.name for path in step.writes)} already there", flush=True)
        return
    print(f"\n$ {shown}", flush=True)
    code = subprocess.run(step.command, check=False).returncode
    if code:
        print(f"\nthe demonstration stopped: exit code {code} of\n{shown}", file=sys.stderr)
        sys.exit(code if code > 0 else 1)


def results(demo: Path, backbones: Sequence[str]) -> list[tuple[str, ...]]:
    """The rows of the final table, the ensemble last."""
    expanded, fused = _predictions(demo, backbones)
    rows = []
    for backbone, path in zip(backbones, expanded, strict=True):
        history = paths.run_folder(demo / "output", backbone) / "history.csv"
        with history.open(newline="", encoding="utf-8") as file:
            epochs = list(csv.DictReader(file))
        speeds = sorted(float(epoch["images_per_second"]) for epoch in epochs)
        minutes = sum(float(epoch["seconds"]) for epoch in epochs) / 60
        rows.append((backbone, f"{speeds[len(speeds) // 2]:.1f}", f"{minutes:.1f}", _map(path)))
    return [*rows, ("ensemble", "", "", _map(fused))]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A text table: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _python(*script: str, **flags: object) -> list[str]:
    """The command line that runs a script with this Python; lists become several values."""
    command = [os.path.relpath(sys.executable), *script]
    for name, value in flags.items():
        values = value if isinstance(value, list) else [value]
        command += [f"--{name}", *map(str, values)]
    return command


def _paths(demo: Path) -> dict[str, Path]:
    return {"dataset_path": demo / "data_set", "output_path": demo / "output"}


def _predictions(demo: Path, backbones: Sequence[str]) -> tuple[list[Path], Path]:
    """The expanded predictions of each network, and the fused ones."""
    output = demo / "output"
    single = [paths.expanded_predictions(paths.run_predictions(output, SPLIT, name)) for name in backbones]
    return single, paths.submission(output, SPLIT)


def _map(predictions: Path) -> str:
    return f"{json.loads(paths.metrics_file(predictions).read_text())['mAP']:.4f}"


if __name__ == "__main__":
    run_script(main)
