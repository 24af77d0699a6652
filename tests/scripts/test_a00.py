"""Proves a00: the environment and `~` in it are obeyed, and every path is listed, with a remedy where it is missing."""

import os
import subprocess
import sys

from tests.helpers.project import ROOT, run_script


def test_running_a00_names_every_path(tmp_path):
    annotations = tmp_path / "data" / "annotations"
    annotations.mkdir(parents=True)
    (annotations / "class-descriptions-boxable.csv").write_text("x,X\n")
    (tmp_path / "data" / "train").mkdir()
    environment = {"OID_PATH": str(tmp_path / "data"), "OID_OUTPUT": str(tmp_path / "results")}
    done = run_script("a00_utils_and_constants.py", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    found = [line.split()[1] for line in lines if line.startswith("found")]
    missing = [line.split()[1] for line in lines if line.startswith("MISSING")]
    assert found == [str(annotations / "class-descriptions-boxable.csv"), str(tmp_path / "data" / "train")]
    assert str(annotations / "train-annotations-bbox.csv") in missing
    assert str(tmp_path / "results" / "level_1_files") in missing
    assert str(tmp_path / "results" / "train_image_params.csv") in missing
    assert sum(line.startswith("           ") for line in lines) == len(missing)  # each with a remedy
    assert "run a01_create_training_files.py" in done.stdout
    assert not (tmp_path / "results").exists()


def constants(**environment: str) -> list[str]:
    """DATASET_PATH and OUTPUT_PATH as a new Python process sees them."""
    variables = {name: value for name, value in os.environ.items() if name not in ("OID_PATH", "OID_OUTPUT")}
    code = "import a00_utils_and_constants as a; print(a.DATASET_PATH, a.OUTPUT_PATH, sep='\\n')"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables | environment, check=True)
    return done.stdout.splitlines()


def test_the_environment_says_where_the_data_lie():
    home = os.path.expanduser("~")
    assert constants(OID_PATH="/a/b/") == ["/a/b/", "/a/b_output"]
    assert constants(OID_PATH="~/b") == [f"{home}/b", f"{home}/b_output"]
    assert constants(OID_PATH="/a/b", OID_OUTPUT="~/c") == ["/a/b", f"{home}/c"]
    default = constants()
    assert default[1] == default[0] + "_output"
    assert constants(OID_PATH="", OID_OUTPUT="") == default
