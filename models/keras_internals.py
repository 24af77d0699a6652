"""The members of Keras and tf2onnx that are used although no release has to keep them: here and nowhere else.

The tests of this module fail where a release changes one of them.
"""

import contextlib
from collections.abc import Callable, Iterator

import keras


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers of a model and of the models inside it, but not these models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer


class Call:
    """One call of an operation (a layer, a model or a function of `keras.ops`) in a functional model.

    Attributes:
        operation: what is called.
        outputs: its symbolic tensors, in a flat list.
    """

    def __init__(self, node):
        self._node = node
        self.operation = node.operation
        self.outputs = node.outputs

    def arguments(self, values: dict[int, object]) -> tuple[tuple, dict]:
        """Returns positional and keyword arguments, in which `values[id(x)]` replaces each symbolic tensor x."""
        return self._node.arguments.fill_in(values)


def calls_of(model: keras.Model) -> Iterator[Call]:
    """Yields the calls of a functional model, in an order in which they can run."""
    for depth in sorted(model._nodes_by_depth, reverse=True):
        yield from (Call(node) for node in model._nodes_by_depth[depth] if not node.is_input)


def clip_sum(optimizer: keras.optimizers.Optimizer, add_up: Callable[[list], list]) -> None:
    """Makes an optimizer clip the sum of all devices' gradients; on TensorFlow it would clip each device's own.

    Args:
        optimizer: changed in place.
        add_up: sums gradients over the devices; the optimizer itself does not sum any more.
    """
    clip, reduce = optimizer._clip_gradients, optimizer._all_reduce_sum_gradients
    if not (callable(clip) and callable(reduce)):
        raise TypeError(f"{optimizer} does not clip and reduce as Keras 3 does")
    optimizer._clip_gradients = lambda gradients: clip(add_up(list(gradients)))
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables


class KeepsEveryBatch:
    """A mixin for models: `fit` on several TensorFlow devices takes no batch before its first step.

    It would take some to build the model, and these were lost for the training; the model must be built already.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None) -> None:
        pass


@contextlib.contextmanager
def onnx_without_copies() -> Iterator[None]:
    """Inside the block tf2onnx optimises a graph in place.

    It copies the graph with its weights before each optimisation otherwise: 9 GB for 36 million weights.
    """
    from tf2onnx import optimizer

    optimise = optimizer.optimize_graph
    optimizer.optimize_graph = lambda graph, catch_errors=True, optimizers=None: optimise(graph, False, optimizers)
    try:
        yield
    finally:
        optimizer.optimize_graph = optimise
