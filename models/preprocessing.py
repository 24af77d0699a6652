"""Turns raw pixels into the input that the weights of a backbone were trained on."""

import keras
from keras import layers

CAFFE_MEAN_BGR = (103.939, 116.779, 123.68)
SSD_MEAN_BGR = (104.0, 117.0, 123.0)
TORCH_MEAN_RGB = (0.485, 0.456, 0.406)
TORCH_STD_RGB = (0.229, 0.224, 0.225)

PREPROCESSING = {
    "caffe": "BGR minus ImageNet's mean (103.939, 116.779, 123.68)",
    "ssd": "BGR minus (104, 117, 123), as SSD and the released M2Det",
    "tf": "-1 to 1: divided by 127.5, minus 1",
    "tf128": "divided by 128, minus 1: EfficientNetV2 S and M",
    "torch": "0 to 1, then ImageNet's mean and standard deviation",
    "none": "as they are, 0 to 255",
}


@keras.saving.register_keras_serializable(package="oid")
class Preprocessing(layers.Layer):
    """Turns raw RGB pixels, 0 to 255, into the input that the pretrained weights were trained on.

    Args:
        mode: a key of `PREPROCESSING`.
    """

    def __init__(self, mode: str, **kwargs):
        super().__init__(**kwargs)
        if mode not in PREPROCESSING:
            raise ValueError(f"unknown preprocessing {mode!r}")
        self.mode = mode

    def call(self, image):
        ops = keras.ops
        x = ops.cast(image, self.compute_dtype)
        if self.mode in ("caffe", "ssd"):
            mean = CAFFE_MEAN_BGR if self.mode == "caffe" else SSD_MEAN_BGR
            return ops.flip(x, axis=-1) - ops.convert_to_tensor(mean, dtype=x.dtype)
        if self.mode in ("tf", "tf128"):
            return x / (127.5 if self.mode == "tf" else 128.0) - 1.0
        if self.mode == "torch":
            mean = ops.convert_to_tensor(TORCH_MEAN_RGB, dtype=x.dtype)
            return (x / 255.0 - mean) / ops.convert_to_tensor(TORCH_STD_RGB, dtype=x.dtype)
        return x

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "mode": self.mode}
