-- create_checkpoint: of tables that were just created. Where there were such tables before, whoever is still at those is at an
-- earlier attempt.
-- $1 projector  $2 major  $3 inline from the first event on  $4 tables fingerprint  $5 whether they have their secondary indexes
-- $6 what was created  $7 its columns  $8 whether it holds rows already
INSERT INTO {schema}.checkpoints (projector, major, inline, tables_fingerprint, indexed, objects, columns, seeded, attempt)
SELECT $1, $2, $3, $4, $5, $6, $7, $8, coalesce(max(p.attempt), 0) + 1
FROM {schema}.pruned_versions p
WHERE p.projector = $1 AND split_part(p.version, '.', 1)::bigint = $2
ON CONFLICT ON CONSTRAINT checkpoints_pkey DO NOTHING
RETURNING projector;
