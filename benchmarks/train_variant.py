"""Trains a run as a03 does, with options and a recipe that no flag names.

    python -m benchmarks.train_variant DATASET OUTPUT RUN < options_and_recipe.json

`training_runs.train_and_predict` writes the JSON: a list of a `training.options.Options` and a `Recipe`.
"""

import sys
import time
from pathlib import Path

import msgspec

import a03_train_m2det as a03
from oid.command_line import run_script
from training.options import Options, Recipe


def main(dataset_path: str, output_path: str, run: str) -> None:
    """Trains the run, or goes on with it.

    Args:
        dataset_path: folder with train/ and validation/
        output_path: folder with a01's files
        run: name of the run
    """
    options, recipe = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[Options, Recipe])
    folder = Path(output_path) / "weights" / run
    a03.train(dataset_path, output_path, folder, options, recipe, started=time.monotonic())


if __name__ == "__main__":
    run_script(main)
