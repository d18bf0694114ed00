from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetAccountRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("user_id", "allotment", "cash", "reserved", "buying_power", "market_value", "equity", "realized_pl", "unrealized_pl", "fees", "open_orders")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ALLOTMENT_FIELD_NUMBER: _ClassVar[int]
    CASH_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    BUYING_POWER_FIELD_NUMBER: _ClassVar[int]
    MARKET_VALUE_FIELD_NUMBER: _ClassVar[int]
    EQUITY_FIELD_NUMBER: _ClassVar[int]
    REALIZED_PL_FIELD_NUMBER: _ClassVar[int]
    UNREALIZED_PL_FIELD_NUMBER: _ClassVar[int]
    FEES_FIELD_NUMBER: _ClassVar[int]
    OPEN_ORDERS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    allotment: str
    cash: str
    reserved: str
    buying_power: str
    market_value: str
    equity: str
    realized_pl: str
    unrealized_pl: str
    fees: str
    open_orders: int
    def __init__(self, user_id: _Optional[str] = ..., allotment: _Optional[str] = ..., cash: _Optional[str] = ..., reserved: _Optional[str] = ..., buying_power: _Optional[str] = ..., market_value: _Optional[str] = ..., equity: _Optional[str] = ..., realized_pl: _Optional[str] = ..., unrealized_pl: _Optional[str] = ..., fees: _Optional[str] = ..., open_orders: _Optional[int] = ...) -> None: ...

class ListPositionsRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("user_id", "symbol", "qty", "qty_available", "avg_entry_price", "cost_basis", "current_price", "market_value", "unrealized_pl", "realized_pl", "fees")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    QTY_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    AVG_ENTRY_PRICE_FIELD_NUMBER: _ClassVar[int]
    COST_BASIS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_PRICE_FIELD_NUMBER: _ClassVar[int]
    MARKET_VALUE_FIELD_NUMBER: _ClassVar[int]
    UNREALIZED_PL_FIELD_NUMBER: _ClassVar[int]
    REALIZED_PL_FIELD_NUMBER: _ClassVar[int]
    FEES_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    symbol: str
    qty: str
    qty_available: str
    avg_entry_price: str
    cost_basis: str
    current_price: str
    market_value: str
    unrealized_pl: str
    realized_pl: str
    fees: str
    def __init__(self, user_id: _Optional[str] = ..., symbol: _Optional[str] = ..., qty: _Optional[str] = ..., qty_available: _Optional[str] = ..., avg_entry_price: _Optional[str] = ..., cost_basis: _Optional[str] = ..., current_price: _Optional[str] = ..., market_value: _Optional[str] = ..., unrealized_pl: _Optional[str] = ..., realized_pl: _Optional[str] = ..., fees: _Optional[str] = ...) -> None: ...

class ListPositionsResponse(_message.Message):
    __slots__ = ("positions",)
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    positions: _containers.RepeatedCompositeFieldContainer[Position]
    def __init__(self, positions: _Optional[_Iterable[_Union[Position, _Mapping]]] = ...) -> None: ...

class ListAccountsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAccountsResponse(_message.Message):
    __slots__ = ("accounts",)
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    accounts: _containers.RepeatedCompositeFieldContainer[Account]
    def __init__(self, accounts: _Optional[_Iterable[_Union[Account, _Mapping]]] = ...) -> None: ...
