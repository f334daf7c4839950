-- newest_activated: the switch that made the active configuration what it is, as far as the history tells.
SELECT a.from_configuration, a.to_configuration, a.rollback
FROM {schema}.activations a
WHERE a.outcome = 'activated'
ORDER BY a.ended_at DESC, a.id DESC
LIMIT 1;
