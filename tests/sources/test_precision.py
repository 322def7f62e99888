from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cvl_pipeline.errors import InputError
from cvl_pipeline.sources.precision import single_precision

BILLION = 1.7e9
"""Seconds from 1970 to 2023."""


@given(
    values=arrays(
        st.sampled_from([np.int32, np.int64, np.uint64]),
        st.integers(1, 12),
        elements=st.integers(0, 2**31 - 1),
    ),
    shift=st.integers(0, 2**32),
)
@example(values=np.array([0, 1]), shift=2**53)
@example(values=np.array([0, 1]), shift=2**24)
@example(values=np.array([0, 1]), shift=2**24 - 1)
def test_whole_numbers_stay_different_or_are_refused(values: Any, shift: int) -> None:
    """Whatever the type: integers, or floating-point numbers that are whole, up to 2^53."""
    column = values.astype(np.int64) + shift
    for stored in (column, column.astype(np.uint64), column.astype(np.float64), column.astype(np.longdouble)):
        if stored.dtype.kind == "f" and column.max() > 2**53:
            continue
        try:
            singles = single_precision(stored, "ids")
        except InputError:
            assert len(np.unique(column.astype(np.float32))) < len(np.unique(column))
        else:
            assert singles.dtype == np.float32
            assert len(np.unique(singles)) == len(np.unique(column))


@given(
    values=arrays(
        st.sampled_from([np.float16, np.float32, np.float64, np.longdouble]),
        st.tuples(st.integers(1, 8), st.integers(1, 3)),
        elements=st.floats(-1, 1, width=16),
    )
)
def test_ordinary_numbers_are_rounded_as_numpy_does(values: Any) -> None:
    np.testing.assert_array_equal(single_precision(values * 1000, "x"), (values * 1000).astype(np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [2**53, 2**53 + 1, 2**53 + 1],
            "t: 2 different numbers from 9007199254740992 to 9007199254740993 become 1",
        ),
        (np.array([2**64 - 1, 2**64 - 2], np.uint64), "t: 2 different numbers from 18446744073709551614"),
        (
            1.7e18 + np.arange(60) * 1e6,
            r"t: 60 different numbers from 1.7e\+18 to .* become 1 ",
        ),  # nanoseconds
        (np.array([1.7e9, 1.7e9 + 1]), "t: 2 different numbers from 1700000000.0 to 1700000001.0 become 1"),
        ([[0, 2**24], [0, 2**24 + 1]], "t, dimension 1: 2 different numbers"),
        ([0.0, 1e39], r"t: 1e\+39 at row 1 is too large for single precision; rescale it"),
        ([[0.0, -1e39]], r"t: -1e\+39 at row 0, dimension 1 is too large"),
        (np.array([0.0, np.longdouble("1e400")]), "at row 1 is too large"),
        (np.array([1j]), "t: complex128, not numbers"),
        (np.array(["2020"], "datetime64[Y]"), "t: datetime64.*, not numbers"),
        (np.array([1, None]), "t: object, not numbers"),
    ],
)
def test_numbers_that_would_become_others_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        single_precision(np.asarray(values), "t")


@pytest.mark.parametrize(
    ("values", "left"),
    [
        (BILLION + np.arange(600) * 0.1, 1),  # a minute of timestamps
        (6.4e6 + np.arange(500) * 1e-3, 2),  # metres from the centre of the earth
        (np.arange(1, 9) * 1e-50, 1),  # all become 0
        (1.0 + np.arange(300) * 1e-12, 1),
        (np.append(0.0, 4.7e5 + np.arange(500) * 1e-5), 2),  # hours since 1970 after a row without time
        (np.append(1e20, 0.1 + np.arange(500) * 1e-12), 2),  # not whole, although the largest is
    ],
)
def test_fractions_that_merge_give_a_warning_with_the_remedy(
    values: Any, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    single_precision(values, "log.csv: t")
    (message,) = caplog.messages
    assert message.startswith(f"log.csv: t: {len(values)} different numbers from ")
    assert message.endswith(
        f"become {left} in single precision; subtract the smallest number, rescale the column, or leave it out if it "
        "is an id or a time"
    )


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).normal(size=50_000),  # some merge, as in any large column
        1000.0 + np.random.default_rng(0).normal(size=5_000),
        np.full(9, 2**53 + 1),  # constant
        np.append(2.0**60 + 2.0**40 * np.arange(9), 2.0**60 + 256),  # rounded measurements
        np.array([0, 2**53 + 1, 2**60]),  # rounded, but different
        np.array([np.nan, 1.0, np.inf]),  # left to validation
        np.array([True, False]),
        np.zeros((0, 3)),
    ],
)
def test_rounding_is_silent(values: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    np.testing.assert_array_equal(single_precision(values, "x"), values.astype(np.float32))
    assert caplog.messages == []


def test_a_column_in_single_precision_is_not_copied() -> None:
    values = np.ones((3, 2), np.float32)
    assert single_precision(values, "x") is values
    assert single_precision(values.astype(">f4"), "x").dtype == np.float32
