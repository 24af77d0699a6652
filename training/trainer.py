"""The network together with its loss, as `fit` wants it."""

from collections.abc import Callable

import keras
from keras import ops

from models.backbones import all_layers
from models.losses import assigned_targets, detection_losses, predictions
from oid.anchors.grids import anchors_per_level, cell_sides, make_anchors
from training.devices import clip_the_sum, copies_of, devices_in_sync, over_all_devices, scope_of


class DetectionTrainer(keras.Model):
    """Trains a network on padded ground truth: anchors are assigned inside `compute_loss`, on the device.

    Args:
        network: from images to `{"classes", "boxes"}`, see `models.m2det.build_m2det`.
        anchors: the description that `oid.anchors.grids.make_anchors` takes.
        batch_size: images per step, of all devices together; every step of `fit` has so many. None = as the tensors
            have, and unknown where they do not say: TensorFlow's `fit` leaves it open.
        views: `{image size: (network, anchors)}`, the same weights for other sizes of the input.
        **losses: of `models.losses.detection_losses`.

    Attributes:
        always_frozen: layers that the network was built with as frozen: the batch norm of published checkpoints.
    """

    def __init__(
        self,
        network: keras.Model,
        anchors: dict,
        *,
        batch_size: int | None = None,
        views: dict[int, tuple[keras.Model, dict]] | None = None,
        **losses,
    ):
        super().__init__(name="trainer")
        self.network = network
        self.batch_size = batch_size
        self.always_frozen = tuple(layer for layer in all_layers(network) if not layer.trainable)
        self.loss_options = {"assignment": "task_aligned", "box_coding": "distances"} | losses
        own = network.input.shape[1]
        # functions hide the networks of the other sizes from Keras: the weights count once
        self._views = {
            size: (lambda model=model: model, Anchors(description))
            for size, (model, description) in {own: (network, anchors), **(views or {})}.items()
        }
        self.sizes = tuple(self._views)
        self._size = own
        self._functions: dict[int, Callable | None] = {}
        self.class_loss_mean = keras.metrics.Mean(name="class_loss")
        self.box_loss_mean = keras.metrics.Mean(name="box_loss")
        self.built = True  # the network has its weights: they can be loaded before the first step
        if copies_of(self) > 1:  # then each sees its part of the batch only, and batch norm means the whole one
            for layer in network._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.synchronized = True

    def compile(self, optimizer, **options):
        """As Keras does it; on several devices the optimizer clips the gradient of the whole batch."""
        if copies_of(self) > 1:
            clip_the_sum(optimizer)
            options["jit_compile"] = False  # XLA cannot add up over TensorFlow's devices
        super().compile(optimizer=optimizer, **options)

    def scope(self):
        """The context in which an optimizer for this trainer is to be made and built."""
        return scope_of(self)

    def look_at(self, size: int) -> None:
        """From now on batches have this size, one of `sizes`; what was compiled for another is kept."""
        self._functions[self._size] = self.train_function
        self._size = size
        self.train_function = self._functions.get(size)

    def forget_functions(self) -> None:
        """To be called when the optimizer or its learning rate is another: what was compiled still has the old one."""
        self._functions.clear()
        self.train_function = None

    def call(self, images, training=None):
        network = self._views[self._size][0]()
        return network(images, training=training)

    @property
    def anchors(self) -> "Anchors":
        """Those of the size that it looks at."""
        return self._views[self._size][1]

    def assigned(self, images, targets: dict):
        """Which box each anchor learns in a step on this batch, as `models.losses.assigned_targets` says.

        The network runs as in a step, so batch norm counts the batch (on several devices: as in inference).

        Args:
            images: uint8 `(batch, size, size, 3)`, of the size that it looks at.
            targets: of `training.batches.Batches.batch`.

        Returns:
            An int32 tensor `(batch, anchors)`: a row of `targets["boxes"]`, -1 for background, -2 for ignored.
        """
        anchors = self.anchors
        outputs = self(ops.convert_to_tensor(images), training=copies_of(self) == 1)
        options = self.loss_options
        logits, _, boxes = predictions(outputs, ops.convert_to_tensor(anchors.boxes), options["box_coding"])
        return assigned_targets(
            options["assignment"],
            logits,
            boxes,
            {name: ops.convert_to_tensor(value) for name, value in targets.items()},
            ops.convert_to_tensor(anchors.boxes),
            ops.convert_to_tensor(anchors.cell_sides),
            ancestors=options.get("ancestors"),
            region_classes=options.get("region_classes"),
            level_sizes=anchors.level_sizes,
        )[0]

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The loss of a batch, the mean over all its objects wherever they are computed.

        Args:
            x: images, not looked at.
            y: padded ground truth, the dict of `training.batches.Batches.batch`.
            y_pred: the network's outputs, `classes` `(batch, anchors, classes)` and `boxes` `(batch, anchors, 4)`.
            sample_weight: not looked at.
            training: not looked at.

        Returns:
            a number: classification and boxes, each over the normaliser of `models.losses.detection_losses` (over all
            devices, at least 1), plus the regularisers of the backbone.
        """
        anchors = self.anchors
        if self.batch_size and y_pred["classes"].shape[0] is None:  # the assignment divides batches that it knows
            share = self.batch_size // devices_in_sync()
            y_pred, y = keras.tree.map_structure(lambda x: ops.reshape(x, (share, *x.shape[1:])), (y_pred, y))
        class_sum, box_sum, normaliser = detection_losses(
            y_pred,
            y,
            ops.convert_to_tensor(anchors.boxes),
            ops.convert_to_tensor(anchors.cell_sides),
            level_sizes=anchors.level_sizes,
            **self.loss_options,
        )
        normaliser = ops.maximum(over_all_devices(normaliser), 1.0)
        class_loss, box_loss = class_sum / normaliser, box_sum / normaliser
        devices = devices_in_sync()
        # each device has its part of the sum, and Keras takes the mean of what they say; counted in images, as Keras
        # counts the loss, so that sums which a checkpoint has mean the same on another number of devices
        images = ops.shape(y["labels"])[0]
        self.class_loss_mean.update_state(class_loss * devices, sample_weight=images)
        self.box_loss_mean.update_state(box_loss * devices, sample_weight=images)
        total = class_loss + box_loss
        if self.losses:  # the regularisers of the backbone, where it has any; every device has all of them
            total = total + ops.sum(ops.stack(self.losses)) / devices
        return total


class Anchors:
    """The anchors of one size of the input."""

    def __init__(self, settings: dict):
        self.boxes = make_anchors(settings)
        self.cell_sides = cell_sides(settings)
        self.level_sizes = anchors_per_level(settings)
