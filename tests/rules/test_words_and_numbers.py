"""Numbers and symbols as people type them."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from desk_server import rules
from desk_server.errors import Code, DeskError


@pytest.mark.parametrize("text", ["0", "1", "007", "145.50", "0.000000001", "9" * 18, "9" * 18 + "." + "9" * 9])
def test_plain_decimals_are_numbers(text):
    """Digits, a point, at most nine decimals."""
    assert rules.decimal_of(text, "qty") == Decimal(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", " 1", "1 ", "1\n", "-1", "+1", "1e3", "1E3", "NaN", "Infinity", "inf", "1.", ".5", "1,000", "1_000",
     "0x1", "١٢", "１", "1.0000000000", "9" * 19, "1.2.3", "true", "null", "½", "1" * 10_000],
)  # fmt: skip
def test_everything_else_is_refused_by_the_name_of_its_field(text):
    """The message names the field and stays short."""
    with pytest.raises(DeskError) as refused:
        rules.decimal_of(text, "limit_price")
    assert refused.value.code is Code.INVALID
    assert refused.value.message.startswith("limit_price must be a plain decimal number")
    assert len(refused.value.message) < 250
    assert refused.value.message.isprintable()


@given(st.text(max_size=40))
def test_any_text_is_a_number_or_refused(text):
    """No text makes it fail otherwise, and what it takes is a finite number not below zero."""
    try:
        number = rules.decimal_of(text, "qty")
    except DeskError as error:
        assert error.code is Code.INVALID
    else:
        assert number.is_finite() and number >= 0 and text.isascii()


@pytest.mark.parametrize("text", ["A", "AAPL", "BRK.B", "BTC/USD", "SHIB/USDT", "X1"])
def test_symbols_are_symbols(text):
    """Upper case, dots and one slash."""
    assert rules.symbol_of(text) == text


@pytest.mark.parametrize("text", ["aapl", "btc/usd", "Brk.B"])
def test_lower_case_is_asked_back(text):
    """The answer proposes the upper-case symbol."""
    with pytest.raises(DeskError, match=f'did you mean "{text.upper()}"'):
        rules.symbol_of(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "AAPL ", "AAPL\n", "../", "../../etc", "'; DROP TABLE orders;--", "📈", "АAPL", "ＡAPL", "A" * 11,
     "BTC/US", "BTC/", "/USD", "BTC/USD/EUR", "1A", ".A", "AAPL\x00", "ſPY"],
)  # fmt: skip
def test_what_cannot_be_a_symbol_is_refused(text):
    """Paths, SQL, emoji, homoglyphs: refused, and shown in printable characters."""
    with pytest.raises(DeskError) as refused:
        rules.symbol_of(text)
    assert refused.value.code is Code.INVALID
    assert refused.value.message.isprintable()
