-- pruned_versions: whose tables were dropped, by whom, and how long ago.
SELECT p.projector, p.version, p.pruned_by,
       extract(epoch FROM clock_timestamp() - p.pruned_at)::double precision AS age_secs
FROM {schema}.pruned_versions p
ORDER BY p.projector, p.version;
