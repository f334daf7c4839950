-- retired_tables: the major versions that have retired as a whole, of each projector the newest first.
-- $1 seconds after which an instance counts as gone
SELECT r.projector, r.major, r.versions, r.projector || '_v' || r.major AS schema,
       extract(epoch FROM clock_timestamp() - r.retired_at)::double precision AS retired_secs,
       (SELECT coalesce(sum(pg_total_relation_size(t.oid)), 0)::bigint
        FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE n.nspname = r.projector || '_v' || r.major AND t.relkind IN ('r', 'm')) AS bytes,
       live.instances, live.followers
FROM (
    SELECT s.projector, split_part(s.version, '.', 1)::bigint AS major, max(s.changed_at) AS retired_at,
           array_agg(s.version ORDER BY s.version) AS versions,
           array_agg(substring(s.version FROM '^\d+\.\d+\.')) FILTER (WHERE s.follow) AS followed
    FROM {schema}.projector_states s
    GROUP BY s.projector, major
    HAVING bool_and(s.state = 'retired' AND s.activation IS NULL)
) r, LATERAL (
    SELECT count(*) AS instances,
           count(*) FILTER (WHERE substring(i.version FROM '^\d+\.\d+\.') = ANY (r.followed)) AS followers
    FROM (
        SELECT i.configuration ->> r.projector AS version
        FROM {schema}.instances i
        WHERE i.last_seen > clock_timestamp() - $1 * interval '1 second'
    ) i
    WHERE split_part(i.version, '.', 1) = r.major::text
) live
ORDER BY r.projector, r.retired_at DESC, r.major DESC;
