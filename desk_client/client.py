"""A desk, as one strategy sees it: the verbs of `desk_client`, for one address and one credential."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from desk.v1.orders_pb2 import (
    CancelAllRequest,
    CancelAllResponse,
    Fill,
    ListFillsResponse,
    ListOrdersResponse,
    Order,
    OrderRequest,
    OrderResponse,
    ReplaceOrderRequest,
    StopLoss,
    TakeProfit,
)
from google.protobuf.message import DecodeError

from desk_client.amounts import NotANumber, Number, text_of
from desk_client.calls import PROTOBUF, Caller, path_with, quote
from desk_client.errors import ConfigurationError, OrderRefused, ProtocolError
from desk_client.hand import HAND, Hand, Line
from desk_client.problem import problem_of
from desk_client.settings import ENVIRONMENT, Settings, checked_user, from_environment

if TYPE_CHECKING:
    from datetime import date

    from desk.v1.books_pb2 import Account, Position
    from desk.v1.market_pb2 import Asset, Clock, LatestLine, TradingDay
    from google.protobuf.message import Message

    from desk_client.http1 import Response
    from desk_client.update_stream import Updates

M = TypeVar("M", bound="Message")
P = TypeVar("P", ListOrdersResponse, ListFillsResponse)

PAGE_SIZE = 500
TIMEOUT_S = 10.0


class Client:
    """Orders, books and updates of one user. For any number of threads, and for a child after a fork."""

    def __init__(self, settings: Settings | None = None, hand: Hand = HAND) -> None:
        """Without settings, those of the environment at the time of each call."""
        self._hand = hand
        self._lock = threading.Lock()
        self._given = Caller(settings) if settings else None
        self._from_environment: tuple[tuple[str, ...], Caller] | None = None
        self._user_id: str | None = None

    def set_user_id(self, user_id: str) -> None:
        """The X-User-ID to send from now on, instead of USER_ID; none when empty.

        It must be the token's user: with a token, this changes nothing but what the desk refuses.
        """
        self._user_id = checked_user(user_id)
        if self._given:
            self._given.settings.user_id = self._user_id
        self._from_environment = None

    @property
    def caller(self) -> Caller:
        """Raises ConfigurationError where the environment cannot be right."""
        if self._given:
            return self._given
        values = tuple(os.environ.get(name, "") for name in ENVIRONMENT)
        known = self._from_environment
        if known and known[0] == values:
            return known[1]
        with self._lock:
            settings = from_environment()
            if self._user_id is not None:
                settings.user_id = self._user_id
            caller = Caller(settings)
            self._from_environment = (values, caller)
            return caller

    def place_order(  # noqa: PLR0917  (the original desk's order of arguments)
        self,
        symbol: str,
        qty: Number | None,
        side: str,
        order_type: str = "market",
        time_in_force: str = "day",
        limit_price: Number | None = None,
        stop_price: Number | None = None,
        timeout: float = TIMEOUT_S,
        *,
        request_id: str | None = None,
        notional: Number | None = None,
        extended_hours: bool = False,
        trail_price: Number | None = None,
        trail_percent: Number | None = None,
        order_class: str = "",
        take_profit_price: Number | None = None,
        stop_loss_price: Number | None = None,
        stop_loss_limit_price: Number | None = None,
        notes: Mapping[str, object] | None = None,
        raise_on_error: bool = False,
    ) -> OrderResponse:
        """Places an order and waits for the desk's answer, `timeout` seconds at most.

        An answer with status "success" and an order_id: the desk has the order on record and it is on its
        way to the broker (`order_status` says how far). With status "error": the desk, or the broker,
        refused it; `code` and `message` say why and what to do. `raise_on_error=True` makes an
        OrderRefused of that.

        symbol         "AAPL"; "BTC/USD" for crypto
        qty            shares or coins: Decimal, int, str, or float. None where `notional` is given.
        side           "buy" or "sell"
        order_type     "market", "limit", "stop", "stop_limit", "trailing_stop"
        time_in_force  "day", "gtc", "ioc", "fok", "opg", "cls"
        limit_price    for limit and stop_limit
        stop_price     for stop and stop_limit
        request_id     the caller's own name for this order, at most 64 characters; a random one when not
                       given. The same id with the same order is the same order: it is placed once.
        notional       dollars to spend or raise, instead of qty
        extended_hours trade outside regular hours too
        trail_price, trail_percent   for trailing_stop: one of the two
        order_class    "bracket", "oco" or "oto", with the legs' take_profit_price, stop_loss_price and
                       stop_loss_limit_price
        notes          whatever helps to understand the order later: at most 16 short texts

        What cannot reach the desk is tried again until the timeout, always with the same request id.
        Raises DeskUnavailable (not placed), DeskTimeout or another OutcomeUnknown (perhaps placed: call
        again with `request_id=error.request_id`), AuthenticationError, ConfigurationError, ProtocolError.
        """
        request_id = request_id or new_request_id()
        try:
            order = OrderRequest(
                symbol=symbol,
                qty=_text(qty, "qty"),
                side=side,
                order_type=order_type,
                time_in_force=time_in_force,
                limit_price=_text(limit_price, "limit_price"),
                stop_price=_text(stop_price, "stop_price"),
                request_id=request_id,
                notional=_text(notional, "notional"),
                extended_hours=extended_hours,
                trail_price=_text(trail_price, "trail_price"),
                trail_percent=_text(trail_percent, "trail_percent"),
                order_class=order_class,
                take_profit=_take_profit(take_profit_price),
                stop_loss=_stop_loss(stop_loss_price, stop_loss_limit_price),
                line=self._hand.in_hand(),
                notes={key: str(value) for key, value in (notes or {}).items()},
            )
        except NotANumber as error:
            return _refused_here(str(error), raise_on_error, request_id)
        body = order.SerializeToString()
        response = self.caller.call("POST", "/v1/orders", body, timeout_s=timeout, request_id=request_id)
        return _order_response(response, raise_on_error, request_id)

    def replace_order(
        self,
        order_id: str,
        *,
        qty: Number | None = None,
        time_in_force: str = "",
        limit_price: Number | None = None,
        stop_price: Number | None = None,
        trail: Number | None = None,
        timeout: float = TIMEOUT_S,
        request_id: str | None = None,
        raise_on_error: bool = False,
    ) -> OrderResponse:
        """Changes an open order; what is not given stays. The answer is the replacing order's.

        `trail` is a trailing stop's new trail, in the unit it was placed with. Raises as `place_order`.
        """
        request_id = request_id or new_request_id()
        try:
            change = ReplaceOrderRequest(
                order_id=order_id,
                qty=_text(qty, "qty"),
                time_in_force=time_in_force,
                limit_price=_text(limit_price, "limit_price"),
                stop_price=_text(stop_price, "stop_price"),
                trail=_text(trail, "trail"),
                request_id=request_id,
            )
        except NotANumber as error:
            return _refused_here(str(error), raise_on_error, request_id)
        body = change.SerializeToString()
        response = self.caller.call("PATCH", _order_path(order_id), body, timeout_s=timeout, request_id=request_id)
        return _order_response(response, raise_on_error, request_id)

    def cancel_order(self, order_id: str, *, timeout: float = TIMEOUT_S, raise_on_error: bool = False) -> OrderResponse:
        """Asks for an order's cancel. It is cancelled when `updates()` or `get_order` says so: until then
        it may still fill. Status "error" where there is nothing to cancel (NOT_FOUND, or it is filled).
        Raises as `place_order`.
        """
        response = self.caller.call("DELETE", _order_path(order_id), timeout_s=timeout)
        return _order_response(response, raise_on_error, "")

    def cancel_all(self, symbols: list[str] | None = None, *, timeout: float = TIMEOUT_S) -> list[OrderResponse]:
        """Asks for the cancel of every open order, or of those in the symbols; one answer for each."""
        body = CancelAllRequest(symbols=_symbols(symbols)).SerializeToString()
        response = self.caller.call("POST", "/v1/orders:cancel-all", body, timeout_s=timeout)
        return list(_message(response, CancelAllResponse).results)

    def get_order(self, order_id: str, *, timeout: float = TIMEOUT_S) -> Order:
        """One order; raises NotFound where this user has none of that id."""
        return _message(self.caller.call("GET", _order_path(order_id), timeout_s=timeout), Order)

    def list_orders(
        self,
        status: str = "",
        *,
        symbols: list[str] | None = None,
        side: str = "",
        after: str = "",
        until: str = "",
        timeout: float = TIMEOUT_S,
    ) -> Iterator[Order]:
        """This user's orders, newest first: an iterator that fetches page after page as it is read.

        status is "open", "closed" or "all"; after and until are RFC 3339 times. Nothing is asked before
        the first is read; `list(list_orders("open"))` reads them all.
        """
        query = {
            "status": status,
            "symbols": ",".join(_symbols(symbols)),
            "side": side,
            "after": after,
            "until": until,
            "limit": str(PAGE_SIZE),
        }
        for page in self._pages("/v1/orders", query, ListOrdersResponse, timeout):
            yield from page.orders

    def fills(self, *, symbol: str = "", order_id: str = "", timeout: float = TIMEOUT_S) -> Iterator[Fill]:
        """This user's fills, newest first: an iterator as that of `list_orders`."""
        query = {"symbol": symbol, "order_id": order_id, "limit": str(PAGE_SIZE)}
        for page in self._pages("/v1/fills", query, ListFillsResponse, timeout):
            yield from page.fills

    def _pages(self, path: str, query: dict[str, str], kind: type[P], timeout: float) -> Iterator[P]:
        while True:
            page = _message(self.caller.call("GET", path_with(path, query), timeout_s=timeout), kind)
            yield page
            if not page.next_page_token:
                return
            query = {**query, "page_token": page.next_page_token}

    def positions(self, *, timeout: float = TIMEOUT_S) -> list[Position]:
        """This user's positions."""
        from desk.v1.books_pb2 import ListPositionsResponse  # noqa: PLC0415  (not every strategy asks)

        response = self.caller.call("GET", "/v1/positions", timeout_s=timeout)
        return list(_message(response, ListPositionsResponse).positions)

    def account(self, *, timeout: float = TIMEOUT_S) -> Account:
        """This user's cash and what it is worth with the positions."""
        from desk.v1.books_pb2 import Account  # noqa: PLC0415  (as above)

        return _message(self.caller.call("GET", "/v1/account", timeout_s=timeout), Account)

    def latest(self, symbols: list[str] | None = None, *, timeout: float = TIMEOUT_S) -> dict[str, LatestLine]:
        """The newest bid, ask and price, per symbol. A symbol without any line yet is not there."""
        from desk.v1.market_pb2 import GetLatestResponse  # noqa: PLC0415  (as above)

        path = path_with("/v1/market/latest", {"symbols": ",".join(_symbols(symbols))})
        response = self.caller.call("GET", path, timeout_s=timeout)
        return {line.symbol: line for line in _message(response, GetLatestResponse).lines}

    def asset(self, symbol: str, *, timeout: float = TIMEOUT_S) -> Asset:
        """What may be done with a symbol: `tradable`, `fractionable`, `shortable`. Raises NotFound where the
        broker does not list it; Refused with the code NOT_READY where the broker does not say within `timeout`.
        """
        from desk.v1.market_pb2 import Asset  # noqa: PLC0415  (as above)

        return _message(self.caller.call("GET", f"/v1/assets/{quote(symbol)}", timeout_s=timeout), Asset)

    def clock(self, *, timeout: float = TIMEOUT_S) -> Clock:
        """Whether the market is open (`is_open`), and when it opens and closes next. Raises as `asset`."""
        from desk.v1.market_pb2 import Clock  # noqa: PLC0415  (as above)

        return _message(self.caller.call("GET", "/v1/clock", timeout_s=timeout), Clock)

    def calendar(self, start: date | str, end: date | str, *, timeout: float = TIMEOUT_S) -> list[TradingDay]:
        """The days on which the market trades, with their hours, from start to end: both included, at most 366.

        Both are New York dates: a date, or text such as "2026-11-27". Raises Refused for what is none (a
        datetime is none), and as `asset`.
        """
        from desk.v1.market_pb2 import Calendar  # noqa: PLC0415  (as above)

        path = path_with("/v1/calendar", {"start": str(start), "end": str(end)})
        return list(_message(self.caller.call("GET", path, timeout_s=timeout), Calendar).days)

    def market(self, symbols: list[str] | None = None, *, after: int | None = None) -> Iterator[Line]:
        """Market lines as dicts, one after the other: those on standard input.

        Each order then also says which fields of the line were read. With `symbols`, only theirs. Where
        standard input is a terminal, /dev/null or closed, or `after` is given, the lines come from the
        desk directly: those after that `seq`, or from now on. Raises ProtocolError for a line that is no
        JSON object.
        """
        from desk_client.feed import lines_of_desk, lines_of_stdin, stdin_has_lines  # noqa: PLC0415  (as above)

        wanted = _symbols(symbols)
        if after is None and stdin_has_lines():
            return lines_of_stdin(self._hand, wanted)
        return lines_of_desk(self.caller, self._hand, wanted, after)

    def updates(self, after: int | None = None, *, timeout: float = TIMEOUT_S) -> Updates:
        """What happens to this user's orders, as it happens: an endless iterator of OrderUpdate.

        Without `after`, from now on; with it, what came after that `seq` first. It reconnects and resumes
        by itself, so a desk's restart is not seen. Reading waits: give it a thread of its own in a
        strategy that also reads market lines. Raises DeskUnavailable where it cannot start within
        `timeout`.
        """
        from desk_client.update_stream import Updates  # noqa: PLC0415  (as above)

        return Updates(self.caller, after, timeout)


def new_request_id() -> str:
    """128 random bits in hex: no two orders in the world share one."""
    return os.urandom(16).hex()


def _order_path(order_id: str) -> str:
    if not order_id or order_id in (".", ".."):
        raise ConfigurationError("order_id is empty: give the order_id of an OrderResponse or an Order")
    return f"/v1/orders/{quote(order_id)}"


def _symbols(symbols: list[str] | None) -> list[str]:
    if isinstance(symbols, str):
        raise TypeError(f"symbols is the str {symbols!r}: give a list of symbols")
    return list(symbols or ())


def _text(value: Number | None, name: str) -> str:
    return "" if value is None else text_of(value, name)


def _take_profit(price: Number | None) -> TakeProfit | None:
    return None if price is None else TakeProfit(limit_price=text_of(price, "take_profit_price"))


def _stop_loss(price: Number | None, limit_price: Number | None) -> StopLoss | None:
    if price is None and limit_price is None:
        return None
    return StopLoss(stop_price=_text(price, "stop_loss_price"), limit_price=_text(limit_price, "stop_loss_limit_price"))


def _refused_here(message: str, raise_on_error: bool, request_id: str) -> OrderResponse:
    """The answer to what never left: as the desk would have answered it."""
    answer = OrderResponse(status="error", code="INVALID", message=f"{message}. Nothing was sent to the desk.")
    if raise_on_error:
        raise OrderRefused(answer, request_id=request_id)
    return answer


def _order_response(response: Response, raise_on_error: bool, request_id: str) -> OrderResponse:
    if response.status < 300:
        return _message(response, OrderResponse, request_id)
    problem = problem_of(response)
    if not problem.code:
        raise problem.error(request_id)
    answer = problem.order_response()
    if raise_on_error:
        raise OrderRefused(answer, status=response.status, request_id=request_id)
    return answer


def _message(response: Response, kind: type[M], request_id: str = "") -> M:
    """A good answer's message; an exception for any other."""
    if response.status >= 400:
        raise problem_of(response).error(request_id)
    if response.status >= 300 or response.content_type != PROTOBUF:
        raise ProtocolError(
            f"not an answer of a desk ({response.status}, {response.content_type or 'no content type'})."
            " Is DESK_SERVER_URL right?",
            request_id=request_id,
        )
    try:
        return kind.FromString(response.body)
    except DecodeError as error:
        raise ProtocolError(f"the answer's {kind.__name__} cannot be read", request_id=request_id) from error
