-- restart: tables are to be replayed from the first event, by a new attempt. No row: they are not being replayed, or they are those
-- of a version that counts, or an activation is at it.
-- $1 projector  $2 major  $3 version  $4 whether secondary indexes stay  $5 seconds of silence after which an activation is dead
WITH whole AS (
    UPDATE {schema}.checkpoints c
    SET position = 0, parallel_to = NULL, split = NULL, attempt = c.attempt + 1, indexed = c.indexed AND $4,
        stalled_since = NULL, error = NULL, error_position = NULL, error_type = NULL, updated_at = clock_timestamp()
    WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0 AND NOT c.inline AND NOT c.seeded AND c.adopted IS NULL
      AND (SELECT bool_or(s.version = $3 AND s.state = 'replaying')
              AND bool_and(s.state IN ('replaying', 'retired') AND NOT s.follow)
           FROM {schema}.projector_states s
           WHERE s.projector = $1 AND split_part(s.version, '.', 1)::bigint = $2)
      AND NOT EXISTS (
          SELECT FROM {schema}.activations a
          WHERE a.ended_at IS NULL AND a.to_configuration ->> $1 = $3
            AND (a.activating_at IS NOT NULL OR a.last_seen > clock_timestamp() - $5 * interval '1 second')
      )
    RETURNING c.projector, c.major, c.attempt, c.objects
), shards AS (
    DELETE FROM {schema}.checkpoints s USING whole
    WHERE s.projector = whole.projector AND s.major = whole.major AND s.shard > 0
    RETURNING s.shard
), skipped AS (
    -- What was skipped is not part of the new rows' history.
    DELETE FROM {schema}.skipped_events e USING whole
    WHERE e.projector = whole.projector AND e.major = whole.major
    RETURNING e.position
)
SELECT whole.attempt, whole.objects, (SELECT count(*) FROM shards) AS shards, (SELECT count(*) FROM skipped) AS skipped
FROM whole;
