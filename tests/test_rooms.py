"""Who may import whom, and that importing a module does nothing."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.project import ROOT

SCRIPTS = sorted(ROOT.glob("a0*.py"))
CONSTANTS = "a00_utils_and_constants"
FRAMEWORKS = {"keras", "tensorflow", "jax", "torch"}
OPTIONAL = {
    "convert/keras_retinanet.py": {"h5py"},
    "convert/m2det_pth.py": {"torch"},
    "models/__init__.py": {CONSTANTS},
    "models/export.py": {"onnx", "tf2onnx"},
    "models/keras_internals.py": {"tf2onnx"},
    "models/load.py": {"convert"},  # inside the function that loads a checkpoint file
}
RUN = ("convert/classes.py", "convert/cli.py", "models/cost.py", "oid/command_line.py")  # by python -m, and its help
ROOMS = (  # a room imports rooms of earlier rows only; "ground" is every module directly in oid/
    {"ground"},
    {"boxes", "images"},
    {"levels", "sources", "anchors", "predictions"},
    {"metric"},
    {"fusion"},
)
LEVEL_OF_ROOM = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}


def files(folder: str) -> list:
    """The Python files of a folder as test parameters."""
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in found]


def imported_modules(path: Path) -> set[str]:
    """Full names of the imported modules, also of imports inside functions, but not of the `__main__` block."""
    tree, names = ast.parse(path.read_text(encoding="utf-8")), set()
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if __name__ == '__main__':")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} is a relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


def room_of(module: str) -> str:
    """The room of a module of oid, such as "oid.boxes.kernels"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and (ROOT / "oid" / parts[1]).is_dir() else "ground"


# === Imports =========================================================================================================
@pytest.mark.parametrize("path", files("oid"))
def test_oid_imports_lower_rooms_only(path):
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    used = {room_of(name) for name in imported_modules(path) if name.startswith("oid.")} - {room}
    assert {other for other in used if LEVEL_OF_ROOM[other] >= LEVEL_OF_ROOM[room]} == set()
    assert not imported_packages(path) & (FRAMEWORKS | {CONSTANTS, "models", "training"})


@pytest.mark.parametrize("path", files("models") + files("convert"))
def test_networks_import_keras_numpy_and_oid_only(path):
    allowed = {"keras", "numpy", "models", "oid"} | OPTIONAL.get(path.relative_to(ROOT).as_posix(), set())
    if path.parent.name == "convert":
        allowed.add("convert")
    assert imported_packages(path) - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize("path", files("training"))
def test_only_devices_and_processes_import_a_backend(path):
    """Sharing work between devices is the one thing that Keras does not offer on every backend."""
    allowed = FRAMEWORKS if path.name in ("devices.py", "processes.py") else {"keras"}
    assert not imported_packages(path) & (FRAMEWORKS - allowed | {CONSTANTS})


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_imports_no_other_script(path):
    assert not imported_packages(path) & ({other.stem for other in SCRIPTS} - {CONSTANTS})


# === Printing and flags belong to the scripts ========================================================================
@pytest.mark.parametrize("path", [f for room in ("oid", "models", "convert") for f in files(room) if f.id not in RUN])
def test_below_the_scripts_nothing_prints_or_names_a_flag(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"]
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    flags = [node.lineno for node in texts if re.search(r"(?<![\w-])--[a-z]\w+", node.value)]
    assert (calls, flags) == ([], [])


# === Private members of libraries ====================================================================================
@pytest.mark.parametrize("path", [f for room in ("oid", "models", "convert", "training") for f in files(room)])
def test_private_members_are_used_in_keras_internals_only(path):
    public = {"_asdict", "_replace"}  # of named tuples, in spite of their names
    used = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__")
        if node.attr not in public and ast.unparse(node.value) not in ("self", "cls")
    ]
    assert not used or path.name == "keras_internals.py"


# === Importing does nothing ==========================================================================================
# Imports modules and reports which files and folders were created and which frameworks were loaded.
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
loaded = sorted({"keras", "tensorflow", "jax", "torch"} & set(sys.modules))
print(json.dumps({"written": found, "loaded": loaded}), file=sys.stderr)
"""


def modules(*patterns: str) -> list[str]:
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    assert names
    return [name for name in names if not name.endswith("_worker")]  # they run in other environments


def import_watched(names: list[str], folders: list[Path], **variables: object) -> tuple[str, dict]:
    """Imports modules of the first folder; returns what was printed, and the report about all the folders."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, json.dumps([*map(str, folders)]), json.dumps(names)],
        cwd=folders[-1],
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("names", "frameworks"),
    [
        (modules("oid/**/*.py", "a0*.py", "demo/*.py", "convert/cl*.py"), []),  # so --help is fast
        (modules("convert/*.py", "models/*.py", "training/*.py", "benchmarks/*.py"), None),
    ],
    ids=["scripts", "networks"],
)
def test_importing_writes_and_prints_nothing(names, frameworks, tmp_path):
    (tmp_path / "here").mkdir()
    folders = [ROOT, tmp_path / "data", tmp_path / "output", tmp_path / "here"]
    data, output = folders[1:3]
    printed, report = import_watched(names, folders, OID_PATH=data, OID_OUTPUT=output, KERAS_HOME=tmp_path / "keras")
    assert (printed, report["written"]) == ("", [])
    assert frameworks is None or report["loaded"] == frameworks


def test_the_watch_sees_a_folder_being_made(tmp_path):
    code = "import os\nprint('hello')\nos.mkdir('new')\nopen('file', 'w')\n"
    (tmp_path / "noisy_module.py").write_text(code, encoding="utf-8")
    printed, report = import_watched(["noisy_module"], [tmp_path])
    assert printed == "hello\n"
    assert report["written"] == [str(tmp_path / "new"), str(tmp_path / "file")]
