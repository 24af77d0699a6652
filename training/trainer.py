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
        class_loss, box_loss = detection_losses(y_pred, y, anchors, cells)
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


def copy_matching_weights(source: keras.Model, target: keras.Model) -> tuple[int, list[str]]:
    """Copies the weights whose name and shape agree, for fine-tuning on other classes.

    Returns:
        The number of tensors copied, and the paths of the tensors of `target` that keep their values.
    """
    known = {weight.path: weight for weight in source.weights}
    copied, kept = 0, []
    for weight in target.weights:
        other = known.get(weight.path)
        if other is not None and other.shape == weight.shape:
            weight.assign(np.asarray(ops.convert_to_numpy(other)))
            copied += 1
        else:
            kept.append(weight.path)
    return copied, kept
