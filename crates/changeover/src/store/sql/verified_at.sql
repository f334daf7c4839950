-- verified_at: where the rows of some tables stand in this snapshot, and what they do without.
-- $1 projector  $2 major
SELECT c.position, c.attempt, c.inline, c.parallel_to IS NOT NULL AS in_shards,
       ARRAY(SELECT s.position FROM {schema}.skipped_events s WHERE s.projector = $1 AND s.major = $2) AS skipped
FROM {schema}.checkpoints c
WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0;
