"""What a network costs: parameters and multiply-accumulate operations of its parts.

python -m models.cost --backbone vgg16 --num_classes 500 --image_size 320 --tums 8 --scales 6 --channels 128
"""

import math
import os
from typing import Literal

HEAD_LAYERS = ("classes", "boxes")


def cost_of(network) -> dict[str, tuple[int, int]]:
    """Counts a network's weights and the operations of one image.

    Convolutions and dense layers count, as in the literature, but not batch norm, resizing and activations. A layer
    that runs on several maps counts once in parameters and each time in operations.

    Args:
        network: a model of `models.m2det.build_m2det` or `models.retinanet.build_retinanet`.

    Returns:
        `{"backbone" | "pyramid" | "heads": (parameters, operations)}`; parameters without the moving statistics of
        batch norm, as PyTorch counts them.
    """
    parts = {name: [0, 0] for name in ("backbone", "pyramid", "heads")}
    for layer in network.layers:
        parts[_part(layer)][0] += _parameters(layer)
    for layer, operations in _operations(network):
        parts[_part(layer)][1] += operations
    return {name: (parameters, operations) for name, (parameters, operations) in parts.items()}


def _is_model(layer) -> bool:
    return hasattr(layer, "layers")


def _part(layer) -> str:
    """The part of the network that a layer belongs to: the backbone is a model inside, heads are known by name."""
    return "backbone" if _is_model(layer) else "heads" if layer.name.startswith(HEAD_LAYERS) else "pyramid"


def _parameters(layer) -> int:
    """Weights that can be learned, frozen or not."""
    return sum(math.prod(w.shape) for w in layer.weights if not w.path.split("/")[-1].startswith(("moving_", "seed")))


def _operations(model):
    """Yields each `(layer, multiply-accumulate operations)` of a functional model, for each call of the layer.

    Each weight of a kernel counts at each position of the result. A separable convolution has two kernels; a grouped
    one has a kernel that is thinner by the number of groups.
    """
    from models.keras_internals import calls_of

    for call in calls_of(model):
        layer = call.operation
        if _is_model(layer):
            yield layer, sum(operations for _, operations in _operations(layer))
            continue
        weights = getattr(layer, "weights", ())  # the products inside MobileNetV3 are no layers
        kernels = [w for w in weights if w.path.split("/")[-1].endswith("kernel")]
        positions = math.prod(call.outputs[0].shape[1:-1])
        yield layer, positions * sum(math.prod(kernel.shape) for kernel in kernels)


def cost_table(network) -> str:
    """The numbers of `cost_of` and their sum as a table."""
    parts = cost_of(network)
    parts["all"] = tuple(sum(column) for column in zip(*parts.values(), strict=True))
    rows = [f"{name:10} {parameters:12,} {operations / 1e9:15.3f}" for name, (parameters, operations) in parts.items()]
    return "\n".join([f"{'':10} {'parameters':>12} {'GMAC per image':>15}", *rows])


def main(
    *,
    backbone: str = "vgg16",
    num_classes: int = 500,
    image_size: int = 320,
    variant: Literal["paper", "released", "released_sfam"] = "paper",
    tums: int = 8,
    scales: int = 6,
    channels: int | None = None,
    head: Literal["auto", "conv", "shared", "light"] = "auto",
    anchors: Literal["square", "official"] = "square",
) -> None:
    """Prints parameters and multiply-accumulate operations of an M2Det: backbone, pyramid, heads.

    Args:
        backbone: name of the feature extractor; a wrong name lists the valid ones
        num_classes: class outputs per anchor
        image_size: side of the square input in pixels
        variant: the paper's network, or the one of the released code, without or with SFAM
        tums: number of thinned U-shape modules
        scales: maps per module
        channels: channels of each map of each module (default: 128 for paper, else 256)
        head: conv (published), shared (by all scales), light (the same with one convolution instead of four), or auto:
            shared for more than 100 classes
        anchors: one square per cell, or the official six
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU
    from models.m2det import build_m2det
    from oid.anchors.grids import m2det_anchors

    network = build_m2det(
        backbone=backbone,
        num_classes=num_classes,
        image_size=image_size,
        variant=variant,
        tums=tums,
        scales=scales,
        channels=channels,
        head=None if head == "auto" else head,
        anchors_per_cell=m2det_anchors(image_size, scales, anchors).per_cell,
    )
    print(cost_table(network))


if __name__ == "__main__":
    from oid.command_line import run_script

    run_script(main)
