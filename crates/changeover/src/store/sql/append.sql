-- append: lease, admission, positions. Each step reads from the one before, which forces their order.
-- $1 generation decided upon  $2 stream  $3 expected revision, null for any  $4 types  $5 data  $6 metadata
WITH known AS MATERIALIZED (
    -- A look ahead, so that a refusal leaves no lease behind that an activation would have to wait for.
    SELECT g.last_value AS generation FROM {schema}.generation g
), lease AS MATERIALIZED (
    SELECT pg_advisory_xact_lock_shared(
        '{schema}.events'::regclass::oid::integer, p.last_value::bit(32)::integer)::text AS held
    FROM known, {schema}.event_position p
    WHERE known.generation = $1
), admission AS MATERIALIZED (
    -- A sequence is read outside the snapshot: this is the newest generation in every isolation level.
    SELECT (SELECT g.last_value FROM {schema}.generation g WHERE lease.held IS NOT NULL) AS generation
    FROM lease
), found AS MATERIALIZED (
    SELECT coalesce((SELECT max(e.revision) FROM {schema}.events e WHERE e.stream = $2), 0) AS revision
    FROM admission
    WHERE admission.generation = $1
), inserted AS (
    INSERT INTO {schema}.events (position, stream, revision, type, data, metadata)
    SELECT nextval('{schema}.event_position'), $2, found.revision + e.ordinal, e.type, e.data, e.metadata
    FROM found, unnest($4::text[], $5::json[], $6::json[]) WITH ORDINALITY AS e (type, data, metadata, ordinal)
    WHERE $3::bigint IS NULL OR found.revision = $3
    RETURNING position
)
SELECT coalesce((SELECT generation FROM admission), (SELECT generation FROM known)) AS generation,
       EXISTS (SELECT FROM lease) AS leased,
       (SELECT revision FROM found) AS found,
       (SELECT array_agg(position ORDER BY position) FROM inserted) AS positions,
       statement_timestamp() AS recorded_at;
