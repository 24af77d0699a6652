"""The network together with its loss, as Keras' `fit` needs it."""

import keras
import numpy as np
from keras import ops

from models.keras_internals import KeepsEveryBatch, all_layers
from models.losses import DetectionLoss
from oid.anchors.grids import AnchorGrids
from training.devices import clip_the_sum, copies_of, devices_in_sync, over_all_devices, scope_of


class DetectionTrainer(KeepsEveryBatch, keras.Model):
    """Trains a network on padded ground truth; `compute_loss` assigns the anchors on the device.

    Args:
        network: from images to `{"classes", "boxes"}`, see `models.m2det.build_m2det`.
        anchors: of the network.
        batch_size: images of each step, of all devices together. None = as the tensors have; TensorFlow's `fit` leaves
            that open, so the assignment cannot divide the batch evenly.
        assignment, class_loss, box_loss, box_deltas, ancestors, region_classes: see `models.losses.DetectionLoss`.

    Attributes:
        network: as given.
        anchors: as given.
    """

    def __init__(
        self,
        network: keras.Model,
        anchors: AnchorGrids,
        *,
        batch_size: int | None = None,
        assignment: str = "task_aligned",
        class_loss: str = "bce",
        box_loss: str = "giou",
        box_deltas: str = "distances",
        ancestors: np.ndarray | None = None,
        region_classes: np.ndarray | None = None,
    ):
        super().__init__(name="trainer")
        self.network = network
        self.anchors = anchors
        self.batch_size = batch_size
        self.detection_loss = DetectionLoss(
            anchors,
            assignment=assignment,
            class_loss=class_loss,
            box_loss=box_loss,
            box_deltas=box_deltas,
            ancestors=ancestors,
            region_classes=region_classes,
        )
        self.class_loss_mean = keras.metrics.Mean(name="class_loss")
        self.box_loss_mean = keras.metrics.Mean(name="box_loss")
        self.built = True  # the network has its weights: they can be loaded before the first step
        if copies_of(self) > 1:  # each device sees its share of the batch; batch norm takes the whole batch
            for layer in all_layers(network):
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True

    def compile(self, optimizer, **options):
        """As in Keras; on several devices the optimizer clips the gradient of the whole batch."""
        if copies_of(self) > 1:
            clip_the_sum(optimizer)
            options["jit_compile"] = False  # XLA cannot add up over TensorFlow's devices
        super().compile(optimizer=optimizer, **options)

    def scope(self):
        """The context in which an optimizer for this trainer must be made and built."""
        return scope_of(self)

    def call(self, images, training=None):
        return self.network(images, training=training)

    def assigned(self, images, targets: dict):
        """Assigns the anchors as a step on this batch would.

        The network runs as in a step, so batch norm counts the batch (on several devices: as in inference).

        Args:
            images: uint8 `(batch, size, size, 3)`.
            targets: see `models.losses.DetectionLoss`.

        Returns:
            An int32 tensor `(batch, anchors)`, see `models.losses.Assignment.index`.
        """
        outputs = self(ops.convert_to_tensor(images), training=copies_of(self) == 1)
        targets = {name: ops.convert_to_tensor(value) for name, value in targets.items()}
        return self.detection_loss.assign(outputs, targets).index

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch, the mean over all its objects, on whichever device they are.

        Args:
            x, sample_weight, training: unused.
            y: padded ground truth, see `models.losses.DetectionLoss`.
            y_pred: the network's outputs.

        Returns:
            A scalar: class loss plus box loss, each divided by the normaliser of all devices (at least 1), plus the
            regularisers of the backbone.
        """
        devices = devices_in_sync()
        if self.batch_size and y_pred["classes"].shape[0] is None:  # tell the assignment the size of the batch
            share = self.batch_size // devices
            y_pred, y = keras.tree.map_structure(lambda x: ops.reshape(x, (share, *x.shape[1:])), (y_pred, y))
        class_sum, box_sum, normaliser = self.detection_loss(y_pred, y)
        normaliser = ops.maximum(over_all_devices(normaliser), 1.0)
        class_loss, box_loss = class_sum / normaliser, box_sum / normaliser
        # Keras averages the metrics over devices, of which each has a part of the sum. It weights its loss by images;
        # so do these means: the sums in a checkpoint are the same on any number of devices.
        images = ops.shape(y["labels"])[0]
        self.class_loss_mean.update_state(class_loss * devices, sample_weight=images)
        self.box_loss_mean.update_state(box_loss * devices, sample_weight=images)
        total = class_loss + box_loss
        if self.losses:  # the backbone's regularisers; each device has all of them
            total = total + ops.sum(ops.stack(self.losses)) / devices
        return total
