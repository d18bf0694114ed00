from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateDeploymentRequest(_message.Message):
    __slots__ = ("user_id", "strategy", "code_hash", "name", "description", "version", "symbols")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    CODE_HASH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    strategy: str
    code_hash: str
    name: str
    description: str
    version: str
    symbols: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_id: _Optional[str] = ..., strategy: _Optional[str] = ..., code_hash: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., version: _Optional[str] = ..., symbols: _Optional[_Iterable[str]] = ...) -> None: ...

class CreateDeploymentResponse(_message.Message):
    __slots__ = ("deployment", "token")
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    deployment: Deployment
    token: str
    def __init__(self, deployment: _Optional[_Union[Deployment, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("deployment_id", "user_id", "strategy", "code_hash", "name", "description", "version", "symbols", "created_at", "revoked_at", "connected", "lines_read", "last_seq", "last_line_at", "heartbeat_at", "lines_sent", "orders", "fills")
    DEPLOYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    STRATEGY_FIELD_NUMBER: _ClassVar[int]
    CODE_HASH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SYMBOLS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    REVOKED_AT_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    LINES_READ_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    LAST_LINE_AT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_AT_FIELD_NUMBER: _ClassVar[int]
    LINES_SENT_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    FILLS_FIELD_NUMBER: _ClassVar[int]
    deployment_id: str
    user_id: str
    strategy: str
    code_hash: str
    name: str
    description: str
    version: str
    symbols: _containers.RepeatedScalarFieldContainer[str]
    created_at: str
    revoked_at: str
    connected: bool
    lines_read: int
    last_seq: int
    last_line_at: str
    heartbeat_at: str
    lines_sent: int
    orders: int
    fills: int
    def __init__(self, deployment_id: _Optional[str] = ..., user_id: _Optional[str] = ..., strategy: _Optional[str] = ..., code_hash: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., version: _Optional[str] = ..., symbols: _Optional[_Iterable[str]] = ..., created_at: _Optional[str] = ..., revoked_at: _Optional[str] = ..., connected: _Optional[bool] = ..., lines_read: _Optional[int] = ..., last_seq: _Optional[int] = ..., last_line_at: _Optional[str] = ..., heartbeat_at: _Optional[str] = ..., lines_sent: _Optional[int] = ..., orders: _Optional[int] = ..., fills: _Optional[int] = ...) -> None: ...

class ListDeploymentsRequest(_message.Message):
    __slots__ = ("all",)
    ALL_FIELD_NUMBER: _ClassVar[int]
    all: bool
    def __init__(self, all: _Optional[bool] = ...) -> None: ...

class ListDeploymentsResponse(_message.Message):
    __slots__ = ("deployments",)
    DEPLOYMENTS_FIELD_NUMBER: _ClassVar[int]
    deployments: _containers.RepeatedCompositeFieldContainer[Deployment]
    def __init__(self, deployments: _Optional[_Iterable[_Union[Deployment, _Mapping]]] = ...) -> None: ...

class RevokeDeploymentRequest(_message.Message):
    __slots__ = ("deployment_id",)
    DEPLOYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    deployment_id: str
    def __init__(self, deployment_id: _Optional[str] = ...) -> None: ...

class CreateUserTokenRequest(_message.Message):
    __slots__ = ("user_id", "role", "label")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    role: str
    label: str
    def __init__(self, user_id: _Optional[str] = ..., role: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class CreateUserTokenResponse(_message.Message):
    __slots__ = ("token_id", "token")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    token: str
    def __init__(self, token_id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class RevokeTokenRequest(_message.Message):
    __slots__ = ("token_id",)
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    token_id: str
    def __init__(self, token_id: _Optional[str] = ...) -> None: ...

class RevokeTokenResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("lines_read", "last_seq")
    LINES_READ_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    lines_read: int
    last_seq: int
    def __init__(self, lines_read: _Optional[int] = ..., last_seq: _Optional[int] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetHaltRequest(_message.Message):
    __slots__ = ("scope", "name", "halted", "reason")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    HALTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    scope: str
    name: str
    halted: bool
    reason: str
    def __init__(self, scope: _Optional[str] = ..., name: _Optional[str] = ..., halted: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class SetHaltResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetReconciliationRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reconciliation(_message.Message):
    __slots__ = ("problem", "last_pass_at", "differences", "houses", "foreign_orders", "passes", "failures", "recovered", "posted", "adopted", "foreign_orders_seen")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    LAST_PASS_AT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    HOUSES_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_ORDERS_FIELD_NUMBER: _ClassVar[int]
    PASSES_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    RECOVERED_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    ADOPTED_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_ORDERS_SEEN_FIELD_NUMBER: _ClassVar[int]
    problem: str
    last_pass_at: str
    differences: _containers.RepeatedCompositeFieldContainer[Difference]
    houses: _containers.RepeatedCompositeFieldContainer[HouseBook]
    foreign_orders: _containers.RepeatedCompositeFieldContainer[ForeignOrder]
    passes: int
    failures: int
    recovered: int
    posted: int
    adopted: int
    foreign_orders_seen: int
    def __init__(self, problem: _Optional[str] = ..., last_pass_at: _Optional[str] = ..., differences: _Optional[_Iterable[_Union[Difference, _Mapping]]] = ..., houses: _Optional[_Iterable[_Union[HouseBook, _Mapping]]] = ..., foreign_orders: _Optional[_Iterable[_Union[ForeignOrder, _Mapping]]] = ..., passes: _Optional[int] = ..., failures: _Optional[int] = ..., recovered: _Optional[int] = ..., posted: _Optional[int] = ..., adopted: _Optional[int] = ..., foreign_orders_seen: _Optional[int] = ...) -> None: ...

class Difference(_message.Message):
    __slots__ = ("kind", "account", "symbol", "order_id", "ours", "theirs", "since", "explanation", "counts")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    OURS_FIELD_NUMBER: _ClassVar[int]
    THEIRS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    EXPLANATION_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    account: str
    symbol: str
    order_id: str
    ours: str
    theirs: str
    since: str
    explanation: str
    counts: bool
    def __init__(self, kind: _Optional[str] = ..., account: _Optional[str] = ..., symbol: _Optional[str] = ..., order_id: _Optional[str] = ..., ours: _Optional[str] = ..., theirs: _Optional[str] = ..., since: _Optional[str] = ..., explanation: _Optional[str] = ..., counts: _Optional[bool] = ...) -> None: ...

class HouseBook(_message.Message):
    __slots__ = ("name", "cash", "holdings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CASH_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    cash: str
    holdings: _containers.RepeatedCompositeFieldContainer[HouseHolding]
    def __init__(self, name: _Optional[str] = ..., cash: _Optional[str] = ..., holdings: _Optional[_Iterable[_Union[HouseHolding, _Mapping]]] = ...) -> None: ...

class HouseHolding(_message.Message):
    __slots__ = ("symbol", "qty")
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    symbol: str
    qty: str
    def __init__(self, symbol: _Optional[str] = ..., qty: _Optional[str] = ...) -> None: ...

class ForeignOrder(_message.Message):
    __slots__ = ("broker_order_id", "client_order_id", "symbol", "side", "qty", "account", "seen_at")
    BROKER_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ORDER_ID_FIELD_NUMBER: _ClassVar[int]
    SYMBOL_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    QTY_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    SEEN_AT_FIELD_NUMBER: _ClassVar[int]
    broker_order_id: str
    client_order_id: str
    symbol: str
    side: str
    qty: str
    account: str
    seen_at: str
    def __init__(self, broker_order_id: _Optional[str] = ..., client_order_id: _Optional[str] = ..., symbol: _Optional[str] = ..., side: _Optional[str] = ..., qty: _Optional[str] = ..., account: _Optional[str] = ..., seen_at: _Optional[str] = ...) -> None: ...
