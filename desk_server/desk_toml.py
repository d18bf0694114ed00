"""desk.toml: what the desk is told about its users. Today: whose account at the broker is whose.

[users.alice]
alpaca_account_id = "3dcb795c-3ccc-402a-abb9-07e26a1b1326"
"""

import tomllib
from pathlib import Path
from typing import Any
from uuid import UUID

from desk_server.domain import USER_PATTERN, UserId


class BadConfig(ValueError):
    """The file cannot be used; the message names the file, the place and what to do."""


def account_ids(path: Path) -> dict[UserId, str]:
    """Each user's `alpaca_account_id`. Raises BadConfig, also where two users would share an account."""
    owners: dict[str, UserId] = {}
    for user, told in _users(path).items():
        where = f"{path}: users.{user}"
        if not USER_PATTERN.fullmatch(user):
            raise BadConfig(f"{where}: a user is named by 1-32 letters, digits, '-' or '_'")
        if not isinstance(told, dict) or set(told) != {"alpaca_account_id"}:
            raise BadConfig(f"{where} needs alpaca_account_id, and nothing else is known there")
        account_id = _account_id(where, told["alpaca_account_id"])
        if account_id in owners:
            raise BadConfig(f"{where} and users.{owners[account_id]} have the same account: give each their own")
        owners[account_id] = UserId(user)
    return {user: account_id for account_id, user in owners.items()}


def _users(path: Path) -> dict[str, Any]:
    try:
        told = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}") from error
    users = told.pop("users", {})
    if told:
        raise BadConfig(f"{path}: {', '.join(sorted(told))} is not known here: it has [users.<id>] tables")
    if not isinstance(users, dict) or not users:
        raise BadConfig(f"{path} names no user: add a table [users.<id>] for each")
    return users


def _account_id(where: str, told: object) -> str:
    try:
        return str(UUID(told)) if isinstance(told, str) else str(UUID(""))
    except ValueError as error:
        raise BadConfig(f"{where}.alpaca_account_id is {told!r}: it is a UUID, as the Broker API tells it") from error
