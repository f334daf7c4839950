-- adopt_checkpoint: of tables that somebody else has made and filled.
-- $1 projector  $2 major  $3 what they hold everything of  $4 appends keep them current  $5 tables fingerprint  $6 what of the schema is ours
INSERT INTO {schema}.checkpoints (projector, major, position, adopted, inline, tables_fingerprint, objects)
VALUES ($1, $2, $3, $3, $4, $5, $6)
ON CONFLICT ON CONSTRAINT checkpoints_pkey DO NOTHING
RETURNING projector;
