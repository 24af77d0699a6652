"""Outputs, losses, a training step and label rules are the same on every Keras backend."""

import json

import numpy as np
import pytest

from tests.helpers.detection_cases import check_coarse
from tests.helpers.project import run_on_backend
from tests.helpers.tiny_network import losses_of_fixed_outputs, outputs_of_random_network

SCRIPT = """
import json
import keras, numpy as np
from tests.helpers.detection_cases import ANCHORS, COARSE, GRIDS, NUM_CLASSES, REGION_CLASSES
from tests.helpers.tiny_network import losses_of_fixed_outputs, pictures, targets, tiny_settings, two_pictures
from models.decoding import TopBoxes
from models.detector import build_network
from models.losses import DetectionLoss
from training.trainer import DetectionTrainer
settings = tiny_settings(channels=16)
network = build_network(settings)
trainer = DetectionTrainer(network, settings.anchors)
optimizer = keras.optimizers.AdamW(0.01)
trainer.compile(optimizer=optimizer, jit_compile="auto" if keras.backend.backend() == "jax" else False)
before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in network.trainable_weights]
loss = trainer.train_on_batch(pictures(2), two_pictures())
after = [keras.ops.convert_to_numpy(weight) for weight in network.trainable_weights]
offsets = keras.ops.zeros((1, len(ANCHORS), 4))
def class_loss(logits, truth):
    outputs = {"classes": logits, "boxes": offsets}
    return DetectionLoss(GRIDS, region_classes=REGION_CLASSES)(outputs, truth)[0]
def gradient(truth):
    logits = np.full((1, len(ANCHORS), NUM_CLASSES), -1, "float32")
    truth = {name: keras.ops.convert_to_tensor(value) for name, value in truth.items()}
    if keras.backend.backend() == "jax":
        import jax
        return jax.jit(jax.grad(class_loss))(logits, truth)
    import torch
    watched = torch.tensor(logits, requires_grad=True)
    class_loss(watched, truth).backward()
    return watched.grad
top = TopBoxes(settings.anchors)(network(pictures(2)))
gradients = [gradient(targets([[]], rows)) for rows in ([COARSE], None)]
print(json.dumps({
    "backend": keras.backend.backend(),
    "losses": losses_of_fixed_outputs(),
    "training": [float(np.ravel(loss)[0])],
    "moved": float(np.mean([np.any(a != b) for a, b in zip(after, before)])),
    "shapes": {name: list(value.shape) for name, value in top.items()},
    "gradients": [keras.ops.convert_to_numpy(value)[0].tolist() for value in gradients],
}))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_other_backends_give_the_same_losses(backend):
    result = json.loads(run_on_backend(backend, SCRIPT))
    assert result["backend"] == backend
    np.testing.assert_allclose(result["losses"], losses_of_fixed_outputs(), rtol=1e-4)
    assert np.isfinite(result["training"]).all()
    assert result["moved"] > 0.8
    assert result["shapes"] == {"boxes": [2, 168, 4], "scores": [2, 168], "labels": [2, 168]}
    check_coarse(*map(np.array, result["gradients"]))


@pytest.mark.parametrize("backend", ["jax", pytest.param("torch", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("variant", "head"), [pytest.param("paper", "shared", marks=pytest.mark.slow), ("released", "conv")]
)
def test_the_same_weights_give_the_same_outputs(backend, variant, head):
    program = f"""
import json
from tests.helpers.tiny_network import outputs_of_random_network
outputs = outputs_of_random_network({variant!r}, {head!r})
print(json.dumps({{name: value.tolist() for name, value in outputs.items()}}))
"""
    found = json.loads(run_on_backend(backend, program))
    for name, expected in outputs_of_random_network(variant, head).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())
