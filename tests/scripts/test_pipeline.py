"""Proves that a user who edits the constants of a00 and runs a01 to a07 without any flag ends with a submission."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys

from tests.helpers.project import ROOT
from tests.helpers.small_photographs import make_photographs

# as an editor would change them: the name, the new value
EDITED = {
    "IMAGE_SIZE": "96",
    "TUMS, SCALES, CHANNELS": "1, 2, 16",
    "EPOCHS": "1",
    "STEPS_PER_EPOCH": "3",
    "BATCH_SIZE": "4",
    "MAX_BOXES": "50",
    "SCORE_THRESHOLD": "0.0",
}


def project_with_edited_constants(folder):
    """The scripts in a folder of their own, the packages linked (so that what is compiled stays compiled)."""
    folder.mkdir()
    for path in ROOT.glob("a0*.py"):
        shutil.copy(path, folder)
    for package in ("convert", "models", "oid", "training"):
        (folder / package).symlink_to(ROOT / package)
    a00 = folder / "a00_utils_and_constants.py"
    text = a00.read_text(encoding="utf-8")
    for name, value in EDITED.items():
        text, count = re.subn(rf"^{name} = [^#\n]*?(\s*#|$)", rf"{name} = {value}\1", text, flags=re.MULTILINE)
        assert count == 1, name
    a00.write_text(text, encoding="utf-8")
    return folder


def test_a01_to_a07_run_without_any_flag(tmp_path):
    data_set, made = make_photographs(tmp_path / "made", train=5, validation=4)
    shutil.rmtree(made)  # a01 makes it again, below
    project, output = project_with_edited_constants(tmp_path / "project"), tmp_path / "output"
    environment = os.environ | {"OID_PATH": str(data_set), "OID_OUTPUT": str(output)}
    printed = {}
    for script in sorted(path.name for path in project.glob("a0[1-7]_*.py")):
        done = subprocess.run(
            [sys.executable, script], cwd=project, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{script}: {done.stderr}"
        assert "Traceback" not in done.stderr
        printed[script[:3]] = done.stdout
    assert list(printed) == ["a01", "a02", "a03", "a04", "a05", "a06", "a07"]
    assert not any(re.search(r"^  \* ", text, flags=re.MULTILINE) for text in printed.values())  # nothing by flag
    assert not list(project.rglob("*.csv"))  # and nothing beside the scripts

    (run,) = (output / "weights").iterdir()
    network = json.loads((run / "settings.json").read_text())["network"]
    options = json.loads((run / "training.json").read_text())["options"]
    assert (network["image_size"], network["channels"], options["length"]["epochs"]) == (96, 16, 1)  # the constants

    submission = output / "predictions" / "validation" / "submission.csv"
    with open(submission, newline="") as file:
        rows = list(csv.DictReader(file))
    images = sorted(path.stem for path in (data_set / "validation").iterdir())
    assert sorted(row["ImageId"] for row in rows) == images
    labels = {token for row in rows for token in row["PredictionString"].split()[::6]}
    assert "fruit" in labels  # a05 has added the ancestors
    last = printed["a07"].splitlines()[-1]
    score = re.fullmatch(r"mAP@0\.5 = (\d\.\d{6})", last)
    assert score, last
    metrics = json.loads(submission.with_name("submission.metrics.json").read_text())
    assert f"{metrics['mAP']:.6f}" == score[1]
    assert metrics["images"] == len(images)
