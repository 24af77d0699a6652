"""One network for several sizes of its input."""

import dataclasses
from collections.abc import Iterator

import keras

from models.detector import build_network
from models.run_settings import RunSettings


def at_size(network: keras.Model, settings: RunSettings, image_size: int) -> keras.Model:
    """A network for another input size that shares all variables with `network`.

    The maps, and the layers that fit them to each other, depend on the size. So a network of that size is built, and
    all its layers with variables are replaced by those of `network`. Training one trains the other.

    Args:
        network: built by `models.detector.build_network` from `settings`.
        settings: of the run that `network` belongs to.
        image_size: side of the new network's square input in pixels.

    Returns:
        A model from raw RGB pixels `(batch, image_size, image_size, 3)` to the same dict as `network`. Its anchors are
        those of `oid.anchors.grids` at that size.

    Raises:
        InputError: the image is too small for the network.
        ValueError: `network` was not built from `settings`.
    """
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(network.dtype_policy)  # layers without variables are the new network's own
    try:
        resized = dataclasses.replace(settings.network, image_size=image_size)
        fresh = build_network(dataclasses.replace(settings, network=resized))
        shared = dict(_partners(fresh, network))
        return _with_layers(fresh, shared)
    finally:
        keras.config.set_dtype_policy(policy)


def _partners(fresh: keras.Model, network: keras.Model) -> Iterator[tuple[int, keras.layers.Layer]]:
    """Yields the identity of each layer with variables in `fresh`, and the layer of `network` that replaces it.

    Layers are paired by name. Where Keras has counted names up from model to model ("layer_normalization_9"), they are
    paired by order.
    """
    layers, others = ([layer for layer in model.layers if layer.variables] for model in (fresh, network))
    if len(others) != len(layers):
        raise ValueError(f"{network.name} has {len(others)} layers with variables, its settings give {len(layers)}")
    by_name = {layer.name: layer for layer in others}
    if all(layer.name in by_name for layer in layers):
        others = [by_name[layer.name] for layer in layers]
    for layer, other in zip(layers, others, strict=True):
        if isinstance(layer, keras.Model):
            yield from _partners(layer, other)
        elif [v.shape for v in layer.variables] == [v.shape for v in other.variables]:
            yield id(layer), other
        else:
            raise ValueError(f"{other.name} of {network.name} has other shapes than its settings give")


def _with_layers(model: keras.Model, shared: dict[int, keras.layers.Layer]) -> keras.Model:
    """A copy of a functional model, and of the models in it, with other layers for those in `shared`."""

    def copy(operation):
        if isinstance(operation, keras.Model):
            return _with_layers(operation, shared)
        return shared.get(id(operation)) or type(operation).from_config(operation.get_config())

    return keras.models.clone_model(model, clone_function=copy)
