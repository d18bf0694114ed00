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
