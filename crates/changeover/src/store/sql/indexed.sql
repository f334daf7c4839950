-- indexed: the secondary indexes of tables are there.
-- $1 projector  $2 major
UPDATE {schema}.checkpoints SET indexed = true WHERE projector = $1 AND major = $2 AND shard = 0 RETURNING indexed;
