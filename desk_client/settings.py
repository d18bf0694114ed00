"""Where the desk is and who asks: from the environment, or given.

DESK_SERVER_URL   http://host:port, https://host:port or unix:///path/of/desk.sock
                  (default http://127.0.0.1:8080)
DESK_TOKEN_FILE   a file whose first line is the token; read again when the desk refuses the token
DESK_TOKEN        the token itself, where there is no file
USER_ID           sent as X-User-ID; must be the token's user. Not sent when empty.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from desk_client.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8080"
ENVIRONMENT = ("DESK_SERVER_URL", "DESK_TOKEN_FILE", "DESK_TOKEN", "USER_ID")
TOKEN_BYTES_MAX = 4096


# No dataclasses in this package: they import inspect, 5 ms that every strategy would wait.
class Address(NamedTuple):
    """A desk's address: a path of a unix socket, or a host and port."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        if self.scheme == "unix":
            return "desk"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.scheme == "unix" else f"{self.scheme}://{self.host_header}"


def parse_url(url: str) -> Address:
    """Reads DESK_SERVER_URL; raises ConfigurationError where it cannot be right."""
    scheme, separator, rest = url.strip().partition("://")
    if scheme == "unix" and rest.startswith("/"):
        # sun_path holds 108 bytes with its closing zero (unix(7)).
        if len(os.fsencode(rest)) > 107:
            raise ConfigurationError(f"DESK_SERVER_URL: the socket's path is longer than 107 bytes: {rest}")
        return Address("unix", "", 0, rest)
    if not separator or scheme not in ("http", "https"):
        raise ConfigurationError(
            f"DESK_SERVER_URL is {url!r}; it must look like http://127.0.0.1:8080 or unix:///run/desk/desk.sock"
        )
    place = rest[:-1] if rest.endswith("/") else rest
    if "/" in place or "?" in place or "@" in place:
        raise ConfigurationError(f"DESK_SERVER_URL is {url!r}; it must end after the host and port")
    host, port = _host_and_port(place)
    default_port = "443" if scheme == "https" else "80"
    digits = port or default_port
    if not host or not host.isascii() or any(c <= " " for c in host) or not (digits.isascii() and digits.isdigit()):
        raise ConfigurationError(f"DESK_SERVER_URL is {url!r}; its host or port cannot be right")
    if not 0 < int(digits) < 65536:
        raise ConfigurationError(f"DESK_SERVER_URL is {url!r}; a port is 1 to 65535")
    return Address(scheme, host, int(digits), "")


def _host_and_port(place: str) -> tuple[str, str]:
    if place.startswith("["):
        host, _, port = place[1:].partition("]")
        return host, port.removeprefix(":")
    host, _, port = place.partition(":")
    return host, port


class Token:
    """The token, from a file that may be rewritten or as given. Empty where there is none."""

    def __init__(self, value: str = "", path: str = "") -> None:
        self._path = path
        self._value = _checked(value.strip(), "DESK_TOKEN")
        self._loaded = not path

    def value(self) -> str:
        if not self._loaded:
            self._value = self._read()
            self._loaded = True
        return self._value

    def changed(self, refused: str) -> bool:
        """After the desk refused a token: true where there is another one now, worth another try."""
        if self._path:
            self._value = self._read()
        return self._value != refused

    def _read(self) -> str:
        try:
            with open(self._path, "rb") as file:
                raw = file.read(TOKEN_BYTES_MAX)
        except OSError as error:
            raise ConfigurationError(f"DESK_TOKEN_FILE cannot be read: {error}") from error
        try:
            text = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            raise ConfigurationError(f"DESK_TOKEN_FILE: {self._path} does not hold a token") from None
        if not text:
            raise ConfigurationError(f"DESK_TOKEN_FILE: {self._path} is empty")
        return _checked(text, f"DESK_TOKEN_FILE: {self._path}")


class Settings:
    """Whom to ask, and as whom."""

    __slots__ = ("address", "token", "user_id")

    def __init__(self, address: Address, token: Token, user_id: str = "") -> None:
        self.address = address
        self.token = token
        self.user_id = user_id


def from_environment() -> Settings:
    """Raises ConfigurationError with the variable's name where one cannot be right."""
    return Settings(
        address=parse_url(os.environ.get("DESK_SERVER_URL") or DEFAULT_URL),
        token=Token(os.environ.get("DESK_TOKEN", ""), os.environ.get("DESK_TOKEN_FILE", "")),
        user_id=checked_user(os.environ.get("USER_ID", "")),
    )


def checked_user(user_id: str) -> str:
    """A user's id fit for a header. The desk decides whether there is such a user."""
    return _checked(user_id.strip(), "the user id")


def _checked(text: str, what: str) -> str:
    """No spaces, line ends or controls: nothing may add a header of its own."""
    if any(not "!" <= c <= "~" for c in text):
        raise ConfigurationError(f"{what} holds a character that cannot be sent in a header")
    return text
