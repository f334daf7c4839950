-- verified_between: where the rows of two versions stand in this snapshot. They stand apart where an event that can be seen lies
-- in between. Appends keep the rows of an inline one: those hold every event that can be seen.
-- $1 projector  $2 one major  $3 the other major
WITH stands AS MATERIALIZED (
    SELECT c.major, c.parallel_to IS NOT NULL AS in_shards,
           CASE WHEN c.inline THEN greatest(c.position, (SELECT max(e.position) FROM {schema}.events e))
                ELSE c.position END AS position,
           (SELECT count(*) FROM {schema}.skipped_events s WHERE s.projector = $1 AND s.major = c.major) AS skipped
    FROM {schema}.checkpoints c
    WHERE c.projector = $1 AND c.major IN ($2, $3) AND c.shard = 0
)
SELECT s.major, s.position, s.in_shards, s.skipped,
       EXISTS (
           SELECT FROM {schema}.events e
           WHERE e.position > (SELECT min(o.position) FROM stands o)
             AND e.position <= (SELECT max(o.position) FROM stands o)
       ) AS apart
FROM stands s
ORDER BY s.major;
