-- The log: events, and the sequence that gives them their positions.

CREATE TABLE {schema}.events (
    position    bigint      NOT NULL,
    stream      text        NOT NULL,
    revision    bigint      NOT NULL,
    type        text        NOT NULL,
    -- json, not jsonb: an event is stored as it was written, numbers included.
    data        json        NOT NULL,
    metadata    json,
    recorded_at timestamptz NOT NULL DEFAULT statement_timestamp(),
    CONSTRAINT events_pkey PRIMARY KEY (position),
    CONSTRAINT events_stream_revision UNIQUE (stream, revision)
);

-- Not compressed: the size of an event is then known without reading it, and batches are bounded by it.
ALTER TABLE {schema}.events ALTER COLUMN data SET STORAGE EXTERNAL;

-- last_value must mean "the newest position drawn" from the start, so the sequence begins as if 0 had been drawn.
-- CACHE 1: a session that kept positions back would draw them below leases that others have already looked at.
CREATE SEQUENCE {schema}.event_position AS bigint MINVALUE 0 START 0 CACHE 1;
SELECT setval('{schema}.event_position', 0, true);

-- Changes whenever projector_states changes. Only ever set, never drawn from.
CREATE SEQUENCE {schema}.generation AS bigint MINVALUE 0 START 0 CACHE 1;
SELECT setval('{schema}.generation', 0, true);

-- What a release must know to work with this schema: a migration that breaks older releases raises `needs`.
CREATE TABLE {schema}.compatibility (
    singleton boolean NOT NULL DEFAULT true,
    needs     integer NOT NULL,
    CONSTRAINT compatibility_pkey PRIMARY KEY (singleton),
    CONSTRAINT compatibility_one_row CHECK (singleton)
);
INSERT INTO {schema}.compatibility (needs) VALUES (1);
