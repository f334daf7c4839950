-- append_new: append events to a stream that is not there yet, in a transaction of our own: lease, admission, positions. One row
-- for each event. No row: nothing was written. A stream that is there after all breaks the unique constraint.
-- $1 generation decided upon  $2 stream  $3 types  $4 data  $5 metadata
INSERT INTO {schema}.events (position, stream, revision, type, data, metadata, recorded_at)
SELECT nextval('{schema}.event_position'), $2, e.ordinal, e.type, e.data, e.metadata, statement_timestamp()
FROM unnest($3::text[], $4::json[], $5::json[]) WITH ORDINALITY AS e (type, data, metadata, ordinal)
-- A subquery of its own, so that it is run once and before any position is drawn; CASE, because it alone promises an order.
WHERE (SELECT CASE WHEN pg_advisory_xact_lock_shared(
                      '{schema}.events'::regclass::oid::integer,
                      pg_sequence_last_value('{schema}.event_position')::bit(32)::integer)::text IS NOT NULL
              THEN pg_sequence_last_value('{schema}.generation') END) = $1
RETURNING position, recorded_at;
