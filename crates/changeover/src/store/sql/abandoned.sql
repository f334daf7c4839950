-- abandoned: tables that were replayed, and whoever may be at them.
-- $1 projector  $2 major  $3 seconds after which an instance counts as gone  $4 seconds of silence of an activation
-- $5 projector and major version, as text
SELECT coalesce(s.position, w.position) AS position, w.adopted IS NOT NULL OR w.inline AS adopted,
       extract(epoch FROM clock_timestamp() - greatest(w.updated_at, s.updated_at))::double precision AS untouched_secs,
       (SELECT coalesce(sum(pg_total_relation_size(t.oid)), 0)::bigint
        FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
        WHERE n.nspname = w.projector || '_v' || w.major AND t.relkind IN ('r', 'm')) AS bytes,
       (SELECT count(*) FROM {schema}.instances i
        WHERE i.last_seen > clock_timestamp() - $3 * interval '1 second'
          AND split_part(i.configuration ->> w.projector, '.', 1) = w.major::text) AS instances,
       -- Whether these very tables counted before: then they are the way back, whoever began to go it and did not get there.
       EXISTS (SELECT FROM {schema}.activations a
               WHERE a.outcome = 'activated'
                 AND w.major::text IN (split_part(a.from_configuration ->> w.projector, '.', 1),
                                       split_part(a.to_configuration ->> w.projector, '.', 1))
                 AND a.ended_at > coalesce((SELECT max(p.pruned_at) FROM {schema}.pruned_versions p
                                            WHERE p.projector = w.projector
                                              AND split_part(p.version, '.', 1) = w.major::text), '-infinity')) AS counted,
       (SELECT format('activation %s by %s', a.id, a.requested_by) FROM {schema}.activations a
        WHERE a.ended_at IS NULL AND split_part(a.to_configuration ->> w.projector, '.', 1) = w.major::text
          AND (a.activating_at IS NOT NULL OR a.last_seen > clock_timestamp() - $4 * interval '1 second')
        ORDER BY a.id DESC LIMIT 1) AS activation,
       EXISTS (SELECT FROM pg_locks l
               WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
                 AND l.classid = '{schema}.projector_states_pkey'::regclass
                 AND l.objid::bigint = hashtext($5)::bigint & 4294967295
                 AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) AS shared
FROM {schema}.checkpoints w,
LATERAL (SELECT min(c.position) AS position, max(c.updated_at) AS updated_at FROM {schema}.checkpoints c
         WHERE c.projector = w.projector AND c.major = w.major AND c.shard > 0) s
WHERE w.projector = $1 AND w.major = $2 AND w.shard = 0;
