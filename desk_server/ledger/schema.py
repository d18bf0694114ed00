"""The ledger's tables in SQLite, one numbered step after the other. A step that was released never changes."""

# "DESK": tells a desk's ledger from any other SQLite file.
APPLICATION_ID = 0x4445534B

MIGRATIONS = (
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        user TEXT NOT NULL,
        order_id TEXT NOT NULL,
        dedupe TEXT,
        body BLOB NOT NULL,
        hash BLOB NOT NULL
    );
    CREATE UNIQUE INDEX events_dedupe ON events (dedupe) WHERE dedupe IS NOT NULL;
    CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: events are never changed'); END;
    CREATE TRIGGER events_are_never_deleted BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: events are never deleted'); END;
    """,
)
