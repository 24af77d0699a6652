"""The same weights give the same outputs on every Keras backend, and losses, a step of training and the gradients
around a coarse ignored region work there too.

JAX is in requirements.txt for this; PyTorch is optional.
"""

import importlib.util
import json

import numpy as np
import pytest

from tests.helpers.detection_cases import check_coarse
from tests.helpers.project import run_on_backend, run_script
from tests.helpers.tiny_network import losses_of_fixed_outputs

SCRIPT = """
import json
import keras, numpy as np
from tests.helpers.detection_cases import ANCHORS, CELLS, COARSE, NUM_CLASSES, REGION_CLASSES
from tests.helpers.tiny_network import losses_of_fixed_outputs, pictures, targets, tiny_settings, two_pictures
from models.detector import inference_model, network_from_settings
from models.losses import detection_losses
from training.schedule import Schedule, make_optimizer
from training.trainer import DetectionTrainer
settings = tiny_settings(channels=16)
network = network_from_settings(settings)
trainer = DetectionTrainer(network, settings["anchors"])
optimizer = make_optimizer(Schedule(peak=0.01, steps=10), ema=True, weight_decay=0.01)
trainer.compile(optimizer=optimizer, jit_compile="auto" if keras.backend.backend() == "jax" else False)
optimizer.build(network.trainable_variables)
before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in network.trainable_weights]
loss = trainer.train_on_batch(pictures(2), two_pictures())
after = [keras.ops.convert_to_numpy(weight) for weight in network.trainable_weights]
offsets = keras.ops.zeros((1, len(ANCHORS), 4))
anchors, cells = map(keras.ops.convert_to_tensor, (ANCHORS, CELLS))
def class_loss(logits, truth):
    outputs = {"classes": logits, "boxes": offsets}
    return detection_losses(outputs, truth, anchors, cells, region_classes=REGION_CLASSES)[0]
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
gradients = [gradient(targets([[]], rows)) for rows in ([COARSE], None)]
top = inference_model(network, settings).predict_on_batch(pictures(2))
print(json.dumps({
    "backend": keras.backend.backend(),
    "losses": losses_of_fixed_outputs(),
    "training": [float(np.ravel(loss)[0])],
    "moved": float(np.mean([np.any(a != b) for a, b in zip(after, before)])),
    "gradients": [keras.ops.convert_to_numpy(value)[0].tolist() for value in gradients],
    "shapes": {name: list(value.shape) for name, value in top.items()},
}))
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_other_backends_give_the_same_losses(backend):
    result = json.loads(run_on_backend(backend, SCRIPT))
    assert result["backend"] == backend
    np.testing.assert_allclose(result["losses"], losses_of_fixed_outputs(), rtol=1e-4)
    assert np.isfinite(result["training"]).all()
    assert result["moved"] > 0.8
    check_coarse(*map(np.array, result["gradients"]))
    assert result["shapes"] == {"boxes": [2, 168, 4], "scores": [2, 168], "labels": [2, 168]}


def backends() -> list[str]:
    return [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]


@pytest.mark.parametrize(
    ("variant", "head"), [pytest.param("paper", "shared", marks=pytest.mark.slow), ("released", "conv")]
)
def test_every_backend_gives_the_same_outputs(variant, head):
    """A small network with six scales; the command ends with 1 where they differ."""
    assert "jax" in backends()
    arguments = "--backbone residual_small --image_size 272 --tums 2 --channels 16 --num_classes 3"
    done = run_script(
        "benchmarks/compare_backends.py",
        *("--backends", *backends(), "--variant", variant, "--head", head),
        *arguments.split(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "jax against tensorflow: " in done.stdout


@pytest.mark.parametrize(("shift", "code"), [(1e-5, None), (1e-3, 1)])
def test_the_comparison_fails_where_outputs_differ(shift, code, monkeypatch, capsys):
    from benchmarks import compare_backends

    def outputs_of(backend, settings, seed):
        return {"boxes": np.full((1, 2, 4), 2.0) + 2.0 * shift * (backend == "jax")}

    monkeypatch.setattr(compare_backends, "outputs_of", outputs_of)
    arguments = {"backends": ("tensorflow", "jax"), "tolerance": 1e-4}
    if code is None:
        compare_backends.main(**arguments)
    else:
        with pytest.raises(SystemExit) as stop:
            compare_backends.main(**arguments)
        assert stop.value.code == code
        assert "the backends differ by 1.0e-03" in capsys.readouterr().out
