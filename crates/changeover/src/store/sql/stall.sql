-- stall: stops a projector at the event that it cannot project, until somebody retries or skips.
-- $1 projector  $2 major  $3 shard  $4 checkpoint that was tried  $5 error  $6 position of the event  $7 its type
UPDATE {schema}.checkpoints
SET stalled_since = clock_timestamp(), error = $5, error_position = $6, error_type = $7, updated_at = clock_timestamp()
WHERE projector = $1 AND major = $2 AND shard = $3 AND position = $4 AND stalled_since IS NULL
RETURNING position;
