-- activations: the newest upgrades.
-- $1 rows
SELECT a.id, a.requested_by, a.from_configuration, a.to_configuration, a.started_at, a.activating_at, a.drained_at,
       a.caught_up_at, a.horizon, a.ended_at, a.outcome, a.error,
       (extract(epoch FROM a.ended_at - a.activating_at) * 1000)::double precision AS pause_ms
FROM {schema}.activations a
ORDER BY a.id DESC
LIMIT $1;
