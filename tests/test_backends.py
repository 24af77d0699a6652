"""The same weights give the same outputs on every Keras backend, and losses and a step of training work there too.

JAX is in requirements.txt for this; PyTorch is optional.
"""

import importlib.util
import json

import numpy as np
import pytest
from conftest import run_on_backend, run_script
from tiny_network import losses_of_fixed_outputs

SCRIPT = """
import json
import keras, numpy as np
from tiny_network import losses_of_fixed_outputs, pictures, tiny_settings, two_pictures
from models.detector import inference_model, network_from_settings
from training.schedule import Schedule, make_optimizer
from training.trainer import DetectionTrainer
settings = tiny_settings(channels=16)
network = network_from_settings(settings)
trainer = DetectionTrainer(network, settings["anchors"])
optimizer = make_optimizer(Schedule(peak=0.01, steps=10), weight_decay=0.01)
trainer.compile(optimizer=optimizer, jit_compile="auto" if keras.backend.backend() == "jax" else False)
optimizer.build(network.trainable_variables)
before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in network.trainable_weights]
loss = trainer.train_on_batch(pictures(2), two_pictures())
after = [keras.ops.convert_to_numpy(weight) for weight in network.trainable_weights]
top = inference_model(network, settings).predict_on_batch(pictures(2))
print(json.dumps({
    "backend": keras.backend.backend(),
    "losses": losses_of_fixed_outputs(),
    "training": [float(np.ravel(loss)[0])],
    "moved": float(np.mean([np.any(a != b) for a, b in zip(after, before)])),
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
    assert result["shapes"] == {"boxes": [2, 168, 4], "scores": [2, 168], "labels": [2, 168]}


def backends() -> list[str]:
    return [name for name in ("tensorflow", "jax", "torch") if importlib.util.find_spec(name)]


@pytest.mark.parametrize(("variant", "head"), [("paper", "shared"), ("released", "conv")])
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
