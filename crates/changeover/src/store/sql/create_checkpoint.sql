-- create_checkpoint: of tables that were just created.
-- $1 projector  $2 major  $3 inline from the first event on  $4 tables fingerprint  $5 whether they have their secondary indexes
INSERT INTO {schema}.checkpoints (projector, major, inline, tables_fingerprint, indexed)
VALUES ($1, $2, $3, $4, $5)
ON CONFLICT ON CONSTRAINT checkpoints_pkey DO NOTHING
RETURNING projector;
