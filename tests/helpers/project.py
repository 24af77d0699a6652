"""The project as the tests see it: its folder, its scripts as processes, other backends, reference material."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oid.files import InputError

ROOT = Path(__file__).resolve().parent.parent.parent


def shared(*parts: str) -> Path:
    """The path `../shared/<parts>` beside the project; skips the test where it is absent."""
    path = ROOT.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"needs reference material that is not part of the repository: ../{'/'.join(('shared', *parts))}")
    return path


@contextlib.contextmanager
def refused(*parts: str) -> Iterator[None]:
    """Expects an InputError of one line whose message contains all `parts`."""
    with pytest.raises(InputError) as error:
        yield
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


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
    """Runs a Python program on another Keras backend; returns its last line. Skips the test if it is not installed."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: it is optional, `pip install {backend}` adds this test")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]
