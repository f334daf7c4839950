-- instances: who is there, and since when silent.
SELECT i.id, i.application, i.application_version, i.configuration, i.address, i.readiness, i.started_at,
       extract(epoch FROM clock_timestamp() - i.last_seen)::double precision AS silent_secs
FROM {schema}.instances i
ORDER BY i.started_at, i.id;
