"""Numbers as the desk wants them: decimal text, exact, without an exponent."""

from __future__ import annotations

import operator
from decimal import Decimal, InvalidOperation
from typing import SupportsFloat, SupportsIndex

Number = Decimal | int | float | str | SupportsFloat | SupportsIndex
"""Anything that is one number: also the scalars of numpy and pandas."""

# Far beyond any price or quantity; keeps "1e999999999" from becoming a gigabyte of zeros.
DIGITS_MAX = 40


class NotANumber(ValueError):
    """A value that is of a number's type, but not a number that can be sent."""


def text_of(value: Number, name: str) -> str:
    """The exact decimal text of a number; a float's is the shortest that reads back the same.

    Raises NotANumber for NaN, infinities, and text that is no number; TypeError for what is no number
    at all (None, bool, a list).
    """
    number = _decimal(value, name)
    if not number.is_finite():
        raise NotANumber(f"{name} is {value!s}: give a finite number")
    if number and abs(number.adjusted()) > DIGITS_MAX:
        raise NotANumber(f"{name} is {value!s}: no quantity or price has more than {DIGITS_MAX} digits")
    return format(number, "f") if number else "0"


def _decimal(value: Number, name: str) -> Decimal:
    if isinstance(value, Decimal):
        return value
    if isinstance(value, bool):
        raise TypeError(f"{name} is a bool: give a Decimal, an int, a float or a str")
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, float):
        return Decimal(float.__repr__(value))
    if isinstance(value, str):
        return _parse(value.strip(), f"{name} is {value!r}: give a number such as '10' or '145.50'")
    if isinstance(value, SupportsIndex):
        return Decimal(operator.index(value))
    if isinstance(value, SupportsFloat):
        # str() and not float(): of a 32-bit 0.1 it is '0.1', where float() adds digits nobody meant.
        return _parse(str(value), f"{name} is {value!r}: give a Decimal, an int, a float or a str")
    raise TypeError(f"{name} is a {type(value).__name__}: give a Decimal, an int, a float or a str")


def _parse(text: str, message: str) -> Decimal:
    # Decimal also reads "1_000" and digits of other scripts; the desk does not.
    if not text or not text.isascii() or "_" in text:
        raise NotANumber(message)
    try:
        return Decimal(text)
    except InvalidOperation:
        raise NotANumber(message) from None
