"""Builds the objects of a training from its settings: networks, trainer, batches."""

from collections.abc import Callable

import keras

from models.backbones import freeze
from models.detector import build_network, runs_on_cpu
from models.run_settings import RunSettings
from oid import machine
from training import choose
from training.batches import Batches
from training.data_set import DataSet
from training.devices import accelerators_have_bfloat16
from training.options import TrainingSettings
from training.trainer import DetectionTrainer
from training.verified_labels import LabelRulesInForce


def facts_about(images: int, devices: int) -> choose.Facts:
    """What the choices depend on, for this number of training images and of devices; starts the backend."""
    accelerator = not runs_on_cpu()
    bfloat16 = accelerators_have_bfloat16() if accelerator else choose.processor_has_bfloat16()
    return choose.Facts(images, accelerator, machine.usable_cores(), bfloat16, devices)


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
    if training.options.network.freeze == "backbone":
        freeze(network.get_layer(run.network.backbone), weights=True)
    elif training.options.network.freeze == "batch_norm":
        freeze(network, batch_norm=True)
    return network, twin


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
    report: Callable[[str], None],
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
