-- create_checkpoint: of tables that were just created.
-- $1 projector  $2 major  $3 inline from the first event on  $4 tables fingerprint  $5 whether they have their secondary indexes
-- $6 what was created
INSERT INTO {schema}.checkpoints (projector, major, inline, tables_fingerprint, indexed, objects)
VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT ON CONSTRAINT checkpoints_pkey DO NOTHING
RETURNING projector;
