-- checkpoints: how far the tables of every major version have come.
SELECT c.projector, c.major, c.shard, c.position, c.inline, c.tables_fingerprint, c.stalled_since, c.error,
       c.error_position, c.error_type, c.updated_at,
       -- How old the first event is that a checkpoint has not seen. Whether the projector handles its type is not known here.
       (SELECT extract(epoch FROM clock_timestamp() - e.recorded_at)::double precision
        FROM {schema}.events e
        WHERE NOT c.inline AND e.position > c.position
        ORDER BY e.position LIMIT 1) AS lag_secs
FROM {schema}.checkpoints c
ORDER BY c.projector, c.major, c.shard;
