-- append_at: append to a stream whose revision the writer knows: lease, admission, positions. One row for each event. No row:
-- nothing was written, and append says why.
-- $1 generation decided upon  $2 stream  $3 expected revision  $4 types  $5 data  $6 metadata
INSERT INTO {schema}.events (position, stream, revision, type, data, metadata, recorded_at)
SELECT nextval('{schema}.event_position'), $2, $3 + e.ordinal, e.type, e.data, e.metadata, statement_timestamp()
FROM unnest($4::text[], $5::json[], $6::json[]) WITH ORDINALITY AS e (type, data, metadata, ordinal)
-- A subquery of its own, so that it is run once and before any position is drawn. Nested, because only CASE promises an
-- order: a look ahead, so that a refusal leaves no lease behind; the lease; then the newest generation. A sequence is read
-- outside the snapshot, by this function as by a SELECT.
WHERE (SELECT CASE WHEN pg_sequence_last_value('{schema}.generation') = $1 THEN
                  CASE WHEN pg_advisory_xact_lock_shared(
                           '{schema}.events'::regclass::oid::integer,
                           pg_sequence_last_value('{schema}.event_position')::bit(32)::integer)::text IS NOT NULL
                  THEN pg_sequence_last_value('{schema}.generation') END
              END) = $1
  AND coalesce((SELECT max(s.revision) FROM {schema}.events s WHERE s.stream = $2), 0) = $3
RETURNING position, recorded_at;
