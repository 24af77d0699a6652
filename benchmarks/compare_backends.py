"""Checks that the same weights give the same raw outputs on TensorFlow, JAX and PyTorch.

    python benchmarks/compare_backends.py
    python benchmarks/compare_backends.py --backends tensorflow jax --variant released --channels 256 --image_size 320

Each backend runs in a process of its own, on the weights and the picture that a seed makes; one that is not installed
is named and left out. Prints the largest difference of each output, relative to the largest value of the first backend,
and ends with exit code 1 when one is above --tolerance.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from oid.command_line import run_script
from oid.files import InputError

PACKAGES = {"tensorflow": "tensorflow", "jax": "jax", "torch": "torch"}
# reduced precision of matrix products is a setting of the device, not a property of the network
FULL_PRECISION = {"NVIDIA_TF32_OVERRIDE": "0", "JAX_DEFAULT_MATMUL_PRECISION": "float32", "TF_CPP_MIN_LOG_LEVEL": "3"}


def raw_outputs(settings: dict, seed: int) -> dict[str, np.ndarray]:
    """The outputs of one network for one picture, on the backend of this process."""
    from models.m2det import build_m2det
    from tests.helpers.tiny_network import randomised

    network = randomised(build_m2det(**settings), seed)
    side = settings["image_size"]
    picture = np.random.default_rng(seed).integers(0, 256, (1, side, side, 3)).astype("float32")
    return {name: np.asarray(value) for name, value in network.predict_on_batch(picture).items()}


def outputs_of(backend: str, settings: dict, seed: int) -> dict[str, np.ndarray]:
    """The same, in a process that runs on `backend`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "outputs.npz"
        done = subprocess.run(
            [sys.executable, __file__, "--worker", json.dumps(settings), str(seed), str(file)],
            env=os.environ | FULL_PRECISION | {"KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise InputError(f"{backend} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
        with np.load(file) as arrays:
            return dict(arrays)


def main(
    *,
    backends: tuple[str, ...] = ("tensorflow", "jax", "torch"),
    backbone: str = "vgg16",
    variant: Literal["paper", "released"] = "paper",
    head: Literal["conv", "shared"] = "conv",
    num_classes: int = 20,
    image_size: int = 272,
    tums: int = 3,
    scales: int = 6,
    channels: int = 32,
    anchors_per_cell: int = 6,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> None:
    """Compares every backend with the first.

    Args:
        backends: of tensorflow, jax, torch
        backbone: name of the feature extractor
        variant: the paper's network, or the one of the released code
        head: conv (published) or shared
        num_classes: class outputs per anchor
        image_size: side of the square input in pixels
        tums: number of thinned U-shape modules
        scales: maps per module
        channels: channels of each map of each module
        anchors_per_cell: anchors of each cell
        seed: of weights and picture
        tolerance: largest relative difference that passes
    """
    settings = {name: value for name, value in locals().items() if name not in ("backends", "seed", "tolerance")}
    if unknown := set(backends) - set(PACKAGES):
        raise InputError(f"--backends {', '.join(sorted(unknown))} does not exist: choose of {', '.join(PACKAGES)}")
    installed = [name for name in backends if importlib.util.find_spec(PACKAGES[name])]
    for name in backends:
        if name not in installed:
            print(f"{name} is not installed and left out: pip install {PACKAGES[name]}")
    if len(installed) < 2:
        raise InputError("fewer than two backends are installed: there is nothing to compare")
    first, *others = installed
    reference = outputs_of(first, settings, seed)
    print(f"{first}: " + ", ".join(f"{name} {value.shape}" for name, value in reference.items()))
    worst = 0.0
    for backend in others:
        outputs = outputs_of(backend, settings, seed)
        errors = {name: np.abs(outputs[name] - a).max() / np.abs(a).max() for name, a in reference.items()}
        worst = max(worst, *errors.values())
        print(f"{backend} against {first}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    if not worst <= tolerance:
        print(f"the backends differ by {worst:.1e}, more than {tolerance:.0e}")
        sys.exit(1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        np.savez(sys.argv[4], **raw_outputs(json.loads(sys.argv[2]), int(sys.argv[3])))
    else:
        run_script(main)
