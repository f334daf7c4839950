-- shards: the checkpoints of a parallel replay, and where they meet.
-- $1 projector  $2 major
SELECT s.shard, s.position, whole.position AS began_at, whole.parallel_to, whole.split, whole.adopted IS NOT NULL AS adopted
FROM {schema}.checkpoints whole
JOIN {schema}.checkpoints s ON s.projector = whole.projector AND s.major = whole.major AND s.shard > 0
WHERE whole.projector = $1 AND whole.major = $2 AND whole.shard = 0 AND whole.parallel_to IS NOT NULL
ORDER BY s.shard;
