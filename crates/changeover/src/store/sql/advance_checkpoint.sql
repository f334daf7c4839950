-- advance_checkpoint: moves a checkpoint forward. No row back: somebody else moved it first.
-- $1 projector  $2 major  $3 shard  $4 position we read from  $5 position we reached
UPDATE {schema}.checkpoints
SET position = $5, updated_at = clock_timestamp()
WHERE projector = $1 AND major = $2 AND shard = $3 AND position = $4 AND $5 >= $4
RETURNING position;
