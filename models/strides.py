"""A built network with some strides taken out: the same weights, a finer last map.

Where a layer has lost its stride, every second row and column of its output is what it gave before (away from the
border); what follows sees a map of twice the side.
"""

import re
from collections import defaultdict

import keras
from keras import layers


def without_strides(body: keras.Model, names: tuple[str, ...]) -> keras.Model:
    """A copy of `body`, weights included, in which the layers `names` have a stride of 1.

    - A convolution or pooling gets a stride of 1 and "same" padding.
    - A padding layer (Keras pads by hand before some strides) pads nothing any more.
    - A `Sequential` inside the network is dissolved into its layers, so that each can be named here and as a tap.
    - Names that Keras counts up from model to model in one process ("activation_57") become those that a new process
      would give, so that tables and users can refer to them.

    Args:
        body: a functional model; its own layers are left as they are.
        names: of layers, after the renaming above.

    Raises:
        ValueError: a layer of that name does not exist.
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
    """The automatic names of `body` ("activation_57", ...), and what each becomes: counted from "activation" on."""
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
