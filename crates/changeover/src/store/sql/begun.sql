-- begun: tables that are to be replayed: which attempt it is, and how they were made.
-- $1 projector  $2 major
SELECT w.attempt, w.objects, w.columns, w.seeded, w.adopted IS NOT NULL AS adopted,
       greatest(w.position, (SELECT max(s.position) FROM {schema}.checkpoints s
                             WHERE s.projector = $1 AND s.major = $2 AND s.shard > 0)) AS furthest
FROM {schema}.checkpoints w
WHERE w.projector = $1 AND w.major = $2 AND w.shard = 0;
