"""`python -m desk_server.ledger FILE`: checks a ledger, also one that a running desk has open.

Exits 0 when every event is as it was written, 1 where one is not, 2 when the file cannot be read.
"""

import sys
from pathlib import Path

from desk_server.ledger import LedgerUnavailable
from desk_server.ledger.sqlite_file import last_event, verify


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m desk_server.ledger FILE", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    try:
        seq, last_hash = last_event(path)
    except LedgerUnavailable as error:
        print(error, file=sys.stderr)
        return 2
    if bad := verify(path):
        print(f"{path}: event {bad} is missing or not what was written; {bad - 1} events before it are whole")
        return 1
    print(f"{path}: {seq} events, all as they were written; the last one's hash is {last_hash.hex()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
