"""Builds the objects of a training from its options and settings: networks, trainer, batches, validation."""

from collections.abc import Callable
from pathlib import Path

import keras

from models.backbones import freeze
from models.detector import build_network, runs_on_cpu
from models.run_settings import RunSettings
from oid import machine
from training import choose
from training.batches import Batches
from training.data_set import DataSet, read_data_set
from training.devices import accelerators_have_bfloat16
from training.options import NetworkOptions, Options, TrainingSettings
from training.trainer import DetectionTrainer
from training.validation import Validation, make_validation
from training.verified_labels import LabelRulesInForce

Report = Callable[[str], None]


def facts_about(images: int, devices: int) -> choose.Facts:
    """What the choices of a training depend on; starts the backend.

    Args:
        images: number of training images.
        devices: that share each batch.
    """
    accelerator = not runs_on_cpu()
    bfloat16 = accelerators_have_bfloat16() if accelerator else choose.processor_has_bfloat16()
    return choose.Facts(images, accelerator, machine.usable_cores(), bfloat16, devices)


def describe(split: str, data: DataSet) -> str:
    """A sentence about a split."""
    parts = [f"{len(data)} images", f"{len(data.objects.labels)} boxes"]
    parts += [f"{len(data.regions.labels)} ignored regions"] if split == "train" else []
    parts += [f"{data.missing} images without a sound file left out"] if data.missing else []
    return f"{split}: {', '.join(parts)}"


def build_networks(
    run: RunSettings, training: TrainingSettings, *, begins: bool = True
) -> tuple[keras.Model, keras.Model | None]:
    """Builds the network that trains, and its twin in float32 where it trains in bfloat16 (else None).

    Args:
        run: what rebuilds the network.
        training: its precision, the backbone's weights, and what stays frozen.
        begins: whether the backbone's weights are needed; a run that goes on has its own.
    """
    twin, policy = None, keras.config.dtype_policy()
    backbone_weights = training.options.network.backbone_weights if begins else "none"
    if training.precision == "bfloat16":
        twin = build_network(run)
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = build_network(run, backbone_weights=backbone_weights)
    finally:
        keras.config.set_dtype_policy(policy)
    _freeze(network, run.network.backbone, training.options.network)
    return network, twin


def _freeze(network: keras.Model, backbone: str, options: NetworkOptions) -> None:
    if options.freeze == "backbone":
        freeze(network.get_layer(backbone), weights=True)
    elif options.freeze == "batch_norm":
        freeze(network, batch_norm=True)


def build_trainer(
    network: keras.Model, run: RunSettings, training: TrainingSettings, rules: LabelRulesInForce
) -> DetectionTrainer:
    """The network with its losses, not compiled."""
    return DetectionTrainer(
        network,
        run.anchors,
        batch_size=training.batch_size,
        assignment=training.recipe.assignment,
        class_loss=training.recipe.class_loss,
        box_loss=training.recipe.box_loss,
        box_deltas=run.box_deltas,
        ancestors=rules.ancestors,
        region_classes=rules.region_classes,
    )


def build_batches(
    data: DataSet,
    run: RunSettings,
    training: TrainingSettings,
    rules: LabelRulesInForce,
    cache_bytes: int,
    report: Report,
) -> Batches:
    """The batches of the whole training."""
    return Batches(
        data,
        image_size=run.network.image_size,
        batch_size=training.batch_size,
        recipe=training.recipe,
        labels=training.options.labels,
        images=training.options.images,
        rules=rules,
        num_classes=len(run.classes),
        seed=training.options.machine.seed,
        cache_bytes=cache_bytes,
        report=report,
    )


def build_validation(
    dataset_path: str | Path,
    output_path: str | Path,
    run: RunSettings,
    options: Options,
    report: Report,
    *,
    group_of_weight: float = 1.0,
) -> Validation | None:
    """What measures an epoch, or None where there are no validation images."""
    images = Path(dataset_path) / "validation"
    if not images.is_dir():
        report(f"{images} does not exist: no epoch is measured, and the last one counts")
        return None
    data = read_data_set(
        dataset_path,
        output_path,
        options.level,
        "validation",
        skip_missing=options.images.skip_missing,
        at_most=options.records.validation_images,
    )
    if not len(data):
        report("validation: a01 lists no image of this level: no epoch is measured, and the last one counts")
        return None
    report(describe("validation", data))
    bad = options.images.max_bad_images
    return make_validation(data, run, group_of_weight=group_of_weight, max_bad_images=bad, report=report)
