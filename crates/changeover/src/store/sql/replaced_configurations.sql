-- replaced_configurations: every configuration that was active once, and how long ago another one replaced it last.
SELECT a.from_configuration::jsonb AS configuration,
       extract(epoch FROM clock_timestamp() - max(a.ended_at))::double precision AS replaced_secs
FROM {schema}.activations a
WHERE a.outcome = 'activated'
GROUP BY a.from_configuration::jsonb
ORDER BY max(a.ended_at) DESC;
