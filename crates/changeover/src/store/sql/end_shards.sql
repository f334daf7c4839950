-- end_shards: shards that have all arrived become one checkpoint again. No row: one of them has not.
-- $1 projector  $2 major
WITH whole AS MATERIALIZED (
    SELECT c.projector, c.major, c.parallel_to
    FROM {schema}.checkpoints c
    WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0 AND c.parallel_to IS NOT NULL
    FOR UPDATE OF c
), arrived AS (
    DELETE FROM {schema}.checkpoints s
    USING whole
    WHERE s.projector = whole.projector AND s.major = whole.major AND s.shard > 0
      AND (SELECT bool_and(o.position = whole.parallel_to) FROM {schema}.checkpoints o
           WHERE o.projector = $1 AND o.major = $2 AND o.shard > 0)
    RETURNING s.shard
)
UPDATE {schema}.checkpoints c
SET position = whole.parallel_to, parallel_to = NULL, split = NULL, updated_at = clock_timestamp()
FROM whole
WHERE c.projector = whole.projector AND c.major = whole.major AND c.shard = 0 AND EXISTS (SELECT FROM arrived)
RETURNING c.position;
