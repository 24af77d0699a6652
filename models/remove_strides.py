"""Removes strides from a built network: the same weights, a finer last map.

Every second row and column of the output of a layer without its stride is the output that it had before (away from the
border). The layers after it see a map of twice the side.
"""

import re
from collections import defaultdict

import keras
from keras import layers


def remove_strides(body: keras.Model, names: tuple[str, ...]) -> keras.Model:
    """Returns a copy with the same weights, in which the layers `names` have a stride of 1.

    - A convolution or pooling gets "same" padding; a padding layer (Keras pads explicitly before some strides) pads
      nothing.
    - A `Sequential` inside the network is replaced by its layers, so that a table can name them.
    - Names that Keras counts up from model to model in one process ("activation_57") become those of a new process.

    Args:
        body: a functional model; it does not change.
        names: of layers, after the renaming.

    Raises:
        ValueError: there is no layer of that name.
    """
    renamed, pairs, left = _names_of_a_new_process(body), [], set(names)

    def copy(operation):
        if isinstance(operation, keras.Sequential):
            return keras.Sequential([copy(layer) for layer in operation.layers], name=operation.name)
        config = operation.get_config()
        config["name"] = renamed.get(operation.name, operation.name)
        if config["name"] in names:
            left.discard(config["name"])
            same = {"padding": 0} if isinstance(operation, layers.ZeroPadding2D) else {"padding": "same", "strides": 1}
            config |= same
        new = type(operation).from_config(config)
        pairs.append((operation, new))
        return new

    def call(operation, *args, **kwargs):
        if not isinstance(operation, keras.Sequential):
            return operation(*args, **kwargs)
        (x,) = args
        for layer in operation.layers:
            x = layer(x)
        return x

    result = keras.models.clone_model(body, clone_function=copy, call_function=call)
    if left:
        raise ValueError(f"{body.name} has no layer {', '.join(sorted(left))}")
    for old, new in pairs:
        if isinstance(old, layers.Layer) and old.weights:
            new.set_weights(old.get_weights())
    return result


def _names_of_a_new_process(body: keras.Model) -> dict[str, str]:
    """Maps the automatic names of `body` ("activation_57", ...) to those counted from "activation" on."""
    counted = defaultdict(list)
    for operation in body.operations:
        prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(operation).__name__).lower()
        match = re.fullmatch(rf"{prefix}(?:_(\d+))?", operation.name)
        if match:
            counted[prefix].append((int(match[1] or 0), operation.name))
    return {
        name: f"{prefix}_{index}" if index else prefix
        for prefix, found in counted.items()
        for index, (_, name) in enumerate(sorted(found))
    }
