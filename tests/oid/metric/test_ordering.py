"""Proves the linear-time orders against NumPy's stable sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oid.metric.ordering import _SHORT, ascending, grouped


@pytest.mark.parametrize("length", [0, 1, _SHORT - 1, _SHORT, 20_000])
@pytest.mark.parametrize("decimals", [1, 3, 17])
def test_ascending_is_numpys_stable_order(length: int, decimals: int):
    """With many ties, with both signs, with both zeros."""
    values = np.round(np.random.default_rng(length).normal(size=length), decimals)
    values[::7] = -0.0
    values[3::7] = 0.0
    np.testing.assert_array_equal(ascending(values), np.argsort(values, kind="stable"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=20))
def test_any_float_is_in_its_place(values: list[float]):
    many = np.tile(values, _SHORT // len(values) + 1)
    np.testing.assert_array_equal(ascending(many), np.argsort(many, kind="stable"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=50))
def test_groups_are_numpys_stable_order(keys: list[int]):
    array = np.array(keys, dtype=np.int32)
    order, first = grouped(array, 10)
    np.testing.assert_array_equal(order, np.argsort(array, kind="stable"))
    assert first.tolist() == [sum(key < end for key in keys) for end in range(11)]
