"""Numbers become decimal text that says exactly what they say."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desk_client.amounts import NotANumber, text_of


@pytest.mark.parametrize(
    ("value", "text"),
    [(10, "10"), (0, "0"), (-3, "-3"), ("145.50", "145.50"), (" 7 ", "7"), (Decimal("0.10"), "0.10"), (0.1, "0.1"),
     (145.5, "145.5"), (1e-7, "0.0000001"), (1e22, "10000000000000000000000"), (Decimal("1E+3"), "1000"),
     ("1e3", "1000"), (-0.0, "0"), (0.1 + 0.2, "0.30000000000000004"), (10**30, "1" + "0" * 30)],
)  # fmt: skip
def test_numbers_are_written_exactly(value, text):
    """No exponent, no rounding, and no more digits than were meant."""
    assert text_of(value, "qty") == text


@given(st.decimals(min_value=-(10**18), max_value=10**18, places=9))
def test_every_decimal_reads_back_the_same(number):
    """Text and number are equal."""
    text = text_of(number, "qty")
    assert Decimal(text) == number
    assert "e" not in text.lower()


@given(st.floats(min_value=-1e30, max_value=1e30).filter(lambda x: x == 0 or abs(x) > 1e-30))
def test_every_float_reads_back_the_same(number):
    """The shortest text that is this float."""
    assert float(text_of(number, "qty")) == number


class _Scalar32:
    """As numpy's float32: prints what was meant, converts with what was stored."""

    def __float__(self):
        return 0.10000000149011612

    def __str__(self):
        return "0.1"


class _Int64:
    def __index__(self):
        return 5


def test_scalars_of_other_libraries_are_numbers_too():
    """A 32-bit 0.1 stays 0.1."""
    assert text_of(_Scalar32(), "qty") == "0.1"
    assert text_of(_Int64(), "qty") == "5"


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("-inf"), Decimal("sNaN"), "inf", "1e400", "1e-400", "٣", "1_0", "ten", "--1", 10**50],
)
def test_what_is_no_number_is_named(value):
    """NotANumber says which argument it was."""
    with pytest.raises(NotANumber, match="qty"):
        text_of(value, "qty")


@pytest.mark.parametrize("value", [True, None, [1], {}, b"1", object()])
def test_what_cannot_be_a_number_is_a_mistake_of_the_caller(value):
    """TypeError, as for any wrong argument."""
    with pytest.raises(TypeError, match="qty"):
        text_of(value, "qty")
