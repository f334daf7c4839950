-- discard_versions: takes a major version out that was replayed, that was never activated, and that nobody is at. No row: not so.
-- $1 projector  $2 major  $3 who  $4 seconds after which a replay counts as gone  $5 seconds of silence of an activation
-- $6 projector and major version, as text
WITH gone AS (
    DELETE FROM {schema}.projector_states s
    WHERE s.projector = $1 AND split_part(s.version, '.', 1)::bigint = $2
      AND NOT EXISTS (
          SELECT FROM {schema}.projector_states o
          WHERE o.projector = $1 AND split_part(o.version, '.', 1)::bigint = $2
            AND (o.state <> 'replaying' OR o.activation IS NOT NULL)
      )
      AND NOT EXISTS (
          SELECT FROM {schema}.checkpoints c
          WHERE c.projector = $1 AND c.major = $2 AND (c.adopted IS NOT NULL OR c.inline)
      )
      AND NOT EXISTS (
          SELECT FROM {schema}.replays r
          WHERE r.projector = $1 AND split_part(r.version, '.', 1)::bigint = $2
            AND r.last_seen > clock_timestamp() - $4 * interval '1 second'
      )
      AND NOT EXISTS (
          SELECT FROM {schema}.activations a
          WHERE a.ended_at IS NULL AND split_part(a.to_configuration ->> $1, '.', 1) = $2::text
            AND (a.activating_at IS NOT NULL OR a.last_seen > clock_timestamp() - $5 * interval '1 second')
      )
      AND NOT EXISTS (
          SELECT FROM pg_locks l
          WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted
            AND l.classid = '{schema}.projector_states_pkey'::regclass
            AND l.objid::bigint = hashtext($6)::bigint & 4294967295
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
      )
    RETURNING s.version
)
INSERT INTO {schema}.pruned_versions AS p (projector, version, pruned_by, activated, attempt)
SELECT $1, gone.version, $3, false,
       (SELECT c.attempt FROM {schema}.checkpoints c WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0)
FROM gone
ON CONFLICT ON CONSTRAINT pruned_versions_pkey DO UPDATE
SET pruned_by = excluded.pruned_by, pruned_at = clock_timestamp(), attempt = greatest(p.attempt, excluded.attempt)
RETURNING p.version;
