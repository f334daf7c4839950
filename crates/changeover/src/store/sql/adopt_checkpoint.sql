-- adopt_checkpoint: of tables that somebody else has made and filled. Where a replay has filled such tables before, whoever is still
-- at those is at an earlier attempt.
-- $1 projector  $2 major  $3 what they hold everything of  $4 appends keep them current  $5 tables fingerprint  $6 what of the schema is ours
INSERT INTO {schema}.checkpoints (projector, major, position, adopted, inline, tables_fingerprint, objects, attempt)
SELECT $1, $2, $3, $3, $4, $5, $6, coalesce(max(p.attempt), 0) + 1
FROM {schema}.pruned_versions p
WHERE p.projector = $1 AND split_part(p.version, '.', 1)::bigint = $2
ON CONFLICT ON CONSTRAINT checkpoints_pkey DO NOTHING
RETURNING projector;
