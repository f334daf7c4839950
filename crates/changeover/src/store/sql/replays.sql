-- replays: who works on which version, and how far that is.
SELECT r.id, r.projector, r.version, r.purpose, r.phase, r.position, r.horizon, r.events, r.events_per_sec, r.left_secs,
       r.indexes_built, r.indexes, r.requested_by, r.instance, r.application, r.application_version, r.host, r.pid, r.aborted_by,
       extract(epoch FROM clock_timestamp() - r.started_at)::double precision AS age_secs,
       extract(epoch FROM clock_timestamp() - r.last_seen)::double precision AS silent_secs
FROM {schema}.replays r
ORDER BY r.projector, r.version, r.started_at, r.id;
