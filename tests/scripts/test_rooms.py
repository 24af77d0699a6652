"""Who may import what, and that importing does nothing: the rooms of the project stay apart."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.project import ROOT

OWN = {"models", "oid", "training"}
OPTIONAL = {
    "letterbox.py": {"cv2"},
    "convert.py": {"torch"},
    "export.py": {"onnx", "tf2onnx"},
    "legacy_checkpoint.py": {"h5py"},
}
FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
NETWORK_FILES = sorted((ROOT / "models").glob("*.py"))
HOST_FILES = sorted((ROOT / "oid").rglob("*.py"))
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for pattern in ("*.py", "models/*.py", "oid/**/*.py", "training/*.py", "demo/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
    if not path.stem.endswith("_worker")  # they run in environments of their own
)

# Imports every module named, and tells what was opened for writing or made on the way; compiled code does not count.
WATCH = """
import importlib, json, os, sys
written = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        mode, flags = arguments[1], arguments[2]
        writes = any(c in mode for c in "wxa+") if mode else (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes:
            written.append(os.path.abspath(arguments[0]))
    if event in ("os.mkdir", "os.rename", "os.remove", "shutil.rmtree"):
        written.append(os.path.abspath(arguments[0]))
folders, modules = json.loads(sys.argv[1]), json.loads(sys.argv[2])
sys.argv[1:] = []
sys.path[:0] = folders[:1]
sys.addaudithook(watch)
for module in modules:
    importlib.import_module(module)
mine = [path for path in written if path.startswith(tuple(folders))]
found = [path for path in mine if not {".venv", "__pycache__"} & set(path.split(os.sep))]
print(json.dumps(found), file=sys.stderr)
"""


def imported(path: Path, *, when_run: bool = True) -> set[str]:
    """Top-level names of the packages that a file imports anywhere, in functions too.

    Not `when_run`: without what it imports where it is run as a program.
    """
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not when_run:
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__ == '__main__':")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is relative"
            names.add(node.module.split(".")[0])
    return names


def test_there_is_something_to_look_at():
    assert len(NETWORK_FILES) > 5
    assert len(HOST_FILES) > 5
    assert {"a00_utils_and_constants", "a03_train_m2det", "models", "models.m2det", "training.trainer"} <= set(MODULES)


@pytest.mark.parametrize("path", NETWORK_FILES, ids=lambda path: path.name)
def test_the_network_needs_keras_and_numpy_only(path):
    """Pictures get their size on the host, by OpenCV; converters read files by what wrote them. Only a
    command line knows a00."""
    allowed = {"keras", "numpy", "models", "oid"} | OPTIONAL.get(path.name, set())
    assert imported(path, when_run=False) - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize("path", HOST_FILES, ids=lambda path: path.name)
def test_the_host_side_knows_no_framework_and_no_constants(path):
    assert not imported(path) & (FRAMEWORKS | {"a00_utils_and_constants", "models", "training"})


@pytest.mark.parametrize("path", sorted((ROOT / "training").glob("*.py")), ids=lambda path: path.name)
def test_training_knows_keras_but_no_backend(path):
    """Devices, and sums over them, are each backend's own: Keras has no word for some of it."""
    allowed = FRAMEWORKS if path.name == "devices.py" else {"keras"}
    assert not imported(path) & (FRAMEWORKS - allowed | {"a00_utils_and_constants"})


@pytest.mark.parametrize("path", sorted(ROOT.glob("a0*.py")), ids=lambda path: path.name)
def test_a_script_imports_no_other_script(path):
    scripts = {other.stem for other in ROOT.glob("a0*.py")} - {"a00_utils_and_constants"}
    assert not imported(path) & scripts


def import_watched(modules: list[str], folders: list[Path], **variables: object) -> subprocess.CompletedProcess:
    """Imports modules of the first folder; the last line of stderr lists what was written below any of the folders."""
    return subprocess.run(
        [sys.executable, "-B", "-c", WATCH, json.dumps([*map(str, folders)]), json.dumps(modules)],
        cwd=folders[-1],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_importing_writes_and_prints_nothing(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    done = import_watched(
        MODULES,
        [ROOT, tmp_path / "data", tmp_path / "output", here],
        OID_PATH=tmp_path / "data",
        OID_OUTPUT=tmp_path / "output",
        KERAS_HOME=tmp_path / "keras",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_the_watch_sees_a_folder_being_made(tmp_path):
    """The test above can fail."""
    code = "import os\nprint('hello')\nos.mkdir('new')\nopen('file', 'w')\n"
    (tmp_path / "noisy_module.py").write_text(code, encoding="utf-8")
    done = import_watched(["noisy_module"], [tmp_path])
    assert done.stdout == "hello\n"
    assert json.loads(done.stderr.splitlines()[-1]) == [str(tmp_path / "new"), str(tmp_path / "file")]
