"""The naive server: FastAPI with a pydantic body and one SQLite commit per order, as one would write it in an
afternoon. No risk checks, no book, no broker. Tells where it listens on standard output."""

import asyncio
import json
import os
import socket
import sqlite3
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel

TOKENS = {"naive": "alice"}


class Body(BaseModel):
    symbol: str
    qty: float
    side: str
    order_type: str
    limit_price: float
    time_in_force: str
    request_id: str


directory = Path(os.environ["DESK_RUN_DIR"])
directory.mkdir(parents=True)
database = sqlite3.connect(directory / "naive.db", isolation_level=None, check_same_thread=False)
database.execute("PRAGMA journal_mode = WAL")
database.execute("PRAGMA synchronous = FULL")
database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, user TEXT, request_id TEXT UNIQUE, body TEXT)")
api = FastAPI()


@api.post("/v1/orders", status_code=201)
async def place(body: Body, authorization: str = Header()) -> dict[str, object]:
    user = TOKENS.get(authorization.removeprefix("Bearer "))
    if user is None:
        raise HTTPException(401)
    insert = "INSERT INTO orders (user, request_id, body) VALUES (?, ?, ?)"
    row = database.execute(insert, (user, body.request_id, body.model_dump_json()))
    return {"status": "success", "order_id": str(row.lastrowid), "order": body.model_dump()}


async def main() -> None:
    tcp = socket.create_server(("127.0.0.1", 0))
    path = directory / "naive.sock"
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(path))
    server = uvicorn.Server(uvicorn.Config(api, log_level="error", access_log=False, lifespan="off"))
    serving = asyncio.create_task(server.serve(sockets=[tcp, unix]))
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    print(json.dumps({"port": tcp.getsockname()[1], "socket": str(path), "token": "naive"}), flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main())
