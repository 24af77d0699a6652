"""The network together with its loss, as `fit` wants it."""

import keras
import numpy as np
from keras import ops

from models.anchors import cell_sides, make_anchors
from models.losses import detection_losses


class DetectionTrainer(keras.Model):
    """Trains a network on padded ground truth: anchors are assigned inside `compute_loss`, on the device.

    Args:
        network: from images to `{"classes", "boxes"}`, see `models.m2det.build_m2det`.
        anchors: the description that `models.anchors.make_anchors` takes.
    """

    def __init__(self, network: keras.Model, anchors: dict):
        super().__init__(name="trainer")
        self.network = network
        self.anchor_boxes = make_anchors(anchors)
        self.anchor_cells = cell_sides(anchors)
        self.class_loss_mean = keras.metrics.Mean(name="class_loss")
        self.box_loss_mean = keras.metrics.Mean(name="box_loss")
        self.built = True  # the network has its weights: they can be loaded before the first step

    def call(self, images, training=None):
        return self.network(images, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        anchors, cells = ops.convert_to_tensor(self.anchor_boxes), ops.convert_to_tensor(self.anchor_cells)
        class_sum, box_sum, normaliser = detection_losses(y_pred, y, anchors, cells)
        normaliser = ops.maximum(normaliser, 1.0)
        class_loss, box_loss = class_sum / normaliser, box_sum / normaliser
        self.class_loss_mean.update_state(class_loss)
        self.box_loss_mean.update_state(box_loss)
        total = class_loss + box_loss
        if self.losses:  # the regularisers of the backbone, where it has any
            total = total + ops.sum(ops.stack(self.losses))
        return total


def make_optimizer(*, learning_rate: float, weight_decay: float, steps: int):
    """AdamW with warm-up and cosine decay, gradient clipping, and an exponential moving average of the weights.

    The average reaches back over about a twenty-fifth of the training, at most 5,000 steps: long enough to be smooth,
    short enough that a short training is not measured by what its weights were in its first half.

    Args:
        learning_rate: the highest, reached after the warm-up (100 steps, at most a tenth of the training).
        weight_decay: AdamW's, not applied to biases and batch norm.
        steps: steps of the whole training.
    """
    averaged_steps = min(max(steps / 25, 10), 5000)
    warm_up = max(1, min(100, steps // 10))
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=learning_rate / warm_up,
        decay_steps=max(1, steps - warm_up),
        alpha=0.01,
        warmup_target=learning_rate,
        warmup_steps=warm_up,
    )
    optimizer = keras.optimizers.AdamW(
        schedule,
        weight_decay=weight_decay,
        beta_2=0.99,
        global_clipnorm=10.0,
        use_ema=True,
        ema_momentum=1 - 1 / averaged_steps,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def take_over_weights(source, target: keras.Model, settings: dict) -> tuple[int, list[str]]:
    """Copies the layers of another run that mean the same, for fine-tuning on other classes.

    A layer is taken over when the other run has one of that name and with these shapes. The classifier is not when the
    classes differ, in number or in order; the box outputs are not when anchors or box coding differ.

    Args:
        source: the other run, a `models.detector.Detector`.
        target: the network to fill.
        settings: the new run's settings.

    Returns:
        The number of layers taken over, and the names of those that have weights and were skipped, in their order.
    """
    old = source.settings
    strangers = []
    if [entry["label"] for entry in old["classes"]] != [entry["label"] for entry in settings["classes"]]:
        strangers.append("classes")
    if (old["anchors"], old["box_coding"]) != (settings["anchors"], settings["box_coding"]):
        strangers.append("boxes")
    known = {weight.path: weight for weight in source.model.weights}
    taken, skipped = 0, []
    for layer in target._flatten_layers(include_self=False):
        if not layer.weights or hasattr(layer, "layers"):
            continue
        others = [known.get(weight.path) for weight in layer.weights]
        fits = all(o is not None and o.shape == w.shape for o, w in zip(others, layer.weights, strict=True))
        is_output = isinstance(layer, keras.layers.Conv2D) and layer.use_bias  # a subnet's layers are not
        if fits and not (is_output and layer.name.startswith(tuple(strangers))):
            for weight, other in zip(layer.weights, others, strict=True):
                weight.assign(np.asarray(ops.convert_to_numpy(other)))
            taken += 1
        else:
            skipped.append(layer.name)
    return taken, skipped
