"""A training of `--backbone tiny` without a03: `make_training` builds its objects."""

import dataclasses
import itertools
import time
from pathlib import Path

import keras

from models.run_settings import DetectionClass
from tests.helpers.tiny_network import tiny_settings
from training import build, checkpoints
from training.data_set import read_classes, read_data_set
from training.loop import Training
from training.options import (
    ImageOptions,
    LengthOptions,
    MachineOptions,
    Options,
    RecordOptions,
    StepOptions,
    TrainingSettings,
    recipe_of,
)
from training.stopping import Stop
from training.validation import make_validation
from training.verified_labels import rules_in_force

SIZES = {"backbone": "tiny", "image_size": 64, "tums": 1, "scales": 1, "channels": 16}


def make_training(
    photographs: tuple[Path, Path],
    run: Path,
    *,
    said: list[str],
    stop: Stop | None = None,
    started: float | None = None,
    cache_bytes: int = 2**30,
    **changes: object,
) -> Training:
    """A training of batches of 4 on the fixture `photographs`, before `begin`.

    Args:
        photographs: data set and output.
        run: folder of the run.
        said: gets what is reported.
        stop, cache_bytes: see `Training`.
        started: see `Training`; None = now.
        **changes: fields of the groups of `Options`, or of `tiny_settings`.
    """
    kinds = {"images": ImageOptions, "step": StepOptions, "records": RecordOptions, "machine": MachineOptions}
    groups = {}
    for group, kind in kinds.items():
        names = {field.name for field in dataclasses.fields(kind)} & set(changes)
        groups[group] = kind(**{name: changes.pop(name) for name in names})
    classes = itertools.starmap(DetectionClass, read_classes(photographs[1], "1").items())
    settings = tiny_settings(classes=tuple(classes), **SIZES | changes)
    options, step = Options(**groups), groups["step"]
    training = TrainingSettings(
        options,
        recipe_of(options),
        batch_size=step.batch_size or 4,
        learning_rate=step.learning_rate or 2e-3,
        precision=step.precision or "float32",
    )
    state = checkpoints.open_run(run, said.append)
    keras.utils.set_random_seed(training.options.machine.seed)
    data = read_data_set(*photographs, "1", "train")
    rules, _ = rules_in_force(training.options.labels.rules, photographs[0], settings.labels, data)
    network, twin = build.build_networks(settings, training)
    return Training(
        run,
        build.build_trainer(network, settings, training, rules),
        build.build_batches(data, settings, training, rules, cache_bytes, said.append),
        dataclasses.replace(state, run=settings, training=training),
        workers=2,
        validation=make_validation(
            read_data_set(*photographs, "1", "validation", at_most=options.records.validation_images),
            settings,
            max_bad_images=options.images.max_bad_images,
            report=said.append,
        ),
        exported=twin,
        stop=stop or Stop(str(run)),
        started=time.monotonic() if started is None else started,
        report=said.append,
    )


def train(photographs, run: Path, *, said: list[str] | None = None, epochs: int, steps: int, **changes) -> Training:
    """Begins or resumes a training, and trains to its end."""
    training = make_training(photographs, run, said=[] if said is None else said, **changes)
    training.begin(LengthOptions(None, epochs, steps))
    training.run()
    return training
