-- open_activation: the one in its pause, else the newest that is being prepared by somebody who is there.
-- $1 seconds of silence
SELECT a.id, a.requested_by, a.to_configuration, a.started_at, a.activating_at,
       extract(epoch FROM clock_timestamp() - a.started_at)::double precision AS age_secs,
       extract(epoch FROM a.deadline - clock_timestamp())::double precision AS left_secs
FROM {schema}.activations a
WHERE a.ended_at IS NULL
  AND (a.activating_at IS NOT NULL OR a.last_seen > clock_timestamp() - $1 * interval '1 second')
ORDER BY a.activating_at IS NULL, a.id DESC
LIMIT 1;
