"""A connection to PostgreSQL for the ledger: durable or refused, with an end to every wait, arrays sent fast."""

import struct
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.abc import Buffer, PQGen
from psycopg.adapt import Dumper
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Format, TransactionStatus
from psycopg.rows import TupleRow

from desk_server.ledger import LedgerUnavailable

# How long the server may work at one statement, or wait for a lock, before it gives up by itself.
STATEMENT_S = 5
LOCK_S = 2
# How long it may be silent before the connection is given up.
ANSWER_S = 10.0
_CONNECT_S = 5
# What must be on for an acknowledged commit to survive a crash of the machine; their names in pg_settings.
_DURABLE = {
    "fsync": {"on"},
    "full_page_writes": {"on"},
    "synchronous_commit": {"on", "local", "remote_write", "remote_apply"},
}
_INT8_ARRAY, _INT4_ARRAY, _TEXT_ARRAY, _BYTEA_ARRAY = 1016, 1007, 1009, 1001
_INT8, _INT4, _TEXT, _BYTEA = 20, 23, 25, 17

_Value = TypeVar("_Value")


class Link(psycopg.Connection[TupleRow]):
    """Closes itself, and raises OperationalError, when the server is silent for `answer_s` seconds."""

    answer_s: float | None = ANSWER_S

    def wait(self, gen: PQGen[_Value], interval: float = 0.1, timeout: float | None = None) -> _Value:
        try:
            return super().wait(gen, interval, self.answer_s if timeout is None else timeout)
        except psycopg.OperationalError:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # The answer may still come: nobody may take it for the answer to something else.
                self.pgconn.finish()
            raise

    @property
    def is_idle(self) -> bool:
        """True when the server has answered the last statement to its end: it is committed or rolled back."""
        return not self.closed and self.pgconn.transaction_status == TransactionStatus.IDLE


def connect(url: str, purpose: str) -> Link:
    """A connection on which a commit is durable. Raises LedgerUnavailable, saying what to do."""
    name = name_of(url)
    try:
        link = Link.connect(
            url,
            autocommit=True,
            application_name=f"desk {purpose}",
            connect_timeout=_CONNECT_S,
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
            tcp_user_timeout=int(ANSWER_S * 1000),
            client_encoding="UTF8",
        )
    except psycopg.Error as error:
        raise LedgerUnavailable(f"cannot connect to the ledger {name}: {_one_line(error)}") from error
    try:
        for setting, value in (
            ("statement_timeout", f"{STATEMENT_S}s"),
            ("lock_timeout", f"{LOCK_S}s"),
            ("idle_in_transaction_session_timeout", "60s"),
            ("TimeZone", "UTC"),
        ):
            link.execute("SELECT set_config(%s, %s, false)", (setting, value))
        _refuse_what_is_not_durable(link, name)
        _register(link)
    except psycopg.Error as error:
        link.close()
        raise LedgerUnavailable(f"the ledger {name} cannot be used: {_one_line(error)}") from error
    except BaseException:
        link.close()
        raise
    return link


def name_of(url: str) -> str:
    """For messages: without password and options."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.Error as error:
        raise LedgerUnavailable(
            "DESK_DATABASE_URL is no address of a PostgreSQL database: postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from error
    host, port = parts.get("host", "localhost"), parts.get("port")
    return f"{parts.get('dbname') or parts.get('user') or 'of the default name'} at {host}{f':{port}' if port else ''}"


def _refuse_what_is_not_durable(link: Link, name: str) -> None:
    rows = link.execute(
        "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)",
        ([*_DURABLE, "server_encoding"],),
    ).fetchall()
    settings: dict[str, str] = dict(rows)
    for setting, good in _DURABLE.items():
        if settings[setting] not in good:
            raise LedgerUnavailable(
                f"the ledger {name} would lose what was acknowledged: the server has {setting} = "
                f"{settings[setting]}. Set {setting} = on in postgresql.conf, reload, and start the desk again"
            )
    if settings["server_encoding"] != "UTF8":
        raise LedgerUnavailable(f"the database {name} is not in UTF-8: create it with ENCODING 'UTF8'")
    row = link.execute("SELECT pg_is_in_recovery()").fetchone()
    if row is None or row[0]:
        raise LedgerUnavailable(f"the server of {name} is a standby: give the desk the address of the primary")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


# Arrays in PostgreSQL's binary format (src/backend/utils/adt/arrayfuncs.c, array_recv): dimensions, whether there
# are nulls, element type, length, lower bound; then each element's length and bytes. Put together here at a third
# of what the driver's own dumpers cost: a batch is thousands of values.


class Int8Array(bytes): ...


class Int4Array(bytes): ...


class TextArray(bytes): ...


class ByteaArray(bytes): ...


_HEAD = struct.Struct("!iiiii")
_LENGTH = struct.Struct("!i").pack
_NULL = _LENGTH(-1)


def int8s(values: Iterable[int]) -> Int8Array:
    pack = struct.Struct("!q").pack
    return Int8Array(_array(_INT8, [pack(value) for value in values]))


def int4s(values: Iterable[int]) -> Int4Array:
    return Int4Array(_array(_INT4, [_LENGTH(value) for value in values]))


def texts(values: Iterable[str | None]) -> TextArray:
    return TextArray(_array(_TEXT, [None if value is None else value.encode() for value in values]))


def byteas(values: Iterable[bytes]) -> ByteaArray:
    return ByteaArray(_array(_BYTEA, list(values)))


def _array(element: int, items: Sequence[bytes | None]) -> bytes:
    parts = [_HEAD.pack(1, 1, element, len(items), 1) if items else _HEAD.pack(0, 0, element, 0, 0)[:12]]
    for item in items:
        if item is None:
            parts.append(_NULL)
        else:
            parts.append(_LENGTH(len(item)))
            parts.append(item)
    return b"".join(parts)


class _AsItIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Any) -> Buffer | None:
        return bytes(obj)


class _DumpInt8(_AsItIs):
    oid = _INT8_ARRAY


class _DumpInt4(_AsItIs):
    oid = _INT4_ARRAY


class _DumpText(_AsItIs):
    oid = _TEXT_ARRAY


class _DumpBytea(_AsItIs):
    oid = _BYTEA_ARRAY


def _register(link: Link) -> None:
    for kind, dumper in (
        (Int8Array, _DumpInt8),
        (Int4Array, _DumpInt4),
        (TextArray, _DumpText),
        (ByteaArray, _DumpBytea),
    ):
        link.adapters.register_dumper(kind, dumper)
