import re

import numpy as np
import pytest
from store_case import NAMES, units

from vpt.search.checks import checked, storable


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_unit_vectors_pass_in_half_precision(dtype: type) -> None:
    given = units(10, 8).astype(dtype)
    assert np.array_equal(checked(given, 8, NAMES), given.astype(np.float16))
    assert np.array_equal(
        checked(3 * given, 8), (3 * given).astype(np.float16)
    )  # a query's length is its own


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda x, i: (x[:, :7], i), "shape [3, 7], and [n, 8]"),
        (lambda x, i: (x[0], i), "shape [8], and [n, 8]"),
        (lambda x, i: (x, i[:2]), "3 vectors for 2 ids"),
        (lambda x, i: (x * [[1], [np.nan], [1]], i), "'b' holds NaN or infinity"),
        (lambda x, i: (x * [[1], [1], [1e9]], i), "'c' holds NaN or infinity"),
        (lambda x, i: (x * [[1], [1], [1.1]], i), "'c' is 1.1 long, wanted 1"),
        (lambda x, i: (x, ["a", "b", "a"]), "'a' is given twice"),
        (lambda x, i: (x, ["a", "b\0", "c"]), r"'b\x00' holds a NUL"),
        (lambda x, i: (x, ["a", "b", "\udc80"]), r"'\udc80' holds a NUL, or bytes"),
    ],
)
def test_what_no_store_takes_is_named(spoil, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        checked(*(lambda given: (given[0], 8, given[1]))(spoil(units(3, 8), ["a", "b", "c"])))


def test_queries_are_numbered_from_one() -> None:
    with pytest.raises(ValueError, match="'query 2' holds NaN"):
        checked(np.array([[1.0], [np.inf]], np.float32), 1)


def test_a_name_is_storable_when_it_is_utf8_without_a_nul() -> None:
    assert all(map(storable, NAMES))
    assert not storable("a\0b")
    assert not storable(b"caf\xe9.jpg".decode("utf-8", "surrogateescape"))
