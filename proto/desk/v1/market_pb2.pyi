from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StreamMarketRequest(_message.Message):
    __slots__ = ("symbols", "after")
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    after: int
    def __init__(self, symbols: _Optional[_Iterable[str]] = ..., after: _Optional[int] = ...) -> None: ...

class MarketLine(_message.Message):
    __slots__ = ("seq", "json")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    seq: int
    json: bytes
    def __init__(self, seq: _Optional[int] = ..., json: _Optional[bytes] = ...) -> None: ...

class GetLatestRequest(_message.Message):
    __slots__ = ("symbols",)
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, symbols: _Optional[_Iterable[str]] = ...) -> None: ...

class LatestLine(_message.Message):
    __slots__ = ("symbol", "bid", "ask", "price", "at", "seq")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    BID_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    bid: str
    ask: str
    price: str
    at: str
    seq: int
    def __init__(self, symbol: _Optional[str] = ..., bid: _Optional[str] = ..., ask: _Optional[str] = ..., price: _Optional[str] = ..., at: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class GetLatestResponse(_message.Message):
    __slots__ = ("lines",)
    LINES_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedCompositeFieldContainer[LatestLine]
    def __init__(self, lines: _Optional[_Iterable[_Union[LatestLine, _Mapping]]] = ...) -> None: ...

class GetAssetRequest(_message.Message):
    __slots__ = ("symbol",)
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    def __init__(self, symbol: _Optional[str] = ...) -> None: ...

class Asset(_message.Message):
    __slots__ = ("symbol", "asset_class", "tradable", "fractionable", "shortable")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    ASSET_CLASS_FIELD_NUMBER: _ClassVar[int]
    TRADABLE_FIELD_NUMBER: _ClassVar[int]
    FRACTIONABLE_FIELD_NUMBER: _ClassVar[int]
    SHORTABLE_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    asset_class: str
    tradable: bool
    fractionable: bool
    shortable: bool
    def __init__(self, symbol: _Optional[str] = ..., asset_class: _Optional[str] = ..., tradable: _Optional[bool] = ..., fractionable: _Optional[bool] = ..., shortable: _Optional[bool] = ...) -> None: ...

class GetClockRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Clock(_message.Message):
    __slots__ = ("at", "is_open", "next_open", "next_close")
    AT_FIELD_NUMBER: _ClassVar[int]
    IS_OPEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_OPEN_FIELD_NUMBER: _ClassVar[int]
    NEXT_CLOSE_FIELD_NUMBER: _ClassVar[int]
    at: str
    is_open: bool
    next_open: str
    next_close: str
    def __init__(self, at: _Optional[str] = ..., is_open: _Optional[bool] = ..., next_open: _Optional[str] = ..., next_close: _Optional[str] = ...) -> None: ...

class GetCalendarRequest(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: str
    end: str
    def __init__(self, start: _Optional[str] = ..., end: _Optional[str] = ...) -> None: ...

class TradingDay(_message.Message):
    __slots__ = ("date", "early", "open", "close", "late")
    DATE_FIELD_NUMBER: _ClassVar[int]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    date: str
    early: str
    open: str
    close: str
    late: str
    def __init__(self, date: _Optional[str] = ..., early: _Optional[str] = ..., open: _Optional[str] = ..., close: _Optional[str] = ..., late: _Optional[str] = ...) -> None: ...

class Calendar(_message.Message):
    __slots__ = ("days",)
    DAYS_FIELD_NUMBER: _ClassVar[int]
    days: _containers.RepeatedCompositeFieldContainer[TradingDay]
    def __init__(self, days: _Optional[_Iterable[_Union[TradingDay, _Mapping]]] = ...) -> None: ...
