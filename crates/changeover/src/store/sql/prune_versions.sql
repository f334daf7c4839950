-- prune_versions: takes a major version out that has retired as a whole and that nobody follows. No row: not so.
-- $1 projector  $2 major  $3 who  $4 seconds after which an instance counts as gone
WITH own AS (
    SELECT s.version, s.follow, s.state = 'retired' AND s.activation IS NULL AS retired
    FROM {schema}.projector_states s
    WHERE s.projector = $1 AND split_part(s.version, '.', 1)::bigint = $2
), gone AS (
    DELETE FROM {schema}.projector_states s
    WHERE s.projector = $1 AND split_part(s.version, '.', 1)::bigint = $2
      AND s.state = 'retired' AND s.activation IS NULL
      AND NOT EXISTS (SELECT FROM own WHERE NOT own.retired)
      AND NOT EXISTS (
          SELECT FROM own, {schema}.instances i
          WHERE own.follow AND i.last_seen > clock_timestamp() - $4 * interval '1 second'
            AND substring(i.configuration ->> $1 FROM '^\d+\.\d+\.') = substring(own.version FROM '^\d+\.\d+\.')
      )
    RETURNING s.version
)
INSERT INTO {schema}.pruned_versions AS p (projector, version, pruned_by, attempt)
SELECT $1, gone.version, $3,
       (SELECT c.attempt FROM {schema}.checkpoints c WHERE c.projector = $1 AND c.major = $2 AND c.shard = 0)
FROM gone
ON CONFLICT ON CONSTRAINT pruned_versions_pkey DO UPDATE
SET pruned_by = excluded.pruned_by, pruned_at = clock_timestamp(), activated = true,
    attempt = greatest(p.attempt, excluded.attempt)
RETURNING p.version;
