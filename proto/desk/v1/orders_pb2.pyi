from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OrderRequest(_message.Message):
    __slots__ = ("symbol", "qty", "side", "order_type", "time_in_force", "limit_price", "stop_price", "request_id", "notional", "extended_hours", "trail_price", "trail_percent", "order_class", "take_profit", "stop_loss", "line", "notes")
    class NotesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    ORDER_TYPE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NOTIONAL_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_HOURS_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ORDER_CLASS_FIELD_NUMBER: _ClassVar[int]
    TAKE_PROFIT_FIELD_NUMBER: _ClassVar[int]
    STOP_LOSS_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    qty: str
    side: str
    order_type: str
    time_in_force: str
    limit_price: str
    stop_price: str
    request_id: str
    notional: str
    extended_hours: bool
    trail_price: str
    trail_percent: str
    order_class: str
    take_profit: TakeProfit
    stop_loss: StopLoss
    line: LineInHand
    notes: _containers.ScalarMap[str, str]
    def __init__(self, symbol: _Optional[str] = ..., qty: _Optional[str] = ..., side: _Optional[str] = ..., order_type: _Optional[str] = ..., time_in_force: _Optional[str] = ..., limit_price: _Optional[str] = ..., stop_price: _Optional[str] = ..., request_id: _Optional[str] = ..., notional: _Optional[str] = ..., extended_hours: _Optional[bool] = ..., trail_price: _Optional[str] = ..., trail_percent: _Optional[str] = ..., order_class: _Optional[str] = ..., take_profit: _Optional[_Union[TakeProfit, _Mapping]] = ..., stop_loss: _Optional[_Union[StopLoss, _Mapping]] = ..., line: _Optional[_Union[LineInHand, _Mapping]] = ..., notes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class TakeProfit(_message.Message):
    __slots__ = ("limit_price",)
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    limit_price: str
    def __init__(self, limit_price: _Optional[str] = ...) -> None: ...

class StopLoss(_message.Message):
    __slots__ = ("stop_price", "limit_price")
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    stop_price: str
    limit_price: str
    def __init__(self, stop_price: _Optional[str] = ..., limit_price: _Optional[str] = ...) -> None: ...

class LineInHand(_message.Message):
    __slots__ = ("seq", "sha256", "fields_read")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    FIELDS_READ_FIELD_NUMBER: _ClassVar[int]
    seq: int
    sha256: str
    fields_read: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, seq: _Optional[int] = ..., sha256: _Optional[str] = ..., fields_read: _Optional[_Iterable[str]] = ...) -> None: ...

class OrderResponse(_message.Message):
    __slots__ = ("status", "order_id", "message", "symbol", "qty", "side", "filled_qty", "order_status", "code", "limit", "observed", "order")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    FILLED_QTY_FIELD_NUMBER: _ClassVar[int]
    ORDER_STATUS_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    status: str
    order_id: str
    message: str
    symbol: str
    qty: str
    side: str
    filled_qty: str
    order_status: str
    code: str
    limit: str
    observed: str
    order: Order
    def __init__(self, status: _Optional[str] = ..., order_id: _Optional[str] = ..., message: _Optional[str] = ..., symbol: _Optional[str] = ..., qty: _Optional[str] = ..., side: _Optional[str] = ..., filled_qty: _Optional[str] = ..., order_status: _Optional[str] = ..., code: _Optional[str] = ..., limit: _Optional[str] = ..., observed: _Optional[str] = ..., order: _Optional[_Union[Order, _Mapping]] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("order_id", "client_order_id", "broker_order_id", "user_id", "strategy", "request_id", "symbol", "side", "order_type", "time_in_force", "order_class", "qty", "notional", "limit_price", "stop_price", "trail_price", "trail_percent", "extended_hours", "status", "filled_qty", "filled_avg_price", "fees", "code", "message", "created_at", "updated_at", "replaces", "replaced_by", "parent_id", "leg", "legs", "line", "notes")
    class NotesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    BROKER_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    ORDER_TYPE_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    ORDER_CLASS_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    NOTIONAL_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_PERCENT_FIELD_NUMBER: _ClassVar[int]
    EXTENDED_HOURS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    FILLED_QTY_FIELD_NUMBER: _ClassVar[int]
    FILLED_AVG_PRICE_FIELD_NUMBER: _ClassVar[int]
    FEES_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    REPLACES_FIELD_NUMBER: _ClassVar[int]
    REPLACED_BY_FIELD_NUMBER: _ClassVar[int]
    PARENT_ID_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    LEGS_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    client_order_id: str
    broker_order_id: str
    user_id: str
    strategy: str
    request_id: str
    symbol: str
    side: str
    order_type: str
    time_in_force: str
    order_class: str
    qty: str
    notional: str
    limit_price: str
    stop_price: str
    trail_price: str
    trail_percent: str
    extended_hours: bool
    status: str
    filled_qty: str
    filled_avg_price: str
    fees: str
    code: str
    message: str
    created_at: str
    updated_at: str
    replaces: str
    replaced_by: str
    parent_id: str
    leg: str
    legs: _containers.RepeatedCompositeFieldContainer[Order]
    line: LineInHand
    notes: _containers.ScalarMap[str, str]
    def __init__(self, order_id: _Optional[str] = ..., client_order_id: _Optional[str] = ..., broker_order_id: _Optional[str] = ..., user_id: _Optional[str] = ..., strategy: _Optional[str] = ..., request_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[str] = ..., order_type: _Optional[str] = ..., time_in_force: _Optional[str] = ..., order_class: _Optional[str] = ..., qty: _Optional[str] = ..., notional: _Optional[str] = ..., limit_price: _Optional[str] = ..., stop_price: _Optional[str] = ..., trail_price: _Optional[str] = ..., trail_percent: _Optional[str] = ..., extended_hours: _Optional[bool] = ..., status: _Optional[str] = ..., filled_qty: _Optional[str] = ..., filled_avg_price: _Optional[str] = ..., fees: _Optional[str] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., created_at: _Optional[str] = ..., updated_at: _Optional[str] = ..., replaces: _Optional[str] = ..., replaced_by: _Optional[str] = ..., parent_id: _Optional[str] = ..., leg: _Optional[str] = ..., legs: _Optional[_Iterable[_Union[Order, _Mapping]]] = ..., line: _Optional[_Union[LineInHand, _Mapping]] = ..., notes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetOrderRequest(_message.Message):
    __slots__ = ("order_id",)
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    def __init__(self, order_id: _Optional[str] = ...) -> None: ...

class ListOrdersRequest(_message.Message):
    __slots__ = ("status", "symbols", "side", "limit", "page_token", "after", "until", "user_id", "strategy")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    status: str
    symbols: _containers.RepeatedScalarFieldContainer[str]
    side: str
    limit: int
    page_token: str
    after: str
    until: str
    user_id: str
    strategy: str
    def __init__(self, status: _Optional[str] = ..., symbols: _Optional[_Iterable[str]] = ..., side: _Optional[str] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ..., after: _Optional[str] = ..., until: _Optional[str] = ..., user_id: _Optional[str] = ..., strategy: _Optional[str] = ...) -> None: ...

class ListOrdersResponse(_message.Message):
    __slots__ = ("orders", "next_page_token")
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    orders: _containers.RepeatedCompositeFieldContainer[Order]
    next_page_token: str
    def __init__(self, orders: _Optional[_Iterable[_Union[Order, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelOrderRequest(_message.Message):
    __slots__ = ("order_id",)
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    def __init__(self, order_id: _Optional[str] = ...) -> None: ...

class CancelAllRequest(_message.Message):
    __slots__ = ("symbols", "user_id")
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    symbols: _containers.RepeatedScalarFieldContainer[str]
    user_id: str
    def __init__(self, symbols: _Optional[_Iterable[str]] = ..., user_id: _Optional[str] = ...) -> None: ...

class CancelAllResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[OrderResponse]
    def __init__(self, results: _Optional[_Iterable[_Union[OrderResponse, _Mapping]]] = ...) -> None: ...

class ReplaceOrderRequest(_message.Message):
    __slots__ = ("order_id", "qty", "time_in_force", "limit_price", "stop_price", "trail", "request_id")
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    TIME_IN_FORCE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_PRICE_FIELD_NUMBER: _ClassVar[int]
    STOP_PRICE_FIELD_NUMBER: _ClassVar[int]
    TRAIL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    order_id: str
    qty: str
    time_in_force: str
    limit_price: str
    stop_price: str
    trail: str
    request_id: str
    def __init__(self, order_id: _Optional[str] = ..., qty: _Optional[str] = ..., time_in_force: _Optional[str] = ..., limit_price: _Optional[str] = ..., stop_price: _Optional[str] = ..., trail: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class Fill(_message.Message):
    __slots__ = ("execution_id", "order_id", "user_id", "strategy", "symbol", "side", "qty", "price", "fee", "at", "seq")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    PRICE_FIELD_NUMBER: _ClassVar[int]
    FEE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    order_id: str
    user_id: str
    strategy: str
    symbol: str
    side: str
    qty: str
    price: str
    fee: str
    at: str
    seq: int
    def __init__(self, execution_id: _Optional[str] = ..., order_id: _Optional[str] = ..., user_id: _Optional[str] = ..., strategy: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[str] = ..., qty: _Optional[str] = ..., price: _Optional[str] = ..., fee: _Optional[str] = ..., at: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class ListFillsRequest(_message.Message):
    __slots__ = ("symbol", "order_id", "limit", "page_token", "user_id")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    order_id: str
    limit: int
    page_token: str
    user_id: str
    def __init__(self, symbol: _Optional[str] = ..., order_id: _Optional[str] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class ListFillsResponse(_message.Message):
    __slots__ = ("fills", "next_page_token")
    FILLS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    fills: _containers.RepeatedCompositeFieldContainer[Fill]
    next_page_token: str
    def __init__(self, fills: _Optional[_Iterable[_Union[Fill, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class StreamUpdatesRequest(_message.Message):
    __slots__ = ("after", "user_id")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    after: int
    user_id: str
    def __init__(self, after: _Optional[int] = ..., user_id: _Optional[str] = ...) -> None: ...

class OrderUpdate(_message.Message):
    __slots__ = ("seq", "event", "at", "order", "fill")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    FILL_FIELD_NUMBER: _ClassVar[int]
    seq: int
    event: str
    at: str
    order: Order
    fill: Fill
    def __init__(self, seq: _Optional[int] = ..., event: _Optional[str] = ..., at: _Optional[str] = ..., order: _Optional[_Union[Order, _Mapping]] = ..., fill: _Optional[_Union[Fill, _Mapping]] = ...) -> None: ...
