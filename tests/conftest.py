"""What several test files need: `from conftest import run_script, shared`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> tuple[Path, Path]:
    """DATASET and OUTPUT of a few drawn pictures, after a01; to be read only."""
    from small_photographs import make_photographs

    return make_photographs(tmp_path_factory.mktemp("photographs"))


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
        script: for example "a01_create_training_files.py".
        *arguments: the command line; everything is turned to text.
        timeout: seconds.
        environment: variables set in addition; OID_PATH and OID_OUTPUT of the caller are left out.

    Returns:
        the finished process with `returncode`, `stdout` and `stderr` (text).
    """
    variables = {name: value for name, value in os.environ.items() if name not in ("OID_PATH", "OID_OUTPUT")}
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=ROOT,
        env=variables | (environment or {}),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
