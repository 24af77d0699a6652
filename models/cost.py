"""What a network costs: parameters and multiply-accumulate operations, part by part.

python -m models.cost --backbone vgg16 --num_classes 500 --image_size 320 --tums 8 --scales 6 --channels 128
"""

import math
import os
from typing import Literal

HEAD_LAYERS = ("classes", "boxes")


def cost_of(network) -> dict[str, tuple[int, int]]:
    """Counts a network's weights and the operations of one image.

    Counted are convolutions and dense layers, as others count them: batch norm, resizing and activations are not. A
    layer that runs on several maps counts once in parameters and each time in operations.

    Args:
        network: a model of `models.m2det.build_m2det`.

    Returns:
        `{"backbone" | "pyramid" | "heads": (parameters, operations)}`; parameters with the moving statistics of batch
        norm left out, as PyTorch counts them.
    """
    parts = {name: [0, 0] for name in ("backbone", "pyramid", "heads")}
    for layer in network.layers:
        parts[_part(layer)][0] += _parameters(layer)
    for layer, node in _calls(network):
        parts[_part(layer)][1] += _operations(layer) if _is_model(layer) else _operations_of_call(layer, node)
    return {name: (parameters, operations) for name, (parameters, operations) in parts.items()}


def weight_bytes(network) -> tuple[int, int]:
    """Bytes of all weights, and of those that are learned and not frozen."""
    return tuple(
        sum(math.prod(w.shape) * _width(w.dtype) for w in ws) for ws in (network.weights, network.trainable_weights)
    )


def result_bytes(network) -> int:
    """Bytes of the results of all layers for one image: what a training step keeps, more or less, for the gradient."""
    return sum(
        result_bytes(layer)
        if _is_model(layer)
        else sum(math.prod(output.shape[1:]) * _width(output.dtype) for output in node.outputs)
        for layer, node in _calls(network)
    )


def _width(dtype: str) -> int:
    """Bytes of a number."""
    return int("".join(filter(str.isdigit, dtype.removeprefix("b"))) or 8) // 8


def _is_model(layer) -> bool:
    return hasattr(layer, "layers")


def _part(layer) -> str:
    """Which part of the network a layer belongs to: the backbone is a model inside, the heads are known by name."""
    return "backbone" if _is_model(layer) else "heads" if layer.name.startswith(HEAD_LAYERS) else "pyramid"


def _parameters(layer) -> int:
    """Weights that are learned, frozen or not; not the moving statistics."""
    return sum(math.prod(w.shape) for w in layer.weights if not w.path.split("/")[-1].startswith(("moving_", "seed")))


def _calls(model):
    """Each `(layer, node)` of a functional model; a layer that is called several times has several nodes."""
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            if node.operation is not None and not node.is_input:
                yield node.operation, node


def _operations(model) -> int:
    """Operations of a functional model, nested ones included."""
    return sum(
        _operations(layer) if _is_model(layer) else _operations_of_call(layer, node) for layer, node in _calls(model)
    )


def _operations_of_call(layer, node) -> int:
    """Multiply-accumulate operations of one call on one image: each weight of a kernel, at each position of the result.

    A separable convolution has two kernels; a grouped one has a kernel that is thinner by the groups.
    """
    weights = getattr(layer, "weights", ())  # the products inside MobileNetV3 are no layers
    kernels = [w for w in weights if w.path.split("/")[-1].endswith("kernel")]
    positions = math.prod(node.outputs[0].shape[1:-1])
    return positions * sum(math.prod(kernel.shape) for kernel in kernels)


def print_cost(network) -> None:
    """Prints the table of `cost_of` with its sum."""
    parts = cost_of(network)
    parts["all"] = tuple(sum(column) for column in zip(*parts.values(), strict=True))
    print(f"{'':10} {'parameters':>12} {'GMAC per image':>15}")
    for name, (parameters, operations) in parts.items():
        print(f"{name:10} {parameters:12,} {operations / 1e9:15.3f}")


def main(
    *,
    backbone: str = "vgg16",
    num_classes: int = 500,
    image_size: int = 320,
    variant: Literal["paper", "released"] = "paper",
    tums: int = 8,
    scales: int = 6,
    channels: int | None = None,
    sfam: bool | None = None,
    head: Literal["auto", "conv", "shared", "light"] = "auto",
    anchors: Literal["square", "official"] = "square",
) -> None:
    """Prints parameters and multiply-accumulate operations of a network: backbone, pyramid, heads.

    Args:
        backbone: name of the feature extractor; a wrong name lists the valid ones
        num_classes: class outputs per anchor
        image_size: side of the square input in pixels
        variant: the paper's network, or the one of the released code
        tums: number of thinned U-shape modules
        scales: maps per module
        channels: channels of each map of each module (default: 128 for paper, 256 for released)
        sfam: whether channels are weighed (default: as published)
        head: conv (published), shared (by all scales), light (the same with one convolution instead of four), or auto:
            shared for more than 100 classes
        anchors: one square per cell, or the official six
    """
    from models.m2det import build_m2det
    from oid.anchors.grids import anchor_settings, anchors_per_cell

    print_cost(
        build_m2det(
            backbone=backbone,
            num_classes=num_classes,
            image_size=image_size,
            variant=variant,
            tums=tums,
            scales=scales,
            channels=channels,
            sfam=sfam,
            head=None if head == "auto" else head,
            anchors_per_cell=anchors_per_cell(anchor_settings(image_size, scales, anchors=anchors)),
        )
    )


if __name__ == "__main__":
    from a00_utils_and_constants import run_script  # the command line only: what a network is does not depend on a00

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's alarm where there is no GPU
    run_script(main)
