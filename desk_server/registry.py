"""Who may ask: tokens, deployments and their signs of life. Folded from the same ledger as the book."""

import asyncio
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable, Coroutine
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import Struct

from desk_server.clock import Clock
from desk_server.domain import STRATEGY_PATTERN, USER_PATTERN, Identity, Role, UserId
from desk_server.errors import Code, DeskError
from desk_server.events import (
    AnyEvent,
    DeploymentCreated,
    DeploymentRevoked,
    TokenIssued,
    TokenRevoked,
)
from desk_server.ids import new_ulid

ADMIN = UserId("admin")
_TOKEN = re.compile(r"desk_[a-z]+_([0-9a-f]{16})_[0-9a-f]{64}")
_CODE_HASH = re.compile(r"[0-9a-f]{64}")
# Compared when the token's id is unknown, so that an unknown id takes as long as a wrong secret.
_NOBODY = hashlib.sha256(secrets.token_bytes(32)).hexdigest()

_FOLDED = frozenset({TokenIssued, TokenRevoked, DeploymentCreated, DeploymentRevoked})

Record = Callable[..., Coroutine[Any, Any, None]]


class DeploymentSpec(Struct, frozen=True):
    """What the strategy manager says of the folder that it is about to run."""

    user: str
    strategy: str
    code_hash: str
    name: str = ""
    description: str = ""
    version: str = ""
    symbols: tuple[str, ...] = ()


class Deployment(Struct):
    """A strategy folder's code under a user's name, with one token of its own."""

    deployment_id: str
    spec: DeploymentCreated
    revoked_at: datetime | None = None
    lines_read: int = 0
    last_seq: int = 0
    # When the strategy was last known to have read a line, by the desk's clock.
    last_line_at: datetime | None = None
    heartbeat_at: datetime | None = None
    orders: int = 0
    fills: int = 0
    # One entry per open market stream: how many lines it was sent.
    streams: dict[int, Callable[[], int]] = {}

    @property
    def connected(self) -> bool:
        return bool(self.streams)

    @property
    def lines_sent(self) -> int:
        return sum(count() for count in self.streams.values())


class _Token(Struct):
    issued: TokenIssued
    identity: Identity
    revoked: bool = False


class Registry:
    """`record(*events)` makes events durable and folds them; it raises DeskError when it cannot."""

    def __init__(self, record: Record, clock: Clock) -> None:
        self._record = record
        self._clock = clock
        self._tokens: dict[str, _Token] = {}
        self._deployments: dict[str, Deployment] = {}
        self._revoked: dict[str, asyncio.Event] = {}

    def fold(self, event: AnyEvent) -> None:
        if type(event) not in _FOLDED:
            return
        match event:
            case TokenIssued():
                identity = Identity(
                    user=event.user,
                    role=event.role,
                    strategy=event.strategy or "manual",
                    deployment_id=event.deployment_id,
                    token_id=event.token_id,
                )
                self._tokens[event.token_id] = _Token(event, identity)
            case TokenRevoked():
                self._tokens[event.token_id].revoked = True
                if waiting := self._revoked.pop(event.token_id, None):
                    waiting.set()
            case DeploymentCreated():
                self._deployments[event.deployment_id] = Deployment(event.deployment_id, event, streams={})
            case DeploymentRevoked():
                self._deployments[event.deployment_id].revoked_at = event.at

    def authenticate(self, token: str) -> Identity:
        """Who this token stands for. Raises DeskError UNAUTHENTICATED; the same words whatever is wrong."""
        match = _TOKEN.fullmatch(token)
        known = self._tokens.get(match[1]) if match else None
        expected = known.issued.sha256 if known else _NOBODY
        right = hmac.compare_digest(_sha256(token), expected)
        if not right or known is None or known.revoked:
            raise DeskError(
                Code.UNAUTHENTICATED,
                "this token is not (or no longer) valid: ask the desk's administrator for one, "
                "or restart the strategy with strategy_manager.py",
            )
        return known.identity

    def is_revoked(self, token_id: str) -> bool:
        """Of a token that has been issued."""
        return self._tokens[token_id].revoked

    def revocation(self, token_id: str) -> asyncio.Event:
        """Set when the token is revoked: long-lived streams end then. Share it, do not clear it."""
        if self._tokens[token_id].revoked:
            done = asyncio.Event()
            done.set()
            return done
        return self._revoked.setdefault(token_id, asyncio.Event())

    async def create_deployment(self, spec: DeploymentSpec) -> tuple[Deployment, str]:
        """A new deployment and its token, which is shown this once. Raises DeskError INVALID."""
        user = user_of(spec.user)
        if not STRATEGY_PATTERN.fullmatch(spec.strategy):
            raise DeskError(
                Code.INVALID,
                f"strategy {spec.strategy!r} must be 1 to 63 of a-z, 0-9, _ and -, beginning with a letter or digit",
            )
        if not _CODE_HASH.fullmatch(spec.code_hash):
            raise DeskError(Code.INVALID, "code_hash must be the SHA-256 of the staged folder: 64 hex digits")
        deployment_id = new_ulid().lower()
        token_id, token = _new_token("strategy")
        now = self._clock.now()
        await self._record(
            DeploymentCreated(
                at=now,
                deployment_id=deployment_id,
                user=user,
                strategy=spec.strategy,
                code_hash=spec.code_hash,
                name=spec.name,
                description=spec.description,
                version=spec.version,
                symbols=spec.symbols,
            ),
            TokenIssued(
                at=now,
                token_id=token_id,
                sha256=_sha256(token),
                role=Role.STRATEGY,
                user=user,
                strategy=spec.strategy,
                deployment_id=deployment_id,
            ),
        )
        return self._deployments[deployment_id], token

    async def revoke_deployment(self, deployment_id: str) -> Deployment:
        """End its token. Revoking twice is the same as once. Raises DeskError NOT_FOUND."""
        deployment = self.deployment(deployment_id)
        if deployment.revoked_at is None:
            now = self._clock.now()
            tokens = [t for t in self._tokens.values() if t.issued.deployment_id == deployment_id and not t.revoked]
            await self._record(
                DeploymentRevoked(at=now, deployment_id=deployment_id),
                *(TokenRevoked(at=now, token_id=token.issued.token_id) for token in tokens),
            )
        return deployment

    def deployment(self, deployment_id: str) -> Deployment:
        try:
            return self._deployments[deployment_id]
        except KeyError:
            raise DeskError(Code.NOT_FOUND, f"there is no deployment {deployment_id!r}: list them first") from None

    def deployments(self, *, revoked_too: bool = False) -> list[Deployment]:
        """Newest first."""
        return [d for d in reversed(self._deployments.values()) if revoked_too or d.revoked_at is None]

    async def create_user_token(self, user: str, role: str, label: str) -> tuple[str, str]:
        """(token id, token) for a person. Raises DeskError INVALID."""
        if role not in (Role.READ, Role.TRADE):
            raise DeskError(Code.INVALID, f'role {role!r} must be "read" or "trade"')
        return await self._issue(user_of(user), Role(role), label)

    async def revoke_token(self, token_id: str) -> None:
        token = self._tokens.get(token_id)
        if token is None:
            raise DeskError(Code.NOT_FOUND, f"there is no token {token_id!r}")
        if not token.revoked:
            await self._record(TokenRevoked(at=self._clock.now(), token_id=token_id))

    def heartbeat(self, who: Identity, lines_read: int, last_seq: int) -> None:
        """A strategy's sign of life. Raises DeskError FORBIDDEN for tokens that are no deployment's."""
        if not who.deployment_id:
            raise DeskError(Code.FORBIDDEN, "heartbeats are sent with a deployment's own token")
        deployment = self._deployments[who.deployment_id]
        now = self._clock.now()
        if lines_read != deployment.lines_read or last_seq != deployment.last_seq:
            deployment.last_line_at = now
        deployment.lines_read, deployment.last_seq, deployment.heartbeat_at = lines_read, last_seq, now

    def count(self, deployment_id: str, *, orders: int = 0, fills: int = 0) -> None:
        if deployment := self._deployments.get(deployment_id):
            deployment.orders += orders
            deployment.fills += fills

    def stream_opened(self, who: Identity, lines_sent: Callable[[], int]) -> Callable[[], None]:
        """Note an open market stream; call what is returned when it has ended."""
        deployment = self._deployments.get(who.deployment_id)
        if deployment is None:
            return lambda: None
        streams = deployment.streams
        streams[id(lines_sent)] = lines_sent
        return lambda: _forget(streams, lines_sent)

    async def ensure_admin_token(self, path: Path) -> None:
        """Keep `path` (0600) holding a token that works; a lost file means a new token and the old ones' end."""
        if self._is_admin_token(path):
            return
        for token in [t for t in self._tokens.values() if t.issued.role is Role.ADMIN and not t.revoked]:
            await self.revoke_token(token.issued.token_id)
        _, secret = await self._issue(ADMIN, Role.ADMIN, "made at start")
        _write_secret(path, secret)

    def _is_admin_token(self, path: Path) -> bool:
        try:
            return self.authenticate(path.read_text().strip()).role is Role.ADMIN
        except (FileNotFoundError, DeskError):
            return False

    async def _issue(self, user: UserId, role: Role, label: str) -> tuple[str, str]:
        token_id, token = _new_token("admin" if role is Role.ADMIN else "user")
        issued = TokenIssued(
            at=self._clock.now(), token_id=token_id, sha256=_sha256(token), role=role, user=user, label=label
        )
        await self._record(issued)
        return token_id, token


def user_of(text: str) -> UserId:
    """A well-formed user id. Raises DeskError INVALID."""
    if not USER_PATTERN.fullmatch(text):
        raise DeskError(
            Code.INVALID,
            f"user_id {text[:80]!r} must be 1 to 32 letters, digits, _ and -, beginning with a letter or digit",
        )
    return UserId(text)


def _new_token(kind: str) -> tuple[str, str]:
    token_id = secrets.token_hex(8)
    return token_id, f"desk_{kind}_{token_id}_{secrets.token_hex(32)}"


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def _forget(streams: dict[int, Callable[[], int]], lines_sent: Callable[[], int]) -> None:
    streams.pop(id(lines_sent), None)


def _write_secret(path: Path, secret: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
