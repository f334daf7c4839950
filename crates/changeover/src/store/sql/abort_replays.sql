-- abort_replays: whoever works on some projectors is told to end, on everything that it works on. Who is frozen will see it when it
-- wakes up.
-- $1 projectors, null for all  $2 who
UPDATE {schema}.replays r
SET aborted_by = $2
WHERE r.aborted_by IS NULL
  AND ($1::text[] IS NULL OR EXISTS (SELECT FROM {schema}.replays o WHERE o.id = r.id AND o.projector = ANY ($1)))
RETURNING r.id, r.projector, r.version, r.purpose, r.phase, r.position, r.horizon, r.events, r.events_per_sec, r.left_secs,
          r.indexes_built, r.indexes, r.requested_by, r.instance, r.application, r.application_version, r.host, r.pid,
          r.aborted_by, extract(epoch FROM clock_timestamp() - r.started_at)::double precision AS age_secs,
          extract(epoch FROM clock_timestamp() - r.last_seen)::double precision AS silent_secs;
