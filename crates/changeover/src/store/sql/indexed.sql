-- indexed: the secondary indexes of tables are there. No row: the replay was started over meanwhile.
-- $1 projector  $2 major  $3 attempt
UPDATE {schema}.checkpoints SET indexed = true
WHERE projector = $1 AND major = $2 AND shard = 0 AND attempt = $3
RETURNING indexed;
