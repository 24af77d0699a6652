"""What several test files need: `from conftest import run_script, shared`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


def pytest_configure(config):
    """The quick tests draw the same cases every time, so that nobody's change fails by another's; `make test-all` draws
    new ones."""
    hypothesis.settings.register_profile("the same", derandomize=True)
    if config.getoption("markexpr"):
        hypothesis.settings.load_profile("the same")


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> tuple[Path, Path]:
    """DATASET and OUTPUT of a few drawn pictures, after a01; to be read only."""
    from small_photographs import make_photographs

    return make_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="session")
def tiny_backbone():
    """Makes `--backbone tiny` known: three convolutions, because building the graph is most of a tiny training."""
    import dataclasses

    import keras

    from models.backbones import BACKBONES
    from models.blocks import conv_bn_relu

    def build(*, input_tensor, weights=None):
        x = conv_bn_relu(input_tensor, 8, 3, strides=4, name="first")
        x = conv_bn_relu(x, 16, 3, strides=2, name="shallow")
        return keras.Model(input_tensor, conv_bn_relu(x, 16, 3, strides=2, name="deep"), name="tiny")

    tiny = dataclasses.replace(
        BACKBONES["residual_small"], build=build, shallow="shallow_relu", deep="deep_relu", preprocessing="tf"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", tiny)
        yield


@pytest.fixture(scope="session")
def trained(photographs, tiny_backbone):
    """A run of a03 on `photographs` with the flags of `small_photographs.TINY`; to be read only."""
    import contextlib
    import io
    from types import SimpleNamespace

    from small_photographs import TINY

    import a03_train_m2det

    data_set, output = photographs
    printed = io.StringIO()
    flags = {"dataset_path": str(data_set), "output_path": str(output), "run": "trained", **TINY}
    with contextlib.redirect_stdout(printed):
        a03_train_m2det.main(**flags)
    folder = output / "weights" / "trained"
    return SimpleNamespace(data_set=data_set, output=output, folder=folder, flags=flags, printed=printed.getvalue())


def shared(*parts: str) -> Path:
    """The path `../shared/<parts>` beside the project; skips the test where it is absent."""
    path = ROOT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs reference material that is not part of the repository: ../{'/'.join(('shared', *parts))}")
    return path


def run_script(
    script: str, *arguments: object, timeout: float = 300, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Runs a script of the project root as a user would, in that folder.

    Args:
        script: for example "a01_create_training_files.py", or a module that `python -m` runs: "models.cost".
        *arguments: the command line; everything is turned to text.
        timeout: seconds.
        environment: variables set in addition; OID_PATH and OID_OUTPUT of the caller are left out.

    Returns:
        the finished process with `returncode`, `stdout` and `stderr` (text).
    """
    # importing JAX, which TensorFlow does where it is installed, sets the last one in the process of the tests
    not_a_users = ("OID_PATH", "OID_OUTPUT", "TF_CPP_MIN_LOG_LEVEL")
    variables = {name: value for name, value in os.environ.items() if name not in not_a_users}
    program = [str(ROOT / script)] if script.endswith(".py") else ["-m", script]
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        cwd=ROOT,
        env=variables | (environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_on_backend(backend: str, program: str) -> str:
    """The last line that a Python program prints on another Keras backend; skips the test where it is not installed.

    The program can import what the tests can.
    """
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: it is optional, `pip install {backend}` adds this test")
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
