"""Proves that numba's cache cannot run stale code: it notices changes of the file that a loop is in, and no other."""

import pytest
from numba.core.dispatcher import Dispatcher

from oid.metric import coco, matching


@pytest.mark.parametrize("module", [matching, coco])
def test_compiled_functions_call_only_those_of_their_own_file(module):
    compiled = [value for value in vars(module).values() if isinstance(value, Dispatcher)]
    assert len(compiled) > 2
    for function in compiled:
        used = [function.py_func.__globals__.get(name) for name in function.py_func.__code__.co_names]
        called = [other.py_func for other in used if isinstance(other, Dispatcher)]
        assert {other.__module__ for other in (function.py_func, *called)} == {module.__name__}
