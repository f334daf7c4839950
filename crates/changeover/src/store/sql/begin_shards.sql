-- begin_shards: lets several shards replay tables up to a position. No row: somebody did, or the tables are not replayed.
-- $1 projector  $2 major  $3 position to arrive at  $4 shards  $5 attempt
-- $6 what a sample of the events is split by, null where that is nothing of the projector's own
WITH whole AS (
    UPDATE {schema}.checkpoints c
    SET parallel_to = $3, split = $6, updated_at = clock_timestamp()
    WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0 AND c.attempt = $5
      AND c.parallel_to IS NULL AND NOT c.inline AND c.error IS NULL AND c.position < $3
      AND (SELECT bool_and(s.state NOT IN ('active', 'activating')) AND bool_or(s.state = 'replaying')
           FROM {schema}.projector_states s
           WHERE s.projector = $1 AND split_part(s.version, '.', 1)::bigint = $2)
    RETURNING c.position, c.tables_fingerprint, c.attempt
)
INSERT INTO {schema}.checkpoints (projector, major, shard, position, tables_fingerprint, attempt)
SELECT $1, $2, shard, whole.position, whole.tables_fingerprint, whole.attempt
FROM whole, generate_series(1, $4) AS shard
RETURNING shard;
