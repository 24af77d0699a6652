"""Compiled functions are never stale: numba's cache notices changes only in the file that defines a cached function."""

import importlib
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
