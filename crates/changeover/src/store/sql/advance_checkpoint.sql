-- advance_checkpoint: moves a checkpoint forward. If somebody else moved it first, this divides by zero: the commit may be on its
-- way already, and must be none then.
-- $1 projector  $2 major version  $3 shard  $4 position we read from  $5 position we reached
WITH moved AS (
    UPDATE {schema}.checkpoints
    SET position = $5, updated_at = clock_timestamp()
    WHERE projector = $1 AND major = $2 AND shard = $3 AND position = $4 AND $5 >= $4
    RETURNING position
)
SELECT 1 / count(*) AS moved FROM moved;
