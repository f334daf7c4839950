-- create_checkpoint: of tables that were just created.
-- $1 projector  $2 major  $3 inline from the first event on  $4 tables fingerprint  $5 whether they have their secondary indexes
-- $6 what was created  $7 its columns  $8 whether it holds rows already
INSERT INTO {schema}.checkpoints (projector, major, inline, tables_fingerprint, indexed, objects, columns, seeded)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT ON CONSTRAINT checkpoints_pkey DO NOTHING
RETURNING projector;
