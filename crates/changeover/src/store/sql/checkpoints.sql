-- checkpoints: how far the tables of every major version have come.
SELECT c.projector, c.major, c.position, c.parallel_to, c.indexed, c.inline, c.tables_fingerprint, c.stalled_since, c.error,
       c.error_position, c.error_type, c.updated_at,
       -- How old the first event is that a checkpoint has not seen. Whether the projector handles its type is not known here.
       (SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::double precision
        FROM {schema}.events e
        WHERE NOT c.inline AND e.position > c.position
        ORDER BY e.position LIMIT 1) AS lag_secs
FROM (
    SELECT w.projector, w.major, w.parallel_to, w.indexed, w.inline, w.tables_fingerprint, w.stalled_since, w.error,
           w.error_position, w.error_type,
           -- Of several shards, the one that is furthest behind.
           coalesce(min(s.position), w.position) AS position, greatest(w.updated_at, max(s.updated_at)) AS updated_at
    FROM {schema}.checkpoints w
    LEFT JOIN {schema}.checkpoints s ON s.projector = w.projector AND s.major = w.major AND s.shard > 0
    WHERE w.shard = 0
    GROUP BY w.projector, w.major, w.shard
) c
ORDER BY c.projector, c.major;
