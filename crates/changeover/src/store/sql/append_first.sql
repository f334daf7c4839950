-- append_first: append_new for one event, by the shortest way there is.
-- $1 generation decided upon  $2 stream  $3 type  $4 data  $5 metadata
INSERT INTO {schema}.events (position, stream, revision, type, data, metadata, recorded_at)
SELECT nextval('{schema}.event_position'), $2, 1::bigint, $3, $4, $5, statement_timestamp()
-- There is no row to choose from: this is decided once, and before the position is drawn.
WHERE CASE WHEN pg_advisory_xact_lock_shared(
                   '{schema}.events'::regclass::oid::integer,
                   pg_sequence_last_value('{schema}.event_position')::bit(32)::integer)::text IS NOT NULL
      THEN pg_sequence_last_value('{schema}.generation') END = $1
RETURNING position, recorded_at;
