"""The ledger's tables in PostgreSQL, one numbered step after the other. A step that was released never changes.

The numbers are those of `schema.py`. Everything lies in a schema of its own, `desk`. After its statements, step 2
also posts the events that were stored before it (`postgres_file.py`).
"""

# The step with which events get postings.
POSTINGS = 2

MIGRATIONS = (
    """
    CREATE SCHEMA desk;
    CREATE TABLE desk.migrations (
        version integer PRIMARY KEY,
        at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE TABLE desk.events (
        seq bigint PRIMARY KEY CHECK (seq > 0),
        at timestamptz NOT NULL,
        kind text NOT NULL,
        "user" text NOT NULL,
        order_id text NOT NULL,
        dedupe text,
        body bytea NOT NULL,
        hash bytea NOT NULL
    );
    CREATE UNIQUE INDEX events_dedupe ON desk.events (dedupe) WHERE dedupe IS NOT NULL;
    CREATE FUNCTION desk.refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'the ledger is append-only: % of % is refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END $$;
    CREATE TRIGGER events_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON desk.events
        FOR EACH STATEMENT EXECUTE FUNCTION desk.refuse();
    ALTER TABLE desk.events ENABLE ALWAYS TRIGGER events_are_append_only;

    -- Which connection may write: its epoch, raised by every new one. Locked by each commit and each takeover.
    CREATE TABLE desk.fence (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        epoch bigint NOT NULL,
        holder text NOT NULL
    );
    INSERT INTO desk.fence (epoch, holder) VALUES (0, '');
    -- Who holds the ledger, and the count of the signs of life that it has given.
    CREATE TABLE desk.lease (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        holder text NOT NULL DEFAULT '',
        host text NOT NULL DEFAULT '',
        pid integer NOT NULL DEFAULT 0,
        machine text NOT NULL DEFAULT '',
        started text NOT NULL DEFAULT '',
        since timestamptz NOT NULL DEFAULT clock_timestamp(),
        lease_s double precision NOT NULL DEFAULT 0,
        beats bigint NOT NULL DEFAULT 0,
        renewed_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    INSERT INTO desk.lease DEFAULT VALUES;
    """,
    """
    CREATE TABLE desk.postings (
        seq bigint NOT NULL CHECK (seq > 0),
        n integer NOT NULL,
        account text NOT NULL,
        asset text NOT NULL,
        amount numeric NOT NULL,
        PRIMARY KEY (seq, n)
    );
    CREATE INDEX postings_account ON desk.postings (account, asset);
    CREATE TRIGGER postings_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON desk.postings
        FOR EACH STATEMENT EXECUTE FUNCTION desk.refuse();
    ALTER TABLE desk.postings ENABLE ALWAYS TRIGGER postings_are_append_only;
    CREATE FUNCTION desk.check_balance() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF (SELECT sum(amount) FROM desk.postings WHERE seq = NEW.seq AND asset = NEW.asset) <> 0 THEN
            RAISE EXCEPTION 'the postings of event % do not sum to zero in %', NEW.seq, NEW.asset
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER postings_balance AFTER INSERT ON desk.postings DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION desk.check_balance();
    ALTER TABLE desk.postings ENABLE ALWAYS TRIGGER postings_balance;
    """,
)
