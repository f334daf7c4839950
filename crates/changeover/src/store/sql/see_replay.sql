-- see_replay: work is there still, and so far. No row: it was not shown before, or was taken for gone.
-- $1 id  $2 how far each projector is
UPDATE {schema}.replays r
SET last_seen = clock_timestamp(), phase = coalesce(s.phase, r.phase), position = coalesce(s.position, r.position),
    horizon = coalesce(s.horizon, r.horizon), events = coalesce(s.events, r.events), events_per_sec = s.events_per_sec,
    left_secs = s.left_secs, indexes_built = s.indexes_built, indexes = s.indexes
FROM {schema}.replays o
LEFT JOIN json_to_recordset($2) AS s (projector text, phase text, position bigint, horizon bigint, events bigint,
                                      events_per_sec double precision, left_secs double precision, indexes_built integer,
                                      indexes integer) ON s.projector = o.projector
WHERE o.id = $1 AND r.id = o.id AND r.projector = o.projector
RETURNING r.projector, r.version, r.aborted_by;
