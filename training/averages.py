"""The moving average of the weights in place of the weights, for as long as something looks at it."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside the block the model's weights are their moving average; afterwards they are bit for bit what they were.

    Where the optimizer keeps no average they stay what they are.
    """
    if not model.optimizer.use_ema:
        yield
        return
    variables = [*model.trainable_variables, *model.optimizer.variables]
    # copies, because Keras swaps by adding and subtracting, which rounds
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
