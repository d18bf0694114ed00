"""Writes the names of the server's settings into docker-compose.yml, between its two `settings:` comments.

Compose passes on no variable that it does not name. Run this after adding a setting; a test notices if not.
"""

import re
import sys
from pathlib import Path

from desk_server.settings import table

FIXED_BY_COMPOSE = {"HOST", "PORT", "GRPC_PORT", "DESK_RUN_DIR", "DESK_SOCKET_GID"}
BLOCK = re.compile(r"(?P<begin> *# settings: begin\n)(.*\n)*?(?P<end> *# settings: end\n)")


def with_settings(text: str) -> str:
    names = [name for name, _, _ in table() if name not in FIXED_BY_COMPOSE]
    lines = "".join(f"      - {name}\n" for name in names)
    return BLOCK.sub(lambda found: found["begin"] + lines + found["end"], text, count=1)


if __name__ == "__main__":
    file = Path(__file__).resolve().parent.parent / "docker-compose.yml"
    file.write_text(with_settings(file.read_text()))
    sys.stdout.write(f"{file.name} names every setting\n")
