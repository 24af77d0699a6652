"""Compiled functions are never stale: numba's cache notices changes only in the file that defines a cached function."""

import importlib
import os
import subprocess
import sys
from types import ModuleType

from tests.helpers.project import ROOT

MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "oid").rglob("*.py")
    if "numba.njit" in path.read_text(encoding="utf-8")
)


def used_from_other_files(module: ModuleType) -> list[str]:
    """Names in the compiled functions of a module that are compiled functions, or modules of oid, from elsewhere."""
    from numba.core.dispatcher import Dispatcher

    compiled = {name: value for name, value in vars(module).items() if isinstance(value, Dispatcher)}
    used = {name for function in compiled.values() for name in function.py_func.__code__.co_names}
    foreign = {name for name, value in compiled.items() if value.py_func.__module__ != module.__name__}
    modules = {name for name, value in vars(module).items() if getattr(value, "__name__", "").startswith("oid.")}
    return sorted(used & (foreign | modules))


def test_compiled_functions_use_compiled_functions_of_their_own_file_only():
    assert {"oid.boxes.kernels", "oid.boxes.best_pairs"} <= set(MODULES)
    found = {name: used_from_other_files(importlib.import_module(name)) for name in MODULES}
    assert {name: used for name, used in found.items() if used} == {}


def test_a_compiled_function_of_another_file_is_found(tmp_path, monkeypatch):
    """The test above can fail."""
    text = "import numba\nfrom oid.boxes import kernels\nfrom oid.boxes.kernels import iou\n"
    text += "@numba.njit\ndef f(a):\n    return iou(a, a)\n@numba.njit\ndef g(a):\n    return kernels.iou(a, a)\n"
    (tmp_path / "wrong_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert used_from_other_files(importlib.import_module("wrong_module")) == ["iou", "kernels"]


def test_a_change_of_a_called_function_is_seen_in_a_new_process(tmp_path):
    copy, cache = tmp_path / "kernels.py", str(tmp_path / "cache")
    code = "import numpy, kernels; box = numpy.array([[0, 0, 1, 1.0]]); print(kernels.iou_matrix(box, box)[0, 0])"

    def run() -> float:
        command = [sys.executable, "-B", "-c", code]
        environment = os.environ | {"NUMBA_CACHE_DIR": cache}
        return float(subprocess.check_output(command, cwd=tmp_path, env=environment))

    text = (ROOT / "oid" / "boxes" / "kernels.py").read_text(encoding="utf-8")
    copy.write_text(text)
    assert run() == 1.0
    changed = text.replace("return intersection / union if union > 0.0 else 0.0", "return 7.0")
    assert changed != text
    copy.write_text(changed)
    assert run() == 7.0
