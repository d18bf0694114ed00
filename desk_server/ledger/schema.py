"""The ledger's tables in SQLite, one numbered step after the other. A step that was released never changes.

After its statements, step 2 also posts the events that were stored before it (`sqlite_file.py`).
"""

# "DESK": tells a desk's ledger from any other SQLite file.
APPLICATION_ID = 0x4445534B
# The step with which events get postings.
POSTINGS = 2

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
    """
    CREATE TABLE postings (
        seq INTEGER NOT NULL CHECK (seq > 0),
        n INTEGER NOT NULL,
        account TEXT NOT NULL,
        asset TEXT NOT NULL,
        amount TEXT NOT NULL,
        PRIMARY KEY (seq, n)
    ) WITHOUT ROWID;
    CREATE INDEX postings_account ON postings (account, asset);
    CREATE TRIGGER postings_are_never_changed BEFORE UPDATE ON postings
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: postings are never changed'); END;
    CREATE TRIGGER postings_are_never_deleted BEFORE DELETE ON postings
    BEGIN SELECT RAISE(ABORT, 'the ledger is append-only: postings are never deleted'); END;
    CREATE TABLE lease (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL,
        holder TEXT NOT NULL
    );
    INSERT INTO lease VALUES (1, 0, '');
    """,
)
