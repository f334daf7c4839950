-- forget_tables: the bookkeeping of tables that are dropped in the same transaction.
-- $1 projector  $2 major
WITH skipped AS (
    DELETE FROM {schema}.skipped_events e WHERE e.projector = $1 AND e.major = $2
)
DELETE FROM {schema}.checkpoints c WHERE c.projector = $1 AND c.major = $2
RETURNING c.shard;
