"""From a request's credential to an identity; the same for HTTP and gRPC."""

from ipaddress import IPv6Address, ip_address
from typing import Protocol

from desk_server.domain import USER_PATTERN, Identity, Role, UserId
from desk_server.errors import Code, DeskError
from desk_server.settings import Settings

# Whoever comes without a name in trust mode, as in the original desk.
DEFAULT_USER = UserId("default_user")
# The peer's name where it came over a unix socket; everything else is an IP address, or "" where unknown.
UNIX_PEER = "unix"
_TOKEN_LENGTH_MAX = 512


class TokenBook(Protocol):
    """What this module needs of `registry.Registry`."""

    def authenticate(self, token: str) -> Identity:
        """Raises DeskError UNAUTHENTICATED."""
        ...

    def is_revoked(self, token_id: str) -> bool:
        """Whether a token that was good once is not any more."""
        ...


class Door:
    """Decides who asks. `live` is the broker's: a live account never takes a name on trust."""

    def __init__(self, tokens: TokenBook, settings: Settings, *, live: bool) -> None:
        self._tokens = tokens
        self._trusting = settings.trust_user_header and not live

    def identify(self, authorization: str | None, user_header: str | None, peer: str) -> Identity:
        """Raises DeskError UNAUTHENTICATED (no or a bad token) or FORBIDDEN (X-User-ID is not the token's user)."""
        if authorization is None:
            if self._trusting and is_local(peer):
                return _taken_on_trust(user_header)
            raise DeskError(
                Code.UNAUTHENTICATED, "no token: send the header `Authorization: Bearer <token>` with every request"
            )
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token or len(token) > _TOKEN_LENGTH_MAX or not token.isascii():
            raise DeskError(
                Code.UNAUTHENTICATED, "malformed credential: the header must be `Authorization: Bearer <token>`"
            )
        who = self._tokens.authenticate(token)
        if user_header is not None and user_header != who.user:
            raise DeskError(
                Code.FORBIDDEN,
                "X-User-ID is not the user of this token: leave the header out, or use that user's own token",
            )
        return who

    def stands(self, who: Identity) -> bool:
        """Whether `who`, whom this door has identified, would still be by the same credential."""
        return not who.token_id or not self._tokens.is_revoked(who.token_id)


def is_local(peer: str) -> bool:
    """True for unix sockets and loopback addresses. An unknown peer is not local."""
    return peer == UNIX_PEER or is_loopback(peer)


def is_loopback(text: str) -> bool:
    """True for an IP address of this machine itself; names are not looked up."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def admin(who: Identity) -> Identity:
    if not who.is_admin:
        raise DeskError(Code.FORBIDDEN, "only administrators may do this: use the token in run/admin.token")
    return who


def chosen_user(who: Identity, user_id: str) -> UserId | None:
    """Whose things are meant: None means everybody's ("*", administrators only). Raises DeskError.

    An administrator has no book, and names the user: what is meant for one must not befall another.
    """
    if who.is_admin and not user_id:
        raise DeskError(
            Code.INVALID, 'say whose: user_id must name a user, or be "*" for everybody (administrators only)'
        )
    if not user_id or user_id == who.user:
        return who.user
    if user_id == "*" and who.is_admin:
        return None
    return _other_user(who, user_id)


def _other_user(who: Identity, user_id: str) -> UserId:
    if not who.is_admin:
        raise DeskError(Code.NOT_FOUND, "there is no such user for this token: leave user_id out to see your own")
    if not USER_PATTERN.fullmatch(user_id):
        raise DeskError(
            Code.INVALID, "user_id must be 1 to 32 letters, digits, - or _, beginning with a letter or digit"
        )
    return UserId(user_id)


def _taken_on_trust(user_header: str | None) -> Identity:
    user = user_header or DEFAULT_USER
    if not USER_PATTERN.fullmatch(user):
        raise DeskError(
            Code.INVALID, "X-User-ID must be 1 to 32 letters, digits, - or _, beginning with a letter or digit"
        )
    return Identity(user=UserId(user), role=Role.TRADE)
