"""Makes a trained network faster for inference, with equal outputs.

Batch norm, y = gamma (x - mean) / sqrt(variance + epsilon) + beta, is folded into the convolution before it, if nothing
else reads that convolution's result: a scaled kernel and a bias do the same (Jacob et al. 2018, arXiv 1712.05877,
section 3.2). A convolution that several batch norms follow, as in the shared head, becomes one for each.

Convolutions that read the same map with kernels of the same size are joined, as the two heads of a scale, or those of
FFMv2 in the paper. The copy can compute in bfloat16.
"""

import dataclasses
from collections import Counter

import keras
import numpy as np
from keras import layers

from models.keras_internals import calls_of
from models.preprocessing import Preprocessing

FULL_PRECISION = (Preprocessing,)  # the mean of the pixels has more digits than bfloat16


class SplitChannels(layers.Layer):
    """Splits the channels of a map `(batch, height, width, channels)` into a list of maps, and drops the last ones.

    Args:
        sizes: channels of each map.
    """

    def __init__(self, sizes: list[int], **kwargs):
        super().__init__(**kwargs)
        self.sizes = list(sizes)

    def call(self, x):
        ends = np.cumsum(self.sizes).tolist()
        return [x[..., end - size : end] for end, size in zip(ends, self.sizes, strict=True)]

    def compute_output_shape(self, input_shape):
        return [(*input_shape[:-1], size) for size in self.sizes]


def folded(
    network: keras.Model,
    *,
    dtype: str | None = None,
    keep_output_dtypes: bool = True,
    join: bool = True,
    multiple: int = 16,
) -> keras.Model:
    """Makes a copy of a network for inference; models inside it are dissolved.

    Args:
        network: a functional model whose layers can be made again from their configuration, as those of
            `models.m2det.build_m2det`.
        dtype: precision of the copy, "bfloat16"; None = the network's own.
        keep_output_dtypes: casts outputs to the precision that they have in `network`.
        join: whether convolutions that read the same map become one.
        multiple: joined convolutions get channels of zeros up to a multiple of this. On CPUs, kernels whose channels do
            not fill whole registers are slow to reorder, above all in bfloat16.

    Returns:
        A functional model with the same inputs and outputs; it shares no weights with `network`.
    """
    inputs = keras.tree.map_structure(_Value, network.input)
    calls = []
    outputs = _trace(network, inputs, calls)
    _mark_batch_norms(calls, outputs)
    copy = _Copy(dtype, multiple)
    for value in keras.tree.flatten(inputs):
        value.tensor = keras.Input(batch_shape=value.spec.shape, dtype=value.spec.dtype, name=value.spec.name)
    for group in _groups(calls) if join else [[call] for call in calls]:
        copy.run(group)
    tensors = keras.tree.map_structure(copy.output if keep_output_dtypes else lambda value: value.tensor, outputs)
    return keras.Model(keras.tree.map_structure(lambda value: value.tensor, inputs), tensors, name=network.name)


class _Value:
    """A tensor: `spec` in the network, `tensor` in the copy. `call` computes it; None for an input."""

    def __init__(self, spec, call=None):
        self.spec = spec
        self.call = call
        self.tensor = None


@dataclasses.dataclass(eq=False)
class _Call:
    """One call of a layer, with `_Value`s as arguments.

    `norm` is the batch norm that is folded into this convolution; `gone` marks a batch norm that was folded.
    """

    layer: object
    args: tuple
    kwargs: dict
    outputs: list = dataclasses.field(default_factory=list)
    norm: layers.BatchNormalization | None = None
    gone: bool = False

    @property
    def inputs(self) -> list[_Value]:
        return [x for x in keras.tree.flatten((self.args, self.kwargs)) if isinstance(x, _Value)]


def _trace(model: keras.Model, inputs, calls: list[_Call]):
    """Appends the model's calls, in an order in which they can run, and returns its outputs as `_Value`s."""
    values = {id(x): value for x, value in zip(model.inputs, keras.tree.flatten(inputs), strict=True)}
    for node in calls_of(model):
        args, kwargs = node.arguments(values)
        if isinstance(node.operation, keras.Model):
            outputs = keras.tree.flatten(_trace(node.operation, args[0], calls))
        else:
            call = _Call(node.operation, args, kwargs)
            call.outputs = outputs = [_Value(x, call) for x in node.outputs]
            calls.append(call)
        values.update({id(x): value for x, value in zip(node.outputs, outputs, strict=True)})
    return keras.tree.map_structure(lambda x: values[id(x)], model.output)


def _mark_batch_norms(calls: list[_Call], outputs) -> None:
    """Finds each batch norm that follows a convolution and alone reads its result."""
    readers = Counter(x for call in calls for x in call.inputs)
    readers.update(keras.tree.flatten(outputs))
    for call in calls:
        if isinstance(call.layer, layers.BatchNormalization) and len(call.inputs) == 1:
            (value,) = call.inputs
            if value.call and readers[value] == 1 and _can_fold(value.call.layer, call.layer):
                value.call.norm, call.gone = call.layer, True


def _can_fold(layer, norm: layers.BatchNormalization) -> bool:
    """Whether this is a convolution without activation whose channels are what the batch norm normalises."""
    if type(layer) not in (layers.Conv2D, layers.DepthwiseConv2D) or layer.activation is not keras.activations.linear:
        return False
    return norm.axis in ((-1, 3) if layer.data_format == "channels_last" else (1, -3))


def _groups(calls: list[_Call]) -> list[list[_Call]]:
    """The calls in their order; convolutions that can be joined are in one list."""
    groups = {}
    for call in calls:
        key, layer = call, call.layer
        if type(layer) is layers.Conv2D and layer.groups == 1 and layer.data_format == "channels_last":
            window = (layer.kernel_size, layer.strides, layer.padding, layer.dilation_rate)
            key = (call.inputs[0], layer.activation, layer.dtype_policy.name, window)
        groups.setdefault(key, []).append(call)
    return list(groups.values())


class _Copy:
    """Makes the layers of the copy and calls them; for the arguments see `folded`."""

    def __init__(self, dtype: str | None, multiple: int):
        self.dtype = dtype
        self.multiple = multiple
        self.same = {}  # copies of layers that change only in precision, by the original: a layer may be shared
        self.names = Counter()

    def run(self, group: list[_Call]) -> None:
        """Calls the layer that replaces one call or a group of convolutions."""
        call = group[0]
        if call.gone:
            results = [call.inputs[0].tensor]
        else:
            results = self.convolve(group) if call.norm or len(group) > 1 else self.repeat(call)
        for value, tensor in zip([x for member in group for x in member.outputs], results, strict=True):
            value.tensor = tensor

    def convolve(self, group: list[_Call]) -> list:
        """Calls one convolution in place of several, with their batch norms folded into it, and splits its channels."""
        layer, sizes = group[0].layer, [call.outputs[0].spec.shape[-1] for call in group]
        kernels, biases = zip(*(_kernel_and_bias(call) for call in group), strict=True)
        kernel, bias = np.concatenate(kernels, axis=-1), np.concatenate(biases)
        if len(group) > 1:
            more = -sum(sizes) % self.multiple
            kernel, bias = np.pad(kernel, [(0, 0)] * 3 + [(0, more)]), np.pad(bias, (0, more))
        config = self.config(layer) | {"use_bias": True}
        if "filters" in config:
            config["filters"] = kernel.shape[-1]
        prefix = "depthwise" if "depthwise_initializer" in config else "kernel"
        config |= {f"{prefix}_initializer": "zeros", f"{prefix}_regularizer": None}
        copy = type(layer).from_config(config)
        x = copy(group[0].inputs[0].tensor)
        copy.set_weights([kernel, bias])
        if len(group) == 1:
            return [x]
        return SplitChannels(sizes, name=self.name(f"{layer.name}_split"), dtype=self.precision(layer))(x)

    def repeat(self, call: _Call) -> list:
        """Calls a copy of any other layer, the same one for each call of that layer."""
        args, kwargs = keras.tree.map_structure(
            lambda x: x.tensor if isinstance(x, _Value) else x, (call.args, call.kwargs)
        )
        if not isinstance(call.layer, layers.Layer):  # a function of keras.ops
            return keras.tree.flatten(call.layer(*args, **kwargs))
        copy = self.same.get(call.layer)
        if copy:
            return keras.tree.flatten(copy(*args, **kwargs))
        copy = self.same[call.layer] = type(call.layer).from_config(self.config(call.layer))
        results = keras.tree.flatten(copy(*args, **kwargs))  # makes its variables
        copy.set_weights(call.layer.get_weights())
        return results

    def config(self, layer: layers.Layer) -> dict[str, object]:
        """What makes a layer like `layer` in the precision of the copy."""
        return layer.get_config() | {"name": self.name(layer.name), "dtype": self.precision(layer)}

    def precision(self, layer):
        """The policy of a layer's copy."""
        return layer.dtype_policy if self.dtype is None or isinstance(layer, FULL_PRECISION) else self.dtype

    def name(self, name: str) -> str:
        """A name that no other layer of the copy has."""
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}_{self.names[name]}"

    def output(self, value: _Value):
        """An output in the precision that it had."""
        if value.tensor.dtype == value.spec.dtype:
            return value.tensor
        name = self.name(f"{value.call.layer.name}_{value.spec.dtype}")
        return layers.Activation("linear", dtype=value.spec.dtype, name=name)(value.tensor)


def _kernel_and_bias(call: _Call) -> tuple[np.ndarray, np.ndarray]:
    """The weights of a convolution after folding, float64."""
    layer, norm = call.layer, call.norm
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    kernel, *bias = (np.asarray(weight, "float64") for weight in layer.get_weights())
    channels = kernel.shape[2] * kernel.shape[3] if depthwise else kernel.shape[3]
    bias = bias[0] if bias else np.zeros(channels)
    if norm:
        mean, variance = _array(norm.moving_mean), _array(norm.moving_variance)
        scale = (_array(norm.gamma) if norm.scale else 1.0) / np.sqrt(variance + norm.epsilon)
        bias = (bias - mean) * scale + (_array(norm.beta) if norm.center else 0.0)
        kernel = kernel * (scale.reshape(kernel.shape[2:]) if depthwise else scale)
    return kernel, bias


def _array(weight) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(weight), "float64")
