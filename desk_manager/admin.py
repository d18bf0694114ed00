"""The desk's admin API, as the manager needs it: deployments and readiness, over HTTP or the unix socket."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from desk_manager.config import StrategyConfig
from desk_manager.errors import DeskUnreachable, ManagerError
from desk_manager.settings import Settings

TIMEOUT_S = 10.0

# A deployment's id becomes a directory's name, and a token a header.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,512}")

Deployment = Mapping[str, Any]


class DeskAdmin:
    """A client of one desk. Safe to use from many threads.

    Every call raises DeskUnreachable where no desk answers or our token is not taken,
    and ManagerError for what the desk refuses.
    """

    def __init__(self, settings: Settings, read_elsewhere: Callable[[], str | None] = lambda: None) -> None:
        """`read_elsewhere` finds the admin token where the file may not be read (a desk in a container)."""
        self._settings = settings
        self._read_elsewhere = read_elsewhere
        url = settings.server_url
        on_socket = url.startswith("unix://")
        self._http = httpx.Client(
            base_url="http://desk" if on_socket else url,
            transport=httpx.HTTPTransport(uds=url.removeprefix("unix://") if on_socket else None),
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        self._token = ""

    def close(self) -> None:
        self._http.close()

    def readiness(self) -> Mapping[str, Any]:
        """What /readyz says: ready, reasons, broker, live."""
        answer = self._send("GET", "/readyz", signed=False)
        if answer.status_code not in (200, 503):
            raise self._refused(answer)
        return self._object(answer)

    def deployments(self) -> list[Deployment]:
        """Every deployment whose token is good."""
        answer = self._send("GET", "/v1/deployments")
        if answer.status_code != 200:
            raise self._refused(answer)
        listed = self._object(answer).get("deployments", [])
        return [one for one in listed if not one.get("revoked_at")]

    def create(self, config: StrategyConfig, code_hash: str) -> tuple[str, str]:
        """Register a deployment: its id and its token, which is shown this once."""
        body = {
            "user_id": config.user_id,
            "strategy": config.strategy,
            "code_hash": code_hash,
            "name": config.name,
            "description": config.description,
            "version": config.version,
            "symbols": list(config.symbols),
        }
        answer = self._send("POST", "/v1/deployments", json=body)
        if answer.status_code not in (200, 201):
            raise self._refused(answer)
        content = self._object(answer)
        deployment_id, token = str(content["deployment"]["deployment_id"]), str(content["token"])
        if not _ID.fullmatch(deployment_id) or not _TOKEN.fullmatch(token):
            raise ManagerError("the desk gave an id or a token that is none", "look at the desk's version and log")
        return deployment_id, token

    def revoke(self, deployment_id: str) -> None:
        """End a deployment's token; one that is not there any more is fine."""
        answer = self._send("DELETE", f"/v1/deployments/{deployment_id}")
        if answer.status_code not in (200, 204, 404, 409):
            raise self._refused(answer)

    def _send(self, method: str, path: str, signed: bool = True, json: object = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._admin_token()}"} if signed else {}
        try:
            answer = self._http.request(method, path, headers=headers, json=json)
        except httpx.TransportError as error:
            raise DeskUnreachable(
                f"no desk answers at {self._settings.server_url} ({str(error) or type(error).__name__})",
                "start the desk (`make up`, or .venv/bin/python -m desk_server), "
                "or set DESK_SERVER_URL or DESK_RUN_DIR to where it is",
            ) from None
        if answer.status_code in (401, 403):
            self._token = ""
            raise DeskUnreachable(
                f"the desk does not take the admin token of {self._settings.admin_token_file}",
                "use the token file of this desk's run directory (DESK_RUN_DIR or DESK_ADMIN_TOKEN_FILE)",
            )
        return answer

    def _admin_token(self) -> str:
        if not self._token:
            path = self._settings.admin_token_file
            try:
                self._token = _read_token(path)
            except OSError as error:
                found = self._read_elsewhere() if isinstance(error, PermissionError) else None
                if not found or not _TOKEN.fullmatch(found.strip()):
                    why = error.strerror or str(error)
                    raise DeskUnreachable(
                        f"the admin token {path} cannot be read: {why}",
                        "start the desk once (it makes the file), run this as the same user, "
                        "or set DESK_ADMIN_TOKEN_FILE",
                    ) from None
                self._token = found.strip()
        return self._token

    def _object(self, answer: httpx.Response) -> Mapping[str, Any]:
        try:
            content = answer.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise DeskUnreachable(
                f"what answers at {self._settings.server_url} is no desk (HTTP {answer.status_code})",
                "check DESK_SERVER_URL",
            )
        return content

    def _refused(self, answer: httpx.Response) -> ManagerError:
        content = self._object(answer)
        return ManagerError(
            f"the desk refused: {content.get('code', answer.status_code)}: {content.get('message', '')}",
            "do as the desk says, and look at its log",
        )


def _read_token(path: Path) -> str:
    """The token in this file. Raises OSError, also for what is no token: it will be sent to the desk.

    The desk's server may own the directory, so neither a link nor another kind of file is followed there.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        raw = file.read(1024) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    token = raw.decode("ascii", "replace").strip()
    if not _TOKEN.fullmatch(token):
        raise OSError("it holds no token")
    return token
